// attention_tensor — flash attention on tensor cores, once for all tiers that have `mma.sync`. A tier has the format, the
// matmul instruction and the copies to shared memory (attention_sm75.cu, attention_sm80.cu); this file has the rest.
//
// out[t, h, :] = softmax(q[t, h, :] . k[path, kv, :] * scale) * v[path, kv, :],  kv = h / group, where the path is the
// keys at positions 0 ..= the position of t: causal grouped-query attention
//   qkv [rows, row_stride]: q heads, then k heads, then v heads, each head_dim wide · out [tokens, q_heads * head_dim]
//   variants    Full, as above. WindowCap: the path is the last `window` of those keys, and the scaled score s becomes
//               cap * tanh(s / cap), where there is a cap, before the mask
//   work        a work item for each block (struct WorkItem), longest first
//   tile_rows   for each path, the row of the first key of its key tiles. Rows past the block's last position are not
//               read but zeros: they may be another conversation's, and a masked weight of 0 times its NaN would be NaN
//   accumulate  S and O in f32; scale * log2(e) folded into one fmaf; the row sum is that of unrounded P, and P is
//               rounded to the format for P * V; one rounding on O
//   bits        a row's result depends on its own path alone, not on what shares its block: tiles lie at absolute
//               positions and are walked first to last, keys are never split among blocks, and keys that are masked
//               for a row change nothing: its maximum stays, 2^0 = 1, P = 0. So a warp may leave out 16 keys that are
//               masked for all of its rows, and may leave out multiplying by 1. With a window, a block leaves out the
//               tiles before its first token's, a warp those before its first row's, and each row masks the rest.
//               Only a value that is not finite and lies before a row's window in such a tile is not left out: 0 times
//               it is NaN
//   grid        [work * kv_heads], kv head fastest. A block has ROWS rows, each a pair of (token, q head of the kv
//               head's group), so that the heads of a group share K and V; a warp has 16 or 32 of them
//   pipeline    K and V tiles go through a ring of STAGES slots, in the order K0 V0 K1 V1 ..; while one is used, the
//               next STAGES - 1 are in flight; one barrier a tile
//   shared      Q [ROWS, HEAD_DIM], then the ring; 16-byte words of a row are exchanged (word ^ row % 8), so that 8
//               rows of a column meet 8 different groups of 4 banks: no conflict anywhere. O is stored through Q's slot
//   needs       head_dim <= HEAD_DIM, head_dim % 8 == 0, row_stride % 8 == 0, pointers 16-byte aligned; at least one
//               key for every row
//   cost        4 * HEAD_DIM flops per row and key, in whole 16 rows x 16 keys -> compute bound
#pragma once

#include "attention.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "storage.cuh"

// A lane's share of a 16 x 8 accumulator: rows lane / 4 and that + 8, two neighbouring columns of each.
constexpr int FRAGMENT = 4;
// Keys, or dims, of one ldmatrix: two 8-wide blocks.
constexpr int STEP = 16;

// The block's shared memory, aligned to the widest row, so that the exchange of words is a xor with the address. Each
// variant has a name for it: with one name for both, nvcc 13.0 compiles the entries of the first otherwise than alone.
template <Variant VARIANT> __device__ __forceinline__ uint4 *shared_memory() {
  if constexpr (VARIANT == Variant::Full) {
    extern __shared__ __align__(512) uint4 shared[];
    return shared;
  } else {
    extern __shared__ __align__(512) uint4 shared_wc[];
    return shared_wc;
  }
}

