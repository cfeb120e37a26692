//! Reading, rendering and tokenizing ahead of the engine, in order and in bounded memory.
//!
//! ```text
//! reader --raw lines--> workers: parse, render, tokenize --> submitter, in order --> engine, and the writer's channel
//! ```
//!
//! A line takes room when it is read and gives it back when its result is written, so what is on its way is bounded in
//! bytes however long the input is. Each line carries the sending end of a channel of its own through the workers, and
//! the submitter has the receiving ends in order: workers overtake each other, lines do not. No stage waits for more
//! input before it passes on what it has: a line that comes alone is scored alone.

use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::anyhow;
use serde_json::Value;

use crate::cli::input::{Input, Line, Lines, RawLine, Request};
use crate::engine::{Engine, Pending};
use crate::error::Result;
use crate::prompt::PromptTokens;

/// Bytes of lines that may be on their way: many batches of any engine, and little memory.
const ROOM_BYTES: usize = 16 << 20;

/// What a line takes besides its text: its name, its answer, its place in the channels.
const LINE_BYTES: usize = 1 << 10;

/// Workers, at most: one tokenizes about a million tokens a second.
const WORKERS_MAX: usize = 8;

/// What is done for a line: one thing, or one for each response; or why nothing is.
pub(super) enum Work<T> {
    One(Result<T>),
    Responses(Vec<Result<T>>),
}

/// A line whose results are being computed.
pub(super) struct InFlight {
    /// How its result is named.
    pub(super) key: (&'static str, Value),
    pub(super) work: Work<Pending>,
    /// Bytes of the input up to the end of this line.
    pub(super) end: u64,
    /// Given back with this.
    _room: Permit,
}

/// What comes out of the pipeline.
pub(super) enum Step {
    Line(InFlight),
    /// There is no more input, and nothing comes after this.
    End,
    /// What befell all lines from here on: the input cannot be read, or the model folder has no usable tokenizer.
    Failed(anyhow::Error),
}

/// A line on its way through the workers.
struct Job {
    raw: RawLine,
    done: Sender<Prepared>,
}

/// A line whose tokens are known.
type Prepared = Result<((&'static str, Value), Work<PromptTokens>)>;

/// A line's place in the order.
struct Place {
    prepared: Receiver<Prepared>,
    end: u64,
    room: Permit,
}

/// Starts the pipeline. Its threads end after the input does, or after the receiver is dropped and a line comes; they let
/// go of the engine before the channel ends.
pub(super) fn start(engine: &Arc<Engine>, lines: Lines) -> Receiver<Step> {
    // The room bounds it.
    let (sender, steps) = sync_channel(ROOM_BYTES / LINE_BYTES);
    let engine = Arc::clone(engine);
    // Not joined: when the command ends early, the reader may wait for a line of standard input that never comes.
    thread::spawn(move || {
        run(&engine, lines, &sender);
        drop(engine);
        // If something failed, nobody listens any more.
        let _ = sender.send(Step::End);
    });
    steps
}

fn run(engine: &Engine, lines: Lines, steps: &SyncSender<Step>) {
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(WORKERS_MAX);
    let (jobs, to_do) = channel();
    let to_do = Mutex::new(to_do);
    let (places, in_order) = channel();
    thread::scope(|scope| {
        scope.spawn(move || read(lines, &jobs, &places));
        for _ in 0..workers {
            scope.spawn(|| work(engine, &to_do));
        }
        if let Err(error) = submit_all(engine, in_order, steps) {
            // At once: the reader may be waiting for a line.
            let _ = steps.send(Step::Failed(error));
        }
    });
}

/// Reads lines and gives each its place.
fn read(lines: Lines, jobs: &Sender<Job>, places: &Sender<anyhow::Result<Place>>) {
    let room = Arc::new(Room::new(ROOM_BYTES));
    for raw in lines {
        let place = raw.map(|raw| {
            let room = room.enter(raw.bytes() + LINE_BYTES);
            let (end, (done, prepared)) = (raw.end, channel());
            // If nobody works any more, the place says so.
            let _ = jobs.send(Job { raw, done });
            Place { prepared, end, room }
        });
        if places.send(place).is_err() {
            return;
        }
    }
}

/// Prepares line after line.
fn work(engine: &Engine, jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { raw, done }) = job else { return };
        // Nobody wants it when the command is ending.
        let _ = done.send(prepare(engine, raw.parse()));
    }
}

/// Renders and tokenizes a line. An error is one of all lines: the model folder has no usable tokenizer or template.
pub(super) fn prepare(engine: &Engine, Line { key, request }: Line) -> Prepared {
    let work = match request {
        Err(error) => Work::One(Err(error)),
        Ok(Request::One(Input::Tokens(ids))) => Work::One(engine.prepare_tokens(ids)),
        Ok(Request::One(Input::Conversation(conversation))) => {
            engine.prompt()?;
            Work::One(engine.prepare(&conversation))
        }
        Ok(Request::Responses(conversations)) => {
            engine.prompt()?;
            Work::Responses(conversations.iter().map(|one| engine.prepare(one)).collect())
        }
    };
    Ok((key, work))
}

/// Puts what is prepared into the engine's queue.
pub(super) fn submit(engine: &Engine, work: Work<PromptTokens>) -> Work<Pending> {
    let submit = |tokens: Result<PromptTokens>| tokens.and_then(|tokens| engine.submit_prepared(tokens));
    match work {
        Work::One(tokens) => Work::One(submit(tokens)),
        Work::Responses(all) => Work::Responses(all.into_iter().map(submit).collect()),
    }
}

/// Submits line after line, in order, until the end, or until nobody wants more.
fn submit_all(
    engine: &Engine,
    places: Receiver<anyhow::Result<Place>>,
    steps: &SyncSender<Step>,
) -> anyhow::Result<()> {
    for place in places {
        let Place { prepared, end, room } = place?;
        let (key, work) =
            prepared.recv().map_err(|_| anyhow!("kudos has a bug: a line's preparation panicked"))??;
        let in_flight = InFlight { key, work: submit(engine, work), end, _room: room };
        if steps.send(Step::Line(in_flight)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Room for so many bytes.
struct Room {
    used: Mutex<usize>,
    freed: Condvar,
    bytes_max: usize,
}

/// Some of a [`Room`], until it is dropped.
struct Permit {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    fn new(bytes_max: usize) -> Self {
        Self { used: Mutex::new(0), freed: Condvar::new(), bytes_max }
    }

    /// Waits until there is room. What is larger than all of it enters when it is empty.
    fn enter(self: &Arc<Self>, bytes: usize) -> Permit {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |used: &mut usize| *used > 0 && *used + bytes > self.bytes_max;
        let mut used = self.freed.wait_while(used, full).unwrap_or_else(PoisonError::into_inner);
        *used += bytes;
        Permit { room: Arc::clone(self), bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.room.used.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.room.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn room_is_waited_for_and_what_is_larger_than_all_of_it_enters_alone() {
        let room = Arc::new(Room::new(10));
        let first = room.enter(6);
        let second = thread::spawn({
            let room = Arc::clone(&room);
            move || room.enter(50)
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!second.is_finished());
        drop(first);
        let second = second.join().unwrap();
        assert_eq!(*room.used.lock().unwrap(), 50);
        drop(second);
        assert_eq!(*room.used.lock().unwrap(), 0);
    }
}
