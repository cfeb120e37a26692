//! The registers and shared memory of each entry, and the count of its warps that a multiprocessor
//! holds.

use std::collections::BTreeMap;

/// The compiler's version, then ptxas on each entry: written by `build.rs`.
const REPORTS: &str = include_str!(concat!(env!("OUT_DIR"), "/ptxas.txt"));

/// The limits of a multiprocessor of an architecture: CUDA programming guide, technical
/// specifications by compute capability. Registers are the same for all.
pub(crate) struct Multiprocessor {
    /// As ptxas writes it.
    pub(crate) arch: &'static str,
    threads: usize,
    blocks: usize,
    shared_bytes: usize,
    /// Shared memory that the driver keeps of each block's.
    reserved_bytes: usize,
}

const KIB: usize = 1 << 10;
const REGISTERS: usize = 64 * KIB;
/// Granularities of the allocation of registers to warps, and of warps to a multiprocessor.
const REGISTERS_STEP: usize = 256;
const WARPS_STEP: usize = 4;
const LANES: usize = 32;

const fn sm(arch: &'static str, threads: usize, blocks: usize, shared_kib: usize) -> Multiprocessor {
    // From sm_80 on the driver keeps 1 KiB.
    let reserved_bytes = if shared_kib > 64 { KIB } else { 0 };
    Multiprocessor { arch, threads, blocks, shared_bytes: shared_kib * KIB, reserved_bytes }
}

/// The architectures that the build makes machine code for.
pub(crate) const MULTIPROCESSORS: [Multiprocessor; 7] = [
    sm("75", 1024, 16, 64),
    sm("80", 2048, 32, 164),
    sm("86", 1536, 16, 100),
    sm("89", 1536, 24, 100),
    sm("90a", 2048, 32, 228),
    sm("100", 2048, 32, 228),
    sm("120", 1536, 24, 100),
];

impl Multiprocessor {
    /// Warps of blocks of `threads` with these registers and that much shared memory.
    pub(crate) fn warps(&self, threads: usize, resources: &Resources, dynamic_shared_bytes: usize) -> usize {
        let block_warps = threads.div_ceil(LANES);
        let warp_registers = (resources.registers * LANES).next_multiple_of(REGISTERS_STEP);
        let by_registers = REGISTERS / warp_registers / WARPS_STEP * WARPS_STEP / block_warps;
        let block_shared = resources.shared_bytes + dynamic_shared_bytes + self.reserved_bytes;
        let by_shared = self.shared_bytes.checked_div(block_shared).unwrap_or(usize::MAX);
        let by_threads = self.threads / LANES / block_warps;
        block_warps * by_registers.min(by_shared).min(by_threads).min(self.blocks)
    }
}

/// The report of ptxas on an entry on one architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Registers of a thread.
    pub(crate) registers: usize,
    /// Static shared memory of a block.
    pub(crate) shared_bytes: usize,
}

/// The compiler's release, such as `13.0, V13.0.88`.
pub(crate) fn compiler() -> &'static str {
    let (_, rest) = REPORTS.split_once("release ").expect("nvcc prints its release");
    rest.lines().next().unwrap_or_default()
}

/// The reports of ptxas, by entry and architecture.
pub(crate) fn resources() -> BTreeMap<(&'static str, &'static str), Resources> {
    let mut all = BTreeMap::new();
    let mut at = None;
    for line in REPORTS.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let (entry, rest) = rest.split_once("' for 'sm_").expect("ptxas names entry and architecture");
            at = Some((entry, rest.trim_end_matches('\'')));
        } else if let (Some(at), Some((_, used))) = (at, line.split_once("Used ")) {
            let number = |unit: &str| {
                let part = used.split(", ").find_map(|part| part.strip_suffix(unit));
                part.map_or(0, |number| number.trim().parse().expect("a number of ptxas"))
            };
            let found = Resources { registers: number(" registers"), shared_bytes: number(" bytes smem") };
            all.insert(at, found);
        }
    }
    all
}

/// The arithmetic of occupancy against figures that can be worked out by hand.
pub(crate) fn warps_are_those_of_the_limits() {
    let [turing, ampere, rtx30, ..] = MULTIPROCESSORS;
    let resources = |registers, shared_bytes| Resources { registers, shared_bytes };
    // By threads.
    assert_eq!(turing.warps(256, &resources(32, 0), 0), 32);
    assert_eq!(ampere.warps(256, &resources(32, 0), 0), 64);
    // By registers: 255 are given as 256, 8,192 a warp, 8 warps of 65,536.
    assert_eq!(ampere.warps(128, &resources(255, 0), 80 * KIB), 8);
    assert_eq!(ampere.warps(128, &resources(168, 0), 0), 12);
    // By shared memory: two of 81 KiB in 164, one in 100; two of 49 in 100; one of 64 in Turing's
    // 64.
    assert_eq!(ampere.warps(128, &resources(128, 0), 80 * KIB), 8);
    assert_eq!(rtx30.warps(128, &resources(128, 0), 80 * KIB), 4);
    assert_eq!(rtx30.warps(128, &resources(128, 0), 48 * KIB), 8);
    assert_eq!(turing.warps(256, &resources(200, 0), 64 * KIB), 8);
    // By blocks.
    assert_eq!(ampere.warps(32, &resources(16, 0), 0), 32);
}
