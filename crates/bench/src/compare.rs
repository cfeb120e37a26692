//! Hugging Face transformers on the same machine, model and ids: `benches/baseline/hf.py`, run by a python that has it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::args::{Args, ModelArgs};
use crate::measure::{Row, Summary};
use crate::report::rate;
use kudos::{DeviceKind, Engine, Error, ErrorKind, Result};
use kudos_cli::{model_dir, say};

/// In the binary, so that what is compared with is what this was built with.
const SCRIPT: &str = include_str!("../../../benches/baseline/hf.py");

/// What the script says of all workloads.
#[derive(Debug, Deserialize)]
struct Said {
    engine: String,
    device: String,
    dtype: String,
    random_weights: bool,
    peak_memory_bytes: u64,
    rows: Vec<Ways>,
}

/// Of one workload, each way.
#[derive(Clone, Debug, Deserialize)]
struct Ways {
    batched: Runs,
    card: Runs,
}

/// The runs of one workload.
#[derive(Clone, Debug, Deserialize)]
struct Runs {
    batch: usize,
    seconds: Vec<f64>,
    cpu_seconds: Vec<f64>,
    rewards: Vec<f32>,
}

/// Where the script finds the model.
enum Folder {
    Model(PathBuf),
    /// Of a shape: a `config.json` alone, for which it makes weights of its own.
    Shape(TempDir),
}

impl Folder {
    fn of(args: &ModelArgs) -> Result<Self> {
        let (Some(shape), None) = (args.shape, &args.model) else {
            return Ok(Self::Model(model_dir::find(args.model.as_deref().unwrap_or_default())?));
        };
        let config = shape.shape().config_json(args.layers.map(|layers| layers.get()))?;
        let cannot =
            |error| Error::new(ErrorKind::Io, format!("cannot write a config for the baseline: {error}"));
        let folder = TempDir::new().map_err(cannot)?;
        fs::write(folder.path().join("config.json"), config).map_err(cannot)?;
        Ok(Self::Shape(folder))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Model(folder) => folder,
            Self::Shape(folder) => folder.path(),
        }
    }
}

/// One way of scoring, and its runs of every workload.
#[derive(Debug)]
pub(super) struct Baseline {
    way: &'static str,
    engine: String,
    device: String,
    dtype: String,
    /// Whether it made weights of its own, so that its rewards are others.
    random_weights: bool,
    peak_memory_bytes: u64,
    rows: Vec<Runs>,
}

const HINT: &str =
    "`--compare` names a python that has torch and transformers (benches/baseline/requirements.txt)";

/// That the program can be started at all, which is known before anything is measured.
pub(super) fn check(python: &Path) -> Result<()> {
    let mut command = Command::new(python);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = command.status();
    started.map(drop).map_err(|error| {
        let message = format!("cannot run the baseline: {error}");
        Error::new(ErrorKind::Io, message).at(python.display()).with_hint(HINT)
    })
}

/// Measures every row's workload, once for each arithmetic. The engine is closed: its place on the device is needed.
pub(super) fn run(python: &Path, args: &Args, engine: &Engine, rows: &[Row]) -> Result<Vec<Baseline>> {
    let folder = Folder::of(&args.model)?;
    let ids: Vec<Vec<Vec<u32>>> = rows.iter().map(|row| row.workload.ids(engine.config())).collect();
    let workloads = json!(ids).to_string();
    let mut baselines = Vec::new();
    for dtype in &args.compare_dtype {
        let dtype = dtype.to_possible_value().expect("no arithmetic is hidden").get_name().to_owned();
        say(&format!("measuring transformers, {dtype}"));
        let said = ask(command(python, args, engine, folder.path(), &dtype), &workloads)
            .map_err(|error| error.at(python.display()))?;
        if said.rows.len() != rows.len() {
            let message = format!("the baseline measured {} of {} tests", said.rows.len(), rows.len());
            return Err(Error::new(ErrorKind::Io, message));
        }
        let Said { engine, device, dtype, random_weights, peak_memory_bytes, rows } = said;
        let of = |way, runs: fn(&Ways) -> &Runs| Baseline {
            way,
            engine: engine.clone(),
            device: device.clone(),
            dtype: dtype.clone(),
            random_weights,
            peak_memory_bytes,
            rows: rows.iter().map(|ways| runs(ways).clone()).collect(),
        };
        baselines.extend([of("batched", |ways| &ways.batched), of("card", |ways| &ways.card)]);
    }
    Ok(baselines)
}

/// The script, on the engine's kind of device, as often as the engine ran.
fn command(python: &Path, args: &Args, engine: &Engine, dir: &Path, dtype: &str) -> Command {
    let device = match (engine.device().kind == DeviceKind::Cpu, engine.plan().ranks) {
        (true, _) => "cpu",
        (false, 1) => "cuda",
        (false, _) => "auto",
    };
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]).arg(dir).args(["-", "--dtype", dtype, "--device", device]);
    command.args(["--repeats", &args.repeats.to_string()]);
    if let Some(seconds) = args.seconds {
        command.args(["--seconds", &seconds.as_secs_f64().to_string()]);
    }
    if let Some(threads) = args.model.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    command
}

