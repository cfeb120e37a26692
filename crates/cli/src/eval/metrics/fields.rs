//! Fields of an item, checked, and the requests made of them.

use serde_json::{Map, Value, json};

use kudos::internals::conversation::kind_of;
use kudos::{Error, ErrorKind, Result};

pub(crate) fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// Returns the value of a key, which may not be null.
pub(crate) fn value<'a>(item: &'a Map<String, Value>, key: &str, expected: &str) -> Result<&'a Value> {
    optional(item, key).ok_or_else(|| {
        wrong(format!("the item has no `{key}`, expected {expected}"))
            .with_hint("is this a file of that benchmark? docs/eval.md has the fields of each")
    })
}

/// Returns the value of a key, unless it is absent or null.
pub(crate) fn optional<'a>(item: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    item.get(key).filter(|value| !value.is_null())
}

pub(crate) fn text<'a>(item: &'a Map<String, Value>, key: &str) -> Result<&'a str> {
    let value = value(item, key, "a string")?;
    value.as_str().ok_or_else(|| wrong(format!("`{key}` is {}, expected a string", kind_of(value))))
}

pub(crate) fn texts<'a>(item: &'a Map<String, Value>, key: &str) -> Result<Vec<&'a str>> {
    let list = list(item, key, "a list of strings")?;
    let text = |(index, value): (usize, &'a Value)| {
        value
            .as_str()
            .ok_or_else(|| wrong(format!("`{key}[{index}]` is {}, expected a string", kind_of(value))))
    };
    list.iter().enumerate().map(text).collect()
}

pub(crate) fn list<'a>(item: &'a Map<String, Value>, key: &str, expected: &str) -> Result<&'a Vec<Value>> {
    let value = value(item, key, expected)?;
    value.as_array().ok_or_else(|| wrong(format!("`{key}` is {}, expected {expected}", kind_of(value))))
}

pub(crate) fn integer(item: &Map<String, Value>, key: &str) -> Result<i64> {
    let value = value(item, key, "an integer")?;
    value.as_i64().ok_or_else(|| wrong(format!("`{key}` is `{value}`, expected an integer")))
}

/// Returns a score.
pub(crate) fn number(item: &Map<String, Value>, key: &str) -> Result<f64> {
    let value = value(item, key, "a number")?;
    value.as_f64().ok_or_else(|| wrong(format!("`{key}` is `{value}`, expected a number")))
}

/// Returns a list of so many scores.
pub(crate) fn numbers(item: &Map<String, Value>, key: &str, count: usize) -> Result<Vec<f64>> {
    let list = list(item, key, "a list of numbers")?;
    let number = |(index, value): (usize, &Value)| {
        value.as_f64().ok_or_else(|| wrong(format!("`{key}[{index}]` is `{value}`, expected a number")))
    };
    let numbers: Vec<f64> = list.iter().enumerate().map(number).collect::<Result<_>>()?;
    match numbers.len() == count {
        true => Ok(numbers),
        false => Err(wrong(format!("`{key}` has {} numbers, expected {count}", numbers.len()))),
    }
}

/// Returns the request of responses to a prompt: text, or messages.
pub(crate) fn request<'a>(prompt: &Value, responses: impl IntoIterator<Item = &'a str>) -> String {
    let responses: Vec<&str> = responses.into_iter().collect();
    json!({"prompt": prompt, "responses": responses}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_another_type_is_named_with_its_value() {
        let item = json!({"a": [1, "x"], "b": null, "c": 1.5});
        let item = item.as_object().unwrap();
        let message = |error: Error| error.message().to_owned();
        assert_eq!(message(texts(item, "a").unwrap_err()), "`a[0]` is a number, expected a string");
        assert_eq!(message(numbers(item, "a", 2).unwrap_err()), "`a[1]` is `\"x\"`, expected a number");
        assert_eq!(message(text(item, "b").unwrap_err()), "the item has no `b`, expected a string");
        assert_eq!(message(integer(item, "c").unwrap_err()), "`c` is `1.5`, expected an integer");
        assert_eq!(number(item, "c").unwrap(), 1.5);
    }

    #[test]
    fn a_list_of_another_length_is_an_error() {
        let item = json!({"a": [1, 2.5]});
        let error = numbers(item.as_object().unwrap(), "a", 3).unwrap_err();
        assert_eq!(error.message(), "`a` has 2 numbers, expected 3");
    }
}
