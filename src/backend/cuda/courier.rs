//! [`Courier`]: a thread that brings weights to the device through a ring of pinned memory.
//!
//! It takes orders one after the other. For each chunk of an order it waits until the ring's next chunk is free, lets a
//! few readers fill it from the mapped files, converted and laid out, and queues its copy on the copy stream: files are
//! read while earlier chunks travel, and both go on while kernels run on the compute stream. The streams are ordered by
//! events alone:
//!
//! ```text
//! compute stream   ... last op on the old contents | record FREE    ...    wait FILLED | first op on the contents ...
//! copy stream                           wait FREE | copy | copy | ... | record FILLED
//! host             order >--------------> the courier fills and queues >------------> receipt, then the wait is queued
//! ```
//!
//! A stream can wait only for an event that was recorded, so the receipt, by which the host learns that FILLED is, comes
//! before the compute stream is told to wait for it. The courier itself waits for nothing but copies that are queued, and
//! they for nothing but ops that are: with no more orders it sleeps, and its end need not wait for anybody.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use cudarc::driver::CudaEvent;

use super::context::Context;
use super::fault::OrFault;
use super::nccl::Group;
use super::ring::{Ring, Watch};
use super::weight::{Rows, Weight};
use crate::backend::LayerWeights;
use crate::error::{Error, ErrorKind, Result};

/// Readers, at most: a core copies several GB/s out of the page cache, the fastest link takes about 50.
const READERS_MAX: usize = 8;

pub(super) const DOING: &str = "copying weights to the GPU";

/// What is to be done for some weights.
pub(super) struct Order {
    pub(super) rows: Vec<Rows>,
    pub(super) what: What,
}

/// What is done with the rows of an order.
pub(super) enum What {
    /// They are converted, to see whether that can be done, and go nowhere.
    Check,
    /// They go where they belong, into memory that the customer keeps until the receipt is there.
    Load {
        /// Recorded behind the last copy.
        filled: Arc<CudaEvent>,
    },
    /// They replace others in a slot.
    Stage {
        /// Kept while copies into it are yet to be queued.
        #[expect(dead_code, reason = "held, not read")]
        slot: Arc<LayerWeights<Weight>>,
        /// Recorded behind the last op that uses what is in the slot.
        free: Arc<CudaEvent>,
        /// Recorded behind the last copy.
        filled: Arc<CudaEvent>,
    },
}

/// Says when all copies of an order are queued and its event is recorded, or why not.
pub(super) struct Receipt(Receiver<Result<()>>);

impl Receipt {
    pub(super) fn wait(self) -> Result<()> {
        let ended = || Error::new(ErrorKind::Stopped, "the thread that brings weights to the GPU has ended");
        self.0.recv().map_err(|_| ended())?
    }
}

/// The customer's end of the thread.
pub(super) struct Courier {
    orders: Option<Sender<(Order, Sender<Result<()>>)>>,
    thread: Option<JoinHandle<()>>,
    watch: Arc<Watch>,
    /// For weights that are loaded once; recorded anew for each of them.
    loaded: Arc<CudaEvent>,
}

impl Courier {
    /// Starts the thread and its readers, a share of this machine's cores for each rank of `group`.
    pub(super) fn new(context: &Context, group: Option<Arc<Group>>) -> Result<Self> {
        let ranks = group.as_ref().map_or(1, |group| group.ranks());
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        let readers = (cores / ranks).clamp(1, READERS_MAX);
        let loaded = Arc::new(context.cuda().new_event(None).or_fault("making an event")?);
        let (stop, subnormal, brought) = (AtomicBool::new(false), AtomicU64::new(0), Arc::default());
        let watch = Arc::new(Watch { stop, group, subnormal, brought });
        let (orders, to_do) = mpsc::channel::<(Order, Sender<Result<()>>)>();
        let (cuda, copy) = (Arc::clone(context.cuda()), Arc::clone(context.copy()));
        let (ready, is_ready) = mpsc::channel();
        let watched = Arc::clone(&watch);
        let work = move || {
            let mut ring = match Ring::new(cuda, copy, readers, watched) {
                Ok(ring) => ring,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            for (order, receipt) in to_do {
                let result = ring.carry_out(&order);
                // Before the customer goes on: a slot that nobody wants any more is freed here.
                drop(order);
                let _ = receipt.send(result);
            }
        };
        let thread = thread::Builder::new().name("kudos-courier".to_owned()).spawn(work);
        let thread = thread.map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot start a thread that copies weights: {error}"))
        })?;
        Receipt(is_ready).wait()?;
        Ok(Self { orders: Some(orders), thread: Some(thread), watch, loaded })
    }

    /// Queues an order behind those before it.
    pub(super) fn order(&self, order: Order) -> Receipt {
        let (receipt, receiver) = mpsc::channel();
        if let Some(orders) = &self.orders {
            // If the thread is gone, so is the receipt, and waiting for it says so.
            let _ = orders.send((order, receipt));
        }
        Receipt(receiver)
    }

    /// Brings rows of a weight that is there to stay, for ops queued on the compute stream from here on. The host need
    /// not wait for the copies, and the next weight is read while they travel.
    pub(super) fn load(&self, context: &Context, rows: Vec<Rows>) -> Result<()> {
        let filled = Arc::clone(&self.loaded);
        self.order(Order { rows, what: What::Load { filled } }).wait()?;
        context.compute().wait(&self.loaded).or_fault(DOING)
    }

    /// Weights that became subnormal f16 numbers when they were loaded or checked, and lost digits by it.
    pub(super) fn subnormal(&self) -> u64 {
        self.watch.subnormal.load(Ordering::Relaxed)
    }

    /// Counts bytes of weights, as stored, that are loaded to stay: on the device or on their way.
    pub(super) fn brought(&self) -> &Arc<AtomicU64> {
        &self.watch.brought
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.watch.stop.store(true, Ordering::Relaxed);
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was reported by the receipt that never came.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Courier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier").finish_non_exhaustive()
    }
}
