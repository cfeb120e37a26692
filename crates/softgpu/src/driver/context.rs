//! `cuInit`, devices, contexts, error texts.

use super::calls::{called, context_made};
use super::limits::{limits, reserved};
use super::status::{self, Status};
use super::wait::drain_all;
use super::world::{initialise, world};
use super::{CURRENT, CuResult, code, current_device, enter, lock, store};
use std::ffi::{c_char, c_int, c_uint};

/// Reads the settings. Fails without a device, as the driver does.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> CuResult {
    called("cuInit");
    if initialise().devices.is_empty() { Status::NoDevice as u32 } else { 0 }
}

/// `SOFTGPU_DEVICES`.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CuResult {
    called("cuDeviceGetCount");
    // SAFETY: the caller's out parameter.
    code(world().and_then(|w| unsafe { store(count, w.devices.len() as c_int) }))
}

/// A device is its index.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> CuResult {
    called("cuDeviceGet");
    // SAFETY: the caller's out parameter.
    code(lock(ordinal as usize).and_then(|_| unsafe { store(device, ordinal) }))
}

/// "softgpu" and its compute capability.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> CuResult {
    called("cuDeviceGetName");
    code(world().and_then(|w| {
        let text = format!("softgpu sm_{}", w.settings.cc_of(device as usize));
        let count = text.len().min((length.max(1) - 1) as usize);
        if name.is_null() || length < 1 {
            return Err(Status::InvalidValue);
        }
        // SAFETY: the caller gives `length` bytes, and count + 1 <= length.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, count);
            name.add(count).write(0);
        }
        Ok(())
    }))
}

/// `SOFTGPU_MEMORY_GIB`.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> CuResult {
    called("cuDeviceTotalMem_v2");
    // SAFETY: the caller's out parameter.
    code(lock(device as usize).and_then(|d| unsafe { store(bytes, d.memory.free_and_total().1) }))
}

/// The bytes of [`cuDeviceGetUuid_v2`].
pub(crate) fn uuid(index: usize) -> [u8; 16] {
    let mut bytes = *b"softgpu         ";
    bytes[15] = index as u8;
    bytes
}

/// Bytes that spell the device's index.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) -> CuResult {
    called("cuDeviceGetUuid_v2");
    let bytes = self::uuid(device as usize);
    // SAFETY: the caller's out parameter.
    code(lock(device as usize).and_then(|_| unsafe { store(uuid, bytes) }))
}

/// The value of a real card of that compute capability; unknown attributes are refused by number.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_uint,
    device: c_int,
) -> CuResult {
    called("cuDeviceGetAttribute");
    code(world().and_then(|w| {
        let Some(found) = attribute_of(w.settings.cc_of(device as usize), attribute) else {
            eprintln!("softgpu: device attribute {attribute} is not known");
            return Err(Status::InvalidValue);
        };
        // SAFETY: the caller's out parameter.
        unsafe { store(value, found) }
    }))
}

fn attribute_of(cc: u32, attribute: c_uint) -> Option<c_int> {
    let (opt_in, multiprocessors, threads) = limits(cc);
    Some(match attribute {
        1..=3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65_535,
        8 => 48 << 10,
        9 => 64 << 10,
        10 => 32,
        12 | 82 => 65_536,
        // No clock, of cores or of memory, so that no program takes times measured here for a
        // GPU's.
        13 | 36 => 0,
        16 => multiprocessors,
        20 => 0,
        37 => 256,
        38 => 4 << 20,
        39 => threads,
        40 | 41 | 83 => 1,
        75 => (cc / 10) as c_int,
        76 => (cc % 10) as c_int,
        81 => opt_in + reserved(cc),
        97 => opt_in,
        111 => reserved(cc),
        // Memory pools: not supported, so that allocations are countable calls.
        115 => 0,
        _ => return None,
    })
}

/// The device's one context.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> CuResult {
    called("cuDevicePrimaryCtxRetain");
    code(lock(device as usize).and_then(|mut d| {
        if d.context_references == 0 {
            context_made();
        }
        d.context_references += 1;
        // SAFETY: the caller's out parameter.
        unsafe { store(context, device as usize + 1) }
    }))
}

/// The last release frees everything, unless a library holds the context. A device's fault remains,
/// but with `SOFTGPU_STICKY=context`.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> CuResult {
    called("cuDevicePrimaryCtxRelease_v2");
    code(lock(device as usize).and_then(|mut d| {
        if d.context_references == 0 {
            return Err(Status::InvalidContext);
        }
        d.context_references -= 1;
        if d.context_references == 0 {
            d.release(world()?.settings.sticky);
        }
        Ok(())
    }))
}

/// The calling thread's context.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut usize) -> CuResult {
    called("cuCtxGetCurrent");
    // SAFETY: the caller's out parameter.
    code(unsafe { store(context, CURRENT.get()) })
}

/// Sets the calling thread's context.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: usize) -> CuResult {
    called("cuCtxSetCurrent");
    CURRENT.set(context);
    0
}

/// The current context's device.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(device: *mut c_int) -> CuResult {
    called("cuCtxGetDevice");
    // SAFETY: the caller's out parameter.
    code(current_device().and_then(|d| unsafe { store(device, d as c_int) }))
}

/// Runs every stream of the device.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> CuResult {
    called("cuCtxSynchronize");
    code(current_device().and_then(enter).and_then(|d| drain_all(d).1))
}

/// The name of an error number.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: c_uint, text: *mut *const c_char) -> CuResult {
    called("cuGetErrorName");
    // SAFETY: the caller's out parameter.
    code(
        status::describe(error)
            .ok_or(Status::InvalidValue)
            .and_then(|(name, _)| unsafe { store(text, name.as_ptr()) }),
    )
}

/// The sentence of an error number.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: c_uint, text: *mut *const c_char) -> CuResult {
    called("cuGetErrorString");
    // SAFETY: the caller's out parameter.
    code(
        status::describe(error)
            .ok_or(Status::InvalidValue)
            .and_then(|(_, s)| unsafe { store(text, s.as_ptr()) }),
    )
}
