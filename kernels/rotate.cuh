// rotate — the rotation of 8 pairs of a head, with three roundings to the format: each of the two terms, and then, where
// the result is stored, their sum.
#pragma once

#include "storage.cuh"

// low, high = low cos - high sin, high cos + low sin
template <typename T> __device__ __forceinline__ void rotate(float (&low)[WIDE], float (&high)[WIDE],
                                                             const float (&cos)[WIDE], const float (&sin)[WIDE]) {
#pragma unroll
  for (int i = 0; i < WIDE; ++i) {
    const float2 for_low = round2<T>(low[i] * cos[i], high[i] * sin[i]);
    const float2 for_high = round2<T>(high[i] * cos[i], low[i] * sin[i]);
    low[i] = for_low.x - for_low.y;
    high[i] = for_high.x + for_high.y;
  }
}
