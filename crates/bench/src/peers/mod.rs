//! Other engines beside this one, on the same CPU, model and ids: `bench --compare NAME=PYTHON`.
//!
//! Each baseline is a process of its own, a script of `benches/baseline`. For every test it is
//! opened at its fastest settings ([`mod@search`]); then it and the engine, which stays open, take turns
//! ([`rounds`]), while idle processes are stopped. [`crate::compare`] measures transformers alone,
//! after the engine is closed, also on GPUs.

mod judge;
mod load;
mod name;
mod report;
mod rounds;
mod search;
mod worker;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::args::{Args, Dtype, ModelArgs};
use crate::measure::{TestResult, score};
use crate::open::open;
use kudos::{CpuMath, DeviceKind, Engine, Error, ErrorKind, Result};
use kudos_cli::{model_dir, say};

pub(super) use name::{Compared, Peer};
pub(super) use report::table;
use rounds::Kudos;
pub(super) use rounds::Rounds;
use search::search;
use worker::Launch;

/// The scripts, part of the binary, so that a build always compares with its own.
const SCRIPTS: [(&str, &str); 6] = [
    ("hf.py", include_str!("../../../../benches/baseline/hf.py")),
    ("worker.py", include_str!("../../../../benches/baseline/worker.py")),
    ("transformers_worker.py", include_str!("../../../../benches/baseline/transformers_worker.py")),
    ("vllm_worker.py", include_str!("../../../../benches/baseline/vllm_worker.py")),
    ("openvino_worker.py", include_str!("../../../../benches/baseline/openvino_worker.py")),
    ("onnxruntime_worker.py", include_str!("../../../../benches/baseline/onnxruntime_worker.py")),
];

/// The baselines that are left of `--compare`.
#[derive(Debug)]
pub(super) struct Baselines {
    /// Pythons of transformers alone.
    pub(super) alone: Vec<PathBuf>,
    pub(super) in_rounds: Vec<(Peer, PathBuf)>,
}

impl Baselines {
    /// Leaves out those that `--without` names, and checks the others before anything is opened or
    /// measured: that every program can be started, and that it can be compared.
    pub(super) fn of(args: &Args) -> Result<Self> {
        for peer in &args.without {
            say(&format!("leaving out the baseline `{peer}` (`--without`)"));
        }
        let (mut alone, mut in_rounds) = (Vec::new(), Vec::new());
        for Compared { peer, python } in &args.compare {
            let name = peer.unwrap_or(Peer::Transformers);
            if args.without.contains(&name) {
                continue;
            }
            check_starts(name, python)?;
            match peer {
                Some(peer) => in_rounds.push((*peer, python.clone())),
                None => alone.push(python.clone()),
            }
        }
        if let (Some((peer, _)), Some(_)) = (in_rounds.first(), args.model.shape) {
            let message = format!("the baseline `{peer}` needs a model's files, and a shape has none");
            return Err(Error::new(ErrorKind::Options, message)
                .with_hint("name the model's folder by `--model` instead of `--shape`"));
        }
        if !in_rounds.is_empty() {
            dtypes(args)?;
        }
        Ok(Self { alone, in_rounds })
    }
}

fn check_starts(peer: Peer, python: &Path) -> Result<()> {
    let mut command = Command::new(python);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = command.status();
    started.map(drop).map_err(|error| {
        let message = format!("cannot run the baseline `{peer}`: {error}");
        Error::new(ErrorKind::Io, message).at(python.display()).with_hint(peer.hint())
    })
}

/// Baselines by name, and what they are measured with.
#[derive(Debug)]
pub(super) struct InRounds<'a> {
    args: &'a Args,
    engine: &'a Engine,
    peers: Vec<(Peer, PathBuf)>,
}

impl<'a> InRounds<'a> {
    /// Refuses an engine that is not on a CPU.
    pub(super) fn new(args: &'a Args, engine: &'a Engine, peers: Vec<(Peer, PathBuf)>) -> Result<Self> {
        if let (Some((peer, _)), DeviceKind::Cuda) = (peers.first(), engine.device().kind) {
            let message =
                format!("the baseline `{peer}` runs on the CPU, and the engine on {}", engine.device());
            let hint = "measure with `--device cpu`; `--compare PYTHON` measures transformers on GPUs";
            return Err(Error::new(ErrorKind::Options, message).with_hint(hint));
        }
        Ok(Self { args, engine, peers })
    }

