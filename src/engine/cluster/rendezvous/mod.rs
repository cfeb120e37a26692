//! How ranks in several processes find each other: over TCP, at an address that rank 0 listens at.
//!
//! Each other rank connects to it, says who it is and with what it was started, and is let in or told why not. A
//! shared secret, if there is one, is proved by both without being sent. Only control goes over these connections;
//! tensors are NCCL's. Neither is encrypted: this is for networks whose machines trust each other.

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
use wire::{GREETING_BYTES_MAX, Told, Until};

/// What a greeting begins with.
const MAGIC: &str = "kudos ranks";

/// The version of what is said; others are refused.
const PROTOCOL: u32 = 1;

/// How long somebody who connects may take to say who he is.
const GREETING_TIME: Duration = Duration::from_secs(5);

/// Strangers that are listened to at one time; more are turned away.
const STRANGERS_MAX: usize = 64;

/// How long a rank waits before it tries to connect again.
const RETRY: Duration = Duration::from_millis(100);

/// Interval at which rank 0 polls for connections.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

impl Secret {
    /// What only somebody who knows the secret can say of a greeting and the number it was asked with.
    fn seal(&self, whose: &[u8], nonce: &[u8], hello: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.bytes()).expect("a key may have any length");
        for part in [whose, nonce, hello] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

/// What must be the same on all ranks, by name.
pub(super) type Facts = Vec<(String, String)>;

/// A rank's first words.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    magic: String,
    protocol: u32,
    version: String,
    rank: usize,
    world_size: usize,
    facts: Facts,
    has_secret: bool,
    nonce: [u8; 32],
}

/// Of a greeting in any protocol.
#[derive(Debug, Deserialize)]
struct Opening {
    magic: String,
    protocol: u32,
}

/// What rank 0 answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// Prove that you know the secret.
    Challenge([u8; 32]),
    /// You are one of us; here is my proof, if there is a secret.
    Welcome(Option<Vec<u8>>),
    /// You are not, and why.
    Refused(Told),
}

/// A rank's answer to the challenge.
#[derive(Debug, Serialize, Deserialize)]
struct Proof(Option<Vec<u8>>);

fn nonce() -> io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

fn say(stream: &mut TcpStream, value: &impl Serialize) -> io::Result<()> {
    wire::send(stream, &wire::encode(value)?, GREETING_BYTES_MAX)
}

fn refusal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Options, message)
}

impl Cluster {
    fn name(&self, rank: usize) -> String {
        format!("rank {rank} of {}", self.world_size)
    }
}

/// Waits at rank 0 for all others; they come back in their order, the first being rank 1. An error when one does not
/// come in time, after those that came were told.
pub(super) fn gather(process: &Cluster, facts: &Facts, timeout: Duration) -> Result<Vec<Link>> {
    let listener = TcpListener::bind(&process.rendezvous).map_err(|error| {
        Error::new(ErrorKind::Io, format!("rank 0 cannot listen at {}", process.rendezvous))
            .caused_by(error)
            .with_hint("the address is one of this machine's, HOST:PORT, where no other program listens")
    })?;
    gather_at(&listener, process, facts, timeout)
}

/// Somebody who was greeted properly, or refused for a reason that rank 0 should tell.
enum Guest {
    Rank { rank: usize, stream: TcpStream, proof: Option<Vec<u8>> },
    Refused { rank: usize, reason: String },
}

