//! A server whose GPU is lost: every request that was accepted has one answer, none hangs, and the
//! server says that it does not work any more.

use std::sync::Arc;
use std::thread;

use kudos_server::{Drained, Options, Server};
use serde_json::json;
use tokio::runtime::Runtime;

use super::{MODEL, open};
use crate::common::{demo_model, ids};
use crate::gpu::{Gpu, in_own_processes};
use crate::http::request;
use crate::process::{self, LINE};

const CLIENTS: usize = 24;

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_lost_gpu_answers_every_request_of_a_server() {
    let test = "server::a_lost_gpu_answers_every_request_of_a_server";
    // The process cannot use CUDA afterwards.
    in_own_processes(test, &["served"], |_| serve_until_lost());
}

fn serve_until_lost() {
    let gpu = Gpu::take();
    let runtime = Runtime::new().unwrap();
    let engine = Arc::new(open(MODEL).unwrap());
    let server = runtime.block_on(Server::bind(Arc::clone(&engine), Options::default(), "127.0.0.1:0"));
    let server = server.unwrap();
    let address = server.local_addr().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let running = runtime.spawn(server.run(async move { drop(ended.await) }));
    let post = |seed: u64| {
        let body = json!({"input_ids": ids(seed, 12, 512)}).to_string();
        request(address, "POST", "/v1/rewards", &[], body.as_bytes())
    };
    assert_eq!(post(1).status, 200);
    // Some launches from now: in the pass of some of the clients below.
    gpu.plan("lost:40");
    let answers = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|seed| scope.spawn(move || post(seed as u64 + 2))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    let failed: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(!failed.is_empty(), "the GPU was not lost");
    for answer in failed {
        assert_eq!(answer.failure(), (500, "device".to_owned()), "{}", answer.text());
    }
    assert_eq!(post(1).failure(), (500, "device".to_owned()));
    let get = |path: &str| request(address, "GET", path, &[], b"");
    for path in ["/health", "/ready"] {
        assert_eq!(get(path).status, 503, "{path}: {}", get(path).text());
    }
    assert_eq!(get("/metrics").status, 200);
    // A stream ends unfinished, with the cause on its last line.
    let lines = "{\"input_ids\":[1,2,3]}\n".repeat(3);
    let stream = request(
        address,
        "POST",
        "/v1/rewards",
        &[("Content-Type", "application/x-ndjson")],
        lines.as_bytes(),
    );
    assert!(!stream.is_whole && stream.text().contains("\"kind\":\"device\""), "{}", stream.text());
    drop(end);
    assert_eq!(runtime.block_on(running).unwrap(), Drained::All);
    drop((engine, runtime));
    gpu.plan("");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_server_process_whose_gpu_is_lost_ends_with_status_2() {
    let _gpu = Gpu::take();
    // Some passes after the one of the canary.
    let server =
        process::Server::start_with(&demo_model(), &["--device", "cuda"], &[("SOFTGPU_FAIL", "lost:2000")]);
    server.wait_until("ready", |server| server.get("/ready").status == 200);
    let mut scored = 0;
    let failed = loop {
        let answer = server.post("/v1/rewards", LINE);
        if answer.status != 200 {
            break answer;
        }
        scored += 1;
        assert!(scored < 2000, "the GPU was not lost");
    };
    assert!(scored > 0);
    assert_eq!(failed.failure(), (500, "device".to_owned()), "{}", failed.text());
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.lines().any(|line| line.starts_with("error: ")), "{log}");
}
