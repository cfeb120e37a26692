//! JSON text of requests: the keys of an object with their values, each read when it is needed, and
//! the errors of text that is not JSON.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use super::keys::{Columns, wrong};
use crate::conversation::kind_of;
use crate::error::{Error, Result};

/// Reads a JSON value in which no object has a key twice.
pub fn strict(bytes: &[u8]) -> Result<Value> {
    let text = text_of(bytes)?;
    match serde_json::from_str(text) {
        Ok(Strict(value)) => Ok(value),
        Err(error) if error.is_data() => Err(wrong(error.to_string())),
        Err(error) => Err(not_json(text, &error)),
    }
}

/// Returns the JSON text of an object, without byte order marks before it: RFC 8259 (8.1) allows to
/// ignore one, and files concatenated by `cat` have one in their middle.
pub(super) fn text_of(bytes: &[u8]) -> Result<&str> {
    let text = str::from_utf8(bytes).map_err(|error| {
        wrong(format!("the text is not UTF-8 at byte {}", error.valid_up_to() + 1))
            .with_hint("JSON is written in UTF-8: convert it, as with `iconv -t UTF-8`")
    })?;
    Ok(text.trim_start_matches(BYTE_ORDER_MARK).trim_ascii())
}

/// U+FEFF, which some programs write before a text.
pub const BYTE_ORDER_MARK: char = '\u{feff}';

/// The keys of an object that are read here, with their values' text. Nulls are left out.
#[derive(Debug)]
pub(super) struct Given<'a> {
    text: &'a str,
    values: Vec<(&'static str, &'a RawValue)>,
    /// Keys that came twice.
    repeated: Vec<&'static str>,
}

impl<'a> Given<'a> {
    /// Reads an object whose keys have the names of `columns`.
    pub(super) fn read(text: &'a str, columns: &Columns) -> Result<Self> {
        if !text.starts_with('{') {
            let other: Value = serde_json::from_str(text).map_err(|error| not_json(text, &error))?;
            let error = wrong(format!("the text is {}, expected an object", kind_of(&other)));
            return Err(if other.is_array() { error.with_hint(ARRAY_HINT) } else { error });
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let keys = KeysSeed(columns).deserialize(&mut deserializer);
        let keys = keys.and_then(|keys| deserializer.end().map(|()| keys));
        let Keys { values, repeated } = keys.map_err(|error| not_json(text, &error))?;
        Ok(Self { text, values, repeated })
    }

    /// Leaves out all keys but these.
    pub(super) fn keep(&mut self, keep: impl Fn(&str) -> bool) {
        self.values.retain(|(key, _)| keep(key));
        self.repeated.retain(|key| keep(key));
    }

    /// Returns a key that came twice.
    pub(super) fn repeated(&self) -> Option<&'static str> {
        self.repeated.first().copied()
    }

    /// Returns the text of a key's value.
    pub(super) fn raw(&self, key: &str) -> Option<&'a RawValue> {
        self.values.iter().find(|(name, _)| *name == key).map(|(_, raw)| *raw)
    }

    /// Returns whether the object has a key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.raw(key).is_some()
    }

    /// Returns the text of the value of `key`, without line breaks: they can only be space between
    /// the items of a list, and would break the output line. `None` for a key that comes twice.
    pub(super) fn id(&self, key: &str) -> Option<Box<RawValue>> {
        let mut ids = self.values.iter().filter(|(name, _)| *name == key);
        let (_, raw) = ids.next().filter(|_| ids.next().is_none())?;
        if !raw.get().contains(['\r', '\n']) {
            return Some((*raw).to_owned());
        }
        RawValue::from_string(raw.get().replace(['\r', '\n'], "")).ok()
    }

    /// Returns the value of a key. An object in it that has a key twice is an error; most parsers
    /// keep the last.
    pub(super) fn value(&self, key: &str) -> Result<Option<Value>> {
        let Some(raw) = self.raw(key) else { return Ok(None) };
        let text = raw.get();
        match serde_json::from_str(text) {
            Ok(Strict(value)) => Ok(Some(value)),
            Err(error) if error.is_data() => {
                let message = error.to_string();
                Err(wrong(format!("`{key}`: {}", message.split(" at line ").next().unwrap_or_default())))
            }
            Err(error) => {
                let start = text.as_ptr().addr() - self.text.as_ptr().addr();
                let place = (error.line() == 1).then(|| start + error.column());
                Err(not_json_at(self.text, &error, place).prefixed(format!("`{key}`")))
            }
        }
    }
}

