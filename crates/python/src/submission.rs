//! [`Submission`]: inputs that an asyncio task awaits.
//!
//! The engine's futures need no runtime, only a waker. This one has the event loop call
//! `Submission._poll` by `call_soon_threadsafe`, from a thread of its own: an engine's thread that
//! took the GIL would wait for Python's threads.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use kudos::{Engine, Input, PromptTokens, Result};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::scoring::{Form, Rewards, Scoring, prepare};

/// The thread that wakes event loops, started on demand. It ends when no engine and no submission
/// is left that may wake one.
#[derive(Debug, Default)]
pub(crate) struct Notifier(OnceLock<Sender<Arc<Bell>>>);

impl Notifier {
    pub(crate) fn sender(&self) -> Sender<Arc<Bell>> {
        self.0.get_or_init(start).clone()
    }
}

fn start() -> Sender<Arc<Bell>> {
    let (sender, bells) = channel::<Arc<Bell>>();
    thread::spawn(move || {
        while let Ok(first) = bells.recv() {
            // `None` while the interpreter shuts down, when no task waits.
            let _ = Python::try_attach(|py| {
                std::iter::once(first).chain(bells.try_iter()).for_each(|bell| bell.ring(py));
            });
        }
    });
    sender
}

/// Wakes the event loop of a submission.
#[derive(Debug)]
pub(crate) struct Bell {
    submission: Py<Submission>,
    event_loop: Py<PyAny>,
    notifier: Sender<Arc<Self>>,
}

impl Bell {
    fn ring(&self, py: Python<'_>) {
        let poll = self.submission.getattr(py, "_poll");
        // A loop that is closed has no task that waits.
        let _ = poll.and_then(|poll| self.event_loop.call_method1(py, "call_soon_threadsafe", (poll,)));
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let notifier = self.notifier.clone();
        // The thread ends with its last sender only.
        let _ = notifier.send(self);
    }
}

/// Inputs on their way through the engine, for one task. Dropping it, or `cancel`, takes back what
/// is not computed.
#[pyclass(frozen, module = "kudos._kudos")]
#[derive(Debug)]
pub(crate) struct Submission {
    engine: Arc<Engine>,
    notifier: Sender<Arc<Bell>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rewards: Rewards,
    /// Sequences with their rows, before `prepare`.
    inputs: Vec<(usize, Result<Input>)>,
    /// Sequences before `start`.
    prepared: Vec<(usize, Result<PromptTokens>)>,
    /// Sequences that are not scored yet, in order.
    submitted: VecDeque<(usize, Scoring)>,
    /// The waker, and the asyncio future that is resolved at the end.
    waiting: Option<(Waker, Py<PyAny>)>,
}

impl std::fmt::Debug for Scoring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Entering(_) => "Entering",
            Self::Queued(_) => "Queued",
        })
    }
}

impl Submission {
    pub(crate) fn new(
        engine: Arc<Engine>,
        notifier: Sender<Arc<Bell>>,
        form: Form,
        requests: impl Iterator<Item = PyResult<Result<kudos::internals::request::Request>>>,
    ) -> PyResult<Self> {
        let (mut rewards, mut inputs) = (Rewards::new(form), Vec::new());
        for request in requests {
            let of_row = rewards.row(request?);
            let row = rewards.newest();
            inputs.extend(of_row.into_iter().map(|input| (row, input)));
        }
        let state =
            State { rewards, inputs, prepared: Vec::new(), submitted: VecDeque::new(), waiting: None };
        Ok(Self { engine, notifier, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No Python code runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Submission {
    /// Renders and tokenizes, without the GIL, in whatever thread calls this.
    fn prepare(&self, py: Python<'_>) {
        let inputs = std::mem::take(&mut self.state().inputs);
        let prepared = py.detach(|| {
            let (rows, inputs): (Vec<usize>, Vec<_>) = inputs.into_iter().unzip();
            rows.into_iter().zip(prepare(&self.engine, inputs)).collect()
        });
        self.state().prepared = prepared;
    }

    /// Submits the sequences. `future` is resolved on the loop's thread when all are scored.
    fn start(slf: Py<Self>, py: Python<'_>, event_loop: Py<PyAny>, future: Py<PyAny>) -> PyResult<()> {
        let this = slf.get();
        let bell = Bell { submission: slf.clone_ref(py), event_loop, notifier: this.notifier.clone() };
        let mut state = this.state();
        let (rows, prepared): (Vec<usize>, Vec<_>) = std::mem::take(&mut state.prepared).into_iter().unzip();
        let submitted = this.engine.submit_group(prepared).into_iter().map(Scoring::Entering);
        state.submitted = rows.into_iter().zip(submitted).collect();
        state.waiting = Some((Waker::from(Arc::new(bell)), future));
        drop(state);
        this._poll(py)
    }

    /// Takes the scores that are there.
    fn _poll(&self, py: Python<'_>) -> PyResult<()> {
        let mut state = self.state();
        let state_ref = &mut *state;
        let Some((waker, _)) = &state_ref.waiting else { return Ok(()) };
        let mut context = Context::from_waker(waker);
        while let Some((row, scoring)) = state_ref.submitted.front_mut() {
            match Pin::new(scoring).poll(&mut context) {
                Poll::Ready(score) => state_ref.rewards.add(*row, score),
                Poll::Pending => return Ok(()),
            }
            state_ref.submitted.pop_front();
        }
        let waiting = state_ref.waiting.take();
        drop(state);
        if let Some((_, future)) = waiting
            && !future.call_method0(py, "done")?.extract::<bool>(py)?
        {
            future.call_method1(py, "set_result", (py.None(),))?;
        }
        Ok(())
    }

    /// Takes back what is not computed.
    fn cancel(&self) {
        let mut state = self.state();
        let dropped = (std::mem::take(&mut state.submitted), state.waiting.take());
        drop(state);
        drop(dropped);
    }

    /// Returns the rewards as `Engine.score` does, after the future has resolved.
    #[pyo3(signature = (failures=None))]
    fn result(&self, py: Python<'_>, failures: Option<&Bound<'_, PyList>>) -> PyResult<Py<PyAny>> {
        let mut state = self.state();
        if !state.submitted.is_empty() || state.waiting.is_some() {
            return Err(PyRuntimeError::new_err("the submission is not complete"));
        }
        let rewards = std::mem::replace(&mut state.rewards, Rewards::new(Form::Each));
        drop(state);
        rewards.check(py, failures.is_some())?;
        rewards.report(py, failures)?;
        rewards.object(py)
    }
}
