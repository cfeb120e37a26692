//! Rows of well-known data sets other than pairs.

use serde_json::{Map, Value, json};

use super::form::{Input, Request, Responses};
use super::json::{Given, strict};
use super::keys::wrong;
use super::own::{self, messages, with_extras};
use crate::conversation::{Conversation, Message, kind_of};
use crate::error::Result;

/// Reads a row with ShareGPT's turns.
pub(super) fn conversations(given: &Given<'_>) -> Result<Request> {
    let conversation = Conversation::new(turns_of_conversations(given)?)?;
    Ok(Request::One(Input::Conversation(with_extras(conversation, given)?)))
}

/// Reads TRL's `prompt` with `completion` or `completions`, each a string or a list of messages.
pub(super) fn completions(given: &Given<'_>) -> Result<Request> {
    let before = own::prompt(given)?.unwrap_or_default();
    if before.is_empty() {
        return Err(wrong("`prompt` is an empty list, expected a string or messages"));
    }
    let completion = |value, key: &str| completion(value, key, &before, given);
    let prompt = with_extras(Conversation::unanswered(before.clone()), given)?;
    match (given.value("completion")?, given.value("completions")?) {
        (Some(_), Some(_)) => {
            Err(wrong("`completion` and `completions` are given at once, expected one of them"))
        }
        (Some(one), None) => {
            let turns = completion(one, "completion")?;
            Ok(Request::One(Input::Conversation(prompt.with_turns(turns))))
        }
        (None, Some(Value::Array(_)))
            if given
                .raw("labels")
                .is_some_and(|raw| ["[", "\"["].iter().any(|start| raw.get().starts_with(start))) =>
        {
            Err(wrong("`completions` with a list of `labels` are the steps of one response, not responses")
                .with_hint("join the steps into one `completion`"))
        }
        (None, Some(Value::Array(all))) if !all.is_empty() => {
            let each = |(index, one)| completion(one, &format!("completions[{index}]"));
            let responses = all.into_iter().enumerate().map(each).collect::<Result<_>>()?;
            Ok(Request::Responses(Responses { prompt, responses }))
        }
        (None, other) => {
            let kind = kind_of(&other.unwrap_or_default());
            Err(wrong(format!("`completions` is {kind}, expected a list with at least one completion")))
        }
    }
}

/// Returns the turns of a completion, the value of `key`, after those `before` it, which it may
/// repeat.
fn completion(value: Value, key: &str, before: &[Message], given: &Given<'_>) -> Result<Vec<Message>> {
    match value {
        Value::String(text) => Ok(vec![Message::assistant(text)]),
        Value::Array(list) if !list.is_empty() => {
            let turns = messages(Value::Array(list), key)?;
            if !own::is_whole(&turns) {
                return Ok(turns);
            }
            own::begins_with(&turns, key, Some(before), given)?;
            match turns.strip_prefix(before) {
                Some(turns) if !turns.is_empty() => Ok(turns.to_vec()),
                _ => Err(wrong(format!("`{key}` has no turns after those of `prompt`"))),
            }
        }
        other => {
            Err(wrong(format!("`{key}` is {}, expected a string or a list of messages", kind_of(&other))))
        }
    }
}

/// Reads HelpSteer3's rows: `context`, and two responses to it.
pub(super) fn context(given: &Given<'_>) -> Result<Request> {
    let before = match given.value("context")? {
        Some(Value::String(text)) => vec![Message::user(text)],
        Some(list) => messages(list, "context")?,
        None => return Err(wrong("the row has no `context`")),
    };
    if before.is_empty() {
        return Err(wrong("`context` is an empty list, expected messages"));
    }
    let response = |key: &str| match given.value(key)? {
        Some(Value::String(text)) => Ok(vec![Message::assistant(text)]),
        other => Err(wrong(format!("`{key}` is {}, expected a string", kind_of(&other.unwrap_or_default())))),
    };
    let responses = vec![response("response1")?, response("response2")?];
    let prompt = with_extras(Conversation::unanswered(before), given)?;
    Ok(Request::Responses(Responses { prompt, responses }))
}

/// Reads Alpaca's rows: `instruction`, and an output or a list of them.
pub(super) fn instruction(given: &Given<'_>) -> Result<Request> {
    let prompt = with_extras(Conversation::unanswered(turns_of_instruction(given)?), given)?;
    match given.value("output")? {
        Some(Value::String(text)) => Ok(Request::One(Input::Conversation(prompt.with_response(text)))),
        Some(Value::Array(all)) if !all.is_empty() => {
            let text = |(index, output)| text(output, &format!("output[{index}]"));
            let text = |entry| Ok(vec![Message::assistant(text(entry)?)]);
            let responses = all.into_iter().enumerate().map(text).collect::<Result<_>>()?;
            Ok(Request::Responses(Responses { prompt, responses }))
        }
        other => {
            let kind = kind_of(&other.unwrap_or_default());
            Err(wrong(format!("`output` is {kind}, expected a string or a list of strings")))
        }
    }
}

/// Returns the JSON text of `body`, in a line of OpenAI's batches.
pub(super) fn body(given: &Given<'_>) -> Result<String> {
    match given.value("body")? {
        Some(Value::String(text)) => Ok(text),
        Some(body @ Value::Object(_)) => Ok(body.to_string()),
        other => {
            let kind = kind_of(&other.unwrap_or_default());
            Err(wrong(format!("`body` is {kind}, expected an object with `messages`")))
        }
    }
}

