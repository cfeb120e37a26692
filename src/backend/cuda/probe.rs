//! The GPUs that this build can use. This runs first, and without panics: every step makes the next
//! one safe.

use cudarc::driver::DriverError;
use cudarc::driver::result::{self, device};
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};

use super::fault::OrFault;
use crate::backend::tier::CudaTier;
use crate::error::{Error, ErrorKind, Result};

/// The oldest driver interface that is supported: 13.0, as `cuDriverGetVersion` writes it.
const DRIVER_MIN: i32 = 13_000;

/// The oldest GPU that there are kernels for: Turing.
const CAPABILITY_MIN: Capability = Capability { major: 7, minor: 5 };

/// A compute capability, such as 9.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    /// Major number: the architecture.
    pub major: u32,
    /// Minor number: its variant.
    pub minor: u32,
}

impl Capability {
    /// The tier that such a GPU runs best.
    pub fn tier(self) -> CudaTier {
        if self.major >= 8 { CudaTier::Sm80 } else { CudaTier::Sm75 }
    }

    /// Whether such a GPU can run a tier.
    pub fn runs(self, tier: CudaTier) -> bool {
        match tier {
            CudaTier::Sm75 => self >= CAPABILITY_MIN,
            CudaTier::Sm80 => self.major >= 8,
        }
    }
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A GPU, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of the GPU, from 0.
    pub ordinal: usize,
    /// Name of the model.
    pub name: String,
    /// Compute capability.
    pub capability: Capability,
    /// All memory, in bytes.
    pub memory_bytes: usize,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// The most shared memory that a block may ask for, in bytes.
    pub shared_bytes_max: usize,
    /// Shared memory of a multiprocessor, in bytes: its blocks divide it.
    pub shared_bytes_sm: usize,
    /// Shared memory that the driver keeps of each block's, in bytes, beside what it asks for.
    pub shared_bytes_reserved: usize,
    /// Whether its driver names a clock rate, of cores or of memory. Hardware has one; without one,
    /// times do not measure the speed of a GPU.
    pub has_clock: bool,
}

/// The GPUs that this build has kernels for, in the order of their numbers.
///
/// [`ErrorKind::Device`] when one of these is missing: a driver, its version, a GPU, one that is
/// new enough.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    // SAFETY: loads the driver's library by name and releases it again; its initialisers are the
    // vendor's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(missing("there is no CUDA driver on this machine (no libcuda was found)"));
    }
    let version = driver_version()?;
    if version < DRIVER_MIN {
        let (has, needs) = (cuda_version(version), cuda_version(DRIVER_MIN));
        return Err(missing(format!("the CUDA driver is for CUDA {has}, but {needs} is needed"))
            .with_hint("install a driver of series 580 or later"));
    }
    match result::init() {
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => {
            return Err(missing("the CUDA driver finds no GPU"));
        }
        other => other.or_fault("starting the CUDA driver")?,
    }
    let count = device::get_count().or_fault("counting GPUs")?;
    let all = (0..count).map(describe).collect::<Result<Vec<_>>>()?;
    let (able, too_old): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|info| info.capability >= CAPABILITY_MIN);
    match (able.is_empty(), too_old.first()) {
        (false, _) => Ok(able),
        (true, None) => Err(missing("the CUDA driver finds no GPU")),
        (true, Some(info)) => Err(missing(format!(
            "{} has compute capability {}, but {CAPABILITY_MIN} is needed",
            info.name, info.capability
        ))),
    }
}

fn missing(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Device, message)
}

/// 13010 -> 13.1
pub(super) fn cuda_version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The driver's interface, as it writes it: 13010 is 13.1.
pub(super) fn driver_version() -> Result<i32> {
    // SAFETY: the library was found before; resolving a name runs no code.
    let library = unsafe { sys::culib() };
    // SAFETY: this is the function's type, and the symbol does not outlive the library, which
    // stays.
    let function =
        unsafe { library.get::<unsafe extern "C" fn(*mut i32) -> CUresult>(b"cuDriverGetVersion\0") };
    let function = function.map_err(|_| missing("the libcuda on this machine is not a CUDA driver"))?;
    let mut version = 0;
    // SAFETY: the call writes one int and needs no initialised driver.
    unsafe { function(&mut version) }.result().or_fault("querying the version of the CUDA driver")?;
    Ok(version)
}

fn describe(ordinal: i32) -> Result<DeviceInfo> {
    let doing = format!("querying GPU {ordinal}");
    let handle = device::get(ordinal).or_fault(&doing)?;
    let attribute = |attribute| {
        // SAFETY: the handle was just returned by the driver.
        unsafe { device::get_attribute(handle, attribute) }.or_fault(&doing)
    };
    let positive = |name| attribute(name).map(|value| usize::try_from(value).unwrap_or(0));
    // SAFETY: as above.
    let memory_bytes = unsafe { device::total_mem(handle) }.or_fault(&doing)?;
    let major = positive(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32;
    let minor = positive(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32;
    let core_khz = positive(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
    let memory_khz = positive(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
    Ok(DeviceInfo {
        ordinal: ordinal as usize,
        name: device::get_name(handle).or_fault(&doing)?,
        capability: Capability { major, minor },
        memory_bytes,
        multiprocessors: positive(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_max: positive(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        shared_bytes_sm: positive(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?,
        shared_bytes_reserved: positive(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK,
        )?,
        has_clock: core_khz.max(memory_khz) > 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turing_runs_sm75_alone_and_later_gpus_both_tiers() {
        let turing = Capability { major: 7, minor: 5 };
        assert_eq!(turing.tier(), CudaTier::Sm75);
        assert!(turing.runs(CudaTier::Sm75) && !turing.runs(CudaTier::Sm80));
        for (major, minor) in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
            let capability = Capability { major, minor };
            assert_eq!(capability.tier(), CudaTier::Sm80);
            assert!(CudaTier::ALL.into_iter().all(|tier| capability.runs(tier)));
        }
    }

    #[test]
    fn a_machine_without_a_usable_gpu_gets_an_error() {
        match devices() {
            Ok(devices) => assert!(!devices.is_empty()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Device, "{error}"),
        }
    }
}