fn gather_at(
    listener: &TcpListener,
    process: &Cluster,
    facts: &Facts,
    timeout: Duration,
) -> Result<Vec<Link>> {
    let cannot = |error: io::Error| Error::new(ErrorKind::Io, "rank 0 cannot listen").caused_by(error);
    listener.set_nonblocking(true).map_err(cannot)?;
    let host = Arc::new(Host { process: process.clone(), facts: facts.clone() });
    let (guests, arrivals) = channel();
    let strangers = Arc::new(AtomicUsize::new(0));
    let mut seats: Vec<Option<Link>> = (1..process.world_size).map(|_| None).collect();
    let mut refused: Vec<String> = Vec::new();
    let deadline = Instant::now() + timeout;
    while seats.iter().any(Option::is_none) {
        // An error is that of one who connected and is gone.
        if let Ok((stream, _)) = listener.accept() {
            greet(&host, stream, timeout, &strangers, &guests);
        }
        seat(&arrivals, process, timeout, &mut seats, &mut refused);
        if Instant::now() >= deadline {
            let error = missing(process, &seats, &refused, timeout);
            seats.iter().flatten().for_each(|link| link.end(Some(&error)));
            return Err(error);
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(seats.into_iter().flatten().collect())
}

/// Gives those who arrived their seats, and frees the seats of those who left.
fn seat(
    arrivals: &Receiver<Guest>,
    process: &Cluster,
    timeout: Duration,
    seats: &mut [Option<Link>],
    refused: &mut Vec<String>,
) {
    for (index, seat) in seats.iter_mut().enumerate() {
        if seat.take_if(|link| link.is_lost()).is_some() {
            refused.push(format!("{} came and went away", process.name(index + 1)));
        }
    }
    for guest in arrivals.try_iter() {
        match guest {
            Guest::Refused { rank, reason } => {
                let reason = format!("rank {rank} was refused: {reason}");
                if !refused.contains(&reason) {
                    refused.push(reason);
                }
            }
            Guest::Rank { rank, mut stream, proof } => {
                let seat = &mut seats[rank - 1];
                if seat.is_some() {
                    let reason = refusal(format!("another process is rank {rank} already"));
                    let _ = say(&mut stream, &Answer::Refused(Told::from(&reason)));
                } else if say(&mut stream, &Answer::Welcome(proof)).is_ok() {
                    *seat = Link::new(process.name(rank), stream, timeout).ok();
                }
            }
        }
    }
}

fn missing(process: &Cluster, seats: &[Option<Link>], refused: &[String], timeout: Duration) -> Error {
    let absent = seats.iter().enumerate().filter(|(_, seat)| seat.is_none());
    let absent: Vec<String> = absent.map(|(index, _)| (index + 1).to_string()).collect();
    let ranks = if absent.len() == 1 { "rank" } else { "ranks" };
    let message = format!(
        "{ranks} {} of {} did not come within {} s",
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

/// Listens to somebody on a thread of his own, so that one who says nothing keeps nobody waiting.
fn greet(
    host: &Arc<Host>,
    stream: TcpStream,
    timeout: Duration,
    strangers: &Arc<AtomicUsize>,
    guests: &Sender<Guest>,
) {
    if strangers.fetch_add(1, Ordering::SeqCst) >= STRANGERS_MAX {
        strangers.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let (host, count, guests) = (Arc::clone(host), Arc::clone(strangers), guests.clone());
    let started = thread::Builder::new().name("kudos-greeting".to_owned()).spawn(move || {
        // Whoever does not speak the language gets no answer.
        if let Ok(guest) = host.greet(stream, GREETING_TIME.min(timeout)) {
            let _ = guests.send(guest);
        }
        count.fetch_sub(1, Ordering::SeqCst);
    });
    if started.is_err() {
        strangers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What rank 0 compares greetings with.
struct Host {
    process: Cluster,
    facts: Facts,
}

impl Host {
    /// Hears out one who connected.
    fn greet(&self, mut stream: TcpStream, time: Duration) -> io::Result<Guest> {
        let deadline = Instant::now() + time;
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(time.max(Duration::from_millis(1))))?;
        let body = wire::receive(&mut Until { stream: &stream, deadline }, GREETING_BYTES_MAX)?;
        let opening: Opening = wire::decode(&body)?;
        if opening.magic != MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if opening.protocol != PROTOCOL {
            let reason = refusal(format!("it speaks protocol {}, rank 0 {PROTOCOL}", opening.protocol));
            say(&mut stream, &Answer::Refused(Told::from(&reason)))?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        let hello: Hello = wire::decode(&body)?;
        let nonce = nonce()?;
        say(&mut stream, &Answer::Challenge(nonce))?;
        let proof = wire::receive(&mut Until { stream: &stream, deadline }, GREETING_BYTES_MAX)?;
        let Proof(proof) = wire::decode(&proof)?;
        let rank = hello.rank;
        let checked =
            self.check_secret(&hello, proof.as_deref(), &nonce, &body).and_then(|()| self.check(&hello));
        if let Err(reason) = checked {
            say(&mut stream, &Answer::Refused(Told::from(&reason)))?;
            return Ok(Guest::Refused { rank, reason: reason.message().to_owned() });
        }
        let secret = self.process.secret.as_ref();
        let proof =
            secret.map(|secret| secret.seal(b"rank 0", &nonce, &body).finalize().into_bytes().to_vec());
        Ok(Guest::Rank { rank, stream, proof })
    }

    fn check_secret(&self, hello: &Hello, proof: Option<&[u8]>, nonce: &[u8], body: &[u8]) -> Result<()> {
        match (&self.process.secret, proof) {
            (None, None) if !hello.has_secret => Ok(()),
            (None, _) => Err(refusal("it has a secret, and rank 0 has none")),
            (Some(_), None) => Err(refusal("it has no secret, and rank 0 has one")),
            (Some(secret), Some(proof)) => {
                let sealed = secret.seal(b"rank", nonce, body).verify_slice(proof);
                sealed.map_err(|_| refusal("its secret is another one"))
            }
        }
    }

    fn check(&self, hello: &Hello) -> Result<()> {
        let Cluster { world_size, .. } = self.process;
        let version = env!("CARGO_PKG_VERSION");
        if hello.version != version {
            return Err(refusal(format!("it is kudos {}, and rank 0 is {version}", hello.version)));
        }
        if hello.world_size != world_size {
            let message = format!("its world size is {}, and rank 0's is {world_size}", hello.world_size);
            return Err(refusal(message));
        }
        if hello.rank == 0 || hello.rank >= world_size {
            return Err(refusal(format!("ranks from 1 to {} are waited for", world_size - 1)));
        }
        let differs = differences(&hello.facts, &self.facts);
        if differs.is_empty() {
            return Ok(());
        }
        Err(refusal(differs.join("; ")).with_hint("start all ranks with the same model and the same options"))
    }
}

/// What of a rank's facts is not as rank 0's, in words.
fn differences(theirs: &Facts, ours: &Facts) -> Vec<String> {
    let find = |facts: &Facts, name: &str| {
        facts.iter().find(|(known, _)| known == name).map_or("nothing", |(_, value)| value).to_owned()
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

/// Why a rank was not let in: for good, or for this time.
enum Turned {
    Away(Error),
    Later(String),
}

impl From<io::Error> for Turned {
    fn from(error: io::Error) -> Self {
        Self::Later(match error.kind() {
            io::ErrorKind::UnexpectedEof => "whoever listens there hung up".to_owned(),
            io::ErrorKind::InvalidData => "whoever listens there is not rank 0 of kudos".to_owned(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it does not answer".to_owned(),
            _ => error.to_string(),
        })
    }
}

/// Finds rank 0 and is let in; tries again until the time limit.
pub(super) fn join(process: &Cluster, facts: &Facts, timeout: Duration) -> Result<Link> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(RETRY);
        match knock(process, facts, left) {
            Ok(stream) => {
                return Link::new(process.name(0), stream, timeout).map_err(|error| {
                    Error::new(ErrorKind::Io, "cannot watch the connection to rank 0").caused_by(error)
                });
            }
            Err(Turned::Away(error)) => return Err(error.at(&process.rendezvous)),
            Err(Turned::Later(reason)) if Instant::now() + RETRY >= deadline => {
                let message = format!("rank 0 was not found within {} s: {reason}", timeout.as_secs_f32());
                return Err(Error::new(ErrorKind::Io, message).at(&process.rendezvous).with_hint(
                    "start rank 0 with the same `--rendezvous`; its port must be reachable from here",
                ));
            }
            Err(Turned::Later(_)) => thread::sleep(RETRY),
        }
    }
}

fn knock(process: &Cluster, facts: &Facts, time: Duration) -> Result<TcpStream, Turned> {
    let mut stream = connect(&process.rendezvous, time)?;
    // Rank 0 answers at once, unless it is not rank 0.
    let time = time.min(GREETING_TIME);
    let deadline = Instant::now() + time;
    stream.set_write_timeout(Some(time))?;
    let secret = process.secret.as_ref();
    let hello = wire::encode(&Hello {
        magic: MAGIC.to_owned(),
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        rank: process.rank,
        world_size: process.world_size,
        facts: facts.clone(),
        has_secret: secret.is_some(),
        nonce: nonce()?,
    })?;
    wire::send(&mut stream, &hello, GREETING_BYTES_MAX)?;
    let hear = |stream: &TcpStream| -> Result<Answer, Turned> {
        Ok(wire::decode(&wire::receive(&mut Until { stream, deadline }, GREETING_BYTES_MAX)?)?)
    };
    let asked = match hear(&stream)? {
        Answer::Challenge(nonce) => nonce,
        other => return Err(turned_away(other, process)),
    };
    let proof = secret.map(|secret| secret.seal(b"rank", &asked, &hello).finalize().into_bytes().to_vec());
    say(&mut stream, &Proof(proof))?;
    match (hear(&stream)?, secret) {
        (Answer::Welcome(_), None) => Ok(stream),
        (Answer::Welcome(Some(proof)), Some(secret)) => {
            let sealed = secret.seal(b"rank 0", &asked, &hello).verify_slice(&proof);
            let other = |_| refusal("whoever answers as rank 0 does not know the secret");
            sealed.map_err(other).map_err(Turned::Away)?;
            Ok(stream)
        }
        (other, _) => Err(turned_away(other, process)),
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

fn turned_away(answer: Answer, process: &Cluster) -> Turned {
    match answer {
        Answer::Refused(told) => {
            Turned::Away(told.into_error().prefixed(format!("rank 0 refused {}", process.name(process.rank))))
        }
        _ => Turned::Later("whoever listens there does not speak as rank 0 does".to_owned()),
    }
}