pub(super) const ARRAY_HINT: &str =
    "a JSON array is not JSON lines: write one object per line, as `jq -c '.[]'` does";

fn not_json(text: &str, error: &serde_json::Error) -> Error {
    not_json_at(text, error, (error.line() == 1).then(|| error.column()))
}

/// Returns the error of text that is not JSON, at a `column` from 1 if the text is one line.
fn not_json_at(text: &str, error: &serde_json::Error, column: Option<usize>) -> Error {
    let full = error.to_string();
    let reason = full.split(" at line ").next().unwrap_or_default();
    let place = column.map_or_else(
        || format!("line {}, column {}", error.line(), error.column()),
        |column| format!("column {column}"),
    );
    let at = column.unwrap_or(0).saturating_sub(1);
    let follows = |word: &str| text.get(at..).is_some_and(|rest| rest.starts_with(word));
    if let Some(word) = ["NaN", "Infinity"].into_iter().find(|word| follows(word)) {
        let sign = if text[..at].ends_with('-') { "-" } else { "" };
        return wrong(format!("the text is not JSON: it has {sign}{word}, {place}")).with_hint(
            "Python's json module writes NaN and Infinity, which are not JSON: write null instead, or leave the key \
             out (`json.dumps(.., allow_nan=False)` finds them)",
        );
    }
    if reason.contains("surrogate") || reason.contains("end of hex escape") {
        return wrong(format!("the text has half of a character, a lone surrogate such as \\ud83d, {place}"))
            .with_hint(
                "the text was cut within an emoji or another character beyond 16 bits: cut it at a whole one",
            );
    }
    let error_text = format!("the text is not JSON: {reason}, {place}");
    let error = match text.as_bytes().first() {
        Some(b'[') => return wrong(error_text).with_hint(ARRAY_HINT),
        Some(b'{') if error.is_eof() => wrong(error_text)
            .with_hint("each line holds one whole JSON object; `jq -c .` puts an object on one line"),
        _ => wrong(error_text),
    };
    match error.hint() {
        Some(_) => error,
        None => {
            error.with_hint("a conversation is one JSON object on one line, such as {\"messages\": [..]}")
        }
    }
}

/// The deserialized form of [`Given`].
struct Keys<'a> {
    values: Vec<(&'static str, &'a RawValue)>,
    repeated: Vec<&'static str>,
}

/// Reads [`Keys`].
struct KeysSeed<'a>(&'a Columns);

impl<'de> DeserializeSeed<'de> for KeysSeed<'_> {
    type Value = Keys<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Keys<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for KeysSeed<'_> {
    type Value = Keys<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> std::result::Result<Keys<'de>, A::Error> {
        let mut keys = Keys { values: Vec::new(), repeated: Vec::new() };
        while let Some(key) = object.next_key::<String>()? {
            let Some(key) = self.0.key(&key) else {
                object.next_value::<IgnoredAny>()?;
                continue;
            };
            let raw = object.next_value::<&'de RawValue>()?;
            if raw.get() == "null" {
                continue;
            }
            if keys.values.iter().any(|(other, _)| *other == key) {
                keys.repeated.push(key);
            }
            keys.values.push((key, raw));
        }
        Ok(keys)
    }
}

/// A value in which no object has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::from(value)))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Strict, E> {
        Ok(Strict(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::from(value)))
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Strict, E> {
        Ok(Strict(Value::String(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Strict, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Strict(Value::Array(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> std::result::Result<Strict, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("an object has the key `{key}` twice")));
            }
            let Strict(value) = object.next_value()?;
            fields.insert(key, value);
        }
        Ok(Strict(Value::Object(fields)))
    }
}
