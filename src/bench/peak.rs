//! What a device could compute in a second: given, measured on a CPU, or from the data sheet of a GPU. MFU is the share of
//! it that was reached.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use crate::backend::cpu::gemm::Math;
use crate::backend::cpu::{Isa, peak};
use crate::bench::args::ModelArgs;
use crate::cli::gpus::GPUS;
use crate::engine::Engine;
use crate::error::Result;

/// How long a CPU's peak is measured.
const TIME: Duration = Duration::from_millis(200);

/// A peak, and where it is from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Peak {
    /// Of all ranks together.
    pub(super) tflops: f64,
    pub(super) source: &'static str,
}

impl Peak {
    /// The peak that was given, or that the device has: measured, in the arithmetic and on as many threads as were asked
    /// for, where it is this CPU; none where nothing is known of it.
    pub(super) fn of(engine: &Engine, args: &ModelArgs, given: Option<f64>) -> Result<Option<Self>> {
        if let Some(tflops) = given {
            return Ok(Some(Self { tflops, source: "given" }));
        }
        if !engine.device().starts_with("CPU") {
            return Ok(Self::of_device(engine.device(), engine.plan().ranks));
        }
        let threads =
            args.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZeroUsize::get));
        let isa = Isa::detect();
        let measured = peak::flop_per_second(isa, Math::of(isa, args.cpu_math.into()), threads, TIME)?;
        Ok(measured.map(|flop| Self { tflops: flop / 1e12, source: "measured" }))
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
