//! Results out: JSON lines written whole, or a table for a person.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind as IoErrorKind, IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};

use crate::files::{Identity, InputFile, StandardStream};
use crate::input::Key;
use crate::report;
use kudos::{Error, ErrorKind, Result, Score};

/// Bytes that are written to a file and taken away again, to see before hours of work that there is room for results.
const PROBE_BYTES: usize = 64 << 10;

/// Where data goes. Unlike `println!` it reports a closed pipe or a full disk instead of panicking.
pub struct Output {
    writer: Box<dyn Write + Send>,
    /// The output in words, for messages.
    name: String,
    /// The file, if it is a regular one.
    file: Option<OutputFile>,
    standard: bool,
    /// Used anew for each line.
    line: String,
}

/// An output that keeps what is written, and has a length.
pub(super) struct OutputFile {
    pub(super) path: PathBuf,
    handle: File,
    /// Bytes that an earlier run wrote and this one keeps.
    kept_bytes: u64,
    /// Lines that are in it, once this run has begun to write.
    lines: usize,
}

impl Output {
    /// A file that is opened now, so that one that cannot be written is an error before anything is computed; or
    /// standard output, also for `-`. What the file holds stays until `begin`.
    ///
    /// `inputs` are the files that are read: none of them, by whatever name, may be the output.
    pub fn open(path: Option<&Path>, inputs: &[InputFile]) -> anyhow::Result<Self> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            StandardStream::Output.check_open()?;
            check_no_input(StandardStream::Output.identity(), "standard output", inputs)?;
            let (writer, name) = (Box::new(io::stdout()), "standard output".to_owned());
            return Ok(Self { writer, name, file: None, standard: true, line: String::new() });
        };
        let name = format!("`{}`", path.display());
        let open = || -> io::Result<(File, Option<File>)> {
            let handle = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            // A device or a pipe has no length to set, and takes nothing back.
            let file = if handle.metadata()?.is_file() { Some(handle.try_clone()?) } else { None };
            Ok((handle, file))
        };
        let (handle, file) = open().map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot write {name}"))
                .caused_by(error)
                .with_hint("name a file that you may write, in a folder that exists")
        })?;
        if let Some(mut file) = file.as_ref() {
            check_no_input(file.metadata().ok().as_ref().and_then(Identity::of), &name, inputs)?;
            // Where files cannot be locked, nothing is said about it.
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                let message = format!("{name} is being written by another kudos");
                return Err(Error::new(ErrorKind::Io, message).into());
            }
            let mut probe = || -> io::Result<()> {
                let length = file.seek(SeekFrom::End(0))?;
                let written = file.write_all(&vec![b' '; PROBE_BYTES]);
                file.set_len(length)?;
                written
            };
            probe().with_context(|| format!("cannot write {name}"))?;
        }
        let file = file.map(|handle| OutputFile { path: path.to_owned(), handle, kept_bytes: 0, lines: 0 });
        Ok(Self { writer: Box::new(handle), name, file, standard: false, line: String::new() })
    }

    /// The output in words, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is standard output.
    pub(super) fn is_standard(&self) -> bool {
        self.standard
    }

    /// The file, if this is a regular one.
    pub(super) fn file(&self) -> Option<&OutputFile> {
        self.file.as_ref()
    }

    /// Keeps the first `lines` lines, of `bytes` bytes in all.
    pub(super) fn keep(&mut self, lines: usize, bytes: u64) {
        if let Some(file) = &mut self.file {
            (file.lines, file.kept_bytes) = (lines, bytes);
        }
    }

    /// Empties the file of all that is not kept: from here on there are results to put into it. A model that cannot be
    /// opened has not cost the results of an earlier run by then.
    pub(super) fn begin(&mut self) -> anyhow::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let begun = file.handle.set_len(file.kept_bytes).and_then(|()| file.handle.seek(SeekFrom::End(0)));
        begun.map(drop).with_context(|| format!("cannot write {}", self.name))
    }

    /// Writes a line in one piece and hands it on, so that a reader sees it now and whatever ends this process does not
    /// take it along.
    pub fn line(&mut self, line: &str) -> anyhow::Result<()> {
        self.line.clear();
        self.line.push_str(line);
        self.line.push('\n');
        self.writer
            .write_all(self.line.as_bytes())
            .and_then(|()| self.writer.flush())
            .with_context(|| format!("cannot write {}", self.name))?;
        if let Some(file) = &mut self.file {
            file.lines += 1;
        }
        Ok(())
    }

    /// Brings the file to the disk, where the system may still find that there is no room.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.handle.sync_data().with_context(|| format!("cannot write {}", self.name))
    }

    /// How to go on after `error`, where results are in a file.
    pub(super) fn going_on(&self, error: anyhow::Error) -> anyhow::Error {
        match &self.file {
            Some(OutputFile { lines, .. }) if *lines > 0 => {
                let name = &self.name;
                let report = report(&error);
                anyhow::anyhow!(
                    "{report}\n\nhint: {lines} results are in {name}; `--resume` goes on after them"
                )
            }
            _ => error,
        }
    }
}

