// attention_sm90a — flash attention by Hopper's wgmma (attention_sm90a.cuh), its operands brought to shared memory as boxes
// by a thread of its own: the formula and the bits are those of attention_sm90a_simple.cu
//   arguments   query_map, kv_map: qkv as a tensor [rows, heads, head_dim], in boxes of 64 dims of a group's heads in ROWS /
//               group rows, and of one head in 64 rows; all but qkv of attention_sm90a_simple.cu; items, work * kv_heads
//   work        begins with a token's first head. A tile of tile_rows has 64 rows that can be read whole: where the path ends
//               within it, the rest is zeros, since a masked weight of 0 times another conversation's NaN would be NaN
//   block       128 rows at a time; two warpgroups multiply 64 each, with 232 registers a thread; of a third, with 40, one
//               thread brings boxes
//   grid        any number of blocks: of n, block b does items b, 2 n - 1 - b, 2 n + b, .., there and back again, so that
//               after a longer one a shorter one follows. With a block for each item, the hardware hands them out
//   pipeline    keys and values each go through a ring of two tiles, whose barriers say when a tile is full and when all
//               warps have done with it, so that the two warpgroups do not wait for each other. Queries have one place,
//               which is filled again while the last values are multiplied
//   tiles       of an odd number of halves, the last half is brought twice: its keys are masked
//   shared      192 KiB with d128, 96 KiB with d64, and the barriers, one block on a multiprocessor
//   needs       what attention_tensor.cuh needs; group <= ROWS
//   tiers       sm90a
#include "attention_sm90a.cuh"
#include "mbarrier.cuh"

constexpr int PRODUCER = GROUPS; // the warpgroup that brings boxes
constexpr int THREADS = (GROUPS + 1) * GROUP_WARPS * WARP;
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

template <int COUNT> __device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(COUNT));
}

template <int COUNT> __device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(COUNT));
}

// The index of the block's item of its turn; not below the number of items after the last one.
__device__ __forceinline__ int item_of(int turn) {
  const int blocks = gridDim.x, block = blockIdx.x;
  return turn * blocks + (turn % 2 == 0 ? block : blocks - 1 - block);
}

// Barriers of a ring of tiles: a full one has come, and all warps have done with an empty one. The tile of index n, counted
// over all items of the block, is at place n % STAGES.
struct Ring {
  uint32_t barriers; // address: full ones, then empty ones

  static constexpr int BYTES = 2 * STAGES * MBARRIER_BYTES;

  __device__ __forceinline__ uint32_t full(uint32_t tile) const { return barriers + tile % STAGES * MBARRIER_BYTES; }
  __device__ __forceinline__ uint32_t empty(uint32_t tile) const { return full(tile) + STAGES * MBARRIER_BYTES; }

  __device__ __forceinline__ void init() const {
    for (int stage = 0; stage < STAGES; ++stage) {
      mbarrier_init(full(stage), 1);
      mbarrier_init(empty(stage), GROUPS * GROUP_WARPS);
    }
  }

  __device__ __forceinline__ void wait_full(uint32_t tile) const { mbarrier_wait(full(tile), tile / STAGES % 2); }
  // Until the tile's place is empty, as all are at first.
  __device__ __forceinline__ void wait_empty(uint32_t tile) const { mbarrier_wait(empty(tile), tile / STAGES % 2 ^ 1); }
};

