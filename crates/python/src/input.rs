//! Python objects -> requests, by way of the JSON that a line of the command's input has: the same
//! keys are read, and the same are refused.

use kudos::Result;
use kudos::internals::request::{self, Request};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyIterator, PyList, PyString, PyTuple};

use serde_json::Value;

use crate::errors::{exception, wrong};

/// Most levels of nesting: fewer than serde_json reads.
const DEPTH_MAX: usize = 100;

/// The argument of `score`: what has one result, or a list of such.
pub(crate) enum Inputs<'py> {
    /// A conversation, or an object with one.
    One(Bound<'py, PyAny>),
    /// An iterator over them.
    Each(Bound<'py, PyIterator>),
}

impl<'py> Inputs<'py> {
    /// Tells a conversation, which is a list of messages, from a list of conversations by its first
    /// item: a message has a `role`.
    pub(crate) fn new(object: Bound<'py, PyAny>) -> PyResult<Self> {
        if object.is_instance_of::<PyDict>() {
            return Ok(Self::One(object));
        }
        if object.is_instance_of::<PyString>() || object.is_instance_of::<PyBytes>() {
            let error = wrong(format!("the input is of type {}, expected messages", type_of(&object)));
            return Err(exception(
                object.py(),
                &error.with_hint("give a text as `prompt=` and `response=`"),
                None,
            ));
        }
        if is_list(&object) {
            let is_conversation = object.len()? > 0 && is_message(&object.get_item(0)?)?;
            return Ok(if is_conversation { Self::One(object) } else { Self::Each(object.try_iter()?) });
        }
        object.try_iter().map(Self::Each).map_err(|_| {
            let message = format!(
                "the input is of type {}, expected messages, a dict with them, or a list of those",
                type_of(&object)
            );
            exception(object.py(), &wrong(message), None)
        })
    }
}

fn is_list(object: &Bound<'_, PyAny>) -> bool {
    object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>()
}

fn is_message(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    match object.cast::<PyDict>() {
        Ok(object) => Ok(object.contains("role")? && !object.contains("messages")?),
        Err(_) => Ok(false),
    }
}

/// Returns the request of one input: a list of messages, or a dict of the keys of a line.
pub(crate) fn request(object: &Bound<'_, PyAny>) -> Result<Request> {
    let mut text = Vec::new();
    if let Ok(object) = object.cast::<PyDict>() {
        text.push(b'{');
        for (key, value) in object {
            // Other keys belong to the user, whatever they hold.
            let Some(key) = key.cast::<PyString>().ok().and_then(|key| key.to_str().ok()) else { continue };
            if !request::is_read(key) || key == "id" {
                continue;
            }
            if text.len() > 1 {
                text.push(b',');
            }
            string(&mut text, key);
            text.push(b':');
            write(&mut text, &value, 1).map_err(|error| error.prefixed(format!("`{key}`")))?;
        }
    } else if is_list(object) {
        text.extend(b"{\"messages\":");
        write(&mut text, object, 1)?;
    } else {
        let error = wrong(format!(
            "an input is of type {}, expected messages or an object with them",
            type_of(object)
        ));
        return Err(error.with_hint(
            "a conversation is a list of dicts with `role` and `content`, or a dict such as {\"prompt\": .., \"response\": ..}",
        ));
    }
    text.push(b'}');
    request::parse(&text).request
}

/// Returns a Python object as JSON.
pub(crate) fn json(object: &Bound<'_, PyAny>) -> Result<Value> {
    let mut text = Vec::new();
    write(&mut text, object, 1)?;
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}

/// Returns JSON as a Python object.
pub(crate) fn python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(value) => PyBool::new(py, *value).to_owned().into_any(),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into_pyobject(py)?.into_any(),
            (None, Some(number)) => number.into_pyobject(py)?.into_any(),
            (None, None) => number.as_f64().into_pyobject(py)?.into_any(),
        },
        Value::String(text) => PyString::new(py, text).into_any(),
        Value::Array(items) => {
            let list = PyList::empty(py);
            items.iter().try_for_each(|item| list.append(python(py, item)?))?;
            list.into_any()
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            fields.iter().try_for_each(|(key, value)| dict.set_item(key, python(py, value)?))?;
            dict.into_any()
        }
    })
}

/// Writes a Python object as JSON.
fn write(out: &mut Vec<u8>, object: &Bound<'_, PyAny>, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(wrong(format!("objects are nested more than {DEPTH_MAX} levels deep")));
    }
    if let Ok(text) = object.cast::<PyString>() {
        let text = text.to_str().map_err(|_| {
            wrong("the text has half of a character, a lone surrogate such as \\ud83d").with_hint(
                "the text was cut within an emoji or another character beyond 16 bits: cut it at a whole one",
            )
        })?;
        string(out, text);
    } else if object.is_none() {
        out.extend(b"null");
    } else if let Ok(value) = object.cast::<PyBool>() {
        out.extend(if value.is_true() { &b"true"[..] } else { b"false" });
    } else if object.is_instance_of::<PyInt>() {
        let digits = object.extract::<i64>().map(|value| value.to_string());
        let digits = digits.or_else(|_| object.extract::<u64>().map(|value| value.to_string()));
        let digits = digits.map_err(|_| {
            wrong("an integer is beyond 64 bits").with_hint("write such a number as a string")
        })?;
        out.extend(digits.as_bytes());
    } else if let Ok(value) = object.cast::<PyFloat>() {
        let value = value.value();
        if !value.is_finite() {
            return Err(wrong(format!("a number is {value}, which JSON does not have"))
                .with_hint("give None instead, or leave the key out"));
        }
        // Like `Vec`, which never fails to be written to, a finite float never fails to be written.
        serde_json::to_writer(&mut *out, &value).map_err(|error| wrong(error.to_string()))?;
    } else if let Ok(object) = object.cast::<PyDict>() {
        let mut before = b'{';
        for (key, value) in object {
            let name = key.cast::<PyString>().ok().and_then(|key| key.to_str().ok());
            let name =
                name.ok_or_else(|| wrong(format!("a key is of type {}, expected str", type_of(&key))))?;
            out.push(before);
            before = b',';
            string(out, name);
            out.push(b':');
            write(out, &value, depth + 1)?;
        }
        if before == b'{' {
            out.push(b'{');
        }
        out.push(b'}');
    } else if let Ok(list) = object.cast::<PyList>() {
        items(out, list.iter(), depth)?;
    } else if let Ok(tuple) = object.cast::<PyTuple>() {
        items(out, tuple.iter(), depth)?;
    } else if let Ok(plain) = object.call_method0("tolist") {
        // Arrays and numbers of NumPy, tensors.
        write(out, &plain, depth + 1)?;
    } else {
        return Err(wrong(format!("a value is of type {}, which JSON does not have", type_of(object)))
            .with_hint(
                "str, int, float, bool, None, list, tuple and dict are read, and what has `tolist()`",
            ));
    }
    Ok(())
}

fn items<'py>(out: &mut Vec<u8>, items: impl Iterator<Item = Bound<'py, PyAny>>, depth: usize) -> Result<()> {
    out.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, &item, depth + 1)?;
    }
    out.push(b']');
    Ok(())
}

/// Writes a string as JSON. Strings are long: it is not copied first.
pub(crate) fn string(out: &mut Vec<u8>, text: &str) {
    // A vector takes every write.
    let _ = serde_json::to_writer(out, text);
}

/// Returns the name of an object's type, for messages.
pub(crate) fn type_of(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string())
}
