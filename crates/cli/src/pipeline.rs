//! Reading, rendering and tokenizing while the engine scores, in order and in bounded memory.
//!
//! ```text
//! reader --raw lines--> workers: parse, render, tokenize
//!     --> submitter, in order --> engine, and the writer's channel
//! ```
//!
//! A line reserves bytes of a [`ByteBudget`] when it is read and releases them when its result is
//! written; so do its tokens until they are in the engine's queue, which has a bound of its own.
//! The memory of lines in the pipeline is bounded however long the input is, and however many
//! responses a line has. Each line carries the sending end of a channel of its own through the
//! workers, and the submitter has the receiving ends in order: workers overtake each other, lines
//! do not. No stage waits for more input before it passes on what it has: a line that comes alone
//! is scored alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::iter;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::anyhow;

use crate::input::{Line, RawLine};
use kudos::internals::request::Form;
use kudos::internals::results::Key;
use kudos::{Engine, Input, Pending, PromptTokens, Result, Score};

/// Budget for the text of lines in the pipeline: many batches of any engine, and little memory.
const LINES_BYTES_MAX: usize = 16 << 20;

/// Bytes of a line besides its text: its key, its result, its entries in the channels.
const LINE_BYTES: usize = 1 << 10;

/// Limit on workers: each holds a line. `bench tokenize` measures how fast one is.
const WORKERS_MAX: usize = 8;

/// Budget for tokens that wait to be submitted. Without it, one line with many responses to a long
/// prompt would have all of their tokens in memory at once, as would all the lines behind it.
const TOKENS_BYTES_MAX: usize = 16 << 20;

/// Interval at which a command that waits for lines checks whether the engine has failed.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Bytes of a sequence besides its tokens.
const SEQUENCE_BYTES: usize = 256;

/// The rewards that are being computed for a line, or why they are not.
pub(super) struct Submitted {
    pub(super) form: Form,
    pub(super) pending: Vec<Result<Pending>>,
}

/// A line whose results are being computed.
pub(super) struct InFlight {
    /// The name of its result.
    pub(super) key: Key,
    pub(super) submitted: Submitted,
    /// Its number among the rows that are read.
    pub(super) number: usize,
    /// Bytes of the input up to the end of this line.
    pub(super) end: u64,
    /// Released with this.
    _permit: Permit,
}

/// Output of the pipeline.
enum PipelineItem {
    Line(InFlight),
    /// The input has ended; nothing comes after this.
    End,
    /// The error of all lines from here on: the input cannot be read, or the model folder has no
    /// usable tokenizer.
    Failed(anyhow::Error),
}

/// The lines of a pipeline whose results are being computed, in the order of their submission.
pub(super) struct InFlightLines<'a> {
    engine: &'a Engine,
    items: Receiver<PipelineItem>,
}

impl<'a> InFlightLines<'a> {
    /// Starts the pipeline of an engine.
    pub(super) fn start(
        engine: &'a Arc<Engine>,
        lines: impl Iterator<Item = anyhow::Result<RawLine>> + Send + 'static,
    ) -> Self {
        Self { engine, items: start(engine, lines) }
    }

    /// Returns the next line; `None` at the end. A failure of the engine is an error, also while a
    /// line is awaited.
    pub(super) fn next(&self) -> anyhow::Result<Option<InFlight>> {
        loop {
            match self.items.recv_timeout(POLL_INTERVAL) {
                Ok(PipelineItem::Line(in_flight)) => return Ok(Some(in_flight)),
                Ok(PipelineItem::End) => return Ok(None),
                Ok(PipelineItem::Failed(error)) => return Err(error),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(anyhow!("kudos has a bug: the thread that reads the input panicked"));
                }
                Err(RecvTimeoutError::Timeout) => match self.engine.failure() {
                    Some(error) => return Err(error.into()),
                    None => continue,
                },
            }
        }
    }
}

impl Submitted {
    /// Waits for the results.
    pub(super) fn wait(self) -> Vec<Result<Score>> {
        self.pending.into_iter().map(|pending| pending.and_then(Pending::wait)).collect()
    }
}

/// A line for the workers.
struct Job {
    raw: RawLine,
    /// The line's position among lines that are not blank.
    order: usize,
    messages: Sender<Result<LineMessage>>,
}

/// Message from a worker to the submitter: a line's key and form first, then the tokens of each of
/// its sequences. An error is one of all lines: the model folder has no usable tokenizer or
/// template.
enum LineMessage {
    Line(Key, Form),
    Tokens(Result<PromptTokens>, Permit),
}

/// A line that the submitter takes in order.
struct QueuedLine {
    messages: Receiver<Result<LineMessage>>,
    number: usize,
    end: u64,
    permit: Permit,
}

