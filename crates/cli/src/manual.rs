//! `kudos completions` and `kudos man`: completion scripts and manual pages, made by clap.

use clap::CommandFactory;

use crate::Outcome;
use crate::args::{Args, CompletionsArgs, ManArgs};
use crate::output::Output;
use kudos::{Error, ErrorKind};

/// Prints a completion script.
pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<Outcome> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "kudos", &mut text);
    print(text)
}

/// Prints the manual page of the command, or of one of its subcommands.
pub(super) fn man(args: &ManArgs) -> anyhow::Result<Outcome> {
    let mut command = Args::command();
    command.build();
    if let Some(name) = &args.command {
        let unknown = || {
            let error = Error::new(ErrorKind::Options, format!("there is no command `{name}`"));
            error.with_hint("`kudos --help` lists the commands")
        };
        command = command.find_subcommand(name).ok_or_else(unknown)?.clone();
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    print(text)
}

fn print(text: Vec<u8>) -> anyhow::Result<Outcome> {
    Output::open(None, &[])?.line(String::from_utf8(text)?.trim_end())?;
    Ok(Outcome::Complete)
}
