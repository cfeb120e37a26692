//! Ranks of several processes. The process that made the unique id serves: its group holds the
//! rounds, and one thread per rank of another process adds what that rank sends.

use super::abi::UniqueId;
use super::call::Contribution;
use super::group::{DeviceId, Group};
use super::wire::{self, Frame, Reader, Tag};
use crate::driver::wait::changed;
use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::spawn;

/// Serves the ranks of other processes until all have joined.
pub(super) fn serve(id: UniqueId, listener: UnixListener, group: Arc<Group>) {
    spawn(move || {
        while let Ok(stream) = wire::accept(&listener) {
            if group.is_complete() {
                break;
            }
            let group = group.clone();
            spawn(move || serve_rank(&id, &stream, &group));
        }
    });
}

/// Wakes [`serve`], which ends when all ranks have joined.
pub(super) fn wake(id: &UniqueId) {
    drop(wire::connect(id));
}

fn serve_rank(id: &UniqueId, stream: &UnixStream, group: &Group) {
    let Ok(Some(rank)) = seat(stream, group) else { return };
    if group.is_complete() {
        wake(id);
    }
    loop {
        match wire::receive(stream) {
            Ok(Frame { tag: Tag::Bring, sequence, body }) => match Reader(&body).contribution() {
                Ok(contribution) => group.bring(rank, sequence, contribution),
                Err(_) => return group.lose(rank),
            },
            Ok(Frame { tag: Tag::Withdraw, sequence, .. }) => group.withdraw(rank, sequence),
            Ok(Frame { tag: Tag::Leave, .. }) => return group.leave(rank),
            _ => return group.lose(rank),
        }
    }
}

fn seat(stream: &UnixStream, group: &Group) -> io::Result<Option<usize>> {
    let frame = wire::receive(stream)?;
    let mut reader = Reader(&frame.body);
    let (ranks, rank) = (reader.next()? as usize, reader.next()? as usize);
    let place = DeviceId { process: reader.next()? as u32, device: reader.next()? as usize };
    match group.join(rank, ranks, place, Some(stream.try_clone()?)) {
        Ok(()) => Ok(Some(rank)),
        Err(why) => wire::send(stream, Tag::Refused, 0, why.as_bytes()).map(|()| None),
    }
}

/// The notifications that a rank has received.
#[derive(Default)]
struct Received {
    complete: bool,
    lost: bool,
    rounds: HashMap<u64, Vec<Contribution>>,
}

/// A rank's connection to the process that serves.
pub(super) struct Remote {
    stream: Mutex<UnixStream>,
    received: Arc<Mutex<Received>>,
}

fn lock(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    /// Joins.
    ///
    /// # Errors
    /// `None` where no process serves that id; else the server's refusal.
    pub(super) fn join(
        id: &UniqueId,
        rank: usize,
        ranks: usize,
        place: DeviceId,
    ) -> Result<Self, Option<String>> {
        let body = [ranks as u64, rank as u64, place.process as u64, place.device as u64];
        let join = || {
            let stream = wire::connect(id)?;
            wire::send(&stream, Tag::Join, 0, &body.map(u64::to_le_bytes).concat())?;
            stream.set_read_timeout(Some(wire::PATIENCE))?;
            let answer = wire::receive(&stream)?;
            stream.set_read_timeout(None)?;
            io::Result::Ok((stream.try_clone()?, stream, answer))
        };
        let (reads, stream, answer) = join().map_err(|_| None)?;
        if answer.tag != Tag::Joined {
            return Err(Some(String::from_utf8_lossy(&answer.body).into_owned()));
        }
        let received = Arc::new(Mutex::new(Received::default()));
        let receives = received.clone();
        spawn(move || {
            while let Ok(frame) = wire::receive(&reads) {
                if receive(&receives, &frame).is_err() {
                    break;
                }
                changed();
            }
            lock(&receives).lost = true;
            changed();
        });
        Ok(Self { stream: Mutex::new(stream), received })
    }

    /// A failed send closes the socket, so that the reading thread notices that the server is lost.
    fn send(&self, tag: Tag, sequence: u64, body: &[u8]) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if wire::send(&stream, tag, sequence, body).is_err() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        lock(&self.received).complete
    }

    pub(super) fn is_lost(&self) -> bool {
        lock(&self.received).lost
    }

    pub(super) fn bring(&self, sequence: u64, contribution: &Contribution) {
        self.send(Tag::Bring, sequence, &wire::contribution_bytes(contribution));
    }

    pub(super) fn take(&self, sequence: u64) -> Option<Vec<Contribution>> {
        lock(&self.received).rounds.remove(&sequence)
    }

    pub(super) fn withdraw(&self, sequence: u64) {
        if self.take(sequence).is_none() {
            self.send(Tag::Withdraw, sequence, &[]);
        }
    }

    pub(super) fn leave(&self) {
        self.send(Tag::Leave, 0, &[]);
    }
}

fn receive(received: &Mutex<Received>, frame: &Frame) -> io::Result<()> {
    let mut received = lock(received);
    match frame.tag {
        Tag::Complete => received.complete = true,
        Tag::Lost => received.lost = true,
        Tag::Round => {
            let mut reader = Reader(&frame.body);
            let mut contributions = Vec::new();
            while !reader.0.is_empty() {
                contributions.push(reader.contribution()?);
            }
            received.rounds.insert(frame.sequence, contributions);
        }
        _ => {}
    }
    Ok(())
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.leave();
        let _ = self.stream.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Both);
    }
}

/// A rank's connection to its group.
pub(super) enum Link {
    /// In this process.
    Here(Arc<Group>),
    /// In another.
    There(Remote),
}

impl Link {
    /// As [`Group::is_complete`].
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::Here(group) => group.is_complete(),
            Self::There(remote) => remote.is_complete(),
        }
    }

    /// As [`Group::is_lost`].
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Here(group) => group.is_lost(),
            Self::There(remote) => remote.is_lost(),
        }
    }

    /// As [`Group::leave`].
    pub(super) fn leave(&self, rank: usize) {
        match self {
            Self::Here(group) => group.leave(rank),
            Self::There(remote) => remote.leave(),
        }
    }

    /// As [`Group::bring`].
    pub(super) fn bring(&self, rank: usize, sequence: u64, contribution: Contribution) {
        match self {
            Self::Here(group) => group.bring(rank, sequence, contribution),
            Self::There(remote) => remote.bring(sequence, &contribution),
        }
    }

    /// As [`Group::take`].
    pub(super) fn take(&self, sequence: u64) -> Option<Vec<Contribution>> {
        match self {
            Self::Here(group) => group.take(sequence),
            Self::There(remote) => remote.take(sequence),
        }
    }

    /// As [`Group::withdraw`].
    pub(super) fn withdraw(&self, rank: usize, sequence: u64) {
        match self {
            Self::Here(group) => group.withdraw(rank, sequence),
            Self::There(remote) => remote.withdraw(sequence),
        }
    }

    /// The ranks that have not contributed to a round, in words; only the process that serves knows
    /// which.
    pub(super) fn missing(&self, sequence: u64) -> String {
        match self {
            Self::Here(group) => format!("ranks {:?}", group.missing(sequence)),
            Self::There(_) => "other ranks".into(),
        }
    }
}
