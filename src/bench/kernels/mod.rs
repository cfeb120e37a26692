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
pub(super) use measure::run;

/// Says where kernels are measured that this build has.
#[cfg(not(feature = "cuda"))]
pub(super) fn run(_: &crate::bench::args::KernelsArgs, _: Option<&str>) -> anyhow::Result<()> {
    use crate::error::{Error, ErrorKind};
    let error = Error::new(ErrorKind::Device, "this build of kudos has no CUDA backend");
    Err(error.with_hint("`cargo bench --bench cpu_kernels` measures the CPU's kernels").into())
}
