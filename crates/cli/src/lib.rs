//! The `kudos` command: what was typed, and which mode answers it. stdout carries data only.
//!
//! Exit statuses: 0 all was scored, or whoever read the results had enough of them and closed the pipe; 1 some lines could
//! not be scored; 2 the command line, the model, the device, reading or writing is at fault. Signals keep their default
//! dispositions, and with them the conventional statuses (130 for an interrupt, 143 for a termination): each line is
//! handed to the system in one piece as soon as it is known, so there is nothing to save at the end.

pub mod args;
pub mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod gpus;
mod input;
mod manual;
pub mod model_dir;
pub mod output;
mod pipeline;
#[cfg(feature = "cuda")]
mod plan;
mod process;
pub mod progress;
mod render;
mod resume;
mod score;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
pub use score::running_on;

use kudos::internals::request::{Input, Request};
use kudos::{Conversation, Error, Result};

/// How a command ended that was able to do its work.
enum Outcome {
    /// Every line has its result.
    Complete,
    /// Some lines have an error instead.
    SomeFailed,
}

/// The conversations that line `index` of an input, from 0, asks for.
pub fn conversations_of_line(text: &[u8], index: usize) -> Result<Vec<Conversation>> {
    Ok(match input::parse(text, index).request? {
        Request::One(Input::Conversation(conversation)) => vec![conversation],
        Request::One(Input::Tokens(_)) => vec![],
        Request::Responses(responses) => responses.into_conversations().collect(),
    })
}

/// A line on standard error. Unlike `eprintln!` it lets the work go on when nobody reads it there any more.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Returns an error with its context and causes, and with place and hint where the library knows them.
pub fn report(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<Error>() {
            parts.push(error.report());
            break;
        }
        parts.push(cause.to_string());
    }
    parts.join(": ")
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
            say(&format!("error: {}", report(&error)));
            ExitCode::from(2)
        }
    }
}
