//! The `bench` command: how many tokens a second the engine scores here.
//!
//! It measures what a program that links the engine sees: one call of [`Engine::score`] with
//! all sequences of a test, from queue to rewards, without tokenization; the same code on every
//! device. `benches/schema.md` describes its reports. `serve-like` measures requests that arrive
//! one by one, `tokenize` rendering and tokenization, `rows` the reading of files, `load` that of
//! weights, `kernels` single kernels, and `--compare` other engines.

mod args;
mod classes;
mod compare;
mod engine_report;
mod kernels;
mod load;
mod loading;
mod machine;
mod measure;
mod metadata;
mod open;
mod peak;
mod peers;
mod remote;
mod report;
mod requests;
mod roof;
mod rows;
mod sensors;
mod serve;
mod serve_report;
mod shape;
mod summary;
mod tokenize;
mod warm_up;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use kudos::internals::backend::profile::Profile;
use kudos::{Engine, Result};
use kudos_cli::output::{self, Output};
use kudos_cli::say;

use args::{Args, Command, CommandLine};
use engine_report::Measured;
use measure::{Bench, Repeats, TestResult};
use open::open;
use peak::Peak;
use peers::{Baselines, InRounds};
use roof::Rates;
use sensors::Sensors;
use workload::Workload;

fn main() -> ExitCode {
    // The commit that was built, where the build was given it.
    let commit = option_env!("KUDOS_COMMIT").filter(|commit| !commit.is_empty());
    let CommandLine { command, engine } = CommandLine::parse();
    let result = match command {
        None => run(&engine, commit),
        Some(Command::Kernels(args)) => kernels::run(&args, commit),
        Some(Command::ServeLike(args)) => serve::run(&args, commit),
        Some(Command::Tokenize(args)) => tokenize::run(&args, commit),
        Some(Command::Rows(args)) => rows::run(&args, commit),
        Some(Command::Load(args)) => loading::run(&args, commit),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has closed it, as `head` does.
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}", kudos_cli::report(&error)));
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args, commit: Option<&str>) -> anyhow::Result<()> {
    // First, for loading the model takes longer.
    args.check()?;
    let Baselines { alone, in_rounds } = Baselines::of(args)?;
    let mut output = Output::open(None, &[])?;
    let profile = Profile::default();
    let engine = open(&args.model, args.longest(), Some(profile.clone()))?;
    let in_rounds = InRounds::new(args, &engine, in_rounds)?;
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
    let tests = workloads.into_iter().map(measured).collect::<Result<Vec<TestResult>>>()?;
    // Failures from here on leave the engine's results in the report.
    let (rounds, failed_rounds) = in_rounds.measure(&tests);
    // The yardsticks and transformers alone need the engine's memory on the device, which is still warm.
    engine.close();
    let rates = Rates::measure(&engine, &args.model).unwrap_or_else(|error| {
        say(&format!("warning: the report has no roof: rates could not be measured: {error:#}"));
        None
    });
    let peak = Peak::of(&engine, args.peak_tflops, rates);
    let compared: Result<Vec<_>> =
        alone.iter().map(|python| compare::run(python, args, &engine, &tests)).collect();
    let (baselines, failed) = match compared {
        Ok(baselines) => (baselines.concat(), None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let report = Measured { args, engine: &engine, commit, peak, rates, tests, baselines, rounds }.report();
    output.line(&report::text(&report, args.output, engine_report::markdown))?;
    failed_rounds.or(failed).map_or(Ok(()), |error| Err(error.into()))
}

/// One test per length in `--tokens`.
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
