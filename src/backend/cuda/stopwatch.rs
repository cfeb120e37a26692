//! [`Stopwatch`]: the time of work on the compute stream, by the device's clock.

use std::fmt;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, result};

use super::buffer::{DeviceBuffer, DeviceSlice};
use super::context::Context;
use super::fault::OrFault;
use crate::error::Result;

const DOING: &str = "timing work on the GPU";

/// Two events, recorded before and after work.
pub struct Stopwatch {
    start: CudaEvent,
    end: CudaEvent,
}

impl Stopwatch {
    /// A stopwatch of this context.
    pub fn new(context: &Context) -> Result<Self> {
        let event = || context.cuda().new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC)).or_fault(DOING);
        Ok(Self { start: event()?, end: event()? })
    }

    /// Seconds from the start to the end of what `queue` queues on the compute stream of `context`;
    /// waits for it.
    pub fn time(&self, context: &Context, queue: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.start.record(context.compute()).or_fault(DOING)?;
        queue()?;
        self.end.record(context.compute()).or_fault(DOING)?;
        let ms = self.start.elapsed_ms(&self.end).or_fault(DOING)?;
        Ok(f64::from(ms) / 1e3)
    }
}

/// Queues a copy of all of `from` to the start of `to` on the compute stream: the yardstick of
/// memory-bound kernels.
///
/// # Panics
///
/// When it does not fit.
pub fn copy(context: &Context, from: DeviceSlice<'_>, to: &mut DeviceBuffer) -> Result<()> {
    assert!(from.bytes() <= to.bytes(), "a copy of {} bytes into {}", from.bytes(), to.bytes());
    context.bind()?;
    let stream = context.compute().cu_stream();
    // SAFETY: as many bytes as both have; `to` is borrowed mutably, so `from` is another buffer;
    // dropping either waits for the device.
    unsafe { result::memcpy_dtod_async(to.address(), from.address(), from.bytes(), stream) }
        .or_fault("copying on the GPU")
}

impl fmt::Debug for Stopwatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopwatch").finish_non_exhaustive()
    }
}