template <typename Tier, int HEAD_DIM, int WARPS, int WARP_TILES, int STAGES, Variant VARIANT> struct Attention {
  using T = typename Tier::T;

  static constexpr int THREADS = WARPS * WARP;
  static constexpr int WARP_ROWS = 16 * WARP_TILES;
  static constexpr int ROWS = WARPS * WARP_ROWS;
  static constexpr int WORDS = HEAD_DIM / WIDE;
  static constexpr int ROW_BYTES = HEAD_DIM * sizeof(T);
  static constexpr int QUERY_BYTES = ROWS * ROW_BYTES;
  static constexpr int TILE_BYTES = KEYS * ROW_BYTES;
  static constexpr int KEY_BLOCKS = KEYS / 8;
  static constexpr int DIM_BLOCKS = HEAD_DIM / 8;
  // A thread copies every THREADS-th word of a tile: always the same column, so many rows further each time.
  static constexpr int COPY_ROWS = THREADS / WORDS;
  static constexpr int COPIES = KEYS / COPY_ROWS;
  // Whether K and V of the next tile are in flight while one is used, or only the next of K and V.
  static constexpr bool WHOLE = STAGES == 3;

  static_assert(COPY_ROWS % 8 == 0 || COPY_ROWS == 4, "a thread's rows are 8 apart, or 4: `turn` is a xor");
  static_assert(STAGES == 2 || STAGES == 3, "the loop below prefetches one tile");

  // The difference between how words are exchanged in a thread's first row and in its row of index n.
  static __device__ __forceinline__ uint32_t turn(int n) {
    return COPY_ROWS % 8 == 0 ? 0 : n * COPY_ROWS % 8 * sizeof(uint4);
  }

  // A thread's part of copying rows to shared memory.
  struct Copier {
    int row;         // the first row
    int column;      // in a row of the source
    uint32_t target; // of the first row, from the start of the tile
    bool in_head;    // false where HEAD_DIM is wider than head_dim: zeros

    __device__ __forceinline__ explicit Copier(const Shape &shape) {
      const int word = threadIdx.x % WORDS;
      row = threadIdx.x / WORDS;
      column = word * WIDE;
      target = row * ROW_BYTES + (word ^ row % 8) * sizeof(uint4);
      in_head = column < shape.head_dim;
    }
  };

  // The slots that tiles of keys and values go through, and this thread's part of their copies.
  struct Ring {
    uint32_t start, loading, ready; // addresses: of the ring, of the slot to fill next, of the slot to use next
    typename Tier::Flight flights[COPIES];

    __device__ __forceinline__ explicit Ring(uint32_t place) : start(place), loading(place), ready(place) {}

    __device__ __forceinline__ uint32_t after(uint32_t place) const {
      return place + TILE_BYTES == start + STAGES * TILE_BYTES ? start : place + TILE_BYTES;
    }

    // Starts the copy of the tile whose keys start at `first`: [KEYS, head_dim], zeros from key `keys` on. Without keys,
    // there is none.
    __device__ __forceinline__ void begin(const T *first, int keys, const Copier &copier, int row_stride) {
      if (keys > 0) {
        const T *source = first + static_cast<size_t>(copier.row) * row_stride + copier.column;
#pragma unroll
        for (int n = 0; n < COPIES; ++n) {
          const bool there = copier.in_head && copier.row + n * COPY_ROWS < keys;
          Tier::begin(flights[n], (loading + copier.target + n * COPY_ROWS * ROW_BYTES) ^ turn(n), source, there);
          source += static_cast<size_t>(COPY_ROWS) * row_stride;
        }
      }
      Tier::commit();
    }

    // Completes this thread's part of the copy that `begin` started.
    __device__ __forceinline__ void end(int keys, const Copier &copier) {
      if (keys > 0) {
#pragma unroll
        for (int n = 0; n < COPIES; ++n) {
          Tier::end(flights[n], (loading + copier.target + n * COPY_ROWS * ROW_BYTES) ^ turn(n));
        }
      }
      loading = after(loading);
    }
  };

  // Loads Q of the item's pairs, zeros in rows past them.
  static __device__ __forceinline__ void load_queries(uint32_t place, const T *qkv, const WorkItem &work, uint32_t head,
                                                      uint32_t group, const Copier &copier, const Shape &shape) {
#pragma unroll
    for (int n = 0; n < ROWS / COPY_ROWS; ++n) {
      const uint32_t row = copier.row + n * COPY_ROWS;
      const bool there = copier.in_head && row < work.pairs;
      const uint32_t pair = there ? work.first_head + row : 0;
      const size_t token = work.query_row + pair / group;
      const T *source = qkv + token * shape.row_stride + (head + pair % group) * shape.head_dim;
      const uint32_t target = (place + copier.target + n * COPY_ROWS * ROW_BYTES) ^ turn(n);
      typename Tier::Flight flight;
      Tier::begin(flight, target, source + copier.column, there);
      Tier::end(flight, target);
    }
  }

  // S = Q K^T for a warp's rows. MASKED: over the first `keys` keys, in whole steps; 0 for the others.
  template <bool MASKED> static __device__ __forceinline__ void
  dot_keys(float (&scores)[WARP_TILES][KEY_BLOCKS][FRAGMENT], uint32_t queries, uint32_t tile, int keys) {
#pragma unroll
    for (int m = 0; m < WARP_TILES; ++m) {
#pragma unroll
      for (int n = 0; n < KEY_BLOCKS; ++n) {
#pragma unroll
        for (int i = 0; i < FRAGMENT; ++i) scores[m][n][i] = 0.0f;
      }
    }
#pragma unroll
    for (int k = 0; k < HEAD_DIM / STEP; ++k) {
      const uint32_t column = k * STEP * sizeof(T);
      uint32_t query[WARP_TILES][FRAGMENT];
#pragma unroll
      for (int m = 0; m < WARP_TILES; ++m) ldmatrix_x4(query[m], (queries ^ column) + m * 16 * ROW_BYTES);
#pragma unroll
      for (int n = 0; n < KEYS / STEP; ++n) {
        if (MASKED && n * STEP >= keys) continue;
        uint32_t key[FRAGMENT];
        ldmatrix_x4(key, (tile ^ column) + n * STEP * ROW_BYTES);
#pragma unroll
        for (int m = 0; m < WARP_TILES; ++m) {
          Tier::mma(scores[m][2 * n], query[m], key[0], key[1]);
          Tier::mma(scores[m][2 * n + 1], query[m], key[2], key[3]);
        }
      }
    }
  }

  // Caps the scores, where there is a cap.
  static __device__ __forceinline__ void cap(float (&scores)[WARP_TILES][KEY_BLOCKS][FRAGMENT], const Shape &shape) {
    if constexpr (VARIANT == Variant::WindowCap) {
      if (shape.cap_log2 == 0.0f) return;
#pragma unroll
      for (int m = 0; m < WARP_TILES; ++m) {
#pragma unroll
        for (int n = 0; n < KEY_BLOCKS; ++n) {
#pragma unroll
          for (int i = 0; i < FRAGMENT; ++i) scores[m][n][i] = capped(scores[m][n][i], shape);
        }
      }
    }
  }

  // Masks the keys that are later than each row's own, and those before its window.
  static __device__ __forceinline__ void mask(float (&scores)[WARP_TILES][KEY_BLOCKS][FRAGMENT],
                                              const int (&seen)[WARP_TILES][2], const Shape &shape) {
#pragma unroll
    for (int m = 0; m < WARP_TILES; ++m) {
#pragma unroll
      for (int n = 0; n < KEY_BLOCKS; ++n) {
#pragma unroll
        for (int i = 0; i < FRAGMENT; ++i) {
          const int key = 8 * n + i % 2;
          if (key > seen[m][i / 2]) scores[m][n][i] = -INFINITY;
          if (VARIANT == Variant::WindowCap && key <= seen[m][i / 2] - shape.window) scores[m][n][i] = -INFINITY;
        }
      }
    }
  }

  // A lane's state of its rows, two of each 16.
  struct Rows {
    float maximum[WARP_TILES][2];
    float sum[WARP_TILES][2]; // over this lane's keys
    float out[WARP_TILES][DIM_BLOCKS][FRAGMENT];

    __device__ __forceinline__ Rows() {
#pragma unroll
      for (int m = 0; m < WARP_TILES; ++m) {
        maximum[m][0] = maximum[m][1] = MAXIMUM_NONE<VARIANT>;
        sum[m][0] = sum[m][1] = 0.0f;
#pragma unroll
        for (int n = 0; n < DIM_BLOCKS; ++n) {
#pragma unroll
          for (int i = 0; i < FRAGMENT; ++i) out[m][n][i] = 0.0f;
        }
      }
    }

    // maximum = max over the keys so far, P = 2^((S - maximum) * scale_log2); sum and out as if with that maximum from
    // the start. P is rounded and laid out as the left operand of P * V.
    __device__ __forceinline__ void weigh(uint32_t (&weights)[WARP_TILES][KEYS / STEP][FRAGMENT],
                                          float (&scores)[WARP_TILES][KEY_BLOCKS][FRAGMENT], float scale_log2) {
      float rescale[WARP_TILES][2];
      bool changed = false;
#pragma unroll
      for (int m = 0; m < WARP_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float highest = maximum[m][half];
#pragma unroll
          for (int n = 0; n < KEY_BLOCKS; ++n) {
            highest = fmaxf(highest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
          }
          highest = quad_max(highest);
          rescale[m][half] = ex2_approx((maximum[m][half] - highest) * scale_log2);
          changed |= rescale[m][half] != 1.0f;
          maximum[m][half] = highest;
          const float offset = -highest * scale_log2;
          float added = 0.0f;
#pragma unroll
          for (int n = 0; n < KEY_BLOCKS; ++n) {
            const float p0 = ex2_approx(fmaf(scores[m][n][2 * half], scale_log2, offset));
            const float p1 = ex2_approx(fmaf(scores[m][n][2 * half + 1], scale_log2, offset));
            added += p0 + p1;
            weights[m][n / 2][2 * (n % 2) + half] = pack2<T>(p0, p1);
          }
          sum[m][half] = fmaf(sum[m][half], rescale[m][half], added);
        }
      }
      // Where no maximum of the warp's rows changed, all factors are 1.
      if (!__any_sync(ALL_LANES, changed)) return;
#pragma unroll
      for (int m = 0; m < WARP_TILES; ++m) {
#pragma unroll
        for (int n = 0; n < DIM_BLOCKS; ++n) {
#pragma unroll
          for (int i = 0; i < FRAGMENT; ++i) out[m][n][i] *= rescale[m][i / 2];
        }
      }
    }

    // out += P V over the first `keys` keys, in whole steps.
    __device__ __forceinline__ void add_values(const uint32_t (&weights)[WARP_TILES][KEYS / STEP][FRAGMENT],
                                               uint32_t tile, int keys) {
#pragma unroll
      for (int k = 0; k < KEYS / STEP; ++k) {
        if (k * STEP >= keys) break;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / STEP; ++n) {
          uint32_t value[FRAGMENT];
          ldmatrix_x4_trans(value, (tile ^ n * STEP * static_cast<int>(sizeof(T))) + k * STEP * ROW_BYTES);
#pragma unroll
          for (int m = 0; m < WARP_TILES; ++m) {
            Tier::mma(out[m][2 * n], weights[m][k], value[0], value[1]);
            Tier::mma(out[m][2 * n + 1], weights[m][k], value[2], value[3]);
          }
        }
      }
    }
  };

  static __device__ __forceinline__ void run(const T *qkv, T *out, const WorkItem *all_work, const uint32_t *tile_rows,
                                             const Shape &shape) {
    uint4 *shared = shared_memory<VARIANT>();
    const uint32_t query_place = shared_address(shared);
    const int lane = threadIdx.x % WARP;
    // From one lane, so that the compiler knows that the warp does not diverge on it.
    const int warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0);
    const uint32_t group = shape.q_heads / shape.kv_heads, kv_head = blockIdx.x % shape.kv_heads;
    WorkItem work = all_work[blockIdx.x / shape.kv_heads];
    skip_tiles<VARIANT>(work, shape);
    const T *keys = qkv + static_cast<size_t>(shape.q_heads + kv_head) * shape.head_dim;
    const T *values = keys + static_cast<size_t>(shape.kv_heads) * shape.head_dim;
    const uint32_t *rows = tile_rows + work.first_tile;
    const int last_position = work.position + (work.first_head + work.pairs - 1) / group;
    const int tiles = last_position / KEYS + 1;

    // Keys that this warp's rows see: none of them one past warp_last, all of them those up to warp_first, as far as the
    // window of each reaches back.
    const int first_pair = warp * WARP_ROWS, warp_pairs = min(WARP_ROWS, static_cast<int>(work.pairs) - first_pair);
    const int warp_first = work.position + (work.first_head + first_pair) / group;
    const int warp_last =
        warp_pairs > 0 ? static_cast<int>(work.position + (work.first_head + first_pair + warp_pairs - 1) / group) : -1;

    Rows state;
    // The keys of the present tile and later ones that a row sees, less this lane's first key of a block.
    int seen[WARP_TILES][2];
