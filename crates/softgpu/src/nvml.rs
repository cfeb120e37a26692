//! NVML: clocks, power and temperature. This GPU has no clock, as in the driver; its power and its
//! temperature are constants, by which a test checks their units.

use std::ffi::{CStr, c_char, c_uint};

use crate::driver::store;
use crate::driver::world::world;

/// `nvmlReturn_t`.
pub type NvmlResult = c_uint;

const SUCCESS: NvmlResult = 0;
const INVALID_ARGUMENT: NvmlResult = 2;
const NOT_SUPPORTED: NvmlResult = 3;
const NOT_FOUND: NvmlResult = 6;

/// Power and temperature of every device.
const MILLIWATTS: c_uint = 1500;
const CELSIUS: c_uint = 21;

/// Does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> NvmlResult {
    SUCCESS
}

/// The device whose UUID `cuDeviceGetUuid_v2` spells; its handle is its index and one.
///
/// # Safety
/// As NVML documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut usize) -> NvmlResult {
    // SAFETY: the caller's string, which ends in zero.
    let name = unsafe { CStr::from_ptr(uuid) }.to_string_lossy().into_owned();
    let digits: String = name.trim_start_matches("GPU-").chars().filter(|&digit| digit != '-').collect();
    let Ok(devices) = world().map(|world| world.devices.len()) else { return NOT_FOUND };
    let of = |index: &usize| {
        crate::driver::context::uuid(*index).map(|byte| format!("{byte:02x}")).concat() == digits
    };
    match (0..devices).find(of) {
        // SAFETY: the caller's out parameter.
        Some(index) => unsafe { number(device, index + 1) },
        None => NOT_FOUND,
    }
}

/// No clock.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetClockInfo(_device: usize, _clock: c_uint, _mhz: *mut c_uint) -> NvmlResult {
    NOT_SUPPORTED
}

/// `MILLIWATTS`.
///
/// # Safety
/// As NVML documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(_device: usize, milliwatts: *mut c_uint) -> NvmlResult {
    // SAFETY: the caller's out parameter.
    unsafe { number(milliwatts, MILLIWATTS) }
}

/// `CELSIUS`.
///
/// # Safety
/// As NVML documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    _device: usize,
    _sensor: c_uint,
    celsius: *mut c_uint,
) -> NvmlResult {
    // SAFETY: the caller's out parameter.
    unsafe { number(celsius, CELSIUS) }
}

/// Stores an out parameter.
///
/// # Safety
/// `to` is null or points to writable memory for a `T`.
unsafe fn number<T>(to: *mut T, value: T) -> NvmlResult {
    // SAFETY: the caller's promise.
    if unsafe { store(to, value) }.is_ok() { SUCCESS } else { INVALID_ARGUMENT }
}
