//! The header of a safetensors file: its tensors and their offsets.
//!
//! A file is 8 bytes of little-endian header length, a JSON header, and the tensors' bytes back to
//! back. The types are the `safetensors` crate's, the validation is ours, for three reasons: the
//! crate's reader takes the last of two tensors with one name, it does not say which tensor is
//! wrong and how, and its sum of offsets and header length can overflow (sixteen tensors of 2^60
//! bytes), which is a panic in builds that check for it. What is accepted here is accepted there,
//! too; a test holds the two together.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, ErrorKind, Result};
use crate::files::refuse_lfs_pointer;

/// Bytes of the length in front of the header.
const LENGTH_BYTES: usize = 8;

/// The longest header that is read. The 70B's 723 tensors need about 90 KB in all.
const HEADER_BYTES_MAX: usize = 16 << 20;

/// One tensor as the header describes it, checked: `bytes` lies inside the file and has the size of
/// the shape.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) bytes: Range<usize>,
}

/// The tensors of a whole file's bytes, in the order of their offsets; `path` is only named in
/// errors.
pub(super) fn parse(file: &[u8], path: &Path) -> Result<Vec<Stored>> {
    let text = header_text(file).map_err(|error| error.at(path.display()))?;
    let Header(mut tensors) = serde_json::from_str(&text).map_err(|error| {
        damaged("the safetensors header cannot be parsed".to_owned()).caused_by(error).at(path.display())
    })?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let start = LENGTH_BYTES + text.len();
    let stored = place(tensors, start, file.len() - start).map_err(|error| error.at(path.display()))?;
    Ok(stored)
}

/// Returns a copy of the header: the file might change under a map, and a `str` must stay valid.
fn header_text(file: &[u8]) -> Result<String> {
    refuse_lfs_pointer(file, ErrorKind::Weights)?;
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(damaged(format!("the file has {} bytes, too few for a safetensors header", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let Some(length) = usize::try_from(length).ok().filter(|length| *length <= HEADER_BYTES_MAX) else {
        let message = format!("the header claims {length} bytes, expected at most {HEADER_BYTES_MAX}");
        return Err(Error::new(ErrorKind::Weights, message)
            .with_hint("this is not a safetensors file, or it is damaged; download it again"));
    };
    let Some(header) = rest.get(..length) else {
        return Err(damaged(format!("the header claims {length} bytes, but only {} follow", rest.len())));
    };
    String::from_utf8(header.to_vec()).map_err(|_| damaged("the safetensors header is not UTF-8"))
}

/// Checks that tensors, sorted by their offsets, lie back to back and fill the file.
fn place(tensors: Vec<(String, TensorInfo)>, start: usize, data_bytes: usize) -> Result<Vec<Stored>> {
    let mut stored: Vec<Stored> = Vec::with_capacity(tensors.len());
    let mut end_before = 0;
    for (name, info) in tensors {
        let (begin, end) = info.data_offsets;
        let size = size_bytes(&info);
        if size.is_none() || end.checked_sub(begin) != size {
            let size = size.map_or("more than any file has".to_owned(), |size| size.to_string());
            return Err(damaged(format!(
                "tensor `{name}` lies at bytes {begin}..{end}, expected {size} bytes for {} {:?}",
                info.dtype, info.shape
            )));
        }
        if begin > end_before {
            return Err(damaged(format!(
                "bytes {end_before}..{begin} before tensor `{name}` belong to no tensor"
            )));
        }
        if begin < end_before {
            let other = stored.last().map_or("", |stored| &stored.name);
            return Err(damaged(format!("tensors `{other}` and `{name}` overlap at byte {begin}")));
        }
        if end > data_bytes {
            return Err(damaged(format!(
                "tensor `{name}` ends at byte {end} of the data, but the file holds {data_bytes}: it is truncated"
            )));
        }
        end_before = end;
        stored.push(Stored { name, dtype: info.dtype, shape: info.shape, bytes: start + begin..start + end });
    }
    if end_before < data_bytes {
        return Err(damaged(format!("the last {} bytes belong to no tensor", data_bytes - end_before)));
    }
    Ok(stored)
}

/// Bytes of a shape; `None` when that overflows or is no whole number of bytes (types of 4 and 6
/// bits).
fn size_bytes(info: &TensorInfo) -> Option<usize> {
    let values = info.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))?;
    let bits = values.checked_mul(info.dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn damaged(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Weights, message).with_hint("the file is damaged or incomplete; download it again")
}

/// The header's entries without `__metadata__`; a name that comes twice is an error.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut names = HashSet::new();
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("tensor `{name}` is listed twice")));
            }
            if name == "__metadata__" {
                map.next_value::<Option<HashMap<String, String>>>()?;
            } else {
                tensors.push((name, map.next_value::<TensorInfo>()?));
            }
        }
        Ok(Header(tensors))
    }
}

#[cfg(test)]
mod tests;
