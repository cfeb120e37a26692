//! Files, or standard input: their format, their rows, and their parts in a shard.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::Context;
use serde_json::{Value, json};

use super::lines::Lines;
use super::row::{Notes, Row, cannot_open};
use super::shard::{self, Shard, Span};
#[cfg(feature = "tables")]
use super::table;
use crate::files::{Identity, InputFile, StandardStream, check_format};
use kudos::internals::request::Reading;
use kudos::{Error, ErrorKind};

/// A file, or standard input.
#[derive(Clone)]
pub(super) struct Source {
    path: Option<PathBuf>,
    /// Its name in messages.
    pub(super) name: String,
    /// Its bytes, if it is a regular file.
    pub(super) bytes: Option<u64>,
    span: Span,
}

/// The rows of one file.
pub(super) enum Rows {
    Lines(Lines),
    #[cfg(feature = "tables")]
    Table(table::Rows),
}

impl Rows {
    /// Returns the next row of the file with this name.
    pub(super) fn read(&mut self, name: &str) -> anyhow::Result<Option<Row>> {
        match self {
            Self::Lines(lines) => lines.read(name),
            #[cfg(feature = "tables")]
            Self::Table(rows) => Ok(rows.read().map_err(|error| error.at(name))?),
        }
    }

    /// The word for a row in messages.
    pub(super) fn unit(&self) -> &'static str {
        match self {
            Self::Lines(_) => "line",
            #[cfg(feature = "tables")]
            Self::Table(_) => "row",
        }
    }

    /// Number of rows that were read, with empty lines.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Lines(lines) => lines.count(),
            #[cfg(feature = "tables")]
            Self::Table(rows) => rows.count(),
        }
    }
}

impl Source {
    /// Returns the source of a path after checks that need no rows.
    pub(super) fn check(path: PathBuf) -> anyhow::Result<Self> {
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
    pub(super) fn described(&self) -> Value {
        let modified = self.path.as_ref().and_then(|path| fs::metadata(path).ok()?.modified().ok());
        let modified =
            modified.and_then(|time| Some(time.duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64));
        let path = self.path.as_ref().map(|path| path.display().to_string());
        json!({"path": path, "bytes": self.bytes, "modified": modified})
    }

    /// The file, if it is a regular one.
    pub(super) fn file(&self) -> Option<InputFile> {
        let identity = match &self.path {
            None => StandardStream::Input.identity(),
            Some(path) => fs::metadata(path).ok().as_ref().and_then(Identity::of),
        }?;
        Some(InputFile { identity, name: self.name.clone() })
    }

    /// Opens the rows of the file.
    pub(super) fn open(&self, reading: Option<&Reading>, notes: &Notes) -> anyhow::Result<Rows> {
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

    /// Returns the file as a table, and the rows of it that are read; `None` for lines.
    #[cfg(feature = "tables")]
    pub(super) fn table(&self) -> anyhow::Result<Option<(kudos_tables::Table, Span)>> {
        use kudos_tables::{Container, Table};
        let Some(path) = self.path.as_ref().filter(|_| self.bytes.is_some()) else { return Ok(None) };
        let file = File::open(path).map_err(|error| cannot_open(path, error))?;
        let mut start = Vec::new();
        (&file)
            .take(Container::START_BYTES as u64)
            .read_to_end(&mut start)
            .with_context(|| format!("cannot read {}", self.name))?;
        let container = Container::of(&start);
        if !container.is_table() {
            return Ok(None);
        }
        let table = Table::open(file, container).map_err(|error| error.at(&self.name))?;
        Ok(Some((table, self.span)))
    }

    /// Bytes of the part of the file that is read, where known.
    pub(super) fn bytes_to_read(&self) -> Option<u64> {
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
                let counted = super::lines::Counted::new(reader);
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
pub(super) fn sources_of(
    shard: Shard,
    sources: &[Source],
    reading: Option<&Reading>,
) -> anyhow::Result<(VecDeque<Source>, usize)> {
    let total: Option<u64> = sources.iter().map(|source| source.bytes).sum();
    let Some(total) = total else {
        let error = Error::new(ErrorKind::Options, "standard input and pipes have no shards");
        return Err(error.with_hint("`--shard` needs files, whose sizes are known").into());
    };
    let [start, end] = shard.cuts(total);
    let (mut kept, mut rows_before, mut base) = (VecDeque::new(), 0, 0);
    for source in sources {
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
                let span = Span { start: from, end: to, rows_before: count, bytes: Some(cut_bytes) };
                kept.push_back(Source { span, ..source.clone() });
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
