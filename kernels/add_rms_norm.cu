// add_rms_norm — residual += delta;  out[t,:] = residual[t,:] / sqrt(mean(residual[t,:]^2) + eps) * weight
//   bf16        residual [tokens, hidden] bf16 in/out · delta [parts, tokens, hidden] bf16: a part of each rank,
//               added in their order, with one rounding; none where parts is 0 · weight [hidden] bf16 ·
//               out [tokens, hidden] bf16
//   f16         with residual and delta in f32: the sm75 tier, whose residual stream would overflow fp16
//   accumulate  f32; the norm is that of the stored residual; its quotient is rounded to the format, and so is its
//               multiple by the weight, as in Hugging Face. The order of the sum is fixed (bit-identical from run to run)
//   grid        [tokens], one block per token; threads = hidden / 8 in whole warps, at most 256; 16 bytes of residual
//               per thread and step (8 values of bf16, 4 of f32 and then 8 bytes of weight and out), so that a warp
//               always loads neighbours; all steps of a row in registers, so that each byte moves once
//   needs       hidden % 8 == 0, hidden <= 16,384; every pointer 16-byte aligned; tokens >= 1
//   cost        bf16: 8 * hidden bytes per token with a delta of one part, 4 * hidden without; f16: 14 and 6 * hidden;
//               2 (f16: 4) * hidden for each further part; the weight's 2 * hidden once -> memory bound
//   tiers       sm75 (f16), sm80+ (bf16)
#include "reduce.cuh"
#include "storage.cuh"

constexpr int THREADS_MAX = 256;
constexpr int HIDDEN_MAX = 16384;

// 16 bytes of the residual stream as they lie in memory, and as many values of weight or out.
template <typename R> struct Word;

template <> struct Word<float> {
  static constexpr int VALUES = 4;
  float4 word;

  __device__ __forceinline__ void unpack(float (&values)[VALUES]) const {
    values[0] = word.x, values[1] = word.y, values[2] = word.z, values[3] = word.w;
  }
  __device__ __forceinline__ void pack(const float (&values)[VALUES]) {
    word = make_float4(values[0], values[1], values[2], values[3]);
  }
  static __device__ __forceinline__ void load(const f16 *from, float (&values)[VALUES]) {
    unpack4<f16>(__ldg(reinterpret_cast<const uint2 *>(from)), values);
  }
  static __device__ __forceinline__ void store(f16 *to, const float (&values)[VALUES]) {
    *reinterpret_cast<uint2 *>(to) = pack4<f16>(values);
  }
};

#if HAS_BF16
template <> struct Word<bf16> {
  static constexpr int VALUES = WIDE;
  uint4 word;

  __device__ __forceinline__ void unpack(float (&values)[VALUES]) const { unpack8<bf16>(word, values); }
  __device__ __forceinline__ void pack(const float (&values)[VALUES]) { word = pack8<bf16>(values); }
  static __device__ __forceinline__ void load(const bf16 *from, float (&values)[VALUES]) {
    unpack8<bf16>(__ldg(reinterpret_cast<const uint4 *>(from)), values);
  }
  static __device__ __forceinline__ void store(bf16 *to, const float (&values)[VALUES]) {
    *reinterpret_cast<uint4 *>(to) = pack8<bf16>(values);
  }
};
#endif

// T is the type of weight and out, R that of residual and delta.
template <typename T, typename R> __device__ __forceinline__ void
add_rms_norm(R *residual, const R *delta, int parts, const T *weight, T *out, int hidden, float eps) {
  __shared__ float scratch[WARP];
  const size_t row = static_cast<size_t>(blockIdx.x) * hidden;
  const size_t part_stride = static_cast<size_t>(gridDim.x) * hidden;
  constexpr int VALUES = Word<R>::VALUES;
  constexpr int STEPS_MAX = HIDDEN_MAX / (THREADS_MAX * VALUES);
  const int stride = blockDim.x * VALUES;
  const int first = threadIdx.x * VALUES;

  Word<R> kept[STEPS_MAX];
  float squares = 0.0f;
#pragma unroll
  for (int step = 0; step < STEPS_MAX; ++step) {
    const int column = first + step * stride;
    if (column >= hidden) break;
    Word<R> *place = reinterpret_cast<Word<R> *>(residual + row + column);
    kept[step] = *place;
    float values[VALUES];
    kept[step].unpack(values);
    if (parts > 0) {
      const R *from = delta + row + column;
#pragma unroll 1
      for (int part = 0; part < parts; ++part) {
        float added[VALUES];
        reinterpret_cast<const Word<R> *>(from)->unpack(added);
        from += part_stride;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) values[i] += added[i];
      }
      kept[step].pack(values);
      *place = kept[step];
      kept[step].unpack(values); // the stored, rounded values
    }
#pragma unroll
    for (int i = 0; i < VALUES; ++i) squares = fmaf(values[i], values[i], squares);
  }

  const float mean = __fdiv_rn(block_sum(squares, scratch), static_cast<float>(hidden));
  const float scale = __frcp_rn(__fsqrt_rn(mean + eps));

#pragma unroll
  for (int step = 0; step < STEPS_MAX; ++step) {
    const int column = first + step * stride;
    if (column >= hidden) break;
    float values[VALUES], weights[VALUES];
    kept[step].unpack(values);
    Word<R>::load(weight + column, weights);
#pragma unroll
    for (int i = 0; i < VALUES; i += 2) {
      const float2 normed = round2<T>(values[i] * scale, values[i + 1] * scale);
      values[i] = normed.x * weights[i];
      values[i + 1] = normed.y * weights[i + 1];
    }
    Word<R>::store(out + row + column, values);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    add_rms_norm_f16(float *residual, const float *delta, int parts, const f16 *weight, f16 *out, int hidden,
                     float eps) {
  add_rms_norm<f16, float>(residual, delta, parts, weight, out, hidden, eps);
}

#if HAS_BF16
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    add_rms_norm_bf16(bf16 *residual, const bf16 *delta, int parts, const bf16 *weight, bf16 *out, int hidden,
                      float eps) {
  add_rms_norm<bf16, bf16>(residual, delta, parts, weight, out, hidden, eps);
}
#endif
