// reduce — sums and maxima over 4 lanes, a warp or a block, in a fixed order: equal bits on every run.
#pragma once

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// The sum over the warp's 32 lanes, in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
  return value;
}

// The maximum over the warp's 32 lanes, in every lane. NaN is ignored: it shows in the sums instead.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int offset = WARP / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, offset));
  }
  return value;
}

// The sum over 4 neighbouring lanes, in each of them.
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(ALL_LANES, value, 1);
  return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

// The maximum over 4 neighbouring lanes, in each of them; NaN as above.
__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
  return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// The sum over the block's threads, in every thread. `scratch` holds a float per warp and must not be in use; the
// block has whole warps, at most 32.
__device__ __forceinline__ float block_sum(float value, float *scratch) {
  const int lane = threadIdx.x % WARP;
  value = warp_sum(value);
  if (lane == 0) scratch[threadIdx.x / WARP] = value;
  __syncthreads();
  return warp_sum(lane < blockDim.x / WARP ? scratch[lane] : 0.0f);
}
