//! [`Uploader`]: a thread that copies weights to the device through a ring of pinned memory.
//!
//! It takes jobs one after the other. For each chunk of a job it waits until the ring's next chunk
//! is free, lets a few readers fill it from the mapped files, converted and laid out, and queues
//! its copy on the copy stream: files are read while earlier chunks travel, and both go on while
//! kernels run on the compute stream. The streams are ordered by events alone:
//!
//! ```text
//! compute stream   ... last op on the old contents | record FREE    ...    wait FILLED | first op on the contents ...
//! copy stream                           wait FREE | copy | copy | ... | record FILLED
//! host             job >---------------> the thread fills and queues >---------------> receipt, then the wait is queued
//! ```
//!
//! A stream can wait only for an event that was recorded, so the host waits for the receipt, which
//! says that FILLED is, before it queues the compute stream's wait. The thread itself waits for
//! queued copies only, and they for queued ops only: without jobs it sleeps, and it can always be
//! joined.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use cudarc::driver::CudaEvent;

use super::context::Context;
use super::fault::OrFault;
use super::nccl::Group;
use super::ring::Ring;
use super::upload_job::{DOING, UploadJob, UploadState};
use super::weight::Weight;
use crate::backend::HostWeight;
use crate::error::{Error, ErrorKind, Result};

/// Readers, at most: a core copies several GB/s out of the page cache, the fastest link takes about
/// 50.
const READERS_MAX: usize = 8;

/// Completes when all copies of a job are queued and its event is recorded, or with the error that
/// kept it from that.
pub(super) struct Receipt(Receiver<Result<()>>);

impl Receipt {
    pub(super) fn wait(self) -> Result<()> {
        let ended = || Error::new(ErrorKind::Stopped, "the thread that copies weights to the GPU has ended");
        self.0.recv().map_err(|_| ended())?
    }
}

/// The thread, and the channel to it.
pub(super) struct Uploader {
    jobs: Option<Sender<(UploadJob, Sender<Result<()>>)>>,
    thread: Option<JoinHandle<()>>,
    state: Arc<UploadState>,
    /// For weights that are loaded once; recorded anew for each of them.
    loaded: Arc<CudaEvent>,
}

impl Uploader {
    /// Starts the thread and its readers, a share of this machine's cores for each rank of `group`.
    pub(super) fn new(context: &Context, group: Option<Arc<Group>>) -> Result<Self> {
        let ranks = group.as_ref().map_or(1, |group| group.ranks());
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let readers = (cores / ranks).clamp(1, READERS_MAX);
        let loaded = Arc::new(context.cuda().new_event(None).or_fault("creating an event")?);
        let (stop, subnormal, brought) = (AtomicBool::new(false), AtomicU64::new(0), Arc::default());
        let state = Arc::new(UploadState { stop, group, subnormal, brought });
        let (jobs, queue) = mpsc::channel::<(UploadJob, Sender<Result<()>>)>();
        let (cuda, copy) = (Arc::clone(context.cuda()), Arc::clone(context.copy()));
        let (ready, is_ready) = mpsc::channel();
        let shared = Arc::clone(&state);
        let work = move || {
            let mut ring = match Ring::new(cuda, copy, readers, shared) {
                Ok(ring) => ring,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            for (job, receipt) in queue {
                let result = ring.upload(&job);
                // Before the receipt: this may free a slot that its owner has dropped.
                drop(job);
                let _ = receipt.send(result);
            }
        };
        let thread = thread::Builder::new().name("kudos-uploader".to_owned()).spawn(work);
        let thread = thread.map_err(|error| {
            Error::new(ErrorKind::Io, "cannot start a thread that copies weights").caused_by(error)
        })?;
        Receipt(is_ready).wait()?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), state, loaded })
    }

    /// Queues a job behind those before it.
    pub(super) fn submit(&self, job: UploadJob) -> Receipt {
        let (receipt, receiver) = mpsc::channel();
        if let Some(jobs) = &self.jobs {
            // If the thread has ended, so has the receipt's sender, and waiting for the receipt
            // reports it.
            let _ = jobs.send((job, receipt));
        }
        Receipt(receiver)
    }

    /// Copies `part` into a weight that is loaded once, for ops queued on the compute stream from
    /// here on. The host does not wait for the copies, and the next weight is read while they
    /// travel.
    pub(super) fn load(&self, context: &Context, weight: &Weight, part: &HostWeight<'_>) -> Result<()> {
        // SAFETY: the weight is borrowed until the receipt was waited for.
        let job = unsafe { UploadJob::load(weight, part, Arc::clone(&self.loaded)) };
        self.submit(job).wait()?;
        context.compute().wait(&self.loaded).or_fault(DOING)
    }

    /// Weights that became subnormal f16 numbers when they were loaded or checked, and lost digits
    /// by it.
    pub(super) fn subnormal(&self) -> u64 {
        self.state.subnormal.load(Ordering::Relaxed)
    }

    /// Bytes of weights, as stored, that are loaded to stay: on the device or on their way.
    pub(super) fn brought(&self) -> &Arc<AtomicU64> {
        &self.state.brought
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it was reported by the receipt that never completed.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Uploader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploader").finish_non_exhaustive()
    }
}
