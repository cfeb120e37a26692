//! `content` that is a list of text parts, as templates see it: a list of mappings that can be
//! walked and not printed.
//!
//! A template that iterates over parts reads the `text` of each. One that takes `content` for a
//! string would print the list as Python shows it, brackets, quotes and all, which no model was
//! trained on: that is refused. The list and each part have types of their own, so that slices and
//! lists made of parts are refused likewise.

use std::sync::Arc;

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr};
use minijinja::{Error, ErrorKind, Value};

/// The cause in the error of a template that would print parts.
#[derive(Debug)]
pub(super) struct PrintsParts;

impl PrintsParts {
    pub(super) const MESSAGE: &'static str =
        "the template prints `content` as it is, and here that is a list of text parts";
    pub(super) const HINT: &'static str = "this template takes text only: join the parts into one string";
}

impl std::fmt::Display for PrintsParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::MESSAGE)
    }
}

impl std::error::Error for PrintsParts {}

/// A list of parts, around minijinja's own list.
#[derive(Debug)]
struct TextParts(DynObject);

/// A part, around minijinja's own mapping.
#[derive(Debug)]
struct TextPart(DynObject);

impl Object for TextParts {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get_value(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.0.enumerate()
    }
}

impl Object for TextPart {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get_value(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.0.enumerate()
    }
}

/// Returns the list of these parts, which are mappings.
pub(super) fn list(parts: impl Iterator<Item = Value>) -> Value {
    let part =
        |part: Value| part.as_object().cloned().map_or(part, |object| Value::from_object(TextPart(object)));
    let list = Value::from(parts.map(part).collect::<Vec<_>>());
    list.as_object().cloned().map_or(list, |object| Value::from_object(TextParts(object)))
}

/// Refuses to print `value` if it is a list of parts or a part.
pub(super) fn refuse_printed(value: &Value) -> Result<(), Error> {
    if value.downcast_object_ref::<TextParts>().is_some() || value.downcast_object_ref::<TextPart>().is_some()
    {
        return Err(Error::new(ErrorKind::InvalidOperation, PrintsParts::MESSAGE).with_source(PrintsParts));
    }
    Ok(())
}
