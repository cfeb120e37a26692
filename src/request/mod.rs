//! Requests: one JSON object -> the input to score.
//!
//! ```json
//! {"messages": [...]}                                            the last turn is judged
//! {"messages": [...], "response": "..."}                         or "responses": the assistant turn
//! {"prompt": "..." | [messages], "responses": ["...", ...]}      or one "response"
//! {"input_ids": [...], "attention_mask": [...]}                  the mask is optional
//! ```
//!
//! each with an optional `id`; conversations also with `tools`, `documents` and `template_vars` (or
//! `chat_template_kwargs`, another name for the same) for the chat template. `null` is absence for
//! every key.
//!
//! A key that would have to be ignored is an error: keys that contradict each other, keys that come
//! twice, and keys that mean something to other systems ([`ELSEWHERE`]). All other keys belong to
//! the user and are not read.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use crate::conversation::{Conversation, Message, kind_of};
use crate::error::{Error, ErrorKind, Result};

/// A request: one reward, or one per response.
#[derive(Debug)]
pub enum Request {
    /// One reward.
    One(Input),
    /// One reward per response to a prompt.
    Responses(Responses),
}

/// Input that has one reward.
#[derive(Debug)]
pub enum Input {
    /// A conversation, whole.
    Conversation(Conversation),
    /// Token ids without those that the attention mask leaves out.
    Tokens(Vec<u32>),
}

/// Responses to one prompt. Each makes a conversation with all of the prompt in it: they are made
/// one at a time.
#[derive(Debug)]
pub struct Responses {
    prompt: Conversation,
    responses: Vec<String>,
}

impl Responses {
    /// Number of responses.
    pub fn count(&self) -> usize {
        self.responses.len()
    }

    /// One conversation per response, in order.
    pub fn into_conversations(self) -> impl Iterator<Item = Conversation> {
        let Self { prompt, responses } = self;
        responses.into_iter().map(move |response| prompt.clone().with_response(response))
    }
}

/// The result of reading one object.
#[derive(Debug)]
pub struct Parsed {
    /// `id` as the object spells it; `None` when it is absent, null, given twice, or the text is
    /// not an object.
    pub id: Option<Box<RawValue>>,
    /// The request, or why it cannot be read.
    pub request: Result<Request>,
}

/// Reads the JSON text of one object. Every error is one of [`ErrorKind::InvalidInput`].
pub fn parse(bytes: &[u8]) -> Parsed {
    let given = text_of(bytes).and_then(Given::read);
    match given {
        Err(error) => Parsed { id: None, request: Err(error) },
        Ok(given) => Parsed { id: given.id(), request: request(&given) },
    }
}

/// Reads a JSON value in which no object has a key twice.
pub fn strict(bytes: &[u8]) -> Result<Value> {
    let text = text_of(bytes)?;
    match serde_json::from_str(text) {
        Ok(Strict(value)) => Ok(value),
        Err(error) if error.is_data() => Err(wrong(error.to_string())),
        Err(error) => Err(not_json(text, &error)),
    }
}

/// Returns whether [`parse`] reads a key of an object. Other keys belong to the user.
pub fn is_read(key: &str) -> bool {
    known_keys().any(|known| known == key)
}

/// Returns the keys that are read, or refused by name.
fn known_keys() -> impl Iterator<Item = &'static str> {
    KEYS.into_iter().chain(ELSEWHERE.map(|(key, _)| key)).chain(BESIDE_TOKENS)
}

