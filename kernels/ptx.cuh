// ptx — single PTX instructions, one per function, named like them.
#pragma once

#include <cstdint>

constexpr float LOG2_E = 1.4426950408889634f;

// 2^x within 2 units in the last place; a result below 2^-126 is 0. 2^-inf = 0 and 2^0 = 1 are exact.
__device__ __forceinline__ float ex2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x within 1 unit in the last place; a result below 2^-126 is 0.
__device__ __forceinline__ float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The address of shared memory that ldmatrix and cp.async take.
__device__ __forceinline__ uint32_t shared_address(const void *place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}

// Stores 16 bytes at an address in shared memory.
__device__ __forceinline__ void st_shared_16(uint32_t target, uint4 word) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(target), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lanes 8j ..= 8j + 7 give the addresses of the rows of matrix j. Lane l gets
// elements 2 * (l % 4) and the next of row l / 4 of each.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&matrices)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
}

// ldmatrix_x4 with each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&matrices)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row)
               : "memory");
}

// sum [16, 8] += a [16, 8] * b [8, 8], fp16 into f32. Lane l holds, two neighbours to a register: rows l / 4 and
// l / 4 + 8 of a and of sum, columns 2 * (l % 4) and the next; of b those elements of its transpose.
__device__ __forceinline__ void mma_m16n8k8_f16(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(b));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// sum [16, 8] += a [16, 16] * b [16, 8], bf16 into f32: as two of m16n8k8, a[0], a[1] with b0 and a[2], a[3] with b1.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Starts copying `bytes` (16, or 0) from global memory, past L1; the rest of the 16 bytes becomes zeros. With 0, the
// source is not touched.
__device__ __forceinline__ void cp_async_16(uint32_t target, const void *source, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :
               : "r"(target), "l"(source), "r"(bytes)
               : "memory");
}

// Groups the copies that this thread started since its last group.
__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Waits until no more than NEWEST of this thread's groups are in flight.
template <int NEWEST> __device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" : : "n"(NEWEST) : "memory");
}
#endif
