//! [`Results`]: numbers of the device that the host waits for, once a pass.

use std::fmt;

use bytemuck::Pod;
use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, result};

use super::buffer::DeviceSlice;
use super::context::Context;
use super::fault::OrFault;
use super::pinned::Pinned;
use crate::error::Result;

const DOING: &str = "waiting for the GPU's results";

/// Pinned memory that results are copied to. A copy to other memory would have the driver wait
/// within its call, at full speed on a core of the host.
pub(super) struct Results {
    pinned: Pinned,
    /// Recorded behind the copy.
    copied: CudaEvent,
    /// Bytes that are copied and were not read yet.
    queued: usize,
}

impl Results {
    /// Memory for `bytes` bytes of results.
    pub(super) fn new(context: &Context, bytes: usize) -> Result<Self> {
        let pinned = Pinned::new(context.cuda(), bytes)?;
        // The thread that waits sleeps: a pass is long, and others want the core.
        let sleeping = Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC);
        let copied = context.cuda().new_event(sleeping).or_fault(DOING)?;
        Ok(Self { pinned, copied, queued: 0 })
    }

    /// Queues the copy of the numbers in `from`, behind what is queued on the compute stream.
    ///
    /// # Panics
    ///
    /// When they are more than there is memory for, or those before were not read.
    pub(super) fn queue(&mut self, context: &Context, from: DeviceSlice<'_>) -> Result<()> {
        context.bind()?;
        assert_eq!(self.queued, 0, "results are read before others are queued");
        let bytes = &mut self.pinned.bytes()[..from.bytes()];
        // SAFETY: `bytes` is as long as `from`, which lies within its buffer. It is not read before
        // the event was waited for, and no other copy writes there until then; when that fails the
        // device is lost, and dropping it waits for the device.
        unsafe { result::memcpy_dtoh_async(bytes, from.address(), context.compute().cu_stream()) }
            .or_fault(DOING)?;
        self.queued = from.bytes();
        self.copied.record(context.compute()).or_fault(DOING)
    }

    /// Completes when the numbers that were queued are here.
    pub(super) fn copied(&self) -> &CudaEvent {
        &self.copied
    }

    /// Waits for the numbers that were queued last, and returns them. Failures of earlier kernels
    /// show here too.
    pub(super) fn read<T: Pod>(&mut self) -> Result<Vec<T>> {
        let count = std::mem::take(&mut self.queued);
        self.copied.synchronize().or_fault(DOING)?;
        let bytes = &self.pinned.bytes()[..count];
        // Pinned memory begins at a page.
        Ok(bytemuck::cast_slice(bytes).to_vec())
    }
}

impl fmt::Debug for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Results").finish_non_exhaustive()
    }
}
