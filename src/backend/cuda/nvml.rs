//! NVML, the driver's management library: a GPU's clocks, power and temperature. It is for
//! measurements; scoring does not use it. Where the library is missing, or does not know a value,
//! the result is `None` and nothing fails.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::result::device;
use libloading::Library;

use super::probe::DeviceInfo;

/// File names of the library, that of the driver first.
const NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

const SUCCESS: c_int = 0;

/// `NVML_TEMPERATURE_GPU`
const OF_THE_GPU: c_int = 0;

/// `nvmlDevice_t`
type RawDevice = *mut c_void;

/// The functions of NVML that are called.
struct Functions {
    handle_by_uuid: unsafe extern "C" fn(*const c_char, *mut RawDevice) -> c_int,
    clock: unsafe extern "C" fn(RawDevice, c_int, *mut c_uint) -> c_int,
    power: unsafe extern "C" fn(RawDevice, *mut c_uint) -> c_int,
    temperature: unsafe extern "C" fn(RawDevice, c_int, *mut c_uint) -> c_int,
    /// The library of the functions. Never unloaded.
    _library: Library,
}

impl Functions {
    /// NVML, loaded and started on first use.
    fn get() -> Option<&'static Self> {
        static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
        FUNCTIONS.get_or_init(Self::load).as_ref()
    }

    fn load() -> Option<Self> {
        // SAFETY: the library's initialisers are the vendor's own.
        let library = NAMES.into_iter().find_map(|name| unsafe { Library::new(name) }.ok())?;
        // SAFETY: these are the functions' types in nvml.h; they do not outlive the library, which
        // is kept beside them. The first is called once, before all others.
        unsafe {
            let init = library.get::<unsafe extern "C" fn() -> c_int>(b"nvmlInit_v2\0").ok()?;
            if init() != SUCCESS {
                return None;
            }
            Some(Self {
                handle_by_uuid: *library.get(b"nvmlDeviceGetHandleByUUID\0").ok()?,
                clock: *library.get(b"nvmlDeviceGetClockInfo\0").ok()?,
                power: *library.get(b"nvmlDeviceGetPowerUsage\0").ok()?,
                temperature: *library.get(b"nvmlDeviceGetTemperature\0").ok()?,
                _library: library,
            })
        }
    }
}

/// One of a GPU's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuClock {
    /// The clock of its multiprocessors, `NVML_CLOCK_SM`.
    Multiprocessors = 1,
    /// The clock of its memory, `NVML_CLOCK_MEM`.
    Memory = 2,
}

/// A GPU's sensors.
pub struct Sensors {
    nvml: &'static Functions,
    device: RawDevice,
}

impl Sensors {
    /// The sensors of a GPU that [`devices`](super::probe::devices) found, by its UUID: the two
    /// libraries number GPUs differently.
    pub fn of(info: &DeviceInfo) -> Option<Self> {
        let nvml = Functions::get()?;
        let uuid = device::get_uuid(device::get(info.ordinal as c_int).ok()?).ok()?;
        let name = CString::new(uuid_name(&uuid.bytes.map(|byte| byte as u8))).ok()?;
        let mut device = ptr::null_mut();
        // SAFETY: the name ends in zero, and the call writes one handle.
        let code = unsafe { (nvml.handle_by_uuid)(name.as_ptr(), &mut device) };
        (code == SUCCESS).then_some(Self { nvml, device })
    }

    /// A clock at present, in MHz.
    pub fn clock_mhz(&self, clock: GpuClock) -> Option<u32> {
        // SAFETY: the handle is NVML's own, which is never shut down, and the call writes one
        // value; so below.
        Self::read(|value| unsafe { (self.nvml.clock)(self.device, clock as c_int, value) })
    }

    /// The power that the GPU draws, which it averages over up to a second.
    pub fn watts(&self) -> Option<f64> {
        // SAFETY: as above; the value is in milliwatts.
        let milliwatts = Self::read(|value| unsafe { (self.nvml.power)(self.device, value) })?;
        Some(f64::from(milliwatts) / 1e3)
    }

    /// Its temperature in degrees Celsius.
    pub fn celsius(&self) -> Option<u32> {
        // SAFETY: as above.
        Self::read(|value| unsafe { (self.nvml.temperature)(self.device, OF_THE_GPU, value) })
    }

    fn read(call: impl FnOnce(&mut c_uint) -> c_int) -> Option<u32> {
        let mut value = 0;
        (call(&mut value) == SUCCESS).then_some(value)
    }
}

impl fmt::Debug for Sensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sensors").finish_non_exhaustive()
    }
}

/// `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, as NVML writes it.
fn uuid_name(uuid: &[u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let parts = [&uuid[..4], &uuid[4..6], &uuid[6..8], &uuid[8..10], &uuid[10..]];
    format!("GPU-{}", parts.map(hex).join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_named_as_nvml_names_it() {
        let uuid = std::array::from_fn(|index| 0x10 * index as u8 + 1);
        assert_eq!(uuid_name(&uuid), "GPU-01112131-4151-6171-8191-a1b1c1d1e1f1");
    }
}
