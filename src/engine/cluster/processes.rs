//! Ranks in several processes, once they have found each other ([`super::rendezvous`]).
//!
//! In rank 0's process each other rank is a [`Remote`], a rank like those of threads that passes on what it is told. In
//! the other processes [`follow`] does what rank 0 says. The first failure that rank 0 hears of is the cause that all
//! of them end with.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::rendezvous::{Link, Message};
use crate::backend::{Ahead, Capacity};
use crate::batch::Packed;
use crate::engine::options::Cluster;
use crate::engine::ranks::{LAST_WORDS, Rank, guarded};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// Interval at which a process checks whether its own rank has failed, while it waits for a message of rank 0.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long a process waits for its rank to let go of its GPU, once all is over.
const LET_GO: Duration = Duration::from_secs(5);

/// At rank 0: how many layers stay on every GPU, when so many can on this one. GPUs that have unlike memory free keep as
/// many as the fullest of them.
pub(super) fn agree(links: &[Link], resident: usize) -> Result<usize> {
    let mut least = resident;
    let result = links.iter().try_for_each(|link| match link.receive()? {
        Message::Resident(count) => {
            least = least.min(count);
            Ok(())
        }
        other => Err(link.out_of_turn(&other)),
    });
    match result.and_then(|()| links.iter().try_for_each(|link| link.send(&Message::Resident(least)))) {
        Ok(()) => Ok(least),
        Err(error) => {
            links.iter().for_each(|link| link.end(Some(&error)));
            Err(error)
        }
    }
}

/// The same at another rank.
pub(super) fn agreed(link: &Link, resident: usize) -> Result<usize> {
    link.send(&Message::Resident(resident))?;
    match link.receive()? {
        Message::Resident(least) if least <= resident => Ok(least),
        other => Err(link.out_of_turn(&other)),
    }
}

/// A rank in another process, as rank 0's process sees it.
pub(super) struct Remote {
    link: Arc<Link>,
    nccl_id: Vec<u8>,
}

impl Remote {
    /// Waits until that rank has allocated what it needs. The ranks will meet at this NCCL id.
    pub(super) fn open(link: Arc<Link>, nccl_id: Vec<u8>) -> Result<Self> {
        expect(&link, |message| matches!(message, Message::Ready))?;
        Ok(Self { link, nccl_id })
    }
}

impl Rank for Remote {
    fn connect(&mut self) -> Result<()> {
        self.link.send(&Message::Meet(self.nccl_id.clone()))?;
        expect(&self.link, |message| matches!(message, Message::Ready))
    }

    // The other process hears of the next batch when it begins.
    fn forward(&mut self, packed: &Packed, _ahead: Ahead<'_>) -> Result<Vec<f32>> {
        self.link.send(&Message::Pass(packed.clone()))?;
        expect(&self.link, |message| matches!(message, Message::Done))?;
        // Every rank has the same logits, and rank 0 has its own.
        Ok(Vec::new())
    }

    fn idle(&mut self) -> Result<()> {
        self.link.quiet()
    }
}

fn expect(link: &Link, is_expected: impl Fn(&Message) -> bool) -> Result<()> {
    let message = link.receive()?;
    if is_expected(&message) { Ok(()) } else { Err(link.out_of_turn(&message)) }
}

/// What a rank that is not rank 0 consists of.
pub(super) struct Follower<O, M> {
    pub(super) process: Cluster,
    /// What batches may hold.
    pub(super) vocab: usize,
    pub(super) capacity: Capacity,
    /// Allocates what it needs, on the thread that will run it.
    pub(super) open: O,
    /// Takes the NCCL id at which the ranks meet.
    pub(super) meet: M,
    /// Makes this rank give up what it waits for.
    pub(super) abort: Arc<dyn Fn() + Send + Sync>,
}

/// What rank 0 tells a follower to do.
enum Order {
    Meet(Vec<u8>),
    Pass(Packed),
}

