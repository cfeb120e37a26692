//! `kudos score`: a file or stream of JSON lines, or responses given on the command line.
//!
//! [`pipeline`] reads, renders, tokenizes and submits; this thread waits for results in order and
//! writes them. The memory of all lines in the pipeline is bounded, and results are written while
//! the input is read.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};

use crate::args::ScoreArgs;
use crate::engine::Warnings;
use crate::files::InputFile;
use crate::input::{Input, Line};
use crate::output::{Output, is_terminal, table};
use crate::pipeline::{self, InFlight, InFlightLines, Submitted};
use crate::progress::{Progress, Results};
use crate::resume::EarlierRun;
use crate::whole::{Earlier, Lines, Whole};
use crate::window::{Grouped, InOrder};
use crate::{Outcome, engine, model_dir, process, say};
use kudos::internals::request::Form;
use kudos::internals::results::{fields, result_line};
use kudos::{Cluster, Engine, Error, Result};

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
    let whole = Whole::new(args, &dir, source.as_ref(), &inputs)?;
    if let Some(whole) = &whole
        && args.resume
        && let Earlier::Whole { failed } = whole.earlier()?
    {
        say(&format!("`{}` is whole: there is nothing to score", whole.path().display()));
        return Ok(if failed == 0 { Outcome::Complete } else { Outcome::SomeFailed });
    }
    let mut output = match &whole {
        Some(whole) => whole.open(&inputs)?,
        None => Output::open(args.output.as_deref(), &inputs)?,
    };
    let mut earlier = match &mut source {
        Some(source) if args.resume => EarlierRun::find(source, &mut output)?,
        _ => EarlierRun::default(),
    };
    let engine = engine::open(&args.engine, &args.model.prompt, &dir, process)?;
    let mut warnings = Warnings::new(&engine);
    warnings.print(say);
    if earlier.lines > 0 {
        earlier.confirm(&output, |line| score_line(&engine, line))?;
        say(&format!("continuing after {} results in {}", earlier.lines, output.name()));
    }
    whole.as_ref().map_or(Ok(()), Whole::begin)?;
    output.begin()?;
    let began = Instant::now();
    let mut lines = Lines { total: earlier.lines, failed: earlier.failed, earlier: earlier.lines };
    let outcome = match (&args.prompt, source) {
        (Some(prompt), _) => inline(args, prompt, &engine, &mut output),
        (None, Some(source)) => stream(
            (source, args.window),
            earlier.input_bytes,
            &mut lines,
            &engine,
            &mut output,
            &mut warnings,
        ),
        (None, None) => unreachable!("the command line asks for a prompt or an input"),
    };
    warnings.print(say);
    let outcome = outcome.and_then(|outcome| output.end().map(|()| outcome));
    let outcome = outcome.map_err(|error| output.with_resume_hint(error)).and_then(|outcome| {
        whole.map_or(Ok(()), |whole| whole.end(&engine, lines, began.elapsed()))?;
        Ok(outcome)
    });
    // Ends ranks in other processes. The thread that reads may hold the engine for ever.
    engine.abort();
    outcome
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
    (input, window): (Input, Option<NonZeroUsize>),
    earlier_bytes: u64,
    lines: &mut Lines,
    engine: &Arc<Engine>,
    output: &mut Output,
    warnings: &mut Warnings<'_>,
) -> anyhow::Result<Outcome> {
    let (size, notes) = (input.size(), input.notes());
    let in_flight = match window {
        None => InFlightLines::start(engine, input),
        Some(rows) => InFlightLines::start(engine, Grouped::new(input, rows)),
    };
    let mut finished = InOrder::new(lines.total);
    let results =
        if output.is_standard() && is_terminal() { Results::OnTerminal } else { Results::Elsewhere };
    let mut progress = Progress::new(results, size, earlier_bytes, engine.stats());
    while let Some(InFlight { key, submitted, number, end, .. }) = in_flight.next()? {
        let (fields, error) = finish(submitted);
        // A failure of the engine is no error of the line: another run can score it.
        if let Some(error) = error.as_ref().filter(|_| engine.failure().is_some()) {
            return Err(error.clone().into());
        }
        finished.add(number, (result_line(Some(&key), fields), error.is_some(), end));
        while let Some((line, failed, end)) = finished.take() {
            lines.total += 1;
            lines.failed += usize::from(failed);
            output.line(&line)?;
            progress.reached(end, || engine.stats());
        }
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
    let (form, scores) = (submitted.form, submitted.wait());
    let failure = scores.iter().find_map(|score| score.as_ref().err().cloned());
    (fields(form, &scores), failure)
}
