//! The engine under many threads, futures, cancellation and iterators, and its end.

use crate::common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use common::{batches_of, cpu_ranks, demo_model, fixtures, ids, on_cpu};
use kudos::{Batching, Conversation, Engine, ErrorKind, Residency};

fn demo() -> Engine {
    on_cpu(demo_model()).open().unwrap()
}

/// A minimal executor, which polls the future whenever it is woken.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn an_engine_may_be_shared_and_sent() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Engine>();
    shared::<kudos::Pending>();
    shared::<kudos::Error>();
}

#[test]
fn many_threads_get_the_rewards_of_one() {
    let engine = demo();
    let vocab = engine.config().vocab as u32;
    let sequences: Vec<Vec<u32>> = (0..40).map(|seed| ids(seed, 1 + seed as usize, vocab)).collect();
    let expected: Vec<f32> = engine.score(&sequences).into_iter().map(|s| s.unwrap().reward).collect();
    thread::scope(|scope| {
        for offset in 0..4 {
            let (engine, sequences, expected) = (&engine, &sequences, &expected);
            scope.spawn(move || {
                for index in (offset..40).step_by(4) {
                    let score = block_on(async { engine.submit(&sequences[index]).await?.await }).unwrap();
                    assert_eq!(score.reward, expected[index]);
                    assert_eq!(score.tokens, sequences[index].len());
                }
            });
        }
    });
}

#[test]
fn score_iter_keeps_order_and_errors_and_bounds_its_lookahead() {
    let engine = on_cpu(demo_model()).batching(batches_of(64)).open().unwrap();
    let pulled = AtomicUsize::new(0);
    let source = (0..2000).map(|index| {
        pulled.fetch_add(1, Ordering::Relaxed);
        let response = if index == 1 { "long ".repeat(20_000) } else { format!("1+1={index}") };
        Conversation::exchange("What is 1+1?", &response)
    });
    let mut scores = engine.score_iter(source);
    let first = scores.next().unwrap().unwrap();
    let tokens = first.tokens;
    let read = pulled.load(Ordering::Relaxed);
    assert!(read <= 2 + 64 * 64 / tokens + 1, "{read} conversations were read for the first result");
    assert!(matches!(scores.next().unwrap().unwrap_err().kind(), ErrorKind::TooLong { .. }));
    let third = scores.next().unwrap().unwrap();
    assert_eq!(third, engine.score(&[Conversation::exchange("What is 1+1?", "1+1=2")]).remove(0).unwrap());
    assert_eq!(scores.count(), 1997);
}

#[test]
fn dropping_the_engine_completes_all_pending_scores() {
    let engine = demo();
    let vocab = engine.config().vocab as u32;
    let pending: Vec<_> = (0..64).map(|seed| engine.submit(ids(seed, 500, vocab)).wait().unwrap()).collect();
    drop(engine);
    let results: Vec<_> = pending.into_iter().map(kudos::Pending::wait).collect();
    assert!(results.iter().any(|result| result.is_err()), "64 passes of 500 tokens do not fit into a drop");
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(error.kind(), ErrorKind::Stopped, "{error}");
    }
}

#[test]
fn closing_scores_what_was_submitted_and_refuses_the_rest() {
    let engine =
        on_cpu(demo_model()).batching(Batching { queue_tokens: 100, ..batches_of(64) }).open().unwrap();
    let vocab = engine.config().vocab as u32;
    let submitted: Vec<_> = (0..20).map(|seed| engine.submit(ids(seed, 60, vocab))).collect();
    engine.close();
    assert_eq!(engine.submit(vec![1]).wait().unwrap_err().kind(), ErrorKind::Stopped);
    assert_eq!(engine.try_submit(vec![1]).unwrap_err().kind(), ErrorKind::Stopped);
    assert_eq!(engine.score([vec![1]]).remove(0).unwrap_err().kind(), ErrorKind::Stopped);
    for submit in submitted {
        submit.wait().unwrap().wait().unwrap();
    }
    assert_eq!(engine.stats().sequences, 20);
    // Closing is no failure.
    assert!(engine.failure().is_none());
}

