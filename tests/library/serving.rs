//! The queue is fair: requests are served in order, and the wait of each is bounded by the queue's
//! capacity.
//!
//! Time is counted in passes, which do not depend on the load of the machine.

use crate::common;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use common::{batches_of, demo_model, ids, on_cpu};
use kudos::{Batching, Engine, ErrorKind, Pending};

const BATCH_TOKENS: usize = 64;

fn engine(queue_tokens: usize) -> Arc<Engine> {
    let batching = Batching { queue_tokens, ..batches_of(BATCH_TOKENS) };
    let builder = on_cpu(demo_model()).max_tokens(BATCH_TOKENS).batching(batching);
    Arc::new(builder.open().unwrap())
}

/// Returns a sequence that shares no prefix with those of other seeds: its first token differs.
fn sequence(engine: &Engine, seed: usize, tokens: usize) -> Vec<u32> {
    let vocab = engine.config().vocab as u32;
    [&[seed as u32 % vocab], &ids(seed as u64, tokens - 1, vocab)[..]].concat()
}

/// A waker that records the number of completed passes, on the thread that completes the score.
struct PassRecorder {
    engine: Arc<Engine>,
    passes: OnceLock<u64>,
}

impl Wake for PassRecorder {
    fn wake(self: Arc<Self>) {
        let _ = self.passes.set(self.engine.stats().passes);
    }
}

/// Waits for a score, and returns the number of passes that were complete when it was.
fn passes_at_completion(engine: &Arc<Engine>, mut pending: Pending) -> u64 {
    let recorder = Arc::new(PassRecorder { engine: Arc::clone(engine), passes: OnceLock::new() });
    let waker = Waker::from(Arc::clone(&recorder));
    match Pin::new(&mut pending).poll(&mut Context::from_waker(&waker)) {
        // An upper bound: a further pass may be complete by now.
        Poll::Ready(score) => score.map(|_| engine.stats().passes).unwrap(),
        Poll::Pending => *recorder.passes.wait(),
    }
}

#[test]
fn a_small_request_is_served_right_after_those_before_it() {
    let engine = engine(1 << 20);
    let large = |seed: usize| engine.submit(sequence(&engine, seed, BATCH_TOKENS)).wait().unwrap();
    let before: Vec<Pending> = (0..8).map(large).collect();
    let small = engine.submit(sequence(&engine, 8, 3)).wait().unwrap();
    let served = AtomicBool::new(false);
    let passes = thread::scope(|scope| {
        // More large requests than can be scored meanwhile.
        scope.spawn(|| {
            let mut after = Vec::new();
            while !served.load(Ordering::Relaxed) && after.len() < 2000 {
                after.push(large(9 + after.len()));
            }
        });
        let passes = passes_at_completion(&engine, small);
        served.store(true, Ordering::Relaxed);
        passes
    });
    assert!(passes <= 9, "completed after pass {passes}; the eight before it fill a pass each");
    before.into_iter().for_each(|pending| drop(pending.wait().unwrap()));
}

#[test]
fn the_wait_of_a_request_is_bounded_by_the_queue() {
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
                        passes_at_completion(engine, pending).saturating_sub(entered)
                    };
                    (0..20).map(wait).max().unwrap()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    // The passes of a full queue, which includes it, and the pass that ran when it was submitted.
    let bound = (QUEUE_TOKENS / BATCH_TOKENS + 1) as u64;
    let longest = waits.iter().max().unwrap();
    assert!(
        *longest <= bound,
        "a request waited for {longest} passes, more than the {bound} of a full queue"
    );
}

#[test]
fn a_group_enters_the_queue_together_without_blocking() {
    // One sequence fits at a time; the others are in line when the call returns.
    let engine = engine(BATCH_TOKENS);
    let group: Vec<Vec<u32>> = (0..20).map(|seed| sequence(&engine, seed, BATCH_TOKENS)).collect();
    let bad = vec![u32::MAX];
    let inputs = group.iter().chain([&bad]).cloned();
    let submitted = engine.submit_group(inputs);
    assert!(engine.stats().queued_sequences > 10, "{:?}", engine.stats());
    let scores: Vec<_> = submitted.into_iter().map(|submit| submit.wait().and_then(Pending::wait)).collect();
    let (refused, scores) = scores.split_last().unwrap();
    assert_eq!(refused.as_ref().unwrap_err().kind(), ErrorKind::InvalidInput);
    for (score, alone) in scores.iter().zip(engine.score(&group)) {
        assert_eq!(score.as_ref().unwrap().reward.to_bits(), alone.unwrap().reward.to_bits());
    }
    engine.close();
    let late = engine.submit_group([group[0].clone()]).remove(0).wait().unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Stopped);
}

#[test]
fn the_first_pass_finds_what_a_group_shares() {
    let engine = engine(1 << 20);
    let shared = sequence(&engine, 0, BATCH_TOKENS);
    let submitted = engine.submit_group(std::iter::repeat_n(&shared, 8));
    submitted.into_iter().for_each(|submit| drop(submit.wait().and_then(Pending::wait).unwrap()));
    let stats = engine.stats();
    assert_eq!((stats.sequences, stats.passes, stats.unique_tokens), (8, 1, BATCH_TOKENS as u64));
}
