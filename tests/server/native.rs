//! This server's own interface: the command's results, in every form.

use serde_json::{Value, json};

use crate::process::{LINE, Server, command, file, requests};

/// Returns a line of output without `index`, which objects have in a file and in a stream alone.
fn without_index(line: &str) -> String {
    match line.strip_prefix("{\"index\":") {
        Some(rest) => format!("{{{}", rest.split_once(',').unwrap().1),
        None => line.to_owned(),
    }
}

/// Returns a line of output without the number of a file's line.
fn without_place(line: &str) -> String {
    let Some((start, rest)) = line.split_once(",\"place\":\"input line ") else { return line.to_owned() };
    format!("{start}{}", rest.split_once('"').unwrap().1)
}

/// Returns what the command writes for the requests.
fn written(subcommand: &str, requests: &[String]) -> Vec<String> {
    let lines = command(subcommand, &requests.join("\n"));
    assert_eq!(lines.len(), requests.len());
    lines.iter().map(|line| without_place(line)).collect()
}

/// Compares texts, and shows where they differ first.
#[track_caller]
fn assert_same(given: &str, expected: &str) {
    let same = given.bytes().zip(expected.bytes()).take_while(|(a, b)| a == b).count();
    let near = |text: &str| text.chars().skip(same.saturating_sub(60)).take(120).collect::<String>();
    assert!(given == expected, "at byte {same}:\n{}\n{}", near(given), near(expected));
}

#[test]
fn every_form_has_the_bytes_of_the_command() {
    let server = Server::start(&[]);
    let requests = requests();
    let expected = written("score", &requests);
    let lines = server.lines(&requests.join("\n"));
    assert!(lines.is_whole && lines.header("content-type") == Some("application/x-ndjson"));
    assert_same(lines.text(), &(expected.join("\n") + "\n"));
    let list = server.post("/v1/rewards", &format!("[{}]", requests.join(",")));
    let expected: Vec<String> = expected.iter().map(|line| without_index(line)).collect();
    assert_same(list.text(), &format!("[{}]", expected.join(",")));
    for (request, expected) in requests.iter().zip(&expected) {
        let answer = server.post("/v1/rewards", request);
        let is_error = serde_json::from_str::<Value>(expected).unwrap().get("error").is_some();
        if !is_error {
            assert_eq!((answer.status, answer.text()), (200, expected.as_str()));
            continue;
        }
        let (given, expected) = (answer.json(), serde_json::from_str::<Value>(expected).unwrap());
        assert_eq!(answer.status, 422, "{request}");
        for field in ["kind", "message", "hint"] {
            assert_eq!(given["error"][field], expected["error"][field], "{request}");
        }
    }
}

#[test]
fn rendering_has_the_bytes_of_the_command() {
    let server = Server::start(&[]);
    // Ids that the model does not have are an error of scoring alone.
    let requests = requests();
    let expected: Vec<String> = written("render", &requests).iter().map(|line| without_index(line)).collect();
    let list = server.post("/v1/render", &format!("[{}]", requests.join(",")));
    assert_same(list.text(), &format!("[{}]", expected.join(",")));
    let one = server.post("/v1/render", LINE).json();
    let (text, span) = (one["text"].as_str().unwrap(), &one["scored"]["span"]);
    let [start, end] = [0, 1].map(|end| span[end].as_u64().unwrap() as usize);
    let marked: String = text.chars().skip(start).take(end - start).collect();
    assert_eq!((marked.as_str(), &one["scored"]["text"]), ("<|eot_id|>", &json!("<|eot_id|>")));
    assert_eq!(server.post("/v1/render", "{\"prompt\":1}").failure(), (422, "invalid_input".to_owned()));
}

#[test]
fn lines_keep_their_order_and_numbers() {
    let server = Server::start(&[]);
    let body = format!("{LINE}\n\n  \r\n{{\"x\":}}\n{LINE}\r\n\u{feff}{LINE}");
    let answer = server.lines(&body);
    let lines: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<&Value> = lines.iter().map(|line| &line["index"]).collect();
    assert_eq!(numbers, [0, 3, 4, 5]);
    assert_eq!(lines[1]["error"]["kind"], "invalid_input");
    assert_eq!([&lines[2]["reward"], &lines[3]["reward"]], [&lines[0]["reward"], &lines[0]["reward"]]);
    assert_eq!(server.lines("").text(), "");
}

