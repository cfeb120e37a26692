//! Shards: contiguous ranges of an input, which together are the whole of it.
//!
//! The input is cut into ranges of about as many bytes of its files. A cut within plain lines moves
//! to the end of a line, within a Parquet file to a row, and from there to the next change of
//! prompt, which neighbours of the same prompt share; within other files it moves to the end of the
//! file. Each cut depends on the input alone, so that all shards agree on it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::str::FromStr;

use kudos::Message;
use kudos::internals::request::{Reading, TEXT_BYTES_MAX};

/// Bytes in which the beginning of a line is searched backwards.
const BACK_BYTES: u64 = 64 << 10;

/// One of several parts of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    /// From 0.
    pub(crate) index: u64,
    pub(crate) count: u64,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').map(|(index, count)| (index.parse(), count.parse()));
        match parts {
            Some((Ok(index), Ok(count))) if index < count => Ok(Self { index, count }),
            Some((Ok(_), Ok(_))) => {
                Err("the first number is below the second: 0/4, 1/4, 2/4, 3/4".to_owned())
            }
            _ => Err("expected I/N, such as 0/4".to_owned()),
        }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl Shard {
    /// Returns the bytes of an input of `total` bytes at which the shard is cut from it.
    pub(super) fn cuts(self, total: u64) -> [u64; 2] {
        let cut = |index: u64| (u128::from(total) * u128::from(index) / u128::from(self.count)) as u64;
        [cut(self.index), cut(self.index + 1)]
    }
}

/// A part of a file: bytes of lines, or rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    /// `None` for the end of the file.
    pub(super) end: Option<u64>,
    /// Rows of the file before the start.
    pub(super) rows_before: usize,
    /// Bytes of the file that it takes, about; `None` for all.
    pub(super) bytes: Option<u64>,
}

impl Span {
    pub(super) const ALL: Self = Self { start: 0, end: None, rows_before: 0, bytes: None };

    /// Returns whether it is not the whole file.
    pub(super) fn is_part(&self) -> bool {
        self.start > 0 || self.end.is_some()
    }
}

/// Returns the prompt of a row, the turns before its response; `None` for token ids and for a row
/// that cannot be read.
pub(super) fn prompt_of(reading: &Reading, row: &[u8]) -> Option<Vec<Message>> {
    reading.parse(row).request.ok()?.prompt().map(<[Message]>::to_vec)
}

/// Returns the byte at which lines are cut for a cut at `position`, which is within the file.
pub(super) fn cut_of_lines(file: &mut File, position: u64, reading: &Reading) -> io::Result<u64> {
    let start = line_start(file, position - 1)?;
    file.seek(SeekFrom::Start(start))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut end = start + read_line(&mut reader, &mut line)?;
    let Some(prompt) = prompt_of(reading, &line) else { return Ok(end) };
    loop {
        line.clear();
        let bytes = read_line(&mut reader, &mut line)?;
        if bytes == 0 || prompt_of(reading, &line).as_ref() != Some(&prompt) {
            return Ok(end);
        }
        end += bytes;
    }
}

/// Reads a line, of which one over the limit is not kept, and returns its bytes.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    let bytes = reader.by_ref().take(TEXT_BYTES_MAX).read_until(b'\n', line)? as u64;
    if bytes < TEXT_BYTES_MAX || line.ends_with(b"\n") {
        return Ok(bytes);
    }
    line.clear();
    Ok(bytes + reader.skip_until(b'\n')? as u64)
}

/// Returns the start of the line that has the byte at `position`.
fn line_start(file: &mut File, position: u64) -> io::Result<u64> {
    let mut end = position;
    while end > 0 {
        let start = end.saturating_sub(BACK_BYTES);
        let mut bytes = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut bytes)?;
        if let Some(newline) = bytes.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Returns the number of lines that end in the next `bytes` bytes of a reader, and of one that has
/// no end there.
pub(super) fn count_lines(reader: &mut impl Read, bytes: u64) -> io::Result<usize> {
    let mut reader = BufReader::with_capacity(1 << 20, reader.take(bytes));
    let (mut lines, mut is_open) = (0, false);
    loop {
        let buffer = reader.fill_buf()?;
        let Some(last) = buffer.last() else { return Ok(lines + usize::from(is_open)) };
        is_open = *last != b'\n';
        lines += buffer.iter().filter(|byte| **byte == b'\n').count();
        let read = buffer.len();
        reader.consume(read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn cuts_divide_the_whole() {
        for (total, count) in [(0, 3), (10, 3), (7, 8), (u64::MAX, 5)] {
            let mut end = 0;
            for index in 0..count {
                let [start, next] = Shard { index, count }.cuts(total);
                assert_eq!(start, end);
                end = next;
            }
            assert_eq!(end, total);
        }
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, count: 3 }));
        for text in ["3/3", "1", "-1/3", "1/0", "a/b", "1/2/3"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    #[test]
    fn lines_are_cut_at_a_change_of_prompt() {
        let row = |prompt: &str| format!("{{\"prompt\": \"{prompt}\", \"response\": \"x\"}}\n");
        let text = [row("a"), row("b"), row("b"), row("b"), "\n".to_owned(), "broken\n".to_owned(), row("c")];
        let ends: Vec<u64> = text
            .iter()
            .scan(0, |end, line| {
                *end += line.len() as u64;
                Some(*end)
            })
            .collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.concat().as_bytes()).unwrap();
        let mut cut = |position| cut_of_lines(&mut file, position, &Reading::default()).unwrap();
        assert_eq!(cut(1), ends[0]);
        assert_eq!(cut(ends[0]), ends[0]);
        // Within the first, the second and the last row of `b`.
        assert_eq!([cut(ends[0] + 1), cut(ends[1] + 5), cut(ends[3])], [ends[3]; 3]);
        assert_eq!([cut(ends[4]), cut(ends[4] + 2), cut(ends[6] - 1)], [ends[4], ends[5], ends[6]]);
        assert_eq!(count_lines(&mut &b"a\n\nb"[..], 9).unwrap(), 3);
        assert_eq!(count_lines(&mut &b"a\n\nb"[..], 3).unwrap(), 2);
    }
}
