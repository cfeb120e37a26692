//! Scoring lists of any length: conversion, preparation and submission by groups, in bounded memory.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::thread;
use std::time::Instant;

use kudos::internals::request::{self, Request};
use kudos::internals::results::is_of_sequence;
use kudos::{Engine, Error, Input, Pending, PromptTokens, Result, Score, Submit};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyList};

use crate::arrow::RewardTable;
use crate::errors::exception;
use crate::wait::{SLICE, park_until, thread_waker};

/// Rows that are converted and prepared at a time.
const ROWS: usize = 64;

/// Sequences for which a thread of preparation is worth its start.
const SEQUENCES_PER_THREAD: usize = 8;

/// Limit on threads of preparation.
const THREADS_MAX: usize = 8;

/// A sequence that was submitted: a future of its score.
pub(crate) enum Scoring {
    /// Waits for a place in the queue.
    Entering(Submit),
    /// Waits for its score.
    Queued(Pending),
}

impl Future for Scoring {
    type Output = Result<Score>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Score>> {
        loop {
            match &mut *self {
                Self::Entering(submit) => match Pin::new(submit).poll(context) {
                    Poll::Ready(Ok(pending)) => *self = Self::Queued(pending),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                },
                Self::Queued(pending) => return Pin::new(pending).poll(context),
            }
        }
    }
}

/// Whether the input was one, or a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    One,
    Each,
}

/// Rows of the input, and their rewards as they come.
#[derive(Debug)]
pub(crate) struct Rewards {
    form: Form,
    /// For each row, the number of its responses, or `None` where it has one reward.
    counts: Vec<Option<usize>>,
    /// The rewards of all rows, NaN where there is an error.
    rewards: Vec<f32>,
    failures: Vec<(Option<usize>, Error)>,
}

impl Rewards {
    pub(crate) fn new(form: Form) -> Self {
        Self { form, counts: Vec::new(), rewards: Vec::new(), failures: Vec::new() }
    }

    /// Adds a row, and returns its sequences.
    pub(crate) fn row(&mut self, request: Result<Request>) -> Vec<Result<Input>> {
        let (count, inputs) = match request {
            Ok(request) => {
                let count = match request.form() {
                    request::Form::One => None,
                    form => Some(form.sequences()),
                };
                (count, request.into_inputs().map(|input| Ok(input.into())).collect())
            }
            Err(error) => (None, vec![Err(error)]),
        };
        self.counts.push(count);
        inputs
    }

    /// Returns the index of the newest row.
    pub(crate) fn newest(&self) -> usize {
        self.counts.len() - 1
    }

    /// Number of sequences that have their reward, or its error.
    fn done(&self) -> usize {
        self.rewards.len()
    }

    /// Adds the result of the next sequence, which is of `row`.
    pub(crate) fn add(&mut self, row: usize, score: Result<Score>) {
        let position = match self.form {
            Form::One => self.counts[row].map(|_| self.rewards.len()),
            Form::Each => Some(row),
        };
        match score {
            Ok(score) => self.rewards.push(score.reward),
            Err(error) => {
                self.rewards.push(f32::NAN);
                self.failures.push((position, error));
            }
        }
    }

    /// Fails with the first error, unless errors are collected. An error of the engine is never
    /// collected.
    pub(crate) fn check(&self, py: Python<'_>, collected: bool) -> PyResult<()> {
        match self.failures.iter().find(|(_, error)| !collected || !is_of_sequence(error)) {
            Some((index, error)) => Err(exception(py, error, *index)),
            None => Ok(()),
        }
    }

    /// Appends the exceptions of rows to `failures`.
    pub(crate) fn report(&self, py: Python<'_>, failures: Option<&Bound<'_, PyList>>) -> PyResult<()> {
        let Some(failures) = failures else { return Ok(()) };
        self.failures.iter().try_for_each(|(index, error)| failures.append(exception(py, error, *index)))
    }

    /// Returns the rewards as a table.
    pub(crate) fn table(&self) -> PyResult<RewardTable> {
        RewardTable::new(&self.counts, &self.rewards)
    }

    /// Returns the rewards as a float, an array, or a list of those.
    pub(crate) fn object(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if self.form == Form::Each && self.counts.iter().all(Option::is_none) {
            return array(py, &self.rewards);
        }
        let (list, mut rest) = (PyList::empty(py), &self.rewards[..]);
        for count in &self.counts {
            let (of_row, after) = rest.split_at(count.unwrap_or(1));
            rest = after;
            let value = match count {
                Some(_) => array(py, of_row)?,
                None => f64::from(of_row[0]).into_pyobject(py)?.into_any().unbind(),
            };
            if self.form == Form::One {
                return Ok(value);
            }
            list.append(value)?;
        }
        Ok(list.into_any().unbind())
    }
}

/// Returns a float32 array.
fn array(py: Python<'_>, values: &[f32]) -> PyResult<Py<PyAny>> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    // A bytearray can be written to, and so can the array on it.
    let array = py.import("numpy")?.call_method1("frombuffer", (PyByteArray::new(py, &bytes), "float32"))?;
    Ok(array.unbind())
}

