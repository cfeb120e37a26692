//! Golden bits: logits of every model of `tests/fixtures` and of the demo, in every arithmetic,
//! compared bit for bit with `bits.json`.
//!
//! **No bit changes unless the commit says that it does, and why.** Other tests compare runs with
//! each other, or allow 1e-4 against Transformers; this one compares logits from one commit to the
//! next. `make golden` writes the file again, with AMX emulated where the CPU lacks it. With
//! `KUDOS_WRITE_GOLDEN=1` either test binary alone writes the sections that it can compute, and
//! keeps the others. The sections:
//!
//! | section | arithmetic | computed |
//! |---|---|---|
//! | `portable` | f32, products rounded before they are added | anywhere, by the library's unit tests; here without AVX2 |
//! | `f32-vector` | f32, multiply and add fused: equal bits on AVX2, AVX-512 and NEON | with AVX2 or NEON |
//! | `f32-amx` | f32 as exact sums of three bf16 values, on AMX | emulated anywhere, by the library's unit tests; here with AMX |
//! | `bf16-avx512` | bf16 products by VDPBF16PS, attention in f32 | emulated anywhere, as above; here on AMD's CPUs with that instruction |
//! | `bf16-amx` | bf16 products and attention on AMX | emulated anywhere, as above; here with AMX |
//! | `softgpu sm75`, `softgpu sm80` | each tier's kernels on the software GPU, of any compute capability | only there: tensor cores and approximate functions of hardware give other bits |
//! | `softgpu sm90a` | as `softgpu sm80`, but for attention by `attention_sm90a.cu`, of models that it is for | as above, at compute capability 9.0 |
//!
//! The library's unit tests (`src/engine/golden.rs`) select instructions and emulate those that
//! this CPU lacks; here the engine selects them, as it does for its users, and a section that it
//! does not select is reported as ignored.

