// fill_normal — out[i] = deviation * z(seed, i), with z close to normal: mean 0, variance 1, |z| <= 4.9
//   out [count]: random weights for benchmarks
//   method      Philox 4x32-10 (Salmon et al. 2011) of counter i and key seed gives eight 16-bit integers; z is their
//               sum, centred and scaled. Integers up to one multiplication and one rounding: equal bits on every device
//   grid        [count / 8 / 256 rounded up], 256 threads, 8 values (16 bytes) per thread
//   needs       count % 8 == 0; out 16-byte aligned
//   cost        2 bytes and about 120 integer operations per value -> bound by those; it runs once
//   tiers       sm75 (f16), sm80+ (bf16)
#include "storage.cuh"

constexpr int THREADS = 256;

// One Philox block: four random words for a counter.
__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t low0 = 0xD2511F53u * counter.x, high0 = __umulhi(0xD2511F53u, counter.x);
    const uint32_t low1 = 0xCD9E8D57u * counter.z, high1 = __umulhi(0xCD9E8D57u, counter.z);
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key = make_uint2(key.x + 0x9E3779B9u, key.y + 0xBB67AE85u);
  }
  return counter;
}

__device__ __forceinline__ int halves(uint32_t word) { return (word & 0xffffu) + (word >> 16); }

template <typename T>
__device__ __forceinline__ void fill_normal(T *out, uint64_t count, uint64_t seed, float deviation) {
  // A 16-bit integer has variance (2^32 - 1) / 12, eight of them 8 times that.
  constexpr float ONE_DEVIATION = 53509.92f;
  constexpr int CENTRE = 4 * 65535;
  const uint64_t first = (static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x) * WIDE;
  if (first >= count) return;
  const uint2 key = make_uint2(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const float unit = __fdiv_rn(deviation, ONE_DEVIATION);
  float values[WIDE];
#pragma unroll
  for (int i = 0; i < WIDE; ++i) {
    const uint64_t index = first + i;
    const uint4 words = philox(make_uint4(static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0), key);
    values[i] = (halves(words.x) + halves(words.y) + halves(words.z) + halves(words.w) - CENTRE) * unit;
  }
  *reinterpret_cast<uint4 *>(out + first) = pack8<T>(values);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    fill_normal_f16(f16 *out, uint64_t count, uint64_t seed, float deviation) {
  fill_normal<f16>(out, count, seed, deviation);
}

#if HAS_BF16
extern "C" __global__ void __launch_bounds__(THREADS)
    fill_normal_bf16(bf16 *out, uint64_t count, uint64_t seed, float deviation) {
  fill_normal<bf16>(out, count, seed, deviation);
}
#endif
