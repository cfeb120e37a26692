//! Hugging Face transformers on the same machine, model and ids, after the engine is closed:
//! `benches/baseline/hf.py`, run by a python that has it. [`crate::peers`] measures baselines beside
//! the open engine.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::args::{Args, ModelArgs};
use crate::measure::TestResult;
use crate::report::{elements, number, plain, rate, spread, table as table_of};
use crate::shape::VOCAB;
use crate::summary::Summary;
use kudos::{DeviceKind, Engine, Error, ErrorKind, Result};
use kudos_cli::{model_dir, say};

/// Part of the binary, so that a build always compares with its own script.
const SCRIPT: &str = include_str!("../../../benches/baseline/hf.py");

/// The result of the script: all workloads in one arithmetic.
#[derive(Debug, Deserialize)]
struct ScriptResult {
    engine: String,
    device: String,
    dtype: String,
    random_weights: bool,
    peak_memory_bytes: u64,
    rows: Vec<Modes>,
}

/// The runs of one workload in each mode.
#[derive(Clone, Debug, Deserialize)]
struct Modes {
    batched: Runs,
    card: Runs,
}

/// The runs of one workload in one mode.
#[derive(Clone, Debug, Deserialize)]
struct Runs {
    batch: usize,
    seconds: Vec<f64>,
    cpu_seconds: Vec<f64>,
    rewards: Vec<f32>,
}

/// The folder from which the script loads the model.
enum Folder {
    Model(PathBuf),
    /// A shape's: a `config.json` alone, for which the script makes random weights.
    Shape(TempDir),
}

