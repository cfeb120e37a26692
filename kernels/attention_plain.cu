// attention_plain — out[t, h, :] = softmax(q[t, h, :] . k[path, kv, :] * scale) * v[path, kv, :],  kv = h / group,
// where the path is the keys at positions 0 ..= the position of t: causal grouped-query attention without tensor cores
//   qkv [rows, row_stride]: q heads, then k heads, then v heads, each head_dim wide · out [tokens, q_heads * head_dim]
//   variants    Full, as above. WindowCap: the path is the last `window` of those keys, and the scaled score s becomes
//               cap * tanh(s / cap), where there is a cap, before the mask
//   work        a work item for each block (struct WorkItem), made by the host: longest first
//   tile_rows   for each path, the row of the first key of its key tiles: 64 keys at consecutive rows, tile j of a path
//               holds its positions 64 * j ..= 64 * j + 63. Rows past the block's last position are not read: they may
//               be another conversation's, and a masked weight of 0 times its NaN would be NaN
//   accumulate  S and O in f32; scale * log2(e) folded into one fmaf; the row sum is that of unrounded P, and P is
//               rounded to the format for P * V; one rounding on O
//   bits        a row's result depends on its own path alone, not on what shares its block: tiles lie at absolute
//               positions and are walked first to last, keys are never split among blocks, and a tile that is fully
//               masked for a row changes nothing: its maximum stays, 2^0 = 1, P = 0. With a window, a block leaves out
//               the tiles before its first token's. Only a value that is not finite and lies before a row's window in
//               a tile of its block is not left out: 0 times it is NaN
//   grid        [work * kv_heads], kv head fastest; 128 threads. A block has 16 rows, each a pair of (token, q head of
//               the kv head's group), 4 to a warp. S: a lane owns 2 keys; P * V: a lane owns HEAD_DIM / 32 dims
//   needs       head_dim <= HEAD_DIM of the entry (64, 128, 256), head_dim % 8 == 0, row_stride % 8 == 0, pointers
//               16-byte aligned; shared memory as shared_bytes says; at least one key for every row
//   cost        4 * head_dim flops per row and key on CUDA cores -> compute bound
//   tiers       sm75 (f16), sm80+ (bf16): the generic path, and the reference for the faster ones
#include "attention.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "storage.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int WARP_ROWS = 4;
constexpr int ROWS = WARPS * WARP_ROWS;
// Up to 128 registers, and as many blocks as shared memory allows at HEAD_DIM 256. Bounded otherwise, ptxas spills a
// register: without a bound on sm_100, with 5 blocks on sm_90a.
constexpr int BLOCKS_MIN = 4;

// Shared memory, in this order: a tile of K or V, rows padded by 16 bytes so that 8 lanes that read 8 rows meet no bank
// twice; Q in f32; P in f32, for each warp [KEYS][WARP_ROWS].
template <int HEAD_DIM> struct Shared {
  static constexpr int TILE_STRIDE = HEAD_DIM + WIDE;
  static constexpr int TILE_BYTES = KEYS * TILE_STRIDE * 2;
  static constexpr int QUERY_BYTES = ROWS * HEAD_DIM * 4;
};

// Loads K or V of the tile whose keys start at `first`: [KEYS, head_dim], coalesced; zeros from key `keys` on.
template <typename T, int HEAD_DIM>
__device__ __forceinline__ void load_tile(T *tile, const T *first, int keys, const Shape &shape) {
  const int words = shape.head_dim / WIDE;
  for (int i = threadIdx.x; i < KEYS * words; i += THREADS) {
    const int key = i / words, column = (i - key * words) * WIDE;
    const uint4 *place = reinterpret_cast<const uint4 *>(first + static_cast<size_t>(key) * shape.row_stride + column);
    *reinterpret_cast<uint4 *>(tile + key * Shared<HEAD_DIM>::TILE_STRIDE + column) =
        key < keys ? *place : make_uint4(0, 0, 0, 0);
  }
}

