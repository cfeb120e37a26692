//! `kudos score`: a file or stream of JSON lines, or responses given on the command line.
//!
//! [`pipeline`] reads, renders, tokenizes and submits; this thread waits for results in order and
//! writes them. The memory of all lines in the pipeline is bounded, and results are written while
//! the input is read.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use serde_json::{Map, Value};

use crate::args::ScoreArgs;
use crate::files::InputFile;
use crate::input::{Input, Line};
use crate::manifest::{Earlier, Lines, Manifest};
use crate::output::{Output, is_terminal, table};
use crate::pipeline::{self, InFlight, PipelineItem, Submitted};
use crate::progress::{self, Progress, Results};
use crate::resume::EarlierRun;
use crate::{Outcome, model_dir, process, running_on, say};
use kudos::internals::request::Form;
use kudos::internals::results::{fields, result_line};
use kudos::{Cluster, Engine, Error, Loading, Pending, Result, Score};

/// Interval at which a command that waits for lines checks whether the engine has failed.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn run(args: &ScoreArgs) -> anyhow::Result<Outcome> {
    let dir = model_dir::find(&args.model.model)?;
    let process = process::rank(&args.engine.process)?;
    process.as_ref().map_or(Ok(()), |process| check_input(args, process))?;
    if let Some(process) = process.clone().filter(|process| process.rank > 0) {
        process::follow(args.engine.builder(&args.model.prompt, &dir, Some(process.clone()))?, &process)?;
        return Ok(Outcome::Complete);
    }
    // Before the model, which takes longer: errors of the input and the output show at once.
    let mut source =
        if args.input.is_empty() { None } else { Some(args.rows.open(&args.input, args.shard)?) };
    let mut inputs = model_dir::files(&dir);
    inputs.extend(source.iter().flat_map(Input::files));
    inputs.extend(args.engine.process.rendezvous_secret_file.as_deref().and_then(InputFile::at));
    let whole = Whole::new(args, &dir, source.as_ref())?;
    if let Some(whole) = &whole
        && args.resume
        && let Earlier::Whole { failed } = whole.manifest.earlier(whole.path)?
    {
        say(&format!("`{}` is whole: there is nothing to score", whole.path.display()));
        return Ok(if failed == 0 { Outcome::Complete } else { Outcome::SomeFailed });
    }
    let mut output = match &whole {
        Some(whole) => Output::open_whole(whole.path, &inputs)?,
        None => Output::open(args.output.as_deref(), &inputs)?,
    };
    let mut earlier = match &mut source {
        Some(source) if args.resume => EarlierRun::find(source, &mut output)?,
        _ => EarlierRun::default(),
    };
    let loading = Loading::default();
    let builder = args.engine.builder(&args.model.prompt, &dir, process)?.loading(loading.clone());
    let engine = Arc::new(progress::while_loading(&loading, || builder.open())?);
    say(&running_on(engine.device()));
    let mut warnings = Warnings { engine: &engine, printed: 0 };
    warnings.print(say);
    if earlier.lines > 0 {
        earlier.confirm(&output, |line| score_line(&engine, line))?;
        say(&format!("continuing after {} results in {}", earlier.lines, output.name()));
    }
    whole.as_ref().map_or(Ok(()), |whole| whole.manifest.begin(whole.path))?;
    output.begin()?;
    let began = Instant::now();
    let mut lines = Lines { total: earlier.lines, failed: earlier.failed, earlier: earlier.lines };
    let outcome = match (&args.prompt, source) {
        (Some(prompt), _) => inline(args, prompt, &engine, &mut output),
        (None, Some(source)) => {
            stream(source, earlier.input_bytes, &mut lines, &engine, &mut output, &mut warnings)
        }
        (None, None) => unreachable!("the command line asks for a prompt or an input"),
    };
    warnings.print(say);
    let outcome = outcome.and_then(|outcome| output.end().map(|()| outcome));
    let outcome = outcome.and_then(|outcome| {
        if let Some(Whole { path, manifest }) = whole {
            // The output last: where it is, all is.
            manifest.end(path, lines, &engine.stats(), began.elapsed())?;
            output.rename()?;
        }
        Ok(outcome)
    });
    // Ends ranks in other processes. The thread that reads may hold the engine for ever.
    engine.abort();
    outcome.map_err(|error| output.with_resume_hint(error))
}

