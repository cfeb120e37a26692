//! The loads of `bench serve-like`, and the samples that are taken under them.

use std::fmt;

use crate::report::rate;
use kudos::Stats;

/// An arrival process of requests.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// `rate` a second, whether earlier ones are completed or not; `share` of the capacity where it
    /// was given as one.
    Open { rate: f64, share: Option<f64> },
    /// From this number of clients, each of which waits for its answer.
    Closed { concurrency: usize },
}

/// `50 requests/s`, or `8 clients`
impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Open { rate: given, share: None } => write!(f, "{} requests/s", rate(given)),
            Self::Open { rate: given, share: Some(share) } => {
                write!(f, "{} requests/s, {share} of the capacity", rate(given))
            }
            Self::Closed { concurrency } => write!(f, "{concurrency} clients"),
        }
    }
}

/// One request. Times are seconds from the start of the test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) tokens: usize,
    pub(super) due: f64,
    pub(super) submitted: f64,
    pub(super) completed: f64,
    pub(super) outcome: Outcome,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered,
    /// A server's queue was full.
    Refused,
    Failed,
}

/// A load and its samples.
#[derive(Debug)]
pub(super) struct LoadTest {
    pub(super) load: Load,
    /// In the order in which they were due.
    pub(super) samples: Vec<Sample>,
    /// The engine's counts for them.
    pub(super) computed: Stats,
}