    /// Measures every test: the results of the tests before the first failure, and that.
    pub(super) fn measure(&self, tests: &[TestResult]) -> (Vec<Rounds>, Option<Error>) {
        let mut measured = Vec::new();
        if self.peers.is_empty() {
            return (measured, None);
        }
        match self.measure_into(tests, &mut measured) {
            Ok(()) => (measured, None),
            Err(error) => (measured, Some(error)),
        }
    }

    fn measure_into(&self, tests: &[TestResult], measured: &mut Vec<Rounds>) -> Result<()> {
        let files = Files::new(&self.args.model)?;
        let dtypes = dtypes(self.args)?;
        let reference = self.reference(tests)?;
        let wait = self.args.compare_wait;
        let settings = search::Options { defaults: self.args.compare_defaults, wait };
        for (test, reference) in tests.iter().zip(reference) {
            let ids = test.workload.ids(self.engine.config());
            let kudos = Kudos { engine: self.engine, ids: &ids, math: self.args.model.cpu_math, test };
            let mut workers = Vec::new();
            for dtype in &dtypes {
                for (peer, python) in &self.peers {
                    say(&format!("opening {peer}, {dtype}, for {}", test.workload));
                    let request = json!({
                        "model": files.model,
                        "exports": files.exports(),
                        "ids": ids,
                        "shared_prefix": test.workload.shared_prefix,
                        "responses": test.workload.responses,
                        "dtype": dtype,
                        "threads": self.threads(),
                    });
                    let launch = Launch::new(*peer, python, files.scripts.path(), &request)?;
                    workers.push(search(&launch, &reference, settings)?);
                }
            }
            say(&format!("measuring {} in rounds", test.workload));
            let rounds = rounds::Options { rounds: self.args.repeats.get(), wait };
            measured.push(rounds::measure(kudos, workers, &reference, rounds)?);
        }
        Ok(())
    }

    fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, |threads| threads.get());
        self.args.model.threads.unwrap_or_else(all)
    }

    /// The engine's rewards in f32 of all tests, by which baselines are judged.
    fn reference(&self, tests: &[TestResult]) -> Result<Vec<Vec<f32>>> {
        if self.args.model.cpu_math != CpuMath::Bf16 {
            return Ok(tests.iter().map(|test| test.rewards.clone()).collect());
        }
        say("scoring in f32, by which baselines are judged");
        let model = ModelArgs { cpu_math: CpuMath::F32, ..self.args.model.clone() };
        let engine = open(&model, self.args.longest(), None)?;
        tests.iter().map(|test| score(&engine, &test.workload.ids(engine.config()))).collect()
    }
}

/// The arithmetic of baselines, by torch's names.
fn dtypes(args: &Args) -> Result<Vec<&'static str>> {
    let of_engine = if args.model.cpu_math == CpuMath::Bf16 { "bfloat16" } else { "float32" };
    let name = |dtype: &Dtype| match dtype {
        Dtype::Auto => Ok(of_engine),
        Dtype::Float32 => Ok("float32"),
        Dtype::Bfloat16 => Ok("bfloat16"),
        Dtype::Float16 => {
            let message = "baselines by name have no float16 on CPUs";
            Err(Error::new(ErrorKind::Options, message).with_hint("ask for float32 or bfloat16"))
        }
    };
    args.compare_dtype.iter().map(name).collect()
}

/// The model, the scripts, and a folder for the forms that baselines convert the model into.
struct Files {
    model: PathBuf,
    scripts: TempDir,
}

impl Files {
    fn new(args: &ModelArgs) -> Result<Self> {
        let cannot =
            |error| Error::new(ErrorKind::Io, format!("cannot write the baselines' scripts: {error}"));
        let model = model_dir::find(args.model.as_deref().unwrap_or_default())?;
        let model = fs::canonicalize(&model)
            .map_err(|error| Error::new(ErrorKind::Io, error.to_string()).at(model.display()))?;
        let scripts = TempDir::new().map_err(cannot)?;
        for (name, script) in SCRIPTS {
            fs::write(scripts.path().join(name), script).map_err(cannot)?;
        }
        Ok(Self { model, scripts })
    }

    fn exports(&self) -> PathBuf {
        self.scripts.path().join("exports")
    }
}
