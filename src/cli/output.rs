//! Results out: JSON lines written whole, or a table for a person.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind as IoErrorKind, IsTerminal, Write};
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::engine::Score;
use crate::error::{Error, Result};

/// Where data goes. Unlike `println!` it reports a closed pipe or a full disk instead of panicking.
pub(super) struct Output {
    writer: BufWriter<Box<dyn Write + Send>>,
    /// The file, while it still has what an earlier run wrote.
    earlier: Option<File>,
    name: String,
}

impl Output {
    /// A file that is opened now, so that one that cannot be written is an error before anything is computed; or
    /// standard output. What the file holds stays until [`begin`](Self::begin).
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let (writer, earlier, name): (Box<dyn Write + Send>, _, _) = match path {
            None => (Box::new(io::stdout()), None, "standard output".to_owned()),
            Some(path) => {
                let name = format!("`{}`", path.display());
                let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
                let opened = file.and_then(|file| Ok((file.try_clone()?, file)));
                let (file, earlier) = opened.with_context(|| format!("cannot write {name}"))?;
                (Box::new(file), Some(earlier), name)
            }
        };
        Ok(Self { writer: BufWriter::new(writer), earlier, name })
    }

    /// Empties the file: from here on there are results to put into it. A model that cannot be opened has not cost
    /// the results of an earlier run by then.
    pub(super) fn begin(&mut self) -> anyhow::Result<()> {
        match self.earlier.take() {
            // A device or a pipe has no length to set.
            Some(file) if file.metadata().is_ok_and(|metadata| metadata.is_file()) => {
                file.set_len(0).with_context(|| format!("cannot write {}", self.name))
            }
            _ => Ok(()),
        }
    }

    /// Writes a line and hands it on, so that a reader sees it now and a crash later does not take it along.
    pub(super) fn line(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.writer, "{line}")
            .and_then(|()| self.writer.flush())
            .with_context(|| format!("cannot write {}", self.name))
    }
}

/// Whether this is the error of writing to a pipe that nobody reads any more.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == IoErrorKind::BrokenPipe)
}

/// Whether a person looks at standard output.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// A result that is one object on one line, led by its `id` or `index`.
pub(super) fn row(key: (&'static str, Value), fields: Map<String, Value>) -> String {
    let mut object = Map::new();
    object.insert(key.0.to_owned(), key.1);
    object.extend(fields);
    Value::Object(object).to_string()
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
