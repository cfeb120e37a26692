//! Inputs: files of rows, one after another, to requests.
//! [`request`](kudos::internals::request) defines what a row may contain.
//!
//! [`Input`] reads and counts; [`RawLine::parse`] parses, on any thread. Rows of tables become the
//! text of lines, so that there is one way to read both.

mod lines;
mod paths;
mod row;
mod shard;
#[cfg(feature = "tables")]
mod table;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use serde_json::{Value, json};

use crate::files::{Identity, InputFile, StandardStream, check_format};
use kudos::internals::request::{Parsed, Reading, Request};
use kudos::internals::results::Key;
use kudos::{Error, ErrorKind, Result};
use lines::Lines;
use row::{Notes, Row, cannot_open};
pub(crate) use shard::Shard;
use shard::Span;

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
        Self { index, end, place, text: Ok(text), reading: Arc::default() }
    }

    /// Returns the text of the line, or the error of reading it.
    pub(super) fn into_text(self) -> Result<Vec<u8>> {
        self.text.map_err(|error| error.at(self.place))
    }

    /// Bytes of its text.
    pub(super) fn bytes(&self) -> usize {
        self.text.as_ref().map_or(0, Vec::len)
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
    /// Files that are still to be read.
    files: VecDeque<Source>,
    current: Option<Rows>,
    /// The first row, which was read when the input was opened.
    first: Option<RawLine>,
    /// The input's name in messages.
    name: String,
    identities: Vec<InputFile>,
    described: Vec<Value>,
    several: bool,
    /// Bytes of all files, where known before they are read.
    size: Option<u64>,
    /// Rows and bytes of the files before the current one.
    before: (usize, u64),
    notes: Notes,
}

/// A file, or standard input.
struct Source {
    path: Option<PathBuf>,
    /// Its name in messages.
    name: String,
    /// Its bytes, if it is a regular file.
    bytes: Option<u64>,
    span: Span,
}

/// The rows of one file.
enum Rows {
    Lines(Lines),
    #[cfg(feature = "tables")]
    Table(table::Rows),
}

impl Input {
    /// Opens files, folders and patterns, or standard input for `-`. Errors of the files that can be
    /// found before anything is computed are found here.
    pub(super) fn open(paths: &[PathBuf], reading: Reading, shard: Option<Shard>) -> anyhow::Result<Self> {
        Self::open_as(paths, Some(reading), shard)
    }

    /// Opens a file whose rows are taken whole, with all of their keys.
    pub(super) fn open_whole(path: &Path) -> anyhow::Result<Self> {
        Self::open_as(&[path.to_owned()], None, None)
    }

    fn open_as(paths: &[PathBuf], reading: Option<Reading>, shard: Option<Shard>) -> anyhow::Result<Self> {
        let files = paths::expand(paths)?;
        let several = files.len() > 1;
        let (mut sources, mut identities, mut described) = (VecDeque::new(), Vec::new(), Vec::new());
        for path in files {
            let source = Source::check(path)?;
            identities.extend(source.file());
            described.push(source.described());
            sources.push_back(source);
        }
        let name = match &sources.make_contiguous()[..] {
            [one] => one.name.clone(),
            _ => "the input".to_owned(),
        };
        let mut rows_before = 0;
        if let Some(shard) = shard {
            (sources, rows_before) = sources_of(shard, sources, reading.as_ref())?;
        }
        let size = sources.iter().map(Source::bytes_to_read).sum();
        let (current, first, notes) = (None, None, Notes::default());
        let mut input = Self {
            reading,
            files: sources,
            current,
            first,
            name,
            identities,
            described,
            several,
            size,
            before: (rows_before, 0),
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
        self.identities.iter().cloned()
    }

    /// Returns the name, the size and the time of the last change of each file of the whole input.
    pub(super) fn described(&self) -> &[Value] {
        &self.described
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
                let file = self.several.then(|| Arc::from(&*source.name));
                let place = Place { file, unit: rows.unit(), number: index + 1 };
                let (index, end) = (self.before.0 + index, self.before.1 + end);
                return Ok(Some(RawLine { index, end, place, text, reading }));
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

impl Rows {
    /// Returns the next row of the file with this name.
    fn read(&mut self, name: &str) -> anyhow::Result<Option<Row>> {
        match self {
            Self::Lines(lines) => lines.read(name),
            #[cfg(feature = "tables")]
            Self::Table(rows) => Ok(rows.read().map_err(|error| error.at(name))?),
        }
    }

    /// The word for a row in messages.
    fn unit(&self) -> &'static str {
        match self {
            Self::Lines(_) => "line",
            #[cfg(feature = "tables")]
            Self::Table(_) => "row",
        }
    }

    /// Number of rows that were read, with empty lines.
    fn count(&self) -> usize {
        match self {
            Self::Lines(lines) => lines.count(),
            #[cfg(feature = "tables")]
            Self::Table(rows) => rows.count(),
        }
    }
}

impl Source {
    /// Returns the source of a path after checks that need no rows.
    fn check(path: PathBuf) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            StandardStream::Input.check_open()?;
            return Ok(Self { path: None, name: "standard input".to_owned(), bytes: None, span: Span::ALL });
        }
        let name = format!("`{}`", path.display());
        let file = File::open(&path).map_err(|error| cannot_open(&path, error))?;
        let metadata = file.metadata().map_err(|error| cannot_open(&path, error))?;
        let bytes = metadata.is_file().then_some(metadata.len());
        if bytes.is_some() {
            // A read error here shows again at the first line.
            check_format(BufReader::new(file).fill_buf().unwrap_or_default(), &name)?;
        }
        Ok(Self { path: Some(path), name, bytes, span: Span::ALL })
    }

