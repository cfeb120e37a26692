//! Waiting for streams: their entries run here. While a collective waits for other ranks the device
//! is unlocked, so that other threads can use it: a watchdog queries an event or aborts a
//! communicator.

use super::op::Op;
use super::queue::Progress;
use super::status::Status;
use super::world::{DeviceState, World, world};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Poll interval of a waiting thread that is not notified of a change.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Pending launches of a stream, beyond which a launch blocks its caller, as on hardware.
const LAUNCHES_MAX: usize = 1024;

static CHANGES: Mutex<u64> = Mutex::new(0);
static CHANGED: Condvar = Condvar::new();

/// A locked device.
pub(crate) type Device = MutexGuard<'static, DeviceState>;

/// Wakes all threads that wait for other ranks.
pub(crate) fn changed() {
    *CHANGES.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    CHANGED.notify_all();
}

/// A counter that [`changed`] increments.
pub(crate) fn changes() -> u64 {
    *CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for [`changed`] or the poll interval; returns at once if [`changes`] is no longer `seen`.
pub(crate) fn wait_for_change(seen: u64) {
    let changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    if *changes == seen {
        drop(CHANGED.wait_timeout(changes, POLL_INTERVAL));
    }
}

/// Runs each of these streams until that many of its entries are done, and returns the device with
/// its sticky error, old or new.
pub(crate) fn finish(mut device: Device, targets: &[(usize, u64)]) -> (Device, Result<(), Status>) {
    let world = match world() {
        Ok(world) => world,
        Err(status) => return (device, Err(status)),
    };
    let index = device.index;
    loop {
        let seen = changes();
        let mut groups = Vec::new();
        for &(stream, sequence) in targets {
            match device.run_until(world, stream, sequence) {
                Ok(Progress::Done) => {}
                Ok(Progress::Waits { group }) => groups.push(group),
                Err(status) => return (device, Err(status)),
            }
        }
        if groups.is_empty() {
            return (device, Ok(()));
        }
        drop(device);
        groups.into_iter().for_each(|group| help(world, index, group));
        wait_for_change(seen);
        device = world.devices[index].lock().unwrap_or_else(PoisonError::into_inner);
    }
}

/// Runs everything that a stream holds now.
///
/// # Errors
/// An unknown stream, and the device's sticky error.
pub(crate) fn drain(device: Device, stream: usize) -> Result<Device, Status> {
    let pushed = device.streams.get(&stream).ok_or(Status::InvalidHandle)?.pushed;
    let (device, ran) = finish(device, &[(stream, pushed)]);
    ran.map(|()| device)
}

/// Appends a kernel, or a library's kernels, once its stream has a place; with
/// `CUDA_LAUNCH_BLOCKING=1` it runs now.
///
/// # Errors
/// As [`DeviceState::push`] and [`drain`].
pub(crate) fn push_launch(device: Device, stream: usize, op: Op) -> Result<(), Status> {
    let mut device = with_place(device, stream)?;
    device.push(stream, op)?;
    if world()?.settings.launch_blocking { drain(device, stream).map(|_| ()) } else { Ok(()) }
}

/// Waits until a stream has a place for a launch: where it is full, until its first one has run,
/// which a collective may delay for as long as its other ranks do not come.
fn with_place(mut device: Device, stream: usize) -> Result<Device, Status> {
    loop {
        let s = device.streams.get(&stream).ok_or(Status::InvalidHandle)?;
        if s.launches < LAUNCHES_MAX {
            return Ok(device);
        }
        let first = s.queue.iter().position(Op::is_launch).map_or(s.pushed, |at| s.done + at as u64 + 1);
        let (unlocked_meanwhile, ran) = finish(device, &[(stream, first)]);
        ran?;
        device = unlocked_meanwhile;
    }
}

/// Runs everything that the device's streams hold now.
pub(crate) fn drain_all(device: Device) -> (Device, Result<(), Status>) {
    let mut targets: Vec<(usize, u64)> = device.streams.iter().map(|(&id, s)| (id, s.pushed)).collect();
    targets.sort_unstable();
    finish(device, &targets)
}

/// A collective that waits forces what its other ranks have queued: their streams run up to their
/// own call of it, whether or not a thread waits for them. A device that another thread holds is
/// left to that thread.
pub(crate) fn help(world: &World, index: usize, group: usize) {
    for (_, device) in world.devices.iter().enumerate().filter(|&(other, _)| other != index) {
        let Ok(mut device) = device.try_lock() else { continue };
        for (stream, sequence) in device.collectives(group) {
            // An error stays with that device.
            let _ = device.run_until(world, stream, sequence);
        }
    }
}