/// Returns the turns of `conversations`, after those of `system`.
pub(super) fn turns_of_conversations(given: &Given<'_>) -> Result<Vec<Message>> {
    match given.value("conversations")? {
        Some(Value::Array(list)) => after_system(turns(list, "conversations")?, given),
        other => {
            let kind = kind_of(&other.unwrap_or_default());
            Err(wrong(format!("`conversations` is {kind}, expected a list of turns")))
        }
    }
}

/// Returns the turns of `instruction` and `input`, after those of `system` and `history`.
pub(super) fn turns_of_instruction(given: &Given<'_>) -> Result<Vec<Message>> {
    let string = |key: &str| {
        let value = given.value(key)?;
        value.map(|value| text(value, key)).transpose().map(Option::unwrap_or_default)
    };
    let mut turns = match given.value("history")? {
        None => Vec::new(),
        Some(Value::Array(list)) => exchanges(list)?,
        Some(other) => {
            let kind = kind_of(&other);
            return Err(wrong(format!(
                "`history` is {kind}, expected a list of questions with their answers"
            )));
        }
    };
    let (instruction, input) = (string("instruction")?, string("input")?);
    let parts: Vec<String> = [instruction, input].into_iter().filter(|part| !part.is_empty()).collect();
    turns.push(Message::user(parts.join("\n")));
    after_system(turns, given)
}

/// Returns the turns of `history`.
fn exchanges(list: Vec<Value>) -> Result<Vec<Message>> {
    let exchange = |(index, value)| match value {
        Value::Array(pair) if pair.len() == 2 && pair.iter().all(Value::is_string) => {
            let mut texts = pair.into_iter().map(|text| text.as_str().unwrap_or_default().to_owned());
            let mut next = || texts.next().unwrap_or_default();
            Ok([Message::user(next()), Message::assistant(next())])
        }
        other => Err(wrong(format!(
            "`history[{index}]` is {}, expected a question and its answer",
            kind_of(&other)
        ))),
    };
    let exchanges = list.into_iter().enumerate().map(exchange).collect::<Result<Vec<_>>>()?;
    Ok(exchanges.into_iter().flatten().collect())
}

/// Returns the turns after a system turn with the text of `system`, if it has any.
pub(super) fn after_system(turns: Vec<Message>, given: &Given<'_>) -> Result<Vec<Message>> {
    let system = given.value("system")?.map(|system| text(system, "system")).transpose()?.unwrap_or_default();
    if system.is_empty() {
        return Ok(turns);
    }
    if turns.first().is_some_and(|first| first.role() == "system") {
        return Err(wrong("`system` is given, and the conversation has a system turn, expected one of them"));
    }
    Ok([Message::system(system)].into_iter().chain(turns).collect())
}

/// Returns the turns of a list, the value of `key`: those of ShareGPT or messages.
pub(super) fn turns(list: Vec<Value>, key: &str) -> Result<Vec<Message>> {
    let turn = |(index, value)| turn(value).map_err(|error| error.prefixed(format!("`{key}[{index}]`")));
    list.into_iter().enumerate().map(turn).collect()
}

/// Reads a turn of ShareGPT, `{"from": .., "value": ..}`, or a message.
pub(super) fn turn(value: Value) -> Result<Message> {
    let Some(from) = value.get("from").filter(|from| !from.is_null()) else {
        return Message::from_json(value);
    };
    let content = value.get("value").cloned().unwrap_or_default();
    let Value::String(content) = content else {
        return Err(wrong(format!("a turn's `value` is {}, expected a string", kind_of(&content))));
    };
    Ok(match from.as_str() {
        Some("system") => Message::system(content),
        Some("human" | "user") => Message::user(content),
        Some("gpt" | "assistant") => Message::assistant(content),
        Some("observation" | "tool") => Message::from_json(json!({"role": "tool", "content": content}))?,
        Some("function_call") => {
            Message::from_json(json!({"role": "assistant", "tool_calls": calls(&content)?}))?
        }
        _ => {
            let error = wrong(format!("a turn is `from` {from}"));
            return Err(error.with_hint(
                "turns are from system, human (or user), gpt (or assistant), function_call and observation (or tool)",
            ));
        }
    })
}

/// Returns the tool calls of a turn: JSON text of one, or of a list of them.
fn calls(content: &str) -> Result<Vec<Value>> {
    let calls = match strict(content.as_bytes()).map_err(|error| error.prefixed("a function call"))? {
        Value::Array(calls) => calls,
        one => vec![one],
    };
    let call = |call: Value| match call {
        Value::Object(function) if function.get("name").is_some_and(Value::is_string) => {
            Ok(Value::Object(Map::from_iter([
                ("type".to_owned(), json!("function")),
                ("function".to_owned(), Value::Object(function)),
            ])))
        }
        other => {
            Err(wrong(format!("a function call is {}, expected an object with a `name`", kind_of(&other))))
        }
    };
    calls.into_iter().map(call).collect()
}

/// Returns the string that is the value of `key`.
fn text(value: Value, key: &str) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong(format!("`{key}` is {}, expected a string", kind_of(&other)))),
    }
}
