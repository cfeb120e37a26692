//! The values that the filter `safe` makes: a text that is printed as it is, and that Jinja2 would escape other text for.
//!
//! Nothing is escaped in chat templates, so `safe` seems to change nothing. But to Jinja2 its result is a `Markup`: `+`, `%`
//! and the methods of strings escape what they join to it, and `repr` shows its type. So it is a value of its own here. It
//! is printed, tested, compared and made into JSON as its text; what else is done to it is an error, unless it is known
//! to be the same in both.

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

/// The text of a `Markup`; `None` for other values.
pub(super) fn text_of(value: &Value) -> Option<&str> {
    value.downcast_object_ref::<Markup>().map(|markup| markup.0.as_str())
}

/// `text`, made of `value` by a filter of which Jinja2's keeps a `Markup` what it is.
pub(super) fn like(state: &State, value: &Value, text: String) -> Result<Value, Error> {
    if text_of(value).is_some() { markup(state, text) } else { Ok(Value::from(text)) }
}

/// `value` to be compared: the text of a `Markup`.
pub(super) fn plain(value: Value) -> Value {
    match text_of(&value) {
        Some(text) => Value::from(text),
        None => value,
    }
}

/// Refuses a `Markup` where Jinja2 would escape other text for it, or treats it in a way that is not implemented.
pub(super) fn refuse(value: &Value) -> Result<(), Error> {
    match text_of(value) {
        Some(_) => Err(unsupported(
            "what went through the filter `safe` can be printed, joined with `~`, tested and compared; \
             anything else may escape text in Jinja2, and is not implemented",
        )),
        None => Ok(()),
    }
}
