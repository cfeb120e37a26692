//! Pinned memory of the host, which the GPU reads while the host goes on.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use super::fault::OrFault;
use crate::error::Result;

/// CU_MEMHOSTALLOC_PORTABLE: pinned for every context, and cached, not write-combined: it is also
/// read.
const PORTABLE: u32 = 1;

/// Bytes that a copy reads until it was waited for: a caller that queues copies keeps an event for
/// each piece, and waits for it before it writes there again.
pub(super) struct Pinned {
    cuda: Arc<CudaContext>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the allocation belongs to this value alone, and the driver lets any thread write pinned
// memory and free it: the context is bound to the thread first.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `bytes` bytes, all zero.
    pub(super) fn new(cuda: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        let doing = "allocating pinned memory";
        cuda.bind_to_thread().or_fault(doing)?;
        // SAFETY: the memory holds no values that Rust knows of until it is zeroed below.
        let start = unsafe { result::malloc_host(bytes, PORTABLE) }.or_fault(doing)?.cast::<u8>();
        // SAFETY: exactly the bytes just allocated.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { cuda: cuda.clone(), start, bytes })
    }

    /// All of it.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `start` is an allocation of `bytes` initialised bytes, which only `self` refers
        // to.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A copy may still read it; after a failure none does, and the free fails as well.
        self.cuda.record_err(self.cuda.synchronize());
        // SAFETY: `start` came from malloc_host, is freed here only, and the device is idle.
        self.cuda.record_err(unsafe { result::free_host(self.start.cast()) });
    }
}
