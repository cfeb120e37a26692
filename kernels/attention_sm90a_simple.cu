// attention_sm90a_simple — flash attention by Hopper's wgmma (attention_sm90a.cuh), all of it brought to shared memory by
// cp.async: the arguments and what is needed are those of attention_tensor.cuh, variant Full
//   tiles       where the path ends in the first half of one, the second half is zeros
//   block       128 rows, two warpgroups of 64; one barrier for each tile of keys
//   pipeline    while a tile is multiplied, the values of the same tile and the keys of the next one are in flight, each in
//               one of two slots
//   shared      160 KiB with d128, 80 KiB with d64, one block on a multiprocessor for its registers. O is stored through
//               Q's place
//   tiers       sm90a
#include "attention_sm90a.cuh"

constexpr int THREADS = GROUPS * GROUP_WARPS * WARP;

template <int HEAD_DIM> struct AttentionSm90aSimple : AttentionSm90a<HEAD_DIM> {
  using Base = AttentionSm90a<HEAD_DIM>;
  using Base::WORDS, Base::ROW_BYTES, Base::COLUMN_BYTES, Base::TILE_BYTES, Base::QUERY_BYTES;
  static constexpr int COPY_ROWS = THREADS / WORDS;

  static_assert(COPY_ROWS % 8 == 0 && KEYS % COPY_ROWS == 0, "a thread copies one word of every row");

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

  // The copies that this thread started, and those of all others, can be multiplied, and what all threads have waited for
  // has been.
  static __device__ __forceinline__ void arrive() {
    cp_async_wait_group<0>();
    fence_proxy_async();
    __syncthreads();
  }

  // Keys and values of an item's path, each in one of two slots.
  struct Feed {
    const Copier &copier;
    const bf16 *keys_of_head, *values_of_head;
    const uint32_t *rows; // of the path's tiles
    uint32_t keys_place, values_place;
    int path_keys, last_row, row_stride;
    uint32_t row, row_after; // of the tile whose keys were copied last

    __device__ __forceinline__ const bf16 *first_of(const bf16 *matrix, uint32_t row) const {
      return matrix + static_cast<size_t>(row) * row_stride;
    }

    // Starts copying the first tile's keys.
    __device__ __forceinline__ void begin() {
      row = rows[0], row_after = rows[min(1, last_row)];
      copier.begin(keys_place, first_of(keys_of_head, row), first_of(keys_of_head, row_after), path_keys, row_stride);
      cp_async_commit_group();
    }

    // Starts copying values of this tile and keys of the next one, to slots that all threads are done with.
    __device__ __forceinline__ void next(int tile) {
      const int keys_here = path_keys - tile * TILE, slot = tile % STAGES, slot_after = (tile + 1) % STAGES;
      copier.begin(values_place + slot * TILE_BYTES, first_of(values_of_head, row), first_of(values_of_head, row_after),
                   keys_here, row_stride);
      if (keys_here > TILE) {
        row = rows[2 * tile + 2], row_after = rows[min(2 * tile + 3, last_row)];
        copier.begin(keys_place + slot_after * TILE_BYTES, first_of(keys_of_head, row),
                     first_of(keys_of_head, row_after), keys_here - TILE, row_stride);
      }
      cp_async_commit_group();
    }

    // After this barrier keys of the tile and values of the last one are there; all are done with keys of the last and values
    // of the one before.
    __device__ __forceinline__ uint64_t keys(int tile) const {
      arrive();
      return matrix_descriptor(keys_place + tile % STAGES * TILE_BYTES, 0);
    }

    __device__ __forceinline__ uint64_t values(int tile) const {
      return matrix_descriptor(values_place + tile % STAGES * TILE_BYTES, COLUMN_BYTES);
    }

    __device__ __forceinline__ uint64_t last_values(int tile) const {
      arrive();
      return values(tile);
    }

    // A warp is done with them when it comes to the next barrier, in `keys` or `last_values`.
    __device__ __forceinline__ void done_with_keys(int) const {}
    __device__ __forceinline__ void done_with_values(int) const {}
    __device__ __forceinline__ void done_with_queries() const {}
  };

  static __device__ __forceinline__ void run(const bf16 *qkv, bf16 *out, const WorkItem *all_work,
                                             const uint32_t *tile_rows, const Shape &shape) {
    extern __shared__ __align__(1024) char shared[];
    const uint32_t query_place = shared_address(shared), keys_place = query_place + QUERY_BYTES;
    const uint32_t values_place = keys_place + STAGES * TILE_BYTES;
    // From one lane, so that the compiler knows that the warp does not diverge on it.
    const int warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0), warpgroup = warp / GROUP_WARPS;
    const uint32_t group = shape.q_heads / shape.kv_heads, kv_head = blockIdx.x % shape.kv_heads;
    const WorkItem work = all_work[blockIdx.x / shape.kv_heads];
    const bf16 *keys = qkv + static_cast<size_t>(shape.q_heads + kv_head) * shape.head_dim;
    const bf16 *values = keys + static_cast<size_t>(shape.kv_heads) * shape.head_dim;
    const int path_keys = Part::path_keys(work, group);
    const Part part(work, group, warpgroup, warp % GROUP_WARPS);

    const Copier copier(shape);
    Feed feed{copier, keys, values, tile_rows + work.first_tile, keys_place, values_place, path_keys,
              (path_keys - 1) / KEYS, shape.row_stride};
    begin_queries(query_place, qkv, work, kv_head * group, group, copier, shape);
    feed.begin();
    const uint64_t queries = matrix_descriptor(query_place + warpgroup * GROUP_ROWS * SWIZZLE_BYTES, 0);
    float sums[Base::OUTS];
    typename Base::Rows state;
    Base::attend(feed, sums, state, part, queries, shape.scale_log2);
    Base::store(out, state, sums, work, part, shared, kv_head * group, group, shape);
  }
};

#define ATTENTION_SM90A_SIMPLE(NAME, HEAD_DIM)                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                             \
      NAME(const bf16 *qkv, bf16 *out, const WorkItem *work, const uint32_t *tile_rows, Shape shape) {                 \
    AttentionSm90aSimple<HEAD_DIM>::run(qkv, out, work, tile_rows, shape);                                             \
  }

ATTENTION_SM90A_SIMPLE(attention_sm90a_simple_bf16_d64, 64)
ATTENTION_SM90A_SIMPLE(attention_sm90a_simple_bf16_d128, 128)
