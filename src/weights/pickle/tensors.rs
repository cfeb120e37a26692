//! From a pickle's values to tensors in the file: [`Stored`], as a safetensors header gives them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::errors::{damaged, shown, unsupported};
use super::values::{Span, Storage, Tensor, Value, Values};
use crate::error::{Error, Result};
use crate::weights::header::Stored;

/// Tensors in one file, at most.
const TENSORS_MAX: usize = 1 << 17;

/// Bytes of the longest name of a tensor.
const NAME_BYTES_MAX: usize = 4 << 10;

/// Dimensions of a tensor, at most; PyTorch's own limit.
const DIMENSIONS_MAX: usize = 64;

const OTHER_OBJECT: &str = "save the model's `state_dict()` alone";

/// The size of a storage, as the pickle describes it.
pub(super) struct Size {
    /// Elements.
    pub(super) count: i64,
    pub(super) bytes: usize,
}

/// Returns the storages that the pickle names, by their keys.
///
/// # Errors
///
/// When one key has several types or sizes, or a size is more bytes than can be counted.
pub(super) fn storage_sizes(values: &Values) -> Result<HashMap<&str, Size>> {
    let mut declared: HashMap<&str, &Storage> = HashMap::new();
    let mut sizes = HashMap::new();
    for storage in &values.storages {
        let &Storage { dtype, key, count } = storage;
        let key = values.text(key);
        let other = declared.insert(key, storage);
        if other.is_some_and(|other| (other.dtype, other.count) != (dtype, count)) {
            return Err(damaged(format!("storage `{}` has two types or two sizes", shown(key))));
        }
        let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(dtype.bitsize() / 8));
        let bytes = bytes.ok_or_else(|| {
            damaged(format!("storage `{}` has {count} elements, which no file holds", shown(key)))
        })?;
        sizes.insert(key, Size { count, bytes });
    }
    Ok(sizes)
}

/// Returns the tensors of a dict by their names, in the order of their bytes. `ranges` are the
/// bytes of storages in the file, each of the size that [`storage_sizes`] gave.
pub(super) fn stored(
    values: &Values,
    root: Value,
    ranges: &HashMap<&str, Range<usize>>,
) -> Result<Vec<Stored>> {
    let Value::Dict(root) = root else {
        let message = format!("the pickle holds {}, expected a dict of tensors", root.kind());
        return Err(unsupported(message, OTHER_OBJECT));
    };
    let entries = &values.dicts[root];
    if entries.len() > TENSORS_MAX {
        return Err(damaged(format!(
            "the pickle has {} tensors, expected at most {TENSORS_MAX}",
            entries.len()
        )));
    }
    let mut names = HashSet::new();
    let mut tensors = Vec::with_capacity(entries.len());
    for &(key, value) in entries {
        let Value::Text(key) = key else {
            let message = format!("a key of the pickle's dict is {}, expected a tensor's name", key.kind());
            return Err(unsupported(message, OTHER_OBJECT));
        };
        let name = values.text(key);
        if name.len() > NAME_BYTES_MAX {
            let message =
                format!("a tensor's name has {} bytes, expected at most {NAME_BYTES_MAX}", name.len());
            return Err(damaged(message));
        }
        let Value::Tensor(tensor) = value else {
            return Err(other_value(name, value));
        };
        if !names.insert(name) {
            return Err(damaged(format!("tensor `{}` is in the pickle twice", shown(name))));
        }
        tensors.push(placed(values, name, &values.tensors[tensor], ranges)?);
    }
    tensors.sort_by(|a, b| (a.bytes.start, a.bytes.end, &a.name).cmp(&(b.bytes.start, b.bytes.end, &b.name)));
    Ok(tensors)
}

fn other_value(name: &str, value: Value) -> Error {
    let shown = shown(name);
    let message = format!("the pickle has {} as `{shown}`, expected a tensor", value.kind());
    match value {
        Value::Dict(_) => unsupported(
            message,
            &format!(
                "if the model is in there, save it alone: `torch.save(torch.load(file)[\"{shown}\"], file)`"
            ),
        ),
        _ => unsupported(message, OTHER_OBJECT),
    }
}

/// Checks a tensor against its storage.
fn placed(
    values: &Values,
    name: &str,
    tensor: &Tensor,
    ranges: &HashMap<&str, Range<usize>>,
) -> Result<Stored> {
    let Storage { dtype, key, count } = values.storages[tensor.storage];
    let key = values.text(key);
    let damaged = |problem: String| damaged(format!("tensor `{}` {problem}", shown(name)));
    let Some(range) = ranges.get(key) else {
        return Err(damaged(format!("is in storage `{}`, which the file does not have", shown(key))));
    };
    let numbers = |span: Span| -> Option<Vec<usize>> {
        let number = |item: &Value| match *item {
            Value::Int(number) => usize::try_from(number).ok(),
            _ => None,
        };
        values.tuple(span).iter().map(number).collect()
    };
    let dimensions = values.tuple(tensor.shape).len();
    if dimensions > DIMENSIONS_MAX || dimensions != values.tuple(tensor.strides).len() {
        return Err(damaged(format!(
            "has {dimensions} dimensions and {} strides, expected as many of both, at most {DIMENSIONS_MAX}",
            values.tuple(tensor.strides).len()
        )));
    }
    let (Some(shape), Some(strides)) = (numbers(tensor.shape), numbers(tensor.strides)) else {
        return Err(damaged("has a negative size or stride, or one that is no integer".to_owned()));
    };
    let size = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    let elements =
        usize::try_from(tensor.offset).ok().and_then(|start| Some(start..start.checked_add(size?)?));
    let Some(elements) = elements.filter(|range| i64::try_from(range.end).is_ok_and(|end| end <= count))
    else {
        return Err(damaged(format!(
            "with shape {shape:?} begins at element {} of storage `{}`, which has {count}",
            tensor.offset,
            shown(key)
        )));
    };
    if !is_contiguous(&shape, &strides) {
        let message = format!(
            "tensor `{}` with shape {shape:?} has strides {strides:?}: it is not contiguous",
            shown(name)
        );
        return Err(unsupported(message, "save `tensor.contiguous()` in its place"));
    }
    // Both are at most the storage's size, which fits.
    let [start, end] = [elements.start, elements.end].map(|at| range.start + at * (dtype.bitsize() / 8));
    Ok(Stored { name: name.to_owned(), dtype, shape, bytes: start..end })
}

/// Returns true if elements follow each other row by row, as PyTorch's `is_contiguous` does. The
/// product of the sizes must not overflow.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let holds = size == 1 || stride == expected;
        expected *= size;
        holds
    })
}