/// Runs the script on `workloads`, which it reads to the end before it says anything.
fn ask(mut command: Command, workloads: &str) -> Result<Said> {
    let failed = |what: String| Error::new(ErrorKind::Io, what).with_hint(HINT);
    let cannot = |error| failed(format!("cannot run the baseline: {error}"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(cannot)?;
    let mut stdin = child.stdin.take().expect("it was piped");
    // A script that ended early says why on standard error, and its status tells that it did.
    let _ = stdin.write_all(workloads.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(cannot)?;
    if !output.status.success() {
        return Err(failed(format!("the baseline ended with {}", output.status)));
    }
    let last = output.stdout.split(|&byte| byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    serde_json::from_slice(last)
        .map_err(|error| failed(format!("the baseline said what is no result: {error}")))
}

impl Baseline {
    /// Tokens of sequences that were scored a second, in all runs of a row's workload.
    fn rate(&self, index: usize, row: &Row) -> Summary {
        let tokens = (row.workload.tokens * row.workload.sequences) as f64;
        Summary::new(&self.rows[index].seconds.iter().map(|seconds| tokens / seconds).collect::<Vec<_>>())
    }

    /// How many times as fast the engine is, by the medians.
    fn ratio(&self, index: usize, row: &Row) -> f64 {
        row.nominal_rate().median / self.rate(index, row).median
    }

    /// How far its rewards are from the engine's: the mean, and the most. Nothing where the weights are others.
    fn apart(&self, index: usize, row: &Row) -> Option<(f64, f64)> {
        let apart = self.rows[index].rewards.iter().zip(&row.rewards);
        let apart: Vec<f64> = apart.map(|(theirs, ours)| f64::from(theirs - ours).abs()).collect();
        let known = !self.random_weights && !apart.is_empty();
        known.then(|| (Summary::new(&apart).mean, apart.iter().copied().fold(0.0, f64::max)))
    }

    pub(super) fn json(&self, index: usize, row: &Row) -> Value {
        let (runs, apart) = (&self.rows[index], self.apart(index, row));
        let samples = runs.seconds.iter().zip(&runs.cpu_seconds);
        let samples = samples.map(|(seconds, cpu)| json!({"seconds": seconds, "cpu_seconds": cpu}));
        json!({
            "way": self.way,
            "engine": self.engine,
            "device": self.device,
            "dtype": self.dtype,
            "random_weights": self.random_weights,
            "batch": runs.batch,
            "nominal_tokens_per_second": self.rate(index, row),
            "ratio": self.ratio(index, row),
            "rewards_apart_mean": apart.map(|(mean, _)| mean),
            "rewards_apart_max": apart.map(|(_, max)| max),
            "peak_memory_bytes": self.peak_memory_bytes,
            "samples": samples.collect::<Vec<_>>(),
        })
    }

    pub(super) fn csv(&self, index: usize, row: &Row) -> [(String, String); 3] {
        let name = |what: &str| format!("transformers_{}_{}_{what}", self.way, self.dtype);
        let seconds: Vec<String> = self.rows[index].seconds.iter().map(f64::to_string).collect();
        [
            (name("nominal_tokens_per_second_median"), self.rate(index, row).median.to_string()),
            (name("ratio"), self.ratio(index, row).to_string()),
            (name("seconds"), seconds.join(";")),
        ]
    }
}

/// All baselines beside the engine, row by row.
pub(super) fn table(baselines: &[Baseline], rows: &[Row]) -> String {
    let mut lines = vec![
        "| test | transformers | batch | nominal tokens/s | median | kudos is | rewards apart, mean (max) |"
            .to_owned(),
        "|---|---|---:|---:|---:|---:|---:|".to_owned(),
    ];
    for (index, row) in rows.iter().enumerate() {
        for baseline in baselines {
            let Summary { mean, sd, median } = baseline.rate(index, row);
            let apart = baseline.apart(index, row);
            lines.push(format!(
                "| {} | {}, {} | {} | {} ± {} | {} | {:.2} x | {} |",
                row.workload,
                baseline.way,
                baseline.dtype,
                baseline.rows[index].batch,
                rate(mean),
                rate(sd),
                rate(median),
                baseline.ratio(index, row),
                apart.map_or("-".to_owned(), |(mean, max)| format!("{mean:.1e} ({max:.1e})")),
            ));
        }
    }
    let whole = baselines.first().map(|known| format!("{} on {}", known.engine, known.device));
    lines.extend([String::new(), whole.unwrap_or_default()]);
    lines.join("\n")
}