#pragma unroll
    for (int m = 0; m < WARP_TILES; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t row = min(first_pair + 16 * m + 8 * half + lane / 4, work.pairs - 1);
        seen[m][half] = work.position + (work.first_head + row) / group - 2 * (lane % 4);
      }
    }

    // Where this lane's rows of an ldmatrix lie, the words of a row exchanged: of Q and V, one row for each of 16 lanes, then the
    // next 8 columns; of K, 8 keys, the next 8 columns, then the next 8 keys.
    const uint32_t swizzle = lane % 8 * sizeof(uint4);
    const uint32_t by_row = lane % 16 * ROW_BYTES + (lane / 16 * sizeof(uint4) ^ swizzle);
    const uint32_t by_column = (lane % 8 + lane / 16 * 8) * ROW_BYTES + (lane / 8 % 2 * sizeof(uint4) ^ swizzle);
    const uint32_t warp_queries = query_place + first_pair * ROW_BYTES;

    const Copier copier(shape);
    Ring ring(query_place + QUERY_BYTES);
    const auto first_of = [&](const T *matrix, uint32_t row) {
      return matrix + static_cast<size_t>(row) * shape.row_stride;
    };
    // Rows of the present tile, of the one after it; keys of the path from the present tile on.
    uint32_t row = rows[0], row_after = rows[min(1, tiles - 1)];
    int path_keys = last_position + 1;
    load_queries(query_place, qkv, work, kv_head * group, group, copier, shape);
    ring.begin(first_of(keys, row), path_keys, copier, shape.row_stride);
    ring.end(path_keys, copier);
    if (WHOLE) {
      ring.begin(first_of(values, row), path_keys, copier, shape.row_stride);
      ring.end(path_keys, copier);
    }

