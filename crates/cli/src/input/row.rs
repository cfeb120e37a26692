//! A row of a file, and what files have in common.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kudos::internals::request::Reading;
use kudos::{Error, ErrorKind, Result};

/// A row of a file.
pub(super) struct Row {
    /// Its number in the file, from 0.
    pub(super) index: usize,
    /// Bytes of the file up to its end.
    pub(super) end: u64,
    pub(super) text: Result<Vec<u8>>,
    pub(super) reading: Arc<Reading>,
}

/// Messages about the input, in the order in which they were found.
#[derive(Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    /// Adds a message.
    pub(super) fn push(&self, text: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// Returns the messages since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns the error of a path that cannot be opened.
pub(super) fn cannot_open(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, "cannot open the input")
        .caused_by(error)
        .at(path.display())
        .with_hint("name files with one conversation on each line or in each row, or `-` for standard input")
}

/// Returns an error of the input.
pub(super) fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
