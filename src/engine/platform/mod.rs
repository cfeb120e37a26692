//! [`Platform`]: a kind of device as the engine uses it: [`choose`] selects it, the engine queries
//! its sizes to plan memory, and opens it once per rank.
//!
//! A platform is part of the engine, not of its backend: opening a rank builds the model, which is
//! above the backends. This is the only module of the engine that names them.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod interface;
mod load;

use crate::engine::options::{CudaOptions, Device};
use crate::error::Result;
#[cfg(not(feature = "cuda"))]
use crate::error::{Error, ErrorKind};

pub(super) use cpu::CpuPlatform;
#[cfg(feature = "cuda")]
pub(super) use cuda::CudaPlatform;
#[cfg(feature = "cuda")]
pub use cuda::PlannedGpus;
pub use device::{DeviceInfo, DeviceKind};
pub(super) use interface::{Platform, RankSetup};

/// Returns the platform that the options name, or the engine's choice and its reason.
pub(super) fn choose(device: &Device) -> Result<(Box<dyn Platform>, Option<String>)> {
    match device {
        Device::Cpu(options) => Ok((Box::new(CpuPlatform::new(options)?), None)),
        Device::Cuda(options) => match cuda(options) {
            Err(error) if error.hint().is_none() => {
                Err(error.with_hint("leave the device to `auto`, or choose `cpu`"))
            }
            platform => Ok((platform?, None)),
        },
        Device::Auto { cpu, cuda: options } => match cuda(options) {
            Ok(platform) => Ok((platform, Some("the first GPU that this build supports".to_owned()))),
            // Options that name GPUs or processes rule the CPU out, and so does a GPU that has failed:
            // an engine that ran on it would be slower by orders of magnitude on the CPU.
            Err(error) if options.devices.is_empty() && options.cluster().is_none() && !has_failed() => {
                Ok((Box::new(CpuPlatform::new(cpu)?), Some(error.message().to_owned())))
            }
            Err(error) => Err(error),
        },
    }
}

#[cfg(feature = "cuda")]
fn cuda(options: &CudaOptions) -> Result<Box<dyn Platform>> {
    Ok(Box::new(CudaPlatform::new(options)?))
}

/// Whether a GPU has failed in this process.
#[cfg(feature = "cuda")]
fn has_failed() -> bool {
    crate::backend::cuda::fault::lost().is_some()
}

#[cfg(not(feature = "cuda"))]
fn has_failed() -> bool {
    false
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &CudaOptions) -> Result<Box<dyn Platform>> {
    Err(Error::new(ErrorKind::Device, "this build of kudos has no CUDA backend"))
}
