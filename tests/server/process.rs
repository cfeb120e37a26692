//! The server as a process, which ends with the test.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{demo_model, kudos_path};
use crate::http::{Answer, request};

/// A running `kudos serve`.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
    /// Its standard error after its address.
    log: Option<JoinHandle<String>>,
}

/// A conversation that the demo model scores.
pub(crate) const LINE: &str = r#"{"prompt":"What is 1+1?","response":"1+1=2"}"#;

impl Server {
    /// Starts a server of the demo model.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_with(&demo_model(), options, &[])
    }

    pub(crate) fn start_with(model: &Path, options: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(kudos_path());
        command.args(["serve", "--port", "0", "--model"]).arg(model).args(options);
        if !options.contains(&"--device") {
            command.args(["--device", "cpu"]);
        }
        command.env_remove("KUDOS_API_KEY").envs(variables.iter().copied());
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut early = String::new();
        let address = loop {
            let start = early.len();
            assert!(log.read_line(&mut early).unwrap() > 0, "the server ended:\n{early}");
            if let Some(address) = early[start..].trim_end().strip_prefix("listening on http://") {
                break address.parse().unwrap();
            }
        };
        let log = thread::spawn(move || {
            let mut text = String::new();
            log.read_to_string(&mut text).unwrap();
            text
        });
        Self { process, address, log: Some(log) }
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        request(self.address, "POST", path, &[], body.as_bytes())
    }

    #[track_caller]
    pub(crate) fn lines(&self, body: &str) -> Answer {
        let headers = [("Content-Type", "application/x-ndjson")];
        request(self.address, "POST", "/v1/rewards", &headers, body.as_bytes())
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        request(self.address, "GET", path, &[], b"")
    }

    /// Returns the value of a metric, without labels or with these.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let answer = self.get("/metrics");
        let line = answer.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name}:\n{}", answer.text())).parse().unwrap()
    }

    /// Waits until `is_so`.
    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            assert!(start.elapsed() < Duration::from_secs(30), "after 30 s: {what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// Waits for the end, and returns the status and what was written to standard error.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let status = self.process.wait().unwrap();
        (status, self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs the command on lines of input, and returns its lines of output.
pub(crate) fn command(subcommand: &str, lines: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines.jsonl");
    std::fs::write(&path, lines).unwrap();
    let mut command = Command::new(kudos_path());
    command.arg(subcommand).arg("--model").arg(demo_model()).arg(&path).stderr(Stdio::null());
    if subcommand == "score" {
        command.args(["--device", "cpu"]);
    }
    let output = command.output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Requests of all forms, some of which cannot be scored.
pub(crate) fn requests() -> Vec<String> {
    let long = "1+1=2, because ".repeat(200);
    let mut requests: Vec<Value> = vec![
        json!({"prompt": "What is 1+1?", "response": "1+1=2"}),
        json!({"id": "a", "prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3", ""]}),
        json!({"id": 7, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "é ⏎ 𝄞"}]}),
        json!({"id": [1, {"b": null}], "input_ids": [1008, 1014, 306, 1015]}),
        json!({"id": 1e-60, "prompt": 3, "response": ""}),
        json!({"prompt": "Which?", "responses": ["short", long], "id": "</script><img onerror=alert(1)>"}),
        json!({"prompt": "Which?", "response": long}),
        json!({"messages": []}),
        json!({"input_ids": [1_000_000]}),
    ];
    requests.extend((0..20).map(|n| {
        json!({"id": n, "prompt": format!("What is {n}+1?"), "responses": [format!("{n}"), format!("{}", n + 1)]})
    }));
    let mut texts: Vec<String> = requests.iter().map(Value::to_string).collect();
    texts.push(r#"{"id":123456789012345678901234567890,"prompt":"a","response":"b"}"#.to_owned());
    texts.push(r#"{"id":1,"prompt":"a","prompt":"b","response":"b"}"#.to_owned());
    texts
}

/// Returns the path of a file with this text, in a folder that lives as long as the first value.
pub(crate) fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    (dir, path)
}
