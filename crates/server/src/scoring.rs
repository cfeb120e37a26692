//! Scoring a request's items: rendering and tokenizing on threads of their own, waiting for a pass,
//! and the results.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use futures_util::future::join_all;
use kudos::internals::request::{self, Form};
use kudos::internals::results::{Key, fields, is_of_sequence};
use kudos::{Engine, Input, PromptTokens, Result, Score};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::app::App;
use crate::failure::Failure;
use crate::scheduler::Ticket;

/// Items that a thread prepares before it lets another request's go first.
const ITEMS_OF_A_TURN: usize = 16;

/// The header with the milliseconds that a request may take.
const TIMEOUT_HEADER: &str = "x-timeout-ms";

/// An item of a request as sequences to score, or the errors for which they cannot be.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) key: Option<Key>,
    pub(crate) form: Form,
    pub(crate) sequences: Vec<Result<PromptTokens>>,
}

/// The scores of an item.
#[derive(Debug)]
pub(crate) struct Scored {
    pub(crate) key: Option<Key>,
    pub(crate) form: Form,
    pub(crate) scores: Vec<Result<Score>>,
}

impl Prepared {
    /// Prepares the JSON text of one object.
    pub(crate) fn of_object(engine: &Engine, text: &[u8]) -> Self {
        let parsed = request::parse(text);
        let (form, sequences) = match parsed.request {
            Err(error) => (Form::One, vec![Err(error)]),
            Ok(request) => {
                let prepare = |input| engine.prepare(Input::from(input));
                (request.form(), request.into_inputs().map(prepare).collect())
            }
        };
        Self { key: parsed.id.map(Key::Id), form, sequences }
    }

    /// Makes an item of one sequence.
    pub(crate) fn one(tokens: Result<PromptTokens>) -> Self {
        Self { key: None, form: Form::One, sequences: vec![tokens] }
    }
}

impl Scored {
    /// Returns the fields of the item's result, as the command writes them.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        fields(self.form, &self.scores)
    }
}

/// Threads that render and tokenize: at most as many as the machine has CPUs, so that preparing
/// many requests delays none by more than its part.
#[derive(Clone, Debug)]
pub(crate) struct Workers(Arc<Semaphore>);

impl Workers {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(thread::available_parallelism().map_or(1, NonZeroUsize::get))))
    }

    /// Runs `work` on a thread that may block.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let turn = Arc::clone(&self.0).acquire_owned().await.expect("the semaphore is never closed");
        let worked = spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        worked.await.expect("kudos has a bug: a thread that prepares requests panicked")
    }

    /// Maps `items`, some at a time, on several threads; in order. Stops when the future is
    /// dropped.
    pub(crate) async fn map<T, U>(
        &self,
        items: Vec<T>,
        map: impl Fn(T) -> U + Send + Sync + 'static,
    ) -> Vec<U>
    where
        T: Send + 'static,
        U: Send + 'static,
    {
        let map = Arc::new(map);
        let dropped = SetOnDrop(Arc::default());
        let mut items = items.into_iter();
        let mut turns = Vec::new();
        loop {
            let some: Vec<T> = items.by_ref().take(ITEMS_OF_A_TURN).collect();
            if some.is_empty() {
                break;
            }
            let (map, dropped) = (Arc::clone(&map), Arc::clone(&dropped.0));
            turns.push(self.run(move || {
                let wanted = |_: &T| !dropped.load(Ordering::Relaxed);
                some.into_iter().take_while(wanted).map(|item| map(item)).collect::<Vec<U>>()
            }));
        }
        join_all(turns).await.into_iter().flatten().collect()
    }
}

/// Is set when this is dropped.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An item without its tokens, which wait for a pass.
struct Unscored {
    key: Option<Key>,
    form: Form,
    /// For each sequence whether it waits, or why not.
    sequences: Vec<Result<()>>,
}

