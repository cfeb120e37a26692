// wgmma — matmuls of a warpgroup, four warps, on Hopper's tensor cores: single PTX instructions, one per function.
//
// sum [64, N] += a [64, 16] * b [16, N], bf16 into f32. They run on while the warps do: a sum and registers of a belong to
// them until a wait for their group. Rows 16 w ..= 16 w + 15 of a and sum are of warp w, whose lanes hold them as those of
// mma.m16n8k16 do: of each 16 rows and 8 columns, sum[4 n + i] is row lane / 4 + 8 * (i / 2), column 8 n + 2 * (lane % 4) +
// i % 2.
//
// Operands in shared memory are rows of 128 bytes, 64 elements, eight of them 1,024 bytes at a multiple of 1,024; in row r the
// 16-byte word w lies at w ^ r % 8. A wider matrix is several of these side by side, each with all of its rows.
#pragma once

#include <cstdint>

// Bytes of a row, and of eight.
constexpr int SWIZZLE_BYTES = 128;
constexpr int SWIZZLE_ROWS_BYTES = 8 * SWIZZLE_BYTES;

// The operand that begins at `address`; rows that are the inner dimension's go on `next_columns` bytes later after 64 columns.
// An offset in bytes / 16 may be added.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t next_columns) {
  return static_cast<uint64_t>(address >> 4) | static_cast<uint64_t>(next_columns >> 4) << 16 |
         static_cast<uint64_t>(SWIZZLE_ROWS_BYTES >> 4) << 32 | 1ull << 62;
}

// What this thread wrote to its registers may be read by the warpgroup's matmuls from now on.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" : : : "memory"); }

// What this thread wrote to shared memory may be read by matmuls after the next barrier.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

// Groups the matmuls that were started since the last group.
__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}

// Waits until no more than NEWEST groups are in flight.
template <int NEWEST> __device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(NEWEST) : "memory");
}

// Lets the compiler neither move nor copy registers of matmuls across this point.
template <int COUNT> __device__ __forceinline__ void hold(float (&values)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(values[i]) : : "memory");
}

// Names and operands of sums.
#define WGMMA_NAMES_32                                                                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, " \
  "%25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_64                                                                                                  \
  WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "    \
                 "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_SUMS_8(sum, i)                                                                                            \
  "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]),               \
      "+f"(sum[i + 6]), "+f"(sum[i + 7])
#define WGMMA_SUMS_32(sum, i)                                                                                           \
  WGMMA_SUMS_8(sum, i), WGMMA_SUMS_8(sum, i + 8), WGMMA_SUMS_8(sum, i + 16), WGMMA_SUMS_8(sum, i + 24)
#define WGMMA_SUMS_64(sum) WGMMA_SUMS_32(sum, 0), WGMMA_SUMS_32(sum, 32)

// sum [64, 128] = (sum or 0) + a * b, both in shared memory: rows of a and columns of b have the inner dimension along them.
__device__ __forceinline__ void wgmma_m64n128k16(float (&sum)[64], uint64_t a, uint64_t b, bool accumulates) {
  asm volatile("{\n"
               ".reg .pred accumulates;\n"
               "setp.ne.b32 accumulates, %66, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_NAMES_64
               "}, %64, %65, accumulates, 1, 1, 0, 0;\n"
               "}"
               : WGMMA_SUMS_64(sum)
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulates)));
}

// sum [64, 128] += a * b: a in registers, b in shared memory with its columns along rows.
__device__ __forceinline__ void wgmma_m64k16_by_rows(float (&sum)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_NAMES_64
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
               : WGMMA_SUMS_64(sum)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// The same, sum [64, 64].
__device__ __forceinline__ void wgmma_m64k16_by_rows(float (&sum)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_NAMES_32
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
               : WGMMA_SUMS_32(sum, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
