// add_branch_rms_norm — the norms of models that add 1 to a norm's weight, and may norm a branch before its sum joins
// the residual stream. With norm(x, w) = x / sqrt(mean(x^2) + eps) * (1 + w), for each row:
//   delta = the sum of its parts;  delta = norm(delta, branch_weight);  residual += delta;  out = norm(residual, weight)
//   bf16        residual [tokens, hidden] bf16 in/out · delta [parts, tokens, hidden] bf16: a part of each rank, none
//               where parts is 0, and then the residual stays · branch_weight [hidden] bf16, or null: no norm of
//               delta · weight [hidden] bf16 · out [tokens, hidden] bf16
//   f16         with residual and delta in f32: the sm75 tier, whose residual stream would overflow fp16
//   accumulate  f32; parts are added in their order, and their sum is rounded to the residual's format, as the matmul
//               of one rank rounds it. Each norm is f32 throughout, 1 + w included, with one rounding, as in Hugging
//               Face's Gemma; the sum with the residual is rounded, and the last norm is that of the stored residual.
//               The order of sums is fixed (bit-identical from run to run)
//   grid        [tokens], one block per token; threads = hidden / 8 in whole warps, at most 256; 16 bytes of residual
//               and of delta per thread and step, as in add_rms_norm.cu; all steps of both rows in registers, asked
//               for together
//   needs       hidden % 8 == 0, hidden <= 8,192; every pointer 16-byte aligned; tokens >= 1
//   cost        bf16: 8 * hidden bytes per token with a delta of one part, 4 * hidden without; f16: 14 and 6 * hidden;
//               2 (f16: 4) * hidden for each further part; the weights' 2 * hidden each once -> memory bound
//   tiers       sm75 (f16), sm80+ (bf16)
#include "reduce.cuh"
#include "residual.cuh"

constexpr int THREADS_MAX = 256;
constexpr int HIDDEN_MAX = 8192;

// A thread's words of a row. T is the type of weights and out, R that of residual and delta.
template <typename T, typename R> struct Row {
  using W = Word<R>;
  static constexpr int VALUES = W::VALUES;
  static constexpr int STEPS = HIDDEN_MAX / (THREADS_MAX * VALUES);
  W words[STEPS];
  int hidden;

  __device__ __forceinline__ explicit Row(int hidden) : hidden(hidden) {}

  // The column of the thread's first value in a step.
  __device__ __forceinline__ int column(int step) const { return (step * blockDim.x + threadIdx.x) * VALUES; }
  __device__ __forceinline__ bool has(int step) const { return column(step) < hidden; }

  __device__ __forceinline__ void load(const R *from) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      if (has(step)) words[step] = *reinterpret_cast<const W *>(from + column(step));
    }
  }

  // Adds the same row of `count` further parts, each `stride` behind the one before, in f32, and rounds once.
  __device__ __forceinline__ void add_parts(const R *from, int count, size_t stride) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      if (!has(step)) break;
      float values[VALUES], part_values[VALUES];
      words[step].unpack(values);
      const R *part = from + column(step);
#pragma unroll 1
      for (int n = 0; n < count; ++n, part += stride) {
        reinterpret_cast<const W *>(part)->unpack(part_values);
#pragma unroll
        for (int i = 0; i < VALUES; ++i) values[i] += part_values[i];
      }
      words[step].pack(values);
    }
  }

  // 1 / sqrt(mean of squares + eps), of the block's row. `scratch` as for block_sum.
  __device__ __forceinline__ float scale(float eps, float *scratch) const {
    float squares = 0.0f;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      if (!has(step)) break;
      float values[VALUES];
      words[step].unpack(values);
#pragma unroll
      for (int i = 0; i < VALUES; ++i) squares = fmaf(values[i], values[i], squares);
    }
    const float mean = __fdiv_rn(block_sum(squares, scratch), static_cast<float>(hidden));
    return __frcp_rn(__fsqrt_rn(mean + eps));
  }

  // The values of a step, normed: not rounded.
  __device__ __forceinline__ void norm(int step, float scale, const T *weight, float (&values)[VALUES]) const {
    float factors[VALUES];
    words[step].unpack(values);
    W::unpack(__ldg(reinterpret_cast<const typename W::Weights *>(weight + column(step))), factors);
#pragma unroll
    for (int i = 0; i < VALUES; ++i) values[i] = values[i] * scale * (1.0f + factors[i]);
  }
};

template <typename T, typename R> __device__ __forceinline__ void
add_branch_rms_norm(R *residual, const R *delta, int parts, const T *branch_weight, const T *weight, T *out, int hidden,
                    float eps) {
  __shared__ float branch_scratch[WARP], scratch[WARP];
  constexpr int VALUES = Word<R>::VALUES;
  const size_t first = static_cast<size_t>(blockIdx.x) * hidden;
  const size_t part_stride = static_cast<size_t>(gridDim.x) * hidden;

  Row<T, R> row(hidden), added(hidden);
  row.load(residual + first);
  if (parts > 0) {
    added.load(delta + first);
    if (parts > 1) added.add_parts(delta + first + part_stride, parts - 1, part_stride);
    const float scale = branch_weight != nullptr ? added.scale(eps, branch_scratch) : 0.0f;
#pragma unroll
    for (int step = 0; step < Row<T, R>::STEPS; ++step) {
      if (!row.has(step)) break;
      float values[VALUES], added_values[VALUES];
      if (branch_weight != nullptr) {
        added.norm(step, scale, branch_weight, added_values);
        added.words[step].pack(added_values);
      }
      added.words[step].unpack(added_values);
      row.words[step].unpack(values);
#pragma unroll
      for (int i = 0; i < VALUES; ++i) values[i] += added_values[i];
      row.words[step].pack(values);
      *reinterpret_cast<Word<R> *>(residual + first + row.column(step)) = row.words[step];
    }
  }
  const float scale = row.scale(eps, scratch);
#pragma unroll
  for (int step = 0; step < Row<T, R>::STEPS; ++step) {
    if (!row.has(step)) break;
    float values[VALUES];
    row.norm(step, scale, weight, values);
    Word<R>::store(out + first + row.column(step), values);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS_MAX, 2)
    add_branch_rms_norm_f16(float *residual, const float *delta, int parts, const f16 *branch_weight, const f16 *weight,
                            f16 *out, int hidden, float eps) {
  add_branch_rms_norm<f16, float>(residual, delta, parts, branch_weight, weight, out, hidden, eps);
}

#if HAS_BF16
// Limited to registers for 4 blocks of a multiprocessor, ptxas spills one on sm_100; up to sm_90, 4 fit all the same.
extern "C" __global__ void __launch_bounds__(THREADS_MAX, 3)
    add_branch_rms_norm_bf16(bf16 *residual, const bf16 *delta, int parts, const bf16 *branch_weight,
                             const bf16 *weight, bf16 *out, int hidden, float eps) {
  add_branch_rms_norm<bf16, bf16>(residual, delta, parts, branch_weight, weight, out, hidden, eps);
}
#endif
