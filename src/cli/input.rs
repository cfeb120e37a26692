//! Input lines -> what to score.
//!
//! ```json
//! {"messages": [...]}
//! {"prompt": "..." | [messages], "responses": ["...", ...]}      or one "response"
//! {"input_ids": [...]}
//! ```
//!
//! each with an optional `id`, and `tools`, `documents`, `template_vars` for the chat template. Other keys are the
//! user's own and are left alone.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value};

use crate::conversation::{Conversation, Message, kind_of};
use crate::error::{Error, ErrorKind, Result};

/// One line of input: how its result is named, and what it asks for.
#[derive(Debug)]
pub(super) struct Line {
    /// `("id", ...)` as the line gives it, else `("index", line number from 0)`.
    pub(super) key: (&'static str, Value),
    /// What to score, or why that cannot be told.
    pub(super) request: Result<Request>,
}

/// What one line asks for.
#[derive(Debug)]
pub(super) enum Request {
    /// One conversation, one reward.
    One(Input),
    /// Responses to one prompt, a reward for each.
    Responses(Vec<Conversation>),
}

/// Something that has one reward.
#[derive(Debug)]
pub(super) enum Input {
    Conversation(Conversation),
    Tokens(Vec<u32>),
}

/// The lines of a file, or of standard input for `-`. Empty lines are passed over, but counted.
pub(super) fn lines(path: &Path) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Line>> + use<>> {
    let from_stdin = path == Path::new("-");
    let name = if from_stdin { "standard input".to_owned() } else { format!("`{}`", path.display()) };
    let mut reader: Box<dyn BufRead + Send> = if from_stdin {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot open {name}"))?))
    };
    let mut index = 0;
    Ok(std::iter::from_fn(move || {
        loop {
            let mut bytes = Vec::new();
            match reader.read_until(b'\n', &mut bytes) {
                Err(error) => return Some(Err(error).with_context(|| format!("cannot read {name}"))),
                Ok(0) => return None,
                Ok(_) => {}
            }
            let line_index = index;
            index += 1;
            if !bytes.trim_ascii().is_empty() {
                return Some(Ok(parse(&bytes, line_index)));
            }
        }
    }))
}

fn parse(bytes: &[u8], index: usize) -> Line {
    let by_index = ("index", Value::from(index));
    let value = match serde_json::from_slice::<Value>(bytes.trim_ascii_end()) {
        Ok(Value::Object(fields)) => fields,
        Ok(other) => {
            let error = wrong(format!("the line is {}, expected an object", kind_of(&other)));
            return Line { key: by_index, request: Err(on_line(error, index)) };
        }
        Err(error) => {
            // Its own line number is always 1; ours is in the place.
            let (column, text) = (error.column(), error.to_string());
            let reason = text.split(" at line ").next().unwrap_or_default();
            let error = wrong(format!("the line is not JSON: {reason}, column {column}"));
            return Line { key: by_index, request: Err(on_line(error, index)) };
        }
    };
    let mut fields = value;
    let key = fields.get("id").filter(|id| !id.is_null()).map_or(by_index, |id| ("id", id.clone()));
    let request = request(&mut fields).map_err(|error| on_line(error, index));
    Line { key, request }
}

fn request(fields: &mut Map<String, Value>) -> Result<Request> {
    let present: Vec<&str> = ["messages", "prompt", "input_ids"]
        .into_iter()
        .filter(|&name| fields.get(name).is_some_and(|value| !value.is_null()))
        .collect();
    match present[..] {
        ["messages"] => {
            let messages = messages(fields.remove("messages").unwrap_or_default(), "messages")?;
            let conversation = with_extras(Conversation::new(messages)?, fields)?;
            Ok(Request::One(Input::Conversation(conversation)))
        }
        ["input_ids"] => {
            Ok(Request::One(Input::Tokens(token_ids(fields.remove("input_ids").unwrap_or_default())?)))
        }
        ["prompt"] => responses(fields),
        [] => Err(wrong("the line has neither `messages` nor `prompt` nor `input_ids`")),
        _ => Err(wrong(format!("the line has `{}` at once, expected one of them", present.join("` and `")))),
    }
}

fn responses(fields: &mut Map<String, Value>) -> Result<Request> {
    let before = match fields.remove("prompt").unwrap_or_default() {
        Value::String(text) => vec![Message::user(text)],
        list => messages(list, "prompt")?,
    };
    let conversation = |response: Value| {
        let Value::String(text) = response else {
            return Err(wrong(format!("a response is {}, expected a string", kind_of(&response))));
        };
        let messages = before.iter().cloned().chain([Message::assistant(text)]).collect();
        with_extras(Conversation::new(messages)?, fields)
    };
    match (fields.get("response"), fields.get("responses")) {
        (Some(one), None) => Ok(Request::One(Input::Conversation(conversation(one.clone())?))),
        (None, Some(Value::Array(all))) if !all.is_empty() => {
            Ok(Request::Responses(all.iter().cloned().map(conversation).collect::<Result<_>>()?))
        }
        (None, Some(other)) => {
            Err(wrong(format!("`responses` is {}, expected a list with at least one string", kind_of(other))))
        }
        (None, None) => Err(wrong("the line has a `prompt`, but neither `response` nor `responses`")),
        (Some(_), Some(_)) => {
            Err(wrong("the line has `response` and `responses` at once, expected one of them"))
        }
    }
}

fn messages(value: Value, field: &str) -> Result<Vec<Message>> {
    let Value::Array(list) = value else {
        return Err(wrong(format!("`{field}` is {}, expected a list of messages", kind_of(&value))));
    };
    list.into_iter()
        .enumerate()
        .map(|(index, value)| {
            Message::from_json(value).map_err(|error| error.prefixed(format!("message {index}")))
        })
        .collect()
}

/// The conversation with what the line gives its chat template besides messages.
fn with_extras(mut conversation: Conversation, fields: &Map<String, Value>) -> Result<Conversation> {
    let given = |name: &str| fields.get(name).filter(|value| !value.is_null()).cloned();
    if let Some(tools) = given("tools") {
        conversation = conversation.with_tools(tools)?;
    }
    if let Some(documents) = given("documents") {
        conversation = conversation.with_documents(documents)?;
    }
    match given("template_vars") {
        None => Ok(conversation),
        Some(Value::Object(vars)) => conversation.with_template_vars(vars),
        Some(other) => Err(wrong(format!("`template_vars` is {}, expected an object", kind_of(&other)))),
    }
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
                .ok_or_else(|| wrong(format!("`input_ids` {index} is `{id}`, expected a token id")))
        })
        .collect()
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Conversation, message)
}

fn on_line(error: Error, index: usize) -> Error {
    error.at(format!("input line {}", index + 1))
}
