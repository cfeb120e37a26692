//! Requests that come one by one, from many threads: what a service sees of the engine.
//!
//! In an open loop requests come when they come, whether earlier ones are answered or not, and a latency counts from the time
//! at which its request was to come. A generator that waits for answers, or counts from when it got round to asking,
//! leaves out the latencies of just those times at which the engine is slow (coordinated omission). In a closed loop each
//! client asks again when it has its answer: what so many callers that wait can get through.
//!
//! The time of an answer is taken by its waker, on the thread that answers: no thread waits for each request.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crate::args::ServeArgs;
use crate::requests::{Requests, arrivals};
use crate::serve_report::Report;
use crate::workload::Ids;
use kudos::{Engine, Pending, Result, Stats};
use kudos_cli::output::Output;
use kudos_cli::say;

/// Passes that all waiting requests fill, and seconds for which they are scored, where the capacity is measured.
const CAPACITY_PASSES: usize = 4;
const CAPACITY_SECONDS: f64 = 1.0;

/// How requests come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// So many a second, by themselves; a share of the capacity where it was asked for as one.
    Open { rate: f64, share: Option<f64> },
    /// From so many clients that wait for their answers.
    Closed { concurrency: usize },
}

/// One request. Times are seconds from the test's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) tokens: usize,
    /// When it was to come.
    pub(super) due: f64,
    /// When a thread asked for it.
    pub(super) asked: f64,
    pub(super) answered: f64,
}

/// A test.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) load: Load,
    /// In the order in which they were to come.
    pub(super) samples: Vec<Sample>,
    /// What the engine computed for them.
    pub(super) computed: Stats,
}

pub(super) fn run(args: &ServeArgs, commit: Option<&str>) -> anyhow::Result<()> {
    let mut output = Output::open(None, &[])?;
    let engine = super::open(&args.model, args.tokens.longest(), None)?;
    let requests = Requests {
        lengths: args.tokens,
        responses: args.responses.get(),
        shared: args.shared,
        ids: Ids::of(engine.config()),
    };
    // Whatever is touched for the first time is, before anything is measured.
    let capacity = capacity(&engine, &requests)?;
    say(&format!("{capacity:.1} requests/s where all wait"));
    let open = args.rate.iter().map(|&rate| Load::Open { rate, share: None });
    let shares = args.load.iter().map(|&share| Load::Open { rate: share * capacity, share: Some(share) });
    let closed = args.concurrency.iter().map(|clients| Load::Closed { concurrency: clients.get() });
    let (mut rows, seconds) = (Vec::new(), args.seconds.as_secs_f64());
    for load in open.chain(shares).chain(closed) {
        say(&format!("measuring {load}"));
        let before = engine.stats();
        let samples = match load {
            Load::Open { rate, .. } => {
                open_loop(&engine, &requests, &arrivals(rate, seconds), args.submitters.get())?
            }
            Load::Closed { concurrency } => closed_loop(&engine, &requests, concurrency, args.seconds)?,
        };
        rows.push(Row { load, samples, computed: since(engine.stats(), before) });
    }
    let report = Report { args, engine: &engine, commit, capacity, rows };
    output.line(&report.text(args.output))
}

/// Requests a second that the engine answers when enough of them wait to fill every pass.
fn capacity(engine: &Engine, requests: &Requests) -> Result<f64> {
    let (mut all, mut tokens) = (Vec::new(), 0);
    while tokens < CAPACITY_PASSES * engine.plan().batch_tokens {
        all.push(requests.request(all.len()));
        tokens += all.last().map_or(0, Vec::len);
    }
    let score = || engine.score(&all).into_iter().try_for_each(|score| score.map(drop));
    score()?;
    let (mut runs, start) = (0, Instant::now());
    while start.elapsed().as_secs_f64() < CAPACITY_SECONDS {
        score()?;
        runs += 1;
    }
    Ok((runs * all.len()) as f64 / start.elapsed().as_secs_f64())
}

