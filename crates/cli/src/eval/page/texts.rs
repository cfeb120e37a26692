//! Texts of an item: its responses, and the turns before them.

use serde_json::Value;

use kudos::internals::request::{self, Input};
use kudos::{Conversation, Message};

/// The responses of an item, in the order of their scores, and the turns that they share.
#[derive(Debug, PartialEq)]
pub(super) struct Texts {
    pub(super) prompt: Vec<Turn>,
    pub(super) responses: Vec<String>,
}

/// One turn.
#[derive(Debug, PartialEq)]
pub(super) struct Turn {
    pub(super) role: String,
    pub(super) text: String,
}

impl Texts {
    /// Reads the texts of an item's requests; `None` where these cannot be read.
    pub(super) fn read(requests: &[String]) -> Option<Self> {
        let mut conversations = Vec::new();
        for request in requests {
            for input in request::parse(request.as_bytes()).request.ok()?.into_inputs() {
                match input {
                    Input::Conversation(conversation) => conversations.push(conversation),
                    Input::Tokens(_) => return None,
                }
            }
        }
        let first = conversations.first()?;
        let shared = conversations.iter().map(|other| shared_turns(first, other)).min()?;
        let turn = |message: &Message| Turn { role: message.role().to_owned(), text: text(message) };
        let response = |conversation: &Conversation| {
            let texts: Vec<String> = conversation.messages()[shared..].iter().map(text).collect();
            texts.join("\n\n")
        };
        Some(Self {
            prompt: first.messages()[..shared].iter().map(turn).collect(),
            responses: conversations.iter().map(response).collect(),
        })
    }

    /// Returns the number of characters of each response.
    pub(super) fn lengths(&self) -> Vec<usize> {
        self.responses.iter().map(|response| response.chars().count()).collect()
    }
}

/// Returns the number of turns that two conversations begin with, without the last of either.
fn shared_turns(first: &Conversation, other: &Conversation) -> usize {
    let (first, other) = (first.messages(), other.messages());
    let before_last = first.len().min(other.len()) - 1;
    first[..before_last].iter().zip(other).take_while(|(first, other)| first == other).count()
}

/// Returns the text of a turn: its content, or the calls of tools in its place, as JSON unless they
/// are text.
fn text(message: &Message) -> String {
    let fields = message.fields();
    match fields.get("content").or_else(|| fields.get("tool_calls")) {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) if parts.iter().all(|part| part["text"].is_string()) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect()
        }
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(request: Value) -> Option<Texts> {
        Texts::read(&[request.to_string()])
    }

    fn turn(role: &str, text: &str) -> Turn {
        Turn { role: role.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn responses_follow_the_turns_of_their_prompt() {
        let texts = read(json!({"prompt": "q", "responses": ["ä", "bcd"]})).unwrap();
        assert_eq!(texts.prompt, [turn("user", "q")]);
        assert_eq!((texts.lengths(), texts.responses), (vec![1, 3], vec!["ä".to_owned(), "bcd".to_owned()]));
        let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}]);
        let texts = read(json!({"messages": messages, "responses": ["a"]})).unwrap();
        assert_eq!(texts.prompt, [turn("system", "s"), turn("user", "q")]);
    }

    #[test]
    fn a_pair_shares_the_turns_before_they_differ() {
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let chosen = [
            message("user", "q"),
            message("assistant", "a"),
            message("user", "more"),
            message("assistant", "b"),
        ];
        let rejected = [message("user", "q"), message("assistant", "c")];
        let texts = read(json!({"chosen": chosen, "rejected": rejected})).unwrap();
        assert_eq!(texts.prompt, [turn("user", "q")]);
        assert_eq!(texts.responses, ["a\n\nmore\n\nb", "c"]);
        // Equal conversations still have a response.
        let texts = read(json!({"chosen": rejected, "rejected": rejected})).unwrap();
        assert_eq!(texts.responses, ["c", "c"]);
    }

    #[test]
    fn texts_that_cannot_be_read_are_none() {
        assert_eq!(read(json!({"messages": [{"content": "no role"}], "responses": ["a"]})), None);
        assert_eq!(read(json!({"input_ids": [1, 2]})), None);
        assert_eq!(Texts::read(&[]), None);
    }
}
