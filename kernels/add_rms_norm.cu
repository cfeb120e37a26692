// add_rms_norm — residual += delta;  out[t,:] = residual[t,:] / sqrt(mean(residual[t,:]^2) + eps) * weight
//   bf16        residual [tokens, hidden] bf16 in/out · delta [parts, tokens, hidden] bf16: a part of each rank,
//               added in their order, with one rounding; none where parts is 0 · weight [hidden] bf16 ·
//               out [tokens, hidden] bf16
//   f16         with residual and delta in f32: the sm75 tier, whose residual stream would overflow fp16
//   accumulate  f32; the norm is that of the stored residual; its quotient is rounded to the format, and so is its
//               multiple by the weight, as in Hugging Face. The order of the sum is fixed (bit-identical from run to run)
//   grid        [tokens], one block per token; threads = hidden / 8 in whole warps, at most 256; 16 bytes of residual
//               per thread and step (8 values of bf16, 4 of f32 and then 8 bytes of weight and out), so that a warp
//               always loads neighbours; all steps of a row in registers, so that each byte moves once; several loads
//               of a thread in flight together, and the first of the weight across the block's barrier
//   needs       hidden % 8 == 0, hidden <= 16,384; every pointer 16-byte aligned; tokens >= 1
//   cost        bf16: 8 * hidden bytes per token with a delta of one part, 4 * hidden without; f16: 14 and 6 * hidden;
//               2 (f16: 4) * hidden for each further part; the weight's 2 * hidden once -> memory bound
//   tiers       sm75 (f16), sm80+ (bf16)
#include "reduce.cuh"
#include "residual.cuh"

constexpr int THREADS_MAX = 256;
constexpr int HIDDEN_MAX = 16384;

// Words of residual and delta each, and of the weight, that a thread asks for before it uses the first of them; where
// there is no delta, all of the residual. That is 64 bytes a thread, 64 KiB a multiprocessor with the 4 blocks that the
// registers are limited for: memory needs 32 to 64 KiB in flight to be kept busy. With twice as many they would not do.
constexpr int DELTA_BATCH = 2;
constexpr int WEIGHT_BATCH = 4;

// A thread's words of a row: every `stride`th element from `first` on, in steps.
template <typename R> struct Steps {
  static constexpr int MAX = HIDDEN_MAX / (THREADS_MAX * Word<R>::VALUES);
  int first, stride, hidden;

  __device__ __forceinline__ int column(int step) const { return first + step * stride; }
  __device__ __forceinline__ bool has(int step) const { return column(step) < hidden; }
};

// Reads the row into `kept`, adds the parts of delta to it and stores it, where ADDS; returns the sum of the thread's
// squares of the stored values. BATCH words of each are asked for before the first of them is used.
template <int BATCH, bool ADDS, typename R> __device__ __forceinline__ float
take_row(Word<R> (&kept)[Steps<R>::MAX], Steps<R> steps, R *residual, const R *delta, int parts, size_t part_stride) {
  constexpr int VALUES = Word<R>::VALUES;
  float squares = 0.0f;
#pragma unroll
  for (int start = 0; start < Steps<R>::MAX; start += BATCH) {
    if (!steps.has(start)) break;
    Word<R> added[BATCH];
#pragma unroll
    for (int step = start; step < start + BATCH; ++step) {
      if (!steps.has(step)) break;
      kept[step] = *reinterpret_cast<const Word<R> *>(residual + steps.column(step));
      if (ADDS) added[step - start] = *reinterpret_cast<const Word<R> *>(delta + steps.column(step));
    }
#pragma unroll
    for (int step = start; step < start + BATCH; ++step) {
      if (!steps.has(step)) break;
      float values[VALUES];
      kept[step].unpack(values);
      if (ADDS) {
        float part_values[VALUES];
        added[step - start].unpack(part_values);
#pragma unroll
        for (int i = 0; i < VALUES; ++i) values[i] += part_values[i];
        const R *from = delta + steps.column(step);
#pragma unroll 1
        for (int part = 1; part < parts; ++part) {
          from += part_stride;
          reinterpret_cast<const Word<R> *>(from)->unpack(part_values);
#pragma unroll
          for (int i = 0; i < VALUES; ++i) values[i] += part_values[i];
        }
        kept[step].pack(values);
        *reinterpret_cast<Word<R> *>(residual + steps.column(step)) = kept[step];
        kept[step].unpack(values); // the stored, rounded values
      }
#pragma unroll
      for (int i = 0; i < VALUES; ++i) squares = fmaf(values[i], values[i], squares);
    }
  }
  return squares;
}

// T is the type of weight and out, R that of residual and delta.
template <typename T, typename R> __device__ __forceinline__ void
add_rms_norm(R *residual, const R *delta, int parts, const T *weight, T *out, int hidden, float eps) {
  __shared__ float scratch[WARP];
  using W = Word<R>;
  const size_t row = static_cast<size_t>(blockIdx.x) * hidden;
  const size_t part_stride = static_cast<size_t>(gridDim.x) * hidden;
  constexpr int VALUES = W::VALUES;
  const Steps<R> steps = {static_cast<int>(threadIdx.x) * VALUES, static_cast<int>(blockDim.x) * VALUES, hidden};

  W kept[Steps<R>::MAX];
  const float squares = parts == 0
                            ? take_row<Steps<R>::MAX, false>(kept, steps, residual + row, delta, 0, part_stride)
                            : take_row<DELTA_BATCH, true>(kept, steps, residual + row, delta + row, parts, part_stride);

  typename W::Weights weights[WEIGHT_BATCH];
  const auto load_weights = [&](int start) {
#pragma unroll
    for (int step = start; step < start + WEIGHT_BATCH; ++step) {
      if (!steps.has(step)) break;
      weights[step - start] = __ldg(reinterpret_cast<const typename W::Weights *>(weight + steps.column(step)));
    }
  };
  load_weights(0); // before the barrier
  const float mean = __fdiv_rn(block_sum(squares, scratch), static_cast<float>(hidden));
  const float scale = __frcp_rn(__fsqrt_rn(mean + eps));

#pragma unroll
  for (int step = 0; step < Steps<R>::MAX; ++step) {
    if (!steps.has(step)) break;
    if (step > 0 && step % WEIGHT_BATCH == 0) load_weights(step);
    float values[VALUES], factors[VALUES];
    kept[step].unpack(values);
    W::unpack(weights[step % WEIGHT_BATCH], factors);
#pragma unroll
    for (int i = 0; i < VALUES; i += 2) {
      const float2 normed = round2<T>(values[i] * scale, values[i + 1] * scale);
      values[i] = normed.x * factors[i];
      values[i + 1] = normed.y * factors[i + 1];
    }
    W::store(out + row + steps.column(step), values);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS_MAX, 2)
    add_rms_norm_f16(float *residual, const float *delta, int parts, const f16 *weight, f16 *out, int hidden,
                     float eps) {
  add_rms_norm<f16, float>(residual, delta, parts, weight, out, hidden, eps);
}

#if HAS_BF16
extern "C" __global__ void __launch_bounds__(THREADS_MAX, 4)
    add_rms_norm_bf16(bf16 *residual, const bf16 *delta, int parts, const bf16 *weight, bf16 *out, int hidden,
                      float eps) {
  add_rms_norm<bf16, bf16>(residual, delta, parts, weight, out, hidden, eps);
}
#endif
