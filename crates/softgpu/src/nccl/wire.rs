//! Frames between processes of one machine, over a socket without a file that the unique id names.

use super::abi::UniqueId;
use super::call::{Call, Contribution, NAMES};
use super::element::Element;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

/// Timeout of a send, and of the answer to a join: the peer then counts as lost.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The kind of a frame. Those up to `Leave` go from rank to server, the others back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// Body: ranks, rank, process, device.
    Join,
    /// Body: a contribution.
    Bring,
    Withdraw,
    Leave,
    Joined,
    /// Body: the reason.
    Refused,
    /// All ranks have joined.
    Complete,
    /// Body: all contributions of a round.
    Round,
    /// The process of a rank has ended.
    Lost,
}

const TAGS: [Tag; 9] = [
    Tag::Join,
    Tag::Bring,
    Tag::Withdraw,
    Tag::Leave,
    Tag::Joined,
    Tag::Refused,
    Tag::Complete,
    Tag::Round,
    Tag::Lost,
];

/// A message; `sequence` is that of a round.
pub(super) struct Frame {
    pub(super) tag: Tag,
    pub(super) sequence: u64,
    pub(super) body: Vec<u8>,
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed frame")
}

/// Writes a frame: tag, sequence and length as 64-bit integers, then the body.
pub(super) fn send(mut stream: &UnixStream, tag: Tag, sequence: u64, body: &[u8]) -> io::Result<()> {
    let head = [tag as u64, sequence, body.len() as u64].map(u64::to_le_bytes).concat();
    stream.write_all(&head)?;
    stream.write_all(body)
}

/// Waits for a frame.
pub(super) fn receive(mut stream: &UnixStream) -> io::Result<Frame> {
    let mut head = [0u8; 24];
    stream.read_exact(&mut head)?;
    let mut reader = Reader(&head);
    let (tag, sequence, length) = (reader.next()?, reader.next()?, reader.next()?);
    let tag = *TAGS.get(tag as usize).ok_or_else(malformed)?;
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    Ok(Frame { tag, sequence, body })
}

/// Reads 64-bit integers and bytes from the front.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn next(&mut self) -> io::Result<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*head))
    }

    fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let (head, rest) = self.0.split_at_checked(count).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(head.to_vec())
    }

    pub(super) fn contribution(&mut self) -> io::Result<Contribution> {
        let (name, element, count) = (self.next()?, self.next()?, self.next()?);
        let (ready, length) = (self.next()?, self.next()?);
        let name = NAMES.get(name as usize).ok_or_else(malformed)?;
        let element = Element::from_number(element as u32).ok_or_else(malformed)?;
        let bytes = Arc::new(self.bytes(length as usize)?);
        Ok(Contribution { call: Call { name, element, count: count as usize }, bytes, ready })
    }
}

/// The bytes that [`Reader::contribution`] reads.
pub(super) fn contribution_bytes(contribution: &Contribution) -> Vec<u8> {
    let Call { name, element, count } = contribution.call;
    let name = NAMES.iter().position(|&known| known == name).unwrap_or(NAMES.len());
    let head =
        [name as u64, element as u64, count as u64, contribution.ready, contribution.bytes.len() as u64];
    [head.map(u64::to_le_bytes).concat(), contribution.bytes.to_vec()].concat()
}

fn address(id: &UniqueId) -> io::Result<SocketAddr> {
    let end = id.bytes.iter().position(|&b| b == 0).unwrap_or(id.bytes.len());
    SocketAddr::from_abstract_name(&id.bytes[..end])
}

pub(super) fn listen(id: &UniqueId) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&address(id)?)
}

pub(super) fn connect(id: &UniqueId) -> io::Result<UnixStream> {
    let stream = UnixStream::connect_addr(&address(id)?)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The other end of [`connect`].
pub(super) fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let (stream, _) = listener.accept()?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
