//! A rank's own worker threads, and the scratch memory of each.
//!
//! Ranks do not share a pool: two of them could each wait for a worker that the other holds. Which
//! worker runs an item depends on timing and does not affect results: an item computes whole output
//! elements in an order of its own.
//!
//! Items are cut into as many ranges as there are workers. A worker takes those of its own range
//! first, then those that other workers have left. The items of all ops go through the rows in order, so
//! most rows stay with one worker and in its cache: two cores that do not share a cache need some
//! 400 ns to pass a line to each other and back.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pool::Pool;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// Worker threads with one scratch buffer each.
pub struct Threads {
    pool: Pool,
    /// One per worker; a worker locks its own, so no lock is ever waited for.
    scratch: Vec<Mutex<Scratch>>,
    /// One per worker: of its range, the number of items that have been taken. Held for as long as a
    /// call runs.
    taken: Mutex<Vec<Taken>>,
}

/// A counter in a cache line of its own, and in a neighbour that is prefetched with it.
#[derive(Default)]
#[repr(align(128))]
struct Taken(AtomicUsize);

impl Threads {
    /// Starts `count` workers, of which the calling thread is one.
    ///
    /// # Errors
    ///
    /// `Options` for 0; `Memory` when the system refuses the threads.
    pub fn new(count: usize) -> Result<Self> {
        if count == 0 {
            return Err(Error::new(ErrorKind::Options, "the number of CPU threads is 0")
                .with_hint("give at least 1, or leave the option out to use every core"));
        }
        let pool = Pool::new(count)?;
        let scratch = (0..count).map(|_| Mutex::default()).collect();
        let taken = Mutex::new((0..count).map(|_| Taken::default()).collect());
        Ok(Self { pool, scratch, taken })
    }

    /// Number of workers.
    pub fn count(&self) -> usize {
        self.scratch.len()
    }

    /// Grows every worker's scratch to `floats`, so that no later call up to that size allocates.
    pub fn reserve(&self, floats: usize) {
        for scratch in &self.scratch {
            lock(scratch).floats(floats);
        }
    }

    /// Bytes of all scratch buffers.
    pub fn scratch_bytes(&self) -> usize {
        let bytes = |scratch: &Mutex<Scratch>| lock(scratch).bytes();
        self.scratch.iter().map(bytes).sum()
    }

    /// Calls `work(item, scratch)` once for each `item < count`, and returns when all are done. Each
    /// worker has an equal range of items, as [`for_each_item_of`](Self::for_each_item_of) describes. A
    /// panic in `work` is passed on. `work` must not call this again.
    pub fn for_each_item(&self, count: usize, work: impl Fn(usize, &mut Scratch) + Sync) {
        let workers = self.count();
        self.for_each_item_of(|worker| count * worker / workers, work);
    }

    /// Like [`for_each_item`](Self::for_each_item), for items of unequal cost: those of a worker are
    /// `first(worker)..first(worker + 1)`, beginning with 0. They are taken from the last to the first,
    /// so that the costly ones should be last; a worker that has no more takes those of the others.
    pub(super) fn for_each_item_of(
        &self,
        first: impl Fn(usize) -> usize + Sync,
        work: impl Fn(usize, &mut Scratch) + Sync,
    ) {
        // A worker that panicked left garbage behind, but every item writes scratch before it reads
        // it.
        let scratch = |worker: usize| {
            let mut scratch = lock(&self.scratch[worker]);
            scratch.held = None;
            scratch
        };
        let workers = self.count();
        let count = first(workers);
        if count <= 1 || workers == 1 {
            let mut scratch = scratch(0);
            return (0..count).rev().for_each(|item| work(item, &mut scratch));
        }
        let taken = lock(&self.taken);
        taken.iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
        self.pool.run(&|worker| {
            let mut scratch = scratch(worker);
            for owner in (worker..workers).chain(0..worker) {
                let items = first(owner)..first(owner + 1);
                while let index = taken[owner].0.fetch_add(1, Ordering::Relaxed)
                    && index < items.len()
                {
                    work(items.end - 1 - index, &mut scratch);
                }
            }
        });
    }