/// An output that appears under its name when it is whole.
struct Whole<'a> {
    path: &'a Path,
    manifest: Manifest,
}

impl<'a> Whole<'a> {
    fn new(args: &'a ScoreArgs, dir: &Path, source: Option<&Input>) -> anyhow::Result<Option<Self>> {
        let (Some(path), Some(source), true) = (args.output.as_deref(), source, args.whole) else {
            return Ok(None);
        };
        Ok(Some(Self { path, manifest: Manifest::new(args, dir, source)? }))
    }
}

/// Refuses a rank 0 without an input, and other ranks with one.
fn check_input(args: &ScoreArgs, process: &Cluster) -> Result<()> {
    let has_input = !args.input.is_empty() || args.prompt.is_some();
    if process.rank == 0 && !has_input {
        let error = process::mistake("rank 0 has no input");
        return Err(error.with_hint("give it an INPUT, `-` for standard input"));
    }
    // A launcher starts all ranks with the same command line. `--rank` is on the command line of
    // one.
    if process.rank > 0 && args.engine.process.rank.is_some() && (has_input || args.output.is_some()) {
        let message = format!("rank {} takes neither INPUT nor `--output`", process.rank);
        return Err(process::mistake(message).with_hint("give them to rank 0 only"));
    }
    Ok(())
}

/// Scores one line and returns its output line.
fn score_line(engine: &Engine, line: Line) -> Result<String> {
    let (key, submitted) = pipeline::submit(engine, line)?;
    let (fields, _) = finish(submitted);
    engine.failure().map_or_else(|| Ok(result_line(Some(&key), fields)), Err)
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
        let form = Form::Responses(scores.len());
        output.line(&Value::Object(fields(form, &scores)).to_string())?;
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
    input: Input,
    earlier_bytes: u64,
    lines: &mut Lines,
    engine: &Arc<Engine>,
    output: &mut Output,
    warnings: &mut Warnings<'_>,
) -> anyhow::Result<Outcome> {
    let (size, notes) = (input.size(), input.notes());
    let items = pipeline::start(engine, input);
    let results =
        if output.is_standard() && is_terminal() { Results::OnTerminal } else { Results::Elsewhere };
    let mut progress = Progress::new(results, size, earlier_bytes, engine.stats());
    loop {
        let InFlight { key, submitted, end, .. } = match items.recv_timeout(POLL_INTERVAL) {
            Ok(PipelineItem::Line(in_flight)) => in_flight,
            Ok(PipelineItem::End) => break,
            Ok(PipelineItem::Failed(error)) => return Err(error),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(anyhow!("kudos has a bug: the thread that reads the input panicked"));
            }
            // A rank may fail while the command waits for the next line.
            Err(RecvTimeoutError::Timeout) => match engine.failure() {
                Some(error) => return Err(error.into()),
                None => continue,
            },
        };
        let (fields, failure) = finish(submitted);
        if let Some(error) = failure {
            // A failure of the engine is no error of the line: another run can score it.
            if engine.failure().is_some() {
                return Err(error.into());
            }
            lines.failed += 1;
        }
        lines.total += 1;
        output.line(&result_line(Some(&key), fields))?;
        progress.reached(end, || engine.stats());
        notes.take().iter().for_each(|note| progress.say(note));
        warnings.print(|text| progress.say(text));
    }
    progress.end(&engine.stats());
    notes.take().iter().for_each(|note| say(note));
    let Lines { total, failed, .. } = *lines;
    if failed == 0 {
        return Ok(Outcome::Complete);
    }
    say(&format!("{failed} of {total} lines have an error instead of a reward"));
    Ok(Outcome::SomeFailed)
}

/// Waits for a line's results, and returns the fields of its output and its first error.
fn finish(submitted: Submitted) -> (Map<String, Value>, Option<Error>) {
    let Submitted { form, pending } = submitted;
    let scores: Vec<Result<Score>> =
        pending.into_iter().map(|pending| pending.and_then(Pending::wait)).collect();
    let failure = scores.iter().find_map(|score| score.as_ref().err().cloned());
    (fields(form, &scores), failure)
}
