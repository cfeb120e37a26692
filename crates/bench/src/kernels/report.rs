//! What was measured of kernels, as a table, as CSV, or as JSON: `benches/kernels.md` describes the latter.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::args::{Format, KernelsArgs};
use crate::measure::Summary;
use crate::report::line;

/// Counts changes of the JSON's form that a reader would notice.
const SCHEMA: u32 = 1;

/// A kernel and its samples.
pub(super) struct Row {
    pub(super) kernel: String,
    pub(super) sizes: String,
    pub(super) bytes: usize,
    pub(super) flop: f64,
    /// Of one sample.
    pub(super) launches: usize,
    /// Of one launch; nothing where launches were only tried.
    pub(super) seconds: Option<Summary>,
    pub(super) samples: Vec<f64>,
}

/// All that is known when the last kernel is through.
pub(super) struct Report<'a> {
    pub(super) args: &'a KernelsArgs,
    pub(super) commit: Option<&'a str>,
    pub(super) device: String,
    pub(super) rows: Vec<Row>,
}

impl Row {
    /// Bytes a second.
    pub(super) fn rate(&self) -> Option<f64> {
        self.seconds.map(|seconds| self.bytes as f64 / seconds.median)
    }

    /// Operations a second, where there are any.
    pub(super) fn flops(&self) -> Option<f64> {
        self.seconds.filter(|_| self.flop > 0.0).map(|seconds| self.flop / seconds.median)
    }
}

impl Report<'_> {
    /// The report in the form that was asked for, without a line break at its end.
    pub(super) fn text(&self) -> String {
        match self.args.output {
            Format::Md => self.table(),
            Format::Csv => self.csv(),
            Format::Json => self.json().to_string(),
        }
    }

    /// Bytes a second of the copy.
    fn copy_rate(&self) -> Option<f64> {
        self.rows.iter().find(|row| row.kernel == "copy")?.rate()
    }

    /// Operations a second of the fastest product.
    fn product_rate(&self) -> Option<f64> {
        let products = self.rows.iter().filter(|row| row.kernel.starts_with("product_"));
        products.filter_map(Row::flops).max_by(f64::total_cmp)
    }

    /// What bounds a kernel, and the share that it reaches of it, from 0 to 1.
    fn roof(&self, row: &Row) -> Option<(&'static str, f64)> {
        let seconds = row.seconds?.median;
        let (copy, product) = (row.bytes as f64 / self.copy_rate()?, row.flop / self.product_rate()?);
        let bound = if product > copy { "products" } else { "copy" };
        Some((bound, copy.max(product) / seconds))
    }

    fn table(&self) -> String {
        let mut text = String::from(
            "| kernel | sizes | bytes | GFLOP | ms | sd | GB/s | TFLOP/s | bound | of it |\n\
             |---|---|---:|---:|---:|---:|---:|---:|---|---:|",
        );
        let or_none = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
        for row in &self.rows {
            let roof = self.roof(row);
            let cells = [
                row.kernel.clone(),
                row.sizes.clone(),
                row.bytes.to_string(),
                format!("{:.3}", row.flop / 1e9),
                or_none(row.seconds.map(|seconds| format!("{:.4}", 1e3 * seconds.median))),
                or_none(row.seconds.map(|seconds| format!("{:.4}", 1e3 * seconds.sd))),
                or_none(row.rate().map(|rate| format!("{:.0}", rate / 1e9))),
                or_none(row.flops().map(|flops| format!("{:.1}", flops / 1e12))),
                or_none(roof.map(|(bound, _)| bound.to_owned())),
                or_none(roof.map(|(_, share)| format!("{:.1} %", 100.0 * share))),
            ];
            let _ = write!(text, "\n| {} |", cells.join(" | "));
        }
        let commit = self.commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
        let _ = write!(text, "\n\nkudos {}{commit} on {}", env!("CARGO_PKG_VERSION"), self.device);
        text
    }

    fn csv(&self) -> String {
        let names = "device,kernel,sizes,bytes,flop,seconds_median,seconds_sd,bound,share,samples";
        let number = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
        let rows = self.rows.iter().map(|row| {
            let roof = self.roof(row);
            let samples: Vec<String> = row.samples.iter().map(f64::to_string).collect();
            let cells = [
                self.device.clone(),
                row.kernel.clone(),
                row.sizes.clone(),
                row.bytes.to_string(),
                row.flop.to_string(),
                number(row.seconds.map(|seconds| seconds.median)),
                number(row.seconds.map(|seconds| seconds.sd)),
                roof.map(|(bound, _)| bound.to_owned()).unwrap_or_default(),
                number(roof.map(|(_, share)| share)),
                samples.join(";"),
            ];
            line(cells.iter().map(String::as_str))
        });
        std::iter::once(names.to_owned()).chain(rows).collect::<Vec<_>>().join("\n")
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let roof = self.roof(row);
            json!({
                "kernel": row.kernel,
                "sizes": row.sizes,
                "bytes": row.bytes,
                "flop": row.flop,
                "launches": row.launches,
                "seconds_median": row.seconds.map(|seconds| seconds.median),
                "seconds_sd": row.seconds.map(|seconds| seconds.sd),
                "bytes_per_second": row.rate(),
                "flop_per_second": row.flops(),
                "bound": roof.map(|(bound, _)| bound),
                "share": roof.map(|(_, share)| share),
                "samples": row.samples,
            })
        });
        json!({
            "schema": SCHEMA,
            "version": env!("CARGO_PKG_VERSION"),
            "commit": self.commit,
            "unix_seconds": crate::facts::unix_seconds(),
            "device": self.device,
            "shape": self.args.shape.shape().name,
            "copy_bytes_per_second": self.copy_rate(),
            "product_flop_per_second": self.product_rate(),
            "rows": rows.collect::<Vec<_>>(),
        })
    }
}
