//! The `bench` command: how many tokens a second the engine scores here.
//!
//! It measures what a program that links the engine sees: one call of [`Engine::score_tokens`] with all sequences of a
//! test, from queue to rewards, tokenization excluded. So it is the same on every device, and knows none of them. What
//! it prints is described in `benches/schema.md`. `serve-like` measures requests that come one by one, `tokenize` what
//! happens before the engine, and `--compare` what else does the same.

mod args;
mod classes;
mod compare;
mod facts;
mod kernels;
mod machine;
mod measure;
mod peak;
mod report;
mod requests;
mod roof;
mod sensors;
mod serve;
mod serve_report;
mod shape;
mod tokenize;
mod warm_up;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use kudos::internals::backend::profile::Profile;
use kudos::{
    Batching, CpuOptions, CudaOptions, Device, Engine, EngineBuilder, Error, ErrorKind, Loading, Result,
};
use kudos_cli::args::DeviceArg;
use kudos_cli::output::{self, Output};
use kudos_cli::running_on;
use kudos_cli::{model_dir, progress, say};

use args::{Args, Command, CommandLine, ModelArgs};
use measure::{Bench, Repeats, Row};
use peak::Peak;
use report::Report;
use roof::Rates;
use sensors::Sensors;
use workload::Workload;

fn main() -> ExitCode {
    // What it was built from, where the build said so.
    let commit = option_env!("KUDOS_COMMIT").filter(|commit| !commit.is_empty());
    let CommandLine { command, engine } = CommandLine::parse();
    let result = match command {
        None => run(&engine, commit),
        Some(Command::Kernels(args)) => kernels::run(&args, commit),
        Some(Command::ServeLike(args)) => serve::run(&args, commit),
        Some(Command::Tokenize(args)) => tokenize::run(&args, commit),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough, as `head` does.
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}", kudos_cli::report(&error)));
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args, commit: Option<&str>) -> anyhow::Result<()> {
    // Before the model, which takes longer.
    args.check()?;
    if let Some(python) = &args.compare {
        compare::check(python)?;
    }
    let mut output = Output::open(None, &[])?;
    let profile = Profile::default();
    let engine = open(&args.model, args.longest(), Some(profile.clone()))?;
    let workloads = workloads(args, &engine)?;
    let repeats = Repeats {
        warm_up: args.warm_up,
        least: args.repeats.get(),
        seconds: args.seconds.unwrap_or(Duration::ZERO).as_secs_f64(),
    };
    let bench = Bench { engine: &engine, profile, sensors: Sensors::of(&engine) };
    let measured = |workload| {
        say(&format!("measuring {workload}"));
        bench.measure(workload, &repeats)
    };
    let rows = workloads.into_iter().map(measured).collect::<Result<Vec<Row>>>()?;
    // What comes next needs its place on the device, which is still as warm as it was.
    engine.close();
    // What fails from here on takes nothing from what the engine did.
    let rates = Rates::measure(&engine, &args.model).unwrap_or_else(|error| {
        say(&format!("warning: no roof, for rates could not be measured: {error:#}"));
        None
    });
    let peak = Peak::of(&engine, args.peak_tflops, rates);
    let compared =
        args.compare.as_ref().map_or(Ok(Vec::new()), |python| compare::run(python, args, &engine, &rows));
    let (baselines, failed) = match compared {
        Ok(baselines) => (baselines, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let report = Report { args, engine: &engine, commit, peak, rates, rows, baselines };
    output.line(&report.text(args.output))?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// The model, on a device whose times mean something, for sequences of up to `longest` tokens.
fn open(args: &ModelArgs, longest: usize, profile: Option<Profile>) -> Result<Engine> {
    let loading = Loading::default();
    let with_options = |builder| options(builder, args, longest).profile(profile).loading(loading.clone());
    let engine = match (&args.model, args.shape) {
        (Some(model), _) => {
            let dir = model_dir::find(model)?;
            let builder = with_options(Engine::builder(dir));
            progress::while_loading(&loading, || builder.open())?
        }
        (None, Some(shape)) => {
            let config = shape.shape().config(args.layers.map(|layers| layers.get()))?;
            let builder = with_options(Engine::builder_random(config, shape::SEED));
            let engine = progress::while_loading(&loading, || builder.open())?;
            shape::refuse_crowded(engine.config(), engine.plan())?;
            engine
        }
        (None, None) => unreachable!("the command line asks for a model or a shape"),
    };
    check(&engine, longest)?;
    say(&running_on(engine.device()));
    engine.warnings().iter().for_each(|warning| say(&format!("warning: {warning}")));
    Ok(engine)
}

/// Sets the options that the command line gives.
fn options(builder: EngineBuilder, args: &ModelArgs, longest: usize) -> EngineBuilder {
    let cpu = CpuOptions { threads: args.threads, ranks: args.ranks, math: args.cpu_math };
    let cuda = CudaOptions { ranks: args.ranks, ..CudaOptions::default() };
    let device = match args.device {
        DeviceArg::Auto => Device::Auto { cpu, cuda },
        DeviceArg::Cpu => cpu.into(),
        DeviceArg::Cuda => cuda.into(),
    };
    let batch_tokens = args.batch_tokens.map(|tokens| tokens.get());
    // Passes are sized for the longest sequence there will be, not for the longest there could be.
    let builder = builder.device(device).max_tokens(longest).residency(args.residency.into());
    builder.batching(Batching { batch_tokens, ..Batching::default() })
}

/// Refuses what has no speed, and what the model cannot take.
fn check(engine: &Engine, longest: usize) -> Result<()> {
    if engine.device().simulated {
        let message = format!("{} has no clock rate: it is no hardware, and has no speed", engine.device());
        return Err(Error::new(ErrorKind::Device, message)
            .with_hint("measure on hardware; `--device cpu` measures this CPU"));
    }
    if engine.plan().max_tokens < longest {
        let limit = engine.plan().max_tokens;
        let message = format!("sequences of {longest} tokens are longer than the model's limit of {limit}");
        return Err(Error::new(ErrorKind::Options, message).with_hint("ask for shorter ones (`--tokens`)"));
    }
    Ok(())
}

/// One test for each length that was asked for.
fn workloads(args: &Args, engine: &Engine) -> Result<Vec<Workload>> {
    let workload = |tokens: usize| {
        let shared_prefix = args.shared_prefix.map_or(0, |tokens| tokens.get());
        let responses = args.responses.map_or(1, |responses| responses.get());
        let group = Workload { tokens, sequences: responses, shared_prefix, responses };
        let fill = || responses * (engine.plan().batch_tokens / group.unique_tokens()).max(1);
        let sequences = args.seqs.map_or_else(fill, |sequences| sequences.get());
        let workload = Workload { sequences, ..group };
        workload.check(engine.config())?;
        Ok(workload)
    };
    args.tokens.iter().map(|tokens| workload(tokens.get())).collect()
}
