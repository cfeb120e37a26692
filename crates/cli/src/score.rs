//! `kudos score`: a file or stream of JSON lines, or responses given on the command line.
//!
//! [`pipeline`] reads, renders, tokenizes and submits; this thread waits for results in order and writes them. All that is
//! on its way is bounded, so a long input neither sits in memory nor waits for its end.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::anyhow;
use serde_json::{Map, Value};

use crate::args::ScoreArgs;
use crate::files::InputFile;
use crate::input::{Line, Lines};
use crate::output::{Output, error_fields, is_terminal, row, score_fields, scores_fields, table};
use crate::pipeline::{self, InFlight, Step, Work};
use crate::progress::{self, Progress, Results};
use crate::resume::Earlier;
use crate::{Outcome, model_dir, process, say};
use kudos::{DeviceInfo, Engine, Error, Loading, Pending, Result, Score};

/// Interval at which a command that waits for lines checks whether the engine has failed.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn run(args: &ScoreArgs) -> anyhow::Result<Outcome> {
    let dir = model_dir::find(&args.model.model)?;
    let process = process::rank(args)?;
    if let Some(process) = process.clone().filter(|process| process.rank > 0) {
        let began = |device: &DeviceInfo, warnings: &[String]| {
            say(&format!("running on {device}, rank {} of {}", process.rank, process.world_size));
            warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));
        };
        args.builder(&dir, Some(process.clone()))?.serve(began)?;
        return Ok(Outcome::Complete);
    }
    // Before the model, which takes longer: what cannot be read or written is said at once.
    let mut source = args.input.as_deref().map(Lines::open).transpose()?;
    let mut inputs = model_dir::files(&dir);
    inputs.extend(source.iter().filter_map(Lines::file));
    inputs.extend(args.process.rendezvous_secret_file.as_deref().and_then(InputFile::at));
    let mut output = Output::open(args.output.as_deref(), &inputs)?;
    let mut earlier = match &mut source {
        Some(source) if args.resume => Earlier::find(source, &mut output)?,
        _ => Earlier::default(),
    };
    let loading = Loading::default();
    let builder = args.builder(&dir, process)?.loading(loading.clone());
    let engine = Arc::new(progress::while_loading(&loading, || builder.open())?);
    say(&running_on(engine.device()));
    let mut warnings = Warnings { engine: &engine, printed: 0 };
    warnings.print(say);
    if earlier.lines > 0 {
        earlier.confirm(&output, |line| score_line(&engine, line))?;
        say(&format!("{} results are in {}: going on after them", earlier.lines, output.name()));
    }
    output.begin()?;
    let outcome = match (&args.prompt, source) {
        (Some(prompt), _) => inline(args, prompt, &engine, &mut output),
        (None, Some(source)) => stream(source, &earlier, &engine, &mut output, &mut warnings),
        (None, None) => unreachable!("the command line asks for a prompt or an input"),
    };
    warnings.print(say);
    let outcome = outcome.and_then(|outcome| output.end().map(|()| outcome));
    // Ranks in other processes have no more to do, and the thread that reads may hold the engine for ever.
    engine.abort();
    outcome.map_err(|error| output.going_on(error))
}

/// Returns the line that says where the model runs, and why where the engine chose.
pub fn running_on(device: &DeviceInfo) -> String {
    match &device.reason {
        Some(reason) => format!("running on {device}: {reason}"),
        None => format!("running on {device}"),
    }
}

/// What is written for one line.
fn score_line(engine: &Engine, line: Line) -> Result<String> {
    let (key, work) = pipeline::submit(engine, line)?;
    let (fields, _) = finish(work);
    engine.failure().map_or_else(|| Ok(row(&key, fields)), Err)
}

/// Prints each of the engine's warnings once.
struct Warnings<'a> {
    engine: &'a Engine,
    printed: usize,
}

impl Warnings<'_> {
    fn print(&mut self, say: impl Fn(&str)) {
        for warning in self.engine.warnings().iter().skip(self.printed) {
            say(&format!("warning: {warning}"));
            self.printed += 1;
        }
    }
}

fn inline(args: &ScoreArgs, prompt: &str, engine: &Engine, output: &mut Output) -> anyhow::Result<Outcome> {
    engine.prompt()?;
    let scores = engine.score(args.response.iter().map(|response| (prompt, response)));
    if args.json || args.output.is_some() || !is_terminal() {
        output.line(&Value::Object(scores_fields(&scores)).to_string())?;
    } else {
        output.line(&table(&args.response, &scores))?;
    }
    let mut failed = scores.iter().filter_map(|score| score.as_ref().err()).peekable();
    let outcome = if failed.peek().is_some() { Outcome::SomeFailed } else { Outcome::Complete };
    for error in failed {
        say(&format!("error: {error:#}"));
    }
    Ok(outcome)
}

fn stream(
    lines: Lines,
    earlier: &Earlier,
    engine: &Arc<Engine>,
    output: &mut Output,
    warnings: &mut Warnings<'_>,
) -> anyhow::Result<Outcome> {
    let size = lines.size();
    let steps = pipeline::start(engine, lines);
    let (mut total, mut failed) = (earlier.lines, earlier.failed);
    let results =
        if output.is_standard() && is_terminal() { Results::OnTerminal } else { Results::Elsewhere };
    let mut progress = Progress::new(results, size, earlier.input_bytes, engine.stats());
    loop {
        let InFlight { key, work, end, .. } = match steps.recv_timeout(POLL_INTERVAL) {
            Ok(Step::Line(in_flight)) => in_flight,
            Ok(Step::End) => break,
            Ok(Step::Failed(error)) => return Err(error),
            Err(RecvTimeoutError::Disconnected) => return Err(anyhow!("kudos has a bug: reading panicked")),
            // A rank may fail while the next line is long in coming.
            Err(RecvTimeoutError::Timeout) => match engine.failure() {
                Some(error) => return Err(error.into()),
                None => continue,
            },
        };
        let (fields, failure) = finish(work);
        if let Some(error) = failure {
            // What is wrong with the engine is not the line's fault: another run can score it.
            if engine.failure().is_some() {
                return Err(error.into());
            }
            failed += 1;
        }
        total += 1;
        output.line(&row(&key, fields))?;
        progress.reached(end, || engine.stats());
        warnings.print(|text| progress.say(text));
    }
    progress.end(&engine.stats());
    if failed == 0 {
        return Ok(Outcome::Complete);
    }
    say(&format!("{failed} of {total} lines have an error instead of a reward"));
    Ok(Outcome::SomeFailed)
}

/// Waits for a line's results: the fields of its output, and its first error.
fn finish(work: Work) -> (Map<String, Value>, Option<Error>) {
    match work {
        Work::One(pending) => match pending.and_then(Pending::wait) {
            Ok(score) => (score_fields(&score), None),
            Err(error) => (error_fields(&error), Some(error)),
        },
        Work::Responses(pending) => {
            let scores: Vec<Result<Score>> =
                pending.into_iter().map(|pending| pending.and_then(Pending::wait)).collect();
            let failure = scores.iter().find_map(|score| score.as_ref().err().cloned());
            (scores_fields(&scores), failure)
        }
    }
}
