//! Keys of objects: those that are read, and those that are refused by name.

use crate::error::{Error, ErrorKind, Result};

/// Returns whether [`parse`](super::parse) reads a key of an object. Other keys belong to the user.
pub fn is_read(key: &str) -> bool {
    known_keys().any(|known| known == key)
}

/// Returns the keys that are read, or refused by name.
fn known_keys() -> impl Iterator<Item = &'static str> {
    KEYS.into_iter().chain(ELSEWHERE.map(|(key, _)| key)).chain(BESIDE_TOKENS).chain(DATASET_KEYS)
}

/// Keys that are read.
pub(super) const KEYS: [&str; 11] = [
    "id",
    "messages",
    "prompt",
    "response",
    "responses",
    "input_ids",
    "attention_mask",
    "tools",
    "documents",
    "template_vars",
    "chat_template_kwargs",
];

/// Keys that change what other systems score and are not read here, with a hint. `false` is
/// accepted: it is the default.
pub(super) const ELSEWHERE: [(&str, &str); 6] = [
    ("system", "make it the first of the `messages`: {\"role\": \"system\", \"content\": \"..\"}"),
    ("functions", "describe them in `tools`"),
    ("date_string", "give it to the chat template: \"template_vars\": {\"date_string\": \"..\"}"),
    ("chat_template", "leave it out: a reward is that of the model's own template"),
    ("add_generation_prompt", "leave it out: a reward is that of a finished conversation"),
    ("continue_final_message", "leave it out: a reward is that of a finished conversation"),
];

/// Keys of which an object has one at most. Each pair is an error that names both.
pub(super) const CONTRADICTIONS: [(&str, &str); 12] = [
    ("messages", "input_ids"),
    ("prompt", "input_ids"),
    ("response", "responses"),
    ("template_vars", "chat_template_kwargs"),
    ("input_ids", "response"),
    ("input_ids", "responses"),
    ("input_ids", "tools"),
    ("input_ids", "documents"),
    ("input_ids", "template_vars"),
    ("input_ids", "chat_template_kwargs"),
    ("input_ids", "position_ids"),
    ("input_ids", "inputs_embeds"),
];

/// Keys that would change the reward of token ids in other systems; they mean nothing beside other
/// input.
pub(super) const BESIDE_TOKENS: [&str; 2] = ["position_ids", "inputs_embeds"];

/// Keys of rows of data sets, besides those of kudos's own objects.
pub(super) const DATASET_KEYS: [&str; 15] = [
    "chosen",
    "rejected",
    "conversations",
    "completion",
    "completions",
    "labels",
    "context",
    "response1",
    "response2",
    "instruction",
    "input",
    "history",
    "output",
    "custom_id",
    "body",
];

/// Other names of keys: a column of the data, and the key as which it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns(Vec<(String, &'static str)>);

impl Columns {
    /// Returns names from pairs of a key and the column that has its values. A key that is not
    /// read, and one or a column that comes twice, is an error of [`ErrorKind::Options`].
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let wrong = |message: String| Error::new(ErrorKind::Options, message);
        let mut columns = Self::default();
        for (key, column) in pairs {
            let keys = || KEYS.into_iter().chain(DATASET_KEYS).chain(["system"]);
            let Some(known) = keys().find(|known| *known == key) else {
                let keys: Vec<&str> = keys().collect();
                return Err(wrong(format!("`{key}` is not a key that is read"))
                    .with_hint(format!("the keys are {}", keys.join(", "))));
            };
            if columns.0.iter().any(|(other, name)| *name == known || other == column) {
                return Err(wrong(format!("`{key}={column}` names a key or a column for the second time")));
            }
            columns.0.push((column.to_owned(), known));
        }
        Ok(columns)
    }

    /// Returns the key as which a column is read, if it is.
    pub fn key(&self, column: &str) -> Option<&'static str> {
        if let Some((_, key)) = self.0.iter().find(|(name, _)| name == column) {
            return Some(key);
        }
        known_keys().find(|known| *known == column && self.0.iter().all(|(_, key)| key != known))
    }
}

/// Returns an error of the input.
pub(super) fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
