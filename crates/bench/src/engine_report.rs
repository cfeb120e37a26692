//! The report of `bench` on an engine.

use serde_json::{Value, json};

use crate::args::Args;
use crate::compare::{self, Baseline};
use crate::measure::TestResult;
use crate::peak::Peak;
use crate::peers::{self, Rounds};
use crate::report::{elements, median, number, origin, percent, plain, rate, spread, table};
use crate::roof::{ROOF_FORMULA, Rates};
use crate::{classes, metadata, sensors, warm_up};
use kudos::internals::units::gib;
use kudos::{DeviceKind, Engine};
use kudos_cli::work::FLOP_FORMULA;

/// Everything that a run of `bench` measured.
pub(super) struct Measured<'a> {
    pub(super) args: &'a Args,
    pub(super) engine: &'a Engine,
    pub(super) commit: Option<&'a str>,
    pub(super) peak: Option<Peak>,
    pub(super) rates: Option<Rates>,
    pub(super) tests: Vec<TestResult>,
    /// Transformers alone on the same ids.
    pub(super) baselines: Vec<Baseline>,
    /// Baselines by name, beside the engine: one per test, or fewer where one failed.
    pub(super) rounds: Vec<Rounds>,
}

impl Measured<'_> {
    pub(super) fn report(&self) -> Value {
        let mut report = metadata::of_engine(&self.args.model, self.engine, self.commit);
        report["peak_tflops"] = json!(self.peak.map(|peak| peak.tflops));
        report["peak_source"] = json!(self.peak.map(|peak| peak.source));
        report["flop_formula"] = json!(FLOP_FORMULA);
        report["roof_flop_per_second"] = json!(self.rates.map(|rates| rates.matmul));
        report["roof_attention_flop_per_second"] = json!(self.rates.map(|rates| rates.attention));
        report["roof_score_flop_per_second"] = json!(self.rates.map(|rates| rates.score));
        report["roof_bytes_per_second"] = json!(self.rates.and_then(|rates| rates.bytes));
        report["roof_formula"] = json!(ROOF_FORMULA);
        report["rows"] = self.tests.iter().enumerate().map(|(index, test)| self.row(index, test)).collect();
        for (index, (rounds, test)) in self.rounds.iter().zip(&self.tests).enumerate() {
            report["rows"][index]["rounds"] = rounds.json(&test.workload);
        }
        report
    }

    fn row(&self, index: usize, test: &TestResult) -> Value {
        let workload = &test.workload;
        let flop = workload.flop(self.engine.config());
        let seconds = test.summary(|sample| sample.seconds).median;
        let tflops = self.peak.map(|_| flop / seconds / 1e12);
        let roof = self.rates.map(|rates| rates.seconds_of_all(&test.spent));
        let baselines = self.baselines.iter().map(|baseline| baseline.json(index, test));
        json!({
            "test": workload.to_string(),
            "tokens": workload.tokens,
            "sequences": workload.sequences,
            "shared_prefix": workload.shared_prefix,
            "responses": workload.responses,
            "unique_tokens_per_second": test.unique_rate(),
            "nominal_tokens_per_second": test.nominal_rate(),
            "flop": flop,
            "tflops": tflops,
            "mfu": tflops.zip(self.peak).map(|(tflops, peak)| tflops / peak.tflops),
            "roof_seconds": roof,
            "roof_share": roof.map(|roof| roof / seconds),
            "peak_memory_bytes": test.peak_memory_bytes,
            "warm_up": test.warm_up,
            "gpu": sensors::json(&test.readings),
            "profile_seconds": classes::seconds(&test.spent),
            "between_passes_seconds": self.between_passes(test),
            "classes": classes::json(&test.spent, self.rates),
            "rewards": test.rewards,
            "samples": test.samples,
            "baselines": baselines.collect::<Vec<_>>(),
        })
    }
}

impl Measured<'_> {
    /// Seconds of a run for each of its passes, beyond those of the profiled passes; `None` on a CPU,
    /// for one pass, and over several ranks, whose all-reduces overlap where they are not profiled.
    fn between_passes(&self, test: &TestResult) -> Option<f64> {
        let passes = test.summary(|sample| sample.passes as f64).median;
        let is_gpu = self.engine.device().kind == DeviceKind::Cuda;
        let is_known = is_gpu && passes > 1.0 && self.engine.plan().ranks == 1;
        let seconds = test.summary(|sample| sample.seconds).median;
        is_known.then(|| (seconds - classes::seconds(&test.spent)) / passes)
    }
}

/// The report as Markdown.
pub(super) fn markdown(report: &Value) -> String {
    let rows = || elements(&report["rows"]);
    let tests = rows().map(|row| {
        [
            plain(&report["model"]["name"]),
            plain(&row["test"]),
            rate(median(&row["samples"], "passes")),
            spread(&row["unique_tokens_per_second"]),
            number(&row["unique_tokens_per_second"]["median"], rate),
            spread(&row["nominal_tokens_per_second"]),
            number(&row["tflops"], |tflops| format!("{tflops:.3}")),
            number(&row["mfu"], percent),
            number(&row["roof_share"], percent),
            number(&row["peak_memory_bytes"], |bytes| format!("{:.2} GiB", gib(bytes as usize))),
        ]
    });
    let tests = table(
        "| model | test | passes | unique tokens/s | median | nominal tokens/s | TFLOP/s | MFU | of the roof | peak memory |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        tests,
    );
    let mut notes = vec![origin(report)];
    if let Some(tflops) = report["peak_tflops"].as_f64() {
        let (tflops, source) = ((1000.0 * tflops).round() / 1000.0, plain(&report["peak_source"]));
        notes.push(format!("MFU: of {tflops} TFLOP/s ({source}). FLOP: {}", plain(&report["flop_formula"])));
    }
    notes.extend(rows().map(|row| {
        let (warm_up, sensors) = (warm_up::text(&row["warm_up"]), sensors::text(&row["gpu"]));
        format!("{}: warmed up by {warm_up}{sensors}", plain(&row["test"]))
    }));
    let blocks = [tests, notes.join("\n"), classes::table(&report["rows"])];
    let more = [roof(report), compare::table(&report["rows"]), peers::table(&report["rows"])];
    blocks.into_iter().chain(more.into_iter().flatten()).collect::<Vec<_>>().join("\n\n")
}

/// The formula and the rates of roofs; `None` where no rate is known.
fn roof(report: &Value) -> Option<String> {
    let rate = |name: &str| report[format!("roof_{name}_per_second")].as_f64();
    let (matmul, attention, score) = (rate("flop")?, rate("attention_flop")?, rate("score_flop")?);
    let others = ([attention, score] != [matmul; 2])
        .then(|| format!(" ({:.3} in attention, {:.3} in the head)", attention / 1e12, score / 1e12));
    let copy = rate("bytes").map(|bytes| format!(", copies {:.0} GB/s", bytes / 1e9));
    let [others, copy] = [others, copy].map(Option::unwrap_or_default);
    let formula = plain(&report["roof_formula"]);
    Some(format!("Roof: {formula}. Measured: {:.3} TFLOP/s{others}{copy}", matmul / 1e12))
}
