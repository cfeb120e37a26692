//! [`Link`]: the connection to a rank in another process, watched from the moment it is let in.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use std::{fmt, io};

use super::wire::{self, MESSAGE_BYTES_MAX, Message, Told};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// Signs of life are sent this often, or more often where the time limit is short.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// The connection to a rank in another process.
///
/// Both ends send signs of life, so that one that hangs, or whose machine is gone without a word, is known after the
/// time limit, and a long load is no reason to give it up.
pub(in crate::engine) struct Link {
    /// The rank at the other end, such as `rank 1 of 2`.
    name: String,
    writer: Arc<Mutex<TcpStream>>,
    stream: TcpStream,
    inbox: Mutex<Receiver<Result<Message>>>,
    lost: Arc<AtomicBool>,
    /// Whether the other end was told that this is over.
    over: AtomicBool,
    _alive: Sender<()>,
}

impl Link {
    /// Watches this connection to the rank of this name.
    pub(super) fn new(name: String, stream: TcpStream, timeout: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // A limit of zero would be none.
        let timeout = timeout.max(Duration::from_millis(1));
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let writer = Arc::new(Mutex::new(stream.try_clone()?));
        let lost = Arc::new(AtomicBool::new(false));
        let (sender, inbox) = channel();
        let (alive, stopped) = channel();
        thread::Builder::new().name("kudos-link-in".to_owned()).spawn({
            let (name, lost, stream) = (name.clone(), Arc::clone(&lost), stream.try_clone()?);
            move || listen(&name, stream, timeout, &lost, &sender)
        })?;
        thread::Builder::new().name("kudos-link-out".to_owned()).spawn({
            let writer = Arc::clone(&writer);
            move || show_life(&writer, ALIVE_EVERY.min(timeout / 5), &stopped)
        })?;
        let inbox = Mutex::new(inbox);
        Ok(Self { name, writer, stream, inbox, lost, over: AtomicBool::new(false), _alive: alive })
    }

    /// Whether the other end is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Says something. What went wrong shows to whoever listens.
    pub(in crate::engine) fn send(&self, message: &Message) -> Result<()> {
        let body = wire::encode(message).map_err(|error| self.error(&error.to_string()))?;
        let mut writer = lock(&self.writer);
        match wire::send(&mut *writer, &body, MESSAGE_BYTES_MAX) {
            Ok(()) => Ok(()),
            Err(_) if self.is_lost() => Err(went_away(&self.name)),
            Err(error) => Err(self.error(&format!("cannot be sent to: {error}"))),
        }
    }

    /// Says what has failed, and goes on listening.
    pub(in crate::engine) fn tell(&self, error: &Error) {
        // Who is gone needs not be told.
        let _ = self.send(&Message::Failed(Told::from(error)));
    }

    /// Says that this is over, and why; only the first word of that kind is said.
    pub(in crate::engine) fn end(&self, cause: Option<&Error>) {
        if !self.over.swap(true, Ordering::SeqCst) {
            match cause {
                Some(cause) => self.tell(cause),
                None => drop(self.send(&Message::Goodbye)),
            }
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Waits for what is said next; an error when the other end has failed or is gone.
    pub(in crate::engine) fn receive(&self) -> Result<Message> {
        let inbox = lock(&self.inbox);
        inbox.recv().unwrap_or_else(|_| Err(went_away(&self.name)))
    }

    /// The same, waiting for no longer than this.
    pub(in crate::engine) fn receive_within(&self, time: Duration) -> Result<Option<Message>> {
        let inbox = lock(&self.inbox);
        match inbox.recv_timeout(time) {
            Ok(message) => message.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(went_away(&self.name)),
        }
    }

    /// That the other end is there and has said nothing.
    pub(in crate::engine) fn quiet(&self) -> Result<()> {
        let inbox = lock(&self.inbox);
        match inbox.try_recv() {
            Ok(Ok(message)) => Err(self.out_of_turn(&message)),
            Ok(Err(error)) => Err(error),
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => Err(went_away(&self.name)),
        }
    }

    /// The error of a message that nobody waits for.
    pub(in crate::engine) fn out_of_turn(&self, message: &Message) -> Error {
        let word = format!("{message:?}");
        let word: String = word.chars().take_while(|c| c.is_alphanumeric()).collect();
        self.error(&format!("says `{word}` out of turn"))
    }

    /// The error of a batch that is none.
    pub(in crate::engine) fn unsound(&self) -> Error {
        self.error("sends a batch whose parts do not fit together, or that is larger than was agreed on")
    }

    fn error(&self, what: &str) -> Error {
        Error::new(ErrorKind::Io, format!("{} {what}", self.name))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Ends the thread that listens.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("name", &self.name).finish_non_exhaustive()
    }
}

fn went_away(name: &str) -> Error {
    Error::new(ErrorKind::Io, format!("{name} went away")).with_hint(
        "its process has ended or its connection is cut: see what it printed, and what its machine says",
    )
}

/// Passes on what comes until nothing can come any more.
fn listen(
    name: &str,
    mut stream: TcpStream,
    timeout: Duration,
    lost: &AtomicBool,
    inbox: &Sender<Result<Message>>,
) {
    loop {
        let message = wire::receive(&mut stream, MESSAGE_BYTES_MAX).and_then(|body| wire::decode(&body));
        let result = match message {
            Ok(Message::Alive) => continue,
            Ok(Message::Failed(told)) => Err(told.into_error()),
            Ok(message) => Ok(message),
            Err(error) => {
                lost.store(true, Ordering::SeqCst);
                Err(match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::new(
                        ErrorKind::Io,
                        format!("{name} was not heard of for {} s", timeout.as_secs_f32()),
                    ),
                    io::ErrorKind::InvalidData => {
                        Error::new(ErrorKind::Io, format!("{name} sends what is no message")).caused_by(error)
                    }
                    _ => went_away(name),
                })
            }
        };
        let ends = result.is_err();
        if inbox.send(result).is_err() || ends {
            return;
        }
    }
}

/// Sends signs of life until the link is dropped or cannot send.
fn show_life(writer: &Mutex<TcpStream>, every: Duration, stopped: &Receiver<()>) {
    let alive = wire::encode(&Message::Alive).expect("a word is JSON");
    while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        let mut writer = lock(writer);
        if wire::send(&mut *writer, &alive, MESSAGE_BYTES_MAX).is_err() {
            return;
        }
    }
}
