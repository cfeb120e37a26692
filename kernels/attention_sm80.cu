// attention_sm80 — attention_tensor.cuh (formula, bits, needs) with bf16 and mma.m16n8k16; tiles come by cp.async
//   d128        128 rows, 4 warps of 32, a ring of 3 tiles, 80 KiB: two blocks on a multiprocessor of sm_80, 90, 100
//   d128_r64    64 rows, 4 warps of 16, a ring of 2 tiles, 48 KiB: two blocks where shared memory is 100 KB (sm_86, 89,
//               120)
//   d64         128 rows, 4 warps of 32, a ring of 3 tiles, 40 KiB: two blocks anywhere
//   d256        64 rows, 4 warps of 16, a ring of 2 tiles, 96 KiB: one block, also where it may have 99 KiB (sm_86, 89,
//               120); two on sm_90, 100
//   _wc         with a window and a cap
//   tiers       sm80+
#include "attention_tensor.cuh"

struct Sm80 {
  using T = bf16;

  // A word on its way to shared memory needs no register.
  struct Flight {};

  // Where `there` is false, the source is not touched.
  static __device__ __forceinline__ void begin(Flight &, uint32_t target, const T *source, bool there) {
    cp_async_16(target, source, there ? sizeof(uint4) : 0);
  }
  static __device__ __forceinline__ void end(const Flight &, uint32_t) {}
  static __device__ __forceinline__ void commit() { cp_async_commit_group(); }
  template <int NEWEST> static __device__ __forceinline__ void wait() { cp_async_wait_group<NEWEST>(); }

  static __device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k16_bf16(sum, a, b0, b1);
  }
};

#define ATTENTION_SM80(NAME, ...)                                                                                      \
  extern "C" __global__ void __launch_bounds__(Attention<Sm80, __VA_ARGS__>::THREADS, 2)                               \
      NAME(const bf16 *qkv, bf16 *out, const WorkItem *work, const uint32_t *tile_rows, Shape shape) {                     \
    Attention<Sm80, __VA_ARGS__>::run(qkv, out, work, tile_rows, shape);                                               \
  }

//             entry                   head_dim, warps, warp tiles, stages, variant
ATTENTION_SM80(attention_sm80_bf16_d64, 64, 4, 2, 3, Variant::Full)
ATTENTION_SM80(attention_sm80_bf16_d128, 128, 4, 2, 3, Variant::Full)
ATTENTION_SM80(attention_sm80_bf16_d128_r64, 128, 4, 1, 2, Variant::Full)
ATTENTION_SM80(attention_sm80_bf16_d256, 256, 4, 1, 2, Variant::Full)
ATTENTION_SM80(attention_sm80_bf16_d64_wc, 64, 4, 2, 3, Variant::WindowCap)
ATTENTION_SM80(attention_sm80_bf16_d128_wc, 128, 4, 2, 3, Variant::WindowCap)
ATTENTION_SM80(attention_sm80_bf16_d128_r64_wc, 128, 4, 1, 2, Variant::WindowCap)
ATTENTION_SM80(attention_sm80_bf16_d256_wc, 256, 4, 1, 2, Variant::WindowCap)
