//! Well-known GPUs, by their data sheets.

use kudos::internals::backend::tier::CudaTier::{self, Sm75, Sm80};

/// A GPU, by its data sheet.
#[derive(Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only `kudos plan` reads every field"))]
pub struct KnownGpu {
    /// Its usual name.
    pub name: &'static str,
    /// The driver's names of the cards with this peak of tensor cores. Rates of memory and links
    /// are those of the first.
    pub driver_names: &'static [&'static str],
    /// Memory as the driver reports it.
    pub mib: usize,
    /// The tier of its kernels.
    pub tier: CudaTier,
    /// Peak of 16-bit tensor cores with accumulation in f32, dense.
    pub tflops: f64,
    /// Peak of its memory.
    pub memory_gb_s: f64,
    /// Peak of its PCIe link in one direction.
    pub link_gb_s: f64,
    /// Peak of its link to the other GPUs of a machine in one direction: NVLink through a switch
    /// where the card is made for one, otherwise PCIe.
    pub peer_gb_s: f64,
}

/// Share of the tensor cores' data sheet rate that matmuls of this size reach, by published
/// measurements.
pub const TFLOPS_REACHED: f64 = 0.75;

/// Share of a link's data sheet rate that copies from pinned memory, and collectives over NVLink,
/// reach, by published measurements.
pub const LINK_REACHED: f64 = 0.8;

/// PCIe 3, 4 and 5, 16 lanes.
const PCIE: [f64; 3] = [15.75, 31.5, 63.0];

/// NVLink 3, 4 and 5.
const NVLINK: [f64; 3] = [300.0, 450.0, 900.0];

/// The GPUs of `kudos plan`, and whose peaks `bench` knows.
pub const GPUS: [KnownGpu; 9] = [
    known("T4", &["Tesla T4"], 15_360, Sm75, 65.0, [320.0, PCIE[0], PCIE[0]]),
    known("RTX 2080 Ti", &["NVIDIA GeForce RTX 2080 Ti"], 11_264, Sm75, 53.8, [616.0, PCIE[0], PCIE[0]]),
    known(
        "A100 40GB",
        &["NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"],
        40_960,
        Sm80,
        312.0,
        [1555.0, PCIE[1], NVLINK[0]],
    ),
    known(
        "A100 80GB",
        &["NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"],
        81_920,
        Sm80,
        312.0,
        [2039.0, PCIE[1], NVLINK[0]],
    ),
    known("L40S", &["NVIDIA L40S"], 46_068, Sm80, 362.0, [864.0, PCIE[1], PCIE[1]]),
    known("RTX 4090", &["NVIDIA GeForce RTX 4090"], 24_564, Sm80, 165.2, [1008.0, PCIE[1], PCIE[1]]),
    known("H100", &["NVIDIA H100 80GB HBM3"], 81_559, Sm80, 989.0, [3350.0, PCIE[2], NVLINK[1]]),
    known("H200", &["NVIDIA H200"], 143_771, Sm80, 989.0, [4800.0, PCIE[2], NVLINK[1]]),
    known("B200", &["NVIDIA B200"], 183_359, Sm80, 2250.0, [8000.0, PCIE[2], NVLINK[2]]),
];

const fn known(
    name: &'static str,
    driver_names: &'static [&'static str],
    mib: usize,
    tier: CudaTier,
    tflops: f64,
    [memory_gb_s, link_gb_s, peer_gb_s]: [f64; 3],
) -> KnownGpu {
    KnownGpu { name, driver_names, mib, tier, tflops, memory_gb_s, link_gb_s, peer_gb_s }
}
