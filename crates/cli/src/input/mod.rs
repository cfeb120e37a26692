//! Inputs: files of rows, one after another, to requests.
//! [`request`](kudos::internals::request) defines what a row may contain.
//!
//! [`Input`] reads and counts; [`RawLine::parse`] parses, on any thread. Rows of tables become the
//! text of lines, so that there is one way to read both.

#[cfg(feature = "tables")]
mod copy;
mod lines;
mod paths;
mod row;
mod shard;
mod source;
#[cfg(feature = "tables")]
mod table;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::files::InputFile;
#[cfg(feature = "tables")]
pub(crate) use copy::Tables;
use kudos::Result;
use kudos::internals::request::{Parsed, Reading, Request};
use kudos::internals::results::Key;
use row::{Notes, Row};
pub(crate) use shard::Shard;
use shard::prompt_of;
use source::{Rows, Source, sources_of};

/// A parsed line of input: the key of its result, and its request.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) key: Key,
    /// The request, or the error of parsing it.
    pub(super) request: Result<Request>,
}

/// A line as it was read, or a row of a table as the line that it would be.
#[derive(Debug)]
pub(super) struct RawLine {
    /// The line's number over all files, from 0; empty lines count.
    pub(super) index: usize,
    /// Its number among the rows that are read, from 0.
    pub(super) number: usize,
    /// Bytes of the input up to the end of this line.
    pub(super) end: u64,
    place: Place,
    /// The bytes of the line, or the error of reading it.
    text: Result<Vec<u8>>,
    reading: Arc<Reading>,
}

/// The place of a line in messages.
#[derive(Clone, Debug)]
struct Place {
    /// The file, where there are several.
    file: Option<Arc<str>>,
    unit: &'static str,
    /// The number in its file, from 1.
    number: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, unit, number } = self;
        match file {
            None => write!(f, "input {unit} {number}"),
            Some(file) => write!(f, "{unit} {number} of {file}"),
        }
    }
}

impl RawLine {
    /// Returns line `index` of an input, from 0, with this text.
    pub(super) fn new(index: usize, end: u64, text: Vec<u8>) -> Self {
        let place = Place { file: None, unit: "line", number: index + 1 };
        Self { index, number: index, end, place, text: Ok(text), reading: Arc::default() }
    }

    /// Returns the text of the line, or the error of reading it.
    pub(super) fn into_text(self) -> Result<Vec<u8>> {
        self.text.map_err(|error| error.at(self.place))
    }

    /// Returns its place in messages.
    pub(super) fn place(&self) -> String {
        self.place.to_string()
    }

    /// Returns the text of the line, where it could be read.
    pub(super) fn text(&self) -> Option<&[u8]> {
        self.text.as_deref().ok()
    }

    /// Bytes of its text.
    pub(super) fn bytes(&self) -> usize {
        self.text.as_ref().map_or(0, Vec::len)
    }

    /// Returns a number that is equal for lines with the same turns before their responses; `None`
    /// for token ids and for a line that cannot be read.
    pub(super) fn prompt_hash(&self) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        prompt_of(&self.reading, self.text.as_ref().ok()?)?.hash(&mut hasher);
        Some(hasher.finish())
    }

    /// Parses the line.
    pub(super) fn parse(&self) -> Line {
        let Parsed { id, request } = match &self.text {
            Ok(text) => self.reading.parse(text),
            Err(error) => Parsed { id: None, request: Err(error.clone()) },
        };
        let key = id.map_or(Key::Index(self.index), Key::Id);
        Line { key, request: request.map_err(|error| error.at(&self.place)) }
    }
}

/// Parses line `index`, from 0.
pub(super) fn parse(bytes: &[u8], index: usize) -> Line {
    RawLine::new(index, 0, bytes.to_vec()).parse()
}

/// Files, or standard input, whose rows are read one after another. Empty lines are skipped, but
/// counted.
pub(super) struct Input {
    /// How rows are read, as far as options say it; `None` where they are taken whole.
    reading: Option<Reading>,
    /// All files, also those of other shards.
    all: Vec<Source>,
    /// Files that are still to be read.
    files: VecDeque<Source>,
    current: Option<Rows>,
    /// The first row, which was read when the input was opened.
    first: Option<RawLine>,
    /// The input's name in messages.
    name: String,
    /// Bytes of all files, where known before they are read.
    size: Option<u64>,
    /// Rows and bytes of the files before the current one.
    before: (usize, u64),
    /// Number of rows that were read.
    count: usize,
    notes: Notes,
}

