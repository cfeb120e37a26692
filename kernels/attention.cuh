// attention — the arguments of every attention kernel, made by the host (src/backend/cuda/tiles.rs).
#pragma once

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
};
