//! Files that PyTorch writes with `torch.save`: `pytorch_model.bin` and its shards.
//!
//! Such a file is a pickle, a program that makes a dict of tensors, and the elements beside it. In
//! Python a pickle can run any code; here a [machine] knows tensors and nothing else, and what it
//! does not know is an error that names it. As with safetensors, nothing is copied: a tensor is a
//! range of the mapped file, and several tensors may share their bytes.
//!
//! | file | does |
//! |---|---|
//! | `zip/`, `legacy` | find pickle and elements in the formats since and before PyTorch 1.6 |
//! | `machine/`, `calls` | execute the pickle's opcodes and its few calls |
//! | `values` | holds what it makes |
//! | `tensors` | checks that against the file |

mod calls;
mod cursor;
mod errors;
mod legacy;
mod machine;
mod tensors;
mod values;
mod zip;

use std::collections::HashMap;
use std::path::Path;

use errors::{damaged, shown, unsupported};
use zip::Archive;

use super::header::Stored;
use crate::error::{Error, ErrorKind, Result};
use crate::files::refuse_lfs_pointer;

/// Versions of PyTorch's archives that its readers accept.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=10;

/// Longer entries than these are no number and no byte order.
const WORD_BYTES_MAX: usize = 16;

/// The tensors of a whole file's bytes, in the order of their offsets; `path` is only named in
/// errors.
pub(super) fn parse(file: &[u8], path: &Path) -> Result<Vec<Stored>> {
    let tensors = match file {
        _ if file.starts_with(zip::MAGIC) => archived(file),
        _ if file.starts_with(legacy::MAGIC) => legacy::tensors(file),
        _ => Err(no_pickle(file)),
    };
    tensors.map_err(|error| error.at(path.display()))
}

fn no_pickle(file: &[u8]) -> Error {
    let message = "the file begins neither as a zip archive nor as a pickle of PyTorch";
    match refuse_lfs_pointer(file, ErrorKind::Weights) {
        Ok(()) => Error::new(ErrorKind::Weights, message)
            .with_hint("this is no file of `torch.save`, or it is damaged; download it again"),
        Err(pointer) => pointer,
    }
}

/// Tensors of an archive: the entries `data.pkl`, `data/KEY` for each storage, `version` and, in
/// newer files, `byteorder`.
fn archived(file: &[u8]) -> Result<Vec<Stored>> {
    let archive = Archive::open(file)?;
    let entry = |name: &str| {
        archive.find(name).ok_or_else(|| {
            damaged(format!("the zip archive has no entry `{name}`, as each file of `torch.save` has"))
        })
    };
    let word = |bytes: &[u8]| {
        // Copied before it is read: the file might change under its map.
        let bytes = bytes.get(..WORD_BYTES_MAX).unwrap_or(bytes).to_vec();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    };
    let version = word(&file[entry("version")?]);
    if !version.parse().is_ok_and(|version: u32| VERSIONS.contains(&version)) {
        let message = format!("the archive has version {}, expected {VERSIONS:?}", shown(&version));
        return Err(unsupported(message, "save it with another version of torch"));
    }
    let order = archive.find("byteorder").map_or("little".to_owned(), |bytes| word(&file[bytes]));
    if order != "little" {
        let message =
            format!("the archive's elements have byte order `{}`, expected `little`", shown(&order));
        return Err(unsupported(message, "load it with torch and save it again on a little-endian machine"));
    }
    let pickle = entry("data.pkl")?;
    if pickle.len() > machine::PICKLE_BYTES_MAX {
        let limit = machine::PICKLE_BYTES_MAX;
        return Err(damaged(format!("the pickle has {} bytes, expected at most {limit}", pickle.len())));
    }
    let model = machine::run(&file[pickle.clone()])?;
    if model.bytes < pickle.len() {
        return Err(damaged(format!("the pickle ends at its byte {} of {}", model.bytes, pickle.len())));
    }
    let mut ranges = HashMap::new();
    for (key, size) in tensors::storage_sizes(&model.values)? {
        let Some(range) = archive.find(&format!("data/{key}")) else {
            return Err(damaged(format!("the zip archive has no entry for storage `{}`", shown(key))));
        };
        if range.len() != size.bytes {
            let (key, expected, found) = (shown(key), size.bytes, range.len());
            return Err(damaged(format!(
                "storage `{key}` has {expected} bytes, but its zip entry has {found}"
            )));
        }
        ranges.insert(key, range);
    }
    tensors::stored(&model.values, model.root, &ranges)
}

#[cfg(test)]
mod tests;
