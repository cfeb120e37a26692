//! The rendezvous of ranks in several processes: over TCP, at an address that rank 0 listens at.
//!
//! Every other rank connects there, sends its rank and the settings that it was started with, and
//! is accepted, or refused with the reason. If there is a secret, both ends prove by HMAC that they
//! know it. Only control messages use these connections; tensors use NCCL's. Neither is encrypted:
//! this is for networks whose machines trust each other.

mod link;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::engine::options::{Cluster, Secret};
use crate::error::{Error, ErrorKind, Result};
pub(in crate::engine) use link::Link;
pub(super) use wire::Message;
use wire::{DeadlineReader, HANDSHAKE_BYTES_MAX, WireError};

/// Marks a join request of kudos.
const MAGIC: &str = "kudos ranks";

/// Version of the messages; rank 0 refuses every other one.
const PROTOCOL: u32 = 2;

/// Handshake timeout.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handshakes that may be in progress at a time. Connections beyond them are closed.
const HANDSHAKES_MAX: usize = 64;

/// Interval between a rank's attempts to join.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Interval at which rank 0 polls for connections.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

impl Secret {
    /// Makes the MAC by which the end called `role` proves that it knows the secret, for rank 0's
    /// `nonce` and the bytes of the join request.
    fn mac(&self, role: &[u8], nonce: &[u8], request: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.bytes()).expect("a key may have any length");
        for part in [role, nonce, request] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

/// Settings that must be equal on all ranks, by name.
pub(super) type Settings = Vec<(String, String)>;

/// A rank's first message.
#[derive(Debug, Serialize, Deserialize)]
struct JoinRequest {
    magic: String,
    protocol: u32,
    version: String,
    rank: usize,
    world_size: usize,
    settings: Settings,
    has_secret: bool,
    nonce: [u8; 32],
}

/// The fields that a join request has in every version of the protocol.
#[derive(Debug, Deserialize)]
struct Preamble {
    magic: String,
    protocol: u32,
}

/// A message of rank 0 to a rank that joins.
#[derive(Debug, Serialize, Deserialize)]
enum JoinReply {
    /// A nonce for the rank's proof that it knows the secret.
    Challenge([u8; 32]),
    /// The rank is accepted; holds rank 0's proof, if there is a secret.
    Accepted(Option<Vec<u8>>),
    /// The rank is refused for this reason.
    Refused(WireError),
}

/// A rank's proof that it knows the secret, if it has one.
#[derive(Debug, Serialize, Deserialize)]
struct Proof(Option<Vec<u8>>);

fn nonce() -> io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

fn send(stream: &mut TcpStream, value: &impl Serialize) -> io::Result<()> {
    wire::send(stream, &wire::encode(value)?, HANDSHAKE_BYTES_MAX)
}

fn refusal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Options, message)
}

impl Cluster {
    fn name(&self, rank: usize) -> String {
        format!("rank {rank} of {}", self.world_size)
    }
}

/// Waits at rank 0 for all other ranks, and returns the links to them, from rank 1 on. If one has
/// not joined by the timeout, sends the error to those that have.
pub(super) fn gather(process: &Cluster, settings: &Settings, timeout: Duration) -> Result<Vec<Link>> {
    let listener = TcpListener::bind(&process.rendezvous).map_err(|error| {
        Error::new(ErrorKind::Io, format!("rank 0 cannot listen at {}", process.rendezvous))
            .caused_by(error)
            .with_hint("name an address of this machine, HOST:PORT, at which no other program listens")
    })?;
    gather_at(&listener, process, settings, timeout)
}

/// The outcome of a handshake with a rank.
enum Handshake {
    Accepted { rank: usize, stream: TcpStream, proof: Option<Vec<u8>> },
    Refused { rank: usize, reason: String },
}

