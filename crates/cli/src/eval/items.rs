//! Items of a benchmark's file: JSON lines, or one JSON array, taken apart while it is read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::files::InputFile;
use crate::input::Input;
use kudos::internals::request::BYTE_ORDER_MARK;
use kudos::{Error, ErrorKind, Result};

/// Limit on the bytes of an item in an array; a longer one is an error of the file. Lines have
/// theirs.
const ITEM_BYTES_MAX: usize = 256 << 20;

/// The text of an item.
pub(crate) struct ItemText {
    /// The item's JSON, or why it cannot be read.
    pub(crate) text: Result<Vec<u8>>,
    /// Bytes of the file up to its end.
    pub(crate) end: u64,
}

/// The items of a file, in its order. An error is one of the file: nothing comes after it.
pub(crate) struct Items {
    items: Box<dyn Iterator<Item = anyhow::Result<ItemText>> + Send>,
    /// The file's name in messages.
    pub(crate) name: String,
    /// The file, if it is a regular one.
    pub(crate) file: Option<InputFile>,
    /// Its bytes, where known.
    pub(crate) size: Option<u64>,
}

impl Iterator for Items {
    type Item = anyhow::Result<ItemText>;

    fn next(&mut self) -> Option<Self::Item> {
        self.items.next()
    }
}

/// Opens a file of items, or standard input for `-`, which is JSON lines.
pub(crate) fn items(path: &Path) -> anyhow::Result<Items> {
    let rows = Input::open_whole(path)?;
    let (name, file, size) = (rows.name().to_owned(), rows.files().next(), rows.size());
    let items: Box<dyn Iterator<Item = _> + Send> = match size {
        Some(_) if is_array(path) => {
            Box::new(ArrayItems::new(BufReader::new(File::open(path)?), name.clone()))
        }
        _ => Box::new(rows.map(|row| row.map(|row| ItemText { end: row.end, text: row.into_text() }))),
    };
    Ok(Items { items, name, file, size })
}

/// Returns whether a file begins with an array. One that cannot be read shows its error later.
fn is_array(path: &Path) -> bool {
    let first = || -> io::Result<Option<u8>> {
        let mut reader = BufReader::new(File::open(path)?);
        skip_mark(&mut reader)?;
        skip_space(&mut reader).map(|(byte, _)| byte)
    };
    first().is_ok_and(|byte| byte == Some(b'['))
}

/// Skips a byte order mark, and returns its bytes.
fn skip_mark(reader: &mut impl BufRead) -> io::Result<usize> {
    let mark = BYTE_ORDER_MARK.to_string();
    let bytes = if reader.fill_buf()?.starts_with(mark.as_bytes()) { mark.len() } else { 0 };
    reader.consume(bytes);
    Ok(bytes)
}

/// Skips white space, and returns the byte after it, which is not consumed, and the bytes skipped.
fn skip_space(reader: &mut impl BufRead) -> io::Result<(Option<u8>, usize)> {
    let mut skipped = 0;
    loop {
        match reader.fill_buf()?.first().copied() {
            Some(byte) if byte.is_ascii_whitespace() => reader.consume(1),
            byte => return Ok((byte, skipped)),
        }
        skipped += 1;
    }
}

/// The elements of a JSON array. Their text is found by its brackets and strings alone: a parser
/// reads it later.
struct ArrayItems<R> {
    reader: R,
    name: String,
    place: Place,
    count: usize,
    read_bytes: u64,
}

/// The part of the array that comes next.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Start,
    AfterItem,
    End,
}

impl<R: BufRead> ArrayItems<R> {
    fn new(reader: R, name: String) -> Self {
        Self { reader, name, place: Place::Start, count: 0, read_bytes: 0 }
    }

    /// Returns the next byte that is not white space, consumed.
    fn token(&mut self) -> io::Result<Option<u8>> {
        let (byte, skipped) = skip_space(&mut self.reader)?;
        self.reader.consume(usize::from(byte.is_some()));
        self.read_bytes += (skipped + usize::from(byte.is_some())) as u64;
        Ok(byte)
    }

    fn wrong(&self, message: impl Into<String>) -> anyhow::Error {
        let place = format!("{}, after {} items", self.name, self.count);
        Error::new(ErrorKind::InvalidInput, message)
            .at(place)
            .with_hint("the file is one JSON array of objects, or has one object on each line; was it cut?")
            .into()
    }

