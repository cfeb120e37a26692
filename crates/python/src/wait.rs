//! Waiting without the GIL, in slices: between two of them Python's signal handlers run, so that
//! Ctrl-C interrupts.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// Longest time without the signal handlers: short for a person, long for a switch of threads.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Returns a waker of this thread, which parks while nothing is ready.
pub(crate) fn thread_waker() -> Waker {
    Waker::from(Arc::new(Unpark(thread::current())))
}

/// Parks until the thread is woken or the deadline has passed, and returns whether it has not.
pub(crate) fn park_until(deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return false;
    }
    thread::park_timeout(left);
    true
}

/// Receives a value from a thread. An exception of a signal handler ends the wait.
pub(crate) fn receive<T: Send>(py: Python<'_>, mut values: Receiver<T>) -> PyResult<T> {
    loop {
        let (receiver, value) = py.detach(move || {
            let value = values.recv_timeout(SLICE);
            (values, value)
        });
        values = receiver;
        match value {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("kudos has a bug: a thread of it panicked"));
            }
        }
    }
}
