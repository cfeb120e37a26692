//! Memory on the GPU: one type, allocated by the same call on every device, so that bytes can be
//! counted and running out of memory happens in one place.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaContext, CudaStream, result};

use super::fault::OrFault;
use crate::error::Result;

/// Bytes on the GPU. The start is aligned to 256 bytes, as the driver promises. Contents are
/// undefined at first.
pub struct DeviceBuffer {
    cuda: Arc<CudaContext>,
    start: CUdeviceptr,
    bytes: usize,
}

/// A part of a [`DeviceBuffer`] that is only read.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSlice<'a> {
    buffer: &'a DeviceBuffer,
    first: usize,
    bytes: usize,
}

impl DeviceBuffer {
    pub(super) fn new(cuda: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        let doing = || format!("allocating {bytes} bytes on GPU {}", cuda.ordinal());
        cuda.bind_to_thread().or_fault(doing())?;
        // The driver refuses zero bytes; an empty buffer still needs an address. SAFETY: the memory
        // holds no values that Rust knows of; it is only handed to copies and kernels.
        let start = unsafe { result::malloc_sync(bytes.max(1)) }.or_fault(doing())?;
        Ok(Self { cuda: cuda.clone(), start, bytes })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it, for reading.
    pub fn all(&self) -> DeviceSlice<'_> {
        self.slice(0..self.bytes)
    }

    /// A part of it, for reading.
    ///
    /// # Panics
    ///
    /// When the bytes are not within the buffer.
    pub fn slice(&self, bytes: Range<usize>) -> DeviceSlice<'_> {
        self.check(bytes.start, bytes.len());
        DeviceSlice { buffer: self, first: bytes.start, bytes: bytes.len() }
    }

    /// Copies `values` to byte `first` and on, behind what is queued on `stream`, and waits for the
    /// copy: a driver may read ordinary memory as late as the copy runs.
    ///
    /// # Panics
    ///
    /// When they do not fit.
    pub fn upload<T: Pod>(&mut self, first: usize, values: &[T], stream: &CudaStream) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.check(first, bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        self.cuda.bind_to_thread().or_fault("copying to the GPU")?;
        // SAFETY: the destination was checked to lie in this buffer, which is borrowed mutably;
        // work on the same stream is ordered before it. The source is borrowed until the stream was
        // waited for; when that fails the device is lost.
        unsafe { result::memcpy_htod_async(self.start + first as u64, bytes, stream.cu_stream()) }
            .or_fault("copying to the GPU")?;
        stream.synchronize().or_fault("copying to the GPU")
    }

    /// Fills the whole buffer with copies of `values`: one from the host, which is waited for, the
    /// others queued on the device.
    ///
    /// # Panics
    ///
    /// When there are no values.
    pub fn upload_repeated<T: Pod>(&mut self, values: &[T], stream: &CudaStream) -> Result<()> {
        let period: &[u8] = bytemuck::cast_slice(values);
        assert!(!period.is_empty(), "nothing to repeat");
        let mut filled = period.len().min(self.bytes);
        self.upload(0, &period[..filled], stream)?;
        while filled < self.bytes {
            let count = filled.min(self.bytes - filled);
            let to = self.start + filled as u64;
            // SAFETY: both parts lie in this buffer, which is borrowed mutably, and do not overlap:
            // the source ends where the destination begins, or before.
            unsafe { result::memcpy_dtod_async(to, self.start, count, stream.cu_stream()) }
                .or_fault("filling GPU memory")?;
            filled += count;
        }
        Ok(())
    }

    /// Queues that every byte becomes `byte`.
    pub fn fill(&mut self, byte: u8, stream: &CudaStream) -> Result<()> {
        self.cuda.bind_to_thread().or_fault("filling GPU memory")?;
        // SAFETY: exactly this buffer's bytes, which is borrowed mutably.
        unsafe { result::memset_d8_async(self.start, byte, self.bytes, stream.cu_stream()) }
            .or_fault("filling GPU memory")
    }

    fn check(&self, first: usize, bytes: usize) {
        let end = first.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "{bytes} bytes at {first} of a buffer of {}",
            self.bytes
        );
    }

    /// The address, for a kernel that reads and writes.
    pub(super) fn address(&self) -> CUdeviceptr {
        self.start
    }
}

impl DeviceSlice<'_> {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies all of it to the host, behind what is queued on `stream`, and waits for the copy.
    pub fn download<T: Pod>(&self, stream: &CudaStream) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); self.bytes / size_of::<T>()];
        if values.is_empty() {
            return Ok(values);
        }
        // Failures of earlier kernels show here too.
        let doing = "waiting for the GPU's results";
        self.buffer.cuda.bind_to_thread().or_fault(doing)?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        // SAFETY: `bytes` is no longer than this slice, which lies within its buffer, and any bytes
        // are a `T`. The destination is not read before the stream was waited for; when that fails
        // the device is lost.
        unsafe { result::memcpy_dtoh_async(bytes, self.address(), stream.cu_stream()) }.or_fault(doing)?;
        stream.synchronize().or_fault(doing)?;
        Ok(values)
    }

    /// The slice without its first `bytes` bytes.
    ///
    /// # Panics
    ///
    /// When it has fewer.
    pub(super) fn after(&self, bytes: usize) -> Self {
        assert!(bytes <= self.bytes, "{bytes} bytes of a part of {}", self.bytes);
        Self { first: self.first + bytes, bytes: self.bytes - bytes, ..*self }
    }

    pub(super) fn address(&self) -> CUdeviceptr {
        self.buffer.start + self.first as u64
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // Waits for kernels that use it; after a failure none runs, and the free fails as well.
        self.cuda.record_err(self.cuda.synchronize());
        // SAFETY: `start` came from malloc_sync, is freed here only, and the device is idle.
        self.cuda.record_err(unsafe { result::free_sync(self.start) });
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceBuffer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
