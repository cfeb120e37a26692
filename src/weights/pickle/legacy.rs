//! The format of PyTorch before 1.6, and of its option `_use_new_zipfile_serialization=False`.
//!
//! Five pickles follow each other: a magic number, the protocol's version, the sizes of types on
//! the machine that wrote it, the tensors, and the keys of storages. Then comes each storage: its
//! number of elements in 8 bytes, and the elements.

use std::collections::HashMap;
use std::ops::Range;

use super::errors::{damaged, shown, unsupported};
use super::machine::{self, Pickled};
use super::tensors;
use super::values::Value;
use crate::error::Result;
use crate::weights::header::Stored;

/// The pickle of the magic number, with which each such file begins.
pub(super) const MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// The version of the protocol, the only one that there has been.
const VERSION: i64 = 1001;

/// The tensors of a whole file's bytes, which begin with [`MAGIC`].
pub(super) fn tensors(file: &[u8]) -> Result<Vec<Stored>> {
    let mut at = MAGIC.len();
    let mut pickle = || {
        let pickled = machine::run(&file[at..])?;
        at += pickled.bytes;
        Ok(pickled)
    };
    let version: Pickled = pickle()?;
    if version.root != Value::Int(VERSION) {
        return Err(damaged(format!("the file is not of version {VERSION} of PyTorch's protocol")));
    }
    refuse_big_endian(&pickle()?)?;
    let model = pickle()?;
    let keys = pickle()?;
    let ranges = storages(file, at, &model, &keys)?;
    tensors::stored(&model.values, model.root, &ranges)
}

fn refuse_big_endian(system: &Pickled) -> Result<()> {
    let little = match system.root {
        Value::Dict(dict) => system.values.entry(dict, "little_endian"),
        _ => None,
    };
    match little {
        Some(Value::Bool(true)) => Ok(()),
        Some(Value::Bool(false)) => Err(unsupported(
            "the file is of a big-endian machine",
            "load it with torch and save it again on a little-endian machine",
        )),
        _ => Err(damaged("the file does not tell the byte order of its elements")),
    }
}

/// Returns the bytes of each storage, which follow each other from byte `at` to the file's end.
fn storages<'a>(
    file: &[u8],
    mut at: usize,
    model: &'a Pickled,
    keys: &Pickled,
) -> Result<HashMap<&'a str, Range<usize>>> {
    let Value::List(list) = keys.root else {
        return Err(damaged(format!("the keys of storages are {}, expected a list", keys.root.kind())));
    };
    let sizes = tensors::storage_sizes(&model.values)?;
    let mut ranges = HashMap::new();
    for &key in &keys.values.lists[list] {
        let Value::Text(key) = key else {
            return Err(damaged(format!("the key of a storage is {}, expected a string", key.kind())));
        };
        let key = keys.values.text(key);
        let Some((&key, size)) = sizes.get_key_value(key) else {
            return Err(damaged(format!("no tensor is in storage `{}`", shown(key))));
        };
        let truncated = || damaged(format!("the file ends in storage `{}`: it is truncated", shown(key)));
        let (count, rest) = file[at..].split_first_chunk::<8>().ok_or_else(truncated)?;
        let count = i64::from_le_bytes(*count);
        if count != size.count {
            let (key, expected) = (shown(key), size.count);
            return Err(damaged(format!(
                "storage `{key}` has {count} elements, but the pickle says {expected}"
            )));
        }
        if size.bytes > rest.len() {
            return Err(truncated());
        }
        let start = file.len() - rest.len();
        at = start + size.bytes;
        if ranges.insert(key, start..at).is_some() {
            return Err(damaged(format!("storage `{}` is in the file twice", shown(key))));
        }
    }
    match file.len() - at {
        0 => Ok(ranges),
        rest => Err(damaged(format!("the last {rest} bytes belong to no storage"))),
    }
}
