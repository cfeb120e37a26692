//! [`Ring`]: the ring of pinned memory that weights pass through on their way to the device. It
//! belongs to the thread of the [`uploader`](super::uploader).
//!
//! A chunk is filled by one reader at a time, several chunks by several readers, and its copy is
//! queued as soon as it is full. A reader that gets a chunk waits for the copy out of it first:
//! chunks are handed out in the order of their copies, so that one that is not free yet would be so
//! before any other. Chunks of the next jobs are filled while those of the first one still are, but
//! copies are queued job by job: behind the wait for a slot's earlier contents may be copies only
//! that need it.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use super::fault::OrFault;
use super::pinned::Pinned;
use super::upload_job::{CHUNK_BYTES, DOING, JobKind, Piece, UploadJob, UploadState};
use crate::error::{Error, ErrorKind, Result};

/// Chunks of the ring: some are being filled while others wait for the link or are copied, 64 MiB
/// in all.
const CHUNKS: usize = 16;

/// Pinned memory, the threads that fill it, and the jobs in progress.
pub(super) struct Ring {
    copy: Arc<CudaStream>,
    /// Chunks that no reader has, in the order of the copies out of them.
    idle: VecDeque<Chunk>,
    readers: rayon::ThreadPool,
    /// Chunks that readers have.
    filling: usize,
    state: Arc<UploadState>,
    /// For readers, to return chunks.
    sender: Sender<Message>,
    jobs: VecDeque<Open>,
    /// Jobs that were completed.
    completed: u64,
    /// The error that ended an earlier job, and ends all jobs after it.
    failure: Option<Error>,
    /// Whether a piece has failed: no other is begun.
    failing: bool,
}

/// A message to the ring.
pub(super) enum Message {
    /// A job, which is completed by the receipt.
    Job(UploadJob, Sender<Result<()>>),
    /// A chunk from a reader.
    Filled(Filled),
    /// All jobs must end.
    End,
}

/// A chunk that a reader has filled, or has failed to.
pub(super) struct Filled {
    chunk: Chunk,
    /// The number of the job, counted over all.
    job: u64,
    piece: Piece,
    result: thread::Result<Result<()>>,
}

/// A job in progress.
struct Open {
    job: Arc<UploadJob>,
    receipt: Sender<Result<()>>,
    /// The last piece that a reader got.
    last: Option<Piece>,
    /// Pieces that readers have.
    filling: usize,
    /// Full chunks that wait for the jobs before.
    full: Vec<(Chunk, Piece)>,
    error: Option<Error>,
}

struct Chunk {
    pinned: Pinned,
    /// Recorded behind the copy out of this chunk.
    copied: CudaEvent,
}

