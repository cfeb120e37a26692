// gather_rows — out[i,:] = x[rows[i],:]
//   x [any, width] · rows [count] · out [count, width]; of any type: rows are `words` words of 16 bytes
//   grid        [count], one block per row of out; 256 threads, 16 bytes per thread and step
//   needs       rows of whole 16-byte words, 16-byte aligned; every rows[i] within x; out apart from x
//   cost        2 * 16 * words bytes per row, and 4 for its index -> memory bound
//   tiers       all
#include <cstdint>

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS)
    gather_rows(const uint4 *__restrict__ x, const uint32_t *__restrict__ rows, uint4 *__restrict__ out, int words) {
  const uint4 *from = x + static_cast<size_t>(rows[blockIdx.x]) * words;
  uint4 *to = out + static_cast<size_t>(blockIdx.x) * words;
  for (int word = threadIdx.x; word < words; word += THREADS) to[word] = from[word];
}
