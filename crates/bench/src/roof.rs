//! The roof: the time of a run at the rates that were measured of this device, in the same run of
//! `bench`.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use crate::args::ModelArgs;
use crate::kernels::{self, Yardsticks};
use kudos::internals::backend::cpu::gemm::Math;
use kudos::internals::backend::cpu::{Isa, peak};
use kudos::internals::backend::profile::{Class, Spent};
use kudos::{DeviceKind, Engine, Result};

/// Time for which each rate of a CPU is measured.
const TIME: Duration = Duration::from_millis(200);

/// The formula of the roof, in words.
pub(super) const ROOF_FORMULA: &str = "for each class of ops the longer of two times: its FLOP at the rate of a large matmul, \
    its fewest bytes at the rate of a copy within the device; for a run the sum over its classes, on one rank; tables, \
    embeddings, waits for streamed layers and all-reduces count nothing; on a CPU only FLOP count, at the rate of \
    multiply-adds in registers, or of tiles where the CPU has a matrix unit, of which attention in f32 takes twice as many \
    for its FLOP as matmuls do; the head's are in f32 by vector instructions";

/// The rates of one rank's device, per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    /// FLOP of the layers' matmuls.
    pub(super) matmul: f64,
    /// FLOP of attention, which on a CPU may take more instructions, or slower ones.
    pub(super) attention: f64,
    /// FLOP of the head, on a CPU by vector instructions.
    pub(super) score: f64,
    /// Bytes read and written; `None` on a CPU, whose caches hold most of what ops read and write.
    pub(super) bytes: Option<f64>,
}

impl Rates {
    /// Measures the device of an engine, which must be closed: the GPU's memory is needed. On a CPU
    /// in the arithmetic and on the number of threads of `args`; `None` where its peak is not
    /// known.
    pub(super) fn measure(engine: &Engine, args: &ModelArgs) -> Result<Option<Self>> {
        if engine.device().kind != DeviceKind::Cpu {
            let Yardsticks { flop_per_second, bytes_per_second } = kernels::yardsticks(engine.config())?;
            return Ok(Some(Self {
                matmul: flop_per_second,
                attention: flop_per_second,
                score: flop_per_second,
                bytes: Some(bytes_per_second),
            }));
        }
        let all = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (isa, threads) = (Isa::detect(), args.threads.unwrap_or_else(all));
        let math = Math::of(isa, args.cpu_math);
        // Ranks share the threads.
        let of_rank = |flop: f64| flop / engine.plan().ranks as f64;
        let measured = |math| Ok(peak::flop_per_second(isa, math, threads, TIME)?.map(of_rank));
        let matmul = measured(math)?;
        let score = if math == Math::F32 { matmul } else { measured(Math::F32)? };
        let (attention_math, share) = peak::of_attention(math);
        Ok(matmul.zip(score).map(|(matmul, score)| {
            let attention = share * if attention_math == math { matmul } else { score };
            Self { matmul, attention, score, bytes: None }
        }))
    }

    /// The roof of a class, in seconds; `None` where it has neither FLOP nor bytes that count.
    pub(super) fn seconds(&self, spent: &Spent) -> Option<f64> {
        let copied = spent.cost.bytes.zip(self.bytes).map(|(bytes, rate)| bytes as f64 / rate);
        let rate = match spent.class {
            Class::Attention => self.attention,
            Class::Score => self.score,
            _ => self.matmul,
        };
        let multiplied = spent.cost.flop / rate;
        Some(copied.map_or(multiplied, |copied| copied.max(multiplied))).filter(|&seconds| seconds > 0.0)
    }

    /// The sum of the roofs of all classes of a run.
    pub(super) fn seconds_of_all(&self, spent: &[Spent]) -> f64 {
        spent.iter().filter_map(|spent| self.seconds(spent)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kudos::internals::backend::profile::Cost;

    #[test]
    fn a_roof_is_the_longer_of_flop_and_bytes_and_classes_add_up() {
        let of = |class, flop, bytes| Spent { class, ops: 1, seconds: 9.0, cost: Cost { flop, bytes } };
        let gpu = Rates { matmul: 100.0, attention: 100.0, score: 100.0, bytes: Some(10.0) };
        assert_eq!(gpu.seconds(&of(Class::Qkv, 100.0, Some(5))), Some(1.0));
        assert_eq!(gpu.seconds(&of(Class::Qkv, 100.0, Some(20))), Some(2.0));
        assert_eq!(gpu.seconds(&of(Class::Rope, 0.0, Some(20))), Some(2.0));
        assert_eq!(gpu.seconds(&of(Class::Tables, 0.0, None)), None);
        let cpu = Rates { attention: 50.0, score: 25.0, bytes: None, ..gpu };
        assert_eq!(cpu.seconds(&of(Class::Qkv, 100.0, None)), Some(1.0));
        assert_eq!(cpu.seconds(&of(Class::Attention, 100.0, None)), Some(2.0));
        assert_eq!(cpu.seconds(&of(Class::Score, 100.0, None)), Some(4.0));
        assert_eq!(cpu.seconds(&of(Class::Rope, 0.0, None)), None);
        let run = [
            of(Class::Tables, 0.0, None),
            of(Class::Down, 100.0, Some(5)),
            of(Class::Attention, 100.0, Some(5)),
            of(Class::GateMul, 0.0, Some(20)),
        ];
        assert_eq!((gpu.seconds_of_all(&run), cpu.seconds_of_all(&run)), (4.0, 3.0));
    }
}
