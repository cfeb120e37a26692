// seam_tiles — qkv[seam_row + i, kv columns] = qkv[sources[i], kv columns], or zeros where sources[i] is NO_ROW
//   qkv [rows, row_words] in/out, in words of 16 bytes; keys and values lie side by side in words
//   first_word .. first_word + words of a row · sources [count]
//   why         attention reads keys in tiles of consecutive rows. A tile of a path whose keys do not lie in such
//               rows is put together here, behind the last row of the same buffer. Where the path ends within the
//               tile there are zeros: a masked weight of 0 times another conversation's NaN would be NaN
//   grid        [count], one block per row of a seam tile; 256 threads, 16 bytes per thread and step
//   needs       rows of whole 16-byte words, 16-byte aligned; sources below seam_row, seam_row + count within qkv
//   cost        2 * 16 * words bytes per row, half of that for zeros, and 4 for its source -> memory bound
//   tiers       all
#include <cstdint>

constexpr int THREADS = 256;
constexpr uint32_t NO_ROW = 0xffffffffu;

extern "C" __global__ void __launch_bounds__(THREADS)
    seam_tiles(uint4 *qkv, const uint32_t *sources, uint32_t seam_row, int row_words, int first_word, int words) {
  const uint32_t source = sources[blockIdx.x];
  const uint4 *from = qkv + static_cast<size_t>(source) * row_words + first_word;
  uint4 *to = qkv + static_cast<size_t>(seam_row + blockIdx.x) * row_words + first_word;
  for (int word = threadIdx.x; word < words; word += THREADS) {
    to[word] = source == NO_ROW ? make_uint4(0, 0, 0, 0) : from[word];
  }
}
