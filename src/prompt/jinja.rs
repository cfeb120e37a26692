//! minijinja set up to render chat templates as Hugging Face's Jinja2 environment does.
//!
//! Constructs that print or strip as Python does are implemented here (`tojson`, `trim`, `join`,
//! `{{ ... }}` itself, methods of strings); those that minijinja renders as Jinja2 does are used;
//! all others are removed, so that a template which needs one fails with its name and line.
//! `tests/library/prompt.rs` compares both with Jinja2's output.

use jiff::civil::DateTime;
use minijinja::filters;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};

use super::clock::strftime;
use super::fuel;
use super::limits::{affordable, iterable, unsupported};
use super::markup;
use super::methods::{self, capitalize, replace, split_lines, strip};
use super::python::{JsonStyle, is_space, json_dumps, str_of};

/// Fuel for one rendering: in minijinja's count, instructions and 64-byte pieces of text, so about
/// 600 MB, and the charges of [`fuel`].
const FUEL: u64 = 10_000_000;

/// Nested scopes, at most; a macro's call counts 4. Each may nest a value by as many brackets as a
/// tag may have, and values are dropped by recursion. A macro with a loop that calls itself, as for
/// the schemas of tools, reaches a depth of some 30.
const RECURSION_MAX: usize = 200;

/// Spaces by which text is indented, at most.
const WIDTH_MAX: usize = 1024;

/// Filters of minijinja's that Jinja2 does not have, or has with another meaning; HTML escaping has
/// no place in prompts.
const FOREIGN_FILTERS: [&str; 10] =
    ["escape", "e", "split", "lines", "bool", "chain", "zip", "pprint", "format", "attr"];

/// Tests of minijinja's that Jinja2 does not have, or has with another meaning.
const FOREIGN_TESTS: [&str; 5] = ["safe", "escaped", "int", "startingwith", "endingwith"];

/// Error that a template raises by `raise_exception(message)`.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Returns an environment without templates whose clock shows `now`.
pub(super) fn environment(now: DateTime) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_debug(true); // so that errors can quote the construct
    env.set_fuel(Some(FUEL));
    env.set_formatter(emit);
    env.set_unknown_method_callback(methods::call);
    env.set_recursion_limit(RECURSION_MAX);
    FOREIGN_FILTERS.iter().for_each(|name| env.remove_filter(name));
    FOREIGN_TESTS.iter().for_each(|name| env.remove_test(name));
    env.remove_global("debug");
    fuel::add_filters(&mut env);
    add_filters(&mut env);
    add_tests(&mut env);
    env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let message = str_of(message)?;
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", move |format: &str| strftime(now, format).map_err(unsupported));
    Ok(env)
}

/// Writes the value of `{{ value }}`.
fn emit(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let written = match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&text_of(state, value)?),
    };
    written.map_err(Error::from)
}

fn add_filters(env: &mut Environment<'static>) {
    env.add_filter("tojson", tojson);
    env.add_filter(fuel::JOINED, text_of);
    env.add_filter("safe", |state: &State, value: &Value| markup::markup(state, text_of(state, value)?));
    env.add_filter("string", |state: &State, value: &Value| {
        markup::like(state, value, text_of(state, value)?)
    });
    for name in ["length", "count"] {
        env.add_filter(name, |state: &State, value: &Value| match markup::text_of(value) {
            Some(text) => fuel::charge_text(state, text.len()).map(|()| text.chars().count()),
            None => filters::length(value),
        });
    }
    env.add_filter("trim", |state: &State, value: &Value, chars: Option<&str>| {
        let text = text_of(state, value)?;
        markup::like(state, value, strip(state, &text, chars, true, true)?.to_owned())
    });
    env.add_filter("upper", |state: &State, value: &Value| {
        markup::like(state, value, text_of(state, value)?.to_uppercase())
    });
    env.add_filter("lower", |state: &State, value: &Value| {
        markup::like(state, value, text_of(state, value)?.to_lowercase())
    });
    env.add_filter("capitalize", |state: &State, value: &Value| {
        markup::like(state, value, capitalize(&text_of(state, value)?)?)
    });
    env.add_filter("title", |state: &State, value: &Value| Ok::<_, Error>(title(&text_of(state, value)?)));
    env.add_filter(
        "replace",
        |state: &State, value: &Value, old: &Value, new: &Value, count: Option<i64>| {
            let [text, old, new] = [text_of(state, value)?, text_of(state, old)?, text_of(state, new)?];
            replace(&text, &old, &new, count)
        },
    );
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("join", join);
    env.add_filter("indent", indent);
}

