//! Threads that run one closure together, again and again, and allocate nothing for it.
//!
//! A pass does this some ten times a layer, so an idle worker polls for the next job a little while
//! before it sleeps: waking it takes longer than many an op.

use std::any::Any;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// Polls of a thread before it sleeps: some tens of microseconds.
const POLLS: usize = 2000;

/// A closure that all threads run, called with each thread's index.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The caller's thread, which has index 0, and others beside it.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held by the caller whose job runs: one at a time.
    turn: Mutex<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Notified when there is a job, and when there will be none any more.
    begun: Condvar,
    /// Notified when the last thread has completed the job.
    ended: Condvar,
    /// Copies of `State::round` and `State::working`, polled without the lock.
    round: AtomicUsize,
    working: AtomicUsize,
}

struct State {
    /// Counts jobs, and the shutdown.
    round: usize,
    /// The job of this round.
    job: Option<&'static Job<'static>>,
    /// Threads that have not completed it, the caller's aside.
    working: usize,
    /// The first panic of this round.
    panic: Option<Box<dyn Any + Send>>,
}

impl Pool {
    /// Starts a pool of `count` threads, the caller's included.
    ///
    /// # Errors
    ///
    /// `Memory` when the system refuses a thread.
    pub(super) fn new(count: usize) -> Result<Self> {
        let state = State { round: 0, job: None, working: 0, panic: None };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            begun: Condvar::new(),
            ended: Condvar::new(),
            round: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
        });
        let mut pool = Self { shared, threads: Vec::new(), turn: Mutex::new(()) };
        for index in 1..count {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new()
                .name(format!("kudos-cpu-{index}"))
                .spawn(move || shared.work(index))
                .map_err(|error| {
                    Error::new(ErrorKind::Memory, format!("cannot start {count} threads")).caused_by(error)
                })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Calls `job` once on every thread, and returns when all have completed it. A panic is passed
    /// on. `job` must not call this again.
    pub(super) fn run(&self, job: &Job<'_>) {
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: the reference is used by threads that count as working, and this function neither
        // returns nor unwinds before none does: `job` on this thread is caught, and nothing else
        // here panics. Then it is removed.
        let job_for_all = unsafe { std::mem::transmute::<&Job<'_>, &'static Job<'static>>(job) };
        shared.begin(Some(job_for_all), self.threads.len());
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        poll(|| shared.working.load(Ordering::Acquire) == 0);
        let mut state = shared.lock();
        while state.working > 0 {
            state = shared.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.job = None;
        let panic = own.err().or(state.panic.take());
        drop((state, turn));
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Shared {
    /// Begins a round of `threads` threads beside the caller's; without a job it is the last one.
    fn begin(&self, job: Option<&'static Job<'static>>, threads: usize) {
        let mut state = self.lock();
        state.round += 1;
        state.job = job;
        state.working = threads;
        self.working.store(threads, Ordering::Release);
        self.round.store(state.round, Ordering::Release);
        drop(state);
        self.begun.notify_all();
    }

    /// Runs a thread of the pool until the last round.
    fn work(&self, index: usize) {
        for seen in 0.. {
            poll(|| self.round.load(Ordering::Acquire) != seen);
            let mut state = self.lock();
            // A round ends after every thread has taken part, so none is missed.
            while state.round == seen {
                state = self.begun.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let Some(job) = state.job else { return };
            drop(state);
            let result = catch_unwind(AssertUnwindSafe(|| job(index)));
            let mut state = self.lock();
            if let Err(panic) = result {
                state.panic.get_or_insert(panic);
            }
            state.working -= 1;
            self.working.store(state.working, Ordering::Release);
            let last = state.working == 0;
            drop(state);
            if last {
                self.ended.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        lock(&self.state)
    }
}

/// Polls a while for what may be ready soon.
fn poll(is_ready: impl Fn() -> bool) {
    for _ in 0..POLLS {
        if is_ready() {
            return;
        }
        hint::spin_loop();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.begin(None, 0);
        for thread in self.threads.drain(..) {
            // A job's panic was caught, and passed on to the caller that ran it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_every_job_once() {
        for count in [1, 2, 5] {
            let pool = Pool::new(count).unwrap();
            let runs: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..500 {
                pool.run(&|index| {
                    runs[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == round), "{count} threads");
                if round % 100 == 0 {
                    // Long enough for all to fall asleep.
                    thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(&|index| {
                            sum.fetch_add(index, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 100 * (1 + 2));
    }

    #[test]
    fn a_panic_of_any_thread_reaches_the_caller_at_the_end() {
        let pool = Pool::new(3).unwrap();
        for panicking in 0..3 {
            let completed = AtomicUsize::new(0);
            let run = || {
                pool.run(&|index| {
                    assert!(index != panicking, "as the test wants");
                    thread::sleep(std::time::Duration::from_millis(5));
                    completed.fetch_add(1, Ordering::Relaxed);
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            assert_eq!(completed.into_inner(), 2);
        }
    }
}