    /// Cuts `0..rows` into chunks of at least `rows_min` (the last may be shorter), several for
    /// each worker, and calls `work(chunk)` for each. The cuts depend on the number of threads.
    pub(super) fn for_each_chunk(&self, rows: usize, rows_min: usize, work: impl Fn(Range<usize>) + Sync) {
        let chunk = rows.div_ceil(4 * self.count()).max(rows_min).max(1);
        self.for_each_item(rows.div_ceil(chunk), |item, _| work(item * chunk..rows.min((item + 1) * chunk)));
    }
}

/// A worker's scratch memory: it grows to the largest size requested and keeps it.
#[derive(Default)]
pub struct Scratch {
    lines: Vec<CacheLine>,
    /// The key of what an item has left for the next one of the same call.
    held: Option<usize>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([f32; 16]);

impl Scratch {
    fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// Returns `len` floats at a 64-byte boundary, of any value.
    pub fn floats(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.lines.len() < lines {
            self.lines.resize(lines, CacheLine([0.0; 16]));
        }
        // SAFETY: a CacheLine is sixteen f32 without padding (repr(C), 64 bytes), the vector holds
        // `lines` of them, and the result borrows `self`.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) }
    }

    /// Like [`floats`](Self::floats), for an item that leaves something in them, of which `key` says
    /// what it is. Returns true where the worker's item before, of the same call, has left the same.
    pub(super) fn floats_holding(&mut self, len: usize, key: usize) -> (&mut [f32], bool) {
        let is_held = self.held == Some(key);
        self.held = Some(key);
        (self.floats(len), is_held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::sync::Barrier;
    use std::thread;

    #[test]
    fn each_item_runs_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 5] {
            let threads = Threads::new(threads).unwrap();
            for count in [0, 1, 2, 7, 100] {
                let runs: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                threads.for_each_item(count, |item, scratch| {
                    scratch.floats(item + 1)[item] = 1.0;
                    runs[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|r| r.load(Ordering::Relaxed) == 1), "{count} items");
            }
        }
    }

    #[test]
    fn a_worker_begins_with_the_end_of_its_own_range() {
        let threads = Threads::new(3).unwrap();
        let (all_have_one, workers) = (Barrier::new(3), Mutex::new(HashMap::new()));
        for _ in 0..50 {
            threads.for_each_item_of(
                |worker| [0, 2, 3, 7][worker],
                |item, _| {
                    if [1, 2, 6].contains(&item) {
                        all_have_one.wait();
                        let id = thread::current().id();
                        assert_eq!(*workers.lock().unwrap().entry(item).or_insert(id), id, "item {item}");
                    }
                },
            );
        }
        assert_eq!(workers.into_inner().unwrap().len(), 3);
    }

    #[test]
    fn chunks_cover_every_row_once() {
        for (rows, rows_min) in [(0, 1), (1, 1), (7, 3), (100, 1), (100, 64), (1000, 0)] {
            let threads = Threads::new(3).unwrap();
            let seen: Vec<_> = (0..rows).map(|_| AtomicUsize::new(0)).collect();
            threads.for_each_chunk(rows, rows_min, |chunk| {
                chunk.for_each(|row| {
                    seen[row].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1), "{rows} rows");
        }
    }

    #[test]
    fn zero_threads_are_refused() {
        assert_eq!(Threads::new(0).err().unwrap().kind(), ErrorKind::Options);
    }

    #[test]
    fn workers_continue_after_a_panic() {
        for count in [1, 2] {
            let threads = Threads::new(count).unwrap();
            let panicking = || threads.for_each_item(4, |item, _| assert!(item != 2, "as the test wants"));
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).is_err());
            let sum = AtomicUsize::new(0);
            threads.for_each_item(4, |item, _| {
                sum.fetch_add(item, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 6);
        }
    }

    #[test]
    fn scratch_is_held_for_items_of_one_call() {
        let threads = Threads::new(1).unwrap();
        for _ in 0..2 {
            let held = Mutex::new(Vec::new());
            threads.for_each_item(4, |item, scratch| {
                let (_, is_held) = scratch.floats_holding(16, item / 2);
                held.lock().unwrap().push(is_held);
            });
            assert_eq!(*held.lock().unwrap(), [false, true, false, true]);
        }
    }

    #[test]
    fn scratch_is_aligned_and_kept() {
        let mut scratch = Scratch::default();
        let first = scratch.floats(1000).as_ptr();
        assert_eq!(first.addr() % 64, 0);
        assert_eq!(scratch.floats(10).as_ptr(), first);
    }
}