/// Starts the pipeline. Its threads end after the input does, or after the receiver is dropped and
/// a line comes; they release the engine before the channel ends.
fn start(
    engine: &Arc<Engine>,
    lines: impl Iterator<Item = anyhow::Result<RawLine>> + Send + 'static,
) -> Receiver<PipelineItem> {
    // The budget bounds the lines, and so the channel.
    let (sender, items) = sync_channel(LINES_BYTES_MAX / LINE_BYTES);
    let engine = Arc::clone(engine);
    // Not joined: when the command ends early, the reader may wait for a line of standard input
    // that never comes.
    thread::spawn(move || {
        run(&engine, lines, &sender);
        drop(engine);
        // The receiver may be gone, after a failure.
        let _ = sender.send(PipelineItem::End);
    });
    items
}

fn run(
    engine: &Engine,
    lines: impl Iterator<Item = anyhow::Result<RawLine>> + Send,
    items: &SyncSender<PipelineItem>,
) {
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(WORKERS_MAX);
    let (jobs, to_prepare) = channel();
    let to_prepare = Mutex::new(to_prepare);
    let (queue, in_order) = channel();
    let tokens_budget = Arc::new(ByteBudget::new(TOKENS_BYTES_MAX));
    thread::scope(|scope| {
        scope.spawn(move || read(lines, &jobs, &queue));
        for _ in 0..workers {
            scope.spawn(|| prepare_lines(engine, &to_prepare, &tokens_budget));
        }
        let result = submit_all(engine, in_order, items, &tokens_budget);
        // Workers that wait for the budget go on, find their channels closed, and end.
        tokens_budget.advance(usize::MAX);
        if let Err(error) = result {
            // At once: the reader may be waiting for a line.
            let _ = items.send(PipelineItem::Failed(error));
        }
    });
}

/// Reads lines, and sends each to the workers and to the submitter.
fn read(
    lines: impl Iterator<Item = anyhow::Result<RawLine>>,
    jobs: &Sender<Job>,
    queue: &Sender<anyhow::Result<QueuedLine>>,
) {
    let budget = Arc::new(ByteBudget::new(LINES_BYTES_MAX));
    for (order, raw) in lines.enumerate() {
        let line = raw.map(|raw| {
            let permit = budget.reserve(ALWAYS_WAITS, raw.bytes() + LINE_BYTES);
            let (number, end, (sender, messages)) = (raw.number, raw.end, channel());
            // If no worker is left, the submitter finds the channel of messages closed.
            let _ = jobs.send(Job { raw, order, messages: sender });
            QueuedLine { messages, number, end, permit }
        });
        if queue.send(line).is_err() {
            return;
        }
    }
}

/// Prepares line after line: the loop of a worker.
fn prepare_lines(engine: &Engine, jobs: &Mutex<Receiver<Job>>, tokens_budget: &Arc<ByteBudget>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { raw, order, messages }) = job else { return };
        let line = raw.parse();
        drop(raw);
        let prepared = prepare(engine, line);
        let (key, form, sequences) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = messages.send(Err(error));
                continue;
            }
        };
        let mut open = messages.send(Ok(LineMessage::Line(key, form))).is_ok();
        for tokens in sequences {
            if !open {
                // The command is ending.
                break;
            }
            let bytes = tokens.as_ref().map_or(0, |tokens| tokens.ids.len() * size_of::<u32>());
            let permit = tokens_budget.reserve(order, bytes + SEQUENCE_BYTES);
            open = messages.send(Ok(LineMessage::Tokens(tokens, permit))).is_ok();
        }
    }
}

/// A line's sequences, each rendered and tokenized when the iterator reaches it.
type Sequences<'a> = Box<dyn Iterator<Item = Result<PromptTokens>> + 'a>;

/// Returns a line's key, form and sequences. An error is one of all lines.
fn prepare(engine: &Engine, line: Line) -> Result<(Key, Form, Sequences<'_>)> {
    let (form, sequences): (_, Sequences<'_>) = match line.request {
        Err(error) => (Form::One, Box::new(iter::once(Err(error)))),
        Ok(request) => {
            if !request.is_tokens() {
                engine.prompt()?;
            }
            let prepare = |input| engine.prepare(Input::from(input));
            (request.form(), Box::new(request.into_inputs().map(prepare)))
        }
    };
    Ok((line.key, form, sequences))
}

/// Prepares and submits one line by itself.
pub(super) fn submit(engine: &Engine, line: Line) -> Result<(Key, Submitted)> {
    let (key, form, sequences) = prepare(engine, line)?;
    Ok((key, Submitted { form, pending: engine.submit_all(sequences) }))
}

