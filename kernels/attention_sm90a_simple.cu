// attention_sm90a_simple — flash attention by Hopper's wgmma, tiles by cp.async: the formula, the arguments, what a row's bits
// depend on and what is needed are those of attention_tensor.cuh, variant Full
//   tiles       128 keys, two of tile_rows' tiles; where the path ends in the first half of one, the second half is zeros
//   block       128 rows, two warpgroups of 64; one barrier for each tile of keys
//   pipeline    while a tile is multiplied, the values of the same tile and the keys of the next one are in flight, each in
//               one of two slots; the matmul of a tile's weights and values runs beside the next tile's scores and softmax
//   shared      Q, two tiles of K, two of V, as wgmma.cuh has them: 160 KiB with d128, 80 KiB with d64, one block on a
//               multiprocessor for its registers. O is stored through Q's place
//   cost        4 * HEAD_DIM flops per row and key, in whole 128 rows x 128 keys -> compute bound
//   tiers       sm90a
#include "attention.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "storage.cuh"
#include "wgmma.cuh"

constexpr int TILE = 2 * KEYS;
constexpr int GROUP_WARPS = 4, GROUPS = 2, WARP_ROWS = 16, GROUP_ROWS = GROUP_WARPS * WARP_ROWS;
constexpr int ROWS = GROUPS * GROUP_ROWS, THREADS = GROUPS * GROUP_WARPS * WARP, STAGES = 2;
constexpr int STEP = 16;              // the inner dimension of a matmul
constexpr int SCORES = TILE / 2;      // a lane's part of a tile's scores
constexpr int DESCRIPTOR_UNIT = 16;   // bytes

