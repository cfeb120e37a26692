//! [`Canary`]: conversations whose rewards are known, scored again and again. Where a reward drifts,
//! the server is not ready.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kudos::internals::request::{self, Form};
use kudos::{Conversation, Error, ErrorKind, Input, Result};
use serde::Deserialize;

use crate::app::App;
use crate::scheduler::Pending;

/// Difference from a file's reward that is accepted by default. A file may be another device's: the
/// rewards of SmolLM2-135M in bf16 differ from those in f32 by 0.017 on average (benches/README.md).
const FILE_TOLERANCE: f32 = 0.05;

/// Limit on the bytes of a file of canaries.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Conversations whose rewards show that a server works. By default a short one, whose first reward
/// is expected from then on.
#[derive(Clone, Debug)]
pub struct Canary {
    cases: Vec<Case>,
    /// Largest difference from the expected reward.
    tolerance: f32,
    /// Time between two checks.
    pub interval: Duration,
}

#[derive(Clone, Debug)]
struct Case {
    input: Input,
    /// The expected reward: a file's, or else the first that is computed.
    expected: Option<f32>,
}

impl Default for Canary {
    fn default() -> Self {
        let input = Conversation::exchange("What is 1+1?", "1+1=2").into();
        // A reward does not depend on what is scored beside it by a single bit.
        Self {
            cases: vec![Case { input, expected: None }],
            tolerance: 0.0,
            interval: Duration::from_secs(60),
        }
    }
}

/// The rewards of a line.
#[derive(Deserialize)]
struct Expected {
    reward: Option<f32>,
    rewards: Option<Vec<f32>>,
}

impl Canary {
    /// Reads a file of JSON lines: each a request, with its `reward` or `rewards` as `kudos score`
    /// writes them.
    ///
    /// # Errors
    ///
    /// `Io` for a file that cannot be read, `InvalidInput` for a line that is no request with its
    /// rewards.
    pub fn read(path: &Path) -> Result<Self> {
        let unreadable =
            |error| Error::new(ErrorKind::Io, "cannot read the canaries").caused_by(error).at(path.display());
        let size = fs::metadata(path).map_err(unreadable)?.len();
        if size > FILE_BYTES_MAX {
            let message = format!("the file of canaries has {size} bytes, the limit is {FILE_BYTES_MAX}");
            return Err(Error::new(ErrorKind::InvalidInput, message).at(path.display()));
        }
        let text = fs::read(path).map_err(unreadable)?;
        let mut cases = Vec::new();
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            if !line.trim_ascii().is_empty() {
                let place = format!("{}, line {}", path.display(), index + 1);
                cases.extend(Case::of_line(line).map_err(|error| error.at(place))?);
            }
        }
        if cases.is_empty() {
            let message = "the file of canaries has no line";
            return Err(Error::new(ErrorKind::InvalidInput, message).at(path.display()));
        }
        Ok(Self { cases, tolerance: FILE_TOLERANCE, ..Self::default() })
    }

    /// Sets the largest difference from the expected reward; by default 0.05 from a file's, and 0
    /// from the first one.
    pub fn with_tolerance(self, tolerance: f32) -> Self {
        Self { tolerance, ..self }
    }
}

impl Case {
    fn of_line(line: &[u8]) -> Result<Vec<Self>> {
        let wrong = |message: &str| {
            Error::new(ErrorKind::InvalidInput, message)
                .with_hint("a canary is a request with its `reward`, or its `rewards` for `responses`")
        };
        let request = request::parse(line).request?;
        let given: Expected =
            serde_json::from_slice(line).map_err(|_| wrong("`reward` and `rewards` are no numbers"))?;
        let rewards: Vec<f32> = match (request.form(), given) {
            (Form::One, Expected { reward: Some(reward), rewards: None }) => vec![reward],
            (Form::Responses(_), Expected { reward: None, rewards: Some(rewards) }) => rewards,
            _ => return Err(wrong("the line has no reward that fits its request")),
        };
        let inputs: Vec<Input> = request.into_inputs().map(Input::from).collect();
        if inputs.len() != rewards.len() {
            return Err(wrong("the line has another number of rewards than of responses"));
        }
        let case = |(input, reward)| Self { input, expected: Some(reward) };
        Ok(inputs.into_iter().zip(rewards).map(case).collect())
    }
}

/// Whether a server is ready, and why not.
#[derive(Debug)]
pub(crate) struct Readiness(Mutex<std::result::Result<(), String>>);

impl Readiness {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Err("the canary has not been scored yet".to_owned())))
    }

    /// Returns why the server is not ready, if it is not.
    pub(crate) fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().err()
    }

    fn set(&self, readiness: std::result::Result<(), String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = readiness;
    }
}

/// Scores the canaries from time to time, and sets the server's readiness.
pub(crate) async fn watch(app: App) {
    let Canary { mut cases, tolerance, interval } = app.options.canary.clone();
    let is_default = cases.iter().all(|case| case.expected.is_none());
    if is_default && app.engine.prepare(cases[0].input.clone()).is_err() {
        // The model has no tokenizer, or its template takes no such conversation.
        let input = Input::from((0..8_u32).collect::<Vec<_>>());
        cases = vec![Case { input, expected: None }];
    }
    // The first reward is compared with another one before it counts.
    let _ = check(&app, &mut cases, tolerance).await;
    loop {
        let readiness = check(&app, &mut cases, tolerance).await;
        if let Err(reason) = &readiness {
            tracing::error!("not ready: {}", reason.escape_debug());
        }
        app.readiness.set(readiness);
        tokio::time::sleep(interval).await;
    }
}

async fn check(app: &App, cases: &mut [Case], tolerance: f32) -> std::result::Result<(), String> {
    let mut drift = 0.0_f32;
    for (index, case) in cases.iter_mut().enumerate() {
        let reward = reward(app, case).await.map_err(|error| format!("canary {index}: {error}"))?;
        if index == 0 {
            app.metrics.canary_reward.set(f64::from(reward));
        }
        let expected = *case.expected.get_or_insert(reward);
        drift = drift.max((reward - expected).abs());
        app.metrics.canary_drift.set(f64::from(drift));
        if drift > tolerance {
            return Err(format!(
                "canary {index} has the reward {reward}, expected {expected}, with a tolerance of {tolerance}"
            ));
        }
    }
    Ok(())
}

async fn reward(app: &App, case: &Case) -> Result<f32> {
    let (input, engine) = (case.input.clone(), Arc::clone(&app.engine));
    let tokens = app.workers.run(move || engine.prepare(input)).await?;
    let ticket = app.scheduler.request();
    let pending = ticket.push(vec![tokens]).await;
    let scores = futures_util::future::join_all(pending.into_iter().map(Pending::score)).await;
    scores.into_iter().next().expect("a score for each sequence").map(|score| score.reward)
}
