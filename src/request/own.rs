//! Kudos's own objects: `messages`, `prompt` with responses, and `input_ids`.

use serde_json::Value;

use super::form::{Input, Request, Responses};
use super::json::{Given, strict};
use super::keys::{CONTRADICTIONS, wrong};
use crate::conversation::{Conversation, Message, kind_of};
use crate::error::Result;

/// Reads an object of one of these.
pub(super) fn request(given: &Given<'_>) -> Result<Request> {
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
        let turns = messages(list, "messages")?;
        begins_with(&turns, "messages", prompt(given)?.as_deref(), given)?;
        let conversation = with_extras(Conversation::new(turns)?, given)?;
        let Some(responses) = responses else { return Ok(Request::One(Input::Conversation(conversation))) };
        if conversation.messages().last().is_some_and(|last| last.role() == "assistant") {
            let message =
                "`messages` end with an assistant turn and a response is given, expected one of them";
            return Err(wrong(message)
                .with_hint("a response follows `messages` as the assistant turn: leave out one of the two"));
        }
        return Ok(answered(conversation, responses));
    }
    let Some(before) = prompt(given)? else {
        let error = wrong("the object has neither `messages` nor `prompt` nor `input_ids`");
        return Err(error
            .with_hint("a conversation is {\"messages\": [..]} or {\"prompt\": .., \"responses\": [..]}"));
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
        Answers::Each(responses) => {
            let responses = responses.into_iter().map(|text| vec![Message::assistant(text)]).collect();
            Request::Responses(Responses { prompt, responses })
        }
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

/// Returns the turns of `prompt`; `None` where it is absent.
pub(super) fn prompt(given: &Given<'_>) -> Result<Option<Vec<Message>>> {
    Ok(match given.value("prompt")? {
        None => None,
        Some(Value::String(text)) => Some(vec![Message::user(text)]),
        Some(list) => Some(messages(list, "prompt")?),
    })
}

/// Returns whether turns are a whole conversation, rather than those of a response.
pub(super) fn is_whole(turns: &[Message]) -> bool {
    turns.first().is_some_and(|first| matches!(first.role(), "system" | "developer" | "user"))
}

/// Returns an error unless the turns, the value of `key`, begin with those `before` them, which the
/// row has apart. A system turn may precede a `prompt` that is a string.
pub(super) fn begins_with(
    turns: &[Message],
    key: &str,
    before: Option<&[Message]>,
    given: &Given<'_>,
) -> Result<()> {
    let Some(before) = before else { return Ok(()) };
    let is_text = given.raw("prompt").is_some_and(|raw| raw.get().starts_with('"'));
    let after_system = turns.first().filter(|first| is_text && first.role() == "system").map(|_| &turns[1..]);
    if [Some(turns), after_system].into_iter().flatten().any(|turns| turns.starts_with(before)) {
        return Ok(());
    }
    let apart = ["prompt", "conversations", "instruction"].into_iter().find(|key| given.has(key));
    let apart = apart.unwrap_or("prompt");
    let message = format!("`{key}` does not begin with `{apart}`, which would not be read");
    Err(wrong(message).with_hint(format!("leave out `{apart}`, or make it the first turns of `{key}`")))
}

/// Returns messages of a list, which is the value of `key`.
pub(super) fn messages(value: Value, key: &str) -> Result<Vec<Message>> {
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
pub(super) fn with_extras(mut conversation: Conversation, given: &Given<'_>) -> Result<Conversation> {
    if given.has("template_vars") && given.has("chat_template_kwargs") {
        return Err(wrong(
            "`template_vars` and `chat_template_kwargs` are given at once, expected one of them",
        ));
    }
    if let Some(tools) = json_value("tools", given)? {
        conversation = conversation.with_tools(tools)?;
    }
    if let Some(documents) = json_value("documents", given)? {
        conversation = conversation.with_documents(documents)?;
    }
    for key in ["template_vars", "chat_template_kwargs"] {
        match json_value(key, given)? {
            None => {}
            Some(Value::Object(vars)) => conversation = conversation.with_template_vars(vars)?,
            Some(other) => {
                return Err(wrong(format!("`{key}` is {}, expected an object", kind_of(&other))));
            }
        }
    }
    Ok(conversation)
}

/// Returns the value of a key that may be the JSON text of a list or an object: tables have no
/// column for values of any form.
fn json_value(key: &str, given: &Given<'_>) -> Result<Option<Value>> {
    match given.value(key)? {
        // As tables have it where a row has none.
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text.trim_start().starts_with(['[', '{']) => {
            strict(text.as_bytes()).map(Some).map_err(|error| error.prefixed(format!("`{key}`")))
        }
        other => Ok(other),
    }
}
