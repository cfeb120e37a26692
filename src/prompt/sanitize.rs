//! `sanitize_control_tokens`: control tokens that users wrote stay text, and only the template's
//! own are tokens.
//!
//! The algorithm of transformers 5.24: control tokens in messages, tools, documents and variables
//! are wrapped in two private-use characters before rendering, and encoded as plain text after it.
//! Keys of objects are not wrapped, and a control token that the template puts together from pieces
//! of input is not seen.

use serde_json::{Map, Value};

use super::tokenizer::Tokenizer;
use crate::error::{Error, ErrorKind, Result};

const START: char = '\u{f0000}';
const END: char = '\u{f0001}';

/// Returns `text` without the wrapping.
pub(super) fn unmarked(text: &str) -> String {
    text.replace([START, END], "")
}

/// Wraps every control token in the strings of these variables.
pub(super) fn mark_vars(vars: &mut Map<String, Value>, control_tokens: &[String]) {
    vars.values_mut().for_each(|value| mark(value, control_tokens));
}

fn mark(value: &mut Value, control_tokens: &[String]) {
    match value {
        Value::String(text) => *text = marked(&unmarked(text), control_tokens),
        Value::Array(items) => items.iter_mut().for_each(|item| mark(item, control_tokens)),
        Value::Object(fields) => mark_vars(fields, control_tokens),
        _ => {}
    }
}

/// Wraps control tokens in `text`, the longest at each place, as a longest-first pattern matches.
fn marked(text: &str, control_tokens: &[String]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let here =
            control_tokens.iter().filter(|token| !token.is_empty() && rest.starts_with(token.as_str()));
        if let Some(token) = here.max_by_key(|token| token.len()) {
            out.push(START);
            out.push_str(token);
            out.push(END);
            rest = &rest[token.len()..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// Returns the ids of a text rendered from marked variables: wrapped tokens are encoded as plain
/// text, the rest as usual. A marker that lost its partner also divides the text.
pub(super) fn encode_marked(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let first = text.find([START, END]).unwrap_or(text.len());
    let mut ids = tokenizer.encode(&text[..first])?;
    let mut rest = &text[first..];
    while let Some(marker) = rest.chars().next() {
        rest = &rest[marker.len_utf8()..];
        let wrapped = rest.split_once(END).filter(|(token, _)| marker == START && tokenizer.is_added(token));
        if let Some((token, tail)) = wrapped {
            let plain = encode_middle(token, |text| tokenizer.encode_plain(text), tokenizer)?;
            if tokenizer.id(token).is_some_and(|id| plain.contains(&id)) {
                let message =
                    format!("{token:?} cannot be sanitized: the tokenizer makes it from plain text too");
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            ids.extend(plain);
            rest = tail;
        }
        let end = rest.find([START, END]).unwrap_or(rest.len());
        if end > 0 {
            ids.extend(encode_middle(&rest[..end], |text| tokenizer.encode(text), tokenizer)?);
        }
        rest = &rest[end..];
    }
    Ok(ids)
}

/// Encodes a piece from the middle of a text behind a line break, whose ids are then removed: some
/// tokenizers treat the start of a text specially.
fn encode_middle(
    piece: &str,
    encode: impl Fn(&str) -> Result<Vec<u32>>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let line_break = tokenizer.encode("\n")?;
    let ids = encode(&format!("\n{piece}"))?;
    match ids.strip_prefix(line_break.as_slice()) {
        Some(ids) => Ok(ids.to_vec()),
        None => encode(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn long_control_tokens_are_wrapped_and_forged_markers_dropped() {
        let tokens = ["<a>", "<a><b>", "<"].map(str::to_owned);
        assert_eq!(marked("x<a><b>é<a>", &tokens), "x\u{f0000}<a><b>\u{f0001}é\u{f0000}<a>\u{f0001}");
        let mut vars = Map::from_iter([("m".to_owned(), json!([{"<a>": "\u{f0000}<\u{f0001}a>", "n": 1}]))]);
        mark_vars(&mut vars, &tokens);
        assert_eq!(vars["m"], json!([{"<a>": "\u{f0000}<a>\u{f0001}", "n": 1}]));
        assert_eq!(unmarked("\u{f0000}<a>\u{f0001}"), "<a>");
    }
}
