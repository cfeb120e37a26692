//! Input lines to requests. [`request`](kudos::internals::request) defines what a line may contain.
//!
//! [`Lines`] reads and counts; [`RawLine::parse`] parses, on any thread.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Context;

use crate::files::{Identity, InputFile, StandardStream, check_format};
use kudos::internals::request::{self, BYTE_ORDER_MARK, Parsed, Request};
use kudos::internals::results::Key;
use kudos::{Error, ErrorKind, Result};

/// A parsed line of input: the key of its result, and its request.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) key: Key,
    /// The request, or the error of parsing it.
    pub(super) request: Result<Request>,
}

/// Limit on the bytes of a line; a longer one is an error of that line. A file that is not JSON
/// lines may be one long line, and must not end up in memory.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// A line as it was read.
#[derive(Debug)]
pub(super) struct RawLine {
    /// The line's number, from 0; empty lines count.
    pub(super) index: usize,
    /// Bytes of the input up to the end of this line.
    pub(super) end: u64,
    /// The bytes of the line, or the error if it exceeds the limit.
    text: Result<Vec<u8>>,
}

impl RawLine {
    /// Bytes of its text.
    pub(super) fn bytes(&self) -> usize {
        self.text.as_ref().map_or(0, Vec::len)
    }

    /// Parses the line.
    pub(super) fn parse(&self) -> Line {
        match &self.text {
            Ok(text) => parse(text, self.index),
            Err(error) => Line { key: Key::Index(self.index), request: Err(error.clone()) },
        }
    }
}

/// The lines of a file, or of standard input for `-`. Empty lines are skipped, but counted.
pub(super) struct Lines {
    reader: Box<dyn BufRead + Send>,
    /// The input's name in messages.
    name: String,
    /// The file, if it is a regular one.
    identity: Option<Identity>,
    /// Bytes of the input, where known before it is read.
    size: Option<u64>,
    index: usize,
    read_bytes: u64,
    line_bytes_max: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let new = |reader, name, size, identity| Self {
            reader,
            name,
            identity,
            size,
            index: 0,
            read_bytes: 0,
            line_bytes_max: LINE_BYTES_MAX,
        };
        if path == Path::new("-") {
            StandardStream::Input.check_open()?;
            let (reader, name) = (Box::new(BufReader::new(io::stdin())), "standard input".to_owned());
            return Ok(new(reader, name, None, StandardStream::Input.identity()));
        }
        let cannot_open = |error: io::Error| {
            Error::new(ErrorKind::Io, "cannot open the input")
                .caused_by(error)
                .at(path.display())
                .with_hint("name a file with one conversation on each line, or `-` for standard input")
        };
        let file = File::open(path).map_err(cannot_open)?;
        let metadata = file.metadata().map_err(cannot_open)?;
        if metadata.is_dir() {
            return Err(cannot_open(io::ErrorKind::IsADirectory.into()).into());
        }
        let metadata = Some(metadata).filter(fs::Metadata::is_file);
        let (mut reader, name) = (Box::new(BufReader::new(file)), format!("`{}`", path.display()));
        if metadata.is_some() {
            // Before anything is loaded. A read error here shows again at the first line.
            check_format(reader.fill_buf().unwrap_or_default(), &name)?;
        }
        let identity = metadata.as_ref().and_then(Identity::of);
        Ok(new(reader, name, metadata.map(|metadata| metadata.len()), identity))
    }

    /// The file that is read, if it is a regular one, for
    /// [`Output::open`](crate::output::Output::open).
    pub(super) fn file(&self) -> Option<InputFile> {
        let identity = self.identity.clone()?;
        Some(InputFile { identity, name: self.name.clone() })
    }

    /// The input's name in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the input, where known before it is read.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next line, empty or not.
    fn read(&mut self) -> io::Result<Option<RawLine>> {
        let mut text = Vec::new();
        let limit = self.line_bytes_max;
        let mut bytes = (&mut self.reader).take(limit).read_until(b'\n', &mut text)? as u64;
        let mut text = Ok(text);
        if bytes == limit && text.as_ref().is_ok_and(|text| !text.ends_with(b"\n")) {
            let rest = self.reader.skip_until(b'\n')? as u64;
            bytes += rest;
            if rest > 0 {
                let message = format!("the line has {bytes} bytes, the limit is {limit}");
                text = Err(on_line(wrong(message), self.index));
            }
        }
        let (index, end) = (self.index, self.read_bytes + bytes);
        self.index += 1;
        self.read_bytes = end;
        Ok((bytes > 0).then_some(RawLine { index, end, text }))
    }
}

impl Iterator for Lines {
    type Item = anyhow::Result<RawLine>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read() {
                Err(error) => return Some(Err(error).with_context(|| format!("cannot read {}", self.name))),
                Ok(None) => return None,
                Ok(Some(RawLine { text: Ok(text), .. })) if is_blank(&text) => {}
                Ok(Some(RawLine { index: 0, text: Ok(text), .. }))
                    if let Err(error) = check_format(&text, &self.name) =>
                {
                    return Some(Err(error.into()));
                }
                Ok(Some(line)) => return Some(Ok(line)),
            }
        }
    }
}

/// Returns true for a line of white space, also after the byte order marks of empty files.
fn is_blank(text: &[u8]) -> bool {
    let mark = BYTE_ORDER_MARK.to_string();
    let mut text = text;
    while let Some(rest) = text.strip_prefix(mark.as_bytes()) {
        text = rest;
    }
    text.trim_ascii().is_empty()
}

/// Parses line `index`, from 0.
pub(super) fn parse(bytes: &[u8], index: usize) -> Line {
    let Parsed { id, request } = request::parse(bytes);
    let key = id.map_or(Key::Index(index), Key::Id);
    Line { key, request: request.map_err(|error| on_line(error, index)) }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

fn on_line(error: Error, index: usize) -> Error {
    error.at(format!("input line {}", index + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn lines(text: &str, line_bytes_max: u64) -> Vec<RawLine> {
        let reader = Box::new(Cursor::new(text.as_bytes().to_vec()));
        let (name, index, read_bytes) = ("a test".to_owned(), 0, 0);
        let lines = Lines { reader, name, identity: None, size: None, index, read_bytes, line_bytes_max };
        lines.collect::<anyhow::Result<_>>().unwrap()
    }

    #[test]
    fn lines_have_their_index_and_the_offset_of_their_end() {
        let read = lines("{}\n\n  \r\n[]", 100);
        let places: Vec<(usize, u64)> = read.iter().map(|line| (line.index, line.end)).collect();
        assert_eq!(places, [(0, 3), (3, 10)]);
    }

    #[test]
    fn a_line_over_the_limit_is_an_error_and_is_not_kept() {
        let read = lines("{\"input_ids\": [1, 2, 3, 4, 5]}\n{\"input_ids\": [1]}\n", 20);
        assert_eq!(read.len(), 2);
        let error = read[0].parse().request.unwrap_err();
        assert_eq!(error.message(), "the line has 31 bytes, the limit is 20");
        assert_eq!((error.place(), read[0].text.is_err()), (Some("input line 1"), true));
        assert_eq!(read[0].end, 31);
        assert!(read[1].parse().request.is_ok());
    }
}
