//! `kudos render`: the text and the token ids that would be scored, and the token at which the
//! reward is read.

use crate::args::RenderArgs;
use crate::files::InputFile;
use crate::output::Output;
use crate::{Outcome, model_dir, say};
use kudos::Prompt;
use kudos::internals::config::ModelConfig;
use kudos::internals::results::{Renderer, error_fields, result_line};

pub(super) fn run(args: &RenderArgs) -> anyhow::Result<Outcome> {
    let dir = model_dir::find(&args.model.model)?;
    let config = ModelConfig::read(&dir)?;
    let max_tokens = args.model.prompt.max_tokens.unwrap_or(config.max_tokens).min(config.max_tokens);
    let prompt = Prompt::open(&dir, args.model.prompt.options())?;
    for warning in prompt.warnings() {
        say(&format!("warning: {warning}"));
    }
    let renderer = Renderer { prompt: &prompt, max_tokens, head: config.head };
    let lines = args.rows.open(&args.input, None)?;
    let inputs: Vec<InputFile> = model_dir::files(&dir).into_iter().chain(lines.files()).collect();
    let notes = lines.notes();
    let mut output = Output::open(None, &inputs)?;
    let mut outcome = Outcome::Complete;
    for raw in lines {
        let line = raw?.parse();
        let fields = line.request.and_then(|request| renderer.fields(request));
        let fields = fields.unwrap_or_else(|error| {
            outcome = Outcome::SomeFailed;
            error_fields(&error)
        });
        output.line(&result_line(Some(&line.key), fields))?;
        notes.take().iter().for_each(|note| say(note));
    }
    notes.take().iter().for_each(|note| say(note));
    Ok(outcome)
}
