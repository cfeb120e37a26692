//! Ranks in several processes, once [`super::rendezvous`] has connected them.
//!
//! In rank 0's process each other rank is a [`Remote`]: a rank with a thread like the local ones,
//! which sends what it receives to its process. There [`follow`] runs it. The first failure that
//! reaches rank 0 is the cause with which every process ends.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::rendezvous::{Link, Message};
use crate::backend::{Capacity, NextBatch};
use crate::batch::Packed;
use crate::engine::options::Cluster;
use crate::engine::ranks::{CAUSE_TIMEOUT, Rank, guarded};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// Interval at which a process checks whether its own rank has failed, while it waits for a message
/// of rank 0.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Time for which a process that ends waits for its rank to release the GPU.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Agrees at rank 0 on the number of resident layers, of which this rank can keep `resident`: every
/// GPU keeps as many as the one with the least free memory.
pub(super) fn agree(links: &[Link], resident: usize) -> Result<usize> {
    let mut least = resident;
    let result = links.iter().try_for_each(|link| match link.receive()? {
        Message::Resident(count) => {
            least = least.min(count);
            Ok(())
        }
        other => Err(link.unexpected(&other)),
    });
    match result.and_then(|()| links.iter().try_for_each(|link| link.send(&Message::Resident(least)))) {
        Ok(()) => Ok(least),
        Err(error) => {
            links.iter().for_each(|link| link.close(Some(&error)));
            Err(error)
        }
    }
}

/// Reports to rank 0 the number of layers that this rank can keep, and returns the number agreed
/// on.
pub(super) fn accept_resident(link: &Link, resident: usize) -> Result<usize> {
    link.send(&Message::Resident(resident))?;
    match link.receive()? {
        Message::Resident(least) if least <= resident => Ok(least),
        other => Err(link.unexpected(&other)),
    }
}

/// A rank in another process, as rank 0's process sees it.
pub(super) struct Remote {
    link: Arc<Link>,
    nccl_id: Vec<u8>,
}

impl Remote {
    /// Waits until that rank has allocated its memory. The ranks will connect by `nccl_id`.
    pub(super) fn open(link: Arc<Link>, nccl_id: Vec<u8>) -> Result<Self> {
        expect(&link, |message| matches!(message, Message::Ready))?;
        Ok(Self { link, nccl_id })
    }
}

impl Rank for Remote {
    fn connect(&mut self) -> Result<()> {
        self.link.send(&Message::NcclId(self.nccl_id.clone()))?;
        expect(&self.link, |message| matches!(message, Message::Ready))
    }

    // The other process gets the next batch when that pass begins.
    fn forward(&mut self, packed: &Packed, _next: NextBatch<'_>) -> Result<Vec<f32>> {
        self.link.send(&Message::Batch(packed.clone()))?;
        expect(&self.link, |message| matches!(message, Message::Done))?;
        // Every rank computes the same logits; rank 0 uses its own.
        Ok(Vec::new())
    }

    fn check_idle(&mut self) -> Result<()> {
        self.link.check_idle()
    }
}

fn expect(link: &Link, is_expected: impl Fn(&Message) -> bool) -> Result<()> {
    let message = link.receive()?;
    if is_expected(&message) { Ok(()) } else { Err(link.unexpected(&message)) }
}

/// The parts of a rank other than 0.
pub(super) struct Follower<O, S> {
    pub(super) process: Cluster,
    /// Token ids of a batch are below this.
    pub(super) vocab: usize,
    /// The largest batch.
    pub(super) capacity: Capacity,
    /// Opens the rank, on the thread that will run it.
    pub(super) open: O,
    /// Sets the NCCL id by which the ranks connect.
    pub(super) set_nccl_id: S,
    /// Aborts the collective that this rank waits in.
    pub(super) abort: Arc<dyn Fn() + Send + Sync>,
}

/// A command of rank 0 to the thread that runs this process's rank.
enum RemoteCommand {
    Connect(Vec<u8>),
    Pass(Packed),
}

/// This process's failure, and when it happened.
type Failure = Arc<Mutex<Option<(Error, Instant)>>>;

