//! Python's methods on strings, mappings and lists, as templates call them.
//!
//! Each returns Python's result, or an error where Python's Unicode tables would be needed and
//! Rust's differ. Any other method is unknown: an error with its name and line.
//!
//! `pycompat` of minijinja-contrib 3.1 has such methods too. It is not used because it
//! approximates: `strip` takes Rust's whitespace, without Python's U+001C to U+001F; `splitlines`
//! breaks at `\n` and `\r\n` only; `isdigit`, `isalnum` and their like go by Rust's Unicode tables;
//! `startswith` takes lists; `rsplit`, `partition`, `removeprefix` and `index` are missing.

use std::collections::HashSet;

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::fuel;
use super::limits::{affordable, affordable_list, iterable, unsupported};
use super::markup::{self, markup};
use super::python::is_space;

/// minijinja's callback for methods that its own values lack.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    // minijinja charges for a string whose method is called, and for the result.
    for arg in args {
        fuel::compare(state, arg)?;
    }
    match value.kind() {
        ValueKind::String => of_string(state, value.as_str().unwrap_or_default(), method, args),
        ValueKind::Map => of_map(state, value, method, args),
        ValueKind::Seq | ValueKind::Iterable => of_list(state, value, method, args),
        ValueKind::Plain => of_markup(state, value, method, args),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn of_string(state: &State, s: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(state, s, chars, method != "rstrip", method != "lstrip")?)
        }
        "split" | "rsplit" => split(s, method == "rsplit", args)?,
        "splitlines" => {
            let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(kwargs.get("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            split_lines(s, keep)?.into_iter().map(Value::from).collect()
        }
        "startswith" => Value::from(any_affix(args, |affix| s.starts_with(affix))?),
        "endswith" => Value::from(any_affix(args, |affix| s.ends_with(affix))?),
        "removeprefix" => Value::from(s.strip_prefix(one::<&str>(args)?).unwrap_or(s)),
        "removesuffix" => Value::from(s.strip_suffix(one::<&str>(args)?).unwrap_or(s)),
        "partition" | "rpartition" => partition(s, one(args)?, method == "rpartition")?,
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            Value::from(replace(s, old, new, count)?)
        }
        "find" | "index" => found(s, s.find(one::<&str>(args)?), method == "index")?,
        "rfind" | "rindex" => found(s, s.rfind(one::<&str>(args)?), method == "rindex")?,
        "count" => match one::<&str>(args)? {
            "" => Value::from(s.chars().count() + 1),
            what => Value::from(s.matches(what).count()),
        },
        "join" => {
            let items = one::<&Value>(args)?;
            iterable(items)?;
            let items = items.try_iter()?.checked();
            let mut bytes = 0;
            let strings = items.map(|item| match item?.to_str() {
                Some(text) => {
                    bytes += size_of::<String>() + text.len() + s.len();
                    affordable(bytes)?;
                    Ok(text.to_string())
                }
                None => Err(unsupported("str.join: an item is not a string")),
            });
            let strings = strings.collect::<Result<Vec<_>, Error>>()?;
            fuel::charge_items(state, strings.len())?;
            Value::from(strings.join(s))
        }
        "upper" => none(args, s.to_uppercase())?,
        "lower" => none(args, s.to_lowercase())?,
        "capitalize" => none(args, capitalize(s)?)?,
        "title" => none(args, ascii_title(s)?)?,
        "isspace" => none(args, !s.is_empty() && s.chars().all(is_space))?,
        "isascii" => none(args, s.is_ascii())?,
        "isdigit" | "isdecimal" | "isnumeric" => none(args, all_ascii(s, method, |b| b.is_ascii_digit())?)?,
        "isalpha" => none(args, all_ascii(s, method, |b| b.is_ascii_alphabetic())?)?,
        "isalnum" => none(args, all_ascii(s, method, |b| b.is_ascii_alphanumeric())?)?,
        "islower" | "isupper" => {
            let has_upper = any_ascii(s, method, |b| b.is_ascii_uppercase())?;
            let has_lower = any_ascii(s, method, |b| b.is_ascii_lowercase())?;
            none(args, if method == "islower" { has_lower && !has_upper } else { has_upper && !has_lower })?
        }
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

fn of_map(state: &State, map: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let pairs = || {
        let keys = map.try_iter()?.checked();
        keys.map(|key| key.and_then(|key| Ok((map.get_item(&key)?, key)))).collect::<Result<Vec<_>, Error>>()
    };
    Ok(match method {
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            fuel::charge_key(state, key)?;
            let found = map.as_object().and_then(|object| object.get_value(key));
            found.or(default).unwrap_or(Value::from(()))
        }
        "keys" => none(args, pairs()?.into_iter().map(|(_, key)| key).collect::<Vec<_>>())?,
        "values" => none(args, pairs()?.into_iter().map(|(value, _)| value).collect::<Vec<_>>())?,
        "items" => {
            let items = pairs()?.into_iter().map(|(value, key)| Value::from(Tuple::from([key, value])));
            none(args, items.collect::<Vec<_>>())?
        }
        "copy" => none(args, map.clone())?,
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

fn of_list(state: &State, list: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    fuel::compare(state, list)?;
    let items = list.try_iter()?.checked();
    Ok(match method {
        "count" => {
            let what = one::<&Value>(args)?;
            let mut count = 0;
            for item in items {
                count += usize::from(item? == *what);
            }
            Value::from(count)
        }
        "index" => {
            let what = one::<&Value>(args)?;
            for (index, item) in items.enumerate() {
                if item? == *what {
                    return Ok(Value::from(index));
                }
            }
            return Err(unsupported("list.index: the value is not in the list"));
        }
        "copy" => none(args, items.collect::<Result<Vec<_>, Error>>()?)?,
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

/// Calls a method of a `Markup` that escapes nothing.
fn of_markup(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = markup::text_of(value) else { return Err(ErrorKind::UnknownMethod.into()) };
    let keeps = matches!(method, "strip" | "lstrip" | "rstrip" | "upper" | "lower" | "capitalize");
    let asks =
        matches!(method, "startswith" | "endswith" | "find" | "rfind" | "count" | "isspace" | "isascii");
    if !(asks || keeps && args.is_empty()) {
        markup::refuse(value)?;
    }
    fuel::charge_text(state, text.len())?;
    let result = call(state, &Value::from(text), method, args)?;
    match result.as_str() {
        Some(text) if keeps => markup(state, text.to_owned()),
        _ => Ok(result),
    }
}

/// Returns the only argument of a method.
fn one<'a, T: minijinja::value::ArgType<'a, Output = T>>(args: &'a [Value]) -> Result<T, Error> {
    let (arg,): (T,) = from_args(args)?;
    Ok(arg)
}

/// Returns a method's result if it was called without arguments.
fn none(args: &[Value], result: impl Into<Value>) -> Result<Value, Error> {
    let () = from_args(args)?;
    Ok(result.into())
}

/// `str.strip(chars)`, at the start, the end or both; without `chars`, of whitespace.
pub(super) fn strip<'s>(
    state: &State,
    s: &'s str,
    chars: Option<&str>,
    start: bool,
    end: bool,
) -> Result<&'s str, Error> {
    // Looking up each character takes eight times as long as what text is charged for.
    fuel::charge_text(state, chars.map_or(0, |chars| 8 * (s.len() + chars.len())))?;
    let chars: Option<HashSet<char>> = chars.map(|chars| chars.chars().collect());
    let goes = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(&c));
    let s = if start { s.trim_start_matches(goes) } else { s };
    Ok(if end { s.trim_end_matches(goes) } else { s })
}

/// `str.replace(old, new, count)`; a negative or missing count replaces all.
pub(super) fn replace(s: &str, old: &str, new: &str, count: Option<i64>) -> Result<String, Error> {
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let found = s.matches(old).take(count).count();
    affordable(s.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(s.replacen(old, new, found))
}

/// `str.splitlines`: Python breaks lines at more characters than `\n`.
pub(super) fn split_lines(s: &str, keep_ends: bool) -> Result<Vec<&str>, Error> {
    let mut rest = s;
    let breaks = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    affordable_list(std::iter::from_fn(|| {
        let Some(end) = rest.find(breaks) else {
            return Some(std::mem::take(&mut rest)).filter(|last| !last.is_empty());
        };
        let width = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(1, char::len_utf8)
        };
        let line = if keep_ends { &rest[..end + width] } else { &rest[..end] };
        rest = &rest[end + width..];
        Some(line)
    }))
}

fn split(s: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (sep, max, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let sep = sep.or(kwargs.get("sep")?);
    let max = max.or(kwargs.get("maxsplit")?).and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
    kwargs.assert_all_used()?;
    let parts: Vec<&str> = match (sep, from_right) {
        (Some(""), _) => return Err(unsupported("str.split: the separator is empty")),
        (Some(sep), false) => affordable_list(s.splitn(max.saturating_add(1), sep))?,
        (Some(sep), true) => {
            let mut parts = affordable_list(s.rsplitn(max.saturating_add(1), sep))?;
            parts.reverse();
            parts
        }
        (None, false) => split_space(s, max)?,
        (None, true) if max == usize::MAX => split_space(s, max)?,
        (None, true) => {
            return Err(unsupported("str.rsplit with a limit and without a separator is not implemented"));
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn split_space(s: &str, max: usize) -> Result<Vec<&str>, Error> {
    let (mut rest, mut count) = (s.trim_start_matches(is_space), 0);
    affordable_list(std::iter::from_fn(|| {
        if rest.is_empty() {
            return None;
        }
        let end = if count == max { None } else { rest.find(is_space) };
        let (part, tail) = rest.split_at(end.unwrap_or(rest.len()));
        rest = tail.trim_start_matches(is_space);
        count += 1;
        Some(part)
    }))
}

fn partition(s: &str, sep: &str, from_right: bool) -> Result<Value, Error> {
    if sep.is_empty() {
        return Err(unsupported("str.partition: the separator is empty"));
    }
    let parts = match (if from_right { s.rsplit_once(sep) } else { s.split_once(sep) }, from_right) {
        (Some((before, after)), _) => [before, sep, after],
        (None, false) => [s, "", ""],
        (None, true) => ["", "", s],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn found(s: &str, at: Option<usize>, must: bool) -> Result<Value, Error> {
    match at {
        Some(at) => Ok(Value::from(s[..at].chars().count())),
        None if must => Err(unsupported("substring not found")),
        None => Ok(Value::from(-1)),
    }
}

fn any_affix(args: &[Value], test: impl Fn(&str) -> bool) -> Result<bool, Error> {
    let affix = one::<&Value>(args)?;
    if let Some(affix) = affix.as_str() {
        return Ok(test(affix));
    }
    if !affix.is_tuple() {
        return Err(unsupported("startswith and endswith take a string or a tuple of strings"));
    }
    let affixes = affix.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
    if !affixes.iter().all(|affix| affix.as_str().is_some()) {
        return Err(unsupported("startswith and endswith take a string or a tuple of strings"));
    }
    Ok(affixes.iter().filter_map(Value::as_str).any(test))
}

fn all_ascii(s: &str, method: &str, test: impl Fn(u8) -> bool) -> Result<bool, Error> {
    Ok(!s.is_empty() && !any_ascii(s, method, |b| !test(b))?)
}

/// Returns true if any byte passes; refuses text beyond ASCII, whose categories in Python are not
/// Rust's.
fn any_ascii(s: &str, method: &str, test: impl Fn(u8) -> bool) -> Result<bool, Error> {
    if !s.is_ascii() {
        return Err(unsupported(format!("str.{method} of text beyond ASCII is not implemented")));
    }
    Ok(s.bytes().any(test))
}

/// `str.capitalize`. Python title-cases the first character; where that is not its upper case, this
/// refuses.
pub(super) fn capitalize(s: &str) -> Result<String, Error> {
    let mut chars = s.chars();
    let Some(first) = chars.next() else { return Ok(String::new()) };
    let upper: String = first.to_uppercase().collect();
    let titles_differ = !first.is_ascii()
        && (matches!(first, '\u{1c4}'..='\u{1cc}' | '\u{1f1}'..='\u{1f3}' | '\u{10d0}'..='\u{10ff}')
            || upper.chars().nth(1).is_some());
    if titles_differ {
        return Err(unsupported(format!("str.capitalize of {first:?} is not implemented")));
    }
    // The whole string is lower-cased: the form of a final sigma depends on the letter before it.
    let lower = s.to_lowercase();
    let first_lower: usize = first.to_lowercase().map(char::len_utf8).sum();
    Ok(upper + &lower[first_lower..])
}

/// `str.title` of ASCII text: every run of letters begins with a capital.
fn ascii_title(s: &str) -> Result<String, Error> {
    if !s.is_ascii() {
        return Err(unsupported("str.title of text beyond ASCII is not implemented"));
    }
    let mut inside = false;
    let title = s.chars().map(|c| {
        let cased = if inside { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() };
        inside = c.is_ascii_alphabetic();
        cased
    });
    Ok(title.collect())
}
