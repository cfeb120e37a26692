//! The engine's errors as Python exceptions: those of `kudos/_errors.py`, one class per kind.

use kudos::{Error, ErrorKind};
use pyo3::prelude::*;

/// Returns the exception for an error. `index` is the position of the input that it is about, where
/// there are several.
pub(crate) fn exception(py: Python<'_>, error: &Error, index: Option<usize>) -> PyErr {
    instance(py, error, index).unwrap_or_else(|error| error)
}

fn instance(py: Python<'_>, error: &Error, index: Option<usize>) -> PyResult<PyErr> {
    let classes = py.import("kudos._errors")?.getattr("BY_KIND")?;
    let class = classes.get_item(error.kind().name())?;
    let (tokens, limit) = match error.kind() {
        ErrorKind::TooLong { tokens, limit } => (Some(tokens), Some(limit)),
        _ => (None, None),
    };
    let (message, hint) = (pythonic(error.message()), error.hint().map(pythonic));
    let exception = class.call1((message, error.place(), hint, index, tokens, limit))?;
    Ok(PyErr::from_value(exception))
}

/// Returns a text with the command's options as the arguments that they are in Python:
/// `` `--max-tokens` `` becomes `` `max_tokens` ``, and `` `--truncate left` `` becomes
/// `` `truncate="left"` ``.
fn pythonic(text: &str) -> String {
    let (mut python, mut rest) = (String::new(), text);
    while let Some((before, option)) = rest.split_once("`--") {
        let Some((option, after)) = option.split_once('`') else { break };
        let (name, value) =
            option.split_once(' ').map_or((option, None), |(name, value)| (name, Some(value)));
        python += before;
        python += "`";
        python += &name.replace('-', "_");
        if let Some(value) = value {
            python += &format!("=\"{value}\"");
        }
        python += "`";
        rest = after;
    }
    python + rest
}

/// Returns an error of kind [`ErrorKind::InvalidInput`].
pub(crate) fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
