// attention_sm90a — flash attention by Hopper's wgmma: what its two kernels share, all arithmetic of a warpgroup's rows.
// They differ in how queries, keys and values come to shared memory: copied by all threads (attention_sm90a_simple.cu),
// or as boxes by one (attention_sm90a.cu). A row has the same bits from both
//   formula     that of attention_tensor.cuh, variant Full, and what a row's bits depend on
//   tiles       128 keys, two of tile_rows' tiles; behind a path that ends in the first half of one, keys are masked
//   rows        128 in a block, 64 in a warpgroup, which multiplies them at once, 16 in a warp
//   pipeline    the matmul of a tile's weights and values runs beside the next tile's scores and softmax
//   shared      Q, two tiles of K, two of V, as wgmma.cuh has them
//   cost        4 * HEAD_DIM flops per row and key, in whole 128 rows x 128 keys -> compute bound
#pragma once

#include "attention.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "storage.cuh"
#include "wgmma.cuh"

constexpr int TILE = 2 * KEYS;
constexpr int GROUP_WARPS = 4, GROUPS = 2, WARP_ROWS = 16, GROUP_ROWS = GROUP_WARPS * WARP_ROWS;
constexpr int ROWS = GROUPS * GROUP_ROWS, STAGES = 2;
constexpr int STEP = 16;                             // the inner dimension of a matmul
constexpr int SCORES = TILE / 2;                     // a lane's part of a tile's scores
constexpr int DESCRIPTOR_UNIT = 16;                  // bytes
constexpr int COLUMN = SWIZZLE_BYTES / sizeof(bf16); // dims that lie side by side

// The rows of a work item that a warp computes.
struct Part {
  int lane, first_pair;   // the item's pair of the first row
  int tiles, whole_tiles; // of the item's path; those of them that have no masked key for any row of the warpgroup
  int seen[2];            // keys that this lane's rows see, less the lane's first

  __device__ __forceinline__ Part(const WorkItem &work, uint32_t group, int warpgroup, int warp) {
    lane = threadIdx.x % WARP;
    first_pair = warpgroup * GROUP_ROWS + warp * WARP_ROWS;
    tiles = (path_keys(work, group) - 1) / TILE + 1;
    const int group_first = work.position + (work.first_head + warpgroup * GROUP_ROWS) / group;
    whole_tiles = min(tiles - 1, (group_first + 1) / TILE);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t row = min(first_pair + 8 * half + lane / 4, work.pairs - 1);
      seen[half] = work.position + (work.first_head + row) / group - 2 * (lane % 4);
    }
  }

  // Keys up to the item's last position.
  static __device__ __forceinline__ int path_keys(const WorkItem &work, uint32_t group) {
    return work.position + (work.first_head + work.pairs - 1) / group + 1;
  }
};

template <int HEAD_DIM> struct AttentionSm90a {
  static constexpr int OUTS = HEAD_DIM / 2; // a lane's part of O
  static constexpr int WORDS = HEAD_DIM / WIDE, ROW_BYTES = HEAD_DIM * sizeof(bf16);
  static constexpr int COLUMN_BYTES = TILE * SWIZZLE_BYTES; // 64 dims of a tile, or of Q: as many rows
  static constexpr int TILE_BYTES = TILE * ROW_BYTES, QUERY_BYTES = ROWS * ROW_BYTES;

  static_assert(ROWS == TILE, "columns of Q and of tiles have one size");

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

  // O of a part, not yet divided by the rows' sums. `feed` brings the operands: keys(tile), values(tile) and, after the last
  // keys, last_values(tile) wait for them and return their descriptors; next(tile) follows the begin of matmuls with the
  // tile's keys, and done_with_.. the last use of what it names by this warpgroup.
  template <typename Feed>
  static __device__ __forceinline__ void attend(Feed &feed, float (&sums)[OUTS], Rows &state, const Part &part,
                                                uint64_t queries, float scale_log2) {
    float scores[SCORES], rescale[2];
    uint32_t weights[TILE / STEP][4];
#pragma unroll
    for (int i = 0; i < OUTS; ++i) sums[i] = 0.0f;

    begin_scores(scores, queries, feed.keys(0));
    feed.next(0);
    wgmma_wait_group<0>();
    hold(scores);
    feed.done_with_keys(0);
    if (part.whole_tiles == 0) mask(scores, part.seen);
    state.weigh(scores, rescale, scale_log2);
    round_weights(weights, scores);

    const auto step = [&](bool is_masked, int tile) {
      begin_scores(scores, queries, feed.keys(tile));
      begin_values(sums, weights, feed.values(tile - 1));
      feed.next(tile);
      wgmma_wait_group<1>();
      hold(scores);
      feed.done_with_keys(tile);
      if (is_masked) {
        const int seen_here[2] = {part.seen[0] - tile * TILE, part.seen[1] - tile * TILE};
        mask(scores, seen_here);
      }
      state.weigh(scores, rescale, scale_log2);
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
      feed.done_with_values(tile - 1);
      round_weights(weights, scores);
    };
    int tile = 1;
#pragma unroll 1
    for (; tile < part.whole_tiles; ++tile) step(false, tile);
#pragma unroll 1
    for (; tile < part.tiles; ++tile) step(true, tile);
    feed.done_with_queries();
    begin_values(sums, weights, feed.last_values(part.tiles - 1));
    wgmma_wait_group<0>();
    hold(sums);
    feed.done_with_values(part.tiles - 1);
  }

  // out = O / sum, through a place for all rows of the block in shared memory, so that whole words are stored.
  static __device__ __forceinline__ void store(bf16 *out, const Rows &state, const float (&sums)[OUTS],
                                               const WorkItem &work, const Part &part, char *place, uint32_t head,
                                               uint32_t group, const Shape &shape) {
    const int lane = part.lane, warp_pairs = min(WARP_ROWS, static_cast<int>(work.pairs) - part.first_pair);
    place += part.first_pair * ROW_BYTES;
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
      const uint32_t pair = work.first_head + part.first_pair + row;
      const size_t token = work.out_row + pair / group;
      bf16 *target = out + (token * shape.q_heads + head + pair % group) * shape.head_dim + word * WIDE;
      *reinterpret_cast<uint4 *>(target) =
          *reinterpret_cast<const uint4 *>(place + row * ROW_BYTES + (word ^ row % 8) * sizeof(uint4));
    }
  }
};
