// silu_mul — gate_up[t, j] = silu(gate_up[t, j]) * gate_up[t, ffn + j] for j < ffn;  silu(x) = x / (1 + exp(-x))
//   gate_up [tokens, 2 * ffn] in/out, gate and up side by side; the result replaces the gate
//   f16         the result is multiplied by `scale`, a power of two that the next matmul divides out again: without it
//               the sm75 tier could overflow fp16 here
//   accumulate  f32; silu is rounded to the format, and then the result, as in Hugging Face. exp and the quotient are
//               the hardware's approximations (about 2^-22); silu of x < -87 is 0
//   grid        [tokens, ffn / 8 / 256 rounded up], 256 threads, 8 values (16 bytes) of gate and of up per thread
//   needs       ffn % 8 == 0; gate_up 16-byte aligned; tokens >= 1
//   cost        6 * ffn bytes per token -> memory bound
//   tiers       sm75 (f16), sm80+ (bf16)
#include "ptx.cuh"
#include "storage.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ float silu(float x) { return x * rcp_approx(1.0f + ex2_approx(x * -LOG2_E)); }

template <typename T> __device__ __forceinline__ void silu_mul(T *gate_up, int ffn, float scale) {
  const int column = (blockIdx.y * THREADS + threadIdx.x) * WIDE;
  if (column >= ffn) return;
  T *row = gate_up + static_cast<size_t>(blockIdx.x) * (2 * static_cast<size_t>(ffn));
  uint4 *place = reinterpret_cast<uint4 *>(row + column);
  float gate[WIDE], up[WIDE];
  unpack8<T>(*place, gate);
  unpack8<T>(*reinterpret_cast<const uint4 *>(row + ffn + column), up);
#pragma unroll
  for (int i = 0; i < WIDE; i += 2) {
    const float2 activated = round2<T>(silu(gate[i]), silu(gate[i + 1]));
    gate[i] = activated.x * up[i] * scale;
    gate[i + 1] = activated.y * up[i + 1] * scale;
  }
  *place = pack8<T>(gate);
}

extern "C" __global__ void __launch_bounds__(THREADS) silu_mul_f16(f16 *gate_up, int ffn, float scale) {
  silu_mul<f16>(gate_up, ffn, scale);
}

#if HAS_BF16
extern "C" __global__ void __launch_bounds__(THREADS) silu_mul_bf16(bf16 *gate_up, int ffn) {
  silu_mul<bf16>(gate_up, ffn, 1.0f);
}
#endif
