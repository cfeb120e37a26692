//! Streams: a JSON object on each line in, a result on each line out, in the same order.
//!
//! Lines are read as the engine scores them: a client that sends faster is not read from, and one
//! that reads its results slowly is not read from either, once [`RESULTS_MAX`] of them wait for it.
//! A client that sends all before it reads anything can therefore send that many lines.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::BodyExt;
use kudos::internals::results::{Key, result_line};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle};

use crate::app::{App, Place};
use crate::body::typed_response;
use crate::failure::Failure;
use crate::scheduler::Ticket;
use crate::scoring::Prepared;

/// Results that may wait for the client.
const RESULTS_MAX: usize = 1 << 17;

/// Budget for the text of a stream's lines that have no result yet, in KiB.
pub(crate) const LINES_KIB: usize = 16 << 10;

/// Limit on the time between two parts of a stream: a client may wait for what it sends next.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// A line whose result is being made.
struct InFlight(JoinHandle<Result<String, Failure>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Returns the response of a stream.
pub(super) fn stream(app: App, place: Place, body: Body) -> Response {
    let (sender, results) = mpsc::channel(RESULTS_MAX);
    let reader = tokio::spawn(read(app, body, sender)).abort_handle();
    let results = Results { results, _reader: AbortOnDrop(reader), _place: place, failed: false };
    let lines = stream::unfold(results, |mut results| async move { Some((results.next().await?, results)) });
    typed_response(StatusCode::OK, "application/x-ndjson", Body::from_stream(lines))
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The results of a stream. Dropping this ends all of its work.
struct Results {
    results: mpsc::Receiver<Result<InFlight, Failure>>,
    _reader: AbortOnDrop,
    _place: Place,
    failed: bool,
}

impl Results {
    /// Waits for the next line. After a failure there is a line with it, and then the connection is
    /// cut: the client is not to take the stream for complete.
    async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        if self.failed {
            // What is written before a failure is lost unless it is sent first.
            tokio::task::yield_now().await;
            return Some(Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "stream", "the stream failed")));
        }
        let line = match self.results.recv().await? {
            Ok(mut in_flight) => match (&mut in_flight.0).await {
                Ok(line) => line,
                Err(_) => Err(Failure::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "panic",
                    "kudos has a bug: a line's task panicked",
                )),
            },
            Err(failure) => Err(failure),
        };
        let text = line.unwrap_or_else(|failure| {
            self.failed = true;
            Value::Object(failure.into_fields()).to_string()
        });
        Some(Ok((text + "\n").into()))
    }
}

/// Reads lines and begins to score each: the task of a stream.
async fn read(app: App, body: Body, sender: mpsc::Sender<Result<InFlight, Failure>>) {
    let ticket = Arc::new(app.scheduler.request());
    let budget = Arc::new(Semaphore::new(LINES_KIB));
    let mut draining = app.draining.subscribe();
    let mut lines = Lines::new(body, app.clone());
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            _ = draining.wait_for(|&draining| draining) => {
                let message = "the server is ending, and has read no further";
                Some(Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message)))
            }
        };
        let (index, text) = match line {
            None => return,
            Some(Ok(line)) => line,
            Some(Err(failure)) => return drop(sender.send(Err(failure)).await),
        };
        let kib = text.as_ref().map_or(1, |text| text.len() / 1024 + 1).min(LINES_KIB);
        let kib = u32::try_from(kib).expect("the budget is small");
        // Lines of this stream, then of all streams: their results free both.
        let acquire = |budget: &Arc<Semaphore>| Arc::clone(budget).acquire_many_owned(kib);
        let own = acquire(&budget).await.expect("it is never closed");
        let of_all = acquire(&app.lines_budget).await.expect("it is never closed");
        let task = result(app.clone(), Arc::clone(&ticket), index, text, [own, of_all]);
        if sender.send(Ok(InFlight(tokio::spawn(task)))).await.is_err() {
            return;
        }
    }
}

/// Returns the result of a line. A failure is one of the whole stream.
async fn result(
    app: App,
    ticket: Arc<Ticket>,
    index: usize,
    text: Result<Bytes, Failure>,
    _permits: [OwnedSemaphorePermit; 2],
) -> Result<String, Failure> {
    let line = |key: Key, fields: Map<String, Value>| result_line(Some(&key), fields);
    let text = match text {
        Ok(text) => text,
        Err(failure) => return Ok(line(Key::Index(index), failure.into_fields())),
    };
    let engine = Arc::clone(&app.engine);
    let mut item = app.workers.run(move || Prepared::of_object(&engine, &text)).await;
    let key = item.key.take().unwrap_or(Key::Index(index));
    let scored = app.score_line(&ticket, item).await?;
    Ok(line(key, scored.fields()))
}

/// The lines of a body, with their numbers from 0. Empty ones count, and are left out.
struct Lines {
    body: Body,
    app: App,
    buffer: BytesMut,
    /// Bytes of the buffer, as of a body.
    reserved: Option<OwnedSemaphorePermit>,
    /// Bytes of the buffer that hold no line break.
    searched: usize,
    index: usize,
    /// Whether the line that is being read is too long, and its text not kept.
    is_skipped: bool,
    ended: bool,
}

type Line = (usize, Result<Bytes, Failure>);

impl Lines {
    fn new(body: Body, app: App) -> Self {
        let (buffer, reserved) = (BytesMut::new(), None);
        Self { body, app, buffer, reserved, searched: 0, index: 0, is_skipped: false, ended: false }
    }

    /// Returns the next line, an error of the stream, or `None` at its end.
    async fn next(&mut self) -> Option<Result<Line, Failure>> {
        loop {
            let found = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
            let line = match found {
                Some(found) => {
                    let line = self.buffer.split_to(self.searched + found + 1);
                    self.searched = 0;
                    Some(line)
                }
                None if self.ended && (!self.buffer.is_empty() || self.is_skipped) => {
                    self.searched = 0;
                    Some(std::mem::take(&mut self.buffer))
                }
                None => None,
            };
            if let Some(line) = line {
                let index = self.index;
                self.index += 1;
                self.reserved = None;
                if std::mem::take(&mut self.is_skipped) || line.len() > self.app.bodies.bytes_max {
                    return Some(Ok((index, Err(self.too_long()))));
                }
                if !line.trim_ascii().is_empty() {
                    return Some(Ok((index, Ok(line.freeze()))));
                }
                continue;
            }
            if self.ended {
                return None;
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.app.bodies.bytes_max {
                self.is_skipped = true;
                self.buffer.clear();
                self.reserved = None;
                self.searched = 0;
            }
            if let Err(failure) = self.more().await {
                return Some(Err(failure));
            }
        }
    }

    /// Reads more of the body.
    async fn more(&mut self) -> Result<(), Failure> {
        let frame = tokio::time::timeout(IDLE_TIMEOUT, self.body.frame()).await.map_err(|_| {
            let message = format!("nothing of the stream arrived for {} s", IDLE_TIMEOUT.as_secs());
            Failure::new(StatusCode::REQUEST_TIMEOUT, "timeout", message)
        })?;
        match frame {
            None => self.ended = true,
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.app.bodies.reserve(self.buffer.len() + data.len(), &mut self.reserved)?;
                    self.buffer.extend_from_slice(&data);
                }
            }
            Some(Err(error)) => {
                let message = format!("the stream cannot be read: {error}");
                return Err(Failure::new(StatusCode::BAD_REQUEST, "body", message));
            }
        }
        Ok(())
    }

    fn too_long(&self) -> Failure {
        let message = format!("the line has more than {} bytes", self.app.bodies.bytes_max);
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for Failure {}
