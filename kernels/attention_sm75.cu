// attention_sm75 — attention_tensor.cuh (formula, bits, needs) with fp16 and mma.m16n8k8; tiles come through registers
//   d128        128 rows, 8 warps of 16, a ring of 2 tiles: all of Turing's 64 KiB, one block on a multiprocessor
//   d64         128 rows, 4 warps of 32, a ring of 2 tiles, 32 KiB: two blocks
//   _wc         with a window and a cap
//   tiers       sm75+
#include "attention_tensor.cuh"

struct Sm75 {
  using T = f16;

  // A word on its way to shared memory: loaded before the present tile is used, stored after.
  using Flight = uint4;

  static __device__ __forceinline__ void begin(Flight &flight, uint32_t, const T *source, bool there) {
    flight = there ? __ldg(reinterpret_cast<const uint4 *>(source)) : make_uint4(0, 0, 0, 0);
  }
  static __device__ __forceinline__ void end(const Flight &flight, uint32_t target) { st_shared_16(target, flight); }
  static __device__ __forceinline__ void commit() {}
  template <int NEWEST> static __device__ __forceinline__ void wait() {}

  static __device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k8_f16(sum, a[0], a[1], b0);
    mma_m16n8k8_f16(sum, a[2], a[3], b1);
  }
};

#define ATTENTION_SM75(NAME, BLOCKS_MIN, ...)                                                                          \
  extern "C" __global__ void __launch_bounds__(Attention<Sm75, __VA_ARGS__>::THREADS, BLOCKS_MIN)                      \
      NAME(const f16 *qkv, f16 *out, const WorkItem *work, const uint32_t *tile_rows, Shape shape) {                       \
    Attention<Sm75, __VA_ARGS__>::run(qkv, out, work, tile_rows, shape);                                               \
  }

//             entry                   blocks, head_dim, warps, warp tiles, stages, variant
ATTENTION_SM75(attention_sm75_f16_d64, 2, 64, 4, 2, 2, Variant::Full)
ATTENTION_SM75(attention_sm75_f16_d128, 1, 128, 8, 1, 2, Variant::Full)
ATTENTION_SM75(attention_sm75_f16_d64_wc, 2, 64, 4, 2, 2, Variant::WindowCap)
ATTENTION_SM75(attention_sm75_f16_d128_wc, 1, 128, 8, 1, 2, Variant::WindowCap)
