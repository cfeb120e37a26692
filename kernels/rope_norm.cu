// rope_norm — an RMSNorm of each head of qkv, in place, then its rotation as in rope.cu:
//   v = v / sqrt(mean(v^2) + eps) * weight, then v[i], v[i + d/2] = v[i] cos - v[i + d/2] sin, v[i + d/2] cos + v[i] sin
//   qkv [rows, row_stride] in/out, heads of width d = head_dim from column 0 on · positions [rows] ·
//   cos, sin [positions, head_dim / 2] in the format of qkv, made by the host · q_weight, k_weight [head_dim] in the
//   format of qkv: heads below q_heads have the first, those from q_heads on the second
//   accumulate  the norm in f32, in a fixed order that depends on head_dim alone; two roundings to the format (the normed
//               value, then its product with the weight), then the three of rope
//   grid        [rows], one block per row; a thread takes 8 pairs: 16 bytes at i and 16 at i + head_dim / 2. The
//               head_dim / 16 threads of a head are neighbours in one warp
//   needs       head_dim a power of two from 16 to 512, row_stride % 8 == 0; every pointer 16-byte aligned; first_head +
//               heads within the row; positions within the tables
//   cost        as rope, and the weights once for each row, which caches serve -> memory bound
//   tiers       sm75 (f16), sm80+ (bf16)
#include "reduce.cuh"
#include "rotate.cuh"
#include "storage.cuh"

constexpr int THREADS_MAX = 256;

// The sum over a head's threads, in each of them.
__device__ __forceinline__ float head_sum(float value, int threads) {
  for (int offset = threads / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
  return value;
}

// Eight values, normed and multiplied with the weight, each rounded.
template <typename T> __device__ __forceinline__ void apply_norm(float (&values)[WIDE], float scale, const T *weight) {
  float factors[WIDE];
  unpack8<T>(__ldg(reinterpret_cast<const uint4 *>(weight)), factors);
#pragma unroll
  for (int i = 0; i < WIDE; i += 2) {
    const float2 normed = round2<T>(values[i] * scale, values[i + 1] * scale);
    const float2 product = round2<T>(normed.x * factors[i], normed.y * factors[i + 1]);
    values[i] = product.x, values[i + 1] = product.y;
  }
}

template <typename T> __device__ __forceinline__ void rope_norm(T *qkv, const uint32_t *positions, const T *cos,
                                                                const T *sin, const T *q_weight, const T *k_weight,
                                                                int row_stride, int head_dim, int first_head, int heads,
                                                                int q_heads, float eps) {
  const int half = head_dim / 2;
  const int groups = half / WIDE;
  const size_t table_row = static_cast<size_t>(positions[blockIdx.x]) * half;
  T *row = qkv + static_cast<size_t>(blockIdx.x) * row_stride + static_cast<size_t>(first_head) * head_dim;

  // All lanes of a warp take part in sums; those past the last head add zeros, in sums of their own.
  const int items = heads * groups;
  for (int start = 0; start < items; start += blockDim.x) {
    const int item = start + threadIdx.x;
    const int head = item / groups;
    const int pair = (item - head * groups) * WIDE;
    uint4 *low_place = reinterpret_cast<uint4 *>(row + head * head_dim + pair);
    uint4 *high_place = reinterpret_cast<uint4 *>(row + head * head_dim + half + pair);
    float low[WIDE] = {}, high[WIDE] = {}, c[WIDE], s[WIDE];
    if (item < items) {
      unpack8<T>(*low_place, low);
      unpack8<T>(*high_place, high);
    }
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < WIDE; ++i) squares = fmaf(low[i], low[i], fmaf(high[i], high[i], squares));
    squares = head_sum(squares, groups);
    if (item >= items) continue;
    const float mean = __fdiv_rn(squares, static_cast<float>(head_dim));
    const float scale = __frcp_rn(__fsqrt_rn(mean + eps));
    const T *weight = first_head + head < q_heads ? q_weight : k_weight;
    apply_norm<T>(low, scale, weight + pair);
    apply_norm<T>(high, scale, weight + half + pair);

    unpack8<T>(__ldg(reinterpret_cast<const uint4 *>(cos + table_row + pair)), c);
    unpack8<T>(__ldg(reinterpret_cast<const uint4 *>(sin + table_row + pair)), s);
    rotate<T>(low, high, c, s);
    *low_place = pack8<T>(low);
    *high_place = pack8<T>(high);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    rope_norm_f16(f16 *qkv, const uint32_t *positions, const f16 *cos, const f16 *sin, const f16 *q_weight,
                  const f16 *k_weight, int row_stride, int head_dim, int first_head, int heads, int q_heads, float eps) {
  rope_norm<f16>(qkv, positions, cos, sin, q_weight, k_weight, row_stride, head_dim, first_head, heads, q_heads, eps);
}

#if HAS_BF16
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    rope_norm_bf16(bf16 *qkv, const uint32_t *positions, const bf16 *cos, const bf16 *sin, const bf16 *q_weight,
                   const bf16 *k_weight, int row_stride, int head_dim, int first_head, int heads, int q_heads, float eps) {
  rope_norm<bf16>(qkv, positions, cos, sin, q_weight, k_weight, row_stride, head_dim, first_head, heads, q_heads, eps);
}
#endif
