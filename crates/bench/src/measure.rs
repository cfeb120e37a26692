//! Runs a test and keeps its samples.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sensors::{Reading, Sensors};
use crate::summary::Summary;
use crate::warm_up::{WarmUp, warm_up};
use crate::workload::Workload;
use crate::{classes, machine};
use kudos::internals::backend::profile::{Profile, Spent};
use kudos::{Engine, Error, ErrorKind, Result};

/// The repetitions of a test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeats {
    /// The longest warm-up.
    pub(super) warm_up: Duration,
    /// The fewest runs.
    pub(super) least: usize,
    /// Runs go on until this time has passed.
    pub(super) seconds: f64,
}

/// One run of a test.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) seconds: f64,
    /// CPU time of all threads of this process: on a shared machine the steadier measure.
    pub(super) cpu_seconds: Option<f64>,
    /// Tokens that the engine computed: shared prefixes once.
    pub(super) unique_tokens: u64,
    /// Tokens of the sequences, as if nothing were shared.
    pub(super) nominal_tokens: u64,
    pub(super) passes: u64,
}

/// A test and everything that was measured of it.
#[derive(Clone, Debug)]
pub(super) struct TestResult {
    pub(super) workload: Workload,
    pub(super) warm_up: WarmUp,
    pub(super) samples: Vec<Sample>,
    /// All GPUs', before the first sample and after each.
    pub(super) readings: Vec<Reading>,
    /// Rank 0's time by class of op in a run that is no sample.
    pub(super) spent: Vec<Spent>,
    /// One per sequence, equal in every run.
    pub(super) rewards: Vec<f32>,
    /// The process's peak until the end of the test.
    pub(super) peak_memory_bytes: Option<u64>,
}

/// An engine and its instruments.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) engine: &'a Engine,
    /// The profile that the engine was opened with.
    pub(super) profile: Profile,
    pub(super) sensors: Sensors,
}

impl Bench<'_> {
    /// Scores a test's sequences: to warm up, then as often as `repeats` says, and then profiled.
    pub(super) fn measure(&self, workload: Workload, repeats: &Repeats) -> Result<TestResult> {
        let Self { engine, profile, sensors } = self;
        let ids = workload.ids(engine.config());
        let mut rewards = None;
        let mut run = || {
            let start = Instant::now();
            let scored = score(engine, &ids)?;
            let seconds = start.elapsed().as_secs_f64();
            if *rewards.get_or_insert_with(|| scored.clone()) != scored {
                let message = format!("{workload}: two runs gave different rewards");
                return Err(Error::new(ErrorKind::Device, message)
                    .with_hint("equal inputs give equal bits on sound hardware: check it"));
            }
            Ok(seconds)
        };
        let warm_up = warm_up(repeats.warm_up, || Ok((run()?, sensors.sm_mhz())))?;
        let (mut samples, mut readings, began) = (Vec::new(), sensors.read(), Instant::now());
        while samples.len() < repeats.least || began.elapsed().as_secs_f64() < repeats.seconds {
            let (before, cpu_before) = (engine.stats(), machine::cpu_seconds());
            let seconds = run()?;
            let (after, cpu_after) = (engine.stats(), machine::cpu_seconds());
            samples.push(Sample {
                seconds,
                cpu_seconds: cpu_after.zip(cpu_before).map(|(after, before)| after - before),
                unique_tokens: after.unique_tokens - before.unique_tokens,
                nominal_tokens: after.tokens - before.tokens,
                passes: after.passes - before.passes,
            });
            readings.extend(sensors.read());
        }
        let spent = classes::profile(profile, &mut run)?;
        let (rewards, peak_memory_bytes) = (rewards.unwrap_or_default(), machine::peak_memory_bytes());
        Ok(TestResult { workload, warm_up, samples, readings, spent, rewards, peak_memory_bytes })
    }
}

/// The rewards of all sequences, in one call.
pub(super) fn score(engine: &Engine, ids: &[Vec<u32>]) -> Result<Vec<f32>> {
    engine.score(ids).into_iter().map(|score| score.map(|score| score.reward)).collect()
}

impl TestResult {
    /// The summary of a quantity over the samples.
    pub(super) fn summary(&self, of: impl Fn(&Sample) -> f64) -> Summary {
        Summary::new(&self.samples.iter().map(of).collect::<Vec<_>>())
    }

    /// Unique tokens a second.
    pub(super) fn unique_rate(&self) -> Summary {
        self.summary(|sample| sample.unique_tokens as f64 / sample.seconds)
    }

    /// Nominal tokens a second.
    pub(super) fn nominal_rate(&self) -> Summary {
        self.summary(|sample| sample.nominal_tokens as f64 / sample.seconds)
    }
}