/// Keys that are read.
const KEYS: [&str; 11] = [
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
const ELSEWHERE: [(&str, &str); 6] = [
    ("system", "make it the first of the `messages`: {\"role\": \"system\", \"content\": \"..\"}"),
    ("functions", "describe them in `tools`"),
    ("date_string", "give it to the chat template: \"template_vars\": {\"date_string\": \"..\"}"),
    ("chat_template", "leave it out: a reward is that of the model's own template"),
    ("add_generation_prompt", "leave it out: a reward is that of a finished conversation"),
    ("continue_final_message", "leave it out: a reward is that of a finished conversation"),
];

/// Keys of which an object has one at most. Each pair is an error that names both.
const CONTRADICTIONS: [(&str, &str); 13] = [
    ("messages", "prompt"),
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
const BESIDE_TOKENS: [&str; 2] = ["position_ids", "inputs_embeds"];

fn request(given: &Given) -> Result<Request> {
    if let Some(key) = given.repeated {
        return Err(wrong(format!("the key `{key}` comes twice, expected once")));
    }
    for (key, hint) in ELSEWHERE {
        if given.raw(key).is_some_and(|raw| raw.get() != "false") {
            let message = format!("`{key}` is not read here, and the reward would not depend on it");
            return Err(wrong(message).with_hint(hint));
        }
    }
    for (one, other) in CONTRADICTIONS {
        if given.has(one) && given.has(other) {
            let error = wrong(format!("`{one}` and `{other}` are given at once, expected one of them"));
            return Err(match one {
                "input_ids" => {
                    error.with_hint("token ids are scored as they are; give a conversation as `messages`")
                }
                _ => error,
            });
        }
    }
    if given.has("attention_mask") && !given.has("input_ids") {
        return Err(wrong("`attention_mask` is given, but no `input_ids`")
            .with_hint("a mask belongs to token ids; leave it out of a conversation"));
    }
    if let Some(ids) = given.value("input_ids")? {
        let ids = token_ids(ids)?;
        let ids = match given.value("attention_mask")? {
            Some(mask) => unmasked(ids, mask)?,
            None => ids,
        };
        return Ok(Request::One(Input::Tokens(ids)));
    }
    let responses = responses(given)?;
    if let Some(list) = given.value("messages")? {
        let conversation = with_extras(Conversation::new(messages(list, "messages")?)?, given)?;
        let Some(responses) = responses else { return Ok(Request::One(Input::Conversation(conversation))) };
        if conversation.messages().last().is_some_and(|last| last.role() == "assistant") {
            let message =
                "`messages` end with an assistant turn and a response is given, expected one of them";
            return Err(wrong(message)
                .with_hint("a response follows `messages` as the assistant turn: leave out one of the two"));
        }
        return Ok(answered(conversation, responses));
    }
    let before = match given.value("prompt")? {
        None => {
            let error = wrong("the object has neither `messages` nor `prompt` nor `input_ids`");
            return Err(error.with_hint(
                "a conversation is {\"messages\": [..]} or {\"prompt\": .., \"responses\": [..]}",
            ));
        }
        Some(Value::String(text)) => vec![Message::user(text)],
        Some(list) => messages(list, "prompt")?,
    };
    let Some(responses) = responses else {
        let error = wrong("the object has a `prompt`, but neither `response` nor `responses`");
        return Err(
            error.with_hint("the reward is that of a response; a whole conversation goes into `messages`")
        );
    };
    Ok(answered(with_extras(Conversation::unanswered(before), given)?, responses))
}

/// One response, or a list of them.
enum Answers {
    One(String),
    Each(Vec<String>),
}

fn answered(prompt: Conversation, answers: Answers) -> Request {
    match answers {
        Answers::One(response) => Request::One(Input::Conversation(prompt.with_response(response))),
        Answers::Each(responses) => Request::Responses(Responses { prompt, responses }),
    }
}

/// `response` or `responses`; `None` when both are absent.
fn responses(given: &Given) -> Result<Option<Answers>> {
    match (given.value("response")?, given.value("responses")?) {
        (None, None) => Ok(None),
        (Some(Value::String(one)), _) => Ok(Some(Answers::One(one))),
        (Some(other), _) => Err(wrong(format!("`response` is {}, expected a string", kind_of(&other)))),
        (None, Some(Value::Array(all))) if !all.is_empty() => {
            let text = |(index, response)| match response {
                Value::String(text) => Ok(text),
                other => {
                    Err(wrong(format!("`responses[{index}]` is {}, expected a string", kind_of(&other))))
                }
            };
            all.into_iter().enumerate().map(text).collect::<Result<_>>().map(|all| Some(Answers::Each(all)))
        }
        (None, Some(other)) => Err(wrong(format!(
            "`responses` is {}, expected a list with at least one string",
            kind_of(&other)
        ))),
    }
}

fn messages(value: Value, key: &str) -> Result<Vec<Message>> {
    let Value::Array(list) = value else {
        return Err(wrong(format!("`{key}` is {}, expected a list of messages", kind_of(&value))));
    };
    list.into_iter()
        .enumerate()
        .map(|(index, value)| {
            Message::from_json(value).map_err(|error| error.prefixed(format!("message {index}")))
        })
        .collect()
}

/// Returns the conversation with the object's tools, documents and template variables.
fn with_extras(mut conversation: Conversation, given: &Given) -> Result<Conversation> {
    if let Some(tools) = given.value("tools")? {
        conversation = conversation.with_tools(tools)?;
    }
    if let Some(documents) = given.value("documents")? {
        conversation = conversation.with_documents(documents)?;
    }
    for key in ["template_vars", "chat_template_kwargs"] {
        match given.value(key)? {
            None => {}
            Some(Value::Object(vars)) => conversation = conversation.with_template_vars(vars)?,
            Some(other) => {
                return Err(wrong(format!("`{key}` is {}, expected an object", kind_of(&other))));
            }
        }
    }
    Ok(conversation)
}

fn token_ids(value: Value) -> Result<Vec<u32>> {
    let Value::Array(list) = value else {
        return Err(wrong(format!("`input_ids` is {}, expected a list of token ids", kind_of(&value))));
    };
    list.iter()
        .enumerate()
        .map(|(index, id)| {
            id.as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| wrong(format!("`input_ids[{index}]` is `{id}`, expected a token id")))
        })
        .collect()
}

/// Returns the ids whose mask is 1; padding precedes or follows them. Rewards and relative
/// positions are then those of Transformers, which gives masked tokens no weight.
fn unmasked(ids: Vec<u32>, mask: Value) -> Result<Vec<u32>> {
    let Value::Array(mask) = mask else {
        return Err(wrong(format!("`attention_mask` is {}, expected a list of 0 and 1", kind_of(&mask))));
    };
    if mask.len() != ids.len() {
        let message =
            format!("`attention_mask` has {} entries, but `input_ids` has {}", mask.len(), ids.len());
        return Err(wrong(message).with_hint("give one 0 or 1 per token id"));
    }
    if let Some((index, entry)) =
        mask.iter().enumerate().find(|(_, entry)| !matches!(entry.as_u64(), Some(0 | 1)))
    {
        return Err(wrong(format!("`attention_mask[{index}]` is `{entry}`, expected 0 or 1")));
    }
    let kept = |entry: &Value| entry.as_u64() == Some(1);
    let start = mask
        .iter()
        .position(kept)
        .ok_or_else(|| wrong("`attention_mask` leaves no token, expected at least one 1"))?;
    let end = mask.iter().rposition(kept).map_or(start, |last| last + 1);
    if let Some(hole) = mask[start..end].iter().position(|entry| !kept(entry)) {
        let message = format!("`attention_mask[{}]` is 0 between tokens that count", start + hole);
        return Err(wrong(message).with_hint(
            "a mask takes away padding before or behind the tokens; leave others out of `input_ids`",
        ));
    }
    Ok(ids[start..end].to_vec())
}

/// Returns the JSON text of an object, without byte order marks before it: RFC 8259 (8.1) allows to
/// ignore one, and files concatenated by `cat` have one in their middle.
fn text_of(bytes: &[u8]) -> Result<&str> {
    let text = str::from_utf8(bytes).map_err(|error| {
        wrong(format!("the text is not UTF-8 at byte {}", error.valid_up_to() + 1))
            .with_hint("JSON is written in UTF-8: convert it, as with `iconv -t UTF-8`")
    })?;
    Ok(text.trim_start_matches(BYTE_ORDER_MARK).trim_ascii())
}

/// U+FEFF, which some programs write before a text.
pub const BYTE_ORDER_MARK: char = '\u{feff}';

/// The keys of an object that are read here, with their values' text. Nulls are left out.
#[derive(Debug)]
struct Given<'a> {
    text: &'a str,
    values: Vec<(&'static str, &'a RawValue)>,
    /// A key that came twice.
    repeated: Option<&'static str>,
}

