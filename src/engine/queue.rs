//! What callers put in and ranks take out: a queue bounded in tokens, and the one-shot answers that come back.
//!
//! There is no timer: a rank that becomes idle takes everything that waits, in order, up to the batch budget. Every
//! job that entered is answered exactly once, by a score, by an error, or, if all else fails, by the drop of its
//! [`Reply`]; so no caller hangs.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::batch::{Batch, Budget, Packed, Sharing};
use crate::engine::Score;
use crate::engine::stats::Counters;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// A sequence that waits to be scored.
#[derive(Debug)]
pub(super) struct Job {
    /// The tokens up to the scored one, at least one.
    pub(super) ids: Vec<u32>,
    /// Where its score goes.
    pub(super) reply: Reply,
}

/// What [`Queue::push`] does while the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenFull {
    Wait,
    Refuse,
}

/// The jobs that wait, first come first served.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    tokens_max: usize,
    computed: Counters,
}

#[derive(Debug)]
struct Waiting {
    jobs: VecDeque<Job>,
    tokens: usize,
    /// Why nothing is taken any more, once that is so.
    closed: Option<Error>,
}

impl Waiting {
    /// Whether the job may enter a queue for up to `tokens_max` tokens.
    fn has_room(&self, job: &Job, tokens_max: usize) -> bool {
        self.tokens == 0 || self.tokens + job.ids.len() <= tokens_max
    }

    fn put(&mut self, job: Job) {
        self.tokens += job.ids.len();
        self.jobs.push_back(job);
    }

    /// As many jobs from the front as fit into one batch, and whether each of them is in it: the batch leaves out those
    /// that nobody waits for any more.
    fn first_batch(&self, budget: Budget, sharing: Sharing) -> (Batch, Vec<bool>) {
        let (mut batch, mut is_in) = (Batch::new(budget, sharing), Vec::new());
        for job in &self.jobs {
            let wanted = !job.reply.is_cancelled();
            if wanted && !batch.try_add(&job.ids) {
                break;
            }
            is_in.push(wanted);
        }
        (batch, is_in)
    }

    /// Takes these from the front, and returns the replies of those that are in the batch.
    fn take(&mut self, is_in: &[bool]) -> Vec<Reply> {
        self.tokens -= self.jobs.iter().take(is_in.len()).map(|job| job.ids.len()).sum::<usize>();
        let jobs = self.jobs.drain(..is_in.len());
        jobs.zip(is_in).filter(|&(_, &is_in)| is_in).map(|(job, _)| job.reply).collect()
    }
}

impl Queue {
    /// An empty queue for up to `tokens_max` tokens; a longer job enters when the queue is empty.
    pub(super) fn new(tokens_max: usize) -> Self {
        let waiting = Waiting { jobs: VecDeque::new(), tokens: 0, closed: None };
        let computed = Counters::default();
        Self { waiting: Mutex::new(waiting), changed: Condvar::new(), tokens_max, computed }
    }

