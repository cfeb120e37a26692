//! Locking that survives a panic.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, even when a thread panicked while it held the lock: the data that the library
/// keeps behind mutexes is consistent after each statement, and the panic itself is reported where
/// the thread is joined.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