/// The files of an input.
pub(super) struct Files(Vec<Source>);

impl Files {
    /// Returns the name, the size and the time of the last change of each, as they are now.
    pub(super) fn described(&self) -> Vec<Value> {
        self.0.iter().map(Source::described).collect()
    }
}

impl Input {
    /// Opens files, folders and patterns, or standard input for `-`. Errors of the files that can
    /// be found before anything is computed are found here.
    pub(super) fn open(paths: &[PathBuf], reading: Reading, shard: Option<Shard>) -> anyhow::Result<Self> {
        Self::open_as(paths, Some(reading), shard)
    }

    /// Opens a file whose rows are taken whole, with all of their keys.
    pub(super) fn open_whole(path: &Path) -> anyhow::Result<Self> {
        Self::open_as(&[path.to_owned()], None, None)
    }

    fn open_as(paths: &[PathBuf], reading: Option<Reading>, shard: Option<Shard>) -> anyhow::Result<Self> {
        let files = paths::expand(paths)?;
        let all = files.into_iter().map(Source::check).collect::<anyhow::Result<Vec<Source>>>()?;
        let name = match &all[..] {
            [one] => one.name.clone(),
            _ => "the input".to_owned(),
        };
        let (files, rows_before) = match shard {
            None => (all.clone().into(), 0),
            Some(shard) => sources_of(shard, &all, reading.as_ref())?,
        };
        let size = files.iter().map(Source::bytes_to_read).sum();
        let (current, first, notes) = (None, None, Notes::default());
        let mut input = Self {
            reading,
            all,
            files,
            current,
            first,
            name,
            size,
            before: (rows_before, 0),
            count: 0,
            notes,
        };
        // What decides how rows are read shows before the model is loaded; a pipe may have to be
        // waited for.
        if input.files.front().is_some_and(|source| source.bytes.is_some()) {
            input.first = input.next().transpose()?;
        }
        // So does that of later files.
        for source in input.files.iter().skip(1).filter(|source| source.bytes.is_some()) {
            let mut rows = source.open(input.reading.as_ref(), &Notes::default())?;
            rows.read(&source.name)?;
        }
        Ok(input)
    }

    /// The regular files that are read, for [`Output::open`](crate::output::Output::open).
    pub(super) fn files(&self) -> impl Iterator<Item = InputFile> + '_ {
        self.all.iter().filter_map(Source::file)
    }

    /// Returns the files of the whole input.
    pub(super) fn sources(&self) -> Files {
        Files(self.all.clone())
    }

    /// Returns whether its first file is a table.
    #[cfg(feature = "tables")]
    pub(super) fn is_table(&self) -> anyhow::Result<bool> {
        Ok(self.all.first().map(Source::table).transpose()?.flatten().is_some())
    }

    /// Returns the tables of the input, which is read from its start. A file that is not a table is an
    /// error.
    #[cfg(feature = "tables")]
    pub(super) fn tables(&self) -> anyhow::Result<Tables> {
        Tables::new(&self.all, self.files.iter().cloned().collect(), self.reading.as_ref())
    }

    /// The input's name in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the input, where known before it is read.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Messages about the input, as they are found.
    pub(super) fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// Reads the next row of all files; `None` after the last one.
    fn read(&mut self) -> anyhow::Result<Option<RawLine>> {
        loop {
            let Some(rows) = &mut self.current else {
                let Some(source) = self.files.front() else { return Ok(None) };
                self.current = Some(source.open(self.reading.as_ref(), &self.notes)?);
                continue;
            };
            let source = self.files.front().expect("the current file is the first one");
            let row = rows.read(&source.name)?;
            if let Some(Row { index, end, text, reading }) = row {
                let file = (self.all.len() > 1).then(|| Arc::from(&*source.name));
                let place = Place { file, unit: rows.unit(), number: index + 1 };
                let (index, end) = (self.before.0 + index, self.before.1 + end);
                let number = self.count;
                self.count += 1;
                return Ok(Some(RawLine { index, number, end, place, text, reading }));
            }
            self.before.0 += rows.count();
            self.before.1 += source.bytes_to_read().unwrap_or(0);
            self.current = None;
            self.files.pop_front();
        }
    }
}

impl Iterator for Input {
    type Item = anyhow::Result<RawLine>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => self.read().transpose(),
        }
    }
}
