//! Rounds: in each, the engine and every baseline have one slot, one after the other, so that the
//! load of a shared machine reaches all alike. A slot that other processes disturbed is measured
//! again.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use super::judge::{check_rewards, distances};
use super::load::{Group, Slot, least_disturbed};
use super::name::Peer;
use super::search::{Opened, Tried, describe};
use super::worker::{Answer, Ready, Worker};
use crate::measure::{TestResult, score};
use kudos::{CpuMath, Engine, Result};

/// A slot has as many runs as fill this time: the system counts CPU time in ticks of 10 ms.
const SLOT_SECONDS: f64 = 1.0;
const SLOT_RUNS_MAX: f64 = 100.0;

/// The extent of a measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) rounds: usize,
    /// The longest wait before a disturbed slot is measured again.
    pub(super) wait: Duration,
}

/// The engine and its baselines on one test.
#[derive(Debug)]
pub(crate) struct Rounds {
    pub(super) rounds: usize,
    /// The engine first.
    pub(super) sides: Vec<Side>,
}

/// The engine or a baseline in all rounds.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) name: &'static str,
    pub(super) engine: String,
    pub(super) device: String,
    pub(super) dtype: String,
    pub(super) settings: String,
    /// Settings that were tried before the rounds.
    pub(super) tried: Vec<Tried>,
    pub(super) samples: Vec<Sample>,
    /// The mean and the largest distance of rewards from the engine's in f32.
    pub(super) apart: (f64, f64),
    pub(super) peak_memory_bytes: Option<u64>,
    /// Times at which a slot was measured again.
    pub(super) repeated_slots: usize,
    /// Slots that other processes disturbed each time.
    pub(super) disturbed_slots: usize,
}

/// One run.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) round: usize,
    pub(super) seconds: f64,
    /// Cores that other processes had during the slot, on average.
    pub(super) foreign_cores: Option<f64>,
}

/// A side that takes its turn.
trait Turn {
    /// Scores all sequences so many times.
    fn run(&mut self, runs: usize) -> Result<Answer>;
    fn wake(&self);
    fn rest(&self);
    /// Its processes, where they are not this one.
    fn group(&self) -> Option<Group>;
}

/// The engine of this process.
#[derive(Debug)]
pub(super) struct Kudos<'a> {
    pub(super) engine: &'a Engine,
    pub(super) ids: &'a [Vec<u32>],
    pub(super) math: CpuMath,
    pub(super) test: &'a TestResult,
}

impl Turn for Kudos<'_> {
    fn run(&mut self, runs: usize) -> Result<Answer> {
        let (mut seconds, mut rewards) = (Vec::with_capacity(runs), Vec::new());
        for _ in 0..runs {
            let start = Instant::now();
            rewards = score(self.engine, self.ids)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(Answer { seconds, rewards })
    }

    fn wake(&self) {}

    fn rest(&self) {}

    fn group(&self) -> Option<Group> {
        None
    }
}

impl Turn for Worker {
    fn run(&mut self, runs: usize) -> Result<Answer> {
        Worker::run(self, runs)
    }

    fn wake(&self) {
        Worker::wake(self);
    }

    fn rest(&self) {
        self.stop();
    }

    fn group(&self) -> Option<Group> {
        Some(Worker::group(self))
    }
}

/// A side and its results so far.
struct Seat<'a> {
    turn: Box<dyn Turn + 'a>,
    /// `None` for the engine, which is not judged.
    peer: Option<Peer>,
    /// Runs of a slot.
    runs: usize,
    rewards: Vec<f32>,
    side: Side,
}

/// Measures the engine and its open baselines, in so many rounds.
pub(super) fn measure(
    kudos: Kudos<'_>,
    opened: Vec<Opened>,
    reference: &[f32],
    options: Options,
) -> Result<Rounds> {
    let engine = Seat::engine(kudos);
    let mut seats: Vec<Seat<'_>> = [engine].into_iter().chain(opened.into_iter().map(Seat::peer)).collect();
    for round in 0..options.rounds {
        for seat in &mut seats {
            seat.measure(round, reference, options.wait)?;
        }
    }
    let sides = seats.into_iter().map(|seat| seat.end(reference)).collect();
    Ok(Rounds { rounds: options.rounds, sides })
}

impl<'a> Seat<'a> {
    fn engine(kudos: Kudos<'a>) -> Self {
        let test = kudos.test;
        let math = kudos.math.to_possible_value().expect("every arithmetic has a name").get_name().to_owned();
        let side = Side {
            dtype: if kudos.math == CpuMath::Bf16 { "bfloat16" } else { "float32" }.to_owned(),
            settings: format!("cpu_math={math}"),
            peak_memory_bytes: test.peak_memory_bytes,
            ..Side::new(
                "kudos",
                format!("kudos {}", env!("CARGO_PKG_VERSION")),
                kudos.engine.device().to_string(),
            )
        };
        let seconds = test.summary(|sample| sample.seconds).median;
        Self { turn: Box::new(kudos), peer: None, runs: runs(seconds), rewards: Vec::new(), side }
    }

    fn peer(opened: Opened) -> Self {
        let Opened { peer, worker, ready, settings, seconds, tried } = opened;
        let Ready { engine, device, dtype } = ready;
        let side =
            Side { dtype, settings: describe(&settings), tried, ..Side::new(peer.name(), engine, device) };
        Self { turn: Box::new(worker), peer: Some(peer), runs: runs(seconds), rewards: Vec::new(), side }
    }

    /// Measures the side's slot of a round, again where it was disturbed.
    fn measure(&mut self, round: usize, reference: &[f32], wait: Duration) -> Result<()> {
        let (slot, repeated) = least_disturbed(wait, || self.slot())?;
        let Answer { seconds, rewards } = &slot.measured;
        if let Some(peer) = self.peer {
            check_rewards(peer, rewards, reference)?;
        }
        self.side.repeated_slots += repeated;
        self.side.disturbed_slots += usize::from(slot.is_disturbed());
        let foreign_cores = slot.foreign.map(|foreign| foreign.cores);
        self.side.samples.extend(seconds.iter().map(|&seconds| Sample { round, seconds, foreign_cores }));
        self.rewards = slot.measured.rewards;
        Ok(())
    }

    /// One slot. The first run after a rest warms caches up and is not counted.
    fn slot(&mut self) -> Result<Slot<Answer>> {
        self.turn.wake();
        self.turn.run(1)?;
        let slot = Slot::of(self.turn.group(), || self.turn.run(self.runs))?;
        self.turn.rest();
        Ok(slot)
    }

    fn end(self, reference: &[f32]) -> Side {
        let group = self.turn.group();
        let peak = group.map_or(self.side.peak_memory_bytes, Group::peak_memory_bytes);
        Side { apart: distances(&self.rewards, reference), peak_memory_bytes: peak, ..self.side }
    }
}

impl Side {
    /// A side without results.
    fn new(name: &'static str, engine: String, device: String) -> Self {
        Self {
            name,
            engine,
            device,
            dtype: String::new(),
            settings: String::new(),
            tried: Vec::new(),
            samples: Vec::new(),
            apart: (0.0, 0.0),
            peak_memory_bytes: None,
            repeated_slots: 0,
            disturbed_slots: 0,
        }
    }
}

/// Runs of a slot, by the time of one.
fn runs(seconds: f64) -> usize {
    (SLOT_SECONDS / seconds).ceil().clamp(1.0, SLOT_RUNS_MAX) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_fill_a_slot_and_long_ones_are_single() {
        assert_eq!([runs(0.3), runs(1.0), runs(60.0), runs(1e-5)], [4, 1, 1, 100]);
    }
}
