//! `bench serve-like`: requests that arrive one by one, from many threads, as a service sees them.
//!
//! In an open loop requests arrive whether earlier ones are completed or not, and a latency counts
//! from the time at which its request was due. A generator that waits for answers, or counts from
//! when it submitted, leaves out the latencies of just those times at which the engine is slow
//! (coordinated omission). In a closed loop each client submits its next request when the one
//! before is completed: the throughput of a fixed number of waiting callers.
//!
//! A request's waker takes the time of its completion, on the thread that completes it: no thread
//! waits for each request.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crate::args::ServeArgs;
use crate::load::{Load, LoadTest, Outcome, Sample};
use crate::metadata;
use crate::open::open;
use crate::remote::Server;
use crate::report;
use crate::requests::{Requests, arrivals};
use crate::serve_report::{self, Measured};
use crate::workload::Ids;
use kudos::internals::config::ModelConfig;
use kudos::{Engine, Pending, Result, Stats};
use kudos_cli::model_dir;
use kudos_cli::output::Output;
use kudos_cli::say;

/// Passes that the queued requests fill, and seconds for which they are scored, where the capacity
/// is measured.
const CAPACITY_PASSES: usize = 4;
const CAPACITY_SECONDS: f64 = 1.0;

pub(super) fn run(args: &ServeArgs, commit: Option<&str>) -> anyhow::Result<()> {
    if let Some(url) = &args.url {
        return run_remote(args, url, commit);
    }
    let mut output = Output::open(None, &[])?;
    let engine = open(&args.model, args.tokens.longest(), None)?;
    let requests = requests(args, engine.config());
    // This also touches everything once, before anything is measured.
    let capacity = capacity(&engine, &requests)?;
    say(&format!("{capacity:.1} requests/s from a full queue"));
    let (mut tests, seconds) = (Vec::new(), args.seconds.as_secs_f64());
    for load in loads(args, capacity) {
        say(&format!("measuring {load}"));
        let before = engine.stats();
        let samples = match load {
            Load::Open { rate, .. } => {
                open_loop(&engine, &requests, &arrivals(rate, seconds), args.submitters.get())?
            }
            Load::Closed { concurrency } => closed_loop(&engine, &requests, concurrency, args.seconds)?,
        };
        tests.push(LoadTest { load, samples, computed: since(engine.stats(), before) });
    }
    let beginning = metadata::of_engine(&args.model, &engine, commit);
    let report = Measured { args, beginning, capacity, tests }.report();
    output.line(&report::text(&report, args.output, serve_report::markdown))
}

/// Measures a server.
fn run_remote(args: &ServeArgs, url: &str, commit: Option<&str>) -> anyhow::Result<()> {
    let mut output = Output::open(None, &[])?;
    let dir = model_dir::find(args.model.model.as_deref().unwrap_or_default())?;
    let requests = requests(args, &ModelConfig::read(&dir)?);
    let server = Server::new(url, args.connections.get());
    let (model, device) = server.description()?;
    let capacity = server.capacity(&requests)?;
    say(&format!("{capacity:.1} requests/s from lists"));
    let (mut tests, seconds) = (Vec::new(), args.seconds.as_secs_f64());
    for load in loads(args, capacity) {
        say(&format!("measuring {load}"));
        let before = server.stats()?;
        let samples = match load {
            Load::Open { rate, .. } => server.open_loop(&requests, &arrivals(rate, seconds)),
            Load::Closed { concurrency } => server.closed_loop(&requests, concurrency, args.seconds),
        };
        tests.push(LoadTest { load, samples, computed: since(server.stats()?, before) });
    }
    let beginning = metadata::of_server(&model, &device, commit);
    let report = Measured { args, beginning, capacity, tests }.report();
    output.line(&report::text(&report, args.output, serve_report::markdown))
}

fn requests(args: &ServeArgs, config: &ModelConfig) -> Requests {
    Requests {
        lengths: args.tokens,
        responses: args.responses.get(),
        shared: args.shared,
        ids: Ids::of(config),
    }
}

/// Returns the loads to measure, in order.
fn loads(args: &ServeArgs, capacity: f64) -> Vec<Load> {
    let open = args.rate.iter().map(|&rate| Load::Open { rate, share: None });
    let shares = args.load.iter().map(|&share| Load::Open { rate: share * capacity, share: Some(share) });
    let closed = args.concurrency.iter().map(|clients| Load::Closed { concurrency: clients.get() });
    open.chain(shares).chain(closed).collect()
}

/// Requests a second that the engine completes when enough of them are queued to fill every pass.
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

/// Submits every request when it is due, from `threads` threads that take turns.
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
        let complete = |(index, tokens, submitted, in_flight): (usize, usize, f64, InFlight)| {
            let completed = in_flight.completion()?.duration_since(start).as_secs_f64();
            Ok((index, Sample { tokens, due: due[index], submitted, completed, outcome: Outcome::Answered }))
        };
        in_flight.into_iter().map(complete).collect()
    };
    on_threads(0..threads, work)
}

/// Clients that submit one request after the other until the time is up.
fn closed_loop(engine: &Engine, requests: &Requests, clients: usize, time: Duration) -> Result<Vec<Sample>> {
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let work = |_| -> Result<Vec<(usize, Sample)>> {
        let mut samples = Vec::new();
        while start.elapsed() < time {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let ids = requests.request(index);
            let (tokens, due) = (ids.len(), since_start(start));
            let in_flight = InFlight::new(engine.submit(ids).wait()?);
            let completed = in_flight.completion()?.duration_since(start).as_secs_f64();
            let outcome = Outcome::Answered;
            samples.push((index, Sample { tokens, due, submitted: due, completed, outcome }));
        }
        Ok(samples)
    };
    on_threads(0..clients, work)
}

/// The samples of all threads, in the order of the requests.
fn on_threads(
    threads: Range<usize>,
    work: impl Fn(usize) -> Result<Vec<(usize, Sample)>> + Sync,
) -> Result<Vec<Sample>> {
    let work = &work;
    let mut samples = thread::scope(|scope| -> Result<Vec<(usize, Sample)>> {
        let threads: Vec<_> = threads.map(|index| scope.spawn(move || work(index))).collect();
        let mut samples = Vec::new();
        for thread in threads {
            samples.extend(thread.join().expect("a thread of the load does not panic")?);
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

/// A request that was submitted.
struct InFlight {
    pending: Pending,
    completed: Arc<Completed>,
    /// The result of a request that was completed before its waker was registered.
    early: Option<Result<Instant>>,
}

/// A waker that keeps the time of its first call.
#[derive(Default)]
struct Completed(OnceLock<Instant>);

impl Wake for Completed {
    fn wake(self: Arc<Self>) {
        let _ = self.0.set(Instant::now());
    }
}

impl InFlight {
    fn new(mut pending: Pending) -> Self {
        let completed: Arc<Completed> = Arc::default();
        let waker = Waker::from(Arc::clone(&completed));
        let early = match Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => None,
            Poll::Ready(score) => Some(score.map(|_| Instant::now())),
        };
        Self { pending, completed, early }
    }

    /// Waits for the completion and returns its time.
    fn completion(self) -> Result<Instant> {
        let Self { pending, completed, early } = self;
        early.unwrap_or_else(|| {
            let at = *completed.0.wait();
            pending.wait().map(|_| at)
        })
    }
}