template <int HEAD_DIM> struct AttentionSm90aBoxes : AttentionSm90a<HEAD_DIM> {
  using Base = AttentionSm90a<HEAD_DIM>;
  using Base::COLUMN_BYTES, Base::TILE_BYTES, Base::QUERY_BYTES;

  // Places in shared memory.
  struct Places {
    uint32_t queries, keys, values, full_queries, empty_queries;
    Ring key_ring, value_ring;

    static constexpr int OUT = QUERY_BYTES + 2 * STAGES * TILE_BYTES, BARRIERS = OUT + QUERY_BYTES;

    __device__ __forceinline__ explicit Places(uint32_t start)
        : queries(start), keys(start + QUERY_BYTES), values(keys + STAGES * TILE_BYTES),
          full_queries(start + BARRIERS + 2 * Ring::BYTES), empty_queries(full_queries + MBARRIER_BYTES),
          key_ring{start + BARRIERS}, value_ring{start + BARRIERS + Ring::BYTES} {}

    __device__ __forceinline__ void init() const {
      key_ring.init();
      value_ring.init();
      mbarrier_init(full_queries, 1);
      mbarrier_init(empty_queries, GROUPS * GROUP_WARPS);
    }
  };

  // Rows of queries that no box fills, where a group's heads do not divide ROWS, are zeros for all items.
  static __device__ __forceinline__ void clear_rest(uint32_t queries, int group) {
    const int first = ROWS / group * group * SWIZZLE_BYTES + threadIdx.x * sizeof(uint4);
    for (int at = first; at < COLUMN_BYTES; at += THREADS * sizeof(uint4)) {
#pragma unroll
      for (int column = 0; column < QUERY_BYTES; column += COLUMN_BYTES) {
        st_shared_16(queries + column + at, make_uint4(0, 0, 0, 0));
      }
    }
  }

  // Brings queries, keys and values of the block's items.
  static __device__ __forceinline__ void produce(const Places &places, const BoxMap *query_map, const BoxMap *kv_map,
                                                 const WorkItem *all_work, const uint32_t *tile_rows,
                                                 const Shape &shape, int items) {
    const int group = shape.q_heads / shape.kv_heads;
    const int query_bytes = ROWS / group * group * Base::ROW_BYTES;
    uint32_t tile = 0; // counted over all items
    for (int turn = 0, item; (item = item_of(turn)) < items; ++turn) {
      const WorkItem work = all_work[item / shape.kv_heads];
      const int kv_head = item % shape.kv_heads;
      const uint32_t *rows = tile_rows + work.first_tile;
      const int last_row = (Part::path_keys(work, group) - 1) / KEYS;

      mbarrier_wait(places.empty_queries, turn % 2 ^ 1);
      mbarrier_arrive_expect(places.full_queries, query_bytes);
#pragma unroll
      for (int column = 0; column < HEAD_DIM / COLUMN; ++column) {
        copy_box(places.queries + column * COLUMN_BYTES, query_map, column * COLUMN, kv_head * group, work.query_row,
                 places.full_queries);
      }
#pragma unroll 1
      for (int row = 0; row <= last_row; row += 2, ++tile) {
        const uint32_t halves[2] = {rows[row], rows[min(row + 1, last_row)]};
        const auto bring = [&](const Ring &ring, uint32_t place, int head) {
          ring.wait_empty(tile);
          mbarrier_arrive_expect(ring.full(tile), TILE_BYTES);
#pragma unroll
          for (int n = 0; n < HEAD_DIM / COLUMN * 2; ++n) {
            const int column = n / 2, half = n % 2;
            copy_box(place + tile % STAGES * TILE_BYTES + column * COLUMN_BYTES + half * KEYS * SWIZZLE_BYTES, kv_map,
                     column * COLUMN, head, halves[half], ring.full(tile));
          }
        };
        bring(places.key_ring, places.keys, shape.q_heads + kv_head);
        bring(places.value_ring, places.values, shape.q_heads + shape.kv_heads + kv_head);
      }
    }
  }

  // What a warp knows of the tiles that are brought: waits for them, and says when it has done with them.
  struct Feed {
    const Places &places;
    uint64_t keys_start, values_start; // descriptors
    uint32_t first;                    // tiles of the block's earlier items
    bool is_speaker;                   // arrives for its warp

    __device__ __forceinline__ uint64_t keys(int tile) const {
      places.key_ring.wait_full(first + tile);
      return keys_start + (first + tile) % STAGES * (TILE_BYTES / DESCRIPTOR_UNIT);
    }

    __device__ __forceinline__ uint64_t values(int tile) const {
      places.value_ring.wait_full(first + tile);
      return values_start + (first + tile) % STAGES * (TILE_BYTES / DESCRIPTOR_UNIT);
    }

    __device__ __forceinline__ uint64_t last_values(int tile) const { return values(tile); }

    __device__ __forceinline__ void done_with_keys(int tile) const { arrive(places.key_ring.empty(first + tile)); }
    __device__ __forceinline__ void done_with_values(int tile) const { arrive(places.value_ring.empty(first + tile)); }
    __device__ __forceinline__ void done_with_queries() const { arrive(places.empty_queries); }
    __device__ __forceinline__ void next(int) const {}

    __device__ __forceinline__ void arrive(uint32_t barrier) const {
      if (is_speaker) mbarrier_arrive(barrier);
    }
  };

  // Computes a warp's rows of the block's items.
  static __device__ __forceinline__ void consume(const Places &places, char *out_place, bf16 *out, int warpgroup,
                                                 const WorkItem *all_work, const Shape &shape, int items) {
    const int warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0) % GROUP_WARPS;
    const uint32_t group = shape.q_heads / shape.kv_heads;
    const uint64_t queries = matrix_descriptor(places.queries + warpgroup * GROUP_ROWS * SWIZZLE_BYTES, 0);
    Feed feed{places, matrix_descriptor(places.keys, 0), matrix_descriptor(places.values, COLUMN_BYTES), 0,
              threadIdx.x % WARP == 0};
    for (int turn = 0, item; (item = item_of(turn)) < items; ++turn) {
      const WorkItem work = all_work[item / shape.kv_heads];
      const Part part(work, group, warpgroup, warp);
      float sums[Base::OUTS];
      typename Base::Rows state;
      mbarrier_wait(places.full_queries, turn % 2);
      Base::attend(feed, sums, state, part, queries, shape.scale_log2);
      feed.first += part.tiles;
      __syncwarp(); // the last item's rows have left the place
      Base::store(out, state, sums, work, part, out_place, item % shape.kv_heads * group, group, shape);
    }
  }

  static __device__ __forceinline__ void run(const BoxMap *query_map, const BoxMap *kv_map, bf16 *out,
                                             const WorkItem *work, const uint32_t *tile_rows, const Shape &shape,
                                             int items) {
    extern __shared__ __align__(1024) char shared[];
    const Places places(shared_address(shared));
    // From one lane, so that the compiler knows that the warp does not diverge on it.
    const int warpgroup = __shfl_sync(ALL_LANES, threadIdx.x / (GROUP_WARPS * WARP), 0);
    if (threadIdx.x == 0) places.init();
    clear_rest(places.queries, shape.q_heads / shape.kv_heads);
    fence_proxy_async();
    __syncthreads();
    if (warpgroup == PRODUCER) {
      release_registers<PRODUCER_REGISTERS>();
      if (threadIdx.x != PRODUCER * GROUP_WARPS * WARP) return;
      produce(places, query_map, kv_map, work, tile_rows, shape, items);
    } else {
      take_registers<CONSUMER_REGISTERS>();
      consume(places, shared + Places::OUT, out, warpgroup, work, shape, items);
    }
  }
};

#define ATTENTION_SM90A(NAME, HEAD_DIM)                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                             \
      NAME(const __grid_constant__ BoxMap query_map, const __grid_constant__ BoxMap kv_map, bf16 *out,                 \
           const WorkItem *work, const uint32_t *tile_rows, Shape shape, int items) {                                  \
    AttentionSm90aBoxes<HEAD_DIM>::run(&query_map, &kv_map, out, work, tile_rows, shape, items);                       \
  }

ATTENTION_SM90A(attention_sm90a_bf16_d64, 64)
ATTENTION_SM90A(attention_sm90a_bf16_d128, 128)