mod bits;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use kudos::internals::config::ModelConfig;
use kudos::internals::shard::allowed_ranks;
use kudos::{CpuMath, CpuOptions, Device, Engine};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let arithmetics = [cpu_arithmetics(), cuda::arithmetics()].concat();
    let mut trials = vec![Trial::test("the_file_has_every_section_model_and_case", || {
        bits::is_whole();
        Ok(())
    })];
    for (section, ranks) in bits::SECTIONS {
        let name = section.strip_suffix(", 2 ranks").unwrap_or(section);
        let found =
            arithmetics.iter().find(|found| found.section == name && ranks <= found.ranks_max).cloned();
        let ignored = found.is_none() && !(name.ends_with("-amx") && amx_is_required());
        let run = move || {
            let arithmetic = found.ok_or("no device of this machine computes in this arithmetic")?;
            arithmetic.hold(section, ranks);
            Ok::<(), Failed>(())
        };
        trials.push(Trial::test(format!("bits are golden: {section}"), run).with_ignored_flag(ignored));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Returns true if `KUDOS_TEST_REQUIRE` names AMX, as the library's unit tests read it.
fn amx_is_required() -> bool {
    std::env::var("KUDOS_TEST_REQUIRE").is_ok_and(|required| required.split(',').any(|name| name == "amx"))
}

/// An arithmetic that this machine has.
#[derive(Clone)]
struct Arithmetic {
    section: String,
    /// The device that computes it.
    name: String,
    device: Device,
    /// The file of its attention kernel, where it is not the default.
    attention: Option<&'static str>,
    ranks_max: usize,
}

impl Arithmetic {
    fn hold(&self, section: &str, ranks: usize) {
        // All-reduces of two engines on the same GPUs could wait for each other for ever.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = (ranks > 1).then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
        bits::hold(section, &self.name, usize::MAX, |folder| {
            let engine = self.open(folder, ranks)?;
            Some(move |sequences: &[Vec<u32>]| -> Vec<Vec<f32>> {
                engine.score(sequences).into_iter().map(|score| score.unwrap().logits).collect()
            })
        });
    }

    fn open(&self, folder: &Path, ranks: usize) -> Option<Engine> {
        let config = ModelConfig::read(folder).unwrap();
        // On GPUs a rank's part of the MLP is a multiple of a vector's elements.
        let divides = matches!(self.device, Device::Cpu(_)) || (config.ffn / ranks).is_multiple_of(8);
        if ranks > 1 && !(allowed_ranks(&config).contains(&ranks) && divides) {
            return None;
        }
        let (mut device, count) = (self.device.clone(), Some(ranks));
        match &mut device {
            Device::Cpu(cpu) => (cpu.ranks, cpu.threads) = (count, count),
            Device::Cuda(cuda) => {
                (cuda.ranks, cuda.attention) = (count, self.attention.map(str::to_owned));
            }
            other => panic!("{other:?} leaves the choice of the device"),
        }
        match Engine::builder(folder).device(device).open() {
            // This attention kernel is for heads up to some width, without windows and caps.
            Err(error) if self.attention.is_some() && error.to_string().contains("does not fit") => None,
            engine => Some(engine.unwrap()),
        }
    }
}

/// Returns the arithmetics of this CPU, with sections by the instructions that the engine reports.
fn cpu_arithmetics() -> Vec<Arithmetic> {
    let arithmetics = [CpuMath::F32, CpuMath::F32Vector, CpuMath::Bf16].map(|cpu_math| {
        let device = Device::Cpu(CpuOptions { math: cpu_math, threads: Some(1), ..CpuOptions::default() });
        let engine = Engine::builder(&bits::models()[0].folder).device(device.clone()).open().unwrap();
        let instructions = &engine.device().name;
        let section = match (instructions.as_str(), cpu_math) {
            ("portable", _) => "portable",
            ("avx2+fma" | "avx512" | "neon", _) => "f32-vector",
            ("avx512-bf16", CpuMath::Bf16) => "bf16-avx512",
            ("avx512+amx", CpuMath::F32) => "f32-amx",
            ("avx512+amx", CpuMath::Bf16) => "bf16-amx",
            other => panic!("no section has the bits of {other:?}"),
        };
        let (section, name) = (section.to_owned(), instructions.clone());
        Arithmetic { section, name, device, attention: None, ranks_max: 2 }
    });
    arithmetics.into()
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    pub(super) fn arithmetics() -> Vec<super::Arithmetic> {
        Vec::new()
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use kudos::internals::backend::cuda::kernels::ATTENTION;
    use kudos::internals::backend::cuda::probe::devices;
    use kudos::{CudaOptions, CudaTier, GemmTuning};

    use super::Arithmetic;

    /// The file of attention kernels that has a section of its own.
    const HOPPER: &str = "sm90a";

    /// Returns the arithmetic of each tier that the software GPU runs, and that with Hopper's attention.
    pub(super) fn arithmetics() -> Vec<Arithmetic> {
        let found = match devices() {
            Ok(found) => found,
            Err(error) => {
                eprintln!("golden: {error}");
                assert!(std::env::var_os("KUDOS_TEST_GPU").is_none(), "a GPU is required");
                return Vec::new();
            }
        };
        let info = &found[0];
        eprintln!("golden: on {} with compute capability {}", info.name, info.capability);
        if info.has_clock {
            let required = std::env::var("KUDOS_TEST_GPU").is_ok_and(|gpu| gpu == "softgpu");
            assert!(!required, "the software GPU is required");
            eprintln!("golden: not run: the file has no bits of hardware GPUs");
            return Vec::new();
        }
        let tiers = CudaTier::ALL.into_iter().filter(|&tier| info.capability.runs(tier));
        let arithmetic = |tier: CudaTier, attention: Option<&'static str>| Arithmetic {
            section: format!("softgpu {}", attention.unwrap_or(tier.name())),
            name: format!("{}, compute capability {}", info.name, info.capability),
            device: CudaOptions { tier: Some(tier), gemm_tuning: GemmTuning::Off, ..CudaOptions::default() }
                .into(),
            attention,
            ranks_max: found.len(),
        };
        let is_hopper = ATTENTION
            .iter()
            .any(|kernel| kernel.stem.ends_with(HOPPER) && kernel.arch.runs_on(info.capability));
        let hopper = is_hopper.then(|| arithmetic(CudaTier::Sm80, Some(HOPPER)));
        tiers.map(|tier| arithmetic(tier, None)).chain(hopper).collect()
    }
}
