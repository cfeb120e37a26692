//! What requests that came one by one met, as a table, as CSV, or as JSON: `benches/schema.md` describes the latter.

use std::fmt;

use serde_json::{Value, json};

use crate::args::{Format, ServeArgs};
use crate::facts;
use crate::report::{csv, rate};
use crate::serve::{Load, Row, Sample};
use kudos::Engine;

/// All that is known when the last test is through.
pub(super) struct Report<'a> {
    pub(super) args: &'a ServeArgs,
    pub(super) engine: &'a Engine,
    pub(super) commit: Option<&'a str>,
    /// Requests a second where all wait.
    pub(super) capacity: f64,
    pub(super) rows: Vec<Row>,
}

/// What a test's samples come to.
struct Met {
    /// From the start to the last answer.
    seconds: f64,
    /// Seconds, from when a request was to come until its answer, from the shortest on.
    latencies: Vec<f64>,
    in_flight_mean: f64,
    in_flight_max: usize,
}

impl Sample {
    fn latency(&self) -> f64 {
        self.answered - self.due
    }
}

/// `50 requests/s`, or `8 clients`
impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Open { rate: asked, share: None } => write!(f, "{} requests/s", rate(asked)),
            Self::Open { rate: asked, share: Some(share) } => {
                write!(f, "{} requests/s, {share} of what it can", rate(asked))
            }
            Self::Closed { concurrency } => write!(f, "{concurrency} clients"),
        }
    }
}

impl Met {
    fn new(samples: &[Sample]) -> Self {
        let seconds = samples.iter().map(|sample| sample.answered).fold(f64::MIN_POSITIVE, f64::max);
        let mut latencies: Vec<f64> = samples.iter().map(Sample::latency).collect();
        latencies.sort_by(f64::total_cmp);
        // Answers before requests that come at the same time.
        let mut events: Vec<(f64, i64)> =
            samples.iter().flat_map(|sample| [(sample.answered, -1), (sample.due, 1)]).collect();
        events.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let (mut in_flight, mut in_flight_max) = (0, 0);
        for (_, change) in events {
            in_flight += change;
            in_flight_max = in_flight_max.max(in_flight);
        }
        // Little's law, which holds exactly from an empty start to an empty end.
        let in_flight_mean = latencies.iter().sum::<f64>() / seconds;
        Self { seconds, latencies, in_flight_mean, in_flight_max: in_flight_max as usize }
    }

    fn mean(&self) -> f64 {
        self.latencies.iter().sum::<f64>() / self.latencies.len().max(1) as f64
    }

    /// The shortest latency that this part of all requests did not exceed; 0 where there are none.
    fn percentile(&self, part: f64) -> f64 {
        let rank = (part * self.latencies.len() as f64).ceil() as usize;
        self.latencies.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }

    fn max(&self) -> f64 {
        self.latencies.last().copied().unwrap_or(0.0)
    }
}

impl Report<'_> {
    /// The report in that form, without a line break at its end.
    pub(super) fn text(&self, format: Format) -> String {
        match format {
            Format::Md => self.table(),
            Format::Csv => csv(&self.rows.iter().map(|row| self.csv_row(row)).collect::<Vec<_>>()),
            Format::Json => self.json().to_string(),
        }
    }

    /// What requests were like, in words.
    fn requests(&self) -> String {
        let ServeArgs { tokens, responses, shared, .. } = self.args;
        match responses.get() {
            1 => format!("{tokens} tokens"),
            _ => format!("{tokens} tokens, {shared} of the shortest of {responses} shared by them"),
        }
    }

    fn table(&self) -> String {
        let mut lines = vec![
            "| load | answered/s | p50 | p90 | p99 | max | in flight, mean (max) | nominal tokens/s | tokens a pass |"
                .to_owned(),
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|".to_owned(),
        ];
        for row in &self.rows {
            let met = Met::new(&row.samples);
            let ms = |seconds: f64| format!("{:.1} ms", 1e3 * seconds);
            let cells = [
                row.load.to_string(),
                rate(row.samples.len() as f64 / met.seconds),
                ms(met.percentile(0.5)),
                ms(met.percentile(0.9)),
                ms(met.percentile(0.99)),
                ms(met.max()),
                format!("{:.1} ({})", met.in_flight_mean, met.in_flight_max),
                rate(row.computed.tokens as f64 / met.seconds),
                rate(row.computed.unique_tokens as f64 / row.computed.passes.max(1) as f64),
            ];
            lines.push(format!("| {} |", cells.join(" | ")));
        }
        let commit = self.commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
        lines.push(format!(
            "\nkudos {}{commit} on {}: {}, {}; {:.1} requests/s where all wait",
            env!("CARGO_PKG_VERSION"),
            self.engine.device(),
            self.args.model.name(),
            self.requests(),
            self.capacity
        ));
        lines.join("\n")
    }

    fn csv_row(&self, row: &Row) -> Vec<(String, String)> {
        let met = Met::new(&row.samples);
        let columns = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("commit", self.commit.unwrap_or_default().to_owned()),
            ("device", self.engine.device().to_string()),
            ("model", self.args.model.name().to_owned()),
            ("requests", self.requests()),
            ("load", row.load.to_string()),
            ("answered", row.samples.len().to_string()),
            ("answered_per_second", (row.samples.len() as f64 / met.seconds).to_string()),
            ("latency_mean", met.mean().to_string()),
            ("latency_p50", met.percentile(0.5).to_string()),
            ("latency_p90", met.percentile(0.9).to_string()),
            ("latency_p99", met.percentile(0.99).to_string()),
            ("latency_max", met.max().to_string()),
            ("in_flight_mean", met.in_flight_mean.to_string()),
            ("in_flight_max", met.in_flight_max.to_string()),
            ("nominal_tokens_per_second", (row.computed.tokens as f64 / met.seconds).to_string()),
            ("passes", row.computed.passes.to_string()),
            ("unique_tokens", row.computed.unique_tokens.to_string()),
        ];
        columns.map(|(name, value)| (name.to_owned(), value)).into()
    }

    fn json(&self) -> Value {
        let mut object = facts::of(&self.args.model, self.engine, self.commit);
        for (name, value) in [
            ("lengths", json!(self.args.tokens.to_string())),
            ("responses", json!(self.args.responses)),
            ("shared", json!(self.args.shared)),
            ("submitters", json!(self.args.submitters)),
            ("capacity", json!(self.capacity)),
            ("loads", self.rows.iter().map(json_row).collect()),
        ] {
            object.insert(name.to_owned(), value);
        }
        Value::Object(object)
    }
}

