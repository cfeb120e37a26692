//! Clients that vanish, stall, flood or break the protocol, and the end of the server under load:
//! every request that was accepted has one answer, and no other one suffers.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{answer, connect, head};
use crate::process::{LINE, Server};

/// Returns the body of a request that takes the demo model a while.
fn many(count: usize) -> String {
    let request = |n: usize| {
        json!({"prompt": format!("What is {n}+{n}?"), "response": "1+1=2 ".repeat(40)}).to_string()
    };
    format!("[{}]", (0..count).map(request).collect::<Vec<_>>().join(","))
}

#[test]
fn a_client_that_vanishes_frees_its_place() {
    let server = Server::start(&[]);
    let body = many(4000);
    let head = head(server.address, "POST", "/v1/rewards", &[]);
    let mut stream = connect(server.address);
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    server.wait_until("the request waits", |server| server.metric("kudos_waiting_sequences") > 1000.0);
    drop(stream);
    server.wait_until("nothing waits", |server| server.metric("kudos_waiting_sequences") == 0.0);
    let scored = server.metric("kudos_sequences_total");
    assert!(scored < 3500.0, "{scored} of 4000 were scored");
    // While it is prepared, too.
    let mut stream = connect(server.address);
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
    assert_eq!(server.post("/v1/rewards", LINE).status, 200);
}

#[test]
fn a_full_queue_refuses_with_a_time_to_wait() {
    let server = Server::start(&["--queue-tokens", "1000"]);
    let body = many(1000);
    thread::scope(|scope| {
        // Each is larger than the queue, and counts for a fourth of it.
        let post = || server.post("/v1/rewards", &body);
        let mut large = vec![scope.spawn(post)];
        server.wait_until("one waits", |server| server.metric("kudos_waiting_tokens") > 50_000.0);
        assert_eq!(server.post("/v1/rewards", LINE).status, 200);
        large.extend((0..3).map(|_| scope.spawn(post)));
        let refused = loop {
            let answer = server.post("/v1/rewards", LINE);
            if answer.status != 200 {
                break answer;
            }
        };
        assert_eq!(refused.failure(), (429, "queue_full".to_owned()));
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
        for large in large {
            assert_eq!(large.join().unwrap().json().as_array().unwrap().len(), 1000);
        }
    });
    assert_eq!(server.post("/v1/rewards", LINE).status, 200);
    assert!(server.metric("kudos_refused_total") >= 1.0);
}

#[test]
fn a_long_request_holds_short_ones_for_a_pass() {
    let server = Server::start(&[]);
    let body = many(4000);
    thread::scope(|scope| {
        let start = Instant::now();
        let large = scope.spawn(|| server.post("/v1/rewards", &body));
        server.wait_until("the request waits", |server| server.metric("kudos_waiting_sequences") > 1000.0);
        let before = server.metric("kudos_waiting_sequences");
        assert_eq!(server.post("/v1/rewards", LINE).status, 200);
        // It did not wait for all of the other's.
        let after = server.metric("kudos_waiting_sequences");
        assert!(after > before / 2.0, "{before} waited before, {after} after it");
        assert_eq!(large.join().unwrap().status, 200);
        assert!(start.elapsed() < Duration::from_secs(60));
    });
}

#[test]
fn slow_and_half_open_clients_hold_no_others() {
    let server = Server::start(&[]);
    let half_open: Vec<_> = (0..1000)
        .map(|_| {
            let mut stream = connect(server.address);
            stream.write_all(b"POST /v1/rewards HTTP/1.1\r\nHost: loc").unwrap();
            stream
        })
        .collect();
    // One that sends a byte after the other, and one that never reads its results.
    let mut slow = connect(server.address);
    let head_of_lines =
        head(server.address, "POST", "/v1/rewards", &[("Content-Type", "application/x-ndjson")]);
    let mut deaf = connect(server.address);
    write!(deaf, "{head_of_lines}Transfer-Encoding: chunked\r\n\r\n").unwrap();
    let lines = format!("{LINE}\n").repeat(2000);
    write!(deaf, "{:x}\r\n{lines}\r\n", lines.len()).unwrap();
    let request = format!(
        "{}Content-Length: {}\r\n\r\n{LINE}",
        head(server.address, "POST", "/v1/rewards", &[]),
        LINE.len()
    );
    for (index, byte) in request.bytes().enumerate() {
        slow.write_all(&[byte]).unwrap();
        if index % 40 == 0 {
            let start = Instant::now();
            assert_eq!(server.post("/v1/rewards", LINE).status, 200);
            assert!(start.elapsed() < Duration::from_secs(20));
        }
    }
    assert_eq!(answer(&slow).unwrap().status, 200);
    drop(half_open);
    write!(deaf, "0\r\n\r\n").unwrap();
    assert_eq!(answer(&deaf).unwrap().text().lines().count(), 2000);
}

