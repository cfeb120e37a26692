//! Messages between processes, and their encoding: JSON after its length in bytes, which is
//! limited.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::batch::Packed;
use crate::error::{Error, ErrorKind};

/// Bytes of a message of the handshake, at most.
pub(super) const HANDSHAKE_BYTES_MAX: usize = 64 << 10;

/// Bytes of a message of an accepted rank, at most. A batch of 100,000 tokens takes about 2 MiB.
pub(super) const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// A message between rank 0 and another rank, after the handshake.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::engine) enum Message {
    /// From either: the process is alive.
    Heartbeat,
    /// To rank 0: the number of layers that this rank's GPU can keep; from rank 0: the number that
    /// every GPU keeps.
    Resident(usize),
    /// To rank 0: this rank has allocated its memory; the second time: it is connected to the
    /// others.
    Ready,
    /// From rank 0: all ranks are ready, and connect by this NCCL id.
    NcclId(Vec<u8>),
    /// From rank 0: a batch to run.
    Batch(Packed),
    /// To rank 0: the batch has run.
    Done,
    /// From either: the cause with which all ranks end.
    Failed(WireError),
    /// From rank 0: no further batches follow.
    Close,
}

/// An [`Error`] as it is sent to another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::engine) struct WireError {
    kind: String,
    message: String,
    place: Option<String>,
    hint: Option<String>,
}

/// The kinds of errors that a rank can fail with. Any other one is received as
/// [`ErrorKind::Stopped`].
const KINDS: [ErrorKind; 8] = [
    ErrorKind::Io,
    ErrorKind::Options,
    ErrorKind::Config,
    ErrorKind::Unsupported,
    ErrorKind::Weights,
    ErrorKind::Memory,
    ErrorKind::Device,
    ErrorKind::Stopped,
];

impl From<&Error> for WireError {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind().name().to_owned(),
            message: error.message().to_owned(),
            place: error.place().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl WireError {
    /// Converts the error back.
    pub(super) fn into_error(self) -> Error {
        let kind = KINDS.into_iter().find(|kind| kind.name() == self.kind).unwrap_or(ErrorKind::Stopped);
        let mut error = Error::new(kind, self.message);
        if let Some(place) = self.place {
            error = error.at(place);
        }
        match self.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// Returns the JSON of a message.
pub(super) fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

/// Parses a message.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(body)?)
}

/// Sends a body of up to `bytes_max` bytes.
pub(super) fn send(to: &mut impl Write, body: &[u8], bytes_max: usize) -> io::Result<()> {
    if body.len() > bytes_max {
        return Err(io::Error::other(format!("a message of {} bytes is over the limit", body.len())));
    }
    // In one write: the second of two small ones would wait for the acknowledgement of the first.
    to.write_all(&[&(body.len() as u32).to_le_bytes(), body].concat())?;
    to.flush()
}

/// A reader of a stream that fails with `TimedOut` after a deadline, however the bytes are spread.
pub(super) struct DeadlineReader<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) deadline: Instant,
}

impl Read for DeadlineReader<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(to)
    }
}

/// Receives a body of up to `bytes_max` bytes. Allocates as the bytes arrive, not by the announced
/// length.
pub(super) fn receive(from: &mut impl Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a message of kudos"));
    }
    let mut body = Vec::new();
    from.take(length as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body)
}