// S = Q K^T for a warp's rows: scores[row][n] is that of key lane + 32 * n. queries: the warp's first row.
template <typename T, int HEAD_DIM> __device__ __forceinline__ void
dot_keys(float (&scores)[WARP_ROWS][2], const float *queries, const T *keys, int lane, int head_dim) {
#pragma unroll
  for (int row = 0; row < WARP_ROWS; ++row) scores[row][0] = scores[row][1] = 0.0f;
  for (int column = 0; column < head_dim; column += WIDE) {
    float key[2][WIDE];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const T *place = keys + (lane + WARP * n) * Shared<HEAD_DIM>::TILE_STRIDE + column;
      unpack8<T>(*reinterpret_cast<const uint4 *>(place), key[n]);
    }
#pragma unroll
    for (int row = 0; row < WARP_ROWS; ++row) {
      const float4 *place = reinterpret_cast<const float4 *>(queries + row * HEAD_DIM + column);
      const float4 low = place[0], high = place[1];
      const float query[WIDE] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < WIDE; ++i) scores[row][n] = fmaf(query[i], key[n][i], scores[row][n]);
      }
    }
  }
}

// O += P V for a warp's rows; the lane owns dims DIMS * lane ..< DIMS * (lane + 1). weights: the warp's P.
template <typename T, int HEAD_DIM, int DIMS> __device__ __forceinline__ void
add_values(float (&out)[WARP_ROWS][DIMS], const float *weights, const T *values, int lane) {
#pragma unroll 4
  for (int key = 0; key < KEYS; ++key) {
    const float4 four = *reinterpret_cast<const float4 *>(weights + key * WARP_ROWS);
    const float weight[WARP_ROWS] = {four.x, four.y, four.z, four.w};
    const uint32_t *place =
        reinterpret_cast<const uint32_t *>(values + key * Shared<HEAD_DIM>::TILE_STRIDE + lane * DIMS);
#pragma unroll
    for (int i = 0; i < DIMS; i += 2) {
      const float2 pair = unpack2<T>(place[i / 2]);
#pragma unroll
      for (int row = 0; row < WARP_ROWS; ++row) {
        out[row][i] = fmaf(weight[row], pair.x, out[row][i]);
        out[row][i + 1] = fmaf(weight[row], pair.y, out[row][i + 1]);
      }
    }
  }
}

template <typename T, int HEAD_DIM, Variant VARIANT> __device__ __forceinline__ void
attention_plain(const T *qkv, T *out, const WorkItem *all_work, const uint32_t *tile_rows, const Shape &shape) {
  constexpr int DIMS = HEAD_DIM / WARP;
  extern __shared__ uint4 shared[];
  T *tile = reinterpret_cast<T *>(shared);
  float *queries = reinterpret_cast<float *>(reinterpret_cast<char *>(shared) + Shared<HEAD_DIM>::TILE_BYTES);
  float *weights = queries + ROWS * HEAD_DIM;

  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int kv_head = blockIdx.x % shape.kv_heads, group = shape.q_heads / shape.kv_heads;
  WorkItem work = all_work[blockIdx.x / shape.kv_heads];
  skip_tiles<VARIANT>(work, shape);
  const T *keys = qkv + static_cast<size_t>(shape.q_heads + kv_head) * shape.head_dim;
  const T *values = keys + static_cast<size_t>(shape.kv_heads) * shape.head_dim;

  // Q in f32. A row past the item's pairs repeats the first one; its result is not stored.
  for (int i = threadIdx.x; i < ROWS * (shape.head_dim / WIDE); i += THREADS) {
    const int row = i / (shape.head_dim / WIDE), column = (i - row * (shape.head_dim / WIDE)) * WIDE;
    const uint32_t pair = work.first_head + (row < work.pairs ? row : 0);
    const size_t token = work.query_row + pair / group, head = kv_head * group + pair % group;
    float query[WIDE];
    unpack8<T>(*reinterpret_cast<const uint4 *>(qkv + token * shape.row_stride + head * shape.head_dim + column),
               query);
    float4 *place = reinterpret_cast<float4 *>(queries + row * HEAD_DIM + column);
    place[0] = make_float4(query[0], query[1], query[2], query[3]);
    place[1] = make_float4(query[4], query[5], query[6], query[7]);
  }

  float maximum[WARP_ROWS], sum[WARP_ROWS], o[WARP_ROWS][DIMS];
  uint32_t position[WARP_ROWS];
#pragma unroll
  for (int row = 0; row < WARP_ROWS; ++row) {
    const uint32_t index = warp * WARP_ROWS + row;
    position[row] = work.position + (work.first_head + (index < work.pairs ? index : 0)) / group;
    maximum[row] = MAXIMUM_NONE<VARIANT>;
    sum[row] = 0.0f; // of this lane's keys
#pragma unroll
    for (int i = 0; i < DIMS; ++i) o[row][i] = 0.0f;
  }

  const uint32_t last_position = work.position + (work.first_head + work.pairs - 1) / group;
  float *warp_weights = weights + warp * KEYS * WARP_ROWS;
  for (uint32_t j = 0; j <= last_position / KEYS; ++j) {
    const size_t tile_place = static_cast<size_t>(tile_rows[work.first_tile + j]) * shape.row_stride;
    const int tile_keys = min(KEYS, static_cast<int>(last_position + 1 - j * KEYS));
    __syncthreads(); // the last tile's V was read
    load_tile<T, HEAD_DIM>(tile, keys + tile_place, tile_keys, shape);
    __syncthreads();
    float scores[WARP_ROWS][2], p[2][WARP_ROWS];
    dot_keys<T, HEAD_DIM>(scores, queries + warp * WARP_ROWS * HEAD_DIM, tile, lane, shape.head_dim);

#pragma unroll
    for (int row = 0; row < WARP_ROWS; ++row) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint32_t key = j * KEYS + lane + WARP * n;
        if (VARIANT == Variant::WindowCap && shape.cap_log2 != 0.0f) scores[row][n] = capped(scores[row][n], shape);
        if (key > position[row]) scores[row][n] = -INFINITY;
        if (VARIANT == Variant::WindowCap && static_cast<int>(position[row] - key) >= shape.window) {
          scores[row][n] = -INFINITY;
        }
      }
      const float highest = fmaxf(maximum[row], warp_max(fmaxf(scores[row][0], scores[row][1])));
      const float rescale = ex2_approx((maximum[row] - highest) * shape.scale_log2);
      const float offset = -highest * shape.scale_log2;
      const float p0 = ex2_approx(fmaf(scores[row][0], shape.scale_log2, offset));
      const float p1 = ex2_approx(fmaf(scores[row][1], shape.scale_log2, offset));
      maximum[row] = highest;
      sum[row] = fmaf(sum[row], rescale, p0) + p1;
      const float2 rounded = round2<T>(p0, p1);
      p[0][row] = rounded.x;
      p[1][row] = rounded.y;
#pragma unroll
      for (int i = 0; i < DIMS; ++i) o[row][i] *= rescale;
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      *reinterpret_cast<float4 *>(warp_weights + (lane + WARP * n) * WARP_ROWS) =
          make_float4(p[n][0], p[n][1], p[n][2], p[n][3]);
    }

    __syncthreads(); // K was read
    load_tile<T, HEAD_DIM>(tile, values + tile_place, tile_keys, shape);
    __syncthreads();
    if (lane * DIMS < shape.head_dim) add_values<T, HEAD_DIM, DIMS>(o, warp_weights, tile, lane);
  }

