//! The report of `bench serve-like`: latency and throughput under each load.

use serde_json::{Value, json};

use crate::args::ServeArgs;
use crate::load::{Load, LoadTest, Outcome, Sample};
use crate::report::{elements, number, origin, plain, rate, table};

/// Everything that a run of `bench serve-like` measured.
pub(super) struct Measured<'a> {
    pub(super) args: &'a ServeArgs,
    /// The fields with which the report begins.
    pub(super) beginning: Value,
    /// Requests a second from a full queue.
    pub(super) capacity: f64,
    pub(super) tests: Vec<LoadTest>,
}

/// The latencies of a test.
struct LoadSummary {
    /// From the start of the test to the last completion.
    seconds: f64,
    /// Seconds from when each request was due until its completion, in ascending order.
    latencies: Vec<f64>,
    in_flight_mean: f64,
    in_flight_max: usize,
}

impl Sample {
    fn latency(&self) -> f64 {
        self.completed - self.due
    }
}

impl LoadSummary {
    fn new(samples: &[Sample]) -> Self {
        let seconds = samples.iter().map(|sample| sample.completed).fold(f64::MIN_POSITIVE, f64::max);
        let mut latencies: Vec<f64> = samples.iter().map(Sample::latency).collect();
        latencies.sort_by(f64::total_cmp);
        // Completions before requests of the same time.
        let mut events: Vec<(f64, i64)> =
            samples.iter().flat_map(|sample| [(sample.completed, -1), (sample.due, 1)]).collect();
        events.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let (mut in_flight, mut in_flight_max) = (0, 0);
        for (_, change) in events {
            in_flight += change;
            in_flight_max = in_flight_max.max(in_flight);
        }
        // Little's law, which is exact from an empty start to an empty end.
        let in_flight_mean = latencies.iter().sum::<f64>() / seconds;
        Self { seconds, latencies, in_flight_mean, in_flight_max: in_flight_max as usize }
    }

    fn mean(&self) -> f64 {
        self.latencies.iter().sum::<f64>() / self.latencies.len().max(1) as f64
    }

    /// The shortest latency that this share of all requests did not exceed; 0 without requests.
    fn percentile(&self, share: f64) -> f64 {
        let rank = (share * self.latencies.len() as f64).ceil() as usize;
        self.latencies.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }

    fn max(&self) -> f64 {
        self.latencies.last().copied().unwrap_or(0.0)
    }
}

impl Measured<'_> {
    pub(super) fn report(&self) -> Value {
        let mut report = self.beginning.clone();
        report["lengths"] = json!(self.args.tokens.to_string());
        report["responses"] = json!(self.args.responses);
        report["shared"] = json!(self.args.shared);
        report["submitters"] = json!(self.args.submitters);
        report["capacity"] = json!(self.capacity);
        report["loads"] = self.tests.iter().map(json).collect();
        report
    }
}

fn json(test: &LoadTest) -> Value {
    let of = |outcome: Outcome| -> Vec<Sample> {
        test.samples.iter().copied().filter(|sample| sample.outcome == outcome).collect()
    };
    let answered = of(Outcome::Answered);
    let summary = LoadSummary::new(&answered);
    let (rate, share, concurrency) = match test.load {
        Load::Open { rate, share } => (Some(rate), share, None),
        Load::Closed { concurrency } => (None, None, Some(concurrency)),
    };
    let late = test.samples.iter().map(|sample| sample.submitted - sample.due).fold(0.0, f64::max);
    let sample = |sample: &Sample| {
        json!({
            "due_seconds": sample.due,
            "latency_seconds": sample.latency(),
            "tokens": sample.tokens,
        })
    };
    json!({
        "load": test.load.to_string(),
        "rate": rate,
        "capacity_share": share,
        "concurrency": concurrency,
        "seconds": summary.seconds,
        "answered": answered.len(),
        "answered_per_second": answered.len() as f64 / summary.seconds,
        "refused": of(Outcome::Refused).len(),
        "failed": of(Outcome::Failed).len(),
        "latency_seconds": {
            "mean": summary.mean(),
            "p50": summary.percentile(0.5),
            "p90": summary.percentile(0.9),
            "p99": summary.percentile(0.99),
            "max": summary.max(),
        },
        "in_flight": {"mean": summary.in_flight_mean, "max": summary.in_flight_max},
        "late_seconds_max": late,
        "nominal_tokens_per_second": test.computed.tokens as f64 / summary.seconds,
        "unique_tokens_per_second": test.computed.unique_tokens as f64 / summary.seconds,
        "passes": test.computed.passes,
        "unique_tokens_per_pass": test.computed.unique_tokens as f64 / test.computed.passes.max(1) as f64,
        "samples": answered.iter().map(sample).collect::<Vec<_>>(),
    })
}

