//! Errors of files.

use kudos::{Error, ErrorKind};

pub(crate) fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message).with_hint("is the file whole? write or download it again")
}

pub(crate) fn broken(error: &impl std::fmt::Display) -> Error {
    wrong(format!("the file cannot be decoded: {}", error.to_string().trim_end()))
}

pub(crate) fn io(error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("the file cannot be read: {error}"))
}
