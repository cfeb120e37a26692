//! The functions and classes that a pickle may name, and what calling them makes. Nothing else can
//! be called, and none of these runs any code of the file.

use safetensors::Dtype;

use super::errors::{damaged, shown, unsupported};
use super::values::{Global, Storage, Tensor, Value, Values};
use crate::error::Result;

/// Bytes of the longest key of a storage, which is a number as PyTorch writes it.
const KEY_BYTES_MAX: usize = 64;

const OTHER_VALUES: &str = "no code of the file was run; if you trust it, load it with torch and save the model by \
                            `save_pretrained`, which writes safetensors";

/// Returns the function or class of a name.
pub(super) fn global(module: &str, name: &str) -> Result<Value> {
    let global = match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", name) if let Some(dtype) = storage_dtype(name) => Global::Storage(dtype),
        _ => {
            let message =
                format!("the pickle wants `{}.{}`, which is no plain tensor", shown(module), shown(name));
            return Err(unsupported(message, OTHER_VALUES));
        }
    };
    Ok(Value::Global(global))
}

fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class.strip_suffix("Storage")? {
        "BFloat16" => Dtype::BF16,
        "Half" => Dtype::F16,
        "Float" => Dtype::F32,
        "Double" => Dtype::F64,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::BOOL,
        _ => return None,
    })
}

/// Returns the result of calling `function` with a tuple of arguments.
pub(super) fn call(values: &mut Values, function: Value, arguments: Value) -> Result<Value> {
    let Value::Tuple(span) = arguments else {
        return Err(damaged(format!("the pickle makes a call with {}, expected a tuple", arguments.kind())));
    };
    match (function, values.tuple(span)) {
        (Value::Global(Global::OrderedDict), []) => Ok(values.add_dict()),
        (Value::Global(Global::OrderedDict), _) => {
            Err(unsupported("the pickle makes an OrderedDict of a list, as Python 2 did", OTHER_VALUES))
        }
        (Value::Global(Global::RebuildTensor), arguments) => {
            let tensor = rebuilt_tensor(values, arguments)?;
            Ok(values.add_tensor(tensor))
        }
        // The tensor, whether it has a gradient, and hooks.
        (Value::Global(Global::RebuildParameter), &[Value::Tensor(tensor), _, _]) => {
            Ok(Value::Tensor(tensor))
        }
        (Value::Global(Global::RebuildParameter), _) => {
            Err(damaged("`torch._utils._rebuild_parameter` is called with other arguments than a tensor's"))
        }
        (Value::Global(Global::Storage(_)), _) => {
            Err(unsupported("the pickle makes a storage of its own", OTHER_VALUES))
        }
        (other, _) => Err(damaged(format!("the pickle calls {}", other.kind()))),
    }
}

/// The arguments are the storage, the offset, shape and strides in elements, whether the tensor has
/// a gradient, hooks, and in some files a dict of properties.
fn rebuilt_tensor(values: &Values, arguments: &[Value]) -> Result<Tensor> {
    use Value::{Int, Tuple};
    let (&[Value::Storage(storage), Int(offset), Tuple(shape), Tuple(strides), _, _]
    | &[Value::Storage(storage), Int(offset), Tuple(shape), Tuple(strides), _, _, _]) = arguments
    else {
        return Err(damaged(
            "`torch._utils._rebuild_tensor_v2` is called with other arguments than a tensor's",
        ));
    };
    let properties = arguments.get(6).copied();
    if !properties.is_none_or(|value| matches!(value, Value::Dict(dict) if values.dicts[dict].is_empty())) {
        return Err(unsupported("a tensor has properties of its own, such as a negative sign", OTHER_VALUES));
    }
    Ok(Tensor { storage, offset, shape, strides })
}

/// Returns the storage of a persistent id, which is the tuple `('storage', class, key, location,
/// elements)`, and in the legacy format ends in None.
pub(super) fn persistent(values: &mut Values, id: Value) -> Result<Value> {
    let Value::Tuple(span) = id else {
        return Err(damaged(format!("a persistent id is {}, expected a storage's tuple", id.kind())));
    };
    let (&[Value::Text(kind), class, Value::Text(key), Value::Text(_), Value::Int(count)]
    | &[Value::Text(kind), class, Value::Text(key), Value::Text(_), Value::Int(count), Value::None]) =
        values.tuple(span)
    else {
        return Err(damaged("a persistent id is another tuple than that of a storage"));
    };
    let key_bytes = values.text(key).len();
    if key_bytes > KEY_BYTES_MAX {
        return Err(damaged(format!(
            "a storage's key has {key_bytes} bytes, expected at most {KEY_BYTES_MAX}"
        )));
    }
    match (values.text(kind), class) {
        ("storage", Value::Global(Global::Storage(dtype))) => {
            Ok(values.add_storage(Storage { dtype, key, count }))
        }
        (kind, _) => {
            Err(damaged(format!("a persistent id is that of a `{}`, expected a storage", shown(kind))))
        }
    }
}

/// Sets the attributes of an object. Those of a dict are read and not used: PyTorch keeps the
/// versions of modules there, as `_metadata`.
pub(super) fn set_attributes(target: Value, state: Value) -> Result<()> {
    match (target, state) {
        (Value::Dict(_), Value::Dict(_)) => Ok(()),
        _ => {
            let message = format!("the pickle sets the state of {} to {}", target.kind(), state.kind());
            Err(unsupported(message, OTHER_VALUES))
        }
    }
}

/// Returns the error for an opcode that makes or calls other objects.
pub(super) fn opcode_error(name: &str, at: usize) -> crate::error::Error {
    let message = format!("the pickle has the opcode {name} at byte {at}, which plain tensors do not need");
    unsupported(message, OTHER_VALUES)
}
