//! Reading, rendering and tokenizing ahead of the engine, in order and in bounded memory.
//!
//! ```text
//! reader --raw lines--> workers: parse, render, tokenize --> submitter, in order --> engine, and the writer's channel
//! ```
//!
//! A line takes room when it is read and gives it back when its result is written, and so do its tokens until they are in
//! the engine's queue, which is bounded itself: what is on its way is bounded in bytes however long the input is, and
//! however many responses a line has. Each line carries the sending end of a channel of its own through the workers, and
//! the submitter has the receiving ends in order: workers overtake each other, lines do not. No stage waits for more
//! input before it passes on what it has: a line that comes alone is scored alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::iter;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::anyhow;

use crate::input::{Key, Line, Lines, RawLine};
use kudos::internals::request::{Input, Request};
use kudos::{Conversation, Engine, Pending, PromptTokens, Result};

/// Bytes of lines that may be on their way: many batches of any engine, and little memory.
const ROOM_BYTES: usize = 16 << 20;

/// What a line takes besides its text: its name, its answer, its place in the channels.
const LINE_BYTES: usize = 1 << 10;

/// Workers, at most: each holds a line. How fast one is, `bench tokenize` tells.
const WORKERS_MAX: usize = 8;

/// Bytes of tokens that may wait to be submitted. Without this, one line with many responses to a long prompt would have
/// all of their tokens in memory at once, as would all the lines behind it.
const TOKENS_ROOM_BYTES: usize = 16 << 20;

/// What the tokens of a sequence take besides themselves.
const SEQUENCE_BYTES: usize = 256;

/// What is computed for a line: one reward, or one for each response; or why it is not.
pub(super) enum Work {
    One(Result<Pending>),
    Responses(Vec<Result<Pending>>),
}

/// A line whose results are being computed.
pub(super) struct InFlight {
    /// How its result is named.
    pub(super) key: Key,
    pub(super) work: Work,
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
    /// Which line it is in the order of lines that are not empty.
    order: usize,
    done: Sender<Result<Part>>,
}

/// What the submitter hears of a line: what it is, then the tokens of each of its sequences. An error is one of all lines:
/// the model folder has no usable tokenizer or template.
enum Part {
    Line(Key, Shape),
    Tokens(Result<PromptTokens>, Permit),
}

/// How many sequences a line has, and whether its result lists them.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    One,
    Responses(usize),
}

/// A line's place in the order.
struct Place {
    parts: Receiver<Result<Part>>,
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
    let tokens_room = Arc::new(Room::new(TOKENS_ROOM_BYTES));
    thread::scope(|scope| {
        scope.spawn(move || read(lines, &jobs, &places));
        for _ in 0..workers {
            scope.spawn(|| work(engine, &to_do, &tokens_room));
        }
        let result = submit_all(engine, in_order, steps, &tokens_room);
        // Nobody waits for anything any more.
        tokens_room.turn(usize::MAX);
        if let Err(error) = result {
            // At once: the reader may be waiting for a line.
            let _ = steps.send(Step::Failed(error));
        }
    });
}

/// Reads lines and gives each its place.
fn read(lines: Lines, jobs: &Sender<Job>, places: &Sender<anyhow::Result<Place>>) {
    let room = Arc::new(Room::new(ROOM_BYTES));
    for (order, raw) in lines.enumerate() {
        let place = raw.map(|raw| {
            let room = room.enter(NOBODYS_TURN, raw.bytes() + LINE_BYTES);
            let (end, (done, parts)) = (raw.end, channel());
            // If nobody works any more, the place says so.
            let _ = jobs.send(Job { raw, order, done });
            Place { parts, end, room }
        });
        if places.send(place).is_err() {
            return;
        }
    }
}

/// Prepares line after line.
fn work(engine: &Engine, jobs: &Mutex<Receiver<Job>>, tokens_room: &Arc<Room>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { raw, order, done }) = job else { return };
        let line = raw.parse();
        drop(raw);
        let prepared = prepare(engine, line);
        let (key, shape, sequences) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = done.send(Err(error));
                continue;
            }
        };
        let mut wanted = done.send(Ok(Part::Line(key, shape))).is_ok();
        for tokens in sequences {
            if !wanted {
                // The command is ending.
                break;
            }
            let bytes = tokens.as_ref().map_or(0, |tokens| tokens.ids.len() * size_of::<u32>());
            let room = tokens_room.enter(order, bytes + SEQUENCE_BYTES);
            wanted = done.send(Ok(Part::Tokens(tokens, room))).is_ok();
        }
    }
}

/// A line's sequences, each rendered and tokenized when it is asked for.
type Sequences<'a> = Box<dyn Iterator<Item = Result<PromptTokens>> + 'a>;

/// What a line is, and its sequences. An error is one of all lines.
fn prepare(engine: &Engine, line: Line) -> Result<(Key, Shape, Sequences<'_>)> {
    let (shape, sequences): (_, Sequences<'_>) = match line.request {
        Err(error) => (Shape::One, Box::new(iter::once(Err(error)))),
        Ok(Request::One(Input::Tokens(ids))) => {
            (Shape::One, Box::new(iter::once_with(|| engine.prepare(ids))))
        }
        Ok(Request::One(Input::Conversation(conversation))) => {
            engine.prompt()?;
            (Shape::One, Box::new(iter::once_with(move || engine.prepare(conversation))))
        }
        Ok(Request::Responses(responses)) => {
            engine.prompt()?;
            let prepare = |conversation: Conversation| engine.prepare(conversation);
            let shape = Shape::Responses(responses.count());
            (shape, Box::new(responses.into_conversations().map(prepare)))
        }
    };
    Ok((line.key, shape, sequences))
}

