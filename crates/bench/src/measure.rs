//! The clock around a test, and what its samples come to.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sensors::{Reading, Sensors};
use crate::warm_up::{WarmUp, warm_up};
use crate::workload::Workload;
use crate::{classes, machine};
use kudos::internals::backend::profile::{Profile, Spent};
use kudos::{Engine, Error, ErrorKind, Result};

/// How often a test is repeated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeats {
    /// Before it is measured, at most.
    pub(super) warm_up: Duration,
    pub(super) least: usize,
    /// And on until so much time has passed.
    pub(super) seconds: f64,
}

/// One run of a test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) seconds: f64,
    /// That all threads of this process ran, added up: on a shared machine the steadier measure.
    pub(super) cpu_seconds: Option<f64>,
    /// Tokens that the engine computed.
    pub(super) unique_tokens: u64,
    /// Tokens of the sequences.
    pub(super) nominal_tokens: u64,
    pub(super) passes: u64,
}

/// A test and its samples.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) workload: Workload,
    pub(super) warm_up: WarmUp,
    pub(super) samples: Vec<Sample>,
    /// Of all GPUs, before the first sample and after each.
    pub(super) readings: Vec<Reading>,
    /// Where the time of a run went, on rank 0; no sample is of that run.
    pub(super) spent: Vec<Spent>,
    /// One for each sequence, the same in every run.
    pub(super) rewards: Vec<f32>,
    /// Of the process, from its start until the test's end.
    pub(super) peak_memory_bytes: Option<u64>,
}

/// What several samples of one number come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) mean: f64,
    /// The standard deviation that the samples suggest (n - 1); 0 for one sample.
    pub(super) sd: f64,
    pub(super) median: f64,
}

/// An engine, and what can be read while it works.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) engine: &'a Engine,
    /// The one that the engine was opened with.
    pub(super) profile: Profile,
    pub(super) sensors: Sensors,
}

impl Bench<'_> {
    /// Scores a test's sequences: to warm up, then as often as was asked for, and then profiled.
    pub(super) fn measure(&self, workload: Workload, repeats: &Repeats) -> Result<Row> {
        let Self { engine, profile, sensors } = self;
        let ids = workload.ids(engine.config());
        let mut rewards = None;
        let mut run = || {
            let start = Instant::now();
            let scored = score(engine, &ids)?;
            let seconds = start.elapsed().as_secs_f64();
            if *rewards.get_or_insert_with(|| scored.clone()) != scored {
                let message = format!("{workload}: a run gave other rewards than the one before");
                return Err(Error::new(ErrorKind::Device, message)
                    .with_hint("rewards are the same bits in every run; is the hardware sound?"));
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
        Ok(Row { workload, warm_up, samples, readings, spent, rewards, peak_memory_bytes })
    }
}

fn score(engine: &Engine, ids: &[Vec<u32>]) -> Result<Vec<f32>> {
    engine.score(ids).into_iter().map(|score| score.map(|score| score.reward)).collect()
}

impl Row {
    /// Of what `of` says of each sample.
    pub(super) fn summary(&self, of: impl Fn(&Sample) -> f64) -> Summary {
        Summary::new(&self.samples.iter().map(of).collect::<Vec<_>>())
    }

    /// Tokens that were computed a second.
    pub(super) fn unique_rate(&self) -> Summary {
        self.summary(|sample| sample.unique_tokens as f64 / sample.seconds)
    }

    /// Tokens of sequences that were scored a second.
    pub(super) fn nominal_rate(&self) -> Summary {
        self.summary(|sample| sample.nominal_tokens as f64 / sample.seconds)
    }

    /// Operations that the test needs (`flop`) a second, in 10^12, by the median of the samples.
    pub(super) fn tflops(&self, flop: f64) -> f64 {
        flop / self.summary(|sample| sample.seconds).median / 1e12
    }
}

impl Summary {
    pub(super) fn new(samples: &[f64]) -> Self {
        let count = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / count;
        let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
        let sd = (squares / (count - 1.0).max(1.0)).sqrt();
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = |shift: usize| sorted[(sorted.len() - shift) / 2];
        Self { mean, sd, median: (middle(1) + middle(0)) / 2.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_up() {
        let of = |samples: &[f64]| {
            let Summary { mean, sd, median } = Summary::new(samples);
            [mean, sd, median]
        };
        assert_eq!(of(&[3.0]), [3.0, 0.0, 3.0]);
        assert_eq!(of(&[9.0, 1.0, 2.0]), [4.0, 19.0_f64.sqrt(), 2.0]);
        assert_eq!(of(&[1.0, 3.0]), [2.0, 2.0_f64.sqrt(), 2.0]);
    }
}
