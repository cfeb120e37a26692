//! Tokens as the files of a tokenizer give them: Python's `AddedToken`.

use serde_json::{Map, Value as Json};
use tokenizers::AddedToken;

use super::json_file::broken;
use crate::conversation::kind_of;
use crate::error::{Error, Result};

/// A token as a file gives it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    /// `None`: true unless the token is special.
    pub(super) normalized: Option<bool>,
    pub(super) special: bool,
}

impl Token {
    /// Returns the special token with this text.
    pub(super) fn special(content: &str) -> Self {
        Self {
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: None,
            special: true,
        }
    }

    /// Reads a token as Python's `AddedToken(**fields)` does.
    pub(super) fn from_fields(fields: &Map<String, Json>, place: &str) -> Result<Self> {
        let mut token = Self { special: false, ..Self::special("") };
        let mut content = None;
        for (key, value) in fields {
            let flag = || {
                value.as_bool().ok_or_else(|| {
                    broken(format!("`{key}` of a token is {}, expected a boolean", kind_of(value)), place)
                })
            };
            match key.as_str() {
                "content" => content = value.as_str(),
                "single_word" => token.single_word = flag()?,
                "lstrip" => token.lstrip = flag()?,
                "rstrip" => token.rstrip = flag()?,
                "normalized" => token.normalized = Some(flag()?),
                "special" => token.special = flag()?,
                "__type" if value == "AddedToken" => {}
                _ => return Err(broken(format!("a token has no field `{key}`"), place).with_hint(
                    "the fields are `content`, `single_word`, `lstrip`, `rstrip`, `normalized` and `special`",
                )),
            }
        }
        match content {
            Some(content) if !content.is_empty() => {
                token.content = content.to_owned();
                Ok(token)
            }
            _ => Err(broken("a token has no `content`".to_owned(), place)
                .with_hint("`content` is the text of the token: a string that is not empty")),
        }
    }

    /// Returns the token for the tokenizers library.
    pub(super) fn added(self) -> AddedToken {
        AddedToken {
            content: self.content,
            single_word: self.single_word,
            lstrip: self.lstrip,
            rstrip: self.rstrip,
            normalized: self.normalized.unwrap_or(!self.special),
            special: self.special,
        }
    }

    /// Returns a token of the tokenizers library as a file would give it.
    pub(super) fn from_added(token: AddedToken) -> Self {
        Self {
            content: token.content,
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            normalized: Some(token.normalized),
            special: token.special,
        }
    }
}

/// Reads a special token: its text, or an object whose `__type` is `AddedToken`.
pub(super) fn token_of(value: &Json, place: &str) -> Result<Token> {
    match value {
        Json::String(content) => Ok(Token::special(content)),
        Json::Object(fields) if fields.get("__type").is_some_and(|kind| kind == "AddedToken") => {
            Token::from_fields(fields, place)
        }
        other => Err(not_a_token(other, place)),
    }
}

/// Returns the error for a value that is not a token.
pub(super) fn not_a_token(value: &Json, place: &str) -> Error {
    broken(format!("a token is {}, expected a token", kind_of(value)), place).with_hint(
        "write it as a string, or as an object with `content`, which needs `\"__type\": \"AddedToken\"` where it is a special token",
    )
}
