//! Ranks of several processes. The process that made the unique id serves: its group holds the table, and a thread for
//! each rank elsewhere puts on it what that rank sends.

use super::abi::UniqueId;
use super::call::Contribution;
use super::group::{DeviceId, Group};
use super::wire::{self, Frame, Numbers, Tag};
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

/// Lets [`serve`] see that all have joined.
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
            Ok(Frame { tag: Tag::Bring, sequence, body }) => match Numbers(&body).part() {
                Ok(part) => group.bring(rank, sequence, part),
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
    let mut numbers = Numbers(&frame.body);
    let (ranks, rank) = (numbers.next()? as usize, numbers.next()? as usize);
    let place = DeviceId { process: numbers.next()? as u32, device: numbers.next()? as usize };
    match group.join(rank, ranks, place, Some(stream.try_clone()?)) {
        Ok(()) => Ok(Some(rank)),
        Err(why) => wire::send(stream, Tag::Refused, 0, why.as_bytes()).map(|()| None),
    }
}

#[derive(Default)]
struct Told {
    complete: bool,
    lost: bool,
    rounds: HashMap<u64, Vec<Contribution>>,
}

/// A rank's way to the process that serves.
pub(super) struct Remote {
    stream: Mutex<UnixStream>,
    told: Arc<Mutex<Told>>,
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    /// Joins; `Err(None)` where nobody serves that id.
    ///
    /// # Errors
    /// What is wrong with it.
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
        let told = Arc::new(Mutex::new(Told::default()));
        let tells = told.clone();
        spawn(move || {
            while let Ok(frame) = wire::receive(&reads) {
                if hear(&tells, &frame).is_err() {
                    break;
                }
                changed();
            }
            lock(&tells).lost = true;
            changed();
        });
        Ok(Self { stream: Mutex::new(stream), told })
    }

    /// What cannot be sent goes to a process that is lost, which the reading thread notices.
    fn send(&self, tag: Tag, sequence: u64, body: &[u8]) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if wire::send(&stream, tag, sequence, body).is_err() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        lock(&self.told).complete
    }

    pub(super) fn is_lost(&self) -> bool {
        lock(&self.told).lost
    }

    pub(super) fn bring(&self, sequence: u64, part: &Contribution) {
        self.send(Tag::Bring, sequence, &wire::contribution_bytes(part));
    }

    pub(super) fn take(&self, sequence: u64) -> Option<Vec<Contribution>> {
        lock(&self.told).rounds.remove(&sequence)
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

fn hear(told: &Mutex<Told>, frame: &Frame) -> io::Result<()> {
    let mut told = lock(told);
    match frame.tag {
        Tag::Complete => told.complete = true,
        Tag::Lost => told.lost = true,
        Tag::Round => {
            let mut numbers = Numbers(&frame.body);
            let mut parts = Vec::new();
            while !numbers.0.is_empty() {
                parts.push(numbers.part()?);
            }
            told.rounds.insert(frame.sequence, parts);
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

/// A rank's way to its group.
pub(super) enum Link {
    /// In this process.
    Here(Arc<Group>),
    /// In another.
    There(Remote),
}

impl Link {
    /// All ranks have joined, and none had left before the last one came.
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::Here(group) => group.is_complete(),
            Self::There(remote) => remote.is_complete(),
        }
    }

    /// The process of some rank ended without leaving.
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
    pub(super) fn bring(&self, rank: usize, sequence: u64, part: Contribution) {
        match self {
            Self::Here(group) => group.bring(rank, sequence, part),
            Self::There(remote) => remote.bring(sequence, &part),
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

    /// Who has not come to a round, in words; only the process that serves knows them.
    pub(super) fn missing(&self, sequence: u64) -> String {
        match self {
            Self::Here(group) => format!("ranks {:?}", group.missing(sequence)),
            Self::There(_) => "other ranks".into(),
        }
    }
}