impl Folder {
    fn of(args: &ModelArgs) -> Result<Self> {
        let (Some(shape), None) = (args.shape, &args.model) else {
            return Ok(Self::Model(model_dir::find(args.model.as_deref().unwrap_or_default())?));
        };
        let config = shape.shape().config_json(args.layers.map(|layers| layers.get()), Some(VOCAB))?;
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

/// One mode in one arithmetic, and its runs of every workload.
#[derive(Clone, Debug)]
pub(super) struct Baseline {
    mode: &'static str,
    engine: String,
    device: String,
    dtype: String,
    /// Whether the script made random weights, so that its rewards differ.
    random_weights: bool,
    peak_memory_bytes: u64,
    rows: Vec<Runs>,
}

const HINT: &str =
    "`--compare PYTHON` names a python that has torch and transformers (benches/baseline/requirements.txt)";

/// Measures every test's workload in each arithmetic. The engine is closed: the script needs its
/// memory on the device.
pub(super) fn run(
    python: &Path,
    args: &Args,
    engine: &Engine,
    tests: &[TestResult],
) -> Result<Vec<Baseline>> {
    let folder = Folder::of(&args.model)?;
    let ids: Vec<Vec<Vec<u32>>> = tests.iter().map(|test| test.workload.ids(engine.config())).collect();
    let workloads = json!(ids).to_string();
    let mut baselines = Vec::new();
    for dtype in &args.compare_dtype {
        let dtype = dtype.to_possible_value().expect("every dtype has a name").get_name().to_owned();
        say(&format!("measuring transformers, {dtype}"));
        let result = ask(command(python, args, engine, folder.path(), &dtype), &workloads)
            .map_err(|error| error.at(python.display()))?;
        if result.rows.len() != tests.len() {
            let message = format!("the baseline measured {} of {} tests", result.rows.len(), tests.len());
            return Err(Error::new(ErrorKind::Io, message));
        }
        let ScriptResult { engine, device, dtype, random_weights, peak_memory_bytes, rows } = result;
        let of = |mode, runs: fn(&Modes) -> &Runs| Baseline {
            mode,
            engine: engine.clone(),
            device: device.clone(),
            dtype: dtype.clone(),
            random_weights,
            peak_memory_bytes,
            rows: rows.iter().map(|modes| runs(modes).clone()).collect(),
        };
        baselines.extend([of("batched", |modes| &modes.batched), of("card", |modes| &modes.card)]);
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

/// Runs the script on `workloads`, which it reads to the end before it writes anything.
fn ask(mut command: Command, workloads: &str) -> Result<ScriptResult> {
    let failed = |message: String| Error::new(ErrorKind::Io, message).with_hint(HINT);
    let cannot = |error| failed(format!("cannot run the baseline: {error}"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(cannot)?;
    let mut stdin = child.stdin.take().expect("it was piped");
    // A script that exits early explains itself on standard error; its status shows the failure.
    let _ = stdin.write_all(workloads.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(cannot)?;
    if !output.status.success() {
        return Err(failed(format!("the baseline exited with {}", output.status)));
    }
    let last = output.stdout.split(|&byte| byte == b'\n').rfind(|line| !line.is_empty()).unwrap_or_default();
    serde_json::from_slice(last)
        .map_err(|error| failed(format!("the last line of the baseline's output is not a result: {error}")))
}

impl Baseline {
    /// Nominal tokens a second in all runs of a test.
    fn rate(&self, index: usize, test: &TestResult) -> Summary {
        let tokens = (test.workload.tokens * test.workload.sequences) as f64;
        Summary::new(&self.rows[index].seconds.iter().map(|seconds| tokens / seconds).collect::<Vec<_>>())
    }

    /// The speed of the engine over the baseline's, by the medians.
    fn ratio(&self, index: usize, test: &TestResult) -> f64 {
        test.nominal_rate().median / self.rate(index, test).median
    }

    /// The mean and the largest distance of its rewards from the engine's; `None` where the weights
    /// differ.
    fn apart(&self, index: usize, test: &TestResult) -> Option<(f64, f64)> {
        let apart = self.rows[index].rewards.iter().zip(&test.rewards);
        let apart: Vec<f64> = apart.map(|(theirs, ours)| f64::from(theirs - ours).abs()).collect();
        let known = !self.random_weights && !apart.is_empty();
        known.then(|| (Summary::new(&apart).mean, apart.iter().copied().fold(0.0, f64::max)))
    }

    pub(super) fn json(&self, index: usize, test: &TestResult) -> Value {
        let (runs, apart) = (&self.rows[index], self.apart(index, test));
        let samples = runs.seconds.iter().zip(&runs.cpu_seconds);
        let samples = samples.map(|(seconds, cpu)| json!({"seconds": seconds, "cpu_seconds": cpu}));
        json!({
            "way": self.mode,
            "engine": self.engine,
            "device": self.device,
            "dtype": self.dtype,
            "random_weights": self.random_weights,
            "batch": runs.batch,
            "nominal_tokens_per_second": self.rate(index, test),
            "ratio": self.ratio(index, test),
            "rewards_apart_mean": apart.map(|(mean, _)| mean),
            "rewards_apart_max": apart.map(|(_, max)| max),
            "peak_memory_bytes": self.peak_memory_bytes,
            "samples": samples.collect::<Vec<_>>(),
        })
    }
}

/// All baselines beside the engine, test by test; `None` where there are none.
pub(super) fn table(rows: &Value) -> Option<String> {
    let baselines = || elements(rows).flat_map(|row| elements(&row["baselines"]).map(move |it| (row, it)));
    let (_, first) = baselines().next()?;
    let lines = baselines().map(|(row, baseline)| {
        let (rates, max) = (&baseline["nominal_tokens_per_second"], &baseline["rewards_apart_max"]);
        [
            plain(&row["test"]),
            format!("{}, {}", plain(&baseline["way"]), plain(&baseline["dtype"])),
            plain(&baseline["batch"]),
            spread(rates),
            number(&rates["median"], rate),
            number(&baseline["ratio"], |ratio| format!("{ratio:.2} x")),
            number(&baseline["rewards_apart_mean"], |mean| {
                format!("{mean:.1e} ({})", number(max, |max| format!("{max:.1e}")))
            }),
        ]
    });
    let table = table_of(
        "| test | transformers | batch | nominal tokens/s | median | kudos is | rewards apart, mean (max) |\n\
         |---|---|---:|---:|---:|---:|---:|",
        lines,
    );
    Some(format!("{table}\n\n{} on {}", plain(&first["engine"]), plain(&first["device"])))
}
