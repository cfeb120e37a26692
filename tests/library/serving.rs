//! What waits is served in order: nobody is starved, and how long anybody waits is bounded by the queue.
//!
//! Time is counted in passes, which unlike seconds are the same on a busy machine.

use crate::common;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use common::{batches_of, demo_model, ids, on_cpu};
use kudos::{Batching, Engine, Pending};

const BATCH_TOKENS: usize = 64;

fn engine(queue_tokens: usize) -> Arc<Engine> {
    let batching = Batching { queue_tokens, ..batches_of(BATCH_TOKENS) };
    let builder = on_cpu(demo_model()).max_tokens(BATCH_TOKENS).batching(batching);
    Arc::new(builder.open().unwrap())
}

/// A sequence that shares nothing with those of other seeds: its first token is its own.
fn sequence(engine: &Engine, seed: usize, tokens: usize) -> Vec<u32> {
    let vocab = engine.config().vocab as u32;
    [&[seed as u32 % vocab], &ids(seed as u64, tokens - 1, vocab)[..]].concat()
}

/// Notes how many passes are through when it is woken, which is on the thread that answers.
struct Answered {
    engine: Arc<Engine>,
    passes: OnceLock<u64>,
}

impl Wake for Answered {
    fn wake(self: Arc<Self>) {
        let _ = self.passes.set(self.engine.stats().passes);
    }
}

/// The passes that are through when the answer comes.
fn passes_at_answer(engine: &Arc<Engine>, mut pending: Pending) -> u64 {
    let answered = Arc::new(Answered { engine: Arc::clone(engine), passes: OnceLock::new() });
    let waker = Waker::from(Arc::clone(&answered));
    match Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)) {
        // Too many, if anything.
        Poll::Ready(score) => score.map(|_| engine.stats().passes).unwrap(),
        Poll::Pending => *answered.passes.wait(),
    }
}

#[test]
fn a_small_request_among_large_ones_is_served_when_those_before_it_are() {
    let engine = engine(1 << 20);
    let large = |seed: usize| engine.submit(sequence(&engine, seed, BATCH_TOKENS)).wait().unwrap();
    let before: Vec<Pending> = (0..8).map(large).collect();
    let small = engine.submit(sequence(&engine, 8, 3)).wait().unwrap();
    let served = AtomicBool::new(false);
    let passes = thread::scope(|scope| {
        // More large ones than could ever be scored meanwhile.
        scope.spawn(|| {
            let mut after = Vec::new();
            while !served.load(Ordering::Relaxed) && after.len() < 2000 {
                after.push(large(9 + after.len()));
            }
        });
        let passes = passes_at_answer(&engine, small);
        served.store(true, Ordering::Relaxed);
        passes
    });
    assert!(passes <= 9, "answered after pass {passes}; the eight before it fill a pass each");
    before.into_iter().for_each(|pending| drop(pending.wait().unwrap()));
}

#[test]
fn how_long_a_request_waits_is_bounded_by_the_queue() {
    const QUEUE_TOKENS: usize = 256;
    const TOKENS: usize = 32;
    let engine = engine(QUEUE_TOKENS);
    let waits: Vec<u64> = thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|client| {
                let engine = &engine;
                scope.spawn(move || {
                    let wait = |request: usize| {
                        let ids = sequence(engine, client * 20 + request, TOKENS);
                        let pending = engine.submit(ids).wait().unwrap();
                        let entered = engine.stats().passes;
                        passes_at_answer(engine, pending).saturating_sub(entered)
                    };
                    (0..20).map(wait).max().unwrap()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    // Whatever waits before it, itself included, and the pass that ran when it came.
    let bound = (QUEUE_TOKENS / BATCH_TOKENS + 1) as u64;
    let longest = waits.iter().max().unwrap();
    assert!(
        *longest <= bound,
        "a request waited for {longest} passes, more than the {bound} of a full queue"
    );
}
