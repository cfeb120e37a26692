// rope — rotates heads of qkv in place: v[i], v[i + d/2] = v[i] cos - v[i + d/2] sin, v[i + d/2] cos + v[i] sin
//   qkv [rows, row_stride] in/out, heads of width d = head_dim from column 0 on · positions [rows] ·
//   cos, sin [positions, head_dim / 2] in the format of qkv, made by the host
//   accumulate  three roundings to the format, as in Hugging Face: each of the two terms, then their sum
//   grid        [rows], one block per row; a thread takes 8 pairs: 16 bytes at i and 16 at i + head_dim / 2
//   needs       head_dim % 16 == 0, row_stride % 8 == 0; every pointer 16-byte aligned; first_head + heads within the
//               row; positions within the tables
//   cost        4 * heads * head_dim bytes per row and 4 for its position; 2 * head_dim once for each position that
//               occurs, from the tables -> memory bound
//   tiers       sm75 (f16), sm80+ (bf16)
//
// A block waits for its position before it asks for q and k. Asking for those of a thread's first pairs before it was
// tried: 40 registers instead of 32, so 6 blocks on a multiprocessor instead of 8 on sm_80, 90 and 100. That costs more
// bytes in flight than the saved latency is worth (by ptxas' report of November 2026; not measured).
#include "rotate.cuh"
#include "storage.cuh"

constexpr int THREADS_MAX = 256;

template <typename T> __device__ __forceinline__ void rope(T *qkv, const uint32_t *positions, const T *cos,
                                                           const T *sin, int row_stride, int head_dim, int first_head,
                                                           int heads) {
  const int half = head_dim / 2;
  const int groups = half / WIDE;
  const size_t table_row = static_cast<size_t>(positions[blockIdx.x]) * half;
  T *row = qkv + static_cast<size_t>(blockIdx.x) * row_stride + static_cast<size_t>(first_head) * head_dim;

  for (int item = threadIdx.x; item < heads * groups; item += blockDim.x) {
    const int head = item / groups;
    const int pair = (item - head * groups) * WIDE;
    uint4 *low_place = reinterpret_cast<uint4 *>(row + head * head_dim + pair);
    uint4 *high_place = reinterpret_cast<uint4 *>(row + head * head_dim + half + pair);
    float low[WIDE], high[WIDE], c[WIDE], s[WIDE];
    unpack8<T>(*low_place, low);
    unpack8<T>(*high_place, high);
    unpack8<T>(__ldg(reinterpret_cast<const uint4 *>(cos + table_row + pair)), c);
    unpack8<T>(__ldg(reinterpret_cast<const uint4 *>(sin + table_row + pair)), s);
    rotate<T>(low, high, c, s);
    *low_place = pack8<T>(low);
    *high_place = pack8<T>(high);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    rope_f16(f16 *qkv, const uint32_t *positions, const f16 *cos, const f16 *sin, int row_stride, int head_dim,
             int first_head, int heads) {
  rope<f16>(qkv, positions, cos, sin, row_stride, head_dim, first_head, heads);
}

#if HAS_BF16
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    rope_bf16(bf16 *qkv, const uint32_t *positions, const bf16 *cos, const bf16 *sin, int row_stride, int head_dim,
              int first_head, int heads) {
  rope<bf16>(qkv, positions, cos, sin, row_stride, head_dim, first_head, heads);
}
#endif
