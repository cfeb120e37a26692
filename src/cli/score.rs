//! `kudos score`: a file or stream of JSON lines, or responses given on the command line.
//!
//! One thread reads, renders and submits; this one waits for results in order and writes them. The engine's queue
//! and the channel between the two are bounded, so a long input neither sits in memory nor waits for its end.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::cli::args::ScoreArgs;
use crate::cli::input::{Input, Line, Request, lines};
use crate::cli::output::{Output, error_fields, is_terminal, row, score_fields, scores_fields, table};
use crate::cli::{Outcome, model_dir, process};
use crate::conversation::Conversation;
use crate::engine::{Engine, Pending, Score};
use crate::error::{Error, Result};

/// Lines that may be on their way between reading and writing.
const LINES_AHEAD: usize = 4096;

/// How often a command that waits for lines looks whether the engine is well.
const LOOK: Duration = Duration::from_millis(500);

pub(super) fn run(args: &ScoreArgs) -> anyhow::Result<Outcome> {
    let dir = model_dir::find(&args.model.model)?;
    let process = process::rank(args)?;
    if let Some(process) = process.clone().filter(|process| process.rank > 0) {
        let began = |device: &str, warnings: &[String]| {
            eprintln!("running on {device}, rank {} of {}", process.rank, process.world_size);
            warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        };
        Engine::serve(dir, args.options(Some(process.clone())), began)?;
        return Ok(Outcome::Complete);
    }
    // Before the model, which takes longer: what cannot be read or written is said at once.
    let source = args.input.as_deref().map(lines).transpose()?;
    let mut output = Output::open(args.output.as_deref())?;
    let engine = Arc::new(Engine::open(dir, args.options(process))?);
    match engine.device_reason() {
        Some(reason) => eprintln!("running on {}: {reason}", engine.device()),
        None => eprintln!("running on {}", engine.device()),
    }
    let mut warnings = Warnings { engine: &engine, printed: 0 };
    warnings.print();
    output.begin()?;
    let outcome = match (&args.prompt, source) {
        (Some(prompt), _) => inline(args, prompt, &engine, &mut output),
        (None, Some(source)) => stream(source, &engine, &mut output, &mut warnings),
        (None, None) => unreachable!("the command line asks for a prompt or an input"),
    };
    warnings.print();
    // Whatever came of it here, ranks elsewhere have no more to do; the thread that reads may hold the engine for ever.
    engine.close();
    outcome
}

/// Prints each of the engine's warnings once.
struct Warnings<'a> {
    engine: &'a Engine,
    printed: usize,
}

impl Warnings<'_> {
    fn print(&mut self) {
        for warning in self.engine.warnings().iter().skip(self.printed) {
            eprintln!("warning: {warning}");
            self.printed += 1;
        }
    }
}

fn inline(args: &ScoreArgs, prompt: &str, engine: &Engine, output: &mut Output) -> anyhow::Result<Outcome> {
    engine.prompt()?;
    let conversations: Vec<Conversation> =
        args.response.iter().map(|response| Conversation::exchange(prompt, response)).collect();
    let scores = engine.score(&conversations);
    if args.json || args.output.is_some() || !is_terminal() {
        output.line(&Value::Object(scores_fields(&scores)).to_string())?;
    } else {
        output.line(&table(&args.response, &scores))?;
    }
    let mut failed = scores.iter().filter_map(|score| score.as_ref().err()).peekable();
    let outcome = if failed.peek().is_some() { Outcome::SomeFailed } else { Outcome::Complete };
    for error in failed {
        eprintln!("error: {error}");
    }
    Ok(outcome)
}

/// A line whose results are being computed.
struct InFlight {
    key: (&'static str, Value),
    work: Work,
}

enum Work {
    One(Result<Pending>),
    Responses(Vec<Result<Pending>>),
}

fn stream(
    lines: impl Iterator<Item = anyhow::Result<Line>> + Send + 'static,
    engine: &Arc<Engine>,
    output: &mut Output,
    warnings: &mut Warnings<'_>,
) -> anyhow::Result<Outcome> {
    let (sender, receiver) = sync_channel(LINES_AHEAD);
    // Not joined: when this function ends early, that thread may wait for a line of standard input that never comes.
    thread::spawn({
        let engine = Arc::clone(engine);
        move || submit_all(&engine, lines, &sender)
    });
    let (mut total, mut failed) = (0, 0);
    loop {
        let InFlight { key, work } = match receiver.recv_timeout(LOOK) {
            Ok(in_flight) => in_flight?,
            Err(RecvTimeoutError::Disconnected) => break,
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
        output.line(&row(key, fields))?;
        warnings.print();
    }
    if failed == 0 {
        return Ok(Outcome::Complete);
    }
    eprintln!("{failed} of {total} lines have an error instead of a reward");
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

/// Reads, renders and submits line after line until the end, or until nobody wants more.
fn submit_all(
    engine: &Engine,
    lines: impl Iterator<Item = anyhow::Result<Line>>,
    sender: &SyncSender<anyhow::Result<InFlight>>,
) {
    for line in lines {
        let in_flight = line.and_then(|Line { key, request }| {
            let work = match request {
                Err(error) => Work::One(Err(error)),
                Ok(Request::One(Input::Tokens(ids))) => Work::One(engine.submit_tokens(ids)),
                Ok(Request::One(Input::Conversation(conversation))) => {
                    engine.prompt()?;
                    Work::One(engine.submit(&conversation))
                }
                Ok(Request::Responses(conversations)) => {
                    engine.prompt()?;
                    Work::Responses(conversations.iter().map(|one| engine.submit(one)).collect())
                }
            };
            Ok(InFlight { key, work })
        });
        let ends = in_flight.is_err();
        if sender.send(in_flight).is_err() || ends {
            return;
        }
    }
}
