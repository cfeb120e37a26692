//! Every CUDA kernel, through its wrapper, against a naive f64 computation with the same rounding points.
//!
//! They run on the first GPU that the driver shows, in each storage format that it has. Without one they are reported
//! as ignored, and counted; with `KUDOS_TEST_GPU` set to anything, its absence is a failure. Tests of what kernels move
//! need a GPU that counts it, and are ignored on others.

mod attention;
mod gemm;
mod launches;
mod least;
mod numbers;
mod rows;
mod sectors;

use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};

use kudos::backend::cuda::Storage;
use kudos::backend::cuda::context::Context;
use kudos::backend::cuda::ops::Ops;
use kudos::backend::cuda::probe::{DeviceInfo, devices};
use libtest_mimic::{Arguments, Trial};

/// A test: what it shows, and the function that runs it on a GPU with kernels for heads of the given width.
type Test = (&'static str, fn(&Gpu));

/// Tests that count launches write here, all others read: counting, a test has the GPU for itself.
static TURNS: RwLock<()> = RwLock::new(());

/// The GPU that tests run on.
#[derive(Clone)]
pub(crate) struct Gpu {
    info: DeviceInfo,
    pub(crate) storage: Storage,
}

impl Gpu {
    /// Kernels for heads of `head_dim`, in a context of their own.
    pub(crate) fn ops(&self, head_dim: usize) -> Ops {
        Ops::new(Context::open(&self.info).unwrap(), self.storage, head_dim).unwrap()
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
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
    let storages = match info.as_ref().map(|info| info.capability.storage()) {
        Some(Storage::F16) => vec![Storage::F16],
        _ => vec![Storage::F16, Storage::Bf16],
    };
    let counters = info.as_ref().and_then(|_| launches::Counters::find());
    let mut trials = Vec::new();
    for storage in storages {
        let gpu = info.clone().map(|info| Gpu { info, storage });
        for (name, test) in [rows::TESTS, attention::TESTS, gemm::TESTS].concat() {
            trials.push(trial(name, storage, gpu.clone(), move |gpu| {
                let _turn = TURNS.read().unwrap_or_else(PoisonError::into_inner);
                test(gpu);
            }));
        }
        for &(name, test) in sectors::TESTS {
            let found = gpu.clone().zip(counters);
            trials.push(trial(name, storage, found, move |(gpu, counters)| {
                let _turn = TURNS.write().unwrap_or_else(PoisonError::into_inner);
                test(gpu, *counters);
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test that is ignored without what it runs on.
fn trial<T: Send + 'static>(
    name: &str,
    storage: Storage,
    on: Option<T>,
    test: impl FnOnce(&T) + Send + 'static,
) -> Trial {
    let ignored = on.is_none();
    let run = move || {
        test(&on.expect("without what it runs on, the test is ignored"));
        Ok(())
    };
    Trial::test(format!("{name} ({storage:?})"), run).with_ignored_flag(ignored)
}