/// Every request at its time, from `threads` threads that take turns.
fn open_loop(engine: &Engine, requests: &Requests, due: &[f64], threads: usize) -> Result<Vec<Sample>> {
    let start = Instant::now();
    let submit = |index: usize| {
        let ids = requests.request(index);
        let at = start + Duration::from_secs_f64(due[index]);
        thread::sleep(at.saturating_duration_since(Instant::now()));
        Ok((index, ids.len(), since_start(start), InFlight::new(engine.submit(ids).wait()?)))
    };
    let work = |first: usize| -> Result<Vec<(usize, Sample)>> {
        let in_flight = (first..due.len()).step_by(threads).map(submit).collect::<Result<Vec<_>>>()?;
        let answer = |(index, tokens, asked, in_flight): (usize, usize, f64, InFlight)| {
            let answered = in_flight.answer()?.duration_since(start).as_secs_f64();
            Ok((index, Sample { tokens, due: due[index], asked, answered }))
        };
        in_flight.into_iter().map(answer).collect()
    };
    on_threads(0..threads, work)
}

/// Clients that ask for one request after the other until the time is up.
fn closed_loop(engine: &Engine, requests: &Requests, clients: usize, time: Duration) -> Result<Vec<Sample>> {
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let work = |_| -> Result<Vec<(usize, Sample)>> {
        let mut samples = Vec::new();
        while start.elapsed() < time {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let ids = requests.request(index);
            let (tokens, due) = (ids.len(), since_start(start));
            let in_flight = InFlight::new(engine.submit(ids).wait()?);
            let answered = in_flight.answer()?.duration_since(start).as_secs_f64();
            samples.push((index, Sample { tokens, due, asked: due, answered }));
        }
        Ok(samples)
    };
    on_threads(0..clients, work)
}

/// What all threads measured, in the requests' order.
fn on_threads(
    threads: Range<usize>,
    work: impl Fn(usize) -> Result<Vec<(usize, Sample)>> + Sync,
) -> Result<Vec<Sample>> {
    let work = &work;
    let mut samples = thread::scope(|scope| -> Result<Vec<(usize, Sample)>> {
        let threads: Vec<_> = threads.map(|index| scope.spawn(move || work(index))).collect();
        let mut samples = Vec::new();
        for thread in threads {
            samples.extend(thread.join().expect("a thread of the load has no bug")?);
        }
        Ok(samples)
    })?;
    samples.sort_unstable_by_key(|&(index, _)| index);
    Ok(samples.into_iter().map(|(_, sample)| sample).collect())
}

fn since_start(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

fn since(after: Stats, before: Stats) -> Stats {
    let mut computed = after;
    computed.passes -= before.passes;
    computed.sequences -= before.sequences;
    computed.tokens -= before.tokens;
    computed.unique_tokens -= before.unique_tokens;
    computed
}

/// A request that waits for its answer.
struct InFlight {
    pending: Pending,
    answered: Arc<Answered>,
    /// What was there before anybody could be woken, a moment ago.
    early: Option<Result<Instant>>,
}

/// The time at which this was woken.
#[derive(Default)]
struct Answered(OnceLock<Instant>);

impl Wake for Answered {
    fn wake(self: Arc<Self>) {
        let _ = self.0.set(Instant::now());
    }
}

impl InFlight {
    fn new(mut pending: Pending) -> Self {
        let answered: Arc<Answered> = Arc::default();
        let waker = Waker::from(Arc::clone(&answered));
        let early = match Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => None,
            Poll::Ready(score) => Some(score.map(|_| Instant::now())),
        };
        Self { pending, answered, early }
    }

    /// Waits for the answer, and says when it came.
    fn answer(self) -> Result<Instant> {
        let Self { pending, answered, early } = self;
        early.unwrap_or_else(|| {
            let at = *answered.0.wait();
            pending.wait().map(|_| at)
        })
    }
}
