//! The engine under an async runtime: `examples/service.rs`, and backpressure that blocks no
//! thread.

#[path = "../../examples/service.rs"]
mod example;

use crate::common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{batches_of, demo_model, ids, on_cpu};
use kudos::{Batching, Engine};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::{JoinSet, yield_now};

/// Opens an engine whose queue is full after one sequence.
fn engine() -> Arc<Engine> {
    let batching = Batching { queue_tokens: 1, ..batches_of(64) };
    Arc::new(on_cpu(demo_model()).batching(batching).open().unwrap())
}

#[test]
fn submissions_wait_without_blocking_the_runtime() {
    const SEQUENCES: usize = 40;
    let (engine, turns) = (engine(), Arc::new(AtomicUsize::new(0)));
    let vocab = engine.config().vocab as u32;
    let runtime = Builder::new_current_thread().build().unwrap();
    let (rewards, waiting) = runtime.block_on(async {
        // Runs only while no task blocks the runtime's one thread.
        let counting = Arc::clone(&turns);
        let counter = tokio::spawn(async move {
            loop {
                counting.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        });
        let mut tasks = JoinSet::new();
        for index in 0..SEQUENCES {
            let (engine, turns) = (Arc::clone(&engine), Arc::clone(&turns));
            tasks.spawn(async move {
                let submit = engine.submit(ids(index as u64, 60, vocab));
                let before = turns.load(Ordering::Relaxed);
                let score = submit.await.unwrap().await.unwrap();
                (index, score.reward, turns.load(Ordering::Relaxed) - before)
            });
        }
        let mut scores = tasks.join_all().await;
        counter.abort();
        scores.sort_by_key(|(index, ..)| *index);
        let waiting = scores.iter().filter(|(.., turns)| *turns > 0).count();
        (scores.into_iter().map(|(_, reward, _)| reward).collect::<Vec<_>>(), waiting)
    });
    // Were threads blocked, no task would see a turn. A score can be there before its task runs
    // again, where this thread was not scheduled meanwhile.
    assert!(waiting > SEQUENCES / 2, "{waiting} of {SEQUENCES} tasks let the counter run");
    let sequences: Vec<Vec<u32>> = (0..SEQUENCES).map(|index| ids(index as u64, 60, vocab)).collect();
    let expected: Vec<f32> =
        engine.score(&sequences).into_iter().map(|score| score.unwrap().reward).collect();
    assert_eq!(rewards, expected);
}

#[test]
fn the_example_replies_to_each_connection_in_order() {
    let engine = engine();
    let expected = engine.score([("What is 1+1?", "1+1=2")]).remove(0).unwrap().reward;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_io().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(example::serve(Arc::clone(&engine), listener));
        let mut clients = JoinSet::new();
        for _ in 0..4 {
            clients.spawn(async move {
                let (reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
                let long = "1 ".repeat(100_000);
                for response in ["1+1=2", &long, "1+1=2"] {
                    let line = serde_json::json!({"prompt": "What is 1+1?", "response": response});
                    writer.write_all(format!("{line}\n").as_bytes()).await.unwrap();
                }
                drop(writer);
                let mut lines = BufReader::new(reader).lines();
                let mut replies: Vec<Value> = Vec::new();
                while let Some(line) = lines.next_line().await.unwrap() {
                    replies.push(serde_json::from_str(&line).unwrap());
                }
                replies
            });
        }
        for replies in clients.join_all().await {
            assert_eq!(replies.len(), 3);
            for reply in [&replies[0], &replies[2]] {
                assert_eq!(reply["reward"].as_f64().unwrap() as f32, expected);
            }
            assert_eq!(replies[1]["error"], "too_long");
        }
    });
}
