//! Rows of data sets: which keys an object has decides how it is read.
//!
//! ```json
//! {"chosen": .., "rejected": ..}              two conversations; or what follows `prompt`,
//!                                             `conversations` or `instruction`
//! {"conversations": [{"from": .., "value": ..}]}      ShareGPT's turns
//! {"prompt": .., "completion": ..}                    or "completions"
//! {"context": [..], "response1": .., "response2": ..} HelpSteer3
//! {"instruction": .., "input": .., "output": ..}      Alpaca's, with an optional "history"
//! {"custom_id": .., "body": {"messages": ..}}         a line of OpenAI's batches
//! ```
//!
//! A file has one kind of rows, chosen from its first one: rows of other kinds are errors.

use std::fmt;

use super::form::{Form, Parsed, Request};
use super::json::{Given, text_of};
use super::keys::{Columns, DATASET_KEYS, ELSEWHERE, wrong};
use super::{datasets, own, pairs};
use crate::error::Result;

/// A kind of rows.
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// `messages`, with an optional `response` or `responses`
    Messages,
    /// `prompt` with `response` or `responses`
    Responses,
    /// `input_ids`
    Tokens,
    /// `chosen` and `rejected`: whole conversations, or what follows `prompt`, `conversations` or
    /// `instruction`
    Pairs,
    /// `conversations`, a list of turns with `from` and `value`, as ShareGPT has it
    Conversations,
    /// `prompt` with `completion` or `completions`
    Completions,
    /// `context` with `response1` and `response2`, as HelpSteer3 has it
    Context,
    /// `instruction` with `output`, and optional `input`, `history` and `system`, as Alpaca has it
    Instruction,
    /// `custom_id` and `body`, as OpenAI's batches have it
    Batch,
}

/// The kinds, in the order of messages.
const ALL: [Rows; 9] = [
    Rows::Messages,
    Rows::Responses,
    Rows::Tokens,
    Rows::Pairs,
    Rows::Conversations,
    Rows::Completions,
    Rows::Context,
    Rows::Instruction,
    Rows::Batch,
];

/// The form of a value, as far as it decides what an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Text,
    /// A list.
    List,
    /// An object.
    Object,
    /// A number or a boolean.
    Other,
}

impl Shape {
    /// Returns the shape of a JSON value's text.
    fn of(text: &str) -> Self {
        match text.as_bytes().first() {
            Some(b'"') => Self::Text,
            Some(b'[') => Self::List,
            Some(b'{') => Self::Object,
            _ => Self::Other,
        }
    }
}

impl Rows {
    /// Returns the name by which options choose it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Responses => "responses",
            Self::Tokens => "tokens",
            Self::Pairs => "pairs",
            Self::Conversations => "conversations",
            Self::Completions => "completions",
            Self::Context => "context",
            Self::Instruction => "instruction",
            Self::Batch => "batch",
        }
    }

    /// Returns whether it is one of kudos's own, which may stand side by side in a file.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Messages | Self::Responses | Self::Tokens)
    }

    /// Returns the keys that rows of this kind have, besides `id` and what a template reads.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages", "response", "responses"],
            Self::Responses => &["prompt", "response", "responses"],
            Self::Tokens => &["input_ids", "attention_mask", "position_ids", "inputs_embeds"],
            Self::Pairs => &[
                "chosen",
                "rejected",
                "prompt",
                "messages",
                "conversations",
                "instruction",
                "input",
                "history",
                "system",
            ],
            Self::Conversations => &["conversations", "system"],
            Self::Completions => &["prompt", "completion", "completions", "labels"],
            Self::Context => &["context", "response1", "response2"],
            Self::Instruction => &["instruction", "input", "history", "output", "system"],
            Self::Batch => &["custom_id", "body"],
        }
    }

    /// Returns the kind of rows with keys of these shapes; `None` where nothing is there to score.
    /// Two kinds at once are an error, except that pairs may repeat one of their conversations as
    /// `messages`, and `messages` their beginning as `prompt`: both are compared in every row.
    pub fn of(shape: impl Fn(&str) -> Option<Shape>) -> Result<Option<Self>> {
        use Shape::{List, Object, Text};
        let is = |key: &str, shapes: &[Shape]| shape(key).is_some_and(|shape| shapes.contains(&shape));
        let has = |key: &str| shape(key).is_some();
        let turns = [Text, List, Object];
        let is_pair = is("chosen", &turns) && is("rejected", &turns);
        let mut fitting: Vec<Self> = ALL
            .into_iter()
            .filter(|rows| match rows {
                Self::Messages => has("messages"),
                Self::Responses => has("prompt") && (has("response") || has("responses")),
                Self::Tokens => has("input_ids"),
                Self::Pairs => is_pair,
                Self::Conversations => is("conversations", &[List]) && !is_pair,
                Self::Completions => {
                    has("prompt") && (is("completion", &[Text, List]) || is("completions", &[List]))
                }
                Self::Context => is("context", &[Text, List]) && has("response1") && has("response2"),
                Self::Instruction => is("instruction", &[Text]) && is("output", &[Text, List]) && !is_pair,
                Self::Batch => has("custom_id") && is("body", &[Object, Text]),
            })
            .collect();
        if is_pair && fitting.len() == 2 {
            fitting.retain(|rows| *rows != Self::Messages);
        }
        match fitting[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            // `own` has an error for each two keys of its own.
            [first, ..] if has("input_ids") && fitting.iter().all(|rows| rows.is_own()) => Ok(Some(first)),
            _ => {
                let names: Vec<String> =
                    fitting.iter().map(|rows| format!("`{}` ({rows})", rows.name())).collect();
                let message = format!("the keys are those of several kinds of rows: {}", names.join(", "));
                Err(wrong(message).with_hint(
                    "leave out the keys of the others; for a file, `--rows` names the kind that is meant",
                ))
            }
        }
    }
}

