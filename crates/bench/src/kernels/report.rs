//! The report of `bench kernels`: each kernel against the yardsticks of the same run.

use serde_json::{Value, json};

use crate::args::KernelsArgs;
use crate::metadata;
use crate::report::{elements, number, origin, percent, plain, table};
use crate::summary::Summary;

/// A kernel and its samples.
pub(super) struct KernelResult {
    pub(super) kernel: String,
    pub(super) sizes: String,
    pub(super) bytes: usize,
    pub(super) flop: f64,
    /// Launches of one sample.
    pub(super) launches: usize,
    /// Seconds of one launch; `None` in a dry run.
    pub(super) seconds: Option<Summary>,
    pub(super) samples: Vec<f64>,
}

/// Everything that a run of `bench kernels` measured.
pub(super) struct Measured<'a> {
    pub(super) args: &'a KernelsArgs,
    pub(super) commit: Option<&'a str>,
    pub(super) device: String,
    pub(super) kernels: Vec<KernelResult>,
}

impl KernelResult {
    pub(super) fn bytes_per_second(&self) -> Option<f64> {
        self.seconds.map(|seconds| self.bytes as f64 / seconds.median)
    }

    /// `None` also for kernels whose bytes alone count.
    pub(super) fn flop_per_second(&self) -> Option<f64> {
        self.seconds.filter(|_| self.flop > 0.0).map(|seconds| self.flop / seconds.median)
    }
}

impl Measured<'_> {
    pub(super) fn report(&self) -> Value {
        let mut report = metadata::of_process(self.commit);
        report["device"] = json!(self.device);
        report["shape"] = json!(self.args.shape.shape().name);
        report["copy_bytes_per_second"] = json!(self.copy_rate());
        report["product_flop_per_second"] = json!(self.matmul_rate());
        report["rows"] = self.kernels.iter().map(|kernel| self.row(kernel)).collect();
        report
    }

    fn copy_rate(&self) -> Option<f64> {
        self.kernels.iter().find(|kernel| kernel.kernel == "copy")?.bytes_per_second()
    }

    /// FLOP a second of the fastest matmul.
    fn matmul_rate(&self) -> Option<f64> {
        let matmuls = self.kernels.iter().filter(|kernel| kernel.kernel.starts_with("product_"));
        matmuls.filter_map(KernelResult::flop_per_second).max_by(f64::total_cmp)
    }

    /// The longer of a kernel's two roofs, and the share of it that the kernel reaches, from 0 to
    /// 1.
    fn roof(&self, kernel: &KernelResult) -> Option<(&'static str, f64)> {
        let seconds = kernel.seconds?.median;
        let copy = kernel.bytes as f64 / self.copy_rate()?;
        let matmul = kernel.flop / self.matmul_rate()?;
        let bound = if matmul > copy { "products" } else { "copy" };
        Some((bound, copy.max(matmul) / seconds))
    }

    fn row(&self, kernel: &KernelResult) -> Value {
        let roof = self.roof(kernel);
        json!({
            "kernel": kernel.kernel,
            "sizes": kernel.sizes,
            "bytes": kernel.bytes,
            "flop": kernel.flop,
            "launches": kernel.launches,
            "seconds_median": kernel.seconds.map(|seconds| seconds.median),
            "seconds_sd": kernel.seconds.map(|seconds| seconds.sd),
            "bytes_per_second": kernel.bytes_per_second(),
            "flop_per_second": kernel.flop_per_second(),
            "bound": roof.map(|(bound, _)| bound),
            "share": roof.map(|(_, share)| share),
            "samples": kernel.samples,
        })
    }
}

/// The report as Markdown.
pub(super) fn markdown(report: &Value) -> String {
    let ms = |seconds: f64| format!("{:.4}", 1e3 * seconds);
    let rows = elements(&report["rows"]).map(|row| {
        [
            plain(&row["kernel"]),
            plain(&row["sizes"]),
            plain(&row["bytes"]),
            number(&row["flop"], |flop| format!("{:.3}", flop / 1e9)),
            number(&row["seconds_median"], ms),
            number(&row["seconds_sd"], ms),
            number(&row["bytes_per_second"], |rate| format!("{:.0}", rate / 1e9)),
            number(&row["flop_per_second"], |rate| format!("{:.1}", rate / 1e12)),
            row["bound"].as_str().unwrap_or("-").to_owned(),
            number(&row["share"], percent),
        ]
    });
    let table = table(
        "| kernel | sizes | bytes | GFLOP | ms | sd | GB/s | TFLOP/s | bound | of it |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---|---:|",
        rows,
    );
    format!("{table}\n\n{}", origin(report))
}
