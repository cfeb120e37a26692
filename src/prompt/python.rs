//! Python's output of values (`str`, `repr`, `json.dumps`), and its whitespace.
//!
//! Templates written for Jinja2 show these to the model, so a different digit or escape is a
//! different prompt. Works on minijinja's values; [`jinja`](super::jinja) binds it to filters and
//! to `{{ ... }}`.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::limits::{NESTING_MAX, affordable, nested_too_deep, unsupported};
use super::markup;
use super::parts::refuse_printed;

/// Refuses lists that are nested too deep to be printed, or whose text is already too long.
fn printable(out: &str, depth: usize) -> Result<(), Error> {
    affordable(out.len())?;
    if depth <= NESTING_MAX { Ok(()) } else { Err(nested_too_deep()) }
}

/// Returns true for whitespace of `str.isspace`, `str.strip` and `str.split`: Unicode's, and U+001C
/// to U+001F.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// `str(value)`.
pub(super) fn str_of(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.as_str() {
        Some(text) => out.push_str(text),
        None if value.is_undefined() => {}
        None => match markup::text_of(value) {
            Some(text) => out.push_str(text),
            None => write_repr(&mut out, value, 0)?,
        },
    }
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    printable(out, depth)?;
    refuse_printed(value)?;
    markup::refuse(value)?;
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&float_repr(f64::try_from(value.clone())?)),
        ValueKind::String => write_str_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.checked().enumerate() {
                let key = key?;
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut items = 0;
            for item in value.try_iter()?.checked() {
                out.push_str(if items > 0 { ", " } else { "" });
                write_repr(out, &item?, depth + 1)?;
                items += 1;
            }
            out.push_str(if value.is_tuple() && items == 1 { "," } else { "" });
            out.push(close);
        }
        kind => return Err(unsupported(format!("cannot print a value of kind {kind} as Python does"))),
    }
    Ok(())
}

/// `repr(float)`: the shortest digits that read back as the same number, in Python's choice of
/// notation.
pub(super) fn float_repr(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "nan"
        } else if x > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `repr(str)`: single quotes unless only they occur inside; what does not print is escaped.
fn write_str_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// `str.isprintable`. Rust's escaping leaves out the same categories (C* and Z*, but for the
/// space); after a first character it leaves combining marks alone, as Python does.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let mut buffer = String::from("a");
    buffer.push(c);
    buffer.escape_debug().nth(1) == Some(c)
}

/// The keywords of Hugging Face's `tojson`, which are those of `json.dumps`.
pub(super) struct JsonStyle {
    /// One level of indentation; `None` writes everything on one line.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
    pub(super) ensure_ascii: bool,
}

/// `json.dumps(value)`, without the HTML escapes that Jinja's own filter adds.
pub(super) fn json_dumps(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(&mut out, value, style, 0)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) -> Result<(), Error> {
    printable(out, depth)?;
    if let Some(text) = markup::text_of(value) {
        write_json_str(out, text, style.ensure_ascii);
        return Ok(());
    }
    match value.kind() {
        ValueKind::String => write_json_str(out, value.as_str().unwrap_or_default(), style.ensure_ascii),
        ValueKind::Map => {
            let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
            if style.sort_keys {
                keys.sort();
            }
            let pairs = keys.iter().map(|key| Ok((Some(key), value.get_item(key)?)));
            write_json_items(out, ['{', '}'], pairs, style, depth)?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.checked().map(|item| Ok((None, item?)));
            write_json_items(out, ['[', ']'], items, style, depth)?;
        }
        _ => out.push_str(&json_scalar(value)?),
    }
    Ok(())
}

fn write_json_items<'a>(
    out: &mut String,
    [open, close]: [char; 2],
    items: impl Iterator<Item = Result<(Option<&'a Value>, Value), Error>>,
    style: &JsonStyle,
    depth: usize,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    };
    out.push(open);
    let mut any = false;
    for item in items {
        let (key, value) = item?;
        out.push_str(if any { &style.item_separator } else { "" });
        line(out, depth + 1);
        if let Some(key) = key {
            let key = match key.as_str() {
                Some(text) => text.to_owned(),
                None => json_scalar(key)?,
            };
            write_json_str(out, &key, style.ensure_ascii);
            out.push_str(&style.key_separator);
        }
        write_json(out, &value, style, depth + 1)?;
        any = true;
    }
    if any {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn json_scalar(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => value.is_true().to_string(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => match f64::try_from(value.clone())? {
            x if x.is_nan() => "NaN".to_owned(),
            x if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
            x => float_repr(x),
        },
        kind => return Err(unsupported(format!("a value of kind {kind} is not JSON"))),
    })
}

fn write_json_str(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_python_prints_them() {
        let cases = [
            (1e-7, "1e-07"),
            (1e16, "1e+16"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (123_456_789.125, "123456789.125"),
            (5e-324, "5e-324"),
            (1.797_693_134_862_315_7e308, "1.7976931348623157e+308"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (x, expected) in cases {
            assert_eq!(float_repr(x), expected);
        }
    }

    #[test]
    fn strings_in_a_list_print_as_python_quotes_them() {
        let list = Value::from(vec![
            "a",
            "it's",
            "\"",
            "'\"",
            "\n\u{1c}\u{7f}\u{a0}",
            "e\u{301}é😀\u{200d}\u{feff}",
        ]);
        assert_eq!(
            str_of(&list).unwrap(),
            r#"['a', "it's", '"', '\'"', '\n\x1c\x7f\xa0', 'e"#.to_owned() + "\u{301}é😀" + r"\u200d\ufeff']"
        );
    }

    #[test]
    fn what_would_be_printed_without_end_is_refused() {
        let mut deep = Value::from(0);
        let mut wide = Value::from("0".repeat(1000));
        for _ in 0..NESTING_MAX {
            deep = Value::from(vec![deep]);
        }
        assert_eq!(str_of(&deep).unwrap().len(), 2 * NESTING_MAX + 1);
        for _ in 0..60 {
            wide = Value::from(vec![wide.clone(), wide]);
        }
        let style = JsonStyle {
            indent: None,
            item_separator: ",".to_owned(),
            key_separator: ":".to_owned(),
            sort_keys: false,
            ensure_ascii: false,
        };
        for value in [Value::from(vec![deep]), wide] {
            assert!(str_of(&value).is_err() && json_dumps(&value, &style).is_err());
        }
    }

    #[test]
    fn pythons_whitespace_has_the_separators() {
        assert!("\t\u{b}\u{1c}\u{1d}\u{1e}\u{1f}\u{85}\u{a0}\u{3000}".chars().all(is_space));
        assert!(!"\u{200b}\u{feff}\u{0}\u{1b}a".chars().any(is_space));
    }
}
