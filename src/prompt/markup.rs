//! The values that the filter `safe` makes: a text that is printed as it is, and that Jinja2 would escape other text for.
//!
//! Nothing is escaped in chat templates, so `safe` seems to change nothing. But to Jinja2 its result is a `Markup`: `+`, `%`
//! and the methods of strings escape what they join to it, and `repr` shows its type. So it is a value of its own here. It
//! is printed, tested, compared and made into JSON as its text; what else is done to it is an error, unless it is known
//! to be the same in both.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr};
use minijinja::{Error, ErrorKind, State, Value};

use super::cost;
use super::methods;
use super::python::unsupported;

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

/// `text` as a `Markup`, at the price of a text.
pub(super) fn markup(state: &State, text: String) -> Result<Value, Error> {
    cost::charge_held(state, text.len())?;
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

/// A method of a `Markup`, of those that escape nothing.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = text_of(value) else { return Err(ErrorKind::UnknownMethod.into()) };
    let keeps = matches!(method, "strip" | "lstrip" | "rstrip" | "upper" | "lower" | "capitalize");
    let asks =
        matches!(method, "startswith" | "endswith" | "find" | "rfind" | "count" | "isspace" | "isascii");
    if !(asks || keeps && args.is_empty()) {
        refuse(value)?;
    }
    cost::charge_held(state, text.len())?;
    let result = methods::call(state, &Value::from(text), method, args)?;
    match result.as_str() {
        Some(text) if keeps => markup(state, text.to_owned()),
        _ => Ok(result),
    }
}
