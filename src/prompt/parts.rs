//! `content` that is a list of text parts, as templates see it: a list of mappings that can be walked and not printed.
//!
//! A template that goes through parts reads the `text` of each. One that takes `content` for a string would print the list
//! as Python shows it, brackets, quotes and all, which no model was trained on: that is refused. The list and each part
//! say of themselves what they are, so that slices and lists made of parts are refused likewise.

use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr};
use minijinja::{Error, ErrorKind, Value};

/// Why a template's rendering ended: it would have printed parts.
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

#[derive(Debug)]
struct Parts(Vec<Value>);

impl Object for Parts {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }
}

#[derive(Debug)]
struct Part(Vec<(Value, Value)>);

impl Object for Part {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(name, _)| name.clone()).collect())
    }
}

/// A list of parts, each with its keys and values in order.
pub(super) fn list(parts: impl Iterator<Item = Vec<(Value, Value)>>) -> Value {
    Value::from_object(Parts(parts.map(|part| Value::from_object(Part(part))).collect()))
}

/// Refuses to print `value` if it is a list of parts, or one of them.
pub(super) fn refuse_printed(value: &Value) -> Result<(), Error> {
    if value.downcast_object_ref::<Parts>().is_some() || value.downcast_object_ref::<Part>().is_some() {
        return Err(Error::new(ErrorKind::InvalidOperation, PrintsParts::MESSAGE).with_source(PrintsParts));
    }
    Ok(())
}
