//! The JSON files of a tokenizer: reading one, and refusing what only stands in for one.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::error::{Error, ErrorKind, Result};

/// The JSON object that a file holds, if there is such a file.
pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Json>>> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed
        .map(Some)
        .map_err(|error| broken(format!("not a JSON object: {error}"), &path.display().to_string()))
}

/// The bytes of a JSON file, if there is such a file: not those that stand in for one.
pub(super) fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let refused = |what: String| broken(what, &path.display().to_string());
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(format!("the file cannot be read: {error}"))),
        Ok(bytes) => bytes,
    };
    if bytes.starts_with("\u{feff}".as_bytes()) {
        return Err(refused("the file begins with a byte order mark (U+FEFF)".to_owned())
            .with_hint("save it as UTF-8 without a byte order mark"));
    }
    if let Some((what, hint)) = lfs_pointer(&bytes) {
        return Err(refused(what.to_owned()).with_hint(hint));
    }
    Ok(Some(bytes))
}

/// The message and the hint for a file that Git LFS has not fetched; `None` for any other.
pub(super) fn lfs_pointer(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/").then_some((
        "the file is a Git LFS pointer, not the file itself",
        "fetch the file with `git lfs pull`",
    ))
}

/// An error about a tokenizer's file, at `place`.
pub(super) fn broken(what: String, place: &str) -> Error {
    Error::new(ErrorKind::Tokenizer, what).at(place)
}
