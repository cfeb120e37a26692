//! Progress of uploading weights to devices, for a caller that watches an engine open.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// Bytes of weights that an opening engine has uploaded to its devices, and their total. Clones
/// share the counters: keep one, give the other to the engine. Both stay 0 on the CPU, which uses
/// weights where they are mapped, and leave out layers that are streamed.
#[derive(Clone, Debug, Default)]
pub struct Loading(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    total_bytes: AtomicU64,
    /// One counter per rank of this process.
    brought_bytes: Mutex<Vec<Arc<AtomicU64>>>,
}

impl Loading {
    /// Returns the bytes, as stored, that this process's ranks will upload to their devices.
    pub fn total_bytes(&self) -> u64 {
        self.0.total_bytes.load(Ordering::Relaxed)
    }

    /// Returns the bytes that are on the device or being uploaded.
    pub fn brought_bytes(&self) -> u64 {
        let counters = lock(&self.0.brought_bytes);
        counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    /// Registers a rank that will upload `total_bytes` and counts them in `brought_bytes`.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU uploads nothing"))]
    pub(crate) fn count_in(&self, total_bytes: u64, brought_bytes: Arc<AtomicU64>) {
        lock(&self.0.brought_bytes).push(brought_bytes);
        self.0.total_bytes.fetch_add(total_bytes, Ordering::Relaxed);
    }
}