template <int HEAD_DIM> struct AttentionSm90aSimple {
  static constexpr int OUTS = HEAD_DIM / 2; // a lane's part of O
  static constexpr int WORDS = HEAD_DIM / WIDE, ROW_BYTES = HEAD_DIM * sizeof(bf16);
  static constexpr int COLUMN_BYTES = TILE * SWIZZLE_BYTES; // 64 dims of a tile, or of Q: as many rows
  static constexpr int TILE_BYTES = TILE * ROW_BYTES, QUERY_BYTES = ROWS * ROW_BYTES;
  static constexpr int COPY_ROWS = THREADS / WORDS;

  static_assert(ROWS == TILE && COPY_ROWS % 8 == 0 && KEYS % COPY_ROWS == 0, "a thread copies one word of every row");

  // A thread's part of copying rows to shared memory: a word of every COPY_ROWS-th row.
  struct Copier {
    int row, column; // the first row; the column in a row of the source
    uint32_t target; // of the first row, from the start of the tile
    bool in_head;    // false where HEAD_DIM is wider than head_dim: zeros

    __device__ __forceinline__ explicit Copier(const Shape &shape) {
      const int word = threadIdx.x % WORDS;
      row = threadIdx.x / WORDS;
      column = word * WIDE;
      target = word / 8 * COLUMN_BYTES + row * SWIZZLE_BYTES + (word % 8 ^ row % 8) * sizeof(uint4);
      in_head = column < shape.head_dim;
    }

    // Starts copying a tile whose halves begin at `first` and `second`; zeros from key `keys` on.
    __device__ __forceinline__ void begin(uint32_t place, const bf16 *first, const bf16 *second, int keys,
                                          int row_stride) const {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bf16 *source = (half == 0 ? first : second) + static_cast<size_t>(row) * row_stride + column;
#pragma unroll
        for (int n = half * KEYS; n < (half + 1) * KEYS; n += COPY_ROWS) {
          const bool there = in_head && row + n < keys;
          cp_async_16(place + target + n * SWIZZLE_BYTES, source, there ? sizeof(uint4) : 0);
          source += static_cast<size_t>(COPY_ROWS) * row_stride;
        }
      }
    }
  };

  // Starts copying Q of the item's pairs, zeros in rows past them.
  static __device__ __forceinline__ void begin_queries(uint32_t place, const bf16 *qkv, const WorkItem &work,
                                                       uint32_t head, uint32_t group, const Copier &copier,
                                                       const Shape &shape) {
#pragma unroll
    for (int n = 0; n < ROWS; n += COPY_ROWS) {
      const uint32_t row = copier.row + n;
      const bool there = copier.in_head && row < work.pairs;
      const uint32_t pair = there ? work.first_head + row : 0;
      const size_t token = work.query_row + pair / group;
      const bf16 *source = qkv + token * shape.row_stride + (head + pair % group) * shape.head_dim + copier.column;
      cp_async_16(place + copier.target + n * SWIZZLE_BYTES, source, there ? sizeof(uint4) : 0);
    }
  }

  // A lane's state of its two rows.
  struct Rows {
    float maximum[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.0f, 0.0f}; // over this lane's keys

    // Turns scores into weights, and returns what O is to be multiplied by.
    __device__ __forceinline__ void weigh(float (&scores)[SCORES], float (&rescale)[2], float scale_log2) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float even = scores[2 * half], odd = scores[2 * half + 1];
#pragma unroll
        for (int n = 4; n < SCORES; n += 4) {
          even = fmaxf(even, scores[n + 2 * half]);
          odd = fmaxf(odd, scores[n + 2 * half + 1]);
        }
        const float highest = quad_max(fmaxf(maximum[half], fmaxf(even, odd)));
        rescale[half] = ex2_approx((maximum[half] - highest) * scale_log2);
        maximum[half] = highest;
        const float offset = -highest * scale_log2;
        float even_sum = 0.0f, odd_sum = 0.0f;
#pragma unroll
        for (int n = 0; n < SCORES; n += 4) {
          float &first = scores[n + 2 * half], &second = scores[n + 2 * half + 1];
          first = ex2_approx(fmaf(first, scale_log2, offset));
          second = ex2_approx(fmaf(second, scale_log2, offset));
          even_sum += first, odd_sum += second;
        }
        sum[half] = fmaf(sum[half], rescale[half], even_sum + odd_sum);
      }
    }
  };

  // Masks the keys of a tile that are later than each row's own; `seen`: those that a row sees, less this lane's first.
  static __device__ __forceinline__ void mask(float (&scores)[SCORES], const int (&seen)[2]) {
#pragma unroll
    for (int n = 0; n < SCORES; ++n) {
      if (n / 4 * 8 + n % 2 > seen[n / 2 % 2]) scores[n] = -INFINITY;
    }
  }

  static __device__ __forceinline__ void round_weights(uint32_t (&weights)[TILE / STEP][4],
                                                       const float (&scores)[SCORES]) {
#pragma unroll
    for (int k = 0; k < TILE / STEP; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights[k][i] = pack2<bf16>(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
      }
    }
  }

  // The copies that this thread started, and those of all others, can be multiplied, and what all threads have waited for
  // has been.
  static __device__ __forceinline__ void arrive() {
    cp_async_wait_group<0>();
    fence_proxy_async();
    __syncthreads();
  }

  // scores = Q K^T
  static __device__ __forceinline__ void begin_scores(float (&scores)[SCORES], uint64_t queries, uint64_t keys) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < HEAD_DIM / STEP; ++k) {
      const int column = k / 4 * COLUMN_BYTES + k % 4 * STEP * static_cast<int>(sizeof(bf16));
      wgmma_m64n128k16(scores, queries + column / DESCRIPTOR_UNIT, keys + column / DESCRIPTOR_UNIT, k > 0);
    }
    wgmma_commit_group();
  }

  // out += P V
  static __device__ __forceinline__ void begin_values(float (&out)[OUTS], const uint32_t (&weights)[TILE / STEP][4],
                                                      uint64_t values) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < TILE / STEP; ++k) {
      wgmma_m64k16_by_rows(out, weights[k], values + k * STEP * SWIZZLE_BYTES / DESCRIPTOR_UNIT);
    }
    wgmma_commit_group();
  }

  static __device__ __forceinline__ void run(const bf16 *qkv, bf16 *out, const WorkItem *all_work,
                                             const uint32_t *tile_rows, const Shape &shape) {
    extern __shared__ __align__(1024) char shared[];
    const uint32_t query_place = shared_address(shared), keys_place = query_place + QUERY_BYTES;
    const uint32_t values_place = keys_place + STAGES * TILE_BYTES;
    const int lane = threadIdx.x % WARP;
    // From one lane, so that the compiler knows that the warp does not diverge on it.
    const int warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0), warpgroup = warp / GROUP_WARPS;
    const uint32_t group = shape.q_heads / shape.kv_heads, kv_head = blockIdx.x % shape.kv_heads;
    const WorkItem work = all_work[blockIdx.x / shape.kv_heads];
    const bf16 *keys = qkv + static_cast<size_t>(shape.q_heads + kv_head) * shape.head_dim;
    const bf16 *values = keys + static_cast<size_t>(shape.kv_heads) * shape.head_dim;
    const uint32_t *rows = tile_rows + work.first_tile;
    const int path_keys = work.position + (work.first_head + work.pairs - 1) / group + 1;
    const int tiles = (path_keys - 1) / TILE + 1, last_row = (path_keys - 1) / KEYS;

    // The tiles before this one have no masked key for any row of the warpgroup.
    const int group_first = work.position + (work.first_head + warpgroup * GROUP_ROWS) / group;
    const int whole_tiles = min(tiles - 1, (group_first + 1) / TILE);
    const int first_pair = warp * WARP_ROWS;
    int seen[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t row = min(first_pair + 8 * half + lane / 4, work.pairs - 1);
      seen[half] = work.position + (work.first_head + row) / group - 2 * (lane % 4);
    }

    const Copier copier(shape);
    const auto first_of = [&](const bf16 *matrix, uint32_t row) {
      return matrix + static_cast<size_t>(row) * shape.row_stride;
    };
    const uint64_t query = matrix_descriptor(query_place + warpgroup * GROUP_ROWS * SWIZZLE_BYTES, 0);
    const auto keys_of = [&](int tile) { return matrix_descriptor(keys_place + tile % STAGES * TILE_BYTES, 0); };
    const auto values_of = [&](int tile) {
      return matrix_descriptor(values_place + tile % STAGES * TILE_BYTES, COLUMN_BYTES);
    };

    // The rows of the table for the tile whose keys were copied last.
    uint32_t row = rows[0], row_after = rows[min(1, last_row)];
    begin_queries(query_place, qkv, work, kv_head * group, group, copier, shape);
    copier.begin(keys_place, first_of(keys, row), first_of(keys, row_after), path_keys, shape.row_stride);
    cp_async_commit_group();
    // Starts copying values of this tile and keys of the next one, to slots that all threads are done with.
    const auto begin_copies = [&](int tile) {
      const int keys_here = path_keys - tile * TILE, slot = tile % STAGES, slot_after = (tile + 1) % STAGES;
      copier.begin(values_place + slot * TILE_BYTES, first_of(values, row), first_of(values, row_after), keys_here,
                   shape.row_stride);
      if (keys_here > TILE) {
        row = rows[2 * tile + 2], row_after = rows[min(2 * tile + 3, last_row)];
        copier.begin(keys_place + slot_after * TILE_BYTES, first_of(keys, row), first_of(keys, row_after),
                     keys_here - TILE, shape.row_stride);
      }
      cp_async_commit_group();
    };

    float sums[OUTS], scores[SCORES], rescale[2];
    uint32_t weights[TILE / STEP][4];
    Rows state;
