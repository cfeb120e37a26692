//! `bench kernels`: each kernel of a GPU, and the matrix products beside them, against what the device can do.
//!
//! The yardsticks are measured in the same run: a copy within the device, and the fastest of all matrix products. The least
//! time of a kernel is that of its fewest bytes at the copy's rate or of its operations at the products', whichever is
//! longer. `benches/kernels.md` describes what is printed.

#[cfg(feature = "cuda")]
mod cases;
#[cfg(feature = "cuda")]
mod measure;
#[cfg(feature = "cuda")]
mod report;

#[cfg(feature = "cuda")]
pub(super) use measure::{run, yardsticks};

#[cfg(not(feature = "cuda"))]
use kudos::internals::config::ModelConfig;
#[cfg(not(feature = "cuda"))]
use kudos::{Error, ErrorKind};

/// What one GPU can do at most, all else apart.
pub(super) struct Yardsticks {
    /// Floating-point operations of a large matrix product.
    pub(super) flop_per_second: f64,
    /// Of a copy within the device, read and written.
    pub(super) bytes_per_second: f64,
}

/// Says where kernels are measured that this build has.
#[cfg(not(feature = "cuda"))]
pub(super) fn run(_: &crate::args::KernelsArgs, _: Option<&str>) -> anyhow::Result<()> {
    Err(no_gpus().with_hint("`cargo bench --bench cpu_kernels` measures the CPU's kernels").into())
}

/// There are none.
#[cfg(not(feature = "cuda"))]
pub(super) fn yardsticks(_: &ModelConfig) -> kudos::internals::error::Result<Yardsticks> {
    Err(no_gpus())
}

#[cfg(not(feature = "cuda"))]
fn no_gpus() -> Error {
    Error::new(ErrorKind::Device, "this build of kudos has no CUDA backend")
}
