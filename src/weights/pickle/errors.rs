//! Errors of files that PyTorch wrote. The place of each is added where the file's name is known.

use crate::error::{Error, ErrorKind};

/// Characters of a name from a file that an error prints, at most.
const CHARS_MAX: usize = 200;

/// Returns the error for a file that contradicts itself or its format.
pub(super) fn damaged(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Weights, message).with_hint("the file is damaged or incomplete; download it again")
}

/// Returns the error for something that PyTorch can write and that is not read.
pub(super) fn unsupported(message: impl Into<String>, hint: &str) -> Error {
    Error::new(ErrorKind::Unsupported, message).with_hint(hint)
}

/// Returns a name from a file as an error prints it: without control characters, and cut where it
/// is long.
pub(super) fn shown(name: &str) -> String {
    let mut characters = name.chars();
    let start: String = characters.by_ref().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    if characters.next().is_some() { start + ".." } else { start }
}
