//! Lines of JSON, plain or compressed.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;

use super::row::{Notes, Row, wrong};
use crate::files::check_format;
use kudos::Result;
use kudos::internals::request::{BYTE_ORDER_MARK, Reading, TEXT_BYTES_MAX};

/// The lines of a file.
pub(super) struct Lines {
    reader: Box<dyn BufRead + Send>,
    reading: Arc<Reading>,
    /// Whether the first line decides how lines are read.
    decides: bool,
    notes: Notes,
    index: usize,
    read_bytes: u64,
    /// Bytes read of the compressed file, if it is one.
    compressed_bytes: Option<Arc<AtomicU64>>,
    line_bytes_max: u64,
}

impl Lines {
    /// Returns the lines of a reader, which are taken as they are where there is no reading.
    pub(super) fn new(reader: Box<dyn BufRead + Send>, reading: Option<Reading>, notes: Notes) -> Self {
        Self {
            reader,
            decides: reading.is_some(),
            reading: Arc::new(reading.unwrap_or_default()),
            notes,
            index: 0,
            read_bytes: 0,
            compressed_bytes: None,
            line_bytes_max: TEXT_BYTES_MAX,
        }
    }

    /// Sets the count of bytes of the file, where lines have others.
    #[cfg(feature = "tables")]
    pub(super) fn compressed(self, bytes: Arc<AtomicU64>) -> Self {
        Self { compressed_bytes: Some(bytes), ..self }
    }

    /// Sets the number of lines of the file before these.
    pub(super) fn after(self, lines: usize) -> Self {
        Self { index: lines, ..self }
    }

    /// Returns how the lines of the file with this name are read, from the first that decides it.
    pub(super) fn decided(mut self, name: &str) -> anyhow::Result<Option<Reading>> {
        while self.decides && !self.reading.is_decided() && self.read(name)?.is_some() {}
        Ok(self.decides.then(|| (*self.reading).clone()))
    }

    /// Number of lines of the file up to the last that was read, with empty ones.
    pub(super) fn count(&self) -> usize {
        self.index
    }

    /// Returns the next line that is not empty, of the file with this name.
    pub(super) fn read(&mut self, name: &str) -> anyhow::Result<Option<Row>> {
        loop {
            let line = self.line().with_context(|| format!("cannot read {name}"))?;
            let Some((index, text)) = line else { return Ok(None) };
            if let Ok(text) = &text {
                if is_blank(text) {
                    continue;
                }
                if index == 0 {
                    check_format(text, name)?;
                }
                if self.decides && !self.reading.is_decided() {
                    self.decide(text, name)?;
                }
            }
            let compressed = self.compressed_bytes.as_ref();
            let end = compressed.map_or(self.read_bytes, |bytes| bytes.load(Ordering::Relaxed));
            return Ok(Some(Row { index, end, text, reading: Arc::clone(&self.reading) }));
        }
    }

    /// Decides how lines are read from the first one that can be.
    fn decide(&mut self, first: &[u8], name: &str) -> Result<()> {
        let reading = (*self.reading).clone().with_first(first);
        self.reading = Arc::new(reading.map_err(|error| error.at(format!("line {} of {name}", self.index)))?);
        if let Some(rows) = self.reading.rows() {
            self.notes.push(format!("{name} has rows with {rows}"));
        }
        Ok(())
    }

    /// The next line, empty or not: its number, and its text.
    fn line(&mut self) -> io::Result<Option<(usize, Result<Vec<u8>>)>> {
        let mut text = Vec::new();
        let limit = self.line_bytes_max;
        let mut bytes = (&mut self.reader).take(limit).read_until(b'\n', &mut text)? as u64;
        let mut text = Ok(text);
        if bytes == limit && text.as_ref().is_ok_and(|text| !text.ends_with(b"\n")) {
            let rest = self.reader.skip_until(b'\n')? as u64;
            bytes += rest;
            if rest > 0 {
                text = Err(wrong(format!("the line has {bytes} bytes, the limit is {limit}")));
            }
        }
        if bytes == 0 {
            return Ok(None);
        }
        self.read_bytes += bytes;
        self.index += 1;
        Ok(Some((self.index - 1, text)))
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

/// A reader that counts.
#[cfg(feature = "tables")]
pub(super) struct Counted<R> {
    reader: R,
    bytes: Arc<AtomicU64>,
}

#[cfg(feature = "tables")]
impl<R: BufRead> Counted<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, bytes: Arc::default() }
    }

    /// The bytes that have been read.
    pub(super) fn count(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes)
    }
}

#[cfg(feature = "tables")]
impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(feature = "tables")]
impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn lines(text: &str, line_bytes_max: u64) -> Vec<Row> {
        let reader = Box::new(Cursor::new(text.as_bytes().to_vec()));
        let mut lines = Lines::new(reader, Some(Reading::default()), Notes::default());
        lines.line_bytes_max = line_bytes_max;
        std::iter::from_fn(|| lines.read("a test").unwrap()).collect()
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
        let error = read[0].text.as_ref().unwrap_err();
        assert_eq!(error.message(), "the line has 31 bytes, the limit is 20");
        assert_eq!(read[0].end, 31);
        assert!(read[1].reading.parse(read[1].text.as_ref().unwrap()).request.is_ok());
    }
}
