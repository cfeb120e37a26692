//! What was measured, as a table, as CSV, or as JSON: `benches/schema.md` describes the latter.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::args::{Args, Format};
use crate::compare::{self, Baseline};
use crate::measure::{Row, Summary};
use crate::peak::Peak;
use crate::roof::{ROOF_FORMULA, Rates};
use crate::workload::FLOP_FORMULA;
use crate::{classes, facts, sensors};
use kudos::Engine;
use kudos::internals::units::gib;

/// All that is known when the last test is through.
pub(super) struct Report<'a> {
    pub(super) args: &'a Args,
    pub(super) engine: &'a Engine,
    pub(super) commit: Option<&'a str>,
    pub(super) peak: Option<Peak>,
    /// What roofs are computed from.
    pub(super) rates: Option<Rates>,
    pub(super) rows: Vec<Row>,
    /// What else was measured on the same ids.
    pub(super) baselines: Vec<Baseline>,
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

    /// TFLOP/s, and the share of the peak that they are, from 0 to 1; where a peak is known.
    fn reached(&self, row: &Row) -> Option<(f64, f64)> {
        let peak = self.peak?;
        let tflops = row.tflops(row.workload.flop(self.engine.config()));
        Some((tflops, tflops / peak.tflops))
    }

    /// The least that a run could take, and the share that this is of what it took, by the medians.
    fn roof(&self, row: &Row) -> Option<(f64, f64)> {
        let seconds = self.rates?.seconds_of_all(&row.spent);
        Some((seconds, seconds / row.summary(|sample| sample.seconds).median))
    }

    fn table(&self) -> String {
        let mut text = String::from(
            "| model | test | passes | unique tokens/s | median | nominal tokens/s | TFLOP/s | MFU | of the roof | peak memory |\n\
             |---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        );
        let spread = |Summary { mean, sd, .. }| format!("{} ± {}", rate(mean), rate(sd));
        let missing = || "-".to_owned();
        for row in &self.rows {
            let reached = self.reached(row);
            let cells = [
                self.args.model.name().replace('|', "\\|"),
                row.workload.to_string(),
                rate(row.summary(|sample| sample.passes as f64).median),
                spread(row.unique_rate()),
                rate(row.unique_rate().median),
                spread(row.nominal_rate()),
                reached.map_or_else(missing, |(tflops, _)| format!("{tflops:.3}")),
                reached.map_or_else(missing, |(_, mfu)| format!("{:.1} %", 100.0 * mfu)),
                self.roof(row).map_or_else(missing, |(_, share)| format!("{:.1} %", 100.0 * share)),
                row.peak_memory_bytes.map_or_else(missing, |bytes| format!("{:.2} GiB", gib(bytes as usize))),
            ];
            let _ = write!(text, "\n| {} |", cells.join(" | "));
        }
        let commit = self.commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
        let _ = write!(text, "\n\nkudos {}{commit} on {}", env!("CARGO_PKG_VERSION"), self.engine.device());
        if let Some(Peak { tflops, source }) = self.peak {
            let tflops = (1000.0 * tflops).round() / 1000.0;
            let _ = write!(text, "\nMFU: of {tflops} TFLOP/s ({source}). FLOP: {FLOP_FORMULA}");
        }
        for Row { workload, warm_up, readings, .. } in &self.rows {
            let said = sensors::text(readings);
            let _ = write!(text, "\n{workload}: warmed up by {warm_up}{said}");
        }
        let _ = write!(text, "\n\n{}", classes::table(&self.rows, self.rates));
        if let Some(Rates { products, attention, score, bytes }) = self.rates {
            let slower = ([attention, score] != [products; 2])
                .then(|| format!(" ({:.3} in attention, {:.3} in the head)", attention / 1e12, score / 1e12));
            let copied = bytes.map(|bytes| format!(", copies {:.0} GB/s", bytes / 1e9));
            let [slower, copied] = [slower, copied].map(Option::unwrap_or_default);
            let _ = write!(text, "\n\nRoof: {ROOF_FORMULA}. Measured: {:.3} TFLOP/s", products / 1e12);
            let _ = write!(text, "{slower}{copied}");
        }
        if !self.baselines.is_empty() {
            let _ = write!(text, "\n\n{}", compare::table(&self.baselines, &self.rows));
        }
        text
    }

    fn csv(&self) -> String {
        let rows: Vec<Vec<(String, String)>> =
            (0..self.rows.len()).map(|index| self.csv_row(index)).collect();
        csv(&rows)
    }

    fn csv_row(&self, index: usize) -> Vec<(String, String)> {
        let row = &self.rows[index];
        let (workload, reached, roof) = (&row.workload, self.reached(row), self.roof(row));
        let (unique, nominal) = (row.unique_rate(), row.nominal_rate());
        let seconds: Vec<String> = row.samples.iter().map(|sample| sample.seconds.to_string()).collect();
        let or_nothing = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
        let columns = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("commit", self.commit.unwrap_or_default().to_owned()),
            ("device", self.engine.device().to_string()),
            ("model", self.args.model.name().to_owned()),
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
            ("roof_seconds", or_nothing(roof.map(|(seconds, _)| seconds))),
            ("roof_share", or_nothing(roof.map(|(_, share)| share))),
            ("peak_memory_bytes", row.peak_memory_bytes.map(|bytes| bytes.to_string()).unwrap_or_default()),
            ("seconds", seconds.join(";")),
        ];
        let columns = columns.map(|(name, value)| (name.to_owned(), value));
        let baselines = self.baselines.iter().flat_map(|baseline| baseline.csv(index, row));
        columns.into_iter().chain(classes::csv(&row.spent)).chain(baselines).collect()
    }

    fn json(&self) -> Value {
        let mut object = facts::of(&self.args.model, self.engine, self.commit);
        for (name, value) in [
            ("peak_tflops", json!(self.peak.map(|peak| peak.tflops))),
            ("peak_source", json!(self.peak.map(|peak| peak.source))),
            ("flop_formula", json!(FLOP_FORMULA)),
            ("roof_flop_per_second", json!(self.rates.map(|rates| rates.products))),
            ("roof_attention_flop_per_second", json!(self.rates.map(|rates| rates.attention))),
            ("roof_score_flop_per_second", json!(self.rates.map(|rates| rates.score))),
            ("roof_bytes_per_second", json!(self.rates.and_then(|rates| rates.bytes))),
            ("roof_formula", json!(ROOF_FORMULA)),
            ("rows", (0..self.rows.len()).map(|index| self.json_row(index)).collect()),
        ] {
            object.insert(name.to_owned(), value);
        }
        Value::Object(object)
    }

    fn json_row(&self, index: usize) -> Value {
        let row = &self.rows[index];
        let (workload, reached, roof) = (&row.workload, self.reached(row), self.roof(row));
        let samples = row.samples.iter().map(|sample| {
            json!({
                "seconds": sample.seconds,
                "cpu_seconds": sample.cpu_seconds,
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
            "unique_tokens_per_second": row.unique_rate(),
            "nominal_tokens_per_second": row.nominal_rate(),
            "flop": workload.flop(self.engine.config()),
            "tflops": reached.map(|(tflops, _)| tflops),
            "mfu": reached.map(|(_, mfu)| mfu),
            "roof_seconds": roof.map(|(seconds, _)| seconds),
            "roof_share": roof.map(|(_, share)| share),
            "peak_memory_bytes": row.peak_memory_bytes,
            "warm_up": row.warm_up,
            "gpu": sensors::json(&row.readings),
            "profile_seconds": classes::seconds(&row.spent),
            "classes": classes::json(&row.spent, self.rates),
            "rewards": row.rewards,
            "samples": samples.collect::<Vec<_>>(),
            "baselines": self.baselines.iter().map(|baseline| baseline.json(index, row)).collect::<Vec<_>>(),
        })
    }
}

/// Far more digits than the clock is good for would only be in the way.
pub(super) fn rate(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.2}") } else { format!("{rate:.0}") }
}

/// Lines of CSV below their names, which all rows have in common.
pub(super) fn csv(rows: &[Vec<(String, String)>]) -> String {
    let lines = rows.iter().map(|row| line(row.iter().map(|(_, value)| value.as_str())));
    let names = rows.first().map(|row| line(row.iter().map(|(name, _)| name.as_str())));
    names.into_iter().chain(lines).collect::<Vec<_>>().join("\n")
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
