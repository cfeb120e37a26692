//! The requests of `bench serve-like --url` over HTTP: a connection each, for as many at a time as
//! there are connections. What the server has computed is read from its metrics.
//!
//! In an open loop a request that finds no free connection is sent late; its latency counts from
//! when it was due all the same.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use ureq::Agent;

use crate::load::{Outcome, Sample};
use crate::requests::Requests;
use kudos::Stats;

/// Tokens of each list that is sent where the capacity is measured.
const LIST_TOKENS: usize = 1 << 14;

/// Lists under way at a time, so that the server is never without one.
const LISTS: usize = 2;

/// Time for which the capacity is measured, in seconds.
const CAPACITY_SECONDS: f64 = 3.0;

/// A server that is measured.
#[derive(Debug)]
pub(super) struct Server {
    url: String,
    agent: Agent,
    connections: usize,
}

impl Server {
    /// Takes the address of a server, such as `http://127.0.0.1:8000`.
    pub(super) fn new(url: &str, connections: usize) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections);
        Self { url: url.trim_end_matches('/').to_owned(), agent: config.build().into(), connections }
    }

    /// Returns the name of the model and the device.
    pub(super) fn description(&self) -> anyhow::Result<(String, String)> {
        let metrics = self.metrics()?;
        let label = |name: &str| {
            let start = metrics.find(&format!("{name}=\""))? + name.len() + 2;
            Some(metrics[start..].split('"').next()?.to_owned())
        };
        let missing = || format!("{} is no server of kudos: its metrics name no model", self.url);
        Ok((label("model").with_context(missing)?, label("device").with_context(missing)?))
    }

    fn metrics(&self) -> anyhow::Result<String> {
        let get = || -> Result<String, ureq::Error> {
            self.agent.get(format!("{}/metrics", self.url)).call()?.body_mut().read_to_string()
        };
        get().with_context(|| format!("cannot read the metrics of {}", self.url))
    }

    /// Returns what the server has computed.
    pub(super) fn stats(&self) -> anyhow::Result<Stats> {
        let metrics = self.metrics()?;
        let counter = |name: &str| -> anyhow::Result<u64> {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("_total "));
            line.with_context(|| format!("the server has no metric {name}"))?.parse().context("a count")
        };
        let mut stats = Stats::default();
        stats.passes = counter("kudos_passes")?;
        stats.sequences = counter("kudos_sequences")?;
        stats.tokens = counter("kudos_tokens")?;
        stats.unique_tokens = counter("kudos_unique_tokens")?;
        Ok(stats)
    }

    fn post(&self, body: &Value) -> Result<(u16, String), ureq::Error> {
        let mut answer = self
            .agent
            .post(format!("{}/v1/rewards", self.url))
            .content_type("application/json")
            .send(body.to_string())?;
        let status = answer.status().as_u16();
        Ok((status, answer.body_mut().read_to_string()?))
    }

    /// Requests a second that the server completes from lists that are never used up.
    pub(super) fn capacity(&self, requests: &Requests) -> anyhow::Result<f64> {
        let (mut list, mut tokens) = (Vec::new(), 0);
        while tokens < LIST_TOKENS {
            let ids = requests.request(list.len());
            tokens += ids.len();
            list.push(json!({"input_ids": ids}));
        }
        let (count, list) = (list.len(), Value::Array(list));
        let send = || -> anyhow::Result<()> {
            match self.post(&list)? {
                (200, _) => Ok(()),
                (status, text) => bail!("the server answered a list with status {status}: {text}"),
            }
        };
        send()?;
        let (start, lists) = (Instant::now(), AtomicUsize::new(0));
        thread::scope(|scope| -> anyhow::Result<()> {
            let work = || -> anyhow::Result<()> {
                while start.elapsed().as_secs_f64() < CAPACITY_SECONDS {
                    send()?;
                    lists.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            };
            let threads: Vec<_> = (0..LISTS).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("the thread does not panic"))
        })?;
        Ok((lists.into_inner() * count) as f64 / start.elapsed().as_secs_f64())
    }

    /// Sends every request when it is due.
    pub(super) fn open_loop(&self, requests: &Requests, due: &[f64]) -> Vec<Sample> {
        let (next, start) = (AtomicUsize::new(0), Instant::now());
        self.on_connections(self.connections, || {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let due = *due.get(index)?;
            let ids = requests.request(index);
            thread::sleep((start + Duration::from_secs_f64(due)).saturating_duration_since(Instant::now()));
            Some((index, self.sample(&ids, due, start)))
        })
    }

    /// Sends one request after the other from each of `clients` clients until the time is up.
    pub(super) fn closed_loop(&self, requests: &Requests, clients: usize, time: Duration) -> Vec<Sample> {
        let (next, start) = (AtomicUsize::new(0), Instant::now());
        self.on_connections(clients, || {
            if start.elapsed() >= time {
                return None;
            }
            let index = next.fetch_add(1, Ordering::Relaxed);
            let ids = requests.request(index);
            let due = start.elapsed().as_secs_f64();
            Some((index, self.sample(&ids, due, start)))
        })
    }

    fn sample(&self, ids: &[u32], due: f64, start: Instant) -> Sample {
        let submitted = start.elapsed().as_secs_f64();
        let outcome = match self.post(&json!({"input_ids": ids})) {
            Ok((200, _)) => Outcome::Answered,
            Ok((429, _)) => Outcome::Refused,
            Ok(_) | Err(_) => Outcome::Failed,
        };
        Sample { tokens: ids.len(), due, submitted, completed: start.elapsed().as_secs_f64(), outcome }
    }

    /// Runs `request` on threads until it returns nothing; samples are in the requests' order.
    fn on_connections(
        &self,
        threads: usize,
        request: impl Fn() -> Option<(usize, Sample)> + Sync,
    ) -> Vec<Sample> {
        let request = &request;
        let mut samples = thread::scope(|scope| {
            let work = || std::iter::from_fn(request).collect::<Vec<_>>();
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let join =
                |thread: thread::ScopedJoinHandle<'_, Vec<_>>| thread.join().expect("it does not panic");
            threads.into_iter().flat_map(join).collect::<Vec<(usize, Sample)>>()
        });
        samples.sort_unstable_by_key(|&(index, _)| index);
        samples.into_iter().map(|(_, sample)| sample).collect()
    }
}
