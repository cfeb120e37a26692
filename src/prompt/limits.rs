//! Limits on single values that a template makes, and the error for what is not implemented.

use minijinja::{Error, ErrorKind, Value};

/// Bytes of one string that a template makes, at most. Fuel bounds the sum over all of them, but is
/// charged for a string only when it is there.
pub(super) const TEXT_BYTES_MAX: usize = 64 << 20;

/// Levels of nested lists and mappings, at most, in a value that is kept, compared or printed,
/// which recurses. JSON input has at most 128.
pub(super) const NESTING_MAX: usize = 200;

/// Refuses a string of so many bytes before it is made or extended.
pub(super) fn affordable(bytes: usize) -> Result<(), Error> {
    match bytes <= TEXT_BYTES_MAX {
        true => Ok(()),
        false => Err(unsupported(format!("a string of more than {} MiB", TEXT_BYTES_MAX >> 20))),
    }
}

/// Collects strings, unless they would take more memory than one string may.
pub(super) fn affordable_list<'s>(texts: impl Iterator<Item = &'s str>) -> Result<Vec<&'s str>, Error> {
    let (mut list, mut bytes) = (Vec::new(), 0);
    for text in texts {
        bytes += size_of::<Value>() + text.len();
        affordable(bytes)?;
        list.push(text);
    }
    Ok(list)
}

/// Error for a value with more than [`NESTING_MAX`] levels.
pub(super) fn nested_too_deep() -> Error {
    unsupported(format!("a value with more than {NESTING_MAX} levels of nested lists or mappings"))
}

/// Refuses none, over which Python does not iterate and which minijinja takes for an empty list.
pub(super) fn iterable(value: &Value) -> Result<(), Error> {
    match value.is_none() {
        true => Err(unsupported("none is not iterable")),
        false => Ok(()),
    }
}

/// Error for an operation that would not give Python's result.
pub(super) fn unsupported(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
