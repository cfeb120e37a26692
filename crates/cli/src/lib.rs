//! The `kudos` command: the command line and its subcommands. stdout carries data only.
//!
//! Exit statuses: 0 all was scored, or the reader of the results closed the pipe; 1 some lines
//! could not be scored; 2 the command line, the model, the device, reading or writing is at fault.
//! Signals keep their default dispositions, and with them the conventional statuses (130 for an
//! interrupt, 143 for a termination): each result is written in one piece as soon as it is known,
//! so there is nothing to save at the end.

pub mod args;
mod engine;
mod eval;
pub mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod gpus;
mod input;
mod manual;
mod messages;
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
mod select;
#[cfg(feature = "serve")]
mod serve;
pub mod shapes;
mod whole;
mod window;
pub mod work;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
pub(crate) use messages::Outcome;
pub use messages::{report, running_on, say};

use kudos::internals::request::{Input, Reading};
use kudos::{Conversation, Result};

/// The conversations of line `index` of an input, from 0.
pub fn conversations_of_line(text: &[u8], index: usize) -> Result<Vec<Conversation>> {
    conversations(input::parse(text, index))
}

/// A row of files, as it was read.
pub struct Row(input::RawLine);

impl Row {
    /// Parses its conversations.
    pub fn conversations(&self) -> Result<Vec<Conversation>> {
        conversations(self.0.parse())
    }
}

/// Reads files, folders and patterns as `kudos score` does.
pub fn rows(paths: &[PathBuf]) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Row>>> {
    Ok(input::Input::open(paths, Reading::default(), None)?.map(|raw| raw.map(Row)))
}

fn conversations(line: input::Line) -> Result<Vec<Conversation>> {
    let conversation = |input| match input {
        Input::Conversation(conversation) => Some(conversation),
        Input::Tokens(_) => None,
    };
    Ok(line.request?.into_inputs().filter_map(conversation).collect())
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os()))
}

/// Runs a command line, of which the first argument is the name of the command, and returns the
/// exit status. Ends the process where the arguments are wrong, and after `--help` and `--version`.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let result = match Args::parse_from(arguments).command {
        Command::Score(args) => score::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(&args),
        #[cfg(not(feature = "serve"))]
        Command::Serve(_) => {
            Err(kudos::Error::new(kudos::ErrorKind::Unsupported, "this build has no server")
                .with_hint("`make build` builds kudos with the feature `serve`, which is on by default")
                .into())
        }
        Command::Eval(args) => eval::run(&args),
        Command::Select(args) => select::run(&args),
        Command::Render(args) => render::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
        #[cfg(feature = "cuda")]
        Command::Plan(args) => plan::run(&args),
    };
    match result {
        Ok(Outcome::Complete) => 0,
        Ok(Outcome::SomeFailed) => 1,
        // The reader of our output has ended, as `head` does.
        Err(error) if output::is_closed_pipe(&error) => 0,
        Err(error) => {
            say(&format!("error: {}", report(&error)));
            2
        }
    }
}
