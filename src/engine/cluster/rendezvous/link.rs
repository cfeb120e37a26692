//! [`Link`]: the connection to a rank in another process, monitored by heartbeats.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use std::{fmt, io};

use super::wire::{self, MESSAGE_BYTES_MAX, Message, WireError};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// The longest interval between heartbeats; a short timeout shortens it.
const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_secs(5);

/// The connection to a rank in another process.
///
/// Both ends send heartbeats, so that a process that hangs, or a machine that is cut off, is
/// noticed after the timeout, while a long load is not mistaken for one.
pub(in crate::engine) struct Link {
    /// The rank at the other end, such as `rank 1 of 2`.
    name: String,
    writer: Arc<Mutex<TcpStream>>,
    stream: TcpStream,
    inbox: Mutex<Receiver<Result<Message>>>,
    /// Whether nothing more can be received.
    disconnected: Arc<AtomicBool>,
    /// Whether this end has closed the link.
    closed: AtomicBool,
    /// Dropping it stops the heartbeats.
    _heartbeats: Sender<()>,
}

impl Link {
    /// Starts to monitor a connection to the rank called `name`.
    pub(super) fn new(name: String, stream: TcpStream, timeout: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // The system takes a timeout of zero for none.
        let timeout = timeout.max(Duration::from_millis(1));
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let writer = Arc::new(Mutex::new(stream.try_clone()?));
        let disconnected = Arc::new(AtomicBool::new(false));
        let (sender, inbox) = channel();
        let (heartbeats, stopped) = channel();
        thread::Builder::new().name("kudos-link-in".to_owned()).spawn({
            let (name, disconnected, stream) = (name.clone(), Arc::clone(&disconnected), stream.try_clone()?);
            move || receive_messages(&name, stream, timeout, &disconnected, &sender)
        })?;
        thread::Builder::new().name("kudos-link-out".to_owned()).spawn({
            let writer = Arc::clone(&writer);
            move || send_heartbeats(&writer, HEARTBEAT_INTERVAL_MAX.min(timeout / 5), &stopped)
        })?;
        let inbox = Mutex::new(inbox);
        let closed = AtomicBool::new(false);
        Ok(Self { name, writer, stream, inbox, disconnected, closed, _heartbeats: heartbeats })
    }

    /// Whether the other end has disconnected.
    pub(super) fn is_disconnected(&self) -> bool {
        self.disconnected.load(Ordering::SeqCst)
    }

    /// Sends a message.
    pub(in crate::engine) fn send(&self, message: &Message) -> Result<()> {
        let body = wire::encode(message).map_err(|error| self.error(&error.to_string()))?;
        let mut writer = lock(&self.writer);
        match wire::send(&mut *writer, &body, MESSAGE_BYTES_MAX) {
            Ok(()) => Ok(()),
            Err(_) if self.is_disconnected() => Err(disconnected(&self.name)),
            Err(error) => Err(self.error(&format!("cannot be sent to: {error}"))),
        }
    }

    /// Sends the error with which all ranks end, and continues to receive.
    pub(in crate::engine) fn send_error(&self, error: &Error) {
        // Has no effect on an end that has disconnected.
        let _ = self.send(&Message::Failed(WireError::from(error)));
    }

    /// Sends `cause`, or [`Message::Close`] without one, as the last message; has no effect after
    /// the first call.
    pub(in crate::engine) fn close(&self, cause: Option<&Error>) {
        if !self.closed.swap(true, Ordering::SeqCst) {
            match cause {
                Some(cause) => self.send_error(cause),
                None => drop(self.send(&Message::Close)),
            }
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Waits for the next message; an error when the other end has failed or disconnected.
    pub(in crate::engine) fn receive(&self) -> Result<Message> {
        let inbox = lock(&self.inbox);
        inbox.recv().unwrap_or_else(|_| Err(disconnected(&self.name)))
    }

    /// Like [`receive`](Self::receive), but returns `None` after `time`.
    pub(in crate::engine) fn receive_within(&self, time: Duration) -> Result<Option<Message>> {
        let inbox = lock(&self.inbox);
        match inbox.recv_timeout(time) {
            Ok(message) => message.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(disconnected(&self.name)),
        }
    }

    /// Checks that the other end is connected and has sent no message.
    pub(in crate::engine) fn check_idle(&self) -> Result<()> {
        let inbox = lock(&self.inbox);
        match inbox.try_recv() {
            Ok(Ok(message)) => Err(self.unexpected(&message)),
            Ok(Err(error)) => Err(error),
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => Err(disconnected(&self.name)),
        }
    }

    /// Makes the error for an unexpected message.
    pub(in crate::engine) fn unexpected(&self, message: &Message) -> Error {
        let name = format!("{message:?}");
        let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
        self.error(&format!("sent an unexpected message `{name}`"))
    }

    /// Makes the error for a malformed batch message.
    pub(in crate::engine) fn malformed_batch(&self) -> Error {
        self.error("sent a batch that is inconsistent, or larger than this rank's capacity")
    }

    fn error(&self, message: &str) -> Error {
        Error::new(ErrorKind::Io, format!("{} {message}", self.name))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Ends the thread that receives.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("name", &self.name).finish_non_exhaustive()
    }
}

fn disconnected(name: &str) -> Error {
    Error::new(ErrorKind::Io, format!("{name} disconnected"))
        .with_hint("its process ended or the network failed: see its output and the log of its machine")
}

/// Puts messages into the inbox until the stream ends or fails.
fn receive_messages(
    name: &str,
    mut stream: TcpStream,
    timeout: Duration,
    is_disconnected: &AtomicBool,
    inbox: &Sender<Result<Message>>,
) {
    loop {
        let message = wire::receive(&mut stream, MESSAGE_BYTES_MAX).and_then(|body| wire::decode(&body));
        let result = match message {
            Ok(Message::Heartbeat) => continue,
            Ok(Message::Failed(error)) => Err(error.into_error()),
            Ok(message) => Ok(message),
            Err(error) => {
                is_disconnected.store(true, Ordering::SeqCst);
                Err(match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::new(
                        ErrorKind::Io,
                        format!("{name} sent no heartbeat for {} s", timeout.as_secs_f32()),
                    ),
                    io::ErrorKind::InvalidData => {
                        Error::new(ErrorKind::Io, format!("{name} sent a malformed message")).caused_by(error)
                    }
                    _ => disconnected(name),
                })
            }
        };
        let is_last = result.is_err();
        if inbox.send(result).is_err() || is_last {
            return;
        }
    }
}

/// Sends heartbeats until the link is dropped or a send fails.
fn send_heartbeats(writer: &Mutex<TcpStream>, interval: Duration, stopped: &Receiver<()>) {
    let heartbeat = wire::encode(&Message::Heartbeat).expect("a unit variant is JSON");
    while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        let mut writer = lock(writer);
        if wire::send(&mut *writer, &heartbeat, MESSAGE_BYTES_MAX).is_err() {
            return;
        }
    }
}