#[test]
fn broken_bodies_and_types_are_errors_of_their_request() {
    let server = Server::start(&[]);
    let wrong = [
        json!(1),
        json!("a"),
        json!([]),
        json!([1]),
        json!({}),
        json!({"a": [null]}),
        json!(true),
        json!(-1),
        json!(1e300),
    ];
    let fields = [
        "messages",
        "prompt",
        "response",
        "responses",
        "input_ids",
        "attention_mask",
        "tools",
        "documents",
        "template_vars",
        "chat_template_kwargs",
        "system",
        "functions",
        "chat_template",
        "position_ids",
    ];
    for field in fields {
        for value in &wrong {
            for base in [json!({}), json!({"prompt": "a", "response": "b"}), json!({"input_ids": [1]})] {
                let mut request = base.clone();
                request[field] = value.clone();
                let answer = server.post("/v1/rewards", &request.to_string());
                assert!([200, 422].contains(&answer.status), "{request}: {}", answer.text());
            }
        }
    }
    for body in
        ["\u{0}", "{\"prompt\":\"\\ud83d\",\"response\":\"\"}", "NaN", "{\"a\":NaN}", "[[[[[[", "{}{}"]
    {
        assert!([400, 422].contains(&server.post("/v1/rewards", body).status), "{body}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!([200, 400, 422].contains(&server.post("/v1/rewards", &deep).status));
    // A body that ends before its length, and one that is no chunk.
    for rest in ["Content-Length: 1000\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\nzz\r\n"] {
        let mut stream = connect(server.address);
        write!(stream, "{}{rest}", head(server.address, "POST", "/v1/rewards", &[])).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    }
    assert_eq!(server.post("/v1/rewards", LINE).status, 200);
}

#[test]
fn a_termination_answers_what_was_accepted() {
    let server = Server::start(&[]);
    let body = many(1000);
    let (answered, refused, unserved) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let ended = AtomicBool::new(false);
    let expected = server.post("/v1/rewards", LINE).json();
    let address = server.address;
    thread::scope(|scope| {
        let large = scope.spawn(|| server.post("/v1/rewards", &body));
        server.wait_until("the request waits", |server| server.metric("kudos_waiting_sequences") > 100.0);
        for _ in 0..8 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let text = format!(
                        "{}Connection: close\r\nContent-Length: {}\r\n\r\n{LINE}",
                        head(address, "POST", "/v1/rewards", &[]),
                        LINE.len()
                    );
                    let result = std::net::TcpStream::connect(address).and_then(|mut stream| {
                        stream.write_all(text.as_bytes())?;
                        answer(&stream)
                    });
                    match result {
                        Ok(answer) if answer.status == 200 => {
                            assert_eq!(answer.json(), expected);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => {
                            assert_eq!(answer.failure(), (503, "draining".to_owned()));
                            assert!(answer.header("retry-after").is_some());
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        // The process has closed the port.
                        Err(_) => {
                            unserved.fetch_add(1, Ordering::Relaxed);
                            thread::sleep(Duration::from_millis(5));
                        }
                    }
                }
            });
        }
        server.wait_until("some have answers", |_| answered.load(Ordering::Relaxed) > 20);
        server.terminate();
        assert_eq!(large.join().unwrap().json().as_array().unwrap().len(), 1000);
        thread::sleep(Duration::from_millis(300));
        ended.store(true, Ordering::Relaxed);
    });
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    assert!(log.contains("ending after the requests under way"), "{log}");
    assert!(refused.into_inner() > 0 && unserved.into_inner() > 0);
}

#[test]
fn a_stream_ends_unfinished_when_the_server_does() {
    let server = Server::start(&[]);
    let head = head(server.address, "POST", "/v1/rewards", &[("Content-Type", "application/x-ndjson")]);
    let mut stream = connect(server.address);
    write!(stream, "{head}Transfer-Encoding: chunked\r\n\r\n").unwrap();
    let line = format!("{LINE}\n");
    for _ in 0..3 {
        write!(stream, "{:x}\r\n{line}\r\n", line.len()).unwrap();
    }
    let scored = |server: &Server| server.metric("kudos_reward_count") >= 3.0;
    server.wait_until("the lines are scored", scored);
    server.terminate();
    let answer = answer(&stream).unwrap();
    let lines: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[..3].iter().all(|line| line["reward"].is_f64()), "{lines:?}");
    assert_eq!(lines[3]["error"]["kind"], "draining");
    assert!(!answer.is_whole, "the client would take it for complete");
    assert!(server.end().0.success());
}