/// Renders and tokenizes inputs, on several threads where that is worth it.
pub(crate) fn prepare(engine: &Engine, inputs: Vec<Result<Input>>) -> Vec<Result<PromptTokens>> {
    let one = |input: Result<Input>| input.and_then(|input| engine.prepare(input));
    let threads = (inputs.len() / SEQUENCES_PER_THREAD).clamp(1, THREADS_MAX);
    // The number of cores is read from files, which would take longer than the rest of a call.
    static CORES: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));
    let threads = if threads == 1 { 1 } else { threads.min(*CORES) };
    if threads == 1 {
        return inputs.into_iter().map(one).collect();
    }
    let size = inputs.len().div_ceil(threads);
    let mut inputs = inputs.into_iter();
    let parts: Vec<Vec<_>> = (0..threads).map(|_| inputs.by_ref().take(size).collect()).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = parts
            .into_iter()
            .map(|part| scope.spawn(move || part.into_iter().map(one).collect::<Vec<_>>()))
            .collect();
        // A panic of a thread is one of this thread.
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// The sequences of one call that are in the queue.
struct InFlight<'a> {
    engine: &'a Engine,
    rewards: Rewards,
    /// Prepared sequences that wait for their group to be complete, with their rows.
    group: Vec<(usize, Result<PromptTokens>)>,
    group_tokens: usize,
    /// Submitted sequences in order: row, tokens, and the future.
    submitted: VecDeque<(usize, usize, Scoring)>,
    tokens: usize,
}

impl InFlight<'_> {
    fn submit(&mut self) {
        let (rows, group): (Vec<usize>, Vec<_>) = self.group.drain(..).unzip();
        let tokens: Vec<usize> =
            group.iter().map(|tokens| tokens.as_ref().map_or(1, |one| one.ids.len())).collect();
        let submitted = self.engine.submit_group(group).into_iter().map(Scoring::Entering);
        self.tokens += tokens.iter().sum::<usize>();
        self.submitted.extend(
            rows.into_iter().zip(tokens).zip(submitted).map(|((row, tokens), one)| (row, tokens, one)),
        );
        self.group_tokens = 0;
    }

    /// Takes results until at most `limit` tokens are in flight, and returns whether that was reached
    /// within a slice of time.
    fn advance(&mut self, limit: usize) -> bool {
        let deadline = Instant::now() + SLICE;
        let waker = thread_waker();
        while self.tokens > limit {
            let Some((row, tokens, scoring)) = self.submitted.front_mut() else { break };
            match Pin::new(scoring).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(score) => {
                    self.tokens -= *tokens;
                    let row = *row;
                    self.submitted.pop_front();
                    self.rewards.add(row, score);
                }
                Poll::Pending => {
                    if !park_until(deadline) {
                        return false;
                    }
                }
            }
        }
        true
    }
}

/// Options of a call.
pub(crate) struct Call<'a, 'py> {
    pub(crate) form: Form,
    /// Takes the exceptions of rows, whose rewards are then NaN; without it the first is raised.
    pub(crate) failures: Option<&'a Bound<'py, PyList>>,
    /// Called with the number of sequences that are done.
    pub(crate) progress: Option<&'a Bound<'py, PyAny>>,
}

/// Scores requests in their order.
pub(crate) fn score<'py>(
    py: Python<'py>,
    engine: &Engine,
    call: &Call<'_, 'py>,
    requests: impl Iterator<Item = PyResult<Result<Request>>>,
) -> PyResult<Rewards> {
    let lookahead = engine.plan().lookahead_tokens();
    let mut flight = InFlight {
        engine,
        rewards: Rewards::new(call.form),
        group: Vec::new(),
        group_tokens: 0,
        submitted: VecDeque::new(),
        tokens: 0,
    };
    let between = |flight: &InFlight<'_>| -> PyResult<()> {
        py.check_signals()?;
        flight.rewards.check(py, call.failures.is_some())?;
        call.progress.map_or(Ok(()), |progress| progress.call1((flight.rewards.done(),)).map(drop))
    };
    let mut requests = requests.peekable();
    while requests.peek().is_some() {
        let (mut rows, mut inputs) = (Vec::new(), Vec::new());
        for request in requests.by_ref().take(ROWS) {
            let of_row = flight.rewards.row(request?);
            rows.extend(of_row.iter().map(|_| flight.rewards.newest()));
            inputs.extend(of_row);
        }
        let last = requests.peek().is_none();
        let reached = py.detach(|| {
            let prepared = prepare(engine, inputs);
            flight.group_tokens += prepared.iter().flatten().map(|tokens| tokens.ids.len()).sum::<usize>();
            flight.group.extend(rows.into_iter().zip(prepared));
            if flight.group_tokens >= lookahead || last {
                flight.submit();
            }
            flight.advance(if last { 0 } else { lookahead })
        });
        if call.failures.is_none()
            && let Some((row, Err(error))) = flight.group.iter().find(|(_, tokens)| tokens.is_err())
        {
            let index = (call.form == Form::Each).then_some(*row);
            return Err(exception(py, error, index));
        }
        if reached && !last {
            between(&flight)?;
            continue;
        }
        if !reached {
            between(&flight)?;
        }
        while !py.detach(|| flight.advance(if last { 0 } else { lookahead })) {
            between(&flight)?;
        }
    }
    flight.rewards.check(py, call.failures.is_some())?;
    flight.rewards.report(py, call.failures)?;
    Ok(flight.rewards)
}
