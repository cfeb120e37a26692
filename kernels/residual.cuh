// residual — words of the residual stream as the norms read and write it: bf16, or f32 beside weights in f16.
#pragma once

#include "storage.cuh"

// 16 bytes of the residual stream as they lie in memory, and as many values of weight or out.
template <typename R> struct Word;

template <> struct Word<float> {
  static constexpr int VALUES = 4;
  using Weights = uint2;
  float4 word;

  __device__ __forceinline__ void unpack(float (&values)[VALUES]) const {
    values[0] = word.x, values[1] = word.y, values[2] = word.z, values[3] = word.w;
  }
  __device__ __forceinline__ void pack(const float (&values)[VALUES]) {
    word = make_float4(values[0], values[1], values[2], values[3]);
  }
  static __device__ __forceinline__ void unpack(Weights words, float (&values)[VALUES]) { unpack4<f16>(words, values); }
  static __device__ __forceinline__ void store(f16 *to, const float (&values)[VALUES]) {
    *reinterpret_cast<uint2 *>(to) = pack4<f16>(values);
  }
};

#if HAS_BF16
template <> struct Word<bf16> {
  static constexpr int VALUES = WIDE;
  using Weights = uint4;
  uint4 word;

  __device__ __forceinline__ void unpack(float (&values)[VALUES]) const { unpack8<bf16>(word, values); }
  __device__ __forceinline__ void pack(const float (&values)[VALUES]) { word = pack8<bf16>(values); }
  static __device__ __forceinline__ void unpack(Weights words, float (&values)[VALUES]) {
    unpack8<bf16>(words, values);
  }
  static __device__ __forceinline__ void store(bf16 *to, const float (&values)[VALUES]) {
    *reinterpret_cast<uint4 *>(to) = pack8<bf16>(values);
  }
};
#endif
