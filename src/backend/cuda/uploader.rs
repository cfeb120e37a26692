//! [`Uploader`]: a thread that copies weights to the device through a ring of pinned memory.
//!
//! It takes jobs in order. Readers fill the ring's chunks, several at once, and the thread queues
//! each chunk's copy on the copy stream when it is full. Rows that the device holds as they are
//! stored, one behind the other, are read from their file straight into the chunk; others are
//! converted and laid out from where they are mapped. Files are read while earlier chunks travel,
//! across the ends of jobs, and both go on while kernels run on the compute stream. Rows that are
//! used where they are mapped are prefetched ([`Prefetcher`]), for a page fault reads little and
//! waits; rows that calls read are not, for calls of several readers for whole chunks keep a disk
//! busy by themselves, and leave larger pages in the cache. The streams are ordered by events
//! alone:
//!
//! ```text
//! compute stream   ... last op on the old contents | record FREE    ...    wait FILLED | first op on the contents ...
//! copy stream                           wait FREE | copy | copy | ... | record FILLED
//! host             job >---------------> the thread fills and queues >---------------> receipt, then the wait is queued
//! ```
//!
//! A stream can wait only for an event that was recorded, so the host waits for the receipt, which
//! says that FILLED is, before it queues the compute stream's wait. For a slot it does so when the
//! layer is needed, for weights that are loaded once when all are: until then their receipts are
//! kept. The thread itself waits for readers only, these for queued copies, and they for queued
//! ops: without jobs it sleeps, and it can always be joined.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};

use cudarc::driver::CudaEvent;

use super::context::Context;
use super::fault::OrFault;
use super::nccl::Group;
use super::ring::{Message, Ring};
use super::upload_job::{DOING, UploadJob, UploadState};
use super::weight::{Weight, WeightLayout};
use crate::backend::HostWeight;
use crate::error::{Error, ErrorKind, Result};
use crate::weights::{LayerTensors, Prefetcher};

/// Readers, at most: a core copies several GB/s out of the page cache, the fastest link takes about
/// 50.
const READERS_MAX: usize = 8;

/// Receipts that are kept, at most: those of some eight layers, so that the disk never waits for
/// the host to allocate the next weight.
const RECEIPTS_MAX: usize = 64;

/// Completes when all copies of a job are queued and its event is recorded, or with the error that
/// kept it from that.
pub(super) struct Receipt(Receiver<Result<()>>);

impl Receipt {
    pub(super) fn wait(self) -> Result<()> {
        self.0.recv().map_err(|_| ended())?
    }

    /// The result of a job that is completed.
    fn poll(&self) -> Option<Result<()>> {
        match self.0.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(ended())),
        }
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Stopped, "the thread that copies weights to the GPU has ended")
}

/// The thread, and the channel to it.
pub(super) struct Uploader {
    messages: Sender<Message>,
    thread: Option<JoinHandle<()>>,
    state: Arc<UploadState>,
    /// For weights that are loaded once; recorded anew for each of them.
    loaded: Arc<CudaEvent>,
    /// Receipts of loads and checks, first to last.
    receipts: VecDeque<Receipt>,
}

impl Uploader {
    /// Starts the thread and its readers, a share of this machine's cores for each rank of `group`.
    pub(super) fn new(context: &Context, group: Option<Arc<Group>>) -> Result<Self> {
        let ranks = group.as_ref().map_or(1, |group| group.ranks());
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let readers = (cores / ranks).clamp(1, READERS_MAX);
        let loaded = Arc::new(context.cuda().new_event(None).or_fault("creating an event")?);
        let (stop, subnormal, brought) = (AtomicBool::new(false), AtomicU64::new(0), Arc::default());
        let state = Arc::new(UploadState { stop, group, subnormal, brought, prefetcher: Prefetcher::new()? });
        let (sender, messages) = mpsc::channel();
        let (cuda, copy) = (Arc::clone(context.cuda()), Arc::clone(context.copy()));
        let (ready, is_ready) = mpsc::channel();
        let (shared, returns) = (Arc::clone(&state), sender.clone());
        let work = move || match Ring::new(&cuda, copy, readers, shared, returns) {
            Ok(ring) => {
                let _ = ready.send(Ok(()));
                ring.run(&messages);
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        let thread = thread::Builder::new().name("kudos-uploader".to_owned()).spawn(work);
        let thread = thread.map_err(|error| {
            Error::new(ErrorKind::Io, "cannot start a thread that copies weights").caused_by(error)
        })?;
        Receipt(is_ready).wait()?;
        Ok(Self { messages: sender, thread: Some(thread), state, loaded, receipts: VecDeque::new() })
    }

    /// Queues a job behind those before it.
    pub(super) fn submit(&self, job: UploadJob) -> Receipt {
        let (receipt, receiver) = mpsc::channel();
        self.state.prefetcher.queue(job.mapped());
        // If the thread has ended, so has the receipt's sender, and waiting for the receipt reports
        // it.
        let _ = self.messages.send(Message::Job(job, receipt));
        Receipt(receiver)
    }

    /// Begins to read the files of a layer that will probably be loaded first.
    pub(super) fn prefetch(&self, layer: &LayerTensors) {
        self.state.prefetcher.guess(layer.tensors());
    }

    /// Begins to copy `part` into a weight that is loaded once. An error may be one of an earlier
    /// load. Ops may use the weight after [`finish_loads`](Self::finish_loads).
    pub(super) fn load(&mut self, weight: &Weight, part: &HostWeight<'_>) -> Result<()> {
        self.submit_kept(UploadJob::load(weight, part, Arc::clone(&self.loaded)))
    }

    /// Begins to check the weights of a layer, like [`load`](Self::load).
    pub(super) fn check(&mut self, layout: WeightLayout, layer: &LayerTensors) -> Result<()> {
        self.submit_kept(UploadJob::check(layout, layer))
    }

    fn submit_kept(&mut self, job: UploadJob) -> Result<()> {
        self.state.ended()?;
        while let Some(result) = self.receipts.front().and_then(Receipt::poll) {
            self.receipts.pop_front();
            result?;
        }
        if self.receipts.len() >= RECEIPTS_MAX
            && let Some(first) = self.receipts.pop_front()
        {
            first.wait()?;
        }
        let receipt = self.submit(job);
        self.receipts.push_back(receipt);
        Ok(())
    }

    /// Waits until the copies of all loads are queued, for ops that are queued on the compute
    /// stream from here on. The host does not wait for the copies.
    pub(super) fn finish_loads(&mut self, context: &Context) -> Result<()> {
        if self.receipts.is_empty() {
            return Ok(());
        }
        for receipt in self.receipts.drain(..) {
            receipt.wait()?;
        }
        // Recorded last behind the copies of the last load, and the copy stream is in order.
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
        let _ = self.messages.send(Message::End);
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
