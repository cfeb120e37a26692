//! A context on one GPU with its two streams.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result};

use super::buffer::DeviceBuffer;
use super::fault::{OrFault, context_opened};
use super::probe::DeviceInfo;
use crate::error::Result;

/// One rank's context on a GPU. Kernels run on the compute stream in the order of their launches;
/// copies that may run beside them go to the copy stream, and events order the two.
pub struct Context {
    info: DeviceInfo,
    cuda: Arc<CudaContext>,
    compute: Arc<CudaStream>,
    copy: Arc<CudaStream>,
}

impl Context {
    /// Opens the GPU that [`devices`](super::probe::devices) found.
    pub fn open(info: &DeviceInfo) -> Result<Self> {
        let doing = format!("opening GPU {} ({})", info.ordinal, info.name);
        let cuda = CudaContext::new(info.ordinal).or_fault(&doing)?;
        // SAFETY: no slice or view of the bindings is used, whose lifetimes tracking would guard:
        // memory is in DeviceBuffer, and the two streams are ordered by our own events. Tracking
        // would make every part of a buffer wait for every other one, which serialises copies with
        // compute.
        unsafe { cuda.disable_event_tracking() };
        let compute = cuda.new_stream().or_fault(&doing)?;
        let copy = cuda.new_stream().or_fault(&doing)?;
        context_opened();
        Ok(Self { info: info.clone(), cuda, compute, copy })
    }

    /// The GPU.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Uninitialised memory on the GPU; [`ErrorKind::Memory`](crate::ErrorKind::Memory) when there
    /// is not that much.
    pub fn allocate(&self, bytes: usize) -> Result<DeviceBuffer> {
        DeviceBuffer::new(&self.cuda, bytes)
    }

    /// Memory that is free at present, in bytes.
    pub fn free_bytes(&self) -> Result<usize> {
        self.bind()?;
        Ok(result::mem_get_info().or_fault("asking for free GPU memory")?.0)
    }

    /// Waits for everything queued on either stream.
    pub fn synchronize(&self) -> Result<()> {
        self.copy.synchronize().or_fault("copying to the GPU")?;
        self.compute.synchronize().or_fault("computing on the GPU")
    }

    /// Makes this the calling thread's context, and reports failures of calls that return nothing
    /// (a free).
    pub fn bind(&self) -> Result<()> {
        self.cuda.bind_to_thread().or_fault("selecting the GPU")
    }

    /// The stream of kernels.
    pub fn compute(&self) -> &Arc<CudaStream> {
        &self.compute
    }

    /// The stream of copies that kernels need not wait for.
    pub fn copy(&self) -> &Arc<CudaStream> {
        &self.copy
    }

    pub(super) fn cuda(&self) -> &Arc<CudaContext> {
        &self.cuda
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("info", &self.info).finish_non_exhaustive()
    }
}