#[test]
fn aborting_fails_what_is_queued_and_ends_a_waiting_close() {
    let engine = Arc::new(on_cpu(demo_model()).batching(batches_of(64)).open().unwrap());
    let vocab = engine.config().vocab as u32;
    let pending: Vec<_> = (0..500).map(|seed| engine.submit(ids(seed, 500, vocab)).wait().unwrap()).collect();
    let closing = thread::spawn({
        let engine = Arc::clone(&engine);
        move || engine.close()
    });
    engine.abort();
    closing.join().unwrap();
    let failed = pending.into_iter().filter_map(|pending| pending.wait().err());
    let kinds: Vec<_> = failed.map(|error| error.kind()).collect();
    assert!(kinds.len() > 400, "{} of 500 passes ran", 500 - kinds.len());
    assert!(kinds.iter().all(|kind| *kind == ErrorKind::Stopped), "{kinds:?}");
}

#[test]
fn dropped_futures_are_not_computed() {
    let engine = demo();
    let vocab = engine.config().vocab as u32;
    for seed in 0..200 {
        drop(engine.submit(ids(seed, 900, vocab)).wait().unwrap());
    }
    // 180,000 tokens would take minutes: the test ends soon because they are left out.
    assert!(engine.submit(vec![1, 2, 3]).wait().unwrap().wait().is_ok());
}

#[test]
fn try_submit_is_refused_by_a_full_queue() {
    let engine =
        on_cpu(demo_model()).batching(Batching { queue_tokens: 1, ..Batching::default() }).open().unwrap();
    let long = Conversation::exchange("What is 1+1?", "1+1=2 ".repeat(100));
    let mut kept = Vec::new();
    let refused = (0..1000).find_map(|_| match engine.try_submit(&long) {
        Ok(pending) => {
            kept.push(pending);
            None
        }
        Err(error) => Some(error),
    });
    assert_eq!(refused.expect("a queue of one token fills up").kind(), ErrorKind::QueueFull);
    kept.into_iter().for_each(|pending| assert!(pending.wait().is_ok()));
}

#[test]
fn a_sequence_that_ends_in_padding_is_scored_before_it() {
    let dir = fixtures().into_iter().find(|dir| dir.ends_with("seqcls_pad_hd36_f32")).unwrap();
    let engine = on_cpu(dir).open().unwrap();
    let kudos::internals::config::Head::Score { pad_token_id: Some(pad), .. } = engine.config().head else {
        panic!()
    };
    assert!(engine.warnings().is_empty(), "{:?}", engine.warnings());
    let other = if pad == 5 { 6 } else { 5 };
    let scores = engine.score(&[vec![other, other], vec![other, other, pad, pad], vec![pad, pad]]);
    let scores: Vec<_> = scores.into_iter().map(Result::unwrap).collect();
    assert_eq!(scores[0].reward, scores[1].reward);
    assert_eq!((scores[1].scored_token, scores[1].tokens), (1, 4));
    assert_eq!(scores[2].scored_token, 0, "padding only: the first token, as in Transformers");
    assert_eq!(engine.warnings().len(), 1);
}

#[test]
fn layers_stay_on_a_cpu_unless_streaming_is_requested() {
    let placement = |residency| {
        let engine = on_cpu(demo_model()).residency(residency).open()?;
        assert!(
            !engine.warnings().iter().any(|warning| warning.contains("streamed")),
            "streaming that was requested is no warning"
        );
        let placement = engine.plan().placement;
        Ok::<_, kudos::Error>((placement.resident, placement.streamed))
    };
    assert_eq!(placement(Residency::Auto).unwrap(), (4, 0));
    assert_eq!(placement(Residency::Resident).unwrap(), (4, 0));
    assert_eq!(placement(Residency::Streamed { resident_layers: None }).unwrap(), (0, 4));
    assert_eq!(placement(Residency::Streamed { resident_layers: Some(3) }).unwrap(), (3, 1));
    let error = placement(Residency::Streamed { resident_layers: Some(4) }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Options, "{error}");
}

