//! Every CUDA kernel, through its wrapper, against a naive f64 computation with the same rounding
//! points.
//!
//! They run on the first GPU that the driver shows, for each tier that it can run; those of
//! attention, for each attention kernel that fits it. Without a GPU they are reported as ignored,
//! and counted; with `KUDOS_TEST_GPU` set to anything, its absence is a failure. Tests of memory
//! traffic need a GPU that counts it, and are ignored on others.

mod attention;
mod boxes;
mod devices;
mod gemm;
mod launches;
mod least;
mod nccl;
mod numbers;
mod occupancy;
mod page;
mod planted;
mod rows;
mod sectors;
mod staging;
mod windows;
mod work;

use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};

use kudos::CudaTier;
use kudos::internals::backend::cuda::context::Context;
use kudos::internals::backend::cuda::format::ActivationFormat;
use kudos::internals::backend::cuda::kernels::{ATTENTION, AttentionFeatures, AttentionKernel};
use kudos::internals::backend::cuda::ops::Ops;
use kudos::internals::backend::cuda::probe::{DeviceInfo, devices};
use libtest_mimic::{Arguments, Trial};

/// A test: its name, and the function that runs it on a GPU.
type Test = (&'static str, fn(&Gpu));

/// A test of one attention kernel.
type AttentionTest = (&'static str, fn(&Gpu, &'static AttentionKernel));

/// Tests that count launches take it for writing, all others for reading: while a test counts, no
/// other uses the GPU.
static TURNS: RwLock<()> = RwLock::new(());

/// The GPU of the tests, with a tier.
#[derive(Clone)]
pub(crate) struct Gpu {
    info: DeviceInfo,
    pub(crate) tier: CudaTier,
    pub(crate) format: ActivationFormat,
}

impl Gpu {
    /// Kernels for heads of `head_dim`, in a context of their own.
    pub(crate) fn ops(&self, head_dim: usize) -> Ops {
        Ops::new(Context::open(&self.info).unwrap(), self.tier, head_dim).unwrap()
    }

