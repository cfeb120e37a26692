//! Allocation and copies.

use super::calls::{Direction, called, copied};
use super::op::Op;
use super::settings::Pageable;
use super::status::Status;
use super::wait::{drain, drain_all};
use super::world::world;
use super::{CuResult, code, current_device, device_of, enter, lock, store};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{c_uchar, c_uint};

/// Pinned memory starts on a page.
const PINNED_ALIGN: usize = 4096;

/// Free and total bytes of the current device.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CuResult {
    called("cuMemGetInfo_v2");
    code(current_device().and_then(enter).and_then(|d| {
        let (f, t) = d.memory.free_and_total();
        // SAFETY: the caller's out parameters.
        unsafe { store(free, f).and_then(|()| store(total, t)) }
    }))
}

/// Allocates on the current device; `SOFTGPU_FAIL=alloc:N` fails the N-th.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(pointer: *mut u64, bytes: usize) -> CuResult {
    called("cuMemAlloc_v2");
    code(current_device().and_then(enter).and_then(|mut d| {
        if bytes == 0 {
            return Err(Status::InvalidValue);
        }
        if world()?.fails("alloc", d.index) {
            return Err(Status::OutOfMemory);
        }
        let address = d.memory.allocate(bytes).ok_or(Status::OutOfMemory)?;
        // SAFETY: the caller's out parameter.
        unsafe { store(pointer, address) }
    }))
}

/// Frees, after the device's work is done, as the hardware's driver waits too.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(pointer: u64) -> CuResult {
    called("cuMemFree_v2");
    code(owner(pointer).and_then(lock).and_then(|d| {
        if pointer == 0 {
            return Ok(());
        }
        let (mut d, ran) = drain_all(d);
        let freed = d.memory.free(pointer);
        ran.and(if freed { Ok(()) } else { Err(Status::InvalidValue) })
    }))
}

/// The device an address belongs to; the current one for addresses of none.
fn owner(pointer: u64) -> Result<usize, Status> {
    let found = world()?.addresses.iter().position(|range| range.contains(&pointer));
    found.map_or_else(current_device, Ok)
}

/// Pinned host memory.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(pointer: *mut *mut u8, bytes: usize, _flags: c_uint) -> CuResult {
    called("cuMemHostAlloc");
    code(current_device().and_then(enter).and_then(|_| {
        let layout = Layout::from_size_align(bytes, PINNED_ALIGN).map_err(|_| Status::InvalidValue)?;
        if bytes == 0 {
            return Err(Status::InvalidValue);
        }
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(Status::OutOfMemory);
        }
        let mut pinned = world()?.pinned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pinned.insert(memory as usize, bytes);
        // SAFETY: the caller's out parameter.
        unsafe { store(pointer, memory) }
    }))
}

/// Frees pinned memory. Copies still queued find it gone.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(pointer: *mut u8) -> CuResult {
    called("cuMemFreeHost");
    code(world().and_then(|w| {
        let mut pinned = w.pinned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = pinned.remove(&(pointer as usize)).ok_or(Status::InvalidValue)?;
        let layout = Layout::from_size_align(bytes, PINNED_ALIGN).map_err(|_| Status::InvalidValue)?;
        // SAFETY: `cuMemHostAlloc` made this block with this layout, and the map held it until now.
        unsafe { dealloc(pointer, layout) };
        Ok(())
    }))
}

/// Fills with a byte.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: c_uchar, bytes: usize, stream: usize) -> CuResult {
    called("cuMemsetD8Async");
    code(device_of(stream).and_then(enter).and_then(|mut d| d.push(stream, Op::Fill { to, value, bytes })))
}

/// Host to device.
///
/// # Safety
/// As the CUDA driver documents: `from` is readable for `bytes`, until the copy is done if it is
/// pinned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const u8,
    bytes: usize,
    stream: usize,
) -> CuResult {
    called("cuMemcpyHtoDAsync_v2");
    // SAFETY: the caller's source.
    code(unsafe { copy_in(to, from, bytes, stream) })
}

