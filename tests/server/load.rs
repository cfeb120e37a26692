//! How the server batches, by what the engine has computed: counts, which no machine's speed changes.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::process::Server;

const GROUPS: usize = 16;
const RESPONSES: usize = 8;

fn prompt(group: usize) -> String {
    format!("What is {group}+{group}? {}", format!("It is number {group}. ").repeat(12))
}

fn response(index: usize) -> String {
    format!("It is {index}, as {index} is what comes.")
}

/// Scores one response to each group's prompt after the other, each by a client of its own, and
/// returns the tokens that were computed, and the rewards.
fn interleaved(server: &Server) -> (f64, Vec<Vec<f64>>) {
    let before = server.metric("kudos_unique_tokens_total");
    let mut rewards = vec![vec![0.0; RESPONSES]; GROUPS];
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for index in 0..RESPONSES {
            for group in 0..GROUPS {
                let body = json!({"prompt": prompt(group), "response": response(index)}).to_string();
                clients.push((group, index, scope.spawn(move || server.post("/v1/rewards", &body).json())));
            }
        }
        for (group, index, client) in clients {
            rewards[group][index] = client.join().unwrap()["reward"].as_f64().unwrap();
        }
    });
    (server.metric("kudos_unique_tokens_total") - before, rewards)
}

#[test]
fn interleaved_groups_share_their_prompts() {
    // Passes that hold two groups of the sixteen.
    let server = Server::start(&["--batch-tokens", "512", "--gather-ms", "300"]);
    server.wait_until("the server is ready", |server| server.get("/ready").status == 200);
    let before = server.metric("kudos_unique_tokens_total");
    let grouped: Vec<Vec<f64>> = (0..GROUPS)
        .map(|group| {
            let body = json!({"prompt": prompt(group), "responses": (0..RESPONSES).map(response).collect::<Vec<_>>()});
            let answer = server.post("/v1/rewards", &body.to_string()).json();
            answer["rewards"].as_array().unwrap().iter().map(|reward| reward.as_f64().unwrap()).collect()
        })
        .collect();
    let at_best = server.metric("kudos_unique_tokens_total") - before;
    let (tokens, rewards) = interleaved(&server);
    assert_eq!(rewards, grouped);
    // A pass that is full ends within a group, whose prompt is then computed twice.
    assert!(tokens < 1.25 * at_best, "{tokens} tokens were computed, {at_best} at best");
}

#[test]
fn a_burst_on_an_idle_server_is_gathered() {
    let count = |options: &[&str]| -> f64 {
        let server = Server::start(options);
        server.wait_until("the server is ready", |server| server.get("/ready").status == 200);
        let before = server.metric("kudos_passes_total");
        thread::scope(|scope| {
            for index in 0..RESPONSES {
                let server = &server;
                let body = json!({"prompt": prompt(1), "response": response(index)}).to_string();
                scope.spawn(move || assert_eq!(server.post("/v1/rewards", &body).status, 200));
            }
        });
        server.metric("kudos_passes_total") - before
    };
    assert_eq!(count(&["--gather-ms", "500"]), 1.0);
}

#[test]
fn a_load_beyond_the_capacity_is_refused_not_failed() {
    // As many requests as come, of more clients than the queue holds, for a while.
    const CLIENTS: usize = 48;
    let server = Server::start(&["--queue-tokens", "800", "--batch-tokens", "256"]);
    let time = Duration::from_secs(3);
    let expected =
        server.post("/v1/rewards", &json!({"prompt": "a", "response": "b ".repeat(100)}).to_string()).json();
    let start = Instant::now();
    let (mut answered, mut refused) = (0, 0);
    thread::scope(|scope| {
        let client = || {
            let (mut answered, mut refused) = (0, 0);
            let body = json!({"prompt": "a", "response": "b ".repeat(100)}).to_string();
            while start.elapsed() < time {
                let answer = server.post("/v1/rewards", &body);
                match answer.status {
                    200 => {
                        assert_eq!(answer.json(), expected);
                        answered += 1;
                    }
                    429 => refused += 1,
                    status => panic!("{status}: {}", answer.text()),
                }
            }
            (answered, refused)
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        for client in clients {
            let (some, others) = client.join().unwrap();
            answered += some;
            refused += others;
        }
    });
    assert!(answered > 100 && refused > 0, "{answered} answered, {refused} refused");
    let of_status = |status: u16| {
        server.metric(&format!("kudos_requests_total{{route=\"/v1/rewards\",status=\"{status}\"}}"))
    };
    assert_eq!((of_status(200) as usize, of_status(429) as usize), (answered + 1, refused));
    server.wait_until("nothing waits", |server| server.metric("kudos_waiting_sequences") == 0.0);
}
