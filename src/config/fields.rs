//! Typed reading of a JSON object, with errors that name the field, its value and the expectation.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// The fields of `config.json`, or of one object inside it.
pub(super) struct Fields<'a> {
    values: &'a Map<String, Value>,
    /// The name of the object, when it is not the whole file.
    inside: Option<&'static str>,
    file: &'a Path,
}

impl<'a> Fields<'a> {
    /// The fields of the whole file.
    pub(super) fn new(values: &'a Map<String, Value>, file: &'a Path) -> Self {
        Self { values, inside: None, file }
    }

    /// The object called `name`; `None` when it is missing, null or empty.
    pub(super) fn section(&self, name: &'static str) -> Result<Option<Fields<'a>>> {
        match self.values.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(values)) if values.is_empty() => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Fields { values, inside: Some(name), file: self.file })),
            Some(_) => Err(self.wrong(name, "an object")),
        }
    }

    /// Field names and values, in the file's order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.values.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The value of a field, null included.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.values.get(name)
    }

    /// Returns true if a field is missing or null.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.value(name).is_none_or(Value::is_null)
    }

    /// A size: a whole number from 1 to `max`. Null is not a size: transformers refuses it, too.
    pub(super) fn count(&self, name: &str, default: Option<usize>, max: usize) -> Result<usize> {
        let found = match (self.value(name), default) {
            (None, Some(default)) => return Ok(default),
            (value, _) => value.and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok()),
        };
        found
            .filter(|count| (1..=max).contains(count))
            .ok_or_else(|| self.wrong(name, &format!("a whole number from 1 to {max}")))
    }

    /// A finite number above zero.
    pub(super) fn positive(&self, name: &str, default: Option<f64>) -> Result<f64> {
        let found = match (self.value(name), default) {
            (None, Some(default)) => return Ok(default),
            (value, _) => value.and_then(Value::as_f64),
        };
        found
            .filter(|number| *number > 0.0 && number.is_finite())
            .ok_or_else(|| self.wrong(name, "a number above zero"))
    }

    /// True or false; false when it is missing.
    pub(super) fn flag(&self, name: &str) -> Result<bool> {
        match self.value(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    /// A string; `None` when it is missing.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    /// A list of strings; empty when it is missing or null.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'a str>> {
        let wrong = || self.wrong(name, "a list of strings");
        match self.value(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().ok_or_else(wrong)).collect::<Result<_>>()
            }
            Some(_) => Err(wrong()),
        }
    }

    /// A field's full name in messages.
    pub(super) fn name(&self, field: &str) -> String {
        match self.inside {
            Some(section) => format!("`{section}.{field}`"),
            None => format!("`{field}`"),
        }
    }

    /// An error about this file.
    pub(super) fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, message).at(self.file.display())
    }

    /// Returns the error for a field that is missing or has a wrong value.
    pub(super) fn wrong(&self, field: &str, expected: &str) -> Error {
        let found = match self.value(field) {
            None => "missing".to_owned(),
            Some(value) => shown(value),
        };
        self.error(ErrorKind::Config, format!("{} is {found}, expected {expected}", self.name(field)))
    }
}

/// A JSON value on one line, cut when it is long.
pub(super) fn shown(value: &Value) -> String {
    const CHARS_MAX: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