/// # Safety
/// As [`cuMemcpyHtoDAsync_v2`].
unsafe fn copy_in(to: u64, from: *const u8, bytes: usize, stream: usize) -> Result<(), Status> {
    let mut d = device_of(stream).and_then(enter)?;
    let pinned = world()?.is_pinned(from as usize, bytes);
    copied(Direction::In, pinned, bytes);
    let op = if pinned {
        Op::CopyInPinned { to, from: from as usize, bytes }
    } else {
        // SAFETY: the caller's source, read now.
        let held = unsafe { read(from, bytes) };
        match world()?.settings.pageable {
            Pageable::AtCall => Op::CopyIn { to, bytes: held },
            Pageable::Late => Op::CopyInLate { to, from: from as usize, bytes: held },
        }
    };
    d.push(stream, op)
}

/// Device to host. A copy to pageable memory waits for itself, as the driver's does.
///
/// # Safety
/// As the CUDA driver documents: `to` is writable for `bytes` until the copy is done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut u8,
    from: u64,
    bytes: usize,
    stream: usize,
) -> CuResult {
    called("cuMemcpyDtoHAsync_v2");
    code(copy_out(to, from, bytes, stream))
}

fn copy_out(to: *mut u8, from: u64, bytes: usize, stream: usize) -> Result<(), Status> {
    let mut d = device_of(stream).and_then(enter)?;
    let pinned = world()?.is_pinned(to as usize, bytes);
    copied(Direction::Out, pinned, bytes);
    d.push(stream, Op::CopyOut { to: to as usize, from, bytes, pinned })?;
    if pinned { Ok(()) } else { drain(d, stream).map(|_| ()) }
}

/// Within the device.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) -> CuResult {
    called("cuMemcpyDtoDAsync_v2");
    code(copy_device(to, from, bytes, stream))
}

fn copy_device(to: u64, from: u64, bytes: usize, stream: usize) -> Result<(), Status> {
    device_of(stream).and_then(enter)?.push(stream, Op::CopyDevice { to, from, bytes })
}

/// `CUDA_MEMCPY2D`, as the driver's header lays it out.
#[repr(C)]
#[allow(missing_docs)]
pub struct Memcpy2D {
    pub source_x: usize,
    pub source_y: usize,
    pub source_kind: c_uint,
    pub source_host: *const u8,
    pub source_device: u64,
    pub source_array: usize,
    pub source_pitch: usize,
    pub target_x: usize,
    pub target_y: usize,
    pub target_kind: c_uint,
    pub target_host: *mut u8,
    pub target_device: u64,
    pub target_array: usize,
    pub target_pitch: usize,
    pub width: usize,
    pub height: usize,
}

const KIND_HOST: c_uint = 1;
const KIND_DEVICE: c_uint = 2;

/// A copy of rows, between host and device or within the device; each row is one copy.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DAsync_v2(copy: *const Memcpy2D, stream: usize) -> CuResult {
    called("cuMemcpy2DAsync_v2");
    if copy.is_null() {
        return Status::InvalidValue as u32;
    }
    // SAFETY: not null, and a whole structure by the caller's promise.
    let c = unsafe { &*copy };
    for row in 0..c.height {
        let source = (c.source_y + row) * c.source_pitch + c.source_x;
        let target = (c.target_y + row) * c.target_pitch + c.target_x;
        // SAFETY: the rows lie inside the caller's areas, which the contract of this call promises.
        let done = unsafe {
            match (c.source_kind, c.target_kind) {
                (KIND_HOST, KIND_DEVICE) => {
                    copy_in(c.target_device + target as u64, c.source_host.add(source), c.width, stream)
                }
                (KIND_DEVICE, KIND_HOST) => {
                    copy_out(c.target_host.add(target), c.source_device + source as u64, c.width, stream)
                }
                (KIND_DEVICE, KIND_DEVICE) => {
                    let (to, from) = (c.target_device + target as u64, c.source_device + source as u64);
                    copy_device(to, from, c.width, stream)
                }
                _ => Err(Status::NotSupported),
            }
        };
        if let Err(status) = done {
            return status as u32;
        }
    }
    0
}

/// # Safety
/// `from` is readable for `bytes`.
unsafe fn read(from: *const u8, bytes: usize) -> Vec<u8> {
    if bytes == 0 {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec()
}