    /// Returns its name, its size and the time of its last change, in nanoseconds since 1970.
    fn described(&self) -> Value {
        let modified = self.path.as_ref().and_then(|path| fs::metadata(path).ok()?.modified().ok());
        let modified =
            modified.and_then(|time| Some(time.duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64));
        let path = self.path.as_ref().map(|path| path.display().to_string());
        json!({"path": path, "bytes": self.bytes, "modified": modified})
    }

    /// The file, if it is a regular one.
    fn file(&self) -> Option<InputFile> {
        let identity = match &self.path {
            None => StandardStream::Input.identity(),
            Some(path) => fs::metadata(path).ok().as_ref().and_then(Identity::of),
        }?;
        Some(InputFile { identity, name: self.name.clone() })
    }

    /// Opens the rows of the file.
    fn open(&self, reading: Option<&Reading>, notes: &Notes) -> anyhow::Result<Rows> {
        let Some(path) = &self.path else {
            return self.rows(BufReader::new(io::stdin()), None, reading, notes);
        };
        let file = File::open(path).map_err(|error| cannot_open(path, error))?;
        let table = file.try_clone().ok().filter(|_| self.bytes.is_some());
        let rows = self.rows(BufReader::new(file), table, reading, notes)?;
        match rows {
            Rows::Lines(lines) if self.span.is_part() => {
                let cannot_read = || format!("cannot read {}", self.name);
                // The first line of the file decides, also where it is in another shard.
                let reading = lines.decided(&self.name)?;
                let mut file = File::open(path).map_err(|error| cannot_open(path, error))?;
                file.seek(SeekFrom::Start(self.span.start)).with_context(cannot_read)?;
                let bytes = self.span.end.map_or(u64::MAX, |end| end - self.span.start);
                let reader = Box::new(BufReader::new(file.take(bytes)));
                Ok(Rows::Lines(Lines::new(reader, reading, notes.clone()).after(self.span.rows_before)))
            }
            rows => Ok(rows),
        }
    }

    /// Bytes of the part of the file that is read, where known.
    fn bytes_to_read(&self) -> Option<u64> {
        self.span.bytes.or(self.bytes)
    }

    /// Returns the rows of the format that the first bytes are of. Tables need the file itself.
    fn rows(
        &self,
        mut reader: impl BufRead + Send + 'static,
        file: Option<File>,
        reading: Option<&Reading>,
        notes: &Notes,
    ) -> anyhow::Result<Rows> {
        let start = reader.fill_buf().with_context(|| format!("cannot read {}", self.name))?;
        check_format(start, &self.name)?;
        #[cfg(feature = "tables")]
        {
            use kudos_tables::Container;
            let container = Container::of(start);
            if container.is_table() {
                let Some(file) = file else {
                    let message =
                        format!("{} is a table, which is not read from its start to its end", self.name);
                    return Err(Error::new(ErrorKind::Io, message).with_hint("name the file itself").into());
                };
                let rows = table::Rows::open(file, container, reading, self.span);
                let rows = rows.map_err(|error| error.at(&self.name))?;
                notes.push(rows.note(&self.name));
                return Ok(Rows::Table(rows));
            }
            if container != Container::Lines {
                let counted = lines::Counted::new(reader);
                let count = counted.count();
                let lines = kudos_tables::lines(container, counted)
                    .with_context(|| format!("cannot read {}", self.name))?;
                return Ok(Rows::Lines(Lines::new(lines, reading.cloned(), notes.clone()).compressed(count)));
            }
        }
        let _ = file;
        Ok(Rows::Lines(Lines::new(Box::new(reader), reading.cloned(), notes.clone())))
    }
}

