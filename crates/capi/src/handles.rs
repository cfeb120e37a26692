//! Handles: numbers that stand for engines and for results in C. None is used twice, so that a
//! wrong one, or one that was closed, is found and never dereferenced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kudos::Engine;

use crate::error::Failure;
use crate::requests::Waiting;

/// The objects behind handles.
struct Table {
    /// The next handle.
    next: u64,
    entries: BTreeMap<u64, Entry>,
}

/// The object behind a handle.
enum Entry {
    Engine(Arc<Engine>),
    /// A result; `None` while a thread uses it.
    Result(Option<Waiting>),
}

static TABLE: Mutex<Table> = Mutex::new(Table { next: 1, entries: BTreeMap::new() });

impl Table {
    fn add(&mut self, entry: Entry) -> u64 {
        let handle = self.next;
        self.next += 1;
        self.entries.insert(handle, entry);
        handle
    }

    /// Makes the failure of a handle that is not one of a `wanted` object.
    fn wrong(&self, handle: u64, wanted: &str) -> Failure {
        let message = match self.entries.get(&handle) {
            Some(Entry::Engine(_)) => format!("handle {handle} is an engine, expected {wanted}"),
            Some(Entry::Result(Some(_))) => format!("handle {handle} is a result, expected {wanted}"),
            Some(Entry::Result(None)) => format!("handle {handle} is a result that another thread uses"),
            None if (1..self.next).contains(&handle) => {
                format!("handle {handle} is closed, expected {wanted}")
            }
            None => format!("there is no handle {handle}, expected {wanted}"),
        };
        let hint = "engines come from `kudos_open` until `kudos_close`, results from `kudos_submit` until they are taken";
        Failure::argument(message, hint)
    }
}

fn table() -> MutexGuard<'static, Table> {
    // Nothing panics while the lock is held and the table is half changed.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds an engine and returns its handle.
pub(crate) fn add_engine(engine: Engine) -> u64 {
    table().add(Entry::Engine(Arc::new(engine)))
}

/// Returns the engine of a handle. It stays open for the call also if another thread closes it.
pub(crate) fn engine(handle: u64) -> Result<Arc<Engine>, Failure> {
    let table = table();
    match table.entries.get(&handle) {
        Some(Entry::Engine(engine)) => Ok(Arc::clone(engine)),
        _ => Err(table.wrong(handle, "an engine")),
    }
}

/// Removes an engine, whose handle is closed from here on.
pub(crate) fn remove_engine(handle: u64) -> Result<Arc<Engine>, Failure> {
    let mut table = table();
    match table.entries.remove(&handle) {
        Some(Entry::Engine(engine)) => Ok(engine),
        other => {
            if let Some(entry) = other {
                table.entries.insert(handle, entry);
            }
            Err(table.wrong(handle, "an engine"))
        }
    }
}

/// Adds a result and returns its handle.
pub(crate) fn add_result(waiting: Waiting) -> u64 {
    table().add(Entry::Result(Some(waiting)))
}

/// A result that this thread uses. Its handle is closed when this is dropped, unless the result was
/// put back.
pub(crate) struct InUse(u64);

/// Takes a result for the use of this thread.
pub(crate) fn take_result(handle: u64) -> Result<(Waiting, InUse), Failure> {
    let mut table = table();
    let waiting = match table.entries.get_mut(&handle) {
        Some(Entry::Result(waiting)) => waiting.take(),
        _ => None,
    };
    waiting.map(|waiting| (waiting, InUse(handle))).ok_or_else(|| table.wrong(handle, "a result"))
}

impl InUse {
    /// Puts the result back under its handle.
    pub(crate) fn put_back(self, waiting: Waiting) {
        if let Some(Entry::Result(slot)) = table().entries.get_mut(&self.0) {
            *slot = Some(waiting);
        }
        std::mem::forget(self);
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        // The thread that uses a result has taken it out: nothing is dropped under the lock.
        table().entries.remove(&self.0);
    }
}
