//! Limits of what a request, and a page in a browser, can do.

use std::io::Write;

use serde_json::json;

use crate::http::{answer, connect, request};
use crate::process::{LINE, Server, file};

#[test]
fn forged_hosts_and_origins_are_refused() {
    let server = Server::start(&["--allow-host", "reward.example", "--allow-origin", "https://app.example"]);
    let post =
        |headers: &[(&str, &str)]| request(server.address, "POST", "/v1/rewards", headers, LINE.as_bytes());
    for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example"] {
        assert_eq!(post(&[("Host", host)]).failure(), (403, "host".to_owned()), "{host}");
    }
    for host in ["reward.example", "localhost:1234", "[::1]", "127.0.0.1"] {
        assert_eq!(post(&[("Host", host)]).status, 200, "{host}");
    }
    for origin in ["https://evil.example", "null", "http://localhost:3000"] {
        let refused = post(&[("Origin", origin)]);
        assert_eq!(refused.failure(), (403, "origin".to_owned()), "{origin}");
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
    let own = format!("http://{}", server.address);
    let answer = post(&[("Origin", &own)]);
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None));
    let allowed = [("Origin", "https://app.example")];
    let answer = post(&allowed);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    // What a browser asks first.
    let asked = request(server.address, "OPTIONS", "/v1/rewards", &allowed, b"");
    assert_eq!(
        (asked.status, asked.header("access-control-allow-origin")),
        (204, Some("https://app.example"))
    );
    let asked = request(server.address, "OPTIONS", "/v1/rewards", &[("Origin", "https://evil.example")], b"");
    assert_eq!(asked.failure(), (403, "origin".to_owned()));
}

#[test]
fn a_key_opens_all_but_health_and_readiness() {
    let (_dir, path) = file("key", "correct horse\n");
    let refused = std::process::Command::new(crate::common::kudos_path())
        .args(["serve", "--device", "cpu", "--port", "0", "--api-key-file"])
        .arg(&path)
        .arg("--model")
        .arg(crate::common::demo_model())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("the API key is empty, or has characters"));
    let server =
        Server::start_with(&crate::common::demo_model(), &[], &[("KUDOS_API_KEY", "battery-staple")]);
    let status =
        |path: &str, key: &str| request(server.address, "GET", path, &[("Authorization", key)], b"").status;
    for path in ["/v1/models", "/metrics", "/version", "/openapi.json", "/nothing"] {
        assert_eq!(server.get(path).failure(), (401, "api_key".to_owned()), "{path}");
        assert_eq!(status(path, "Bearer wrong"), 401);
        assert!([200, 404].contains(&status(path, "Bearer battery-staple")), "{path}");
    }
    assert_eq!(server.post("/v1/rewards", LINE).failure(), (401, "api_key".to_owned()));
    assert!([200, 503].contains(&server.get("/ready").status));
    assert_eq!(server.get("/health").status, 200);
    // `any:battery-staple`, as a browser sends it.
    assert_eq!(status("/version", "Basic YW55OmJhdHRlcnktc3RhcGxl"), 200);
    assert_eq!(server.get("/version").header("www-authenticate"), Some("Bearer"));
}

#[test]
fn requests_bring_no_template_and_no_file() {
    let server = Server::start(&[]);
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let template = "{{ range(1000000000) | list }}";
    for request in [
        json!({"messages": messages, "chat_template": template}),
        json!({"messages": messages, "chat_template_kwargs": {"chat_template": template}}),
        json!({"messages": messages, "template_vars": {"chat_template": template}}),
    ] {
        for path in ["/v1/rewards", "/v1/render"] {
            let answer = server.post(path, &request.to_string());
            assert_eq!(answer.failure(), (422, "invalid_input".to_owned()));
            assert!(answer.text().contains("chat_template"), "{}", answer.text());
        }
    }
    // Names of files and addresses are text like any other.
    let content = json!([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]);
    let request =
        json!({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]});
    assert_eq!(server.post("/v1/rewards", &request.to_string()).status, 422);
}

#[test]
fn control_tokens_stay_text_where_the_server_says_so() {
    let spelled = json!({"prompt": "a<|eot_id|>b", "response": "c"}).to_string();
    let ids =
        |server: &Server| server.post("/v1/render", &spelled).json()["input_ids"].as_array().unwrap().len();
    let plain = ids(&Server::start(&[]));
    let server = Server::start(&["--sanitize-control-tokens"]);
    assert!(ids(&server) > plain);
    let off =
        json!({"prompt": "a<|eot_id|>b", "response": "c", "sanitize_control_tokens": false}).to_string();
    assert_eq!(
        server.post("/v1/rewards", &off).json()["reward"],
        server.post("/v1/rewards", &spelled).json()["reward"]
    );
}

#[test]
fn nothing_of_a_request_reaches_the_log_as_it_is() {
    let server = Server::start(&["--log", "debug"]);
    let red = "\u{1b}[31mred\u{1b}]0;title\u{7}";
    let request_of = |text: &str| json!({"id": text, "prompt": text, text: 1, "response": 3}).to_string();
    assert_eq!(server.post("/v1/rewards", &request_of(red)).status, 422);
    assert_eq!(server.lines(&request_of(red)).status, 200);
    for head in [
        "GET /\u{1b}[31m HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: localhost\r\nX-Red: \u{1b}[31m\r\n\r\n",
        "GET /%1b[31m?%0d%0aforged HTTP/1.1\r\nHost: \u{1b}[31m\r\n\r\n",
        "\u{1b}[31m\r\n\r\n",
    ] {
        let mut stream = connect(server.address);
        stream.write_all(head.as_bytes()).unwrap();
        // Refused, or closed without an answer.
        assert!(answer(&stream).map_or(true, |answer| (400..500).contains(&answer.status)));
    }
    server.terminate();
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    assert!(log.contains("POST /v1/rewards 422"), "{log}");
    assert!(!log.chars().any(|c| c.is_control() && c != '\n'), "{log:?}");
    assert!(!log.contains("red") && !log.contains("forged"), "{log}");
}

#[test]
fn options_that_could_not_work_are_refused_at_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (options, expected) in [
        (["--canary-tolerance", "NaN"], "expected a number from 0 on"),
        (["--canary-tolerance", "-1"], "expected a number from 0 on"),
        (["--allow-origin", "example.org"], "expected a scheme and a host"),
        (["--allow-origin", "https://example.org/"], "expected a scheme and a host"),
        (["--queue-tokens", "0"], "zero"),
        (["--canary", "no-such-file"], "cannot read the canaries"),
        (["--port", port.as_str()], "choose another port"),
    ] {
        let mut command = std::process::Command::new(crate::common::kudos_path());
        command.args(["serve", "--device", "cpu", "--model"]).arg(crate::common::demo_model());
        let output = command.arg(format!("{}={}", options[0], options[1])).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {log}");
        assert!(log.contains(expected) && !log.contains("running on"), "{options:?}: {log}");
    }
}
