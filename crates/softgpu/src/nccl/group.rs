//! The ranks of a communicator: one seat per rank, one round per collective, one contribution per
//! rank and round.

use super::call::Contribution;
use super::wire::{Tag, contribution_bytes, send};
use crate::driver::wait::changed;
use std::collections::{BTreeMap, HashMap};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A device of a process: devices of different processes may have equal indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceId {
    pub(super) process: u32,
    pub(super) device: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seat {
    Empty,
    Taken(DeviceId),
    Left,
}

struct Round {
    parts: Vec<Option<Contribution>>,
    /// Ranks that have taken the contributions or will not take them.
    gone: usize,
}

#[derive(Default)]
struct Table {
    /// Empty before the first rank joins, whose call has the number of ranks.
    seats: Vec<Seat>,
    /// Whether all seats were taken at one time.
    complete: bool,
    /// Whether the process of a rank has ended without leaving.
    lost: bool,
    rounds: HashMap<u64, Round>,
    /// Ranks of other processes.
    remotes: BTreeMap<usize, UnixStream>,
}

/// The state that the ranks of one communicator share.
#[derive(Default)]
pub(super) struct Group {
    table: Mutex<Table>,
}

impl Group {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seats a device as a rank. `remote`, the socket of a rank of another process, is notified of
    /// this and of later events.
    ///
    /// # Errors
    /// A rank, number of ranks or device that contradicts another rank's.
    pub(super) fn join(
        &self,
        rank: usize,
        ranks: usize,
        place: DeviceId,
        remote: Option<UnixStream>,
    ) -> Result<(), String> {
        let mut table = self.table();
        if table.seats.is_empty() {
            table.seats = vec![Seat::Empty; ranks];
        }
        if ranks != table.seats.len() || rank >= ranks {
            let before = table.seats.len();
            return Err(format!("rank {rank} has {ranks} ranks, another rank has {before}"));
        }
        if table.seats[rank] != Seat::Empty {
            return Err(format!("rank {rank} has joined already"));
        }
        if table.seats.contains(&Seat::Taken(place)) {
            return Err(format!("two ranks on device {} of process {}", place.device, place.process));
        }
        table.seats[rank] = Seat::Taken(place);
        table.complete = table.seats.iter().all(|seat| matches!(seat, Seat::Taken(_)));
        if let Some(remote) = remote {
            table.notify(&remote, Tag::Joined, 0, &[]);
            table.remotes.insert(rank, remote);
        }
        if table.complete {
            table.notify_all(Tag::Complete, 0, &[]);
        }
        changed();
        Ok(())
    }

    /// Whether all ranks were joined at one time.
    pub(super) fn is_complete(&self) -> bool {
        self.table().complete
    }

    /// Whether the process of a rank has ended without leaving.
    pub(super) fn is_lost(&self) -> bool {
        self.table().lost
    }

    /// Leaves a seat, and removes the rank's contributions to incomplete rounds, which never
    /// complete then.
    pub(super) fn leave(&self, rank: usize) {
        self.table().leave(rank);
        changed();
    }

    /// Like [`leave`](Self::leave), for a rank whose process has ended; notifies all others.
    pub(super) fn lose(&self, rank: usize) {
        let mut table = self.table();
        table.leave(rank);
        table.lost = true;
        table.notify_all(Tag::Lost, 0, &[]);
        changed();
    }

    /// Adds a rank's contribution to a round. The last one completes it: all contributions are sent
    /// to ranks of other processes before a rank of this process can take them, for this process
    /// may end then.
    pub(super) fn bring(&self, rank: usize, sequence: u64, part: Contribution) {
        let mut table = self.table();
        let round = Round { parts: vec![None; table.seats.len()], gone: 0 };
        let round = table.rounds.entry(sequence).or_insert(round);
        round.parts[rank] = Some(part);
        if !table.remotes.is_empty()
            && let Some(parts) = table.parts(sequence)
        {
            let body: Vec<u8> = parts.iter().flat_map(contribution_bytes).collect();
            table.notify_all(Tag::Round, sequence, &body);
            (0..table.remotes.len()).for_each(|_| table.depart(sequence));
        }
        changed();
    }

    /// The contributions to a complete round, by rank. Each rank of this process takes them once.
    pub(super) fn take(&self, sequence: u64) -> Option<Vec<Contribution>> {
        let mut table = self.table();
        let parts = table.parts(sequence)?;
        table.depart(sequence);
        Some(parts)
    }

    /// Called for a rank that has contributed and will not take the result.
    pub(super) fn withdraw(&self, rank: usize, sequence: u64) {
        let mut table = self.table();
        if table.parts(sequence).is_none() {
            if let Some(round) = table.rounds.get_mut(&sequence) {
                round.parts[rank] = None;
            }
        } else if !table.remotes.contains_key(&rank) {
            table.depart(sequence);
        }
    }

    /// Ranks that have not contributed to a round.
    pub(super) fn missing(&self, sequence: u64) -> Vec<usize> {
        let table = self.table();
        let came = |rank: usize| table.rounds.get(&sequence).is_some_and(|r| r.parts[rank].is_some());
        (0..table.seats.len()).filter(|&rank| !came(rank)).collect()
    }
}

impl Table {
    /// The thread that reads from a remote notices where this fails.
    fn notify(&self, remote: &UnixStream, tag: Tag, sequence: u64, body: &[u8]) {
        if send(remote, tag, sequence, body).is_err() {
            let _ = remote.shutdown(Shutdown::Both);
        }
    }

    fn notify_all(&self, tag: Tag, sequence: u64, body: &[u8]) {
        self.remotes.values().for_each(|remote| self.notify(remote, tag, sequence, body));
    }

    fn leave(&mut self, rank: usize) {
        self.seats[rank] = Seat::Left;
        self.remotes.remove(&rank);
        for round in self.rounds.values_mut().filter(|r| r.parts.iter().any(Option::is_none)) {
            round.parts[rank] = None;
        }
    }

    fn parts(&self, sequence: u64) -> Option<Vec<Contribution>> {
        self.rounds.get(&sequence)?.parts.iter().cloned().collect()
    }

    fn depart(&mut self, sequence: u64) {
        let Some(round) = self.rounds.get_mut(&sequence) else { return };
        round.gone += 1;
        if round.gone == self.seats.len() {
            self.rounds.remove(&sequence);
        }
    }
}
