//! Parsers of untrusted bytes, one function for each kind of file: entry points for the fuzzers in
//! `fuzz/` and for the seeded tests in `tests/command/hostile.rs`. Not part of the library's
//! interface.
//!
//! Each takes any bytes and returns true if they were accepted. None may panic, or take much memory
//! or time.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::ModelConfig;
use crate::conversation::{Conversation, Message};
use crate::prompt;
use crate::weights;

/// Reads a safetensors file.
pub fn safetensors(bytes: &[u8]) -> bool {
    weights::accepts_file(bytes)
}

/// Reads a file of `torch.save`, a `pytorch_model.bin`.
pub fn pickle(bytes: &[u8]) -> bool {
    weights::accepts_pickle(bytes)
}

/// Reads a `model.safetensors.index.json`.
pub fn index(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_ok_and(weights::accepts_index)
}

/// Reads a `config.json`.
pub fn config(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_ok_and(|text| ModelConfig::parse(text, Path::new("config.json")).is_ok())
}

/// Reads a `tokenizer_config.json`, whose templates then render a conversation.
pub fn tokenizer_config(bytes: &[u8]) -> bool {
    let config = serde_json::from_slice::<Map<String, Value>>(bytes);
    config.is_ok_and(|config| prompt::render_alone(&config, &conversation()).is_ok())
}

/// Reads a `chat_template.jinja`, which then renders a conversation.
pub fn template(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let config = Map::from_iter([("chat_template".to_owned(), Value::from(text))]);
    prompt::render_alone(&config, &conversation()).is_ok()
}

/// Returns a conversation with the usual roles, and tools.
fn conversation() -> Conversation {
    let tool = serde_json::json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}});
    let messages = vec![Message::system("Be brief."), Message::user("1+1=?"), Message::assistant("2 ü 😀")];
    let conversation = Conversation::new(messages).and_then(|all| all.with_tools(Value::from(vec![tool])));
    conversation.expect("a good conversation")
}
