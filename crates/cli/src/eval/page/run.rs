//! The run that a page describes: the files and the options that its numbers depend on.

use clap::ValueEnum;
use serde::Serialize;

use crate::args::EvalArgs;
use kudos::{DoubleBos, Truncate};

/// Files and options of a run, as they were typed.
#[derive(Serialize)]
pub(crate) struct Run {
    version: &'static str,
    file: String,
    model: Option<String>,
    /// The results whose scores were taken, in place of a model.
    results: Option<String>,
    /// Options that change numbers.
    options: Vec<String>,
}

impl Run {
    /// Returns the run of a command line.
    pub(crate) fn of(args: &EvalArgs) -> Self {
        let prompt = &args.prompt;
        let variable = |(name, value)| format!("--template-var {name}={value}");
        let options = [
            args.ties.map(|ties| format!("--ties {}", name(&ties))),
            flag(args.single_game, "--single-game"),
            flag(args.skip_zero_spread, "--skip-zero-spread"),
            args.by.as_ref().map(|by| format!("--by {by}")),
            flag(args.bf16, "--bf16"),
            prompt.max_tokens.map(|tokens| format!("--max-tokens {tokens}")),
            (prompt.truncate != Truncate::default())
                .then(|| format!("--truncate {}", name(&prompt.truncate))),
            (prompt.double_bos != DoubleBos::default())
                .then(|| format!("--double-bos {}", name(&prompt.double_bos))),
            flag(prompt.sanitize_control_tokens, "--sanitize-control-tokens"),
        ];
        let variables = prompt.template_var.iter().map(|(name, value)| variable((name, value)));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            file: args.file.display().to_string(),
            model: args.model.clone(),
            results: args.scores.as_ref().map(|path| path.display().to_string()),
            options: options.into_iter().flatten().chain(variables).collect(),
        }
    }
}

fn flag(is_given: bool, option: &str) -> Option<String> {
    is_given.then(|| option.to_owned())
}

/// Returns the name of a value on the command line.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