#[test]
fn bodies_of_another_type_or_size_are_refused() {
    let server = Server::start(&["--body-limit-mib", "1"]);
    let post = |headers: &[(&str, &str)], body: &[u8]| {
        crate::http::request(server.address, "POST", "/v1/rewards", headers, body).failure()
    };
    let body = LINE.as_bytes();
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"]
    {
        assert_eq!(post(&[("Content-Type", content_type)], body), (415, "content_type".to_owned()));
    }
    assert_eq!(post(&[("Content-Encoding", "gzip")], body), (415, "content_encoding".to_owned()));
    for content_type in ["application/json; charset=utf-8", "APPLICATION/JSON", "application/ld+json"] {
        let headers = [("Content-Type", content_type)];
        let answer = crate::http::request(server.address, "POST", "/v1/rewards", &headers, body);
        assert_eq!(answer.status, 200, "{content_type}");
    }
    let large = format!(r#"{{"prompt":"{}","response":""}}"#, "a".repeat(1 << 20));
    assert_eq!(server.post("/v1/rewards", &large).failure(), (413, "too_large".to_owned()));
    // A line alone is too long; the others have their results.
    let answer = server.lines(&format!("{LINE}\n{large}\n{LINE}\n{large}"));
    let lines: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    for index in [1, 3] {
        assert_eq!(lines[index]["index"], index);
        assert_eq!(lines[index]["error"]["kind"], "too_large");
    }
    assert!(lines[2]["reward"].is_f64());
    for (body, status) in
        [("[1", 422), ("{", 422), ("", 422), ("3", 422), ("\"a\"", 422), ("[]", 200), ("[[]]", 200)]
    {
        assert_eq!(server.post("/v1/rewards", body).status, status, "{body}");
    }
}

#[test]
fn every_path_has_its_methods_and_errors() {
    let server = Server::start(&["--served-model-name", "reward", "--served-model-name", "rm"]);
    server.wait_until("the server is ready", |server| server.get("/ready").status == 200);
    assert_eq!(server.get("/ready").json(), json!({"ready": true}));
    assert_eq!(server.get("/health").json(), json!({"healthy": true}));
    assert_eq!(server.get("/version").json(), json!({"version": env!("CARGO_PKG_VERSION")}));
    let models = server.get("/v1/models").json();
    let names: Vec<&Value> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(names, ["reward", "rm"]);
    assert_eq!(models["data"][0]["max_model_len"], 2048);
    assert_eq!(server.get("/nothing").failure(), (404, "not_found".to_owned()));
    assert_eq!(server.get("/v1/rewards").failure(), (405, "method".to_owned()));
    assert_eq!(server.post("/health", "{}").failure(), (405, "method".to_owned()));
    let description = server.get("/openapi.json").json();
    let paths: Vec<&String> = description["paths"].as_object().unwrap().keys().collect();
    assert!(paths.contains(&&"/v1/rewards".to_owned()), "{paths:?}");
    for (path, methods) in description["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let answer = crate::http::request(server.address, &method.to_uppercase(), path, &[], b"{}");
            assert!(![404, 405].contains(&answer.status), "{method} {path}: {}", answer.text());
            // Every status that comes is described.
            let responses = &methods[method]["responses"];
            let statuses = [answer.status.to_string(), format!("{}XX", answer.status / 100)];
            assert!(
                statuses.iter().any(|status| responses[status].is_object()),
                "{method} {path}: {}",
                answer.status
            );
        }
    }
}

#[test]
fn a_request_has_its_time() {
    let server = Server::start(&["--timeout", "600"]);
    let post = |milliseconds: &str, body: &str| {
        let headers = [("X-Timeout-Ms", milliseconds)];
        crate::http::request(server.address, "POST", "/v1/rewards", &headers, body.as_bytes())
    };
    assert_eq!(post("60000", LINE).status, 200);
    for wrong in ["0", "-1", "1.5", "soon"] {
        assert_eq!(post(wrong, LINE).failure(), (422, "invalid_input".to_owned()), "{wrong}");
    }
    // Longer than a millisecond on any machine.
    let many = format!("[{}]", vec![LINE; 2000].join(","));
    assert_eq!(post("1", &many).failure(), (504, "timeout".to_owned()));
    // What it had in the queue is gone.
    server.wait_until("nothing waits", |server| server.metric("kudos_waiting_sequences") == 0.0);
    assert_eq!(post("60000", LINE).status, 200);
}

#[test]
fn metrics_count_what_was_scored() {
    let server = Server::start(&["--truncate", "left", "--max-tokens", "64"]);
    server.wait_until("the server is ready", |server| server.metric("kudos_ready") == 1.0);
    let before = server.metric("kudos_sequences_total");
    let long = "1+1=2 ".repeat(100);
    let request = json!({"prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3", long]});
    assert_eq!(server.post("/v1/rewards", &request.to_string()).status, 200);
    assert_eq!(server.post("/v1/rewards", "{}").status, 422);
    assert_eq!(server.metric("kudos_sequences_total") - before, 3.0);
    assert!(server.metric("kudos_unique_tokens_total") < server.metric("kudos_tokens_total"));
    assert_eq!(server.metric("kudos_truncated_total"), 1.0);
    assert_eq!(server.metric("kudos_errors_total{kind=\"invalid_input\"}"), 1.0);
    assert_eq!(server.metric("kudos_reward_count"), 3.0);
    assert_eq!(server.metric("kudos_queue_seconds_count"), 3.0);
    assert_eq!(server.metric("kudos_requests_total{route=\"/v1/rewards\",status=\"200\"}"), 1.0);
    assert_eq!(server.metric("kudos_canary_drift"), 0.0);
    assert!(server.metric("kudos_batch_fill_ratio") > 0.0);
}

#[test]
fn a_server_is_ready_while_its_canary_has_its_reward() {
    let scored = command("score", LINE).remove(0);
    let reward = serde_json::from_str::<Value>(&scored).unwrap()["reward"].as_f64().unwrap();
    let canary =
        |reward: f64| json!({"prompt": "What is 1+1?", "response": "1+1=2", "reward": reward}).to_string();
    let (_dir, right) = file("canary.jsonl", &canary(reward));
    let server = Server::start(&["--canary", right.to_str().unwrap(), "--canary-tolerance", "0"]);
    server.wait_until("the server is ready", |server| server.get("/ready").status == 200);
    let (_dir, wrong) = file("canary.jsonl", &canary(reward + 0.1));
    let server = Server::start(&["--canary", wrong.to_str().unwrap()]);
    server.wait_until("the canary was scored", |server| server.get("/ready").text().contains("expected"));
    let answer = server.get("/ready");
    assert_eq!(answer.status, 503);
    assert!(
        answer.text().contains("canary 0 has the reward 4.225342, expected 4.325342"),
        "{}",
        answer.text()
    );
    // Scores are still served: the operator decides.
    assert_eq!(server.post("/v1/rewards", LINE).status, 200);
    assert!((server.metric("kudos_canary_drift") - 0.1).abs() < 1e-3);
}