/// Returns the sources of a shard, and the number of rows of the files before them.
fn sources_of(
    shard: Shard,
    sources: VecDeque<Source>,
    reading: Option<&Reading>,
) -> anyhow::Result<(VecDeque<Source>, usize)> {
    let total: Option<u64> = sources.iter().map(|source| source.bytes).sum();
    let Some(total) = total else {
        let error = Error::new(ErrorKind::Options, "standard input and pipes have no shards");
        return Err(error.with_hint("`--shard` needs files, whose sizes are known").into());
    };
    let [start, end] = shard.cuts(total);
    let (mut kept, mut rows_before, mut base) = (VecDeque::new(), 0, 0);
    for mut source in sources {
        let bytes = source.bytes.unwrap_or_default();
        let cut = |position: u64| -> anyhow::Result<Option<u64>> {
            match position.saturating_sub(base) {
                0 => Ok(Some(0)),
                within if within < bytes => source.cut(within, reading),
                _ => Ok(None),
            }
        };
        let (from, to) = (cut(start)?, cut(end)?);
        base += bytes;
        match (from, to) {
            (_, Some(0)) => break,
            (None, _) => rows_before += source.count(None)?,
            (Some(from), to) if Some(from) != to => {
                let count = if from == 0 { 0 } else { source.count(Some(from))? };
                let cut_bytes = end.min(base).saturating_sub(start.max(base - bytes));
                source.span = Span { start: from, end: to, rows_before: count, bytes: Some(cut_bytes) };
                kept.push_back(source);
            }
            _ => {}
        }
    }
    Ok((kept, rows_before))
}

impl Source {
    /// Returns the byte of lines, or the row of a Parquet file, of a cut at a byte within the file;
    /// `None` for its end.
    fn cut(&self, position: u64, reading: Option<&Reading>) -> anyhow::Result<Option<u64>> {
        let Some(path) = &self.path else { return Ok(None) };
        let cannot_read = || format!("cannot read {}", self.name);
        let mut file = File::open(path).map_err(|error| cannot_open(path, error))?;
        let reading = reading.cloned().unwrap_or_default();
        #[cfg(feature = "tables")]
        {
            use kudos_tables::Container;
            let mut start = Vec::new();
            (&mut file)
                .take(Container::START_BYTES as u64)
                .read_to_end(&mut start)
                .with_context(cannot_read)?;
            match Container::of(&start) {
                Container::Lines => {}
                Container::Parquet => {
                    let share = position as f64 / self.bytes.unwrap_or(1) as f64;
                    let row = table::cut(file, share, &reading).map_err(|error| error.at(&self.name))?;
                    return Ok(row);
                }
                _ => return Ok(None),
            }
        }
        let byte = shard::cut_of_lines(&mut file, position, &reading).with_context(cannot_read)?;
        Ok(Some(byte).filter(|byte| Some(*byte) < self.bytes))
    }

    /// Returns the number of rows before a cut, with empty lines; `None` for its end.
    fn count(&self, cut: Option<u64>) -> anyhow::Result<usize> {
        let Some(path) = &self.path else { return Ok(0) };
        let cannot_read = || format!("cannot read {}", self.name);
        let file = File::open(path).map_err(|error| cannot_open(path, error))?;
        #[cfg(feature = "tables")]
        {
            use kudos_tables::Container;
            let mut reader = BufReader::new(file.try_clone().with_context(cannot_read)?);
            let container = Container::of(reader.fill_buf().with_context(cannot_read)?);
            if container.is_table() {
                let count = table::count(file, container).map_err(|error| error.at(&self.name))?;
                return Ok(cut.map_or(count, |row| row as usize));
            }
            if container != Container::Lines {
                let mut lines = kudos_tables::lines(container, reader).with_context(cannot_read)?;
                return shard::count_lines(&mut lines, u64::MAX).with_context(cannot_read);
            }
            (&file).rewind().with_context(cannot_read)?;
        }
        let mut file = file;
        shard::count_lines(&mut file, cut.unwrap_or(u64::MAX)).with_context(cannot_read)
    }
}
