//! `kudos render`: the text and the token ids that would be scored, and the token at which the
//! reward is read.

use serde_json::{Map, Value, json};

use crate::args::RenderArgs;
use crate::files::InputFile;
use crate::input::Lines;
use crate::output::{Output, error_fields, result_line};
use crate::{Outcome, model_dir, say};
use kudos::internals::config::{Head, ModelConfig};
use kudos::internals::request::{Input, Request, Responses};
use kudos::{Prompt, Result};

pub(super) fn run(args: &RenderArgs) -> anyhow::Result<Outcome> {
    let dir = model_dir::find(&args.model.model)?;
    let config = ModelConfig::read(&dir)?;
    let max_tokens = args.model.max_tokens.unwrap_or(config.max_tokens).min(config.max_tokens);
    let prompt = Prompt::open(&dir, args.model.prompt_options())?;
    for warning in prompt.warnings() {
        say(&format!("warning: {warning}"));
    }
    let renderer = Renderer { prompt, max_tokens, head: config.head };
    let lines = Lines::open(&args.input)?;
    let inputs: Vec<InputFile> = model_dir::files(&dir).into_iter().chain(lines.file()).collect();
    let mut output = Output::open(None, &inputs)?;
    let mut outcome = Outcome::Complete;
    for raw in lines {
        let line = raw?.parse();
        let fields = line.request.and_then(|request| match request {
            Request::One(input) => renderer.one(input),
            Request::Responses(all) => renderer.responses(all),
        });
        let fields = fields.unwrap_or_else(|error| {
            outcome = Outcome::SomeFailed;
            error_fields(&error)
        });
        output.line(&result_line(&line.key, fields))?;
    }
    Ok(outcome)
}

/// Renders requests into text and token ids.
struct Renderer {
    prompt: Prompt,
    max_tokens: usize,
    head: Head,
}

impl Renderer {
    fn one(&self, input: Input) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        let tokens = match input {
            Input::Tokens(ids) => self.prompt.limit(ids, self.max_tokens)?,
            Input::Conversation(conversation) => {
                fields.insert("text".to_owned(), json!(self.prompt.render(&conversation)?));
                self.prompt.tokens(&conversation, self.max_tokens)?
            }
        };
        fields.insert("input_ids".to_owned(), json!(tokens.ids));
        fields.insert("truncated".to_owned(), json!(tokens.truncated));
        fields.insert("scored".to_owned(), self.scored(&tokens.ids));
        Ok(fields)
    }

    /// The fields of `one`, each a list with one entry per response.
    fn responses(&self, responses: Responses) -> Result<Map<String, Value>> {
        let mut columns = Map::new();
        for conversation in responses.into_conversations() {
            for (name, value) in self.one(Input::Conversation(conversation))? {
                if let Value::Array(column) = columns.entry(name).or_insert_with(|| json!([])) {
                    column.push(value);
                }
            }
        }
        Ok(columns)
    }

    /// The token at which the reward is read, and the reason.
    fn scored(&self, ids: &[u32]) -> Value {
        let position = self.head.scored_token(ids);
        let reason = match self.head {
            Head::Score { pad_token_id: Some(pad), .. } if ids[position] == pad => {
                format!("first token: all are the pad token {pad}")
            }
            Head::Score { pad_token_id: Some(pad), .. } => {
                format!("rightmost token that is not the pad token {pad}")
            }
            Head::ScoreMlp { pad_token_id: Some(pad), .. } if position + 1 < ids.len() => {
                format!("token before the first pad token {pad}")
            }
            Head::Score { .. } | Head::ScoreMlp { .. } | Head::LogitZero { .. } => "last token".to_owned(),
        };
        json!({"position": position, "token": ids[position], "reason": reason})
    }
}
