//! The peak of a device: given, measured on a CPU, or from the data sheet of a GPU. MFU is the
//! share of it that was reached.

use crate::roof::Rates;
use kudos::{DeviceKind, Engine};
use kudos_cli::gpus::GPUS;

/// A peak and its source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Peak {
    /// The peak of all ranks together.
    pub(super) tflops: f64,
    pub(super) source: &'static str,
}

impl Peak {
    /// The peak that was given, the measured rate of a CPU, or the data sheet's of a GPU; `None`
    /// where none is known.
    pub(super) fn of(engine: &Engine, given: Option<f64>, rates: Option<Rates>) -> Option<Self> {
        let ranks = engine.plan().ranks;
        match given {
            Some(tflops) => Some(Self { tflops, source: "given" }),
            None if engine.device().kind == DeviceKind::Cpu => {
                rates.map(|rates| Self { tflops: ranks as f64 * rates.matmul / 1e12, source: "measured" })
            }
            None => Self::of_device(&engine.device().to_string(), ranks),
        }
    }

    fn of_device(device: &str, ranks: usize) -> Option<Self> {
        let is_named = |name: &&str| device.contains(&format!("({name},"));
        let known = GPUS.iter().find(|known| known.driver_names.iter().any(is_named))?;
        Some(Self { tflops: ranks as f64 * known.tflops, source: "data sheet" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cards_of_an_exact_name_are_known() {
        let of = |name: &str, ranks| {
            let device = format!("CUDA, GPU 0 ({name}, compute capability 9.0, sm80 kernels)");
            Peak::of_device(&device, ranks).map(|peak| peak.tflops)
        };
        assert_eq!(of("NVIDIA H200", 2), Some(1978.0));
        assert_eq!(of("NVIDIA H100 PCIe", 1), None);
        assert_eq!(Peak::of_device("CPU, 2 threads, avx512", 1), None);
    }
}