/// The report as Markdown.
pub(super) fn markdown(report: &Value) -> String {
    let loads = elements(&report["loads"]).map(|load| {
        let latency =
            |name: &str| number(&load["latency_seconds"][name], |seconds| format!("{:.1} ms", 1e3 * seconds));
        let in_flight = &load["in_flight"];
        [
            plain(&load["load"]),
            number(&load["answered_per_second"], rate),
            format!("{}, {}", load["refused"], load["failed"]),
            latency("p50"),
            latency("p90"),
            latency("p99"),
            latency("max"),
            format!("{} ({})", number(&in_flight["mean"], |mean| format!("{mean:.1}")), in_flight["max"]),
            number(&load["nominal_tokens_per_second"], rate),
            number(&load["unique_tokens_per_pass"], rate),
        ]
    });
    let table = table(
        "| load | answered/s | refused, failed | p50 | p90 | p99 | max | in flight, mean (max) | nominal tokens/s | tokens a pass |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        loads,
    );
    let shared = match (&report["shared"], &report["responses"]) {
        (_, responses) if *responses == 1 => String::new(),
        (shared, responses) => format!(", {shared} of the shortest of {responses} shared by them"),
    };
    let (model, lengths) = (plain(&report["model"]["name"]), plain(&report["lengths"]));
    let capacity = number(&report["capacity"], |capacity| format!("{capacity:.1} requests/s"));
    let origin = origin(report);
    format!("{table}\n\n{origin}: {model}, {lengths} tokens{shared}; {capacity} from a full queue")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(due: f64, submitted: f64, completed: f64) -> Sample {
        Sample { tokens: 1, due, submitted, completed, outcome: Outcome::Answered }
    }

    #[test]
    fn latencies_count_from_when_a_request_was_due() {
        // The generator was held up for two seconds.
        let summary = LoadSummary::new(&[sample(0.0, 0.0, 3.0), sample(1.0, 3.0, 4.0)]);
        assert_eq!((summary.latencies.as_slice(), summary.seconds), ([3.0, 3.0].as_slice(), 4.0));
        // One for a second, two for two, one for a second.
        assert_eq!((summary.in_flight_mean, summary.in_flight_max), (1.5, 2));
    }

    #[test]
    fn percentiles_are_latencies_of_samples() {
        let samples: Vec<Sample> = (1..=200).map(|index| sample(0.0, 0.0, f64::from(index))).collect();
        let summary = LoadSummary::new(&samples);
        let found = [0.5, 0.9, 0.99].map(|share| summary.percentile(share));
        assert_eq!((found, summary.max(), summary.mean()), ([100.0, 180.0, 198.0], 200.0, 100.5));
        assert_eq!(LoadSummary::new(&[]).percentile(0.99), 0.0);
        let back_to_back = LoadSummary::new(&[sample(0.0, 0.0, 1.0), sample(1.0, 1.0, 2.0)]);
        assert_eq!((back_to_back.in_flight_mean, back_to_back.in_flight_max), (1.0, 1));
    }
}
