// storage — the formats in memory: bf16 or fp16, eight elements to a 16-byte word. All arithmetic is in f32.
//
// bf16 entries exist from sm_80 on: below that the compiler emulates the conversions bit by bit. fp16 entries exist
// everywhere, so that the kernels of older cards can be tested on newer ones.
#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define HAS_BF16 1
#else
#define HAS_BF16 0
#endif

using bf16 = __nv_bfloat16;
using f16 = __half;

// Elements in one 16-byte access.
constexpr int WIDE = 8;

// Two neighbours in memory <-> two f32; the first lies in the low half. Packing rounds to nearest even.
template <typename T> __device__ __forceinline__ float2 unpack2(uint32_t pair);
template <typename T> __device__ __forceinline__ uint32_t pack2(float first, float second);

template <> __device__ __forceinline__ float2 unpack2<f16>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2 *>(&pair));
}

template <> __device__ __forceinline__ uint32_t pack2<f16>(float first, float second) {
  __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t *>(&pair);
}

#if HAS_BF16
template <> __device__ __forceinline__ float2 unpack2<bf16>(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

template <> __device__ __forceinline__ uint32_t pack2<bf16>(float first, float second) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t *>(&pair);
}
#endif

// Two f32 rounded to T.
template <typename T> __device__ __forceinline__ float2 round2(float first, float second) {
  return unpack2<T>(pack2<T>(first, second));
}

// Eight neighbours in memory <-> eight f32, which stay in registers: every index is a constant.
template <typename T> __device__ __forceinline__ void unpack8(uint4 words, float (&values)[WIDE]) {
  const float2 pairs[4] = {unpack2<T>(words.x), unpack2<T>(words.y), unpack2<T>(words.z), unpack2<T>(words.w)};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = pairs[i].x;
    values[2 * i + 1] = pairs[i].y;
  }
}

template <typename T> __device__ __forceinline__ uint4 pack8(const float (&values)[WIDE]) {
  return make_uint4(pack2<T>(values[0], values[1]), pack2<T>(values[2], values[3]), pack2<T>(values[4], values[5]),
                    pack2<T>(values[6], values[7]));
}

// Four neighbours: half as many.
template <typename T> __device__ __forceinline__ void unpack4(uint2 words, float (&values)[4]) {
  const float2 low = unpack2<T>(words.x), high = unpack2<T>(words.y);
  values[0] = low.x, values[1] = low.y, values[2] = high.x, values[3] = high.y;
}

template <typename T> __device__ __forceinline__ uint2 pack4(const float (&values)[4]) {
  return make_uint2(pack2<T>(values[0], values[1]), pack2<T>(values[2], values[3]));
}
