//! Requests: one JSON object -> the input to score.
//!
//! ```json
//! {"messages": [...]}                                            the last turn is judged
//! {"messages": [...], "response": "..."}                         or "responses": the assistant turn
//! {"prompt": "..." | [messages], "responses": ["...", ...]}      or one "response"
//! {"input_ids": [...], "attention_mask": [...]}                  the mask is optional
//! {"chosen": ..., "rejected": ...}                               and the other rows of [`rows`]
//! ```
//!
//! each with an optional `id`; conversations also with `tools`, `documents` and `template_vars` (or
//! `chat_template_kwargs`, another name for the same) for the chat template. `null` is absence for
//! every key.
//!
//! A key that would have to be ignored is an error: keys that contradict each other, keys that come
//! twice, and keys that mean something to other systems (`ELSEWHERE` in [`keys`]). All other keys
//! belong to the user and are not read.

mod datasets;
mod form;
mod json;
mod keys;
mod own;
mod pairs;
mod rows;
#[cfg(test)]
mod tests;

pub use form::{Form, Input, Parsed, Request, Responses};
pub use json::{BYTE_ORDER_MARK, strict};
pub use keys::{Columns, is_read};
pub use rows::{Reading, Rows, Shape};

/// Limit on the bytes of an object's text in a file; a longer one is an error of it. A file that is
/// not of objects may be one long text, and must not end up in memory.
pub const TEXT_BYTES_MAX: u64 = 256 << 20;

/// Reads the JSON text of one object, by its own keys. Every error is one of
/// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput).
pub fn parse(bytes: &[u8]) -> Parsed {
    Reading::default().parse(bytes)
}
