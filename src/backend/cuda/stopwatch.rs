//! [`Stopwatch`]: the time of work on the compute stream, by the device's clock.

use std::fmt;
use std::sync::OnceLock;

use cudarc::driver::sys::{CUevent, CUevent_flags, CUresult, culib};
use cudarc::driver::{CudaEvent, result};

use super::buffer::{DeviceBuffer, DeviceSlice};
use super::context::Context;
use super::fault::OrFault;
use super::probe::driver_version;
use crate::error::{Error, ErrorKind, Result};

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
        seconds_between(&self.start, &self.end)
    }
}

/// Seconds from one recorded event to another, which are of one context; waits for both.
pub(super) fn seconds_between(start: &CudaEvent, end: &CudaEvent) -> Result<f64> {
    for event in [start, end] {
        event.synchronize().or_fault(DOING)?;
    }
    let mut milliseconds = 0.0;
    // SAFETY: the events are alive, and the call writes one f32.
    unsafe { elapsed_time()?(&mut milliseconds, start.cu_event(), end.cu_event()) }
        .result()
        .or_fault(DOING)?;
    Ok(f64::from(milliseconds) / 1e3)
}

/// `cuEventElapsedTime`
type ElapsedTime = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;

/// The driver that has the second version of the function: 12.8. The bindings panic where it is
/// missing.
const DRIVER_OF_V2: i32 = 12_080;

/// The driver's function that tells the time between two events.
fn elapsed_time() -> Result<ElapsedTime> {
    static FOUND: OnceLock<Result<ElapsedTime>> = OnceLock::new();
    let find = || {
        let name =
            if driver_version()? >= DRIVER_OF_V2 { "cuEventElapsedTime_v2" } else { "cuEventElapsedTime" };
        // SAFETY: a driver was found before there were events; the function has this type in
        // cuda.h, in both versions, and the driver stays loaded.
        let found = unsafe { culib().get::<ElapsedTime>(name.as_bytes()) };
        let missing = |error: libloading::Error| {
            Error::new(ErrorKind::Device, format!("the CUDA driver has no `{name}`")).caused_by(error)
        };
        found.map(|function| *function).map_err(missing)
    };
    FOUND.get_or_init(find).clone()
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
