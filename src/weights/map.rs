//! Files mapped read-only.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, ErrorKind, Result};

/// A weight file, mapped read-only for as long as anything refers to it.
///
/// Its pages belong to the kernel's page cache: they are read when first touched, dropped when
/// memory is short, and are no process's anonymous memory. A file that is truncated while it is
/// mapped ends the process with SIGBUS when a lost page is touched; that cannot be turned into an
/// error. To replace a model, write a new file and rename it.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps a file; [`ErrorKind::Io`] when that fails.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Io, "the file cannot be read").caused_by(error).at(path.display())
        };
        // Asked before opening: opening a named pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(Error::new(ErrorKind::Io, "this is not a file").at(path.display()));
        }
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the map is read-only and nothing in this process writes to the file, so the bytes
        // behind `&[u8]` change only if another process changes the file, which the type's
        // documentation forbids. If it happens: a header's text is parsed from a copy, each number
        // of a header is read once, and offsets are kept outside the map, so no bound is ever read
        // twice; every other byte is only read as part of a number, for which any bit pattern is
        // valid. A truncation is SIGBUS, not a wrong read: the map's length is fixed here.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}