fn json_row(row: &Row) -> Value {
    let met = Met::new(&row.samples);
    let (asked, share, concurrency) = match row.load {
        Load::Open { rate, share } => (Some(rate), share, None),
        Load::Closed { concurrency } => (None, None, Some(concurrency)),
    };
    let late = row.samples.iter().map(|sample| sample.asked - sample.due).fold(0.0, f64::max);
    let sample = |sample: &Sample| {
        json!({
            "due_seconds": sample.due,
            "latency_seconds": sample.latency(),
            "tokens": sample.tokens,
        })
    };
    json!({
        "rate": asked,
        "capacity_share": share,
        "concurrency": concurrency,
        "seconds": met.seconds,
        "answered": row.samples.len(),
        "answered_per_second": row.samples.len() as f64 / met.seconds,
        "latency_seconds": {
            "mean": met.mean(),
            "p50": met.percentile(0.5),
            "p90": met.percentile(0.9),
            "p99": met.percentile(0.99),
            "max": met.max(),
        },
        "in_flight": {"mean": met.in_flight_mean, "max": met.in_flight_max},
        "late_seconds_max": late,
        "nominal_tokens_per_second": row.computed.tokens as f64 / met.seconds,
        "unique_tokens_per_second": row.computed.unique_tokens as f64 / met.seconds,
        "passes": row.computed.passes,
        "unique_tokens_per_pass": row.computed.unique_tokens as f64 / row.computed.passes.max(1) as f64,
        "samples": row.samples.iter().map(sample).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(due: f64, asked: f64, answered: f64) -> Sample {
        Sample { tokens: 1, due, asked, answered }
    }

    #[test]
    fn latencies_count_from_when_a_request_was_to_come() {
        // The generator was held up for two seconds.
        let met = Met::new(&[sample(0.0, 0.0, 3.0), sample(1.0, 3.0, 4.0)]);
        assert_eq!((met.latencies.as_slice(), met.seconds), ([3.0, 3.0].as_slice(), 4.0));
        // One for a second, two for two, one for a second.
        assert_eq!((met.in_flight_mean, met.in_flight_max), (1.5, 2));
    }

    #[test]
    fn percentiles_are_latencies_that_were_met() {
        let samples: Vec<Sample> = (1..=200).map(|index| sample(0.0, 0.0, f64::from(index))).collect();
        let met = Met::new(&samples);
        let found = [0.5, 0.9, 0.99].map(|part| met.percentile(part));
        assert_eq!((found, met.max(), met.mean()), ([100.0, 180.0, 198.0], 200.0, 100.5));
        assert_eq!(Met::new(&[]).percentile(0.99), 0.0);
        let back_to_back = Met::new(&[sample(0.0, 0.0, 1.0), sample(1.0, 1.0, 2.0)]);
        assert_eq!((back_to_back.in_flight_mean, back_to_back.in_flight_max), (1.0, 1));
    }
}
