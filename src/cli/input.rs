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
//!
//! [`Lines`] reads and counts; [`RawLine::parse`] understands, on whatever thread has time for it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::mem;
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
    Responses(Responses),
}

/// Responses to one prompt. Each makes a conversation with all of the prompt in it: they are made one at a time.
#[derive(Debug)]
pub(super) struct Responses {
    before: Vec<Message>,
    responses: Vec<String>,
    /// What the line gives its chat template besides messages.
    fields: Map<String, Value>,
}

impl Responses {
    /// How many.
    pub(super) fn count(&self) -> usize {
        self.responses.len()
    }

    /// The conversations with each.
    pub(super) fn into_conversations(self) -> impl Iterator<Item = Result<Conversation>> {
        let Self { before, responses, fields } = self;
        responses.into_iter().map(move |response| conversation(&before, response, &fields))
    }
}

fn conversation(before: &[Message], response: String, fields: &Map<String, Value>) -> Result<Conversation> {
    let messages = before.iter().cloned().chain([Message::assistant(response)]).collect();
    with_extras(Conversation::new(messages)?, fields)
}

/// Something that has one reward.
#[derive(Debug)]
pub(super) enum Input {
    Conversation(Conversation),
    Tokens(Vec<u32>),
}

/// Bytes of a line, at most; a longer one is an error of that line. A file that is no JSON lines may be one line, and
/// must not end up in memory.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// A line as it was read.
#[derive(Debug)]
pub(super) struct RawLine {
    /// The line's number, from 0; empty lines count.
    pub(super) index: usize,
    /// Bytes of the input up to the end of this line.
    pub(super) end: u64,
    /// What it says, or why it was not kept.
    text: Result<Vec<u8>>,
}

impl RawLine {
    /// Bytes of its text.
    pub(super) fn bytes(&self) -> usize {
        self.text.as_ref().map_or(0, Vec::len)
    }

    /// What the line asks for.
    pub(super) fn parse(&self) -> Line {
        match &self.text {
            Ok(text) => parse(text, self.index),
            Err(error) => Line { key: ("index", Value::from(self.index)), request: Err(error.clone()) },
        }
    }
}

/// The lines of a file, or of standard input for `-`. Empty lines are passed over, but counted.
pub(super) struct Lines {
    reader: Box<dyn BufRead + Send>,
    /// The input in words, for messages.
    name: String,
    /// Bytes of the input, where that is known before it is read.
    size: Option<u64>,
    index: usize,
    read_bytes: u64,
    line_bytes_max: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let from_stdin = path == Path::new("-");
        let name = if from_stdin { "standard input".to_owned() } else { format!("`{}`", path.display()) };
        let mut size = None;
        let reader: Box<dyn BufRead + Send> = if from_stdin {
            Box::new(BufReader::new(io::stdin()))
        } else {
            let file = File::open(path).map_err(|error| {
                Error::new(ErrorKind::Io, format!("cannot open the input: {error}"))
                    .at(path.display())
                    .with_hint("name a file with one conversation on each line, or `-` for standard input")
            })?;
            size = file.metadata().ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len());
            Box::new(BufReader::new(file))
        };
        Ok(Self { reader, name, size, index: 0, read_bytes: 0, line_bytes_max: LINE_BYTES_MAX })
    }

    /// The input in words, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the input, where that is known before it is read.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next line, empty or not.
    fn read(&mut self) -> io::Result<Option<RawLine>> {
        let mut text = Vec::new();
        let limit = self.line_bytes_max;
        let mut bytes = (&mut self.reader).take(limit).read_until(b'\n', &mut text)? as u64;
        let mut text = Ok(text);
        if bytes == limit && text.as_ref().is_ok_and(|text| !text.ends_with(b"\n")) {
            let rest = self.reader.skip_until(b'\n')? as u64;
            bytes += rest;
            if rest > 0 {
                let message = format!("the line has {bytes} bytes, the limit is {limit}");
                text = Err(on_line(wrong(message), self.index));
            }
        }
        let (index, end) = (self.index, self.read_bytes + bytes);
        self.index += 1;
        self.read_bytes = end;
        Ok((bytes > 0).then_some(RawLine { index, end, text }))
    }
}

impl Iterator for Lines {
    type Item = anyhow::Result<RawLine>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read() {
                Err(error) => return Some(Err(error).with_context(|| format!("cannot read {}", self.name))),
                Ok(None) => return None,
                Ok(Some(RawLine { text: Ok(text), .. })) if text.trim_ascii().is_empty() => {}
                Ok(Some(line)) => return Some(Ok(line)),
            }
        }
    }
}

/// What a line's text asks for.
pub(super) fn parse(bytes: &[u8], index: usize) -> Line {
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
            let error = wrong(format!("the line is not JSON: {reason}, column {column}"))
                .with_hint("a conversation is one JSON object on one line, such as {\"messages\": [..]}");
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
    let text = |response: Value| match response {
        Value::String(text) => Ok(text),
        other => Err(wrong(format!("a response is {}, expected a string", kind_of(&other)))),
    };
    match (fields.remove("response"), fields.remove("responses")) {
        (Some(one), None) => {
            Ok(Request::One(Input::Conversation(conversation(&before, text(one)?, fields)?)))
        }
        (None, Some(Value::Array(all))) if !all.is_empty() => {
            let responses = all.into_iter().map(text).collect::<Result<Vec<String>>>()?;
            // What is wrong with the prompt is an error of the line.
            conversation(&before, String::new(), fields)?;
            Ok(Request::Responses(Responses { before, responses, fields: mem::take(fields) }))
        }
        (None, Some(other)) => Err(wrong(format!(
            "`responses` is {}, expected a list with at least one string",
            kind_of(&other)
        ))),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn lines(text: &str, line_bytes_max: u64) -> Vec<RawLine> {
        let reader = Box::new(Cursor::new(text.as_bytes().to_vec()));
        let (name, index, read_bytes) = ("a test".to_owned(), 0, 0);
        let lines = Lines { reader, name, size: None, index, read_bytes, line_bytes_max };
        lines.collect::<anyhow::Result<_>>().unwrap()
    }

    #[test]
    fn lines_know_where_they_are_and_where_they_end() {
        let read = lines("{}\n\n  \r\n[]", 100);
        let places: Vec<(usize, u64)> = read.iter().map(|line| (line.index, line.end)).collect();
        assert_eq!(places, [(0, 3), (3, 10)]);
    }

    #[test]
    fn a_line_over_the_limit_is_an_error_of_its_own_and_is_not_kept() {
        let read = lines("{\"input_ids\": [1, 2, 3, 4, 5]}\n{\"input_ids\": [1]}\n", 20);
        assert_eq!(read.len(), 2);
        let error = read[0].parse().request.unwrap_err();
        assert_eq!(error.message(), "the line has 31 bytes, the limit is 20");
        assert_eq!((error.place(), read[0].text.is_err()), (Some("input line 1"), true));
        assert_eq!(read[0].end, 31);
        assert!(read[1].parse().request.is_ok());
    }
}
