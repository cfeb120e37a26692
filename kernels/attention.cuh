// attention — the arguments of every attention kernel, made by the host (src/backend/cuda/tiles.rs).
#pragma once

#include "ptx.cuh"

#include <cstdint>

// Keys of a tile: at consecutive rows, tile j of a path holds its positions KEYS * j ..= KEYS * j + KEYS - 1.
constexpr int KEYS = 64;

// The work of one block, for each kv head: the pairs (token, head of the kv head's group) first_head ..< first_head +
// pairs, counted from query_row's head 0 on. Pair p is head p % group of token p / group.
struct WorkItem {
  uint32_t query_row;  // the row of qkv with the first token's queries
  uint32_t out_row;    // the row of out for the first token
  uint32_t position;   // the first token's position; the next tokens' follow
  uint32_t first_head; // below group: the head of the first pair
  uint32_t pairs;      // number of pairs, 1 to the rows of a block
  uint32_t first_tile; // index of the path's first tile in tile_rows
};

struct Shape {
  int row_stride;
  int head_dim;
  int q_heads;
  int kv_heads;
  float scale_log2; // scale * log2(e)
  // Of entries with Variant::WindowCap alone:
  int window;      // keys that a query sees, itself included: 1 to 2^30, which is beyond every position
  float cap_log2;  // 2 * log2(e) * scale / cap, or 0 where there is no cap
  float cap_score; // cap / scale
};

// The keys that a query sees, and their scores.
enum class Variant {
  Full,      // all keys up to its own; scores as they are
  WindowCap, // the last `window` of those; cap * tanh(score / cap), where there is a cap
};

// The maximum of a row that has seen no key. A row whose window begins behind a tile sees none of it: with -inf, the
// difference of two maxima would be NaN there. Every score is far above this, and 2^(this - score) is 0, so that such a
// tile changes nothing.
template <Variant VARIANT> constexpr float MAXIMUM_NONE = VARIANT == Variant::Full ? -INFINITY : -1e30f;

// Takes the tiles before the window of the block's first token from its path, and counts its position from there on.
template <Variant VARIANT> __device__ __forceinline__ void skip_tiles(WorkItem &work, const Shape &shape) {
  if constexpr (VARIANT == Variant::WindowCap) {
    const uint32_t tiles = max(0, static_cast<int>(work.position) + 1 - shape.window) / KEYS;
    work.first_tile += tiles;
    work.position -= tiles * KEYS;
  }
}

// A score q . k with its cap, in the same unit: times scale_log2, it is log2(e) * cap * tanh(scale * score / cap).
// tanh(x) = 1 - 2 / (1 + 2^(2 log2(e) x)), within about 2^-22 of 1, and for infinite x too.
__device__ __forceinline__ float capped(float score, const Shape &shape) {
  return fmaf(rcp_approx(1.0f + ex2_approx(score * shape.cap_log2)), -2.0f * shape.cap_score, shape.cap_score);
}