#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      const uint32_t row_later = rows[min(tile + 2, tiles - 1)];
      const int first_key = tile * KEYS, keys_after = path_keys - KEYS;
      int warp_keys = warp_last + 1 - first_key, whole_from = first_key + KEYS - 1;
      if constexpr (VARIANT == Variant::WindowCap) {
        // A window may hide all keys of the tile from all rows of the warp, or some keys from some rows.
        if (first_key + KEYS <= warp_first + 1 - shape.window) warp_keys = 0;
        if (first_key <= warp_last - shape.window) whole_from = warp_first + 1;
      }
      uint32_t weights[WARP_TILES][KEYS / STEP][FRAGMENT];

      Tier::template wait<STAGES - 2>();
      __syncthreads(); // K is there, and the contents of the ring's next slot were used
      const int keys_beside_k = WHOLE ? keys_after : path_keys;
      ring.begin(WHOLE ? first_of(keys, row_after) : first_of(values, row), keys_beside_k, copier, shape.row_stride);
      if (warp_keys > 0) {
        float scores[WARP_TILES][KEY_BLOCKS][FRAGMENT];
        if (whole_from <= warp_first) {
          dot_keys<false>(scores, warp_queries + by_row, ring.ready + by_column, KEYS);
          cap(scores, shape);
        } else {
          dot_keys<true>(scores, warp_queries + by_row, ring.ready + by_column, warp_keys);
          cap(scores, shape);
          mask(scores, seen, shape);
        }
        state.weigh(weights, scores, shape.scale_log2);
      }
      ring.end(keys_beside_k, copier);
      ring.ready = ring.after(ring.ready);

      Tier::template wait<STAGES - 2>();
      __syncthreads(); // V is there, and K was used
      ring.begin(first_of(WHOLE ? values : keys, row_after), keys_after, copier, shape.row_stride);
      if (warp_keys > 0) state.add_values(weights, ring.ready + by_row, warp_keys);
      ring.end(keys_after, copier);
      ring.ready = ring.after(ring.ready);

      row = row_after, row_after = row_later, path_keys = keys_after;