#[test]
fn ranks_agree_with_one_rank() {
    // Partial results are rounded before they are added, so bits may differ. Measured on these
    // models: at most 4.1e-6.
    const BOUND: f32 = 1e-5;
    let mut worst = 0.0_f32;
    let mut tried = 0;
    for dir in fixtures() {
        let one = on_cpu(&dir).device(cpu_ranks(1)).open().unwrap();
        let vocab = one.config().vocab as u32;
        let sequences =
            [ids(1, 65, vocab), ids(2, 7, vocab), vec![3], [ids(1, 40, vocab), ids(4, 20, vocab)].concat()];
        let expected: Vec<_> = one.score(&sequences).into_iter().map(Result::unwrap).collect();
        for ranks in
            kudos::internals::shard::allowed_ranks(one.config()).into_iter().filter(|&ranks| ranks > 1)
        {
            let engine = on_cpu(&dir).device(cpu_ranks(ranks)).open().unwrap();
            let scores: Vec<_> = engine.score(&sequences).into_iter().map(Result::unwrap).collect();
            for (score, expected) in scores.iter().zip(&expected) {
                let error = (score.reward - expected.reward).abs() / expected.reward.abs().max(1.0);
                worst = worst.max(error);
                assert!(error <= BOUND, "{dir:?}, {ranks} ranks: {score:?}, with one {expected:?}");
            }
            let again: Vec<_> = engine.score(&sequences).into_iter().map(Result::unwrap).collect();
            assert_eq!(again, scores, "{dir:?}, {ranks} ranks: run again");
            let alone = engine.score(&sequences[..1]).remove(0).unwrap();
            assert_eq!(alone, scores[0], "{dir:?}, {ranks} ranks: alone = in a batch");
            tried += 1;
        }
    }
    println!("{tried} combinations of model and ranks: at most {worst:.1e}");
    assert!(tried >= 20, "only {tried} combinations of model and ranks");
}

#[test]
fn sequences_submitted_together_share_from_the_first_pass() {
    let engine = on_cpu(demo_model()).open().unwrap();
    let prepare = |index: u64| engine.prepare(("What is 1+1? ".repeat(20), index.to_string()));
    let sequences: Vec<_> = (0..8).map(prepare).collect();
    let tokens = |index: usize| sequences[index].as_ref().unwrap().ids.len() as u64;
    let (longest, all) = ((0..8).map(tokens).max().unwrap(), (0..8).map(tokens).sum::<u64>());
    for pending in engine.submit_all(sequences) {
        pending.unwrap().wait().unwrap();
    }
    let stats = engine.stats();
    assert_eq!((stats.passes, stats.sequences, stats.tokens), (1, 8, all));
    assert!(stats.unique_tokens < 2 * longest, "{stats:?}, of at most {longest} each");
}

#[test]
fn responses_share_their_long_prompt_and_the_counts_show_it() {
    let engine = on_cpu(demo_model()).batching(batches_of(1024)).open().unwrap();
    let prompt = "What is 1+1? ".repeat(50);
    let count = 60;
    let conversations = (0..count).map(|index| Conversation::exchange(&prompt, index.to_string()));
    let scores: Vec<_> = engine.score_iter(conversations).map(Result::unwrap).collect();
    let stats = engine.stats();
    assert_eq!(stats.sequences, count);
    assert_eq!(stats.tokens, scores.iter().map(|score| score.tokens as u64).sum::<u64>());
    // The prompt once for each of the few passes that its responses need, of which the first may
    // hold a single one.
    let longest = scores.iter().map(|score| score.tokens as u64).max().unwrap();
    assert!(longest > 300, "{longest}");
    assert!(stats.passes <= 6 && stats.unique_tokens < 8 * longest, "{stats:?}, of at most {longest} each");
    assert!(stats.shared() > 0.8, "{stats:?}");
}
