//! Compressed lines.

use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use crate::Container;

/// Largest window of zstd, as a power of two, that is given memory: what `zstd` reads without
/// options.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Returns a reader of the lines in a container that is no table. Files that were concatenated are
/// read to their end, and zeros after gzip data are padding. Memory is bounded by the format's
/// window, 128 MiB at most, whatever a file declares.
pub fn lines(
    container: Container,
    reader: impl BufRead + Send + 'static,
) -> io::Result<Box<dyn BufRead + Send>> {
    Ok(match container {
        Container::Gzip => {
            buffered(Whole { reader: Gzip { member: Some(GzDecoder::new(reader)) }, format: "gzip" })
        }
        Container::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            buffered(Whole { reader: decoder, format: "zstd" })
        }
        _ => Box::new(reader),
    })
}

/// Compresses a file of lines into another one.
pub fn compress(container: Container, lines: impl Read, file: impl Write) -> io::Result<()> {
    const ZSTD_LEVEL: i32 = 3;
    let mut lines = BufReader::with_capacity(128 << 10, lines);
    match container {
        Container::Gzip => {
            let mut encoder = GzEncoder::new(file, Compression::default());
            io::copy(&mut lines, &mut encoder)?;
            encoder.finish()?.flush()
        }
        Container::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(file, ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            io::copy(&mut lines, &mut encoder)?;
            encoder.finish()?.flush()
        }
        other => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{other:?} is no compression of lines")))
        }
    }
}

fn buffered(reader: impl Read + Send + 'static) -> Box<dyn BufRead + Send> {
    Box::new(BufReader::with_capacity(128 << 10, reader))
}

/// A decoder whose errors name the format.
struct Whole<R> {
    reader: R,
    format: &'static str,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer).map_err(|error| {
            let format = self.format;
            let message = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    format!("the {format} data is cut off: it ends within a frame")
                }
                _ => format!("the {format} data is broken: {error}"),
            };
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    }
}

/// The members of a gzip file, one after another, and zeros after the last one, with which some
/// tools fill blocks.
struct Gzip<R> {
    /// The present member; `None` after padding or an error.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let next = member.get_mut().fill_buf()?.first().copied();
            let reader = self.member.take().map(GzDecoder::into_inner);
            match (next, reader) {
                (Some(0), Some(reader)) => check_padding(reader)?,
                (Some(_), Some(reader)) => self.member = Some(GzDecoder::new(reader)),
                (None, _) | (_, None) => {}
            }
        }
        Ok(0)
    }
}

/// Checks that nothing but zeros is left.
fn check_padding(mut reader: impl BufRead) -> io::Result<()> {
    loop {
        let zeros = match reader.fill_buf()? {
            [] => return Ok(()),
            bytes if bytes.iter().all(|byte| *byte == 0) => bytes.len(),
            _ => return Err(io::Error::other("bytes other than zeros follow its end")),
        };
        reader.consume(zeros);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let container = Container::of(&bytes);
        let mut text = Vec::new();
        lines(container, Cursor::new(bytes))?.read_to_end(&mut text)?;
        Ok(text)
    }

    #[test]
    fn concatenated_files_are_read_to_their_end() {
        let zstd = |text: &[u8]| zstd::encode_all(text, 3).unwrap();
        assert_eq!(read([gzip(b"a\n"), gzip(b"b\n")].concat()).unwrap(), b"a\nb\n");
        assert_eq!(read([zstd(b"a\n"), zstd(b"b\n")].concat()).unwrap(), b"a\nb\n");
        assert_eq!(read(b"{}\n".to_vec()).unwrap(), b"{}\n");
    }

    #[test]
    fn zeros_after_gzip_data_are_padding_and_nothing_else_is() {
        for zeros in [1, 511, 300_000] {
            let padded = [gzip(b"a\n"), gzip(b"b\n"), vec![0; zeros]].concat();
            assert_eq!(read(padded.clone()).unwrap(), b"a\nb\n", "{zeros} zeros");
            for after in [gzip(b"c\n"), b"\n".to_vec()] {
                let error = read([padded.clone(), after].concat()).unwrap_err().to_string();
                assert_eq!(error, "the gzip data is broken: bytes other than zeros follow its end");
            }
        }
        // No member before them, and no member after the first.
        assert!(read([b"\x1f\x8b".to_vec(), vec![0; 40]].concat()).is_err());
        assert!(read([gzip(b"a\n"), b"b".to_vec()].concat()).is_err());
    }

    #[test]
    fn data_that_is_cut_off_or_broken_is_an_error() {
        let long: Vec<u8> =
            (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(&long).unwrap();
        for (whole, format) in [(gzip(&long), "gzip"), (encoder.finish().unwrap(), "zstd")] {
            let error = read(whole[..whole.len() / 2].to_vec()).unwrap_err().to_string();
            assert_eq!(error, format!("the {format} data is cut off: it ends within a frame"));
            let mut broken = whole.clone();
            let middle = whole.len() / 2;
            broken[middle..middle + 64].fill(0xff);
            let error = read(broken).unwrap_err().to_string();
            assert!(error.starts_with(&format!("the {format} data is ")), "{error}");
        }
    }

    #[test]
    fn a_window_beyond_the_limit_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(30).unwrap();
        encoder.write_all(b"{}\n").unwrap();
        let error = read(encoder.finish().unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("the zstd data is broken: "), "{error}");
    }
}