/// The keys of a kind of rows, in messages.
impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages => "`messages`",
            Self::Responses => "`prompt` with responses",
            Self::Tokens => "`input_ids`",
            Self::Pairs => "`chosen` and `rejected`",
            Self::Conversations => "`conversations`",
            Self::Completions => "`prompt` with completions",
            Self::Context => "`context` with `response1` and `response2`",
            Self::Instruction => "`instruction` with `output`",
            Self::Batch => "`custom_id` and `body`",
        })
    }
}

/// How rows are read: by their keys, or as one kind.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    columns: Columns,
    rows: Expected,
    /// Keys of the caller's own that tables are read for, too.
    also: &'static [&'static str],
}

/// The rows that are expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expected {
    /// Those that the keys say.
    #[default]
    Any,
    /// Kudos's own objects, whichever.
    Own,
    /// One kind; a row with the keys of another one is an error.
    Like(Rows),
    /// One kind, whatever other keys there are.
    Only(Rows),
}

impl Reading {
    /// Returns a reading of rows with these names of columns; of one kind, which ignores the keys
    /// of others, or of any kind.
    pub fn new(columns: Columns, rows: Option<Rows>) -> Self {
        Self { columns, rows: rows.map_or(Expected::Any, Expected::Only), also: &[] }
    }

    /// Returns the reading that has more columns of a table, whose values the caller reads.
    #[must_use]
    pub fn with_also(self, keys: &'static [&'static str]) -> Self {
        Self { also: keys, ..self }
    }

    /// Returns the reading of a file whose first row, or whose schema, has keys of these shapes.
    pub fn with_shapes(mut self, shape: impl Fn(&str) -> Option<Shape>) -> Result<Self> {
        if self.rows == Expected::Any {
            self.rows = match Rows::of(shape)? {
                None => Expected::Any,
                Some(rows) if rows.is_own() => Expected::Own,
                Some(rows) => Expected::Like(rows),
            };
        }
        Ok(self)
    }

    /// Returns the reading of a file with this first row. A row that cannot be read decides
    /// nothing: it is an error of its own.
    pub fn with_first(self, bytes: &[u8]) -> Result<Self> {
        let given = text_of(bytes).and_then(|text| Given::read(text, &self.columns));
        match given {
            Ok(given) => self.with_shapes(|key| given.raw(key).map(|raw| Shape::of(raw.get()))),
            Err(_) => Ok(self),
        }
    }

    /// Returns the kind of rows, where it is one.
    pub fn rows(&self) -> Option<Rows> {
        match self.rows {
            Expected::Any | Expected::Own => None,
            Expected::Like(rows) | Expected::Only(rows) => Some(rows),
        }
    }

    /// Returns whether the kind is decided: a file's first row decides it.
    pub fn is_decided(&self) -> bool {
        self.rows != Expected::Any
    }

    /// Returns the form of the results of a table's rows, whose columns have these shapes; `None`
    /// where each row decides it. Beside rows of responses there may be rows of one.
    pub fn form(&self, shape: impl Fn(&str) -> Option<Shape>) -> Option<Form> {
        let lists = |key: &str| match shape(key) {
            Some(_) => Form::Responses(0),
            None => Form::One,
        };
        match self.rows() {
            Some(Rows::Batch) => None,
            Some(Rows::Tokens | Rows::Conversations) => Some(Form::One),
            Some(Rows::Pairs) => Some(Form::Pair),
            Some(Rows::Context) => Some(Form::Responses(2)),
            Some(Rows::Completions) => Some(lists("completions")),
            Some(Rows::Instruction) => Some(match shape("output") {
                Some(Shape::List) => Form::Responses(0),
                _ => Form::One,
            }),
            Some(Rows::Messages | Rows::Responses) | None => Some(lists("responses")),
        }
    }

    /// Returns whether rows have a column that is read.
    pub fn reads(&self, column: &str) -> bool {
        let is_kept = |key| self.rows == Expected::Any || is_read_of(self.rows(), key);
        self.columns.key(column).is_some_and(is_kept) || self.also.contains(&column)
    }

    /// Returns the names of columns.
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Reads the JSON text of one row. Every error is one of
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput).
    pub fn parse(&self, bytes: &[u8]) -> Parsed {
        match text_of(bytes).and_then(|text| Given::read(text, &self.columns)) {
            Err(error) => Parsed { id: None, request: Err(error) },
            Ok(given) => {
                let (id, custom_id) = (given.id("id"), given.id("custom_id"));
                let kind = self.kind(&given);
                let id = if matches!(kind, Ok(Some(Rows::Batch))) { custom_id.or(id) } else { id };
                let is_chosen = matches!(self.rows, Expected::Only(_));
                Parsed { id, request: kind.and_then(|rows| request(given, rows, is_chosen)) }
            }
        }
    }

    /// Returns the kind of a row; `None` for one of kudos's own objects.
    fn kind(&self, given: &Given<'_>) -> Result<Option<Rows>> {
        if let Expected::Only(rows) = self.rows {
            return Ok(Some(rows));
        }
        let rows = Rows::of(|key| given.raw(key).map(|raw| Shape::of(raw.get())))?;
        match (self.rows, rows) {
            (Expected::Own, Some(rows)) if !rows.is_own() => Err(wrong(format!(
                "the row is of the kind `{}` ({rows}), but the file's first one is not",
                rows.name()
            ))),
            (Expected::Like(expected), found) if found != Some(expected) => {
                let found = found.map_or_else(|| "no kind that is known".to_owned(), |rows| rows.to_string());
                Err(wrong(format!("the row has {found}, but the file's first one has {expected}"))
                    .with_hint("a key of the row is missing or null, or has a value of another form"))
            }
            (_, rows) => Ok(rows.filter(|rows| !rows.is_own())),
        }
    }
}

