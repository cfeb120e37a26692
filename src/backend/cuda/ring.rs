//! [`Ring`]: the ring of pinned memory that weights pass through on their way to the device. It
//! belongs to the thread of the [`uploader`](super::uploader).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};
use rayon::prelude::*;

use super::fault::OrFault;
use super::pinned::Pinned;
use super::upload_job::{DOING, JobKind, UploadJob, UploadState};
use super::weight::WeightRows;
use crate::error::{Error, ErrorKind, Result};

/// Chunks of the ring: some are being filled and copied while others wait for the link.
const CHUNKS: usize = 4;

/// Bytes of a chunk: a copy of it takes far longer than starting one, on any link.
const CHUNK_BYTES: usize = 16 << 20;

/// Bytes that are worth a reader of their own.
const READ_BYTES_MIN: usize = 256 << 10;

/// Pinned memory, and the threads that fill it.
pub(super) struct Ring {
    cuda: Arc<CudaContext>,
    copy: Arc<CudaStream>,
    chunks: Vec<Chunk>,
    next: usize,
    readers: rayon::ThreadPool,
    state: Arc<UploadState>,
}

struct Chunk {
    pinned: Pinned,
    /// Recorded behind the copy out of this chunk.
    copied: CudaEvent,
}

impl Ring {
    /// A ring of pinned memory with so many threads of its own that fill it.
    pub(super) fn new(
        cuda: Arc<CudaContext>,
        copy: Arc<CudaStream>,
        readers: usize,
        state: Arc<UploadState>,
    ) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(readers)
            .thread_name(|index| format!("kudos-reader-{index}"))
            .build();
        let readers = pool.map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot start {readers} threads that read weights"))
                .caused_by(error)
        })?;
        let chunk = || -> Result<Chunk> {
            // Its waiter sleeps: the core is a reader's.
            let sleeping = Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC);
            let copied = cuda.new_event(sleeping).or_fault("creating an event")?;
            Ok(Chunk { pinned: Pinned::new(&cuda, CHUNK_BYTES)?, copied })
        };
        let chunks = (0..CHUNKS).map(|_| chunk()).collect::<Result<_>>()?;
        Ok(Self { cuda, copy, chunks, next: 0, readers, state })
    }

    /// Fills and queues every copy of a job, and records its event.
    pub(super) fn upload(&mut self, job: &UploadJob) -> Result<()> {
        self.cuda.bind_to_thread().or_fault(DOING)?;
        if let JobKind::Stage { free, .. } = job.kind() {
            self.copy.wait(free).or_fault(DOING)?;
        }
        for rows in job.rows() {
            self.upload_rows(rows, job.kind())?;
        }
        match job.kind() {
            JobKind::Check => Ok(()),
            JobKind::Load { filled } | JobKind::Stage { filled, .. } => {
                filled.record(&self.copy).or_fault(DOING)
            }
        }
    }

    fn upload_rows(&mut self, rows: &WeightRows, kind: &JobKind) -> Result<()> {
        if rows.row_bytes > CHUNK_BYTES {
            let message =
                format!("a row of {} bytes does not fit into {CHUNK_BYTES} of pinned memory", rows.row_bytes);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        // A layer is staged again and again; its weights were checked before.
        let subnormal = Some(&self.state.subnormal).filter(|_| !matches!(kind, JobKind::Stage { .. }));
        let rows_at_once = CHUNK_BYTES / rows.row_bytes.max(1);
        for start in (0..rows.count).step_by(rows_at_once) {
            if let Some(error) = self.state.ends() {
                return Err(error);
            }
            let part = start..rows.count.min(start + rows_at_once);
            let stored_bytes = (part.len() * rows.stored_row_bytes()) as u64;
            let (address, byte_count) = rows.destination(&part);
            let chunk = &mut self.chunks[self.next];
            self.next = (self.next + 1) % CHUNKS;
            // An event that was never recorded is complete.
            chunk.copied.synchronize().or_fault(DOING)?;
            let bytes = &mut chunk.pinned.bytes()[..byte_count];
            fill(&self.readers, rows, start, bytes, subnormal)?;
            if matches!(kind, JobKind::Check) {
                continue;
            }
            // SAFETY: `destination` lies in the weight that the rows were made for, which lives:
            // that of a load until the receipt (`UploadJob::load`), a slot is kept by the job, and
            // freeing either waits for the device. No op uses it meanwhile: those on a slot's old
            // contents come before FREE, for which this stream waits, and those on the new ones, or
            // on a loaded weight, are queued behind a wait for FILLED. The chunk is not written
            // again before its event says that the copy is complete, and dropping it waits for the
            // device.
            unsafe { result::memcpy_htod_async(address, bytes, self.copy.cu_stream()) }.or_fault(DOING)?;
            chunk.copied.record(&self.copy).or_fault(DOING)?;
            if matches!(kind, JobKind::Load { .. }) {
                self.state.brought.fetch_add(stored_bytes, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Lets the readers write rows from `first` on into `bytes`, each some of them.
fn fill(
    readers: &rayon::ThreadPool,
    rows: &WeightRows,
    first: usize,
    bytes: &mut [u8],
    subnormal: Option<&AtomicU64>,
) -> Result<()> {
    let count = bytes.len() / rows.row_bytes.max(1);
    let least = READ_BYTES_MIN.div_ceil(rows.row_bytes.max(1));
    let share = count.div_ceil(readers.current_num_threads()).max(least);
    if share >= count {
        return rows.fill(first, bytes, subnormal);
    }
    let shares = bytes.par_chunks_mut(share * rows.row_bytes).enumerate();
    readers
        .install(|| shares.try_for_each(|(index, bytes)| rows.fill(first + index * share, bytes, subnormal)))
}
