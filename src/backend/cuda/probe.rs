//! The GPUs that this build can use. This runs first, and without panics: every step makes the next
//! one safe.

use cudarc::driver::DriverError;
use cudarc::driver::result::{self, device};
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};

use super::fault::OrFault;
use crate::backend::tier::CudaTier;
use crate::error::{Error, ErrorKind, Result};

/// Major number of the CUDA whose nvcc made the kernels.
const CUDA_MAJOR: i32 = match i32::from_str_radix(env!("KUDOS_CUDA_MAJOR"), 10) {
    Ok(major) => major,
    Err(_) => panic!("the build script writes a number"),
};

/// The release of that nvcc, such as 13.0.88.
const NVCC: &str = env!("KUDOS_NVCC");

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

/// The GPUs of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The GPUs that this build has kernels for, in the order of their numbers: at least one.
    pub able: Vec<DeviceInfo>,
    /// A line for each GPU that the driver counts and cannot describe.
    pub warnings: Vec<String>,
}

/// The GPUs that this build has kernels for, in the order of their numbers: those that [`find`]
/// finds.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    find().map(|found| found.able)
}

/// The GPUs of this machine.
///
/// [`ErrorKind::Device`] when one of these is missing: a driver, its version, a GPU, one that is
/// new enough, one that the driver can describe.
pub fn find() -> Result<Found> {
    // SAFETY: loads the driver's library by name and releases it again; its initialisers are the
    // vendor's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(missing("there is no CUDA driver on this machine (no libcuda was found)"));
    }
    check_driver(driver_version()?, CUDA_MAJOR, NVCC)?;
    match result::init() {
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => {
            return Err(missing("the CUDA driver finds no GPU"));
        }
        other => other.or_fault("starting the CUDA driver")?,
    }
    let count = device::get_count().or_fault("counting GPUs")?;
    sorted((0..count).map(|ordinal| (ordinal, describe(ordinal))))
}

/// Requires a driver that runs machine code of this nvcc: those of its major number do, whatever
/// the minor one, and later ones.
fn check_driver(version: i32, cuda_major: i32, nvcc: &str) -> Result<()> {
    let least = cuda_major * 1000;
    if version >= least {
        return Ok(());
    }
    let (has, needs) = (cuda_version(version), cuda_version(least));
    let message =
        format!("the CUDA driver is for CUDA {has}, but kernels made with nvcc {nvcc} need {needs} or later");
    let hint = match cuda_major {
        12 => "install a driver of series 525 or later".to_owned(),
        13 => "install a driver of series 580 or later, or build kudos with an nvcc of CUDA 12.4 to 12.9 for drivers from \
               series 525 on"
            .to_owned(),
        _ => format!("install a driver for CUDA {needs} or later"),
    };
    Err(missing(message).with_hint(hint))
}

/// Divides GPUs into those that can be used, those that are too old, and those that the driver
/// counts and cannot describe: one that has fallen off the bus, say, which must not hide the
/// others.
fn sorted(described: impl Iterator<Item = (i32, Result<DeviceInfo>)>) -> Result<Found> {
    let mut found = Found::default();
    let (mut too_old, mut broken) = (None, None);
    for (ordinal, described) in described {
        match described {
            Ok(info) if info.capability >= CAPABILITY_MIN => found.able.push(info),
            Ok(info) => _ = too_old.get_or_insert(info),
            Err(error) => {
                found.warnings.push(format!("GPU {ordinal} is not used: {}", error.message()));
                broken.get_or_insert(error);
            }
        }
    }
    match (found.able.is_empty(), broken, too_old) {
        (false, ..) => Ok(found),
        (true, Some(error), _) => Err(error),
        (true, None, Some(info)) => Err(missing(format!(
            "{} has compute capability {}, but {CAPABILITY_MIN} is needed",
            info.name, info.capability
        ))),
        (true, None, None) => Err(missing("the CUDA driver finds no GPU")),
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
    fn drivers_run_kernels_of_their_major_number_and_older_ones() {
        // Series 525, 550 and 570, then 580 and later.
        for (version, runs_12, runs_13) in [
            (11_080, false, false),
            (12_000, true, false),
            (12_040, true, false),
            (12_080, true, false),
            (13_000, true, true),
            (13_010, true, true),
            (14_000, true, true),
        ] {
            assert_eq!(check_driver(version, 12, "12.4.131").is_ok(), runs_12, "{version}");
            assert_eq!(check_driver(version, 13, "13.0.88").is_ok(), runs_13, "{version}");
        }
        let error = check_driver(12_040, 13, "13.0.88").unwrap_err();
        assert_eq!(
            error.message(),
            "the CUDA driver is for CUDA 12.4, but kernels made with nvcc 13.0.88 need 13.0 or later"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("580") && hint.contains("525")), "{error}");
        let error = check_driver(11_080, 12, "12.4.131").unwrap_err();
        assert!(error.message().contains("11.8") && error.message().contains("12.0"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("525")), "{error}");
        assert!(check_driver(13_000, 14, "14.0.1").unwrap_err().hint().unwrap().contains("14.0"));
        check_driver(CUDA_MAJOR * 1000, CUDA_MAJOR, NVCC).unwrap();
    }

    #[test]
    fn a_gpu_that_fails_does_not_hide_the_others() {
        let gpu = |ordinal: i32, (major, minor)| DeviceInfo {
            ordinal: ordinal as usize,
            name: "a GPU".to_owned(),
            capability: Capability { major, minor },
            memory_bytes: 0,
            multiprocessors: 1,
            shared_bytes_max: 0,
            shared_bytes_sm: 0,
            shared_bytes_reserved: 0,
            has_clock: false,
        };
        let ok = |ordinal, capability| (ordinal, Ok(gpu(ordinal, capability)));
        let lost = |ordinal: i32| (ordinal, Err(missing(format!("querying GPU {ordinal}: lost"))));
        let found =
            sorted([lost(0), ok(1, (8, 0)), lost(2), ok(3, (6, 1)), ok(4, (9, 0))].into_iter()).unwrap();
        assert_eq!(found.able, [gpu(1, (8, 0)), gpu(4, (9, 0))]);
        let warnings = ["GPU 0 is not used: querying GPU 0: lost", "GPU 2 is not used: querying GPU 2: lost"];
        assert_eq!(found.warnings, warnings);
        // Where none is left, the error is that of the first one that failed.
        let message =
            |all: Vec<(i32, Result<DeviceInfo>)>| sorted(all.into_iter()).unwrap_err().message().to_owned();
        assert_eq!(message(vec![ok(0, (6, 1)), lost(1), lost(2)]), "querying GPU 1: lost");
        assert!(message(vec![ok(0, (6, 1))]).contains("compute capability 6.1, but 7.5 is needed"));
        assert!(message(Vec::new()).contains("finds no GPU"));
    }

    #[test]
    fn a_machine_without_a_usable_gpu_gets_an_error() {
        match devices() {
            Ok(devices) => assert!(!devices.is_empty()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Device, "{error}"),
        }
    }
}