/// Takes the tokens out of items.
fn apart(items: Vec<Prepared>) -> (Vec<Unscored>, Vec<PromptTokens>) {
    let mut tokens = Vec::new();
    let unscored = |Prepared { key, form, sequences }: Prepared| {
        let sequences = sequences.into_iter().map(|ready| ready.map(|ready| tokens.push(ready))).collect();
        Unscored { key, form, sequences }
    };
    (items.into_iter().map(unscored).collect(), tokens)
}

impl App {
    /// Scores the items of a request together, within its time.
    ///
    /// An item that cannot be scored has an error, and the others have their scores. A failure is
    /// one of the whole request.
    pub(crate) async fn score(&self, items: Vec<Prepared>) -> Result<Vec<Scored>, Failure> {
        let ticket = self.scheduler.request();
        let (forms, tokens) = apart(items);
        let pending = ticket.try_push(tokens).inspect_err(|_| {
            self.metrics.refused.inc();
        })?;
        let scores = join_all(pending.into_iter().map(|pending| pending.score())).await;
        self.scored(forms, scores)
    }

    /// Scores an item of a stream, after waiting for capacity.
    pub(crate) async fn score_line(&self, ticket: &Ticket, item: Prepared) -> Result<Scored, Failure> {
        let (forms, tokens) = apart(vec![item]);
        let pending = ticket.push(tokens).await;
        let scores = join_all(pending.into_iter().map(|pending| pending.score())).await;
        Ok(self.scored(forms, scores)?.remove(0))
    }

    /// Puts the scores into the items that they are of, and counts them.
    fn scored(&self, forms: Vec<Unscored>, scores: Vec<Result<Score>>) -> Result<Vec<Scored>, Failure> {
        // Such an error is no item's own: another try may succeed.
        if let Some(error) = scores.iter().find_map(|score| score.as_ref().err())
            && !is_of_sequence(error)
        {
            return Err(error.clone().into());
        }
        let mut scores = scores.into_iter();
        let mut next = || scores.next().expect("a score for each sequence");
        let item = |Unscored { key, form, sequences }| {
            let sequences: Vec<Result<()>> = sequences;
            let scores = sequences.into_iter().map(|prepared| prepared.and_then(|()| next())).collect();
            Scored { key, form, scores }
        };
        let items: Vec<Scored> = forms.into_iter().map(item).collect();
        items.iter().flat_map(|item| &item.scores).for_each(|score| self.metrics.count(score));
        Ok(items)
    }

    /// Runs a request within the time that it or the server allows.
    pub(crate) async fn within_time<T>(
        &self,
        headers: &HeaderMap,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let Some(time) = self.time(headers)? else { return work.await };
        tokio::time::timeout(time, work).await.unwrap_or_else(|_| {
            let message = format!("the request took longer than {} ms", time.as_millis());
            Err(Failure::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message))
        })
    }

    fn time(&self, headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
        let Some(given) = headers.get(TIMEOUT_HEADER) else { return Ok(self.options.timeout) };
        let milliseconds =
            given.to_str().ok().and_then(|given| given.trim().parse().ok()).filter(|&ms| ms > 0);
        let given = milliseconds.map(Duration::from_millis).ok_or_else(|| {
            Failure::invalid(format!("`{TIMEOUT_HEADER}` is {given:?}, expected milliseconds, 1 or more"))
        })?;
        Ok(Some(self.options.timeout.map_or(given, |limit| limit.min(given))))
    }
}

/// Returns the objects of a body: one, or those of a list, each with its own text.
pub(crate) fn objects(text: &[u8]) -> Result<(bool, Vec<&[u8]>), Failure> {
    let start = text.iter().position(|byte| !byte.is_ascii_whitespace());
    if start.is_none_or(|start| text[start] != b'[') {
        return Ok((false, vec![text]));
    }
    let all: Vec<&RawValue> = serde_json::from_slice(text)
        .map_err(|error| Failure::invalid(format!("the body is not JSON: {error}")))?;
    Ok((true, all.into_iter().map(|object| object.get().as_bytes()).collect()))
}
