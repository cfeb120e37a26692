//! The fastest settings of a baseline for one test: its own first, then each other value of one
//! setting at a time, of which the fastest stays. Settings with other rewards are left out. Settings
//! are measured again where other processes disturbed them.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::judge::check_rewards;
use super::load::{Slot, least_disturbed};
use super::name::Peer;
use super::worker::{Launch, Ready, Settings, Worker};
use kudos::{Error, ErrorKind, Result};
use kudos_cli::say;

/// Measured runs of each settings, after one to warm up; the fastest counts.
const RUNS: usize = 2;

/// Settings that were tried.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Tried {
    pub(super) settings: String,
    /// The fastest run; `None` where it failed.
    pub(super) seconds: Option<f64>,
    pub(super) error: Option<String>,
}

/// A baseline that is open at its fastest settings, and stopped.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) peer: Peer,
    pub(super) worker: Worker,
    pub(super) ready: Ready,
    pub(super) settings: Settings,
    pub(super) seconds: f64,
    /// All settings that were tried, these included.
    pub(super) tried: Vec<Tried>,
}

/// The extent of a search.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// Only the settings that a baseline begins with are measured.
    pub(super) defaults: bool,
    /// The longest wait before disturbed runs are measured again.
    pub(super) wait: Duration,
}

/// Opens a baseline at its fastest settings.
pub(super) fn search(launch: &Launch<'_>, reference: &[f32], options: Options) -> Result<Opened> {
    let prepared = launch.prepare()?;
    // The settings of which one at a time is changed.
    let mut base = prepared.settings;
    let (mut best, mut rejected, mut tried): (Option<Opened>, _, _) = (None, None, Vec::new());
    match open(launch, base.clone(), reference, options.wait) {
        Ok(mut opened) => {
            tried.append(&mut opened.tried);
            best = Some(opened);
        }
        // With others its rewards may be right.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            tried.push(failed(describe(&base), &error));
            rejected = Some(error);
        }
        // Where these fail, the others do.
        Err(error) => return Err(error),
    }
    let axes = if options.defaults { Vec::new() } else { prepared.axes };
    for (name, values) in axes {
        let first = base.get(&name).cloned();
        for value in values.into_iter().filter(|value| Some(value) != first.as_ref()) {
            let mut settings = base.clone();
            settings.insert(name.clone(), value);
            let described = describe(&settings);
            match open(launch, settings, reference, options.wait) {
                Ok(mut other) => {
                    tried.append(&mut other.tried);
                    if best.as_ref().is_none_or(|best| other.seconds < best.seconds) {
                        base = other.settings.clone();
                        best = Some(other);
                    }
                }
                Err(error) => tried.push(failed(described, &error)),
            }
        }
    }
    let best = best.ok_or_else(|| rejected.expect("the first settings were measured or rejected"))?;
    Ok(Opened { tried, ..best })
}

/// Settings that were not measured, because of an error, which is printed.
fn failed(settings: String, error: &Error) -> Tried {
    say(&format!("  {settings}: {error}"));
    Tried { settings, seconds: None, error: Some(error.message().to_owned()) }
}

/// Opens a baseline, and measures and stops it.
fn open(launch: &Launch<'_>, settings: Settings, reference: &[f32], wait: Duration) -> Result<Opened> {
    let (mut worker, ready) = launch.open(&settings)?;
    let first = worker.run(1)?;
    check_rewards(launch.peer, &first.rewards, reference)?;
    let (slot, _) = least_disturbed(wait, || {
        worker.wake();
        let slot = Slot::of(Some(worker.group()), || worker.run(RUNS))?;
        worker.stop();
        Ok(slot)
    })?;
    let seconds = slot.measured.seconds.into_iter().fold(f64::INFINITY, f64::min);
    let described = describe(&settings);
    say(&format!("  {described}: {seconds:.3} s"));
    let tried = vec![Tried { settings: described, seconds: Some(seconds), error: None }];
    Ok(Opened { peer: launch.peer, worker, ready, settings, seconds, tried })
}

/// `batch=4 threads=2`
pub(super) fn describe(settings: &Settings) -> String {
    let pair = |(name, value): (&String, &Value)| match value.as_str() {
        Some(text) => format!("{name}={text}"),
        None => format!("{name}={value}"),
    };
    settings.iter().map(pair).collect::<Vec<_>>().join(" ")
}