    /// Kernels with this attention kernel, in a context of their own.
    pub(crate) fn ops_with(&self, attention: &'static AttentionKernel) -> Ops {
        Ops::with_attention(Context::open(&self.info).unwrap(), attention).unwrap()
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Whether the attention kernel is one of this tier's format and fits this GPU.
    fn can(&self, attention: &AttentionKernel) -> bool {
        attention.fits(&self.info, self.format, attention.head_dim, AttentionFeatures::NONE)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Bugs are planted on the software GPU, whose faults must end with the context for the tests
    // after them; a real GPU is given no reason to fault.
    // SAFETY: this is the only thread.
    unsafe { std::env::set_var("SOFTGPU_STICKY", "context") };
    let found = devices();
    if let Err(error) = &found {
        eprintln!("kernels: {error}");
        if std::env::var_os("KUDOS_TEST_GPU").is_some() {
            return ExitCode::FAILURE;
        }
    }
    let info = found.ok().map(|mut devices| devices.remove(0));
    if let Some(info) = &info {
        eprintln!("kernels: on {} with compute capability {}", info.name, info.capability);
    }
    let counters = info.as_ref().and_then(|_| launches::Counters::find());
    let has_nccl = nccl::is_present();
    let mut trials = Vec::new();
    let mut gpus = Vec::new();
    for tier in CudaTier::ALL {
        if info.as_ref().is_some_and(|info| !info.capability.runs(tier)) {
            continue;
        }
        let format = ActivationFormat::of(tier);
        let gpu = info.clone().map(|info| Gpu { info, tier, format });
        for (name, test) in [rows::TESTS, gemm::TESTS, staging::TESTS].concat() {
            trials.push(trial(&format!("{name} ({format:?})"), gpu.clone(), move |gpu| {
                let _turn = TURNS.read().unwrap_or_else(PoisonError::into_inner);
                test(gpu);
            }));
        }
        for &(name, test) in devices::ALONE {
            trials.push(trial(&format!("{name} ({format:?})"), gpu.clone(), move |gpu| {
                let _turn = TURNS.write().unwrap_or_else(PoisonError::into_inner);
                test(gpu);
            }));
        }
        for &(name, test) in nccl::TESTS {
            let found = gpu.clone().filter(|_| has_nccl);
            trials.push(trial(&format!("{name} ({format:?})"), found, move |gpu| {
                let _turn = TURNS.write().unwrap_or_else(PoisonError::into_inner);
                test(gpu);
            }));
        }
        let able = |kernel: &&AttentionKernel| gpu.as_ref().is_none_or(|gpu| gpu.can(kernel));
        let fitting = || ATTENTION.iter().filter(|kernel| kernel.format == format).filter(able);
        for kernel in fitting().filter(|kernel| kernel.features != AttentionFeatures::NONE) {
            for &(name, test) in windows::TESTS {
                trials.push(trial(&format!("{}_{name}", kernel.name), gpu.clone(), move |gpu| {
                    let _turn = TURNS.read().unwrap_or_else(PoisonError::into_inner);
                    test(gpu, kernel);
                }));
            }
        }
        // Of the variants with a window and a cap, the first stands for the others.
        let variant = fitting().find(|kernel| kernel.features != AttentionFeatures::NONE);
        for kernel in fitting().filter(|kernel| kernel.features == AttentionFeatures::NONE).chain(variant) {
            for (name, test) in [attention::TESTS, devices::TESTS, planted::TESTS].concat() {
                trials.push(trial(&format!("{}_{name}", kernel.name), gpu.clone(), move |gpu| {
                    let _turn = TURNS.read().unwrap_or_else(PoisonError::into_inner);
                    test(gpu, kernel);
                }));
            }
            for &(name, test) in boxes::TESTS.iter().filter(|_| kernel.boxes) {
                trials.push(trial(&format!("{}_{name}", kernel.name), gpu.clone(), move |gpu| {
                    let _turn = TURNS.read().unwrap_or_else(PoisonError::into_inner);
                    test(gpu, kernel);
                }));
            }
            for &(name, test) in devices::WITH_TENSOR_CORES.iter().filter(|_| !kernel.is_plain()) {
                trials.push(trial(&format!("{}_{name}", kernel.name), gpu.clone(), move |gpu| {
                    let _turn = TURNS.read().unwrap_or_else(PoisonError::into_inner);
                    test(gpu, kernel);
                }));
            }
            let found = gpu.clone().zip(counters);
            trials.push(trial(
                &format!("{}_with_a_bug_is_caught", kernel.name),
                found,
                move |(gpu, softgpu)| {
                    let _turn = TURNS.write().unwrap_or_else(PoisonError::into_inner);
                    planted::bugs_are_caught(gpu, kernel, *softgpu);
                },
            ));
            if kernel.boxes {
                let name = format!("{}_gives_one_result_in_any_order_of_warps", kernel.name);
                trials.push(trial(&name, gpu.clone().zip(counters), move |(gpu, softgpu)| {
                    let _turn = TURNS.write().unwrap_or_else(PoisonError::into_inner);
                    boxes::order_of_warps_changes_nothing(gpu, kernel, *softgpu);
                }));
            }
            for &(name, test) in work::TESTS.iter().filter(|_| !kernel.is_plain()) {
                let found = gpu.clone().zip(counters);
                trials.push(trial(&format!("{}_{name}", kernel.name), found, move |(gpu, counters)| {
                    let _turn = TURNS.write().unwrap_or_else(PoisonError::into_inner);
                    test(gpu, kernel, *counters);
                }));
            }
        }
        for &(name, test) in [sectors::TESTS, devices::COUNTED].concat().iter() {
            let found = gpu.clone().zip(counters);
            trials.push(trial(&format!("{name} ({format:?})"), found, move |(gpu, counters)| {
                let _turn = TURNS.write().unwrap_or_else(PoisonError::into_inner);
                test(gpu, *counters);
            }));
        }
        gpus.extend(gpu);
    }
    let occupancy = Some(occupancy::warps_are_those_of_the_limits);
    trials.push(trial("occupancy_is_that_of_the_limits", occupancy, |test| test()));
    // Counted where every kernel runs, with machine code for every architecture by the compiler that
    // the page is of.
    let runs = |kernel: &AttentionKernel| gpus.iter().any(|gpu| gpu.can(kernel));
    let found = counters.filter(|_| ATTENTION.iter().all(runs) && page::is_comparable());
    trials.push(trial("figures_of_the_page_are_those_counted", found, move |counters| {
        let _turn = TURNS.write().unwrap_or_else(PoisonError::into_inner);
        page::figures_of_the_page_are_those_counted(&gpus, *counters);
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test that is ignored where there is nothing to run it on.
fn trial<T: Send + 'static>(name: &str, on: Option<T>, test: impl FnOnce(&T) + Send + 'static) -> Trial {
    let ignored = on.is_none();
    let run = move || {
        test(&on.expect("without it, the test is ignored"));
        Ok(())
    };
    Trial::test(name, run).with_ignored_flag(ignored)
}
