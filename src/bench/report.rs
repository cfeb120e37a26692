//! What was measured, as a table, as CSV, or as JSON: `benches/schema.md` describes the latter.

use std::env;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::bench::args::{Args, Format};
use crate::bench::machine;
use crate::bench::measure::{Row, Summary};
use crate::bench::peak::Peak;
use crate::bench::workload::FLOP_FORMULA;
use crate::engine::Engine;

/// Counts changes of the JSON's form that a reader would notice.
const SCHEMA: u32 = 1;

const GIB: f64 = (1_u64 << 30) as f64;

/// All that is known when the last test is through.
pub(super) struct Report<'a> {
    pub(super) args: &'a Args,
    pub(super) engine: &'a Engine,
    pub(super) commit: Option<&'a str>,
    pub(super) peak: Option<Peak>,
    pub(super) rows: Vec<Row>,
}

impl Report<'_> {
    /// The report in that form, without a line break at its end.
    pub(super) fn text(&self, format: Format) -> String {
        match format {
            Format::Md => self.table(),
            Format::Csv => self.csv(),
            Format::Json => self.json().to_string(),
        }
    }

    /// The model by the name that it was asked for with.
    fn model(&self) -> &str {
        let shape = self.args.shape.map(|shape| shape.shape().name);
        shape.or(self.args.model.as_deref()).unwrap_or_default()
    }

    /// TFLOP/s, and the share of the peak that they are, from 0 to 1; where a peak is known.
    fn reached(&self, row: &Row) -> Option<(f64, f64)> {
        let peak = self.peak?;
        let tflops = row.tflops(row.workload.flop(self.engine.config()));
        Some((tflops, tflops / peak.tflops))
    }

    fn table(&self) -> String {
        let mut text = String::from(
            "| model | test | passes | unique tokens/s | median | nominal tokens/s | TFLOP/s | MFU | peak memory |\n\
             |---|---|---:|---:|---:|---:|---:|---:|---:|",
        );
        // Far more digits than the clock is good for would only be in the way.
        let rate = |rate: f64| if rate < 100.0 { format!("{rate:.2}") } else { format!("{rate:.0}") };
        let spread = |Summary { mean, sd, .. }| format!("{} ± {}", rate(mean), rate(sd));
        let missing = || "-".to_owned();
        for row in &self.rows {
            let reached = self.reached(row);
            let cells = [
                self.model().replace('|', "\\|"),
                row.workload.to_string(),
                rate(row.summary(|sample| sample.passes as f64).median),
                spread(row.unique_rate()),
                rate(row.unique_rate().median),
                spread(row.nominal_rate()),
                reached.map_or_else(missing, |(tflops, _)| format!("{tflops:.3}")),
                reached.map_or_else(missing, |(_, mfu)| format!("{:.1} %", 100.0 * mfu)),
                row.peak_memory_bytes.map_or_else(missing, |bytes| format!("{:.2} GiB", bytes as f64 / GIB)),
            ];
            let _ = write!(text, "\n| {} |", cells.join(" | "));
        }
        let commit = self.commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
        let _ = write!(text, "\n\nkudos {}{commit} on {}", env!("CARGO_PKG_VERSION"), self.engine.device());
        if let Some(Peak { tflops, source }) = self.peak {
            let _ = write!(text, "\nMFU: of {tflops} TFLOP/s ({source}). FLOP: {FLOP_FORMULA}");
        }
        text
    }

    fn csv(&self) -> String {
        let rows: Vec<Vec<(&str, String)>> = self.rows.iter().map(|row| self.csv_row(row)).collect();
        let lines = rows.iter().map(|row| line(row.iter().map(|(_, value)| value.as_str())));
        let names = rows.first().map(|row| line(row.iter().map(|(name, _)| *name)));
        names.into_iter().chain(lines).collect::<Vec<_>>().join("\n")
    }

    fn csv_row(&self, row: &Row) -> Vec<(&'static str, String)> {
        let (workload, reached) = (&row.workload, self.reached(row));
        let (unique, nominal) = (row.unique_rate(), row.nominal_rate());
        let seconds: Vec<String> = row.samples.iter().map(|sample| sample.seconds.to_string()).collect();
        let or_nothing = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
        vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("commit", self.commit.unwrap_or_default().to_owned()),
            ("device", self.engine.device().to_owned()),
            ("model", self.model().to_owned()),
            ("ranks", self.engine.plan().ranks.to_string()),
            ("batch_tokens", self.engine.plan().batch_tokens.to_string()),
            ("tokens", workload.tokens.to_string()),
            ("sequences", workload.sequences.to_string()),
            ("shared_prefix", workload.shared_prefix.to_string()),
            ("responses", workload.responses.to_string()),
            ("passes", row.summary(|sample| sample.passes as f64).median.to_string()),
            ("unique_tokens_per_second_mean", unique.mean.to_string()),
            ("unique_tokens_per_second_sd", unique.sd.to_string()),
            ("unique_tokens_per_second_median", unique.median.to_string()),
            ("nominal_tokens_per_second_mean", nominal.mean.to_string()),
            ("nominal_tokens_per_second_sd", nominal.sd.to_string()),
            ("nominal_tokens_per_second_median", nominal.median.to_string()),
            ("tflops", or_nothing(reached.map(|(tflops, _)| tflops))),
            ("mfu", or_nothing(reached.map(|(_, mfu)| mfu))),
            ("peak_memory_bytes", row.peak_memory_bytes.map(|bytes| bytes.to_string()).unwrap_or_default()),
            ("seconds", seconds.join(";")),
        ]
    }

    fn json(&self) -> Value {
        let (config, plan) = (self.engine.config(), self.engine.plan());
        json!({
            "schema": SCHEMA,
            "version": env!("CARGO_PKG_VERSION"),
            "commit": self.commit,
            "arguments": env::args().skip(1).collect::<Vec<_>>(),
            "unix_seconds": jiff::Timestamp::now().as_second(),
            "device": self.engine.device(),
            "cpu": machine::cpu_name(),
            "cpu_math": format!("{:?}", self.args.cpu_math).to_lowercase(),
            "model": {
                "name": self.model(),
                "random_weights": self.args.shape.is_some(),
                "layers": config.layers,
                "hidden": config.hidden,
                "q_heads": config.q_heads,
                "kv_heads": config.kv_heads,
                "head_dim": config.head_dim,
                "ffn": config.ffn,
            },
            "plan": {
                "ranks": plan.ranks,
                "batch_tokens": plan.batch_tokens,
                "allocated_weight_bytes": plan.footprint.weights,
                "workspace_bytes": plan.footprint.workspace,
                "layers_resident": plan.placement.resident,
                "layers_streamed": plan.placement.streamed,
            },
            "peak_tflops": self.peak.map(|peak| peak.tflops),
            "peak_source": self.peak.map(|peak| peak.source),
            "flop_formula": FLOP_FORMULA,
            "rows": self.rows.iter().map(|row| self.json_row(row)).collect::<Vec<_>>(),
        })
    }

    fn json_row(&self, row: &Row) -> Value {
        let (workload, reached) = (&row.workload, self.reached(row));
        let summary =
            |Summary { mean, sd, median }: Summary| json!({"mean": mean, "sd": sd, "median": median});
        let samples = row.samples.iter().map(|sample| {
            json!({
                "seconds": sample.seconds,
                "unique_tokens": sample.unique_tokens,
                "nominal_tokens": sample.nominal_tokens,
                "passes": sample.passes,
            })
        });
        json!({
            "tokens": workload.tokens,
            "sequences": workload.sequences,
            "shared_prefix": workload.shared_prefix,
            "responses": workload.responses,
            "unique_tokens_per_second": summary(row.unique_rate()),
            "nominal_tokens_per_second": summary(row.nominal_rate()),
            "flop": workload.flop(self.engine.config()),
            "tflops": reached.map(|(tflops, _)| tflops),
            "mfu": reached.map(|(_, mfu)| mfu),
            "peak_memory_bytes": row.peak_memory_bytes,
            "samples": samples.collect::<Vec<_>>(),
        })
    }
}

/// A line of CSV: what holds a comma, a quote or a line break is quoted.
pub(super) fn line<'a>(values: impl Iterator<Item = &'a str>) -> String {
    let quoted = |value: &str| {
        if value.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", value.replace('"', "\"\""))
        } else {
            value.to_owned()
        }
    };
    values.map(quoted).collect::<Vec<_>>().join(",")
}
