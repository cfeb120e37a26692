//! Results as JSON: the fields of an output line of the command, which other interfaces share.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::config::Head;
use crate::engine::Input as Sequence;
use crate::engine::Score;
use crate::error::{Error, ErrorKind, Result};
use crate::prompt::Prompt;
use crate::request::{Form, Input, Request};

/// The key of a line's result.
#[derive(Debug)]
pub enum Key {
    /// The line's `id`, as the line spells it.
    Id(Box<RawValue>),
    /// The line's number, from 0.
    Index(usize),
}

impl Key {
    /// Returns the field of the output line that holds it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Id(_) => "id",
            Self::Index(_) => "index",
        }
    }

    /// Returns its value as JSON.
    pub fn text(&self) -> String {
        match self {
            Self::Id(raw) => raw.get().to_owned(),
            Self::Index(index) => index.to_string(),
        }
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Id(raw) => raw.serialize(serializer),
            Self::Index(index) => index.serialize(serializer),
        }
    }
}

/// Returns a result as one JSON object on one line; its first field is `id` or `index`, if it has a
/// key.
pub fn result_line(key: Option<&Key>, fields: Map<String, Value>) -> String {
    struct ResultLine<'a>(Option<&'a Key>, Map<String, Value>);
    impl Serialize for ResultLine<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            let Self(key, fields) = self;
            let mut object = serializer.serialize_map(Some(key.iter().len() + fields.len()))?;
            key.iter().try_for_each(|key| object.serialize_entry(key.name(), key))?;
            fields.iter().try_for_each(|(name, value)| object.serialize_entry(name, value))?;
            object.end()
        }
    }
    serde_json::to_string(&ResultLine(key, fields)).expect("keys are strings")
}

/// Returns a reward with the fewest digits that identify this f32; converted to f64, JSON's own
/// type, it would have 17.
pub fn number(reward: f32) -> Value {
    json!(reward.to_string().parse::<f64>().expect("a printed f32 is a number"))
}

/// Returns the fields of one reward.
fn score_fields(score: &Score) -> Map<String, Value> {
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

/// Returns the fields of a pair's rewards: each side's own, and their difference. A side without a
/// reward is `null`, and has an entry in `errors`.
fn pair_fields(chosen: &Result<Score>, rejected: &Result<Score>) -> Map<String, Value> {
    let sides = [("chosen", chosen), ("rejected", rejected)];
    let scores = || [chosen, rejected].into_iter().flatten();
    let mut fields = Map::new();
    let each = |fields: &mut Map<String, Value>, name: &str, field: &dyn Fn(&Score) -> Value| {
        for (side, score) in sides {
            fields.insert(format!("{name}_{side}"), score.as_ref().map_or(Value::Null, field));
        }
    };
    each(&mut fields, "reward", &|score| number(score.reward));
    let margin = match (chosen, rejected) {
        (Ok(chosen), Ok(rejected)) => number(chosen.reward - rejected.reward),
        _ => Value::Null,
    };
    fields.insert("margin".to_owned(), margin);
    each(&mut fields, "reward_bf16", &|score| number(score.reward_bf16));
    if scores().any(|score| score.reward_normalized.is_some()) {
        each(&mut fields, "reward_normalized", &|score| score.reward_normalized.map_or(Value::Null, number));
    }
    each(&mut fields, "tokens", &|score| json!(score.tokens));
    if scores().any(|score| score.truncated) {
        each(&mut fields, "truncated", &|score| json!(score.truncated));
    }
    let errors: Vec<Value> = sides
        .into_iter()
        .filter_map(|(side, score)| {
            let mut error = error_object(score.as_ref().err()?);
            error.insert("response".to_owned(), json!(side));
            Some(Value::Object(error))
        })
        .collect();
    if !errors.is_empty() {
        fields.insert("errors".to_owned(), Value::Array(errors));
    }
    fields
}

/// Returns the fields of a request's scores, of which there are as many as `form` says.
pub fn fields(form: Form, scores: &[Result<Score>]) -> Map<String, Value> {
    match (form, scores) {
        (Form::One, [Ok(score)]) => score_fields(score),
        (Form::One, [Err(error)]) => error_fields(error),
        (Form::Pair, [chosen, rejected]) => pair_fields(chosen, rejected),
        _ => scores_fields(scores),
    }
}

/// A field of results as a column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The field's name.
    pub name: String,
    /// The type of its values.
    pub values: Values,
    /// Whether each result has a list of values.
    pub is_list: bool,
}

/// The type of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Numbers of f32.
    Reals,
    /// Integers.
    Counts,
    /// Booleans.
    Flags,
}

/// Settings of a run on which it depends whether results have certain fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct FieldOptions {
    /// Whether the model normalizes its rewards.
    pub normalized: bool,
    /// Whether a sequence has several logits.
    pub several_labels: bool,
    /// Whether conversations may be cut.
    pub may_truncate: bool,
}

/// Returns the columns that hold all that [`fields`] may have in a form, besides errors.
pub fn columns(form: Form, options: FieldOptions) -> Vec<Column> {
    let FieldOptions { normalized, several_labels, may_truncate } = options;
    let names: &[(&str, Values, bool)] = &[
        ("reward", Values::Reals, true),
        ("reward_bf16", Values::Reals, true),
        ("reward_normalized", Values::Reals, normalized),
        ("tokens", Values::Counts, true),
        ("truncated", Values::Flags, may_truncate),
    ];
    let column = |name: String, values, is_list| Column { name, values, is_list };
    let present = names.iter().filter(|(.., is_present)| *is_present);
    let mut columns: Vec<Column> = match form {
        Form::One => present.map(|(name, values, _)| column((*name).to_owned(), *values, false)).collect(),
        Form::Responses(_) => present
            .map(|(name, values, _)| column(name.replacen("reward", "rewards", 1), *values, true))
            .collect(),
        Form::Pair => {
            let sides = |(name, values, _): &(&str, Values, bool)| {
                ["chosen", "rejected"].map(|side| column(format!("{name}_{side}"), *values, false))
            };
            present.flat_map(sides).collect()
        }
    };
    match form {
        Form::One if several_labels => columns.push(column("logits".to_owned(), Values::Reals, true)),
        Form::One => {}
        Form::Responses(_) => columns.push(column("best".to_owned(), Values::Counts, false)),
        Form::Pair => columns.insert(2, column("margin".to_owned(), Values::Reals, false)),
    }
    columns
}

