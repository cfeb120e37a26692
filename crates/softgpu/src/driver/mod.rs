//! The CUDA driver's entry points, over devices whose streams are lazy queues.
//!
//! The thread that synchronises runs the work, in the order that events force and no earlier: a
//! missing event shows every time. Copies from pageable host memory read it at the call, as the
//! driver does; pinned memory is read when the copy runs.

pub(crate) mod calls;
pub mod context;
pub mod entry_points;
pub mod launch;
mod limits;
pub mod memory;
pub mod op;
pub mod queue;
pub mod settings;
pub mod status;
pub mod stream;
pub mod tensor_map;
pub mod trace;
pub mod version;
pub(crate) mod wait;
pub mod world;

use status::Status;
use std::cell::Cell;
use std::sync::MutexGuard;
use world::{DeviceState, World, world};

thread_local! {
    /// The current context as a handle; 0 is none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// `CUresult`: 0, or an error's number.
pub type CuResult = u32;

/// A result as the ABI's number.
pub(crate) fn code(result: Result<(), Status>) -> CuResult {
    match result {
        Ok(()) => 0,
        Err(status) => status as u32,
    }
}

/// Stores an out parameter.
///
/// # Safety
/// `to` is null or points to writable memory for a `T`.
pub(crate) unsafe fn store<T>(to: *mut T, value: T) -> Result<(), Status> {
    if to.is_null() {
        return Err(Status::InvalidValue);
    }
    // SAFETY: not null, and writable by the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Index of the current context's device.
pub(crate) fn current_device() -> Result<usize, Status> {
    match CURRENT.get() {
        0 => Err(Status::InvalidContext),
        handle => Ok(handle - 1),
    }
}

/// The device of a handle (stream, event, module, function), which is in its upper bits; null means
/// the current device.
pub(crate) fn device_of(handle: usize) -> Result<usize, Status> {
    match handle >> world::HANDLE_SHIFT {
        0 => current_device(),
        tag => Ok(tag - 1),
    }
}

/// Locks a device. A sticky error comes back for as long as it lasts.
pub(crate) fn enter(device: usize) -> Result<MutexGuard<'static, DeviceState>, Status> {
    let state = lock(device)?;
    match state.error {
        Some(status) => Err(status),
        None => Ok(state),
    }
}

/// Locks a device whatever its state.
pub(crate) fn lock(device: usize) -> Result<MutexGuard<'static, DeviceState>, Status> {
    let world: &'static World = world()?;
    let device = world.devices.get(device).ok_or(Status::InvalidDevice)?;
    Ok(device.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}
