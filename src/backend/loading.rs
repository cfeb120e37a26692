//! How far weights have come on their way to devices, for whoever watches an engine open.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// How many bytes of weights an engine that is being opened has brought to its devices, of how many. A clone counts the
/// same ones: keep one, give the other to the engine. Both stay 0 on the CPU, which uses weights where they are mapped,
/// and leave out layers that are streamed.
#[derive(Clone, Debug, Default)]
pub struct Loading(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    total_bytes: AtomicU64,
    /// One for each rank of this process.
    brought_bytes: Mutex<Vec<Arc<AtomicU64>>>,
}

impl Loading {
    /// Bytes, as stored in their files, that this process's ranks will bring to their devices.
    pub fn total_bytes(&self) -> u64 {
        self.0.total_bytes.load(Ordering::Relaxed)
    }

    /// How many of them are on the device, or on their way.
    pub fn brought_bytes(&self) -> u64 {
        let counters = lock(&self.0.brought_bytes);
        counters.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    /// Counts in a rank that will bring `total_bytes` and counts them in `brought_bytes`.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU brings nothing"))]
    pub(crate) fn count_in(&self, total_bytes: u64, brought_bytes: Arc<AtomicU64>) {
        lock(&self.0.brought_bytes).push(brought_bytes);
        self.0.total_bytes.fetch_add(total_bytes, Ordering::Relaxed);
    }
}
