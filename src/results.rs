//! Results as JSON: the fields of an output line of the command, which other interfaces share.

use serde_json::{Map, Value, json};

use crate::config::Head;
use crate::engine::Score;
use crate::error::{Error, ErrorKind, Result};
use crate::prompt::Prompt;
use crate::request::{Input, Request, Responses};

/// Returns a reward with the fewest digits that identify this f32; converted to f64, JSON's own
/// type, it would have 17.
fn number(reward: f32) -> Value {
    json!(reward.to_string().parse::<f64>().expect("a printed f32 is a number"))
}

/// Returns the fields of one reward.
pub fn score_fields(score: &Score) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("reward".to_owned(), number(score.reward));
    fields.insert("reward_bf16".to_owned(), number(score.reward_bf16));
    if let Some(reward) = score.reward_normalized {
        fields.insert("reward_normalized".to_owned(), number(reward));
    }
    if score.logits.len() > 1 {
        fields.insert("logits".to_owned(), score.logits.iter().map(|&logit| number(logit)).collect());
    }
    fields.insert("tokens".to_owned(), json!(score.tokens));
    if score.truncated {
        fields.insert("truncated".to_owned(), json!(true));
    }
    fields
}

/// Returns the fields of several responses' rewards. A response without one is `null`, and has an
/// entry in `errors`.
pub fn scores_fields(scores: &[Result<Score>]) -> Map<String, Value> {
    let each = |field: fn(&Score) -> Value| -> Value {
        scores.iter().map(|score| score.as_ref().map_or(Value::Null, field)).collect()
    };
    let mut fields = Map::new();
    fields.insert("rewards".to_owned(), each(|score| number(score.reward)));
    fields.insert("rewards_bf16".to_owned(), each(|score| number(score.reward_bf16)));
    if scores.iter().flatten().any(|score| score.reward_normalized.is_some()) {
        let normalized = each(|score| score.reward_normalized.map_or(Value::Null, number));
        fields.insert("rewards_normalized".to_owned(), normalized);
    }
    fields.insert("tokens".to_owned(), each(|score| json!(score.tokens)));
    fields.insert("best".to_owned(), json!(best(scores)));
    if scores.iter().flatten().any(|score| score.truncated) {
        fields.insert("truncated".to_owned(), each(|score| json!(score.truncated)));
    }
    let errors: Vec<Value> = scores
        .iter()
        .enumerate()
        .filter_map(|(index, score)| {
            let mut error = error_object(score.as_ref().err()?);
            error.insert("response".to_owned(), json!(index));
            Some(Value::Object(error))
        })
        .collect();
    if !errors.is_empty() {
        fields.insert("errors".to_owned(), Value::Array(errors));
    }
    fields
}

/// Returns the index of the highest reward: the first of equal ones, `None` if there is no reward.
pub fn best(scores: &[Result<Score>]) -> Option<usize> {
    let rewards =
        scores.iter().enumerate().filter_map(|(index, score)| Some((index, score.as_ref().ok()?.reward)));
    rewards.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(index, _)| index)
}

/// Returns true for an error of a sequence itself, false for one of the engine, which would fail
/// any other sequence too.
pub fn is_of_sequence(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidInput
            | ErrorKind::TooLong { .. }
            | ErrorKind::Template
            | ErrorKind::Tokenizer
            | ErrorKind::NonFinite
    )
}

/// Returns the fields of a line that cannot be scored.
pub fn error_fields(error: &Error) -> Map<String, Value> {
    Map::from_iter([("error".to_owned(), Value::Object(error_object(error)))])
}

fn error_object(error: &Error) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("kind".to_owned(), json!(error.kind().name()));
    object.insert("message".to_owned(), json!(error.message()));
    for (name, value) in [("place", error.place()), ("hint", error.hint())] {
        if let Some(value) = value {
            object.insert(name.to_owned(), json!(value));
        }
    }
    object
}

/// Renders requests into text and token ids.
#[derive(Clone, Copy, Debug)]
pub struct Renderer<'a> {
    /// Renders and tokenizes.
    pub prompt: &'a Prompt,
    /// Limit on the tokens of a conversation.
    pub max_tokens: usize,
    /// Selects the token that is scored.
    pub head: Head,
}

impl Renderer<'_> {
    /// Returns the fields of a request that is rendered: its text, its token ids, whether it was
    /// cut, and the token at which the reward is read; each a list for several responses.
    pub fn fields(&self, request: Request) -> Result<Map<String, Value>> {
        match request {
            Request::One(input) => self.one(input),
            Request::Responses(all) => self.responses(all),
        }
    }

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
