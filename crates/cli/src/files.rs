//! Checks of files: whether two names mean one file, whether standard streams are open, and whether
//! the format is JSON lines.

use std::fs::{self, Metadata};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use kudos::internals::files::refuse_lfs_pointer;
use kudos::{Error, ErrorKind};

/// Device and inode of a regular file: equal for all names, links and redirections of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Returns `None` unless it is a regular file, and on systems without inodes.
    #[cfg(unix)]
    pub(super) fn of(metadata: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        metadata.is_file().then(|| Self { device: metadata.dev(), inode: metadata.ino() })
    }

    #[cfg(not(unix))]
    pub(super) fn of(_: &Metadata) -> Option<Self> {
        None
    }
}

/// A file that the command reads, and that its output must not overwrite.
#[derive(Clone, Debug)]
pub struct InputFile {
    pub(super) identity: Identity,
    /// Its name in messages.
    pub(super) name: String,
}

impl InputFile {
    /// The file at a path; `None` unless there is a regular one.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let identity = Identity::of(&fs::metadata(path).ok()?)?;
        Some(Self { identity, name: format!("`{}`", path.display()) })
    }
}

/// A standard stream that carries data.
#[derive(Clone, Copy, Debug)]
pub enum StandardStream {
    /// Descriptor 0.
    Input = 0,
    /// Descriptor 1.
    Output = 1,
}

/// Bit n: file descriptor n was closed when the process began.
static CLOSED: AtomicU8 = AtomicU8::new(0);

impl StandardStream {
    /// The regular file that the stream reads or writes.
    #[cfg(unix)]
    pub(super) fn identity(self) -> Option<Identity> {
        use std::os::fd::AsFd;
        let descriptor = match self {
            Self::Input => std::io::stdin().as_fd().try_clone_to_owned(),
            Self::Output => std::io::stdout().as_fd().try_clone_to_owned(),
        };
        Identity::of(&std::fs::File::from(descriptor.ok()?).metadata().ok()?)
    }

    #[cfg(not(unix))]
    pub(super) fn identity(self) -> Option<Identity> {
        None
    }

    /// Returns an error if the stream was closed when the process began (`>&-`): output would be
    /// lost silently.
    pub(super) fn check_open(self) -> Result<(), Error> {
        if CLOSED.load(Ordering::Relaxed) & (1 << self as u8) == 0 {
            return Ok(());
        }
        let (name, hint) = match self {
            Self::Input => ("input", "name a file, or give it something to read: `< FILE`"),
            Self::Output => ("output", "redirect it to a file or a pipe: `> FILE`"),
        };
        Err(Error::new(ErrorKind::Io, format!("standard {name} is closed")).with_hint(hint))
    }
}

/// Records which standard streams are closed. This must run before Rust's runtime, which opens
/// `/dev/null` in their place before `main`.
#[cfg(target_os = "linux")]
pub extern "C" fn note_closed_streams() {
    for stream in [StandardStream::Input, StandardStream::Output] {
        // SAFETY: F_GETFD takes no pointer and changes nothing; a descriptor that is not open is an
        // error of the call.
        if unsafe { libc::fcntl(stream as i32, libc::F_GETFD) } == -1 {
            CLOSED.fetch_or(1 << stream as u8, Ordering::Relaxed);
        }
    }
}

/// Formats that are passed instead of JSON lines: their first bytes, their names, and a command
/// that converts them.
const OTHER_FORMATS: [(&[u8], &str, &str); 9] = [
    (b"BZh", "is compressed by bzip2", "`bzip2 -dc FILE | kudos .. -` reads it"),
    (b"\xfd7zXZ\0", "is compressed by xz", "`xz -dc FILE | kudos .. -` reads it"),
    (b"\x04\x22\x4d\x18", "is compressed by lz4", "`lz4 -dc FILE | kudos .. -` reads it"),
    (b"FEA1", "is a Feather file of version 1", "`pyarrow.feather` reads it, and writes version 2"),
    (b"PK\x03\x04", "is a zip archive", "`unzip -p FILE | kudos .. -` reads it"),
    (b"\xff\xfe", "is written in UTF-16", UTF16_HINT),
    (b"\xfe\xff", "is written in UTF-16", UTF16_HINT),
    (b"{\0", "is written in UTF-16", UTF16_HINT),
    (b"\0{", "is written in UTF-16", UTF16_HINT),
];

/// Formats that builds with the feature `tables` read.
#[cfg(not(feature = "tables"))]
const TABLE_FORMATS: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "is compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd"),
    (b"PAR1", "is a Parquet file"),
    (b"ARROW1", "is an Arrow file"),
    (b"\xff\xff\xff\xff", "is an Arrow stream"),
];

const UTF16_HINT: &str = "`iconv -f UTF-16 -t UTF-8 FILE | kudos .. -` reads it";

/// Returns an error if `start` begins a format other than JSON lines.
pub(super) fn check_format(start: &[u8], name: &str) -> Result<(), Error> {
    refuse_lfs_pointer(start, ErrorKind::Io).map_err(|error| error.at(name.trim_matches('`')))?;
    #[cfg(not(feature = "tables"))]
    if let Some((_, what)) = TABLE_FORMATS.iter().find(|(magic, _)| start.starts_with(magic)) {
        let message = format!("{name} {what}, which this build does not read");
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint("`make build` builds kudos with the feature `tables`, which is on by default"));
    }
    match OTHER_FORMATS.iter().find(|(magic, ..)| start.starts_with(magic)) {
        None => Ok(()),
        Some((_, what, hint)) => {
            Err(Error::new(ErrorKind::Io, format!("{name} {what}, expected JSON lines")).with_hint(*hint))
        }
    }
}
