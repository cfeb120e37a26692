//! Streams and events.

use super::calls::called;
use super::op::{Event, Op, Stream};
use super::queue::Progress;
use super::status::Status;
use super::version::{ELAPSED_TIME_V2_SINCE, driver_version};
use super::wait::{drain, finish, help};
use super::world::world;
use super::{CuResult, code, current_device, device_of, enter, lock, store};
use std::ffi::{c_int, c_uint};

const STREAM_NON_BLOCKING: c_uint = 1;

/// The greatest priority of a stream; the least is 0.
const PRIORITY_GREATEST: c_int = -5;

/// A stream of the current device.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut usize, flags: c_uint) -> CuResult {
    called("cuStreamCreate");
    // SAFETY: as this function's.
    unsafe { create(stream, flags, 0) }
}

/// Creates a stream whose priority the trace shows; it changes nothing else.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: *mut usize,
    flags: c_uint,
    priority: c_int,
) -> CuResult {
    called("cuStreamCreateWithPriority");
    // SAFETY: as this function's.
    unsafe { create(stream, flags, priority.clamp(PRIORITY_GREATEST, 0)) }
}

/// # Safety
/// `stream` is null or can be written.
unsafe fn create(stream: *mut usize, flags: c_uint, priority: c_int) -> CuResult {
    code(current_device().and_then(enter).and_then(|mut d| {
        let handle = d.handle();
        let blocking = flags & STREAM_NON_BLOCKING == 0;
        d.streams.insert(handle, Stream { blocking, priority, ..Stream::default() });
        // SAFETY: the caller's out parameter.
        unsafe { store(stream, handle) }
    }))
}

/// The least priority of streams, and the greatest, which is a lower number.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> CuResult {
    called("cuCtxGetStreamPriorityRange");
    let range = || {
        current_device()?;
        // SAFETY: the caller's out parameters.
        unsafe {
            store(least, 0)?;
            store(greatest, PRIORITY_GREATEST)
        }
    };
    code(range())
}

/// Runs what is left, then forgets the stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: usize) -> CuResult {
    called("cuStreamDestroy_v2");
    code(device_of(stream).and_then(lock).and_then(|d| {
        let Some(s) = d.streams.get(&stream).filter(|_| stream != 0) else {
            return Err(Status::InvalidHandle);
        };
        let pushed = s.pushed;
        let (mut d, ran) = finish(d, &[(stream, pushed)]);
        if let Some(s) = d.streams.remove(&stream) {
            d.trace.forget(&s);
        }
        ran
    }))
}

/// Runs the stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: usize) -> CuResult {
    called("cuStreamSynchronize");
    code(device_of(stream).and_then(enter).and_then(|d| drain(d, stream)).map(|_| ()))
}

/// Later work of the stream waits for the event's last record.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) -> CuResult {
    called("cuStreamWaitEvent");
    code(device_of(stream).and_then(enter).and_then(|mut d| {
        if device_of(event)? != d.index {
            eprintln!("softgpu: an event of another device cannot be waited for");
            return Err(Status::NotSupported);
        }
        match d.events.get(&event).ok_or(Status::InvalidHandle)?.recorded {
            Some((other, sequence)) if other != stream => {
                d.push(stream, Op::Wait { stream: other, sequence })
            }
            _ => Ok(()),
        }
    }))
}

/// An event of the current device.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut usize, _flags: c_uint) -> CuResult {
    called("cuEventCreate");
    code(current_device().and_then(enter).and_then(|mut d| {
        let handle = d.handle();
        d.events.insert(handle, Event::default());
        // SAFETY: the caller's out parameter.
        unsafe { store(event, handle) }
    }))
}

/// Forgets the event.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: usize) -> CuResult {
    called("cuEventDestroy_v2");
    code(device_of(event).and_then(lock).and_then(|mut d| {
        d.events.remove(&event).map(|_| ()).ok_or(Status::InvalidHandle)?;
        d.error.map_or(Ok(()), Err)
    }))
}

/// The event now stands for all that the stream holds.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: usize, stream: usize) -> CuResult {
    called("cuEventRecord");
    code(device_of(event).and_then(enter).and_then(|mut d| {
        d.push(stream, Op::Record { event })?;
        let sequence = d.streams[&stream].pushed;
        let event = d.events.get_mut(&event).ok_or(Status::InvalidHandle)?;
        event.recorded = Some((stream, sequence));
        event.passed = None;
        Ok(())
    }))
}

/// Whether the event has passed. Each query that says no runs one more entry of the stream, so that
/// polling ends; it does not wait for other ranks.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: usize) -> CuResult {
    called("cuEventQuery");
    code(device_of(event).and_then(enter).and_then(|mut d| {
        let Some((stream, sequence)) = d.events.get(&event).ok_or(Status::InvalidHandle)?.recorded else {
            return Ok(());
        };
        let done = d.streams.get(&stream).map_or(u64::MAX, |s| s.done);
        if done >= sequence {
            return Ok(());
        }
        let world = world()?;
        if let Progress::Waits { group } = d.run_until(world, stream, done + 1)? {
            let index = d.index;
            drop(d);
            help(world, index, group);
        }
        Err(Status::NotReady)
    }))
}

/// Runs the event's stream up to its record.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: usize) -> CuResult {
    called("cuEventSynchronize");
    code(device_of(event).and_then(enter).and_then(|d| {
        match d.events.get(&event).ok_or(Status::InvalidHandle)?.recorded {
            Some(target) => finish(d, &[target]).1,
            None => Ok(()),
        }
    }))
}

/// Milliseconds on the host's clock between two events that have passed.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, start: usize, end: usize) -> CuResult {
    called("cuEventElapsedTime");
    // SAFETY: the caller's out parameter.
    code(unsafe { elapsed(ms, start, end) })
}

/// As [`cuEventElapsedTime`], on drivers that have it; with an older one of `SOFTGPU_DRIVER`, its
/// call ends the process, as a call through a null pointer would.
///
/// # Safety
/// As the CUDA driver documents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(ms: *mut f32, start: usize, end: usize) -> CuResult {
    called("cuEventElapsedTime_v2");
    if driver_version() < ELAPSED_TIME_V2_SINCE {
        eprintln!(
            "softgpu: this driver has no cuEventElapsedTime_v2 (SOFTGPU_DRIVER is {})",
            driver_version()
        );
        std::process::abort();
    }
    // SAFETY: the caller's out parameter.
    code(unsafe { elapsed(ms, start, end) })
}

/// # Safety
/// As [`store`], for `ms`.
unsafe fn elapsed(ms: *mut f32, start: usize, end: usize) -> Result<(), Status> {
    let d = device_of(start).and_then(enter)?;
    let passed =
        |event: usize| d.events.get(&event).ok_or(Status::InvalidHandle)?.passed.ok_or(Status::NotReady);
    let elapsed = passed(end)?.saturating_duration_since(passed(start)?);
    // SAFETY: the caller's promise.
    unsafe { store(ms, elapsed.as_secs_f32() * 1e3) }
}
