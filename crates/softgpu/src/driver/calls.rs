//! Counts calls of the libraries' entry points, and the bytes of copies between host and device.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The counts since the last reset.
#[derive(Default)]
struct Calls {
    by_name: BTreeMap<&'static str, u64>,
    /// [in, out][pageable, pinned].
    copied: [[u64; 2]; 2],
    /// Contexts that were made.
    contexts: u64,
    /// Calls of communicators that do not block: NCCL starts a thread of the host for each.
    nccl_jobs: u64,
    /// The most launches that were queued behind a copy to pinned memory when it ran, which is when
    /// its caller waits for it at the latest.
    launches_behind_results: u64,
}

static CALLS: Mutex<Calls> = Mutex::new(Calls {
    by_name: BTreeMap::new(),
    copied: [[0; 2]; 2],
    contexts: 0,
    nccl_jobs: 0,
    launches_behind_results: 0,
});

fn calls<T>(with: impl FnOnce(&mut Calls) -> T) -> T {
    with(&mut CALLS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Counts a call of an entry point.
pub(crate) fn called(name: &'static str) {
    calls(|c| *c.by_name.entry(name).or_default() += 1);
}

/// Direction of a copy.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    In,
    Out,
}

/// Counts the bytes of a copy.
pub(super) fn copied(direction: Direction, pinned: bool, bytes: usize) {
    calls(|c| c.copied[direction as usize][pinned as usize] += bytes as u64);
}

/// Counts a context that is made.
pub(super) fn context_made() {
    calls(|c| c.contexts += 1);
}

/// Counts a call for which NCCL starts a thread.
pub(crate) fn nccl_job() {
    calls(|c| c.nccl_jobs += 1);
}

/// Counts the launches that are queued behind a copy to pinned memory.
pub(super) fn results_copied(launches_behind: usize) {
    calls(|c| c.launches_behind_results = c.launches_behind_results.max(launches_behind as u64));
}

/// The counts as one JSON object.
pub(crate) fn calls_json() -> String {
    calls(|c| {
        let names: Vec<String> = c.by_name.iter().map(|(name, n)| format!("\"{name}\":{n}")).collect();
        let copied = |direction: Direction| {
            let [pageable, pinned] = c.copied[direction as usize];
            format!("{{\"pinned\":{pinned},\"pageable\":{pageable}}}")
        };
        let (calls, copied_in, copied_out) = (names.join(","), copied(Direction::In), copied(Direction::Out));
        let (contexts, nccl_jobs, behind) = (c.contexts, c.nccl_jobs, c.launches_behind_results);
        format!(
            "{{\"calls\":{{{calls}}},\"copied_in\":{copied_in},\"copied_out\":{copied_out},\"contexts\":{contexts},\"nccl_jobs\":{nccl_jobs},\"launches_behind_results\":{behind}}}"
        )
    })
}

/// Starts all counts from 0.
pub(crate) fn reset_calls() {
    calls(|c| *c = Calls::default());
}