#pragma unroll
  for (int row = 0; row < WARP_ROWS; ++row) {
    const uint32_t index = warp * WARP_ROWS + row;
    const float inverse = __frcp_rn(warp_sum(sum[row]));
    if (index >= work.pairs || lane * DIMS >= shape.head_dim) continue;
    const uint32_t pair = work.first_head + index;
    const size_t token = work.out_row + pair / group, head = kv_head * group + pair % group;
    T *place = out + (token * shape.q_heads + head) * shape.head_dim + lane * DIMS;
#pragma unroll
    for (int i = 0; i < DIMS; i += 2) {
      // + 0: a masked tile may have turned a -0 into +0, so no -0 is stored.
      reinterpret_cast<uint32_t *>(place)[i / 2] = pack2<T>(o[row][i] * inverse + 0.0f, o[row][i + 1] * inverse + 0.0f);
    }
  }
}

#define ATTENTION_PLAIN(T, HEAD_DIM)                                                                                   \
  ATTENTION_PLAIN_VARIANT(attention_plain_##T##_d##HEAD_DIM, T, HEAD_DIM, Variant::Full)                               \
  ATTENTION_PLAIN_VARIANT(attention_plain_##T##_d##HEAD_DIM##_wc, T, HEAD_DIM, Variant::WindowCap)

#define ATTENTION_PLAIN_VARIANT(NAME, T, ...)                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_MIN)                                                    \
      NAME(const T *qkv, T *out, const WorkItem *work, const uint32_t *tile_rows, Shape shape) {                       \
    attention_plain<T, __VA_ARGS__>(qkv, out, work, tile_rows, shape);                                                 \
  }

ATTENTION_PLAIN(f16, 64)
ATTENTION_PLAIN(f16, 128)
ATTENTION_PLAIN(f16, 256)
#if HAS_BF16
ATTENTION_PLAIN(bf16, 64)
ATTENTION_PLAIN(bf16, 128)
ATTENTION_PLAIN(bf16, 256)
#endif
