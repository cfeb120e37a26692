//! Counters of a launch, like a profiler's.

/// Counts of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Distinct 32-byte sectors of global memory read.
    pub sectors_read: u64,
    /// Distinct 32-byte sectors of global memory written.
    pub sectors_written: u64,
    /// Bytes that lanes requested to read.
    pub bytes_read: u64,
    /// Bytes that lanes requested to write.
    pub bytes_written: u64,
    /// Global loads, stores and atomics of a warp.
    pub requests: u64,
    /// Sum over requests of the distinct sectors of each; fully coalesced code has 32 * this =
    /// bytes requested.
    pub request_sectors: u64,
    /// Loads and stores of a warp in shared memory.
    pub shared_requests: u64,
    /// Passes that shared memory's 32 banks needed beyond the fewest possible.
    pub bank_conflicts: u64,
    /// Tensor-core instructions of a warp; of a warpgroup's, as many as of `mma.m16n8k16` have its matmuls.
    pub mma: u64,
    /// Instructions that warps executed.
    pub warp_instructions: u64,
}

/// One launch and its counts.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Kernel name.
    pub kernel: String,
    /// Device index.
    pub device: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Its counts.
    pub counters: Counters,
}

impl Launch {
    /// One JSON object.
    pub fn json(&self) -> String {
        let c = &self.counters;
        format!(
            concat!(
                "{{\"kernel\":\"{}\",\"device\":{},\"grid\":{:?},\"block\":{:?},\"sectors_read\":{},\"sectors_written\":{},",
                "\"bytes_read\":{},\"bytes_written\":{},\"requests\":{},\"request_sectors\":{},\"shared_requests\":{},",
                "\"bank_conflicts\":{},\"mma\":{},\"warp_instructions\":{}}}"
            ),
            self.kernel,
            self.device,
            self.grid,
            self.block,
            c.sectors_read,
            c.sectors_written,
            c.bytes_read,
            c.bytes_written,
            c.requests,
            c.request_sectors,
            c.shared_requests,
            c.bank_conflicts,
            c.mma,
            c.warp_instructions
        )
    }
}
