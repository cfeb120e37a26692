//! The value that the filter `safe` makes: a string that is printed as it is, and to which Jinja2
//! joins only escaped text.
//!
//! Nothing is escaped in chat templates, so `safe` seems to change nothing. But to Jinja2 its
//! result is a `Markup`: `+`, `%` and the methods of strings escape what they join to it, and
//! `repr` shows its type. So it is a value of its own here. It is printed, tested, compared and
//! made into JSON as its text; any other operation is an error, unless it is known to give the same
//! in both.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr};
use minijinja::{Error, State, Value};

use super::limits::unsupported;

#[derive(Debug)]
struct Markup(String);

impl Object for Markup {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        !self.0.is_empty()
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns `text` as a `Markup`, and charges for it as minijinja does for a string.
pub(super) fn markup(state: &State, text: String) -> Result<Value, Error> {
    state.consume_fuel(text.len() as u64 / 64)?;
    Ok(Value::from_object(Markup(text)))
}

/// Returns the text of a `Markup`; `None` for other values.
pub(super) fn text_of(value: &Value) -> Option<&str> {
    value.downcast_object_ref::<Markup>().map(|markup| markup.0.as_str())
}

/// Returns `text`, as a `Markup` if `value` is one: for filters whose result in Jinja2 has the type
/// of their input.
pub(super) fn like(state: &State, value: &Value, text: String) -> Result<Value, Error> {
    if text_of(value).is_some() { markup(state, text) } else { Ok(Value::from(text)) }
}

/// Returns the text of a `Markup` as a string, and other values unchanged.
pub(super) fn plain(value: Value) -> Value {
    match text_of(&value) {
        Some(text) => Value::from(text),
        None => value,
    }
}

/// Refuses a `Markup` in an operation for which Jinja2 escapes text, or that is not implemented for
/// it.
pub(super) fn refuse(value: &Value) -> Result<(), Error> {
    match text_of(value) {
        Some(_) => Err(unsupported(
            "a result of the filter `safe` can be printed, joined with `~`, tested and compared; \
             other operations may escape text in Jinja2, and are not implemented",
        )),
        None => Ok(()),
    }
}