fn gather_at(
    listener: &TcpListener,
    process: &Cluster,
    settings: &Settings,
    timeout: Duration,
) -> Result<Vec<Link>> {
    let cannot = |error: io::Error| Error::new(ErrorKind::Io, "rank 0 cannot listen").caused_by(error);
    listener.set_nonblocking(true).map_err(cannot)?;
    let acceptor = Arc::new(Acceptor { process: process.clone(), settings: settings.clone() });
    let (sender, handshakes) = channel();
    let in_progress = Arc::new(AtomicUsize::new(0));
    let mut links: Vec<Option<Link>> = (1..process.world_size).map(|_| None).collect();
    let mut refused: Vec<String> = Vec::new();
    let deadline = Instant::now() + timeout;
    while links.iter().any(Option::is_none) {
        // An error is that of a connection that was closed before it was accepted.
        if let Ok((stream, _)) = listener.accept() {
            start_handshake(&acceptor, stream, timeout, &in_progress, &sender);
        }
        update_links(&handshakes, process, timeout, &mut links, &mut refused);
        if Instant::now() >= deadline {
            let error = missing(process, &links, &refused, timeout);
            links.iter().flatten().for_each(|link| link.close(Some(&error)));
            return Err(error);
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(links.into_iter().flatten().collect())
}

/// Adds links to ranks whose handshake is complete, and removes those to ranks that disconnected.
fn update_links(
    handshakes: &Receiver<Handshake>,
    process: &Cluster,
    timeout: Duration,
    links: &mut [Option<Link>],
    refused: &mut Vec<String>,
) {
    for (index, link) in links.iter_mut().enumerate() {
        if link.take_if(|link| link.is_disconnected()).is_some() {
            refused.push(format!("{} joined and disconnected", process.name(index + 1)));
        }
    }
    for handshake in handshakes.try_iter() {
        match handshake {
            Handshake::Refused { rank, reason } => {
                let reason = format!("rank {rank} was refused: {reason}");
                if !refused.contains(&reason) {
                    refused.push(reason);
                }
            }
            Handshake::Accepted { rank, mut stream, proof } => {
                let link = &mut links[rank - 1];
                if link.is_some() {
                    let reason = refusal(format!("another process has joined as rank {rank}"));
                    let _ = send(&mut stream, &JoinReply::Refused(WireError::from(&reason)));
                } else if send(&mut stream, &JoinReply::Accepted(proof)).is_ok() {
                    *link = Link::new(process.name(rank), stream, timeout).ok();
                }
            }
        }
    }
}

fn missing(process: &Cluster, links: &[Option<Link>], refused: &[String], timeout: Duration) -> Error {
    let absent = links.iter().enumerate().filter(|(_, link)| link.is_none());
    let absent: Vec<String> = absent.map(|(index, _)| (index + 1).to_string()).collect();
    let ranks = if absent.len() == 1 { "rank" } else { "ranks" };
    let message = format!(
        "{ranks} {} of {} did not join within {} s",
        absent.join(", "),
        process.world_size,
        timeout.as_secs_f32()
    );
    let error = Error::new(ErrorKind::Io, message).at(&process.rendezvous);
    if refused.is_empty() {
        return error.with_hint("start them with the same `--rendezvous`; its port must be reachable");
    }
    error.with_hint(refused.join("; "))
}

/// Runs the handshake of a connection on a thread of its own: a silent client delays no other.
fn start_handshake(
    acceptor: &Arc<Acceptor>,
    stream: TcpStream,
    timeout: Duration,
    in_progress: &Arc<AtomicUsize>,
    handshakes: &Sender<Handshake>,
) {
    if in_progress.fetch_add(1, Ordering::SeqCst) >= HANDSHAKES_MAX {
        in_progress.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let (acceptor, count, handshakes) = (Arc::clone(acceptor), Arc::clone(in_progress), handshakes.clone());
    let started = thread::Builder::new().name("kudos-handshake".to_owned()).spawn(move || {
        // A client that sends no join request gets no reply.
        if let Ok(handshake) = acceptor.handshake(stream, HANDSHAKE_TIMEOUT.min(timeout)) {
            let _ = handshakes.send(handshake);
        }
        count.fetch_sub(1, Ordering::SeqCst);
    });
    if started.is_err() {
        in_progress.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Rank 0's side of handshakes: accepts or refuses ranks.
struct Acceptor {
    process: Cluster,
    settings: Settings,
}

impl Acceptor {
    /// Runs the handshake of a connection, for at most `time`.
    fn handshake(&self, mut stream: TcpStream, time: Duration) -> io::Result<Handshake> {
        let deadline = Instant::now() + time;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(time.max(Duration::from_millis(1))))?;
        let body = wire::receive(&mut DeadlineReader { stream: &stream, deadline }, HANDSHAKE_BYTES_MAX)?;
        let preamble: Preamble = wire::decode(&body)?;
        if preamble.magic != MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if preamble.protocol != PROTOCOL {
            let reason =
                refusal(format!("its protocol version is {}, and rank 0's is {PROTOCOL}", preamble.protocol));
            send(&mut stream, &JoinReply::Refused(WireError::from(&reason)))?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        let request: JoinRequest = wire::decode(&body)?;
        let nonce = nonce()?;
        send(&mut stream, &JoinReply::Challenge(nonce))?;
        let proof = wire::receive(&mut DeadlineReader { stream: &stream, deadline }, HANDSHAKE_BYTES_MAX)?;
        let Proof(proof) = wire::decode(&proof)?;
        let rank = request.rank;
        let checked =
            self.check_secret(&request, proof.as_deref(), &nonce, &body).and_then(|()| self.check(&request));
        if let Err(reason) = checked {
            send(&mut stream, &JoinReply::Refused(WireError::from(&reason)))?;
            return Ok(Handshake::Refused { rank, reason: reason.message().to_owned() });
        }
        let secret = self.process.secret.as_ref();
        let proof =
            secret.map(|secret| secret.mac(b"rank 0", &nonce, &body).finalize().into_bytes().to_vec());
        Ok(Handshake::Accepted { rank, stream, proof })
    }

    fn check_secret(
        &self,
        request: &JoinRequest,
        proof: Option<&[u8]>,
        nonce: &[u8],
        body: &[u8],
    ) -> Result<()> {
        match (&self.process.secret, proof) {
            (None, None) if !request.has_secret => Ok(()),
            (None, _) => Err(refusal("it has a secret, and rank 0 has none")),
            (Some(_), None) => Err(refusal("it has no secret, and rank 0 has one")),
            (Some(secret), Some(proof)) => {
                let verified = secret.mac(b"rank", nonce, body).verify_slice(proof);
                verified.map_err(|_| refusal("its secret differs from rank 0's"))
            }
        }
    }

    fn check(&self, request: &JoinRequest) -> Result<()> {
        let Cluster { world_size, .. } = self.process;
        let version = env!("CARGO_PKG_VERSION");
        if request.version != version {
            return Err(refusal(format!("it is kudos {}, and rank 0 is {version}", request.version)));
        }
        if request.world_size != world_size {
            let message = format!("its world size is {}, and rank 0's is {world_size}", request.world_size);
            return Err(refusal(message));
        }
        if request.rank == 0 || request.rank >= world_size {
            return Err(refusal(format!("rank 0 accepts ranks from 1 to {}", world_size - 1)));
        }
        let differs = differences(&request.settings, &self.settings);
        if differs.is_empty() {
            return Ok(());
        }
        Err(refusal(differs.join("; ")).with_hint("start all ranks with the same model and the same options"))
    }
}

/// Returns one message per setting in which a rank differs from rank 0.
fn differences(theirs: &Settings, ours: &Settings) -> Vec<String> {
    let find = |settings: &Settings, name: &str| {
        settings.iter().find(|(known, _)| known == name).map_or("nothing", |(_, value)| value).to_owned()
    };
    let mut names: Vec<&String> = ours.iter().chain(theirs).map(|(name, _)| name).collect();
    let mut seen = Vec::new();
    names.retain(|name| {
        !seen.contains(name) && {
            seen.push(*name);
            true
        }
    });
    let pairs = names.into_iter().map(|name| (name, find(theirs, name), find(ours, name)));
    let differing = pairs.filter(|(_, theirs, ours)| theirs != ours);
    differing.map(|(name, theirs, ours)| format!("its {name} is {theirs}, and rank 0's is {ours}")).collect()
}

/// The failure of an attempt to join.
enum JoinError {
    /// Rank 0 refused this rank: a further attempt would fail too.
    Refused(Error),
    /// A further attempt may succeed.
    Retry(String),
}

impl From<io::Error> for JoinError {
    fn from(error: io::Error) -> Self {
        Self::Retry(match error.kind() {
            io::ErrorKind::UnexpectedEof => "the service at this address closed the connection".to_owned(),
            io::ErrorKind::InvalidData => "the service at this address is not kudos rank 0".to_owned(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                "the service at this address does not respond".to_owned()
            }
            _ => error.to_string(),
        })
    }
}

/// Joins rank 0. Tries again until the timeout, unless it is refused.
pub(super) fn join(process: &Cluster, settings: &Settings, timeout: Duration) -> Result<Link> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(RETRY_INTERVAL);
        match try_join(process, settings, left) {
            Ok(stream) => {
                return Link::new(process.name(0), stream, timeout).map_err(|error| {
                    Error::new(ErrorKind::Io, "cannot monitor the connection to rank 0").caused_by(error)
                });
            }
            Err(JoinError::Refused(error)) => return Err(error.at(&process.rendezvous)),
            Err(JoinError::Retry(reason)) if Instant::now() + RETRY_INTERVAL >= deadline => {
                let message = format!("rank 0 was not found within {} s: {reason}", timeout.as_secs_f32());
                return Err(Error::new(ErrorKind::Io, message).at(&process.rendezvous).with_hint(
                    "start rank 0 with the same `--rendezvous`; its port must be reachable from here",
                ));
            }
            Err(JoinError::Retry(_)) => thread::sleep(RETRY_INTERVAL),
        }
    }
}

fn try_join(process: &Cluster, settings: &Settings, time: Duration) -> Result<TcpStream, JoinError> {
    let mut stream = connect(&process.rendezvous, time)?;
    // Rank 0 replies at once; another service may never reply.
    let time = time.min(HANDSHAKE_TIMEOUT);
    let deadline = Instant::now() + time;
    stream.set_write_timeout(Some(time))?;
    let secret = process.secret.as_ref();
    let request = wire::encode(&JoinRequest {
        magic: MAGIC.to_owned(),
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        rank: process.rank,
        world_size: process.world_size,
        settings: settings.clone(),
        has_secret: secret.is_some(),
        nonce: nonce()?,
    })?;
    wire::send(&mut stream, &request, HANDSHAKE_BYTES_MAX)?;
    let receive = |stream: &TcpStream| -> Result<JoinReply, JoinError> {
        Ok(wire::decode(&wire::receive(&mut DeadlineReader { stream, deadline }, HANDSHAKE_BYTES_MAX)?)?)
    };
    let challenge = match receive(&stream)? {
        JoinReply::Challenge(nonce) => nonce,
        other => return Err(rejected(other, process)),
    };
    let proof =
        secret.map(|secret| secret.mac(b"rank", &challenge, &request).finalize().into_bytes().to_vec());
    send(&mut stream, &Proof(proof))?;
    match (receive(&stream)?, secret) {
        (JoinReply::Accepted(_), None) => Ok(stream),
        (JoinReply::Accepted(Some(proof)), Some(secret)) => {
            let verified = secret.mac(b"rank 0", &challenge, &request).verify_slice(&proof);
            let impostor = |_| refusal("the service at this address does not know the secret");
            verified.map_err(impostor).map_err(JoinError::Refused)?;
            Ok(stream)
        }
        (other, _) => Err(rejected(other, process)),
    }
}

fn connect(address: &str, time: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("`{address}` has no address"));
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, time) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Makes the error for a reply that does not accept this rank.
fn rejected(reply: JoinReply, process: &Cluster) -> JoinError {
    match reply {
        JoinReply::Refused(error) => JoinError::Refused(
            error.into_error().prefixed(format!("rank 0 refused {}", process.name(process.rank))),
        ),
        _ => JoinError::Retry("the service at this address sent an unexpected reply".to_owned()),
    }
}
