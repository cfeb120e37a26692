//! The JSON files of a tokenizer: reading one, and refusing a placeholder such as a git-lfs
//! pointer.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::error::{Error, ErrorKind, Result};
use crate::files::refuse_other_than_json;

/// Reads the JSON object of a file; `None` if the file is missing.
pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Json>>> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed
        .map(Some)
        .map_err(|error| broken("not a JSON object".to_owned(), &path.display().to_string()).caused_by(error))
}

/// Reads a JSON file, and refuses a placeholder; `None` if the file is missing.
pub(super) fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let refused = |what: String| broken(what, &path.display().to_string());
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused("the file cannot be read".to_owned()).caused_by(error)),
        Ok(bytes) => bytes,
    };
    refuse_other_than_json(&bytes, ErrorKind::Tokenizer).map_err(|error| error.at(path.display()))?;
    Ok(Some(bytes))
}

/// Returns an error about a tokenizer's file, at `place`.
pub(super) fn broken(what: String, place: &str) -> Error {
    Error::new(ErrorKind::Tokenizer, what).at(place)
}