/// An error if the output is one of the `inputs`: it would be emptied before it is read, or read without end.
fn check_no_input(output: Option<Identity>, name: &str, inputs: &[InputFile]) -> Result<()> {
    let Some(input) = inputs.iter().find(|input| Some(&input.identity) == output.as_ref()) else {
        return Ok(());
    };
    let message = match &input.name {
        input if input == name => format!("{name} is the input and the output at once"),
        input => format!("the output, {name}, is the same file as {input}, which is read"),
    };
    Err(Error::new(ErrorKind::Options, message)
        .with_hint("write to another file, and move it when it is done"))
}

/// Whether this is the error of writing to a pipe that nobody reads any more.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == IoErrorKind::BrokenPipe)
}

/// Whether a person looks at standard output.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// A result that is one object on one line, led by its `id` or `index`.
pub(super) fn row(key: &Key, fields: Map<String, Value>) -> String {
    struct Row<'a>(&'a Key, Map<String, Value>);
    impl Serialize for Row<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            let Self(key, fields) = self;
            let mut object = serializer.serialize_map(Some(1 + fields.len()))?;
            object.serialize_entry(key.name(), key)?;
            fields.iter().try_for_each(|(name, value)| object.serialize_entry(name, value))?;
            object.end()
        }
    }
    serde_json::to_string(&Row(key, fields)).expect("keys are strings")
}

/// A reward in the fewest digits that name this f32; through f64, JSON's own type, it would carry 17.
fn number(reward: f32) -> Value {
    json!(reward.to_string().parse::<f64>().expect("a printed f32 is a number"))
}

/// The fields of one reward.
pub(super) fn score_fields(score: &Score) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("reward".to_owned(), number(score.reward));
    fields.insert("reward_bf16".to_owned(), number(score.reward_bf16));
    if score.logits.len() > 1 {
        fields.insert("logits".to_owned(), score.logits.iter().map(|&logit| number(logit)).collect());
    }
    fields.insert("tokens".to_owned(), json!(score.tokens));
    if score.truncated {
        fields.insert("truncated".to_owned(), json!(true));
    }
    fields
}

/// The fields of several responses' rewards. A response without one is `null` there and named under `errors`.
pub(super) fn scores_fields(scores: &[Result<Score>]) -> Map<String, Value> {
    let each = |field: fn(&Score) -> Value| -> Value {
        scores.iter().map(|score| score.as_ref().map_or(Value::Null, field)).collect()
    };
    let mut fields = Map::new();
    fields.insert("rewards".to_owned(), each(|score| number(score.reward)));
    fields.insert("rewards_bf16".to_owned(), each(|score| number(score.reward_bf16)));
    fields.insert("tokens".to_owned(), each(|score| json!(score.tokens)));
    fields.insert("best".to_owned(), json!(best(scores)));
    if scores.iter().flatten().any(|score| score.truncated) {
        fields.insert("truncated".to_owned(), each(|score| json!(score.truncated)));
    }
    let errors: Vec<Value> = scores
        .iter()
        .enumerate()
        .filter_map(|(index, score)| {
            let mut error = error_object(score.as_ref().err()?);
            error.insert("response".to_owned(), json!(index));
            Some(Value::Object(error))
        })
        .collect();
    if !errors.is_empty() {
        fields.insert("errors".to_owned(), Value::Array(errors));
    }
    fields
}

/// The index of the highest reward; the first of equals; none when nothing has a reward.
fn best(scores: &[Result<Score>]) -> Option<usize> {
    let rewards =
        scores.iter().enumerate().filter_map(|(index, score)| Some((index, score.as_ref().ok()?.reward)));
    rewards.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(index, _)| index)
}

/// The fields of a line that has no result.
pub(super) fn error_fields(error: &Error) -> Map<String, Value> {
    Map::from_iter([("error".to_owned(), Value::Object(error_object(error)))])
}

fn error_object(error: &Error) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("kind".to_owned(), json!(error.kind().name()));
    object.insert("message".to_owned(), json!(error.message()));
    for (name, value) in [("place", error.place()), ("hint", error.hint())] {
        if let Some(value) = value {
            object.insert(name.to_owned(), json!(value));
        }
    }
    object
}

/// Responses and their rewards for a person to read; the best one is marked.
pub(super) fn table(responses: &[String], scores: &[Result<Score>]) -> String {
    const TEXT_CHARS_MAX: usize = 60;
    let best = best(scores);
    let mut text = String::from("      reward  tokens  response\n");
    for (index, (response, score)) in responses.iter().zip(scores).enumerate() {
        let mark = if best == Some(index) { '*' } else { ' ' };
        let mut line: String = response.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if line.chars().count() > TEXT_CHARS_MAX {
            line = line.chars().take(TEXT_CHARS_MAX - 1).chain(['…']).collect();
        }
        match score {
            Ok(score) => text += &format!("{mark} {:>10.5}  {:>6}  {line}\n", score.reward, score.tokens),
            Err(error) => {
                text += &format!("{mark} {:>10}  {:>6}  {line}: {}\n", "error", "-", error.message())
            }
        }
    }
    text.pop();
    text
}