/// Submits line after line, in order, until the input ends or the receiver of `items` is dropped.
fn submit_all(
    engine: &Engine,
    queue: Receiver<anyhow::Result<QueuedLine>>,
    items: &SyncSender<PipelineItem>,
    tokens_budget: &ByteBudget,
) -> anyhow::Result<()> {
    let panicked = || anyhow!("kudos has a bug: the thread that prepared a line panicked");
    for (order, line) in queue.into_iter().enumerate() {
        let QueuedLine { messages, number, end, permit } = line?;
        // Lines behind this one, whose tokens are awaited, may have reserved the whole budget.
        tokens_budget.advance(order);
        let LineMessage::Line(key, form) = messages.recv().map_err(|_| panicked())?? else {
            return Err(panicked());
        };
        let mut failed = None;
        let sequences = (0..form.sequences()).map_while(|_| match messages.recv() {
            // Its permit is released here: the engine's queue has a bound of its own.
            Ok(Ok(LineMessage::Tokens(tokens, _permit))) => Some(tokens),
            Ok(Err(error)) => {
                failed = Some(error.into());
                None
            }
            Ok(Ok(LineMessage::Line(..))) | Err(_) => {
                failed = Some(panicked());
                None
            }
        });
        let pending = engine.submit_all(sequences);
        if let Some(error) = failed {
            return Err(error);
        }
        let submitted = Submitted { form, pending };
        let in_flight = InFlight { key, submitted, number, end, _permit: permit };
        if items.send(PipelineItem::Line(in_flight)).is_err() {
            break;
        }
    }
    Ok(())
}

/// A bound on bytes that holders reserve and release. Holders are numbered by their order. A holder
/// that [`advance`](Self::advance) has reached does not wait while it holds nothing, so that later
/// holders cannot block earlier ones.
struct ByteBudget {
    reserved: Mutex<Reserved>,
    changed: Condvar,
    bytes_max: usize,
}

struct Reserved {
    bytes: usize,
    /// Bytes per holder; none of them zero.
    by_holder: HashMap<usize, usize>,
    /// The last holder that `advance` has reached.
    reached: Option<usize>,
}

/// The order of holders that wait whenever the budget is spent.
const ALWAYS_WAITS: usize = usize::MAX;

/// Bytes of a [`ByteBudget`], reserved until this is dropped.
struct Permit {
    budget: Arc<ByteBudget>,
    holder: usize,
    bytes: usize,
}

impl ByteBudget {
    fn new(bytes_max: usize) -> Self {
        let reserved = Reserved { bytes: 0, by_holder: HashMap::new(), reached: None };
        Self { reserved: Mutex::new(reserved), changed: Condvar::new(), bytes_max }
    }

    /// Waits until `bytes` are free, or until `advance` has reached `holder` and it holds nothing.
    /// More than the whole budget is granted when nothing is reserved.
    fn reserve(self: &Arc<Self>, holder: usize, bytes: usize) -> Permit {
        let reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let must_wait = |reserved: &mut Reserved| {
            let is_reached = reserved.reached.is_some_and(|reached| holder <= reached);
            let waits = !is_reached || reserved.by_holder.contains_key(&holder);
            waits && reserved.bytes > 0 && reserved.bytes + bytes > self.bytes_max
        };
        let mut reserved =
            self.changed.wait_while(reserved, must_wait).unwrap_or_else(PoisonError::into_inner);
        reserved.bytes += bytes;
        *reserved.by_holder.entry(holder).or_default() += bytes;
        Permit { budget: Arc::clone(self), holder, bytes }
    }

    /// Marks all holders up to `holder` as reached.
    fn advance(&self, holder: usize) {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner).reached = Some(holder);
        self.changed.notify_all();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut reserved = self.budget.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.bytes -= self.bytes;
        if let Entry::Occupied(mut held) = reserved.by_holder.entry(self.holder) {
            *held.get_mut() -= self.bytes;
            if *held.get() == 0 {
                held.remove();
            }
        }
        drop(reserved);
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_beyond_the_budget_waits_until_nothing_is_held() {
        let budget = Arc::new(ByteBudget::new(10));
        let first = budget.reserve(ALWAYS_WAITS, 6);
        let second = thread::spawn({
            let budget = Arc::clone(&budget);
            move || budget.reserve(ALWAYS_WAITS, 50)
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!second.is_finished());
        drop(first);
        let second = second.join().unwrap();
        assert_eq!(budget.reserved.lock().unwrap().bytes, 50);
        drop(second);
        assert_eq!(budget.reserved.lock().unwrap().bytes, 0);
    }

    #[test]
    fn a_holder_that_is_reached_reserves_beyond_the_budget() {
        let budget = Arc::new(ByteBudget::new(10));
        let _behind = budget.reserve(4, 10);
        let waiting = thread::spawn({
            let budget = Arc::clone(&budget);
            move || budget.reserve(3, 10)
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        budget.advance(3);
        let permit = waiting.join().unwrap();
        assert_eq!(budget.reserved.lock().unwrap().bytes, 20);
        // It waits for more as long as it holds some.
        let more = thread::spawn({
            let budget = Arc::clone(&budget);
            move || budget.reserve(3, 10)
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!more.is_finished());
        drop(permit);
        assert_eq!(more.join().unwrap().bytes, 10);
    }
}
