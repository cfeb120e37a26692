//! Preference pairs: `chosen` and `rejected`, in the three ways in which data sets have a prompt.
//!
//! - A list that begins with a system or user turn is a whole conversation. A `prompt` beside it
//!   repeats its beginning.
//! - A list of other turns, one turn, or a string follows what is before it: `prompt`,
//!   `conversations` or `instruction`.

use serde_json::Value;

use super::form::Request;
use super::json::Given;
use super::keys::wrong;
use super::own::with_extras;
use super::{datasets, own};
use crate::conversation::{Conversation, Message, kind_of};
use crate::error::Result;

/// Reads a row with `chosen` and `rejected`.
pub(super) fn request(given: &Given<'_>) -> Result<Request> {
    if let Some(key) =
        ["input", "history"].into_iter().find(|key| given.has(key) && !given.has("instruction"))
    {
        return Err(wrong(format!("`{key}` is given, but no `instruction` that it belongs to"))
            .with_hint("leave it out, or make it a part of the `prompt`"));
    }
    let before = before(given)?;
    let chosen = side("chosen", before.as_deref(), given)?;
    let rejected = side("rejected", before.as_deref(), given)?;
    if let Some(list) = given.value("messages")? {
        let repeated = own::messages(list, "messages")?;
        if repeated != chosen && repeated != rejected {
            return Err(wrong("`messages` is neither `chosen` nor `rejected`, and would not be read")
                .with_hint("leave out `messages`, or the pair; for a file, `--rows` names what is meant"));
        }
    }
    let conversation = |turns| with_extras(Conversation::new(turns)?, given);
    Ok(Request::Pair { chosen: conversation(chosen)?, rejected: conversation(rejected)? })
}

/// Returns the turns before the two sides, where the row has them apart.
fn before(given: &Given<'_>) -> Result<Option<Vec<Message>>> {
    let keys: Vec<&str> =
        ["prompt", "conversations", "instruction"].into_iter().filter(|key| given.has(key)).collect();
    match keys[..] {
        [] if given.value("system")?.is_some_and(|system| system != "") => {
            let error = wrong("`system` is given, but no `prompt` that it would precede");
            Err(error.with_hint("make it the first turn of `chosen` and `rejected`"))
        }
        [] => Ok(None),
        ["prompt"] => {
            let turns = own::prompt(given)?.unwrap_or_default();
            Ok(Some(datasets::after_system(turns, given)?))
        }
        ["conversations"] => Ok(Some(datasets::turns_of_conversations(given)?)),
        [_] => Ok(Some(datasets::turns_of_instruction(given)?)),
        [one, other, ..] => {
            Err(wrong(format!("`{one}` and `{other}` are given at once, expected one of them")))
        }
    }
}

/// Returns all turns of a side, `chosen` or `rejected`.
fn side(key: &str, before: Option<&[Message]>, given: &Given<'_>) -> Result<Vec<Message>> {
    let turns = match given.value(key)? {
        Some(Value::String(text)) => vec![Message::assistant(text)],
        Some(turn @ Value::Object(_)) => {
            vec![datasets::turn(turn).map_err(|error| error.prefixed(format!("`{key}`")))?]
        }
        Some(Value::Array(list)) if !list.is_empty() => datasets::turns(list, key)?,
        other => {
            let kind = kind_of(&other.unwrap_or_default());
            return Err(wrong(format!("`{key}` is {kind}, expected a string or a list of messages")));
        }
    };
    if own::is_whole(&turns) {
        own::begins_with(&turns, key, before, given)?;
        return Ok(turns);
    }
    let Some(before) = before else {
        let error = wrong(format!("`{key}` is a response, but the row has no `prompt` before it"));
        return Err(error.with_hint(
            "give the `prompt`, or conversations that begin with a user turn; a string with all turns in it has to be \
             taken apart",
        ));
    };
    if before.is_empty() {
        return Err(wrong(format!("`{key}` is a response, but what is before it has no turns")));
    }
    Ok(before.iter().cloned().chain(turns).collect())
}