#pragma unroll
    for (int i = 0; i < OUTS; ++i) sums[i] = 0.0f;

    arrive();
    begin_scores(scores, query, keys_of(0));
    begin_copies(0);
    wgmma_wait_group<0>();
    hold(scores);
    if (whole_tiles == 0) mask(scores, seen);
    state.weigh(scores, rescale, shape.scale_log2);
    round_weights(weights, scores);

    const auto step = [&](bool is_masked, int tile) {
      arrive(); // keys of this tile and values of the last; all are done with keys of the last and values of the one before
      begin_scores(scores, query, keys_of(tile));
      begin_values(sums, weights, values_of(tile - 1));
      begin_copies(tile);
      wgmma_wait_group<1>();
      hold(scores);
      if (is_masked) {
        const int seen_here[2] = {seen[0] - tile * TILE, seen[1] - tile * TILE};
        mask(scores, seen_here);
      }
      state.weigh(scores, rescale, shape.scale_log2);
      // The wait stands in both branches, and with two texts: ptxas would move one before the exponentials, which are to
      // run beside the matmul.
      if (__any_sync(ALL_LANES, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
        asm volatile("wgmma.wait_group.sync.aligned 0; // then rescale" : : : "memory");
        hold(sums);
#pragma unroll
        for (int i = 0; i < OUTS; ++i) sums[i] *= rescale[i / 2 % 2];
      } else {
        wgmma_wait_group<0>();
        hold(sums);
      }
      round_weights(weights, scores);
    };
    int tile = 1;
#pragma unroll 1
    for (; tile < whole_tiles; ++tile) step(false, tile);
#pragma unroll 1
    for (; tile < tiles; ++tile) step(true, tile);
    arrive();
    begin_values(sums, weights, values_of(tiles - 1));
    wgmma_wait_group<0>();
    hold(sums);
    const int warp_pairs = min(WARP_ROWS, static_cast<int>(work.pairs) - first_pair);
    store(out, state, sums, work, shared + first_pair * ROW_BYTES, first_pair, warp_pairs, kv_head * group, group, shape);
  }

  // out = O / sum, through `place` in shared memory, so that whole words are stored.
  static __device__ __forceinline__ void store(bf16 *out, const Rows &state, const float (&sums)[OUTS],
                                               const WorkItem &work, char *place, int first_pair, int warp_pairs,
                                               uint32_t head, uint32_t group, const Shape &shape) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float inverse = __frcp_rn(quad_sum(state.sum[half]));
      char *row = place + (8 * half + lane / 4) * ROW_BYTES + lane % 4 * sizeof(uint32_t);
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; ++n) {
        // + 0: masked keys may have turned a -0 into +0, so no -0 is stored.
        const float first = sums[4 * n + 2 * half] * inverse + 0.0f;
        const float second = sums[4 * n + 2 * half + 1] * inverse + 0.0f;
        *reinterpret_cast<uint32_t *>(row + (n ^ lane / 4) * sizeof(uint4)) = pack2<bf16>(first, second);
      }
    }
    __syncwarp();
    const int word = lane % WORDS;
    if (word * WIDE >= shape.head_dim) return;
#pragma unroll 4
    for (int row = lane / WORDS; row < warp_pairs; row += WARP / WORDS) {
      const uint32_t pair = work.first_head + first_pair + row;
      const size_t token = work.out_row + pair / group;
      bf16 *target = out + (token * shape.q_heads + head + pair % group) * shape.head_dim + word * WIDE;
      *reinterpret_cast<uint4 *>(target) =
          *reinterpret_cast<const uint4 *>(place + row * ROW_BYTES + (word ^ row % 8) * sizeof(uint4));
    }
  }
};

#define ATTENTION_SM90A_SIMPLE(NAME, HEAD_DIM)                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                             \
      NAME(const bf16 *qkv, bf16 *out, const WorkItem *work, const uint32_t *tile_rows, Shape shape) {                 \
    AttentionSm90aSimple<HEAD_DIM>::run(qkv, out, work, tile_rows, shape);                                             \
  }

ATTENTION_SM90A_SIMPLE(attention_sm90a_simple_bf16_d64, 64)
ATTENTION_SM90A_SIMPLE(attention_sm90a_simple_bf16_d128, 128)