impl<'a> Given<'a> {
    fn read(text: &'a str) -> Result<Self> {
        if !text.starts_with('{') {
            let other: Value = serde_json::from_str(text).map_err(|error| not_json(text, &error))?;
            let error = wrong(format!("the line is {}, expected an object", kind_of(&other)));
            return Err(if other.is_array() { error.with_hint(ARRAY_HINT) } else { error });
        }
        let Keys { values, repeated } = serde_json::from_str(text).map_err(|error| not_json(text, &error))?;
        Ok(Self { text, values, repeated })
    }

    fn raw(&self, key: &str) -> Option<&'a RawValue> {
        self.values.iter().find(|(name, _)| *name == key).map(|(_, raw)| *raw)
    }

    fn has(&self, key: &str) -> bool {
        self.raw(key).is_some()
    }

    /// Returns the text of `id`, without line breaks: they can only be space between the items of a
    /// list, and would break the output line.
    fn id(&self) -> Option<Box<RawValue>> {
        let mut ids = self.values.iter().filter(|(key, _)| *key == "id");
        let (_, raw) = ids.next().filter(|_| ids.next().is_none())?;
        if !raw.get().contains(['\r', '\n']) {
            return Some((*raw).to_owned());
        }
        RawValue::from_string(raw.get().replace(['\r', '\n'], "")).ok()
    }

    /// Returns the value of a key. An object in it that has a key twice is an error; most parsers
    /// keep the last.
    fn value(&self, key: &str) -> Result<Option<Value>> {
        let Some(raw) = self.raw(key) else { return Ok(None) };
        let text = raw.get();
        match serde_json::from_str(text) {
            Ok(Strict(value)) => Ok(Some(value)),
            Err(error) if error.is_data() => {
                let message = error.to_string();
                Err(wrong(format!("`{key}`: {}", message.split(" at line ").next().unwrap_or_default())))
            }
            Err(error) => {
                let start = text.as_ptr().addr() - self.text.as_ptr().addr();
                let place = (error.line() == 1).then(|| start + error.column());
                Err(not_json_at(self.text, &error, place).prefixed(format!("`{key}`")))
            }
        }
    }
}