    fn read(&mut self) -> anyhow::Result<Option<ItemText>> {
        let (first, may_end) = match self.place {
            Place::AfterItem => match self.token()? {
                Some(b',') => (self.token()?, false),
                Some(b']') => (Some(b']'), true),
                Some(_) => return Err(self.wrong("an item of the array has no comma after it")),
                None => (None, false),
            },
            Place::Start | Place::End => {
                self.read_bytes += skip_mark(&mut self.reader)? as u64;
                // The bracket that `is_array` has found.
                self.token()?;
                (self.token()?, true)
            }
        };
        match first {
            None => Err(self.wrong("the array has no end")),
            Some(b']') if may_end => match self.token()? {
                None => Ok(None),
                Some(_) => Err(self.wrong("there is text after the end of the array")),
            },
            Some(first) => {
                let text = self.element(first)?;
                self.place = Place::AfterItem;
                self.count += 1;
                Ok(Some(ItemText { text: Ok(text), end: self.read_bytes }))
            }
        }
    }

    /// Reads the rest of an element that begins with `first`.
    fn element(&mut self, first: u8) -> anyhow::Result<Vec<u8>> {
        let mut text = vec![first];
        if first != b'{' {
            return Err(
                self.wrong(format!("an item begins with `{}`, expected an object", first.escape_ascii()))
            );
        }
        let (mut depth, mut in_string, mut is_escaped) = (1, false, false);
        let mut bytes = (&mut self.reader).take(ITEM_BYTES_MAX as u64).bytes();
        while depth > 0 {
            let Some(byte) = bytes.next().transpose()? else {
                return Err(self.wrong("an item of the array has no end"));
            };
            text.push(byte);
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if in_string => is_escaped = true,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => depth -= 1,
                _ => {}
            }
        }
        self.read_bytes += text.len() as u64 - 1;
        Ok(text)
    }
}

impl<R: BufRead> Iterator for ArrayItems<R> {
    type Item = anyhow::Result<ItemText>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.place == Place::End {
            return None;
        }
        let item = self.read().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.place = Place::End;
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Vec<u64>, Option<String>) {
        // A short buffer, which is refilled within items.
        let reader = BufReader::with_capacity(4, text.as_bytes());
        let (mut texts, mut ends, mut error) = (vec![], vec![], None);
        for item in ArrayItems::new(reader, "a test".to_owned()) {
            match item {
                Ok(ItemText { text, end }) => {
                    texts.push(String::from_utf8(text.unwrap()).unwrap());
                    ends.push(end);
                }
                Err(found) => error = Some(found.to_string()),
            }
        }
        (texts, ends, error)
    }

    #[test]
    fn an_array_is_taken_apart_at_its_own_commas() {
        let items = [r#"{"a": "},{ \" \\"}"#, "{\"b\": [1, {\"c\": \"]\"}],\n \"d\": null}", "{}"];
        let text = format!("[{},\n  {} , {}\n]\n", items[0], items[1], items[2]);
        let (texts, ends, error) = read(&text);
        assert_eq!((texts, error), (items.map(str::to_owned).to_vec(), None));
        assert_eq!(ends[0], 1 + items[0].len() as u64);
        assert_eq!(ends[2], text.len() as u64 - 3);
        assert_eq!(read(" [ ] "), (vec![], vec![], None));
        assert_eq!(read("\u{feff}[{}]").0, ["{}"]);
    }

    #[test]
    fn a_damaged_array_is_an_error_after_its_whole_items() {
        for (text, whole, message) in [
            ("[{\"a\": 1}, {\"b\": ", 1, "an item of the array has no end"),
            ("[{\"a\": 1}", 1, "the array has no end"),
            ("[{\"a\": 1},", 1, "the array has no end"),
            ("[{\"a\": 1} {}]", 1, "an item of the array has no comma after it"),
            ("[{}, 7]", 1, "an item begins with `7`, expected an object"),
            ("[{}] []", 1, "there is text after the end of the array"),
            ("[", 0, "the array has no end"),
        ] {
            let (texts, _, error) = read(text);
            assert_eq!(texts.len(), whole, "{text}");
            assert!(error.as_deref().unwrap().ends_with(message), "{text}: {error:?}");
        }
    }
}
