//! The `kudos` command: what was typed, and which mode answers it. stdout carries data only.
//!
//! Exit statuses: 0 all was scored, or whoever read the results had enough of them and closed the pipe; 1 some lines could
//! not be scored; 2 the command line, the model, the device, reading or writing is at fault. Signals keep their default
//! dispositions, and with them the conventional statuses (130 for an interrupt, 143 for a termination): each line is
//! handed to the system in one piece as soon as it is known, so there is nothing to save at the end.

pub(crate) mod args;
pub mod files;
pub(crate) mod gpus;
mod input;
mod manual;
pub(crate) mod model_dir;
pub(crate) mod output;
mod pipeline;
#[cfg(feature = "cuda")]
mod plan;
mod process;
pub(crate) mod progress;
mod render;
mod resume;
mod score;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Map, Value};

use args::{Args, Command};

use crate::conversation::Conversation;
use crate::error::Result;
use crate::request::{Input, Request};

/// How a command ended that was able to do its work.
enum Outcome {
    /// Every line has its result.
    Complete,
    /// Some lines have an error instead.
    SomeFailed,
}

/// The conversations that line `index` of an input, from 0, asks for.
pub(crate) fn conversations_of_line(text: &[u8], index: usize) -> Result<Vec<Conversation>> {
    Ok(match input::parse(text, index).request? {
        Request::One(Input::Conversation(conversation)) => vec![conversation],
        Request::One(Input::Tokens(_)) => vec![],
        Request::Responses(responses) => responses.into_conversations().collect(),
    })
}

/// The result of line `index`, as `kudos render` writes it but for token ids, with `render` for the prompt; for fuzzing.
pub(crate) fn rendered_line(
    text: &[u8],
    index: usize,
    render: impl Fn(&Conversation) -> Result<String>,
) -> String {
    let line = input::parse(text, index);
    let text = line.request.and_then(|request| match request {
        Request::One(Input::Conversation(conversation)) => render(&conversation),
        Request::One(Input::Tokens(ids)) => Ok(format!("{ids:?}")),
        Request::Responses(responses) => {
            responses.into_conversations().map(|conversation| render(&conversation)).collect()
        }
    });
    let fields = match text {
        Ok(text) => Map::from_iter([("text".to_owned(), Value::from(text))]),
        Err(error) => output::error_fields(&error),
    };
    output::row(&line.key, fields)
}

/// A line on standard error. Unlike `eprintln!` it lets the work go on when nobody reads it there any more.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Score(args) => score::run(&args),
        Command::Render(args) => render::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
        #[cfg(feature = "cuda")]
        Command::Plan(args) => plan::run(&args),
    };
    match result {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::SomeFailed) => ExitCode::from(1),
        // Whoever read our output has had enough, as `head` does.
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}
