//! What a device could compute in a second: given, or from the data sheet. MFU is the share of it that was reached.

use crate::engine::Engine;

/// 16-bit tensor cores with sums in f32, dense, in TFLOP/s, by the name that the driver has for the card. Cards of one
/// name that come in several speeds have each its own name here, and those that are missing have no MFU.
const DATA_SHEETS: [(&str, f64); 10] = [
    ("Tesla T4", 65.0),
    ("NVIDIA A100-SXM4-40GB", 312.0),
    ("NVIDIA A100-SXM4-80GB", 312.0),
    ("NVIDIA A100-PCIE-40GB", 312.0),
    ("NVIDIA A100 80GB PCIe", 312.0),
    ("NVIDIA L40S", 362.0),
    ("NVIDIA GeForce RTX 4090", 165.2),
    ("NVIDIA H100 80GB HBM3", 989.0),
    ("NVIDIA H200", 989.0),
    ("NVIDIA B200", 2250.0),
];

/// A peak, and where it is from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Peak {
    /// Of all ranks together.
    pub(super) tflops: f64,
    pub(super) source: &'static str,
}

impl Peak {
    /// The peak that was given, or that the device is known to have.
    pub(super) fn of(engine: &Engine, given: Option<f64>) -> Option<Self> {
        let given = given.map(|tflops| Self { tflops, source: "given" });
        given.or_else(|| Self::of_device(engine.device(), engine.plan().ranks))
    }

    fn of_device(device: &str, ranks: usize) -> Option<Self> {
        let (_, tflops) = DATA_SHEETS.iter().find(|(name, _)| device.contains(&format!("({name},")))?;
        Some(Self { tflops: ranks as f64 * tflops, source: "data sheet" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cards_of_exactly_that_name_are_known() {
        let of = |name: &str, ranks| {
            let device = format!("CUDA, GPU 0 ({name}, compute capability 9.0, sm80 kernels)");
            Peak::of_device(&device, ranks).map(|peak| peak.tflops)
        };
        assert_eq!(of("NVIDIA H200", 2), Some(1978.0));
        assert_eq!(of("NVIDIA H100 PCIe", 1), None);
        assert_eq!(Peak::of_device("CPU, 2 threads, avx512", 1), None);
    }
}