const ARRAY_HINT: &str = "a JSON array is not JSON lines: write one object per line, as `jq -c '.[]'` does";

fn not_json(text: &str, error: &serde_json::Error) -> Error {
    not_json_at(text, error, (error.line() == 1).then(|| error.column()))
}

/// Returns the error of text that is not JSON, at a `column` from 1 if the text is one line.
fn not_json_at(text: &str, error: &serde_json::Error, column: Option<usize>) -> Error {
    let full = error.to_string();
    let reason = full.split(" at line ").next().unwrap_or_default();
    let place = column.map_or_else(
        || format!("line {}, column {}", error.line(), error.column()),
        |column| format!("column {column}"),
    );
    let at = column.unwrap_or(0).saturating_sub(1);
    let follows = |word: &str| text.get(at..).is_some_and(|rest| rest.starts_with(word));
    if let Some(word) = ["NaN", "Infinity"].into_iter().find(|word| follows(word)) {
        let sign = if text[..at].ends_with('-') { "-" } else { "" };
        return wrong(format!("the line is not JSON: it has {sign}{word}, {place}")).with_hint(
            "Python's json module writes NaN and Infinity, which are not JSON: write null instead, or leave the key \
             out (`json.dumps(.., allow_nan=False)` finds them)",
        );
    }
    if reason.contains("surrogate") || reason.contains("end of hex escape") {
        return wrong(format!("the text has half of a character, a lone surrogate such as \\ud83d, {place}"))
            .with_hint(
                "the text was cut within an emoji or another character beyond 16 bits: cut it at a whole one",
            );
    }
    let error_text = format!("the line is not JSON: {reason}, {place}");
    let error = match text.as_bytes().first() {
        Some(b'[') => return wrong(error_text).with_hint(ARRAY_HINT),
        Some(b'{') if error.is_eof() => wrong(error_text)
            .with_hint("each line holds one whole JSON object; `jq -c .` puts an object on one line"),
        _ => wrong(error_text),
    };
    match error.hint() {
        Some(_) => error,
        None => {
            error.with_hint("a conversation is one JSON object on one line, such as {\"messages\": [..]}")
        }
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// The deserialized form of [`Given`].
struct Keys<'a> {
    values: Vec<(&'static str, &'a RawValue)>,
    repeated: Option<&'static str>,
}

impl<'de> Deserialize<'de> for Keys<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> std::result::Result<Keys<'de>, A::Error> {
        let mut keys = Keys { values: Vec::new(), repeated: None };
        while let Some(key) = object.next_key::<String>()? {
            let Some(key) = known_keys().find(|known| *known == key) else {
                object.next_value::<IgnoredAny>()?;
                continue;
            };
            let raw = object.next_value::<&'de RawValue>()?;
            if raw.get() == "null" {
                continue;
            }
            if keys.values.iter().any(|(other, _)| *other == key) {
                keys.repeated.get_or_insert(key);
            }
            keys.values.push((key, raw));
        }
        Ok(keys)
    }
}

/// A value in which no object has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::from(value)))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Strict, E> {
        Ok(Strict(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::from(value)))
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::String(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Strict, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Strict(Value::Array(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> std::result::Result<Strict, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("an object has the key `{key}` twice")));
            }
            let Strict(value) = object.next_value()?;
            fields.insert(key, value);
        }
        Ok(Strict(Value::Object(fields)))
    }
}

#[cfg(test)]
mod tests;
