// digest_rows — digests[r] = the sum of mix(i, word i of row r) over the row's 64-bit words, modulo 2^64
//   x [rows, stride bytes] with row_bytes bytes of a row that count · digests [rows] of 64 bits: equal rows have equal
//   digests, and others almost surely not. It tells by the bits of their results which algorithms of a matmul add in
//   the same order
//   method      mix is the finaliser of splitmix64 (Steele et al. 2014) of the word, after an exclusive or with that
//               generator's state of its index; a sum modulo 2^64 does not depend on its order
//   grid        [rows], 256 threads; 16 bytes per thread and step
//   needs       row_bytes and stride % 16 == 0, row_bytes below 2^31; x 16-byte aligned, digests 8-byte aligned
//   cost        row_bytes + 8 bytes per row; some 30 32-bit operations a word -> bound by those; it runs at load
//   tiers       all
#include "reduce.cuh"

#include <cstdint>

constexpr int THREADS = 256;

__device__ __forceinline__ uint64_t mix(uint32_t index, uint64_t word) {
  uint64_t value = word ^ (index + 1) * 0x9E3779B97F4A7C15u;
  value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
  value = (value ^ value >> 27) * 0x94D049BB133111EBu;
  return value ^ value >> 31;
}

__device__ __forceinline__ uint64_t warp_sum(uint64_t value) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
  return value;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    digest_rows(const uint8_t *x, uint64_t *digests, uint64_t stride, int row_bytes) {
  __shared__ uint64_t of_warps[THREADS / WARP];
  const ulonglong2 *const row = reinterpret_cast<const ulonglong2 *>(x + blockIdx.x * stride);
  const int steps = row_bytes / static_cast<int>(sizeof(ulonglong2));
  uint64_t sum = 0;
  for (int step = threadIdx.x; step < steps; step += THREADS) {
    const ulonglong2 words = row[step];
    sum += mix(2 * step, words.x) + mix(2 * step + 1, words.y);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = sum;
  __syncthreads();
  if (threadIdx.x >= WARP) return;
  sum = warp_sum(threadIdx.x < THREADS / WARP ? of_warps[threadIdx.x] : 0);
  if (threadIdx.x == 0) digests[blockIdx.x] = sum;
}
