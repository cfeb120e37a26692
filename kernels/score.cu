// score — out[t, label] = x[t,:] . head[label,:]
//   x [tokens, hidden] · head [labels, hidden] · out [tokens, labels] f32
//   accumulate  f32, no rounding of the result; the order of the sum is fixed (bit-identical from run to run)
//   grid        [tokens, labels], one block per element; 256 threads, 8 values (16 bytes) per thread and step
//   needs       hidden % 8 == 0; x and head 16-byte aligned; tokens, labels >= 1
//   cost        2 * hidden bytes per token and 4 per result, the head once, which caches serve beside that ->
//               memory bound; negligible for a few labels, and for a hidden layer 2 * labels * hidden flops a token on
//               CUDA cores
//   tiers       sm75 (f16), sm80+ (bf16)
#include "reduce.cuh"
#include "storage.cuh"

constexpr int THREADS = 256;

template <typename T> __device__ __forceinline__ void score(const T *x, const T *head, float *out, int hidden) {
  __shared__ float scratch[WARP];
  const T *row = x + static_cast<size_t>(blockIdx.x) * hidden;
  const T *label = head + static_cast<size_t>(blockIdx.y) * hidden;
  float sum = 0.0f;
  // As many steps for every thread: otherwise the compiler lets a warp diverge where some threads have one more.
  for (int step = 0; step < hidden; step += THREADS * WIDE) {
    const int column = step + threadIdx.x * WIDE;
    if (column >= hidden) continue;
    float values[WIDE], weights[WIDE];
    unpack8<T>(__ldg(reinterpret_cast<const uint4 *>(row + column)), values);
    unpack8<T>(__ldg(reinterpret_cast<const uint4 *>(label + column)), weights);
#pragma unroll
    for (int i = 0; i < WIDE; ++i) sum = fmaf(values[i], weights[i], sum);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) out[static_cast<size_t>(blockIdx.x) * gridDim.y + blockIdx.y] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) score_f16(const f16 *x, const f16 *head, float *out, int hidden) {
  score<f16>(x, head, out, hidden);
}

#if HAS_BF16
extern "C" __global__ void __launch_bounds__(THREADS)
    score_bf16(const bf16 *x, const bf16 *head, float *out, int hidden) {
  score<bf16>(x, head, out, hidden);
}
#endif
