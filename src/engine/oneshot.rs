//! A channel for one value: a [`Receiver`] that can be awaited, waited for, or dropped to cancel.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::lock::lock;

/// The sending end. A value that is never sent leaves the receiver waiting: its owner sends one on
/// drop.
#[derive(Debug)]
pub(super) struct Sender<T>(Arc<Slot<T>>);

/// The receiving end.
#[derive(Debug)]
pub(super) struct Receiver<T>(Arc<Slot<T>>);

#[derive(Debug)]
struct Slot<T> {
    state: Mutex<State<T>>,
    sent: Condvar,
}

#[derive(Debug)]
enum State<T> {
    Empty(Option<Waker>),
    Full(T),
    /// The value was taken, or the receiver was dropped.
    Closed,
}

/// Makes the two ends.
pub(super) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Slot { state: Mutex::new(State::Empty(None)), sent: Condvar::new() });
    (Sender(Arc::clone(&slot)), Receiver(slot))
}

impl<T> Sender<T> {
    /// Sends the first value and wakes the receiver; has no effect after that.
    pub(super) fn send(&self, value: T) {
        let mut state = lock(&self.0.state);
        let State::Empty(waker) = &mut *state else { return };
        let waker = waker.take();
        *state = State::Full(value);
        drop(state);
        self.0.sent.notify_all();
        // A waker runs foreign code: no lock is held.
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Returns whether the receiver was dropped or has its value.
    pub(super) fn is_closed(&self) -> bool {
        matches!(*lock(&self.0.state), State::Closed)
    }
}

impl<T> State<T> {
    /// Takes the value, if it is there; `Some(None)` where it was taken before.
    fn take(&mut self) -> Option<Option<T>> {
        match std::mem::replace(self, Self::Closed) {
            Self::Full(value) => Some(Some(value)),
            Self::Closed => Some(None),
            empty @ Self::Empty(_) => {
                *self = empty;
                None
            }
        }
    }
}

impl<T> Receiver<T> {
    /// Blocks until the value is there; `None` where it was taken before.
    pub(super) fn wait(&self) -> Option<T> {
        let mut state = lock(&self.0.state);
        loop {
            if let Some(value) = state.take() {
                return value;
            }
            state = self.0.sent.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Resolves to the value; to `None` where it was taken before.
impl<T> Future for Receiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = lock(&self.0.state);
        if let Some(value) = state.take() {
            return Poll::Ready(value);
        }
        *state = State::Empty(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let before = std::mem::replace(&mut *lock(&self.0.state), State::Closed);
        // A value or a waker may run foreign code when it is dropped: no lock is held.
        drop(before);
    }
}
