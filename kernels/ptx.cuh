// ptx — single PTX instructions, one per function, named like them.
#pragma once

constexpr float LOG2_E = 1.4426950408889634f;

// 2^x within 2 units in the last place; a result below 2^-126 is 0. 2^-inf = 0 and 2^0 = 1 are exact.
__device__ __forceinline__ float ex2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x within 1 unit in the last place; a result below 2^-126 is 0.
__device__ __forceinline__ float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