/// Runs a rank until rank 0 closes the link. An error is the cause with which all ranks end, or the
/// loss of rank 0.
pub(super) fn follow<O, S>(follower: Follower<O, S>, link: Link) -> Result<()>
where
    O: FnOnce() -> Result<Box<dyn Rank>> + Send + 'static,
    S: FnOnce(&[u8]) -> Result<()> + Send + 'static,
{
    let Follower { process, vocab, capacity, open, set_nccl_id, abort } = follower;
    let fits = move |packed: &Packed| {
        let within = packed.tokens.len() <= capacity.tokens && packed.last.len() <= capacity.sequences;
        within && packed.is_sound(vocab)
    };
    let link = Arc::new(link);
    let failure = Failure::default();
    let (commands, received) = channel();
    let worker = thread::Builder::new().name(format!("kudos-rank-{}", process.rank)).spawn({
        let (link, failure) = (Arc::clone(&link), Arc::clone(&failure));
        move || work(&process, open, set_nccl_id, &link, &received, &failure)
    });
    let worker = worker
        .map_err(|error| Error::new(ErrorKind::Io, "cannot start a thread for a rank").caused_by(error))?;
    let result = loop {
        if let Some(error) = own_failure(&failure) {
            break Err(error);
        }
        match link.receive_within(POLL_INTERVAL) {
            Ok(None) => {}
            // A worker that has exited has left its failure.
            Ok(Some(Message::NcclId(id))) => drop(commands.send(RemoteCommand::Connect(id))),
            Ok(Some(Message::Batch(packed))) if !fits(&packed) => break Err(link.malformed_batch()),
            Ok(Some(Message::Batch(packed))) => drop(commands.send(RemoteCommand::Pass(packed))),
            Ok(Some(Message::Close)) => break Ok(()),
            Ok(Some(other)) => break Err(link.unexpected(&other)),
            Err(error) => break Err(error),
        }
    };
    drop(commands);
    if let Err(error) = &result {
        link.close(Some(error));
        abort();
    }
    join_within(&worker, RELEASE_TIMEOUT);
    result
}

/// Returns the failure of this process's own rank, once rank 0 has had time to report its cause.
fn own_failure(failure: &Failure) -> Option<Error> {
    let failure = lock(failure);
    let (error, since) = failure.as_ref()?;
    (since.elapsed() > CAUSE_TIMEOUT).then(|| error.clone())
}

/// Waits for a thread to exit, for at most `time`: it may wait for a GPU that does not respond.
fn join_within(worker: &JoinHandle<()>, time: Duration) {
    let begun = Instant::now();
    while !worker.is_finished() && begun.elapsed() < time {
        thread::sleep(Duration::from_millis(1));
    }
}

fn work(
    process: &Cluster,
    open: impl FnOnce() -> Result<Box<dyn Rank>>,
    set_nccl_id: impl FnOnce(&[u8]) -> Result<()>,
    link: &Link,
    commands: &Receiver<RemoteCommand>,
    failure: &Failure,
) {
    // Dropped after the failure is reported: the other ranks notice the drop, and need the cause
    // first.
    let mut model = None;
    let result = guarded(process.rank, process.world_size, || {
        let model = model.insert(open()?);
        link.send(&Message::Ready)?;
        let mut set_nccl_id = Some(set_nccl_id);
        while let Ok(command) = commands.recv() {
            match (command, set_nccl_id.take()) {
                (RemoteCommand::Connect(id), Some(set_nccl_id)) => {
                    set_nccl_id(&id)?;
                    model.connect()?;
                    link.send(&Message::Ready)?;
                }
                (RemoteCommand::Pass(packed), None) => {
                    model.forward(&packed, &mut || None)?;
                    link.send(&Message::Done)?;
                }
                _ => {
                    return Err(Error::new(
                        ErrorKind::Io,
                        "rank 0 sent an NCCL id or a batch in the wrong order",
                    ));
                }
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        // A consequence of another rank's failure is not sent: that rank reports the cause.
        if error.kind() != ErrorKind::Stopped {
            link.send_error(&error);
        }
        *lock(failure) = Some((error, Instant::now()));
    }
}
