//! `bench kernels`: each kernel of a GPU, and the matmuls beside them, against the device's own
//! rates.
//!
//! The yardsticks are measured in the same run: a copy within the device, and the fastest matmul.
//! The roof of a kernel is the longer of two times, that of its fewest bytes at the copy's rate and
//! that of its FLOP at the matmul's. `benches/kernels.md` describes the report.

#[cfg(feature = "cuda")]
mod cases;
#[cfg(feature = "cuda")]
mod measure;
#[cfg(feature = "cuda")]
mod report;
mod yardsticks;

pub(super) use yardsticks::Yardsticks;

#[cfg(feature = "cuda")]
pub(super) use measure::{run, yardsticks};

#[cfg(not(feature = "cuda"))]
use kudos::internals::config::ModelConfig;
#[cfg(not(feature = "cuda"))]
use kudos::{Error, ErrorKind};

/// Returns an error: this build has no CUDA kernels.
#[cfg(not(feature = "cuda"))]
pub(super) fn run(_: &crate::args::KernelsArgs, _: Option<&str>) -> anyhow::Result<()> {
    Err(no_gpus().with_hint("`cargo bench --bench cpu_kernels` measures the CPU's kernels").into())
}

/// Returns an error: this build has no CUDA backend.
#[cfg(not(feature = "cuda"))]
pub(super) fn yardsticks(_: &ModelConfig) -> kudos::internals::error::Result<Yardsticks> {
    Err(no_gpus())
}

#[cfg(not(feature = "cuda"))]
fn no_gpus() -> Error {
    Error::new(ErrorKind::Device, "this build of kudos has no CUDA backend")
}