/// Returns the fields of a result in the form of others: those of one reward as lists, where others
/// have several responses.
pub fn in_form(form: Form, fields: Map<String, Value>) -> Map<String, Value> {
    if !matches!(form, Form::Responses(_)) || !fields.contains_key("reward") {
        return fields;
    }
    let listed = |(name, value): (String, Value)| (name.replacen("reward", "rewards", 1), json!([value]));
    let mut fields: Map<String, Value> = fields.into_iter().map(listed).collect();
    fields.insert("best".to_owned(), json!(0));
    fields
}

impl From<Input> for Sequence {
    fn from(input: Input) -> Self {
        match input {
            Input::Conversation(conversation) => conversation.into(),
            Input::Tokens(ids) => ids.into(),
        }
    }
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

/// Returns an error as an object: its kind, its message, and place and hint where they are known.
pub fn error_object(error: &Error) -> Map<String, Value> {
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
    /// cut, and the token at which the reward is read; each a list for several responses and for
    /// the two of a pair.
    pub fn fields(&self, request: Request) -> Result<Map<String, Value>> {
        match request {
            Request::One(input) => self.one(input),
            Request::Responses(_) | Request::Pair { .. } => self.each(request.into_inputs()),
        }
    }

    fn one(&self, input: Input) -> Result<Map<String, Value>> {
        let (text, tokens) = match input {
            Input::Tokens(ids) => (None, self.prompt.limit(ids, self.max_tokens)?),
            Input::Conversation(conversation) => {
                let text = self.prompt.render(&conversation)?;
                (Some(text), self.prompt.tokens(&conversation, self.max_tokens)?)
            }
        };
        let scored = self.scored(&tokens.ids, text.as_deref());
        let mut fields = Map::new();
        if let Some(text) = text {
            fields.insert("text".to_owned(), json!(text));
        }
        fields.insert("input_ids".to_owned(), json!(tokens.ids));
        fields.insert("truncated".to_owned(), json!(tokens.truncated));
        fields.insert("scored".to_owned(), scored);
        Ok(fields)
    }

    /// The fields of `one`, each a list with one entry per input.
    fn each(&self, inputs: impl Iterator<Item = Input>) -> Result<Map<String, Value>> {
        let mut columns = Map::new();
        for input in inputs {
            for (name, value) in self.one(input)? {
                if let Value::Array(column) = columns.entry(name).or_insert_with(|| json!([])) {
                    column.push(value);
                }
            }
        }
        Ok(columns)
    }

    /// The token at which the reward is read, the reason, and the token's place in the text.
    fn scored(&self, ids: &[u32], text: Option<&str>) -> Value {
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
        let mut scored = json!({"position": position, "token": ids[position], "reason": reason});
        if let Some(spelling) = self.prompt.token(ids[position]) {
            scored["text"] = json!(spelling);
        }
        if let Some(spans) = text.and_then(|text| self.prompt.spans(text, ids)) {
            scored["span"] = json!(spans[position]);
        }
        scored
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn score(reward: f32) -> Score {
        Score {
            reward,
            reward_bf16: reward,
            reward_normalized: Some(reward),
            logits: vec![reward, 0.0],
            tokens: 3,
            truncated: true,
            scored_token: 2,
            queue_time: Duration::ZERO,
            compute_time: Duration::ZERO,
        }
    }

    fn values_of(value: &Value) -> Option<Values> {
        match value {
            Value::Number(number) if number.is_f64() => Some(Values::Reals),
            Value::Number(_) => Some(Values::Counts),
            Value::Bool(_) => Some(Values::Flags),
            _ => None,
        }
    }

    #[test]
    fn columns_hold_the_fields_of_their_form() {
        let all = FieldOptions { normalized: true, several_labels: true, may_truncate: true };
        for (form, scores) in [(Form::One, 1), (Form::Responses(3), 3), (Form::Pair, 2)] {
            let scores: Vec<Result<Score>> = (0..scores).map(|reward| Ok(score(reward as f32))).collect();
            let mut found: Vec<Column> = fields(form, &scores)
                .iter()
                .map(|(name, value)| Column {
                    name: name.clone(),
                    values: values_of(value.get(0).unwrap_or(value)).unwrap(),
                    is_list: value.is_array(),
                })
                .collect();
            let mut expected = columns(form, all);
            let by_name = |a: &Column, b: &Column| a.name.cmp(&b.name);
            found.sort_by(by_name);
            expected.sort_by(by_name);
            assert_eq!(found, expected);
        }
        let few = columns(Form::One, FieldOptions::default());
        let names: Vec<&str> = few.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["reward", "reward_bf16", "tokens"]);
    }

    #[test]
    fn one_reward_among_several_is_a_list_of_one() {
        let one = || fields(Form::One, &[Ok(score(2.0))]);
        let mut expected = fields(Form::Responses(1), &[Ok(score(2.0))]);
        expected.insert("logits".to_owned(), json!([[2.0, 0.0]]));
        assert_eq!(in_form(Form::Responses(4), one()), expected);
        assert_eq!(in_form(Form::One, one()), one());
    }
}
