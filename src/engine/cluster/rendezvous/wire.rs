//! What processes say to each other, and how: JSON behind its length, with a limit on that.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::batch::Packed;
use crate::error::{Error, ErrorKind};

/// The most that somebody may say who has not shown yet that he is a rank.
pub(super) const GREETING_BYTES_MAX: usize = 64 << 10;

/// The most that a rank may say at a time. A batch of 100,000 tokens takes about 2 MiB.
pub(super) const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// What is said between rank 0 and another one that was let in.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::engine) enum Message {
    /// From either: nothing to say, but well.
    Alive,
    /// To rank 0: how many layers can stay on this rank's GPU; from it: how many do on every one.
    Resident(usize),
    /// To rank 0: all that this rank needs is allocated; and, the second time, it has met the others.
    Ready,
    /// From rank 0: all are ready, and meet at this NCCL id.
    Meet(Vec<u8>),
    /// From rank 0: a batch to run.
    Pass(Packed),
    /// To rank 0: it has run.
    Done,
    /// From either: why all of them end.
    Failed(Told),
    /// From rank 0: there will be no more batches.
    Goodbye,
}

/// An error on its way to another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::engine) struct Told {
    kind: String,
    message: String,
    place: Option<String>,
    hint: Option<String>,
}

/// The kinds of errors that may befall a rank. Any other one arrives as [`ErrorKind::Stopped`].
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

impl From<&Error> for Told {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind().name().to_owned(),
            message: error.message().to_owned(),
            place: error.place().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl Told {
    /// The error, here.
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

/// The JSON of what is to be said.
pub(super) fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

/// What was said in JSON.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(body)?)
}

/// Sends a body of up to `bytes_max` bytes.
pub(super) fn send(to: &mut impl Write, body: &[u8], bytes_max: usize) -> io::Result<()> {
    if body.len() > bytes_max {
        return Err(io::Error::other(format!("a message of {} bytes is over the limit", body.len())));
    }
    // In one piece: two small writes would wait for each other's acknowledgement.
    to.write_all(&[&(body.len() as u32).to_le_bytes(), body].concat())?;
    to.flush()
}

/// A connection that has to say what it says before a deadline, however it spreads its bytes.
pub(super) struct Until<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(to)
    }
}

/// Receives a body of up to `bytes_max` bytes, and allocates no more than arrives.
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