/// Returns whether a key belongs to rows of a kind, `None` for kudos's own objects. Those of other
/// kinds belong to the user; what chat templates read, every kind may have.
fn is_read_of(rows: Option<Rows>, key: &str) -> bool {
    match rows {
        None => !DATASET_KEYS.contains(&key),
        Some(rows) => rows.keys().contains(&key) || !ALL.iter().any(|other| other.keys().contains(&key)),
    }
}

/// Keys of what a reward may depend on: beside a kind of rows that does not read them, they are an
/// error, unless the kind was chosen by name.
fn would_be_ignored(rows: Option<Rows>) -> &'static [&'static str] {
    match rows {
        None => &["completion", "completions"],
        Some(Rows::Batch) => &[
            "messages",
            "prompt",
            "response",
            "responses",
            "tools",
            "documents",
            "template_vars",
            "chat_template_kwargs",
        ],
        Some(_) => &["prompt", "response", "responses", "completion", "completions"],
    }
}

/// Reads a row of a kind, which options may have chosen; `None` is one of kudos's own objects, by
/// its keys.
fn request(mut given: Given<'_>, rows: Option<Rows>, is_chosen: bool) -> Result<Request> {
    let is_read = |key: &str| rows.is_some_and(|rows| rows.keys().contains(&key));
    let ignored = would_be_ignored(rows).iter().find(|key| !is_read(key) && given.has(key) && !is_chosen);
    if let Some(key) = ignored {
        let row = rows.map_or_else(|| "the row".to_owned(), |rows| rows.to_string());
        return Err(wrong(format!("`{key}` is given beside {row}, and would not be read"))
            .with_hint("leave it out; for a file, `--rows` names the kind that is meant"));
    }
    given.keep(|key| is_read_of(rows, key));
    if let Some(key) = given.repeated() {
        return Err(wrong(format!("the key `{key}` comes twice, expected once")));
    }
    for (key, hint) in ELSEWHERE {
        let is_read = rows.is_some_and(|rows| rows.keys().contains(&key));
        if !is_read && given.raw(key).is_some_and(|raw| raw.get() != "false") {
            let message = format!("`{key}` is not read here, and the reward would not depend on it");
            return Err(wrong(message).with_hint(hint));
        }
    }
    match rows {
        None | Some(Rows::Messages | Rows::Responses | Rows::Tokens) => own::request(&given),
        Some(Rows::Pairs) => pairs::request(&given),
        Some(Rows::Conversations) => datasets::conversations(&given),
        Some(Rows::Completions) => datasets::completions(&given),
        Some(Rows::Context) => datasets::context(&given),
        Some(Rows::Instruction) => datasets::instruction(&given),
        Some(Rows::Batch) => {
            let body = Reading::default().parse(datasets::body(&given)?.as_bytes());
            body.request.map_err(|error| error.prefixed("`body`"))
        }
    }
}
