//! `--resume`: continuing after the last whole line that an earlier run wrote.
//!
//! Every line of the file must be the result of its input line, as far as can be checked without
//! the model: it has that line's `id` or `index`, and as many rewards. With the model open, the
//! first and the last of them are scored again and must be the same, byte for byte: this detects
//! another model, another template, another date in the template, or hardware whose rewards differ.
//! Then the file becomes what one uninterrupted run would have written.

use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::input::{Input, Line, RawLine};
use crate::output::Output;
use kudos::internals::request::{Form, Request};
use kudos::{Error, ErrorKind, Result};

/// The results of an earlier run.
#[derive(Default)]
pub(super) struct EarlierRun {
    /// Lines that have their result.
    pub(super) lines: usize,
    /// Lines of these whose result is or holds an error.
    pub(super) failed: usize,
    /// Bytes of the input up to the last of these lines.
    pub(super) input_bytes: u64,
    /// The first and the last of these lines, to be scored again.
    probes: Vec<Probe>,
}

/// An input line and its result in the file.
struct Probe {
    input: RawLine,
    result: String,
}

impl EarlierRun {
    /// Reads the results in `output`, skips the lines of `input` that they belong to, and has
    /// `output` keep them.
    pub(super) fn find(input: &mut Input, output: &mut Output) -> anyhow::Result<Self> {
        let Some(file) = output.file() else {
            let message = format!("{} cannot be resumed", output.name());
            return Err(Error::new(ErrorKind::Options, message)
                .with_hint("`--resume` needs `--output` with a regular file")
                .into());
        };
        let cannot_read = || format!("cannot read {}", output.name());
        let mut results = BufReader::new(File::open(&file.path).with_context(cannot_read)?);
        let (mut earlier, mut bytes) = (Self::default(), 0);
        loop {
            let mut result = Vec::new();
            let read_bytes = results.read_until(b'\n', &mut result).with_context(cannot_read)?;
            // The end, or a line that was only written in part.
            if result.pop() != Some(b'\n') {
                break;
            }
            bytes += read_bytes as u64;
            earlier.lines += 1;
            let Some(raw) = input.next().transpose()? else {
                let message = format!(
                    "line {} of {} has no line of input: {} has only {}",
                    earlier.lines,
                    output.name(),
                    input.name(),
                    earlier.lines - 1
                );
                return Err(other_input(message).into());
            };
            let failed = check(&raw.parse(), &result).map_err(|why| {
                let (ours, theirs) = (output.name(), input.name());
                other_input(format!(
                    "line {} of {ours} is not the result of line {} of {theirs}: {why}",
                    earlier.lines,
                    raw.index + 1
                ))
            })?;
            earlier.failed += usize::from(failed);
            earlier.input_bytes = raw.end;
            // Valid UTF-8: `check` has parsed it as JSON.
            let result = String::from_utf8_lossy(&result).into_owned();
            earlier.probes.truncate(1);
            earlier.probes.push(Probe { input: raw, result });
        }
        output.keep(earlier.lines, bytes);
        Ok(earlier)
    }

    /// Scores the first and the last line again, with `score`, and compares.
    pub(super) fn confirm(&mut self, output: &Output, score: impl Fn(Line) -> Result<String>) -> Result<()> {
        for Probe { input, result } in self.probes.drain(..) {
            let computed = score(input.parse())?;
            if computed != result {
                let (name, line) = (output.name(), input.index + 1);
                let message = format!(
                    "{name} has another result for input line {line} than this run\n    {result}\n  this run computes\n    \
                     {computed}"
                );
                return Err(Error::new(ErrorKind::Options, message).with_hint(
                    "use the model, the options, the kind of device and (where the template writes it) the date of the \
                     earlier run, or leave out `--resume` to start over",
                ));
            }
        }
        Ok(())
    }
}

/// The key of a result, as the file spells it.
#[derive(Deserialize)]
struct ResultKey<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    index: Option<&'a RawValue>,
}

/// Returns true if the result is or holds an error. Fails with the reason if it cannot be the
/// result of `line`.
pub(crate) fn check(line: &Line, result: &[u8]) -> Result<bool, String> {
    let found =
        serde_json::from_slice::<ResultKey<'_>>(result).map_err(|_| "it is not a JSON object".to_owned())?;
    let (name, key) = (line.key.name(), line.key.text());
    match [("id", found.id), ("index", found.index)]
        .into_iter()
        .find_map(|(name, raw)| Some((name, raw?.get())))
    {
        Some((found_name, found)) if found_name == name && found == key => {}
        Some((found_name, found)) => {
            return Err(format!("it has `{found_name}` {found}, expected `{name}` {key}"));
        }
        None => return Err(format!("it has no `{name}`, expected {key}")),
    }
    let result = serde_json::from_slice::<Value>(result).map_err(|_| "it is not JSON".to_owned())?;
    let has = |field: &str| result.get(field).is_some();
    match line.request.as_ref().map(Request::form) {
        Ok(Form::Responses(expected)) => {
            let rewards = result.get("rewards").and_then(Value::as_array);
            match rewards.map(Vec::len) {
                Some(count) if count == expected => Ok(has("errors")),
                Some(count) => Err(format!("it has {count} rewards, expected {expected}")),
                None => Err(format!("it has no `rewards`, expected {expected} of them")),
            }
        }
        Ok(Form::Pair) if has("reward_chosen") && has("reward_rejected") => Ok(has("errors")),
        Ok(Form::Pair) => Err("it has no `reward_chosen` and `reward_rejected`".to_owned()),
        Ok(Form::One) if has("reward") => Ok(false),
        Ok(Form::One) | Err(_) if has("error") => Ok(true),
        Ok(Form::One) => Err("it has no `reward`".to_owned()),
        Err(_) => Err("it has no `error`".to_owned()),
    }
}

fn other_input(message: String) -> Error {
    Error::new(ErrorKind::Options, message)
        .with_hint("give the whole input of the earlier run, or leave out `--resume` to start over")
}
