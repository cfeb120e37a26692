// add_parts — residual[i] += part[0][i] + part[1][i] + ..., a part of each rank, for the rank's slice of an all-reduce
//   bf16        residual [count] bf16 in/out · own [count] bf16: the part of rank `rank`, which computed it ·
//               received [parts, count] bf16: those of the other ranks; its own row is not read
//   f16         all three in f32: the sm75 tier, whose residual stream would overflow fp16
//   accumulate  f32, in the order of ranks, with one rounding: the bits of add_rms_norm with a delta of as many parts
//   grid        [count / 8 / 256 rounded up (f16: count / 4)], 256 threads, 16 bytes of each operand per thread; four
//               parts of a thread in flight together
//   needs       count % 8 == 0; every pointer 16-byte aligned; rank < parts
//   cost        bf16: 2 * (parts + 2) bytes per element; f16: twice that -> memory bound
//   tiers       sm75 (f16), sm80+ (bf16)
#include "residual.cuh"

constexpr int THREADS = 256;

// Parts that a thread asks for before it uses the first of them.
constexpr int PARTS_BATCH = 4;

// R is the type of residual and parts.
template <typename R> __device__ __forceinline__ void
add_parts(R *residual, const R *own, const R *received, int parts, int rank, uint64_t count) {
  using W = Word<R>;
  constexpr int VALUES = W::VALUES;
  const uint64_t first = (static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x) * VALUES;
  if (first >= count) return;
  W *const to = reinterpret_cast<W *>(residual + first);
  float values[VALUES];
  to->unpack(values);
#pragma unroll 1
  for (int start = 0; start < parts; start += PARTS_BATCH) {
    W words[PARTS_BATCH];
#pragma unroll
    for (int i = 0; i < PARTS_BATCH; ++i) {
      const int part = start + i;
      if (part >= parts) break;
      const R *from = part == rank ? own : received + part * count;
      words[i] = *reinterpret_cast<const W *>(from + first);
    }
#pragma unroll
    for (int i = 0; i < PARTS_BATCH; ++i) {
      if (start + i >= parts) break;
      float added[VALUES];
      words[i].unpack(added);
#pragma unroll
      for (int j = 0; j < VALUES; ++j) values[j] += added[j];
    }
  }
  W sum;
  sum.pack(values);
  *to = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    add_parts_f16(float *residual, const float *own, const float *received, int parts, int rank, uint64_t count) {
  add_parts<float>(residual, own, received, parts, rank, count);
}

#if HAS_BF16
extern "C" __global__ void __launch_bounds__(THREADS)
    add_parts_bf16(bf16 *residual, const bf16 *own, const bf16 *received, int parts, int rank, uint64_t count) {
  add_parts<bf16>(residual, own, received, parts, rank, count);
}
#endif
