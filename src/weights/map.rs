//! Files mapped read-only, which can also be read with calls.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, ErrorKind, Result};

/// The most bytes of a call of [`MappedFile::prefetch`]. Linux reads no more than the device's
/// largest transfer or its read-ahead for one call, whichever is more, and ignores the rest. Where
/// the device's read-ahead alone is as much, faults read enough, and nothing is prefetched: pages
/// that a call of `madvise` reads are small, and with 8 MiB of read-ahead half of a 1 GiB model was
/// read no faster by it (0.65 to 0.71 GB/s against 0.59 to 0.77), and later copied out of the page
/// cache at 4 to 8 GB/s instead of 5 to 11.
const PREFETCH_BYTES_MAX: usize = 1 << 20;

/// The bytes of a call where the device does not say: Linux' own default of read-ahead.
const PREFETCH_BYTES: usize = 128 << 10;

/// A weight file, mapped read-only for as long as anything refers to it.
///
/// Its pages belong to the kernel's page cache: they are read when first touched, dropped when
/// memory is short, and are no process's anonymous memory. A file that is truncated while it is
/// mapped ends the process with SIGBUS when a lost page is touched; that cannot be turned into an
/// error. Bytes that are only copied are read with a call instead, which returns one, and which
/// waits for no page fault. To replace a model, write a new file and rename it.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    file: File,
    map: Mmap,
    /// `None` where nothing is to be prefetched.
    prefetch_bytes: Option<usize>,
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
        let prefetch_bytes = match device_bytes(&file) {
            Some([_, read_ahead]) if read_ahead >= PREFETCH_BYTES_MAX => None,
            // A power of two of whole pages, so that calls begin at multiples of it.
            Some([transfer, read_ahead]) => {
                Some(1 << transfer.max(read_ahead).clamp(4096, PREFETCH_BYTES_MAX).ilog2())
            }
            None => Some(PREFETCH_BYTES),
        };
        Ok(Self { path: path.to_owned(), file, map, prefetch_bytes })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Copies the bytes from `offset` on to `out`, with one call for as much as the kernel reads at
    /// a time. An error of the kind `UnexpectedEof` where the file ends before.
    #[cfg(unix)]
    pub(super) fn read_at(&self, offset: usize, out: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset as u64)
    }

    /// Copies the bytes from `offset` on to `out`.
    #[cfg(not(unix))]
    pub(super) fn read_at(&self, offset: usize, out: &mut [u8]) -> std::io::Result<()> {
        out.copy_from_slice(&self.map[offset..offset + out.len()]);
        Ok(())
    }

    /// Has the kernel begin to read as many of these bytes as it reads for one call, and returns
    /// their number. Waits for no read.
    pub(super) fn prefetch(&self, bytes: Range<usize>) -> usize {
        let Some(step) = self.prefetch_bytes else { return bytes.len() };
        let count = bytes.len().min(step - bytes.start % step);
        // What fails here is read when it is needed, and that error is reported.
        #[cfg(unix)]
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, bytes.start, count);
        count
    }
}

/// Returns the bytes of the largest transfer of the disk that a file is on, and of its read-ahead.
#[cfg(target_os = "linux")]
fn device_bytes(file: &File) -> Option<[usize; 2]> {
    use std::os::linux::fs::MetadataExt;
    let device = file.metadata().ok()?.st_dev();
    let disk = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    let bytes = |name: &str| {
        // A partition's queue is its disk's.
        let paths = ["queue", "../queue"].map(|queue| format!("{disk}/{queue}/{name}"));
        let kib = paths.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
        kib.map(|kib: usize| kib << 10)
    };
    Some([bytes("max_sectors_kb")?, bytes("read_ahead_kb")?])
}

#[cfg(not(target_os = "linux"))]
fn device_bytes(_: &File) -> Option<[usize; 2]> {
    None
}
