//! `--resume`: going on after the last whole line that an earlier run wrote.
//!
//! Every line that is there must be the result of its input line, as far as that can be told without the model: it has
//! that line's `id` or `index`, and as many rewards. With the model open, the first and the last of them are scored anew
//! and must come out the same, byte for byte: that shows another model, another template, another date in the template,
//! or hardware whose rewards differ. Then the file becomes what one uninterrupted run would have written.

use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::input::{Line, Lines, RawLine};
use crate::output::Output;
use kudos::internals::request::Request;
use kudos::{Error, ErrorKind, Result};

/// What an earlier run did.
#[derive(Default)]
pub(super) struct Earlier {
    /// Lines that have their result.
    pub(super) lines: usize,
    /// Those of them that have an error.
    pub(super) failed: usize,
    /// Bytes of the input up to the last of them.
    pub(super) input_bytes: u64,
    /// The first and the last of them.
    probes: Vec<Probe>,
}

/// An input line and the result that is there.
struct Probe {
    input: RawLine,
    result: String,
}

impl Earlier {
    /// Reads what is in `output`, passing over the lines of `input` that it belongs to, and has `output` keep it.
    pub(super) fn find(input: &mut Lines, output: &mut Output) -> anyhow::Result<Self> {
        let Some(file) = output.file() else {
            let message = format!("{} keeps nothing that could be gone on with", output.name());
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
            // The end, or what the last write left of a line that it did not bring to its end.
            if result.pop() != Some(b'\n') {
                break;
            }
            bytes += read_bytes as u64;
            earlier.lines += 1;
            let Some(raw) = input.next().transpose()? else {
                let message = format!(
                    "line {} of {} belongs to no line of {}, which has only {}",
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
            // Checked to be JSON, and so UTF-8.
            let result = String::from_utf8_lossy(&result).into_owned();
            earlier.probes.truncate(1);
            earlier.probes.push(Probe { input: raw, result });
        }
        output.keep(earlier.lines, bytes);
        Ok(earlier)
    }

    /// Scores the first and the last line anew, with `score`, and compares.
    pub(super) fn confirm(&mut self, output: &Output, score: impl Fn(Line) -> Result<String>) -> Result<()> {
        for Probe { input, result } in self.probes.drain(..) {
            let anew = score(input.parse())?;
            if anew != result {
                let (name, line) = (output.name(), input.index + 1);
                let message = format!(
                    "{name} has for input line {line}\n    {result}\n  and this run gets\n    {anew}"
                );
                return Err(Error::new(ErrorKind::Options, message).with_hint(
                    "go on with the model, the options, the kind of device and (where the template writes it) the date of \
                     the run before, or leave out `--resume` to begin anew",
                ));
            }
        }
        Ok(())
    }
}

/// The name of a result, as it is spelled.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    index: Option<&'a RawValue>,
}

/// Whether the result is (or holds) an error; or why it cannot be that of `line`.
fn check(line: &Line, result: &[u8]) -> Result<bool, String> {
    let found =
        serde_json::from_slice::<Named<'_>>(result).map_err(|_| "it is not a JSON object".to_owned())?;
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
    match &line.request {
        Ok(Request::Responses(responses)) => {
            let (rewards, expected) = (result.get("rewards").and_then(Value::as_array), responses.count());
            match rewards.map(Vec::len) {
                Some(count) if count == expected => Ok(has("errors")),
                Some(count) => Err(format!("it has {count} rewards, expected {expected}")),
                None => Err(format!("it has no `rewards`, expected {expected} of them")),
            }
        }
        Ok(Request::One(_)) if has("reward") => Ok(false),
        Ok(Request::One(_)) | Err(_) if has("error") => Ok(true),
        Ok(Request::One(_)) => Err("it has no `reward`".to_owned()),
        Err(_) => Err("it has no `error`".to_owned()),
    }
}

fn other_input(message: String) -> Error {
    Error::new(ErrorKind::Options, message)
        .with_hint("`--resume` needs the input of the run before, from its start; leave it out to begin anew")
}