#pragma unroll
      for (int m = 0; m < WARP_TILES; ++m) seen[m][0] -= KEYS, seen[m][1] -= KEYS;
    }
    if (warp_pairs > 0) store(out, state, work, shared, first_pair, warp_pairs, kv_head * group, group, shape);
  }

  // out = O / sum, through the slot of the warp's queries, so that whole words are stored.
  static __device__ __forceinline__ void store(T *out, const Rows &state, const WorkItem &work, uint4 *shared,
                                               int first_pair, int warp_pairs, uint32_t head, uint32_t group,
                                               const Shape &shape) {
    const int lane = threadIdx.x % WARP;
    char *place = reinterpret_cast<char *>(shared) + first_pair * ROW_BYTES;
    __syncwarp(); // the queries were read
#pragma unroll
    for (int m = 0; m < WARP_TILES; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float inverse = __frcp_rn(quad_sum(state.sum[m][half]));
        char *row = place + (16 * m + 8 * half + lane / 4) * ROW_BYTES + lane % 4 * sizeof(uint32_t);
#pragma unroll
        for (int n = 0; n < DIM_BLOCKS; ++n) {
          // + 0: masked keys may have turned a -0 into +0, so no -0 is stored.
          const float first = state.out[m][n][2 * half] * inverse + 0.0f;
          const float second = state.out[m][n][2 * half + 1] * inverse + 0.0f;
          *reinterpret_cast<uint32_t *>(row + (n ^ lane / 4) * sizeof(uint4)) = pack2<T>(first, second);
        }
      }
    }
    __syncwarp();
    const int word = lane % WORDS;
    if (word * WIDE >= shape.head_dim) return;
#pragma unroll 4
    for (int row = lane / WORDS; row < warp_pairs; row += WARP / WORDS) {
      const uint32_t pair = work.first_head + first_pair + row;
      const size_t token = work.out_row + pair / group;
      T *target = out + (token * shape.q_heads + head + pair % group) * shape.head_dim + word * WIDE;
      *reinterpret_cast<uint4 *>(target) =
          *reinterpret_cast<const uint4 *>(place + row * ROW_BYTES + (word ^ row % 8) * sizeof(uint4));
    }
  }
};