/// Prepares and submits one line by itself.
pub(super) fn submit(engine: &Engine, line: Line) -> Result<(Key, Work)> {
    let (key, shape, sequences) = prepare(engine, line)?;
    Ok((key, shape.work(engine.submit_all(sequences))))
}

impl Shape {
    fn sequences(self) -> usize {
        match self {
            Self::One => 1,
            Self::Responses(count) => count,
        }
    }

    fn work(self, mut pending: Vec<Result<Pending>>) -> Work {
        match self {
            Self::One => Work::One(pending.pop().expect("a line has a sequence")),
            Self::Responses(_) => Work::Responses(pending),
        }
    }
}

/// Submits line after line, in order, until the end, or until nobody wants more.
fn submit_all(
    engine: &Engine,
    places: Receiver<anyhow::Result<Place>>,
    steps: &SyncSender<Step>,
    tokens_room: &Room,
) -> anyhow::Result<()> {
    let panicked = || anyhow!("kudos has a bug: a line's preparation panicked");
    for (order, place) in places.into_iter().enumerate() {
        let Place { parts, end, room } = place?;
        // This line's tokens are waited for, and lines behind it may have taken all the room.
        tokens_room.turn(order);
        let Part::Line(key, shape) = parts.recv().map_err(|_| panicked())?? else {
            return Err(panicked());
        };
        let mut failed = None;
        let sequences = (0..shape.sequences()).map_while(|_| match parts.recv() {
            // Its room is given back: the queue is bounded by itself.
            Ok(Ok(Part::Tokens(tokens, _room))) => Some(tokens),
            Ok(Err(error)) => {
                failed = Some(error.into());
                None
            }
            Ok(Ok(Part::Line(..))) | Err(_) => {
                failed = Some(panicked());
                None
            }
        });
        let pending = engine.submit_all(sequences);
        if let Some(error) = failed {
            return Err(error);
        }
        let in_flight = InFlight { key, work: shape.work(pending), end, _room: room };
        if steps.send(Step::Line(in_flight)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Room for so many bytes. Whoever's turn it is and holds none of it needs none, so that those who come later cannot hold
/// up those before.
struct Room {
    taken: Mutex<Taken>,
    changed: Condvar,
    bytes_max: usize,
}

struct Taken {
    bytes: usize,
    /// By whom; nobody holds 0.
    held: HashMap<usize, usize>,
    /// Whose turn it is: this one's, as it was of those before.
    turn: Option<usize>,
}

/// For those who always wait.
const NOBODYS_TURN: usize = usize::MAX;

/// Some of a [`Room`], until it is dropped.
struct Permit {
    room: Arc<Room>,
    order: usize,
    bytes: usize,
}

impl Room {
    fn new(bytes_max: usize) -> Self {
        let taken = Mutex::new(Taken { bytes: 0, held: HashMap::new(), turn: None });
        Self { taken, changed: Condvar::new(), bytes_max }
    }

    /// Waits until there is room, or until it is the turn of `order` and it holds nothing. What is larger than all of it
    /// enters when it is empty.
    fn enter(self: &Arc<Self>, order: usize, bytes: usize) -> Permit {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut Taken| {
            let is_turn = taken.turn.is_some_and(|turn| order <= turn);
            let waits = !is_turn || taken.held.contains_key(&order);
            waits && taken.bytes > 0 && taken.bytes + bytes > self.bytes_max
        };
        let mut taken = self.changed.wait_while(taken, full).unwrap_or_else(PoisonError::into_inner);
        taken.bytes += bytes;
        *taken.held.entry(order).or_default() += bytes;
        Permit { room: Arc::clone(self), order, bytes }
    }

    /// It is the turn of `order`, and was that of those before.
    fn turn(&self, order: usize) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).turn = Some(order);
        self.changed.notify_all();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.room.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.bytes -= self.bytes;
        if let Entry::Occupied(mut held) = taken.held.entry(self.order) {
            *held.get_mut() -= self.bytes;
            if *held.get() == 0 {
                held.remove();
            }
        }
        drop(taken);
        self.room.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn room_is_waited_for_and_what_is_larger_than_all_of_it_enters_alone() {
        let room = Arc::new(Room::new(10));
        let first = room.enter(NOBODYS_TURN, 6);
        let second = thread::spawn({
            let room = Arc::clone(&room);
            move || room.enter(NOBODYS_TURN, 50)
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!second.is_finished());
        drop(first);
        let second = second.join().unwrap();
        assert_eq!(room.taken.lock().unwrap().bytes, 50);
        drop(second);
        assert_eq!(room.taken.lock().unwrap().bytes, 0);
    }

    #[test]
    fn whoever_is_waited_for_enters_a_full_room() {
        let room = Arc::new(Room::new(10));
        let _behind = room.enter(4, 10);
        let waiting = thread::spawn({
            let room = Arc::clone(&room);
            move || room.enter(3, 10)
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        room.turn(3);
        let permit = waiting.join().unwrap();
        assert_eq!(room.taken.lock().unwrap().bytes, 20);
        // What it holds has yet to be taken up, so it may not pile up more.
        let more = thread::spawn({
            let room = Arc::clone(&room);
            move || room.enter(3, 10)
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!more.is_finished());
        drop(permit);
        assert_eq!(more.join().unwrap().bytes, 10);
    }
}
