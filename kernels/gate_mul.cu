// gate_mul — gate_up[t, j] = f(gate_up[t, j]) * gate_up[t, ffn + j] for j < ffn;  f(x) = x / (1 + 2^(-x (a + b x^2)))
//   silu        a = log2(e), b = 0: x / (1 + exp(-x))
//   gelu        a = 2 log2(e) sqrt(2 / pi), b = 0.044715 a: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which is
//               `gelu_pytorch_tanh`
//   gate_up [tokens, 2 * ffn] in/out, gate and up side by side; the result replaces the gate
//   f16         the result is multiplied by `scale`, a power of two that the next matmul divides out again: without it
//               the sm75 tier could overflow fp16 here
//   accumulate  f32; f is rounded to the format, and then the result, as in Hugging Face. The power of two and the
//               quotient are the hardware's approximations (about 2^-22); silu of x < -87 is 0, and gelu of x < -10.1.
//               x^2 may overflow: the power of two is then 0 or infinite, and the result x or -0
//   grid        [tokens, ffn / 8 / 256 rounded up], 256 threads, 8 values (16 bytes) of gate and of up per thread
//   needs       ffn % 8 == 0; gate_up 16-byte aligned; tokens >= 1
//   cost        6 * ffn bytes per token -> memory bound
//   tiers       sm75 (f16), sm80+ (bf16)
#include "ptx.cuh"
#include "storage.cuh"

constexpr int THREADS = 256;

constexpr float GELU_A = 2.302208198f;
constexpr float GELU_B = 0.102943240f;

enum class Gate { Silu, GeluTanh };

template <Gate GATE> __device__ __forceinline__ float activate(float x) {
  const float exponent = GATE == Gate::Silu ? x * -LOG2_E : -x * fmaf(x * x, GELU_B, GELU_A);
  return x * rcp_approx(1.0f + ex2_approx(exponent));
}

template <typename T, Gate GATE> __device__ __forceinline__ void gate_mul(T *gate_up, int ffn, float scale) {
  const int column = (blockIdx.y * THREADS + threadIdx.x) * WIDE;
  if (column >= ffn) return;
  T *row = gate_up + static_cast<size_t>(blockIdx.x) * (2 * static_cast<size_t>(ffn));
  uint4 *place = reinterpret_cast<uint4 *>(row + column);
  float gate[WIDE], up[WIDE];
  unpack8<T>(*place, gate);
  unpack8<T>(*reinterpret_cast<const uint4 *>(row + ffn + column), up);
#pragma unroll
  for (int i = 0; i < WIDE; i += 2) {
    const float2 activated = round2<T>(activate<GATE>(gate[i]), activate<GATE>(gate[i + 1]));
    gate[i] = activated.x * up[i] * scale;
    gate[i + 1] = activated.y * up[i + 1] * scale;
  }
  *place = pack8<T>(gate);
}

extern "C" __global__ void __launch_bounds__(THREADS) gate_mul_silu_f16(f16 *gate_up, int ffn, float scale) {
  gate_mul<f16, Gate::Silu>(gate_up, ffn, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS) gate_mul_gelu_f16(f16 *gate_up, int ffn, float scale) {
  gate_mul<f16, Gate::GeluTanh>(gate_up, ffn, scale);
}

#if HAS_BF16
extern "C" __global__ void __launch_bounds__(THREADS) gate_mul_silu_bf16(bf16 *gate_up, int ffn) {
  gate_mul<bf16, Gate::Silu>(gate_up, ffn, 1.0f);
}

extern "C" __global__ void __launch_bounds__(THREADS) gate_mul_gelu_bf16(bf16 *gate_up, int ffn) {
  gate_mul<bf16, Gate::GeluTanh>(gate_up, ffn, 1.0f);
}
#endif
