// mbarrier — barriers in shared memory that count arrivals and bytes, and copies of boxes whose bytes they count, on
// Hopper: single PTX instructions, one per function.
//
// A barrier is 8 bytes. Its phase is complete when as many arrivals as it was initialised with have come, and all bytes that
// arrivals have announced; then the next phase begins. A phase is named by its parity: that of the first is 0, and until it
// is complete a wait for parity 1 returns at once. A thread that has waited for a phase sees what came before its arrivals.
#pragma once

#include <cstdint>

constexpr int MBARRIER_BYTES = 8;

// A tensor in global memory and a box of it, encoded by the driver.
struct alignas(64) BoxMap {
  uint64_t opaque[16];
};

// With fence_proxy_async after it, copies may use the barrier, too, after the next one of the block.
__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(barrier) : "memory");
}

// Arrives, and announces bytes that copies are to bring in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(barrier), "r"(bytes) : "memory");
}

// Waits until the phase of this parity is complete.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile("{\n"
               ".reg .pred complete;\n"
               "WAIT:\n"
               "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
               "@complete bra.uni DONE;\n"
               "bra.uni WAIT;\n"
               "DONE:\n"
               "}"
               :
               : "r"(barrier), "r"(parity)
               : "memory");
}

// Starts copying the box of a map's tensor of three dims that begins at these indices, the fastest first. What lies beyond
// the tensor becomes zeros, and its bytes count as well.
__device__ __forceinline__ void copy_box(uint32_t target, const BoxMap *map, int first, int second, int third,
                                         uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
               "[%1, {%2, %3, %4}], [%5];"
               :
               : "r"(target), "l"(map), "r"(first), "r"(second), "r"(third), "r"(barrier)
               : "memory");
}
