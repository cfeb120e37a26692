//! [`Metrics`]: what `/metrics` shows, in the text format of OpenMetrics.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kudos::{Engine, ErrorKind, Result, Score};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::options::Options;
use crate::scheduler::Waiting;

/// Bounds of times, in seconds.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Bounds of rewards, which are raw logits.
const REWARDS: [f64; 17] =
    [-32.0, -16.0, -8.0, -4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

/// Bounds of lengths, in tokens.
const TOKENS: [f64; 12] =
    [16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 131_072.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// Counts of a server. The engine's own are read when they are shown.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Route, Counter>,
    request_seconds: Histogram,
    /// Requests that found the queue full.
    pub(crate) refused: Counter,
    queue_seconds: Histogram,
    compute_seconds: Histogram,
    rewards: Histogram,
    lengths: Histogram,
    truncated: Counter,
    non_finite: Counter,
    errors: Family<Kind, Counter>,
    passes: Counter,
    sequences: Counter,
    tokens: Counter,
    unique_tokens: Counter,
    fill: Gauge<f64, std::sync::atomic::AtomicU64>,
    waiting_sequences: Gauge,
    waiting_tokens: Gauge,
    waiting_tokens_max: Gauge,
    ready: Gauge,
    /// The largest difference of a canary's reward from the expected one.
    pub(crate) canary_drift: Gauge<f64, std::sync::atomic::AtomicU64>,
    /// The first canary's reward.
    pub(crate) canary_reward: Gauge<f64, std::sync::atomic::AtomicU64>,
}

impl Metrics {
    pub(crate) fn new(engine: &Engine, options: &Options) -> Self {
        let histogram = |bounds: &[f64]| Histogram::new(bounds.iter().copied());
        let mut metrics = Self {
            registry: Registry::with_prefix("kudos"),
            requests: Family::default(),
            request_seconds: histogram(&SECONDS),
            refused: Counter::default(),
            queue_seconds: histogram(&SECONDS),
            compute_seconds: histogram(&SECONDS),
            rewards: histogram(&REWARDS),
            lengths: histogram(&TOKENS),
            truncated: Counter::default(),
            non_finite: Counter::default(),
            errors: Family::default(),
            passes: Counter::default(),
            sequences: Counter::default(),
            tokens: Counter::default(),
            unique_tokens: Counter::default(),
            fill: Gauge::default(),
            waiting_sequences: Gauge::default(),
            waiting_tokens: Gauge::default(),
            waiting_tokens_max: Gauge::default(),
            ready: Gauge::default(),
            canary_drift: Gauge::default(),
            canary_reward: Gauge::default(),
        };
        metrics.register(engine, options);
        metrics
    }

    fn register(&mut self, engine: &Engine, options: &Options) {
        let registry = &mut self.registry;
        let info = Info::new([
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("model", options.name().to_owned()),
            ("device", engine.device().to_string()),
        ]);
        registry.register("build", "The server, its model and its device", info);
        registry.register("requests", "Requests by path and status", self.requests.clone());
        let mut seconds = |name: &str, help: &str, histogram: &Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        seconds("request", "Time from a request's headers to its answer", &self.request_seconds);
        seconds("queue", "Time of a sequence in the engine's queue", &self.queue_seconds);
        seconds("compute", "Time from the packing of a sequence to its reward", &self.compute_seconds);
        registry.register("refused", "Requests that found the queue full", self.refused.clone());
        registry.register("reward", "Rewards", self.rewards.clone());
        registry.register("sequence_tokens", "Tokens of a sequence", self.lengths.clone());
        registry.register("truncated", "Sequences that were cut to the limit", self.truncated.clone());
        registry.register("non_finite", "Rewards that came out as NaN or infinite", self.non_finite.clone());
        registry.register("errors", "Sequences without a reward, by the kind of error", self.errors.clone());
        registry.register("passes", "Passes through the model", self.passes.clone());
        registry.register("sequences", "Sequences that were scored", self.sequences.clone());
        registry.register("tokens", "Tokens of those sequences", self.tokens.clone());
        registry.register(
            "unique_tokens",
            "Tokens that were computed: shared ones count once",
            self.unique_tokens.clone(),
        );
        registry.register("batch_fill_ratio", "Tokens of passes over their limit", self.fill.clone());
        registry.register(
            "waiting_sequences",
            "Sequences that wait for a pass",
            self.waiting_sequences.clone(),
        );
        registry.register("waiting_tokens", "Tokens of those sequences", self.waiting_tokens.clone());
        let help = "Waiting tokens from which on requests are refused";
        registry.register("waiting_tokens_max", help, self.waiting_tokens_max.clone());
        registry.register("ready", "1 where `/ready` says so", self.ready.clone());
        let help = "Largest difference of a canary's reward from the expected one";
        registry.register("canary_drift", help, self.canary_drift.clone());
        registry.register("canary_reward", "The first canary's reward", self.canary_reward.clone());
    }

    /// Counts a request that has its answer.
    pub(crate) fn answered(&self, route: &str, status: u16, time: Duration) {
        self.requests.get_or_create(&Route { route: route.to_owned(), status }).inc();
        self.request_seconds.observe(time.as_secs_f64());
    }

    /// Counts a sequence's result.
    pub(crate) fn count(&self, score: &Result<Score>) {
        match score {
            Ok(score) => {
                self.queue_seconds.observe(score.queue_time.as_secs_f64());
                self.compute_seconds.observe(score.compute_time.as_secs_f64());
                self.rewards.observe(f64::from(score.reward));
                self.lengths.observe(score.tokens as f64);
                self.truncated.inc_by(u64::from(score.truncated));
            }
            Err(error) => {
                self.non_finite.inc_by(u64::from(error.kind() == ErrorKind::NonFinite));
                self.errors.get_or_create(&Kind { kind: error.kind().name() }).inc();
            }
        }
    }

    /// Returns all as text.
    pub(crate) fn text(&self, engine: &Engine, waiting: Waiting, ready: bool) -> String {
        let stats = engine.stats();
        for (counter, value) in [
            (&self.passes, stats.passes),
            (&self.sequences, stats.sequences),
            (&self.tokens, stats.tokens),
            (&self.unique_tokens, stats.unique_tokens),
        ] {
            counter.inner().store(value, Ordering::Relaxed);
        }
        let capacity = stats.passes.max(1) * engine.plan().batch_tokens as u64;
        self.fill.set(stats.unique_tokens as f64 / capacity as f64);
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.waiting_sequences.set(signed(waiting.sequences + stats.queued_sequences));
        self.waiting_tokens.set(signed(waiting.tokens + stats.queued_tokens));
        self.waiting_tokens_max.set(signed(waiting.tokens_max));
        self.ready.set(i64::from(ready));
        let mut shown = String::new();
        text::encode(&mut shown, &self.registry).expect("a string takes any text");
        shown
    }
}
