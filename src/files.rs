//! Reads JSON files of a model folder in bounded memory, and refuses files that hold something
//! else.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// The first bytes of a file that git stored elsewhere.
const LFS_POINTER: &[u8] = b"version https://git-lfs";
/// The byte order mark of UTF-8.
const UTF8_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Reads a file of at most `bytes_max` bytes.
///
/// # Errors
///
/// [`ErrorKind::Io`] when the file cannot be read or is longer; `kind` when its bytes are not plain
/// UTF-8. That includes a byte order mark, with which transformers does not read a JSON file
/// either.
pub(crate) fn read_text(file: &Path, bytes_max: u64, kind: ErrorKind) -> Result<String> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Io, "the file cannot be read").caused_by(error).at(file.display())
    };
    // Asked before opening: opening a named pipe would wait for its writer.
    if !std::fs::metadata(file).map_err(failed)?.is_file() {
        return Err(Error::new(ErrorKind::Io, "this is not a file").at(file.display()));
    }
    let mut bytes = Vec::new();
    File::open(file).map_err(failed)?.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(Error::new(ErrorKind::Io, format!("the file has more than {bytes_max} bytes"))
            .at(file.display())
            .with_hint("this is not the file it is named after; download it again"));
    }
    text(bytes, kind).map_err(|error| error.at(file.display()))
}

/// Returns an error of `kind` if a file's bytes are a git-lfs pointer.
pub fn refuse_lfs_pointer(bytes: &[u8], kind: ErrorKind) -> Result<()> {
    match bytes.starts_with(LFS_POINTER) {
        true => Err(Error::new(kind, "this is a pointer of git-lfs, not the file itself")
            .with_hint("run `git lfs pull` in its folder")),
        false => Ok(()),
    }
}

/// Returns an error of `kind` if a file's bytes are a placeholder, or JSON text in an encoding that
/// JSON forbids.
pub(crate) fn refuse_other_than_json(bytes: &[u8], kind: ErrorKind) -> Result<()> {
    refuse_lfs_pointer(bytes, kind)?;
    if bytes.starts_with(UTF8_MARK) {
        return Err(Error::new(kind, "the file begins with a byte order mark, which JSON does not allow")
            .with_hint(
                "save it as UTF-8 without a byte order mark, or run `sed -i '1s/^\\xEF\\xBB\\xBF//'` on it",
            ));
    }
    if is_utf16(bytes) {
        return Err(Error::new(kind, "the file is UTF-16, expected UTF-8")
            .with_hint("save it as UTF-8 without a byte order mark (`iconv -f UTF-16 -t UTF-8`)"));
    }
    Ok(())
}

fn text(bytes: Vec<u8>, kind: ErrorKind) -> Result<String> {
    refuse_other_than_json(&bytes, kind)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::new(kind, format!("the file is not UTF-8: byte {at} begins no character"))
            .with_hint("the file is damaged or has another encoding; download it again or save it as UTF-8")
    })
}

/// Returns true for UTF-16, by its byte order mark or by the zero byte beside the first character,
/// which is ASCII in JSON.
fn is_utf16(bytes: &[u8]) -> bool {
    matches!(bytes, [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] | [0, 1..=0x7F, ..] | [1..=0x7F, 0, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_plain_utf8_are_named() {
        let text16 = |order: fn(u16) -> [u8; 2], mark: &str| -> Vec<u8> {
            format!("{mark}{{}}").encode_utf16().flat_map(order).collect()
        };
        let mark = "the file begins with a byte order mark, which JSON does not allow";
        let (utf16, pointer) =
            ("the file is UTF-16, expected UTF-8", "this is a pointer of git-lfs, not the file itself");
        let cases = [
            (b"{}".to_vec(), None),
            (b"".to_vec(), None),
            ("{\"\u{feff}\": 1}".into(), None),
            ("\u{feff}{}".into(), Some(mark)),
            (text16(u16::to_le_bytes, "\u{feff}"), Some(utf16)),
            (text16(u16::to_be_bytes, "\u{feff}"), Some(utf16)),
            (text16(u16::to_le_bytes, ""), Some(utf16)),
            (text16(u16::to_be_bytes, ""), Some(utf16)),
            (b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 1\n".to_vec(), Some(pointer)),
            (b"{\"a\": \xFF}".to_vec(), Some("the file is not UTF-8: byte 6 begins no character")),
        ];
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        for (bytes, message) in cases {
            std::fs::write(&file, &bytes).unwrap();
            match (read_text(&file, 1 << 10, ErrorKind::Config), message) {
                (Ok(text), None) => assert_eq!(text.as_bytes(), bytes),
                (Err(error), Some(message)) => {
                    assert_eq!((error.kind(), error.message()), (ErrorKind::Config, message));
                    assert_eq!(error.place(), file.to_str());
                    assert!(error.hint().is_some(), "{error}");
                }
                (found, _) => panic!("{bytes:?}: {found:?}"),
            }
        }
    }
}