    /// Puts a job at the end, or says why not: the queue is closed, or full and asked not to wait.
    pub(super) fn push(&self, job: Job, when_full: WhenFull) -> Result<()> {
        let mut waiting = self.lock();
        loop {
            if let Some(error) = &waiting.closed {
                return Err(error.clone());
            }
            if waiting.has_room(&job, self.tokens_max) {
                break;
            }
            if when_full == WhenFull::Refuse {
                return Err(Error::new(
                    ErrorKind::QueueFull,
                    format!(
                        "{} tokens wait to be scored; the queue holds {}",
                        waiting.tokens, self.tokens_max
                    ),
                ));
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.put(job);
        self.changed.notify_all();
        Ok(())
    }

    /// Puts jobs at the end, waiting where the queue is full, and shows the ranks none before there are as many as it
    /// holds: an idle rank would take the first alone, and compute what it shares with the others once more with them. When
    /// the queue is closed they are answered with its error.
    pub(super) fn push_all(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut jobs = jobs.into_iter();
        let mut waiting = self.lock();
        while let Some(job) = jobs.next() {
            while waiting.closed.is_none() && !waiting.has_room(&job, self.tokens_max) {
                self.changed.notify_all();
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            if let Some(error) = waiting.closed.clone() {
                drop(waiting);
                return [job].into_iter().chain(jobs).for_each(|job| job.reply.answer(Err(error.clone())));
            }
            waiting.put(job);
        }
        self.changed.notify_all();
    }

    /// Waits for jobs and takes as many as fit into one batch, leaving out those that nobody waits for any more.
    /// `None` once the queue is closed.
    pub(super) fn next_batch(&self, budget: Budget, sharing: Sharing) -> Option<(Packed, Vec<Reply>)> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed.is_some() {
                return None;
            }
            let (batch, is_in) = waiting.first_batch(budget, sharing);
            if !is_in.is_empty() {
                let replies = waiting.take(&is_in);
                self.changed.notify_all();
                if !batch.is_empty() {
                    drop(waiting);
                    return Some((batch.pack(), replies));
                }
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next batch if it is full, without waiting: one that is not may find more to share with what comes before it is
    /// needed. What was taken is computed, whether or not anybody still waits for it by then.
    pub(super) fn full_batch(&self, budget: Budget, sharing: Sharing) -> Option<(Packed, Vec<Reply>)> {
        let mut waiting = self.lock();
        let (batch, is_in) = waiting.first_batch(budget, sharing);
        if is_in.len() == waiting.jobs.len() || batch.is_empty() {
            return None;
        }
        let replies = waiting.take(&is_in);
        self.changed.notify_all();
        drop(waiting);
        Some((batch.pack(), replies))
    }

    /// Answers everything that waits, and everything that comes, with `error`. The first error to close it
    /// stays, and is returned.
    pub(super) fn close(&self, error: Error) -> Error {
        let (error, waiting) = self.stop(error);
        for reply in waiting {
            reply.answer(Err(error.clone()));
        }
        error
    }

    /// Like [`close`](Self::close), but what waits is left to the caller to answer.
    pub(super) fn stop(&self, error: Error) -> (Error, Vec<Reply>) {
        let mut waiting = self.lock();
        let error = waiting.closed.get_or_insert(error).clone();
        let jobs = std::mem::take(&mut waiting.jobs);
        waiting.tokens = 0;
        self.changed.notify_all();
        (error, jobs.into_iter().map(|job| job.reply).collect())
    }

    /// What has become of the jobs that were taken.
    pub(super) fn computed(&self) -> &Counters {
        &self.computed
    }

    /// Why the queue takes nothing any more, if so.
    pub(super) fn closed(&self) -> Option<Error> {
        self.lock().closed.clone()
    }

    /// The same, waiting for so long that it may come to be.
    pub(super) fn closed_within(&self, time: Duration) -> Option<Error> {
        let open = |waiting: &mut Waiting| waiting.closed.is_none();
        let waited = self.changed.wait_timeout_while(self.lock(), time, open);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while the lock is held and the state is half changed.
        lock(&self.waiting)
    }
}

/// A score on its way: a plain future that needs no runtime, or [`wait`](Pending::wait) for it.
///
/// Dropping it cancels the request, unless it belongs to the pass that runs, or to a full batch that comes next.
#[derive(Debug)]
#[must_use = "a pending score that is dropped is cancelled"]
pub struct Pending {
    slot: Arc<Slot>,
}

/// The answering end of a [`Pending`].
#[derive(Debug)]
pub(super) struct Reply {
    slot: Arc<Slot>,
    facts: Facts,
}

/// What is known of a score before it is computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) tokens: usize,
    pub(super) truncated: bool,
    pub(super) scored_token: usize,
}

#[derive(Debug)]
struct Slot {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Debug)]
enum State {
    Open(Option<Waker>),
    Cancelled,
    Answered(Option<Result<Score>>),
}

/// The two ends of one answer.
pub(super) fn pending(facts: Facts) -> (Reply, Pending) {
    let slot = Arc::new(Slot { state: Mutex::new(State::Open(None)), answered: Condvar::new() });
    (Reply { slot: Arc::clone(&slot), facts }, Pending { slot })
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Pending {
    /// Blocks until the score is there.
    pub fn wait(self) -> Result<Score> {
        let mut state = self.slot.lock();
        loop {
            if let State::Answered(result) = &mut *state {
                return result.take().unwrap_or_else(|| Err(taken()));
            }
            state = self.slot.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Future for Pending {
    type Output = Result<Score>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self.slot.lock() {
            State::Answered(result) => Poll::Ready(result.take().unwrap_or_else(|| Err(taken()))),
            State::Open(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            State::Cancelled => Poll::Ready(Err(taken())),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut state = self.slot.lock();
        if matches!(*state, State::Open(_)) {
            *state = State::Cancelled;
        }
    }
}

impl Reply {
    /// Whether nobody waits for this any more.
    fn is_cancelled(&self) -> bool {
        matches!(*self.slot.lock(), State::Cancelled)
    }

    /// Answers with the logits of the scored token, or with why there are none.
    pub(super) fn answer(self, logits: Result<&[f32]>) {
        let score = logits.and_then(|logits| Score::new(logits, self.facts));
        self.finish(score);
    }

    fn finish(&self, result: Result<Score>) {
        let mut state = self.slot.lock();
        if let State::Open(waker) = &mut *state {
            let waker = waker.take();
            *state = State::Answered(Some(result));
            drop(state);
            self.slot.answered.notify_all();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // Does nothing after `answer`.
        self.finish(Err(Error::new(ErrorKind::Stopped, "the engine ended before this was scored")));
    }
}

fn taken() -> Error {
    Error::new(ErrorKind::Stopped, "this score was taken before")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::thread;

    const BUDGET: Budget = Budget { tokens: 8, sequences: 8 };

    fn job(ids: &[u32]) -> (Job, Pending) {
        let (reply, pending) =
            pending(Facts { tokens: ids.len(), truncated: false, scored_token: ids.len() - 1 });
        (Job { ids: ids.to_vec(), reply }, pending)
    }

    #[test]
    fn what_waits_is_taken_in_order_up_to_the_budget() {
        let queue = Queue::new(100);
        let mut pendings = Vec::new();
        for ids in [[1, 2, 3], [1, 2, 4], [5, 6, 7], [8, 9, 10]] {
            let (job, pending) = job(&ids);
            queue.push(job, WhenFull::Refuse).unwrap();
            pendings.push(pending);
        }
        let (packed, replies) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
        assert_eq!((packed.tokens.len(), replies.len()), (7, 3));
        let (packed, replies) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
        assert_eq!((packed.tokens.as_slice(), replies.len()), ([8, 9, 10].as_slice(), 1));
    }

    #[test]
    fn a_batch_is_taken_ahead_of_its_time_only_when_it_is_full() {
        let queue = Queue::new(100);
        let mut pendings = Vec::new();
        let mut push = |ids: &[u32]| {
            let (job, pending) = job(ids);
            queue.push(job, WhenFull::Refuse).unwrap();
            pendings.push(pending);
        };
        assert!(queue.full_batch(BUDGET, Sharing::Prefixes).is_none());
        push(&[1, 2, 3, 4]);
        push(&[5, 6, 7, 8]);
        // A sequence that shares everything may still come.
        assert!(queue.full_batch(BUDGET, Sharing::Prefixes).is_none());
        push(&[1, 2, 3, 4]);
        assert!(queue.full_batch(BUDGET, Sharing::Prefixes).is_none());
        push(&[9]);
        let (packed, replies) = queue.full_batch(BUDGET, Sharing::Prefixes).unwrap();
        assert_eq!((packed.tokens.len(), replies.len()), (8, 3));
        assert!(queue.full_batch(BUDGET, Sharing::Prefixes).is_none());
        let (packed, _) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
        assert_eq!(packed.tokens, [9]);
    }

    #[test]
    fn jobs_put_in_together_are_taken_together_however_early_a_rank_waits() {
        let queue = Queue::new(100);
        thread::scope(|scope| {
            let rank = scope.spawn(|| queue.next_batch(BUDGET, Sharing::Prefixes).unwrap());
            thread::sleep(Duration::from_millis(20));
            let (jobs, _pending): (Vec<Job>, Vec<Pending>) =
                [[1, 2, 3], [1, 2, 4], [1, 2, 5]].iter().map(|ids| job(ids)).unzip();
            queue.push_all(jobs);
            let (packed, replies) = rank.join().unwrap();
            assert_eq!((packed.tokens.len(), replies.len()), (5, 3));
        });
    }

    #[test]
    fn jobs_put_in_together_enter_a_small_queue_one_after_the_other_and_learn_of_its_end() {
        let queue = Queue::new(2);
        let (jobs, pendings): (Vec<Job>, Vec<Pending>) =
            [[1, 2], [3, 4], [5, 6]].iter().map(|ids| job(ids)).unzip();
        thread::scope(|scope| {
            scope.spawn(|| queue.push_all(jobs));
            for first in [1, 3] {
                let (packed, replies) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
                assert_eq!(packed.tokens[0], first);
                replies.into_iter().for_each(|reply| reply.answer(Ok(&[1.0])));
            }
            queue.close(Error::new(ErrorKind::Stopped, "the end"));
        });
        let rewards: Vec<_> = pendings.into_iter().map(Pending::wait).collect();
        assert!(rewards[0].is_ok() && rewards[1].is_ok());
        assert_eq!(rewards[2].as_ref().unwrap_err().message(), "the end");
    }

    #[test]
    fn a_dropped_pending_is_never_packed() {
        let queue = Queue::new(100);
        let (first, dropped) = job(&[1, 2]);
        let (second, kept) = job(&[3]);
        queue.push(first, WhenFull::Refuse).unwrap();
        queue.push(second, WhenFull::Refuse).unwrap();
        drop(dropped);
        let (packed, replies) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
        assert_eq!(packed.tokens, [3]);
        for reply in replies {
            reply.answer(Ok(&[1.5]));
        }
        assert_eq!(kept.wait().unwrap().reward, 1.5);
    }

    #[test]
    fn a_full_queue_refuses_or_blocks_until_there_is_room() {
        let queue = Arc::new(Queue::new(4));
        let (long, _kept) = job(&[1; 9]);
        queue.push(long, WhenFull::Refuse).expect("an empty queue takes a job of any length");
        let (refused, _pending) = job(&[2]);
        assert_eq!(queue.push(refused, WhenFull::Refuse).unwrap_err().kind(), ErrorKind::QueueFull);
        let pusher = thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                let (job, pending) = job(&[3]);
                queue.push(job, WhenFull::Wait).map(|()| pending)
            }
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!pusher.is_finished());
        drop(queue.next_batch(BUDGET, Sharing::Prefixes));
        let _pending = pusher.join().unwrap().unwrap();
    }

    #[test]
    fn closing_answers_those_that_wait_those_that_block_and_those_that_come() {
        let queue = Arc::new(Queue::new(1));
        let (first, waiting) = job(&[1]);
        queue.push(first, WhenFull::Refuse).unwrap();
        let blocked = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.push(job(&[2]).0, WhenFull::Wait)
        });
        thread::sleep(Duration::from_millis(20));
        queue.close(Error::new(ErrorKind::Stopped, "first cause"));
        queue.close(Error::new(ErrorKind::Stopped, "second cause"));
        assert_eq!(waiting.wait().unwrap_err().message(), "first cause");
        assert_eq!(blocked.join().unwrap().unwrap_err().message(), "first cause");
        assert_eq!(queue.push(job(&[3]).0, WhenFull::Wait).unwrap_err().message(), "first cause");
        assert!(queue.next_batch(BUDGET, Sharing::Prefixes).is_none());
    }

    #[test]
    fn a_reply_that_is_lost_still_answers() {
        let (job, pending) = job(&[1]);
        drop(job);
        assert_eq!(pending.wait().unwrap_err().kind(), ErrorKind::Stopped);
    }

    #[test]
    fn a_polled_future_is_woken_once_and_then_ready() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let (job, mut pending) = job(&[1]);
        assert!(Pin::new(&mut pending).poll(&mut context).is_pending());
        job.reply.answer(Ok(&[2.0]));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(
            matches!(Pin::new(&mut pending).poll(&mut context), Poll::Ready(Ok(score)) if score.reward == 2.0)
        );
    }

    #[test]
    fn a_logit_that_is_not_finite_is_an_error_of_that_conversation() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (job, pending) = job(&[1]);
            job.reply.answer(Ok(&[bad]));
            assert_eq!(pending.wait().unwrap_err().kind(), ErrorKind::NonFinite);
        }
    }
}
