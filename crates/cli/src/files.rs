//! Files of the command: one file under two names, standard streams that were closed, and formats other than JSON lines.

use std::fs::{self, Metadata};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use kudos::internals::files::refuse_lfs_pointer;
use kudos::{Error, ErrorKind};

/// A regular file, by what the system knows it by: names, links and redirections of one file are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// `None` for what is no regular file (reading a terminal does not change it), and on systems without inodes.
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

/// A file that is read: no output may take its place.
#[derive(Clone, Debug)]
pub struct InputFile {
    pub(super) identity: Identity,
    /// Its name in messages.
    pub(super) name: String,
}

impl InputFile {
    /// The file at a path; `None` where there is no regular one.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let identity = Identity::of(&fs::metadata(path).ok()?)?;
        Some(Self { identity, name: format!("`{}`", path.display()) })
    }
}

/// A stream that a process has from its start.
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

    /// An error if the stream was closed when the process began (`>&-`): what is written would be lost without a sign.
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

/// Notes which standard streams are closed. Only the first instruction of a process can tell: before `main`, Rust's
/// runtime opens `/dev/null` in their place.
#[cfg(target_os = "linux")]
pub extern "C" fn note_closed_streams() {
    for stream in [StandardStream::Input, StandardStream::Output] {
        // SAFETY: F_GETFD takes no pointer and changes nothing; a descriptor that is not open is an error of the call.
        if unsafe { libc::fcntl(stream as i32, libc::F_GETFD) } == -1 {
            CLOSED.fetch_or(1 << stream as u8, Ordering::Relaxed);
        }
    }
}

/// First bytes of formats that are passed instead of JSON lines, their names, and a command that converts them.
const OTHER_FORMATS: [(&[u8], &str, &str); 11] = [
    (b"\x1f\x8b", "is compressed by gzip", "`gzip -dc FILE | kudos .. -` reads it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", "`zstd -dc FILE | kudos .. -` reads it"),
    (b"BZh", "is compressed by bzip2", "`bzip2 -dc FILE | kudos .. -` reads it"),
    (b"\xfd7zXZ\0", "is compressed by xz", "`xz -dc FILE | kudos .. -` reads it"),
    (b"PK\x03\x04", "is a zip archive", "`unzip -p FILE | kudos .. -` reads it"),
    (b"PAR1", "is a Parquet file", "write it as JSON lines: `Dataset.from_parquet(FILE).to_json(..)`"),
    (b"ARROW1", "is an Arrow file", "write it as JSON lines: `Dataset.from_file(FILE).to_json(..)`"),
    (b"\xff\xfe", "is written in UTF-16", UTF16_HINT),
    (b"\xfe\xff", "is written in UTF-16", UTF16_HINT),
    (b"{\0", "is written in UTF-16", UTF16_HINT),
    (b"\0{", "is written in UTF-16", UTF16_HINT),
];

const UTF16_HINT: &str = "`iconv -f UTF-16 -t UTF-8 FILE | kudos .. -` reads it";

/// Returns an error if `start` is the start of another format than JSON lines.
pub(super) fn check_format(start: &[u8], name: &str) -> Result<(), Error> {
    refuse_lfs_pointer(start, ErrorKind::Io).map_err(|error| error.at(name.trim_matches('`')))?;
    match OTHER_FORMATS.iter().find(|(magic, ..)| start.starts_with(magic)) {
        None => Ok(()),
        Some((_, what, hint)) => {
            Err(Error::new(ErrorKind::Io, format!("{name} {what}, expected JSON lines")).with_hint(*hint))
        }
    }
}
