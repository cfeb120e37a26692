//! `bench load`: how fast weights are read from their files into pinned memory, and copied to a
//! GPU, from the page cache and without it.

#[cfg(feature = "cuda")]
mod measure;

#[cfg(feature = "cuda")]
pub(super) use measure::run;

#[cfg(not(feature = "cuda"))]
use kudos::{Error, ErrorKind};

/// Returns an error: this build has no CUDA backend.
#[cfg(not(feature = "cuda"))]
pub(super) fn run(_: &crate::args::LoadArgs, _: Option<&str>) -> anyhow::Result<()> {
    Err(Error::new(ErrorKind::Device, "this build of kudos has no CUDA backend").into())
}