/// `tojson` as Hugging Face defines it: `json.dumps(x, ensure_ascii=False, indent=...,
/// separators=..., sort_keys=...)`.
fn tojson(state: &State, value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let given = |index: usize| -> Result<Option<Value>, Error> {
        let keyword: Option<Value> = kwargs.get(NAMES[index])?;
        let value = positional.get(index).cloned().or(keyword);
        Ok(value.filter(|value| !value.is_none()))
    };
    if positional.len() > NAMES.len() {
        return Err(ErrorKind::TooManyArguments.into());
    }
    let [ensure_ascii, indent, separators, sort_keys] = [given(0)?, given(1)?, given(2)?, given(3)?];
    kwargs.assert_all_used()?;
    let indent = match indent {
        Some(indent) if indent.as_str().is_some() => indent.as_str().map(str::to_owned),
        Some(indent) => Some(spaces(&indent)?),
        None => None,
    };
    let (mut item_separator, mut key_separator) =
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = separators {
        item_separator = str_of(&separators.get_item_by_index(0)?)?;
        key_separator = str_of(&separators.get_item_by_index(1)?)?;
    }
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (sort_keys, ensure_ascii) = (is_true(sort_keys), is_true(ensure_ascii));
    let style = JsonStyle { indent, item_separator, key_separator, sort_keys, ensure_ascii };
    fuel::read(state, value)?;
    json_dumps(value, &style)
}

/// Returns `width` spaces, none for a negative width, as Python repeats a string.
fn spaces(width: &Value) -> Result<String, Error> {
    let width = i64::try_from(width.clone())?.max(0);
    match usize::try_from(width).ok().filter(|width| *width <= WIDTH_MAX) {
        Some(width) => Ok(" ".repeat(width)),
        None => {
            Err(unsupported(format!("an indentation by more than {WIDTH_MAX} spaces is not implemented")))
        }
    }
}

/// Jinja2's `default(value, default_value, boolean)`.
fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let other = other.or(kwargs.get("default_value")?).unwrap_or_else(|| Value::from(""));
    let boolean = boolean.or(kwargs.get("boolean")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value.clone() })
}

/// Jinja2's `title`: a capital after the start, whitespace, `-` and opening brackets; the rest
/// lower case.
fn title(text: &str) -> String {
    let starts = |c: char| is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut out = String::new();
    for word in text.split_inclusive(starts) {
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            out.extend(first.to_uppercase());
            out.push_str(&chars.as_str().to_lowercase());
        }
    }
    out
}

/// Returns `str(value)`. Charges for values other than strings, for which minijinja charges.
fn text_of(state: &State, value: &Value) -> Result<String, Error> {
    if value.as_str().is_none() {
        fuel::read(state, value)?;
    }
    str_of(value)
}

fn join(
    state: &State,
    value: &Value,
    separator: Option<&Value>,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let attribute = attribute.or(kwargs.get("attribute")?);
    let separator_kw: Option<Value> = kwargs.get("d")?;
    kwargs.assert_all_used()?;
    let separator = separator.or(separator_kw.as_ref()).map_or(Ok(String::new()), str_of)?;
    iterable(value)?;
    let (mut texts, mut bytes) = (vec![], 0);
    for item in value.try_iter()?.checked() {
        let item = item?;
        let item = match attribute {
            Some(path) => path.split('.').try_fold(item, |item, key| item.get_attr(key))?,
            None => item,
        };
        let text = text_of(state, &item)?;
        // An item without text takes memory, too.
        bytes += size_of::<String>() + text.len() + separator.len();
        affordable(bytes)?;
        texts.push(text);
    }
    fuel::charge_items(state, texts.len())?;
    Ok(texts.join(&separator))
}

fn indent(
    value: &Value,
    width: Option<&Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width_kw: Option<Value> = kwargs.get("width")?;
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let text =
        value.as_str().ok_or_else(|| unsupported("indent: the value is not a string"))?.to_owned() + "\n";
    let indention = match width.or(width_kw.as_ref()) {
        None => "    ".to_owned(),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => spaces(width)?,
        },
    };
    let lines = split_lines(&text, false)?;
    affordable(text.len() + lines.len() * indention.len())?;
    let mut out = String::new();
    for (index, line) in lines.into_iter().enumerate() {
        out.push_str(if index > 0 { "\n" } else { "" });
        if if index == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn add_tests(env: &mut Environment<'static>) {
    let is_float = |value: &Value| value.kind() == ValueKind::Number && !value.is_integer();
    let is_text = |value: &Value| value.kind() == ValueKind::String || markup::text_of(value).is_some();
    let holds_items = move |value: &Value| {
        // Jinja2's undefined value has a length and can be iterated.
        value.is_undefined()
            || is_text(value)
            || matches!(value.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Iterable)
    };
    env.add_test("string", is_text);
    env.add_test("sequence", holds_items);
    env.add_test("iterable", holds_items);
    env.add_test("mapping", |value: &Value| value.kind() == ValueKind::Map);
    env.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("integer", |value: &Value| value.kind() == ValueKind::Number && value.is_integer());
    env.add_test("float", move |value: &Value| is_float(value));
    env.add_test("lower", |state: &State, value: &Value| cased(state, value, "lower"));
    env.add_test("upper", |state: &State, value: &Value| cased(state, value, "upper"));
}

fn cased(state: &State, value: &Value, case: &str) -> Result<bool, Error> {
    let text = text_of(state, value)?;
    fuel::charge_text(state, text.len())?;
    if !text.is_ascii() {
        return Err(unsupported(format!("the test `is {case}` of text beyond ASCII is not implemented")));
    }
    let upper = text.bytes().any(|b| b.is_ascii_uppercase());
    let lower = text.bytes().any(|b| b.is_ascii_lowercase());
    Ok(if case == "lower" { lower && !upper } else { upper && !lower })
}
