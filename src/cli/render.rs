//! `kudos render`: the text and the token ids that would be scored.

use serde_json::{Map, Value, json};

use crate::cli::args::RenderArgs;
use crate::cli::input::{Input, Lines, Request, Responses};
use crate::cli::output::{Output, error_fields, row};
use crate::cli::{Outcome, model_dir, say};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::prompt::Prompt;

pub(super) fn run(args: &RenderArgs) -> anyhow::Result<Outcome> {
    let dir = model_dir::find(&args.model.model)?;
    let limit = ModelConfig::read(&dir)?.max_tokens;
    let max_tokens = args.model.max_tokens.unwrap_or(limit).min(limit);
    let prompt = Prompt::open(&dir, args.model.prompt_options())?;
    for warning in prompt.warnings() {
        say(&format!("warning: {warning}"));
    }
    let mut output = Output::open(None)?;
    let mut outcome = Outcome::Complete;
    for raw in Lines::open(&args.input)? {
        let line = raw?.parse();
        let fields = line.request.and_then(|request| match request {
            Request::One(input) => one(&prompt, max_tokens, input),
            Request::Responses(all) => responses(&prompt, max_tokens, all),
        });
        let fields = fields.unwrap_or_else(|error| {
            outcome = Outcome::SomeFailed;
            error_fields(&error)
        });
        output.line(&row(line.key, fields))?;
    }
    Ok(outcome)
}

fn one(prompt: &Prompt, max_tokens: usize, input: Input) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    let tokens = match input {
        Input::Tokens(ids) => prompt.limit(ids, max_tokens)?,
        Input::Conversation(conversation) => {
            fields.insert("text".to_owned(), json!(prompt.render(&conversation)?));
            prompt.tokens(&conversation, max_tokens)?
        }
    };
    fields.insert("input_ids".to_owned(), json!(tokens.ids));
    fields.insert("truncated".to_owned(), json!(tokens.truncated));
    Ok(fields)
}

/// The same fields, each a list with one entry per response.
fn responses(prompt: &Prompt, max_tokens: usize, responses: Responses) -> Result<Map<String, Value>> {
    let mut columns = Map::new();
    for conversation in responses.into_conversations() {
        for (name, value) in one(prompt, max_tokens, Input::Conversation(conversation?))? {
            if let Value::Array(column) = columns.entry(name).or_insert_with(|| json!([])) {
                column.push(value);
            }
        }
    }
    Ok(columns)
}
