//! Entry points for tests, found by `dlsym`: counters, faults, planted bugs.

use crate::driver::calls::{calls_json, reset_calls};
use crate::driver::world::{DeviceState, initialise, world};
use std::ffi::{CStr, c_char};
use std::sync::atomic::Ordering;

/// Counters of every launch since the last reset, as a JSON array, devices in order, launches of
/// one in order. Returns the bytes of the whole text; at most `length` of them are written, with a
/// zero byte if it fits.
///
/// # Safety
/// `buffer` is null or holds `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_counters_json(buffer: *mut c_char, length: usize) -> usize {
    let mut items = Vec::new();
    if let Ok(world) = world() {
        for device in &world.devices {
            let device = device.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            items.extend(device.launches.iter().map(crate::device::Launch::json));
        }
    }
    let text = format!("[{}]", items.join(","));
    // SAFETY: the caller's buffer.
    unsafe { write_text(&text, buffer, length) }
}

/// Forgets the launches so far.
#[unsafe(no_mangle)]
pub extern "C" fn softgpu_reset_counters() {
    if let Ok(world) = world() {
        for device in &world.devices {
            device.lock().unwrap_or_else(std::sync::PoisonError::into_inner).launches.clear();
        }
    }
}

/// The entries that ran since the last reset, as a JSON array of
/// `{"device","stream","priority","kind","name","bytes","start","end"}`, devices in order. Kinds
/// are `kernel`, `library`, `collective`, `copy_in` and `copy_out` (named `pinned` or `pageable`),
/// `copy_device` and `fill`; times are logical nanoseconds. Returns and writes as
/// [`softgpu_counters_json`] does.
///
/// # Safety `buffer` is null or holds `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_trace_json(buffer: *mut c_char, length: usize) -> usize {
    let mut items = Vec::new();
    if let Ok(world) = world() {
        for device in &world.devices {
            let device = device.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            items.extend(device.trace.json(device.index));
        }
    }
    let text = format!("[{}]", items.join(","));
    // SAFETY: the caller's buffer.
    unsafe { write_text(&text, buffer, length) }
}

/// Clears the trace and counts calls from 0 again. Later entries start at the logical time 0 or
/// later, on all devices, as if everything before had been waited for.
#[unsafe(no_mangle)]
pub extern "C" fn softgpu_reset_trace() {
    reset_calls();
    if let Ok(world) = world() {
        let device =
            |index: usize| world.devices[index].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let latest = |device: &DeviceState| device.trace.latest(device.streams.values());
        let devices = 0..world.devices.len();
        let floor = devices.clone().map(|index| latest(&device(index))).max().unwrap_or(0);
        devices.for_each(|index| device(index).trace.reset(floor));
    }
}

/// Calls of the libraries' entry points by name, bytes between host and device, both as they were
/// asked for, and contexts that were made, since the last [`softgpu_reset_trace`]:
/// `{"calls":{"cuMemAlloc_v2":3},"copied_in":{"pinned":0,"pageable":64},"copied_out":{"pinned":0,
/// "pageable":0},"contexts":1}`. Returns and writes as [`softgpu_counters_json`] does.
///
/// # Safety
/// `buffer` is null or holds `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_calls_json(buffer: *mut c_char, length: usize) -> usize {
    // SAFETY: the caller's buffer.
    unsafe { write_text(&calls_json(), buffer, length) }
}

/// Allocated memory, as one JSON object: `pinned_bytes` on the host, and of each device
/// `live_bytes` and `allocations` not freed, `peak_bytes`, `reclaimed_bytes` that only the last
/// release of a context freed (both over the process), `context_references` of the program, and
/// whether a library holds the context, and `library_bytes` that libraries have taken. Returns and
/// writes as [`softgpu_counters_json`] does.
///
/// # Safety
/// `buffer` is null or holds `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_memory_json(buffer: *mut c_char, length: usize) -> usize {
    let (mut pinned_bytes, mut items) = (0, Vec::new());
    if let Ok(world) = world() {
        // Unlocked before a device is locked: copies lock the device first, and the pinned memory
        // after it.
        pinned_bytes = world.pinned.lock().unwrap_or_else(std::sync::PoisonError::into_inner).values().sum();
        for device in &world.devices {
            let device = device.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            items.push(format!(
                "{{\"live_bytes\":{},\"allocations\":{},\"peak_bytes\":{},\"reclaimed_bytes\":{},\"context_references\":{},\"held_by_library\":{},\"library_bytes\":{}}}",
                device.memory.live_bytes(),
                device.memory.allocations(),
                device.memory.peak_bytes(),
                device.memory.reclaimed_bytes(),
                device.context_references,
                device.held_by_library,
                device.memory.reserved_bytes()
            ));
        }
    }
    let text = format!("{{\"pinned_bytes\":{pinned_bytes},\"devices\":[{}]}}", items.join(","));
    // SAFETY: the caller's buffer.
    unsafe { write_text(&text, buffer, length) }
}

/// Plans faults as `SOFTGPU_FAIL` does, and starts counting again; an empty string plans none.
///
/// # Safety
/// `plan` is a string that ends in a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_plan_faults(plan: *const c_char) {
    // SAFETY: the caller's string.
    let plan = unsafe { CStr::from_ptr(plan) }.to_string_lossy();
    initialise().plan_faults(&plan);
}

/// Plants bugs, as `SOFTGPU_PLANT` does, into modules loaded from now on, instead of those planned
/// before; null or an empty string plants none. A malformed list fails the next load of a module,
/// with the reason.
///
/// # Safety
/// `plants` is null or a string that ends in a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_plant(plants: *const c_char) {
    // SAFETY: the caller's string, where there is one.
    let plants = if plants.is_null() { c"" } else { unsafe { CStr::from_ptr(plants) } };
    initialise().plan_plants(&plants.to_string_lossy());
}

/// Instructions edited since the plants were last set: 0 where no kernel that they name was loaded.
#[unsafe(no_mangle)]
pub extern "C" fn softgpu_planted() -> usize {
    world().map_or(0, crate::driver::world::World::planted)
}

/// Has warps run in a random order by this seed, as `SOFTGPU_ORDER` does, in launches from now on; 0: by index.
#[unsafe(no_mangle)]
pub extern "C" fn softgpu_order(seed: u64) {
    initialise().warp_order.store(seed, Ordering::Relaxed);
}

/// The message that was printed with the device's last sticky error. Returns and writes as
/// [`softgpu_counters_json`] does.
///
/// # Safety
/// `buffer` is null or holds `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softgpu_last_message(device: usize, buffer: *mut c_char, length: usize) -> usize {
    let text = crate::driver::lock(device).map(|d| d.message.clone()).unwrap_or_default();
    // SAFETY: the caller's buffer.
    unsafe { write_text(&text, buffer, length) }
}

/// # Safety
/// `buffer` is null or holds `length` bytes.
unsafe fn write_text(text: &str, buffer: *mut c_char, length: usize) -> usize {
    if !buffer.is_null() && length > 0 {
        let count = text.len().min(length - 1);
        // SAFETY: count + 1 <= length bytes, which the caller gives.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, count);
            buffer.add(count).write(0);
        }
    }
    text.len()
}
