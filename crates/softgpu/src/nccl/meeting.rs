//! Where ranks meet: a seat a rank, a round a collective, a part a rank and round.

use super::sum::Element;
use crate::driver::wait::changed;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a rank calls; all must call the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// `ncclAllReduce` or `ncclAllGather`.
    pub name: &'static str,
    /// Type of the elements.
    pub element: Element,
    /// Elements of a rank.
    pub count: usize,
}

/// What a rank brings to a round.
#[derive(Clone)]
pub(super) struct Part {
    /// Its call.
    pub call: Call,
    /// Its input.
    pub bytes: Arc<Vec<u8>>,
    /// The logical time at which it could start.
    pub ready: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seat {
    Empty,
    /// By a device.
    Taken(usize),
    Left,
}

struct Round {
    parts: Vec<Option<Part>>,
    /// Ranks that will not ask again.
    gone: usize,
}

struct Table {
    seats: Vec<Seat>,
    /// All seats were taken at one time.
    complete: bool,
    rounds: HashMap<u64, Round>,
}

/// What the ranks of one communicator share.
pub(super) struct Group {
    ranks: usize,
    table: Mutex<Table>,
}

impl Group {
    pub(super) fn new(ranks: usize) -> Self {
        let table = Table { seats: vec![Seat::Empty; ranks], complete: false, rounds: HashMap::new() };
        Self { ranks, table: Mutex::new(table) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seats a device as a rank.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn join(&self, rank: usize, ranks: usize, device: usize) -> Result<(), String> {
        let mut table = self.table();
        if ranks != self.ranks {
            return Err(format!("rank {rank} says there are {ranks} ranks, another said {}", self.ranks));
        }
        if table.seats[rank] != Seat::Empty {
            return Err(format!("rank {rank} has been there already"));
        }
        if table.seats.contains(&Seat::Taken(device)) {
            return Err(format!("two ranks on device {device}"));
        }
        table.seats[rank] = Seat::Taken(device);
        table.complete = table.seats.iter().all(|seat| matches!(seat, Seat::Taken(_)));
        changed();
        Ok(())
    }

    /// All ranks have joined, and none had left before the last one came.
    pub(super) fn is_complete(&self) -> bool {
        self.table().complete
    }

    /// Gives a seat up. What the rank brought to rounds that wait still is taken back: they wait for ever.
    pub(super) fn leave(&self, rank: usize) {
        let mut table = self.table();
        table.seats[rank] = Seat::Left;
        for round in table.rounds.values_mut().filter(|r| r.parts.iter().any(Option::is_none)) {
            round.parts[rank] = None;
        }
        changed();
    }

    /// Brings a rank's part to a round.
    pub(super) fn bring(&self, rank: usize, sequence: u64, part: Part) {
        let round = || Round { parts: vec![None; self.ranks], gone: 0 };
        self.table().rounds.entry(sequence).or_insert_with(round).parts[rank] = Some(part);
        changed();
    }

    /// All parts of a round, by rank, once they are there. Each rank takes them once.
    pub(super) fn take(&self, sequence: u64) -> Option<Vec<Part>> {
        let mut table = self.table();
        let parts = table.rounds.get(&sequence)?.parts.iter().cloned().collect::<Option<Vec<Part>>>()?;
        self.depart(&mut table, sequence);
        Some(parts)
    }

    /// A rank that brought its part will not take the others'.
    pub(super) fn withdraw(&self, rank: usize, sequence: u64) {
        let mut table = self.table();
        let Some(round) = table.rounds.get_mut(&sequence) else { return };
        if round.parts.iter().all(Option::is_some) {
            self.depart(&mut table, sequence);
        } else {
            round.parts[rank] = None;
        }
    }

    fn depart(&self, table: &mut Table, sequence: u64) {
        let Some(round) = table.rounds.get_mut(&sequence) else { return };
        round.gone += 1;
        if round.gone == self.ranks {
            table.rounds.remove(&sequence);
        }
    }

    /// Ranks that have not come to a round.
    pub(super) fn missing(&self, sequence: u64) -> Vec<usize> {
        let table = self.table();
        let came = |rank: usize| table.rounds.get(&sequence).is_some_and(|r| r.parts[rank].is_some());
        (0..self.ranks).filter(|&rank| !came(rank)).collect()
    }
}
