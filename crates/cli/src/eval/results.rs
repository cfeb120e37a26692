//! Files of results: by item for `--scores` and `--baseline`, and line by line for `--resume`.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value};

use crate::eval::entry::{ERROR, Entry, fingerprint, id, is_added, key, object};
use crate::eval::items::items;
use crate::eval::metrics::{Benchmark, Content};
use crate::output::Output;
use kudos::{Error, ErrorKind, Result};

/// A file of results in memory, without the texts of its items.
pub(crate) struct ResultsFile {
    /// Its name in messages.
    pub(crate) name: String,
    by_key: HashMap<String, VecDeque<Recorded>>,
}

/// A line of results.
struct Recorded {
    /// The fields that results add to an item.
    added: Map<String, Value>,
    /// That of the item, if the line has all of it.
    fingerprint: Option<u64>,
}

impl ResultsFile {
    /// Reads a file.
    pub(crate) fn read<B: Benchmark>(benchmark: &B, path: &Path) -> anyhow::Result<Self> {
        let file = items(path)?;
        let name = file.name.clone();
        let mut by_key = HashMap::<String, VecDeque<Recorded>>::new();
        for (index, item) in file.enumerate() {
            let line = object(&item?.text?).map_err(|error| error.at(format!("result {index} of {name}")))?;
            let key = key(id::<B>(&line).as_deref(), index);
            let fingerprint = benchmark.read(&line).ok().map(|content| fingerprint(&content));
            let added = added::<B>(line).0;
            by_key.entry(key).or_default().push_back(Recorded { added, fingerprint });
        }
        Ok(Self { name, by_key })
    }

    /// Takes the scores of an item: `None` if the file has no such item, an inner error if it has
    /// no scores of it, an outer error if it is another item.
    pub(crate) fn take<B: Benchmark>(
        &mut self,
        benchmark: &B,
        key: &str,
        item: (&B::Labels, u64),
    ) -> Result<Option<Result<Vec<f64>>>> {
        let Some(recorded) = self.by_key.get_mut(key).and_then(VecDeque::pop_front) else { return Ok(None) };
        let (labels, fingerprint) = item;
        let is_other = match recorded.fingerprint {
            Some(recorded) => recorded != fingerprint,
            // Without its text, an item is known by its id alone.
            None => key.starts_with('#') && !recorded.added.contains_key(ERROR),
        };
        if is_other {
            let message = format!("the result `{key}` in {} is of an item with another text", self.name);
            return Err(Error::new(ErrorKind::Options, message)
                .with_hint("results belong to the file that they were made from: name that file"));
        }
        Ok(Some(scores(benchmark, labels, &recorded.added)))
    }

    /// Takes the result of an item that cannot be read, if the file has one.
    pub(crate) fn skip(&mut self, key: &str) {
        self.by_key.get_mut(key).and_then(VecDeque::pop_front);
    }

    /// Returns the number of results that were not taken.
    pub(crate) fn left(&self) -> usize {
        self.by_key.values().map(VecDeque::len).sum()
    }
}

/// Splits a line of results: the fields that results add, and the item.
fn added<B: Benchmark>(line: Map<String, Value>) -> (Map<String, Value>, Map<String, Value>) {
    line.into_iter().partition(|(key, _)| is_added::<B>(key))
}

/// Returns the scores among the fields of a result.
fn scores<B: Benchmark>(benchmark: &B, labels: &B::Labels, fields: &Map<String, Value>) -> Result<Vec<f64>> {
    match fields.get(ERROR) {
        None => benchmark.scores(labels, fields),
        Some(error) => {
            let message = error.get("message").and_then(Value::as_str).unwrap_or("an error");
            Err(Error::new(ErrorKind::InvalidInput, format!("the results have an error: {message}")))
        }
    }
}

/// A line that an earlier run wrote, and its item.
pub(crate) struct Kept<L> {
    pub(crate) entry: Entry<L>,
    /// Its scores, or its error.
    pub(crate) scores: Result<Vec<f64>>,
    pub(crate) line: String,
}

/// Reads the whole lines of an output that belong to the first of `entries`, passes each to `kept`,
/// and has the output keep them. The part of a line at the end is dropped. Lines of other items are
/// an error.
pub(crate) fn resume<B: Benchmark>(
    benchmark: &B,
    entries: &mut dyn Iterator<Item = anyhow::Result<Entry<B::Labels>>>,
    output: &mut Output,
    mut kept: impl FnMut(Kept<B::Labels>),
) -> anyhow::Result<()> {
    let Some(file) = output.file() else {
        let message = format!("{} cannot be resumed", output.name());
        let error = Error::new(ErrorKind::Options, message);
        return Err(error.with_hint("`--resume` needs `--output` with a regular file").into());
    };
    let cannot_read = || format!("cannot read {}", output.name());
    let mut reader = BufReader::new(File::open(&file.path).with_context(cannot_read)?);
    let (mut lines, mut bytes) = (0, 0);
    loop {
        let mut text = Vec::new();
        let read_bytes = reader.read_until(b'\n', &mut text).with_context(cannot_read)?;
        if text.pop() != Some(b'\n') {
            break;
        }
        let other = |why: &str| {
            let message = format!("line {} of {} {why}", lines + 1, output.name());
            Error::new(ErrorKind::Options, message)
                .with_hint("give the file of the earlier run, or leave out `--resume` to start over")
        };
        let entry = entries.next().transpose()?.ok_or_else(|| other("has no item: the file has fewer"))?;
        let (fields, item) = object(&text).map(added::<B>).map_err(|_| other("is no result"))?;
        if !entry.is_item(&item) {
            return Err(other(&format!("is not the result of item {}", entry.index)).into());
        }
        let scores = match &entry.content {
            Ok(Content { labels, .. }) => {
                scores(benchmark, labels, &fields).map_err(|error| entry.failed(error))
            }
            Err(error) => Err(error.clone()),
        };
        // Valid UTF-8: it was parsed as JSON.
        let line = String::from_utf8_lossy(&text).into_owned();
        kept(Kept { entry, scores, line });
        lines += 1;
        bytes += read_bytes as u64;
    }
    output.keep(lines, bytes);
    Ok(())
}