impl Ring {
    /// A ring of pinned memory with so many threads of its own that fill it.
    pub(super) fn new(
        cuda: &Arc<CudaContext>,
        copy: Arc<CudaStream>,
        readers: usize,
        state: Arc<UploadState>,
        sender: Sender<Message>,
    ) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(readers)
            .thread_name(|index| format!("kudos-reader-{index}"))
            .build();
        let readers = pool.map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot start {readers} threads that read weights"))
                .caused_by(error)
        })?;
        let chunk = |_| -> Result<Chunk> {
            // Its waiter sleeps: the core is another reader's.
            let sleeping = Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC);
            let copied = cuda.new_event(sleeping).or_fault("creating an event")?;
            Ok(Chunk { pinned: Pinned::new(cuda, CHUNK_BYTES)?, copied })
        };
        Ok(Self {
            copy,
            idle: (0..CHUNKS).map(chunk).collect::<Result<_>>()?,
            readers,
            filling: 0,
            state,
            sender,
            jobs: VecDeque::new(),
            completed: 0,
            failure: None,
            failing: false,
        })
    }

    /// Does all jobs that come, until they must end.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        let mut ended = false;
        // Readers' chunks come back before the end: nothing fills memory that is freed.
        while !ended || self.filling > 0 {
            match messages.recv().expect("the ring itself has a sender") {
                Message::Job(job, receipt) => self.open(job, receipt),
                Message::Filled(filled) => self.take_back(filled),
                Message::End => ended = true,
            }
            self.complete_jobs();
            if !ended {
                self.fill_chunks();
            }
        }
    }

    fn open(&mut self, job: UploadJob, receipt: Sender<Result<()>>) {
        let job = Arc::new(job);
        self.jobs.push_back(Open { job, receipt, last: None, filling: 0, full: Vec::new(), error: None });
        if self.jobs.len() == 1 {
            self.begin_first();
        }
    }

    /// Takes a chunk from its reader, and queues its copy if its job is the first.
    fn take_back(&mut self, filled: Filled) {
        let Filled { chunk, job: number, piece, result } = filled;
        self.filling -= 1;
        let index = (number - self.completed) as usize;
        let open = &mut self.jobs[index];
        open.filling -= 1;
        match result.unwrap_or_else(|panicked| panic::resume_unwind(panicked)) {
            Ok(()) => open.full.push((chunk, piece)),
            Err(error) => {
                self.idle.push_back(chunk);
                open.error.get_or_insert(error);
                self.failing = true;
            }
        }
        if index == 0 {
            self.copy_full_chunks();
        }
    }

    /// Queues what comes before the copies of the first job, and those of its chunks that are full.
    fn begin_first(&mut self) {
        let Some(open) = self.jobs.front_mut() else { return };
        if let Some(error) = &self.failure {
            open.error.get_or_insert_with(|| error.clone());
        } else if let JobKind::Stage { free, .. } = open.job.kind()
            && let Err(error) = self.copy.wait(free).or_fault(DOING)
        {
            open.error.get_or_insert(error);
            self.failing = true;
        }
        self.copy_full_chunks();
    }

    /// Queues copies out of the full chunks of the first job. Once a job has failed, chunks are
    /// taken back without a copy.
    fn copy_full_chunks(&mut self) {
        let Some(open) = self.jobs.front_mut() else { return };
        for (mut chunk, piece) in open.full.drain(..) {
            if open.error.is_none()
                && let Err(error) = copy_chunk(&self.copy, &self.state, &open.job, &piece, &mut chunk)
            {
                open.error = Some(error);
                self.failing = true;
            }
            self.idle.push_back(chunk);
        }
    }

    /// Completes jobs, from the first on, whose copies are all queued or never will be.
    fn complete_jobs(&mut self) {
        while let Some(open) = self.jobs.front() {
            let is_read = open.error.is_some() || open.job.piece_after(open.last.as_ref()).is_none();
            if open.filling > 0 || !is_read {
                return;
            }
            let Open { job, receipt, error, .. } = self.jobs.pop_front().expect("there is a first one");
            self.completed += 1;
            let result = match (error, job.kind()) {
                (Some(error), _) => Err(error),
                (None, JobKind::Check) => Ok(()),
                (None, JobKind::Load { filled } | JobKind::Stage { filled, .. }) => {
                    filled.record(&self.copy).or_fault(DOING)
                }
            };
            if let Err(error) = &result {
                self.failing = true;
                self.failure.get_or_insert_with(|| error.clone());
            }
            // Before the receipt: this may free memory whose owner has dropped it.
            drop(job);
            let _ = receipt.send(result);
            self.begin_first();
        }
    }

    /// Gives idle chunks to readers, for the pieces of all jobs in their order.
    fn fill_chunks(&mut self) {
        for (number, open) in (self.completed..).zip(&mut self.jobs) {
            while let Some(piece) = open.job.piece_after(open.last.as_ref()).filter(|_| !self.failing) {
                let Some(chunk) = self.idle.pop_front() else { return };
                open.last = Some(piece.clone());
                open.filling += 1;
                self.filling += 1;
                let (job, state, sender) =
                    (Arc::clone(&open.job), Arc::clone(&self.state), self.sender.clone());
                self.readers.spawn(move || {
                    let mut chunk = chunk;
                    let fill = AssertUnwindSafe(|| fill_chunk(&mut chunk, &state, &job, &piece));
                    let result = panic::catch_unwind(fill);
                    // The ring drops the job last, and with it the memory that it keeps.
                    drop(job);
                    // Without a ring, which has panicked, this drops the chunk.
                    let _ = sender.send(Message::Filled(Filled { chunk, job: number, piece, result }));
                });
            }
        }
    }
}

/// Waits until a chunk is free, and fills it with a piece.
fn fill_chunk(chunk: &mut Chunk, state: &UploadState, job: &UploadJob, piece: &Piece) -> Result<()> {
    state.ended()?;
    let (rows, part) = (job.rows_of(piece), piece.rows());
    let byte_count = part.len() * rows.row_bytes;
    // An event that was never recorded is complete.
    chunk.copied.synchronize().or_fault(DOING)?;
    let bytes = chunk.pinned.bytes().get_mut(..byte_count).ok_or_else(|| {
        let message = format!("a row of {byte_count} bytes does not fit into {CHUNK_BYTES} of pinned memory");
        Error::new(ErrorKind::Unsupported, message)
    })?;
    // A layer is staged again and again; its weights were checked before.
    let is_checked = matches!(job.kind(), JobKind::Stage { .. });
    let result = rows.fill(part.start, bytes, Some(&state.subnormal).filter(|_| !is_checked));
    state.prefetcher.advance(rows.mapped_bytes_before(part.end) - rows.mapped_bytes_before(part.start));
    result
}

/// Queues the copy out of a chunk that was filled with a piece, if the piece is to be copied.
fn copy_chunk(
    copy: &CudaStream,
    state: &UploadState,
    job: &UploadJob,
    piece: &Piece,
    chunk: &mut Chunk,
) -> Result<()> {
    let (rows, part) = (job.rows_of(piece), piece.rows());
    let Some(address) = rows.destination(part) else { return Ok(()) };
    let bytes = &chunk.pinned.bytes()[..part.len() * rows.row_bytes];
    chunk.copied.context().bind_to_thread().or_fault(DOING)?;
    // SAFETY: as many bytes from `address` on lie in memory that the rows hold, and the job the
    // rows: freeing it after that waits for the device. No op uses it meanwhile: those on a slot's
    // old contents come before FREE, for which this stream waits since the job is the first, and
    // those on the new ones, or on a loaded weight, are queued behind a wait for FILLED. The chunk
    // is not written again before its event says that the copy is complete (`fill_chunk`), and
    // never when recording it fails, which ends all jobs; dropping it waits for the device.
    unsafe { result::memcpy_htod_async(address, bytes, copy.cu_stream()) }.or_fault(DOING)?;
    chunk.copied.record(copy).or_fault(DOING)?;
    if matches!(job.kind(), JobKind::Load { .. }) {
        let stored_bytes = (part.len() * rows.stored_row_bytes()) as u64;
        state.brought.fetch_add(stored_bytes, Ordering::Relaxed);
    }
    Ok(())
}