/// This process's failure, and when it happened.
type Failure = Arc<Mutex<Option<(Error, Instant)>>>;

/// Does what rank 0 says until it says goodbye. An error is the cause that all ranks end with, or that rank 0 is gone.
pub(super) fn follow<O, M>(follower: Follower<O, M>, link: Link) -> Result<()>
where
    O: FnOnce() -> Result<Box<dyn Rank>> + Send + 'static,
    M: FnOnce(&[u8]) -> Result<()> + Send + 'static,
{
    let Follower { process, vocab, capacity, open, meet, abort } = follower;
    let fits = move |packed: &Packed| {
        let within = packed.tokens.len() <= capacity.tokens && packed.last.len() <= capacity.sequences;
        within && packed.is_sound(vocab)
    };
    let link = Arc::new(link);
    let failure = Failure::default();
    let (orders, told) = channel();
    let worker = thread::Builder::new().name(format!("kudos-rank-{}", process.rank)).spawn({
        let (link, failure) = (Arc::clone(&link), Arc::clone(&failure));
        move || work(&process, open, meet, &link, &told, &failure)
    });
    let worker = worker
        .map_err(|error| Error::new(ErrorKind::Io, "cannot start a thread for a rank").caused_by(error))?;
    let result = loop {
        if let Some(error) = own_failure(&failure) {
            break Err(error);
        }
        match link.receive_within(POLL_INTERVAL) {
            Ok(None) => {}
            // A worker that is gone has left its failure.
            Ok(Some(Message::Meet(id))) => drop(orders.send(Order::Meet(id))),
            Ok(Some(Message::Pass(packed))) if !fits(&packed) => break Err(link.unsound()),
            Ok(Some(Message::Pass(packed))) => drop(orders.send(Order::Pass(packed))),
            Ok(Some(Message::Goodbye)) => break Ok(()),
            Ok(Some(other)) => break Err(link.out_of_turn(&other)),
            Err(error) => break Err(error),
        }
    };
    drop(orders);
    if let Err(error) = &result {
        link.end(Some(error));
        abort();
    }
    end(worker);
    result
}

/// The failure of this process's own rank, when rank 0 had time to say what is behind it and did not.
fn own_failure(failure: &Failure) -> Option<Error> {
    let failure = lock(failure);
    let (error, since) = failure.as_ref()?;
    (since.elapsed() > LAST_WORDS).then(|| error.clone())
}

/// Gives a thread the time that it needs, but not for ever: it may wait for a GPU that does not answer.
fn end(worker: JoinHandle<()>) {
    let begun = Instant::now();
    while !worker.is_finished() && begun.elapsed() < LET_GO {
        thread::sleep(Duration::from_millis(1));
    }
}

fn work(
    process: &Cluster,
    open: impl FnOnce() -> Result<Box<dyn Rank>>,
    meet: impl FnOnce(&[u8]) -> Result<()>,
    link: &Link,
    orders: &Receiver<Order>,
    failure: &Failure,
) {
    // Outlives what may fail: its end is known to the other ranks, which are to hear the cause before.
    let mut model = None;
    let result = guarded(process.rank, process.world_size, || {
        let model = model.insert(open()?);
        link.send(&Message::Ready)?;
        let mut meet = Some(meet);
        while let Ok(order) = orders.recv() {
            match (order, meet.take()) {
                (Order::Meet(id), Some(meet)) => {
                    meet(&id)?;
                    model.connect()?;
                    link.send(&Message::Ready)?;
                }
                (Order::Pass(packed), None) => {
                    model.forward(&packed, &mut || None)?;
                    link.send(&Message::Done)?;
                }
                _ => return Err(Error::new(ErrorKind::Io, "rank 0 gives orders out of turn")),
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        // What follows from another rank's failure is not told before that one is known.
        if error.kind() != ErrorKind::Stopped {
            link.tell(&error);
        }
        *lock(failure) = Some((error, Instant::now()));
    }
}
