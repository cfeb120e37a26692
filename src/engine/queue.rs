//! [`Queue`]: sequences that wait for the ranks, bounded in tokens, and their [`Pending`] scores.
//!
//! There is no timer: an idle rank takes everything that is queued, in order, up to the batch
//! budget, or its part of it where other replicas are idle, too. Submissions beyond the capacity
//! wait in line and enter in their order as ranks take jobs. Every job is completed exactly once,
//! by a score, by an error, or, if all else fails, by the drop of its [`Reply`]: no caller hangs.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::batch::{Batch, Budget, Packed, Sharing};
use crate::engine::oneshot::{self, Receiver, Sender};
use crate::engine::score::{Score, Sequence, Times};
use crate::engine::stats::{Counters, Stats};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// A sequence to be scored.
#[derive(Debug)]
pub(super) struct Job {
    /// The tokens up to the scored one, at least one.
    pub(super) ids: Vec<u32>,
    /// Completes its score.
    pub(super) reply: Reply,
}

/// A job in line for capacity. Its submitter is notified when it has entered.
#[derive(Debug)]
struct Arrival {
    job: Job,
    entered: Sender<Result<()>>,
}

/// The jobs that wait for a rank, first come first served.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    tokens_max: usize,
    /// Counts of each replica.
    computed: Vec<Counters>,
}

/// Tokens of a pass, at least, before it leaves jobs to idle replicas: a pass of fewer takes as
/// long on a GPU, which reads all weights for it.
const SPREAD_TOKENS_MIN: usize = 256;

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Tokens of `jobs`.
    tokens: usize,
    /// Jobs in line for capacity, which enter in their order.
    line: VecDeque<Arrival>,
    /// Replicas that wait for jobs.
    idle: usize,
    /// The error for which new jobs are refused, while queued ones are still scored.
    draining: Option<Error>,
    /// The error for which nothing is scored any more.
    closed: Option<Error>,
}

impl State {
    /// Returns the error for which new jobs are refused, if they are.
    fn refusal(&self) -> Option<&Error> {
        self.closed.as_ref().or(self.draining.as_ref())
    }

    /// Whether a job of `tokens` tokens may enter now: there is capacity, or nothing else is
    /// queued.
    fn has_capacity(&self, tokens: usize, tokens_max: usize) -> bool {
        self.tokens == 0 || self.tokens + tokens <= tokens_max
    }

    fn put(&mut self, job: Job) {
        self.tokens += job.ids.len();
        self.jobs.push_back(job);
    }

    /// Puts a job into the queue, or in line where there is no capacity, unless jobs are refused.
    fn enter(&mut self, job: Job, pending: Pending, tokens_max: usize) -> Submit {
        if let Some(error) = self.refusal() {
            return Submit::refused(error.clone());
        }
        if self.line.is_empty() && self.has_capacity(job.ids.len(), tokens_max) {
            self.put(job);
            return Submit(Stage::Done(Ok(pending)));
        }
        let (entered, receiver) = oneshot::channel();
        self.line.push_back(Arrival { job, entered });
        Submit(Stage::InLine(receiver, pending))
    }

    /// Moves jobs from the line into the queue as far as there is capacity, and returns the senders
    /// by which their submitters are notified. Leaves out those whose submitter dropped the future.
    fn admit(&mut self, tokens_max: usize) -> Vec<Sender<Result<()>>> {
        let mut entered = Vec::new();
        while let Some(Arrival { job, .. }) = self.line.front() {
            let wanted = !job.reply.is_cancelled();
            if wanted && !self.has_capacity(job.ids.len(), tokens_max) {
                break;
            }
            let Some(arrival) = self.line.pop_front() else { break };
            if wanted {
                self.put(arrival.job);
                entered.push(arrival.entered);
            }
        }
        entered
    }

    /// Returns as many jobs from the front as fit into one batch, and whether each of them is in
    /// it: the batch leaves out cancelled jobs. From `enough` tokens on it ends where the next job
    /// has another prompt.
    fn first_batch(&self, budget: Budget, sharing: Sharing, enough: usize) -> (Batch, Vec<bool>) {
        let (mut batch, mut is_in) = (Batch::new(budget, sharing), Vec::new());
        let mut last: Option<&Job> = None;
        for job in &self.jobs {
            let wanted = !job.reply.is_cancelled();
            if wanted {
                let ends = batch.tokens() >= enough && last.is_some_and(|last| !have_one_prompt(last, job));
                if ends || !batch.try_add(&job.ids) {
                    break;
                }
                last = Some(job);
            }
            is_in.push(wanted);
        }
        (batch, is_in)
    }

    /// Like [`first_batch`](Self::first_batch), but a part only where that would be all that is
    /// queued, and other replicas wait for jobs.
    fn part_of_batch(&self, budget: Budget, sharing: Sharing) -> (Batch, Vec<bool>) {
        let (batch, is_in) = self.first_batch(budget, sharing, usize::MAX);
        let part = batch.tokens().div_ceil(self.idle + 1).max(SPREAD_TOKENS_MIN);
        if self.idle == 0 || is_in.len() < self.jobs.len() || batch.tokens() <= part {
            return (batch, is_in);
        }
        self.first_batch(budget, sharing, part)
    }

    /// Takes `is_in.len()` jobs from the front, and returns the replies of those that are in the
    /// batch.
    fn take(&mut self, is_in: &[bool]) -> Vec<Reply> {
        self.tokens -= self.jobs.iter().take(is_in.len()).map(|job| job.ids.len()).sum::<usize>();
        let jobs = self.jobs.drain(..is_in.len());
        jobs.zip(is_in).filter(|&(_, &is_in)| is_in).map(|(job, _)| job.reply.taken(Instant::now())).collect()
    }
}

impl Queue {
    /// Makes an empty queue with a capacity of `tokens_max` tokens, from which `replicas` replicas
    /// take. A longer job enters when the queue is empty.
    pub(super) fn new(tokens_max: usize, replicas: usize) -> Self {
        let (state, computed) = (Mutex::default(), (0..replicas).map(|_| Counters::default()).collect());
        Self { state, changed: Condvar::new(), tokens_max, computed }
    }

    /// Puts a job at the end, or an error of kind [`ErrorKind::QueueFull`].
    pub(super) fn try_push(&self, job: Job) -> Result<()> {
        let mut state = self.lock();
        if let Some(error) = state.refusal() {
            return Err(error.clone());
        }
        if !state.line.is_empty() || !state.has_capacity(job.ids.len(), self.tokens_max) {
            let (queued, capacity) = (state.tokens, self.tokens_max);
            let message = format!("{queued} tokens are queued, and the queue's capacity is {capacity}");
            return Err(Error::new(ErrorKind::QueueFull, message)
                .with_hint("submit again later, or wait for capacity with `submit`"));
        }
        state.put(job);
        self.changed.notify_all();
        Ok(())
    }

    /// Puts a job at the end, or in line where there is no capacity. `pending` is the job's score.
    pub(super) fn submit(&self, job: Job, pending: Pending) -> Submit {
        let submitted = self.lock().enter(job, pending, self.tokens_max);
        self.changed.notify_all();
        submitted
    }

    /// Puts jobs at the end, or in line, together: ranks see none before all are there.
    pub(super) fn submit_group(&self, jobs: impl IntoIterator<Item = Result<(Job, Pending)>>) -> Vec<Submit> {
        let mut state = self.lock();
        let enter = |job: Result<(Job, Pending)>| match job {
            Ok((job, pending)) => state.enter(job, pending, self.tokens_max),
            Err(error) => Submit::refused(error),
        };
        let submitted = jobs.into_iter().map(enter).collect();
        drop(state);
        self.changed.notify_all();
        submitted
    }

    /// Puts jobs at the end, and returns when all have entered. Ranks see none before there are as
    /// many as the queue holds: an idle rank would take the first alone, and compute what it shares
    /// with the others once more with them. A closed queue completes them with its error.
    pub(super) fn push_all(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut last = None;
        let mut state = self.lock();
        if let Some(error) = state.refusal().cloned() {
            drop(state);
            return jobs.into_iter().for_each(|job| job.reply.complete(Err(error.clone())));
        }
        for job in jobs {
            if state.line.is_empty() && state.has_capacity(job.ids.len(), self.tokens_max) {
                state.put(job);
            } else {
                let (entered, receiver) = oneshot::channel();
                state.line.push_back(Arrival { job, entered });
                last = Some(receiver);
            }
        }
        self.changed.notify_all();
        drop(state);
        if let Some(last) = last {
            // An error completes the jobs themselves.
            let _ = last.wait();
        }
    }

    /// Waits for jobs and takes as many as fit into one batch, without cancelled ones. `None` once
    /// the queue is closed, or drained and empty.
    pub(super) fn next_batch(&self, budget: Budget, sharing: Sharing) -> Option<(Packed, Vec<Reply>)> {
        let mut state = self.lock();
        loop {
            if state.closed.is_some() {
                return None;
            }
            let (batch, is_in) = state.part_of_batch(budget, sharing);
            if !is_in.is_empty() {
                let replies = state.take(&is_in);
                let empty = batch.is_empty();
                self.admit(state);
                if !empty {
                    return Some((batch.pack(), replies));
                }
                state = self.lock();
                continue;
            }
            if state.draining.is_some() {
                return None;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Returns the next batch if it is full, without waiting: one that is not full may find more to
    /// share before it is needed. What is taken is computed, even where its caller drops the future
    /// by then.
    pub(super) fn full_batch(&self, budget: Budget, sharing: Sharing) -> Option<(Packed, Vec<Reply>)> {
        let mut state = self.lock();
        let (batch, is_in) = state.first_batch(budget, sharing, usize::MAX);
        if is_in.len() == state.jobs.len() || batch.is_empty() {
            return None;
        }
        let replies = state.take(&is_in);
        self.admit(state);
        Some((batch.pack(), replies))
    }

    /// Admits jobs in line after some were taken, and notifies their submitters without the lock.
    fn admit(&self, mut state: MutexGuard<'_, State>) {
        let entered = state.admit(self.tokens_max);
        self.changed.notify_all();
        drop(state);
        entered.iter().for_each(|entered| entered.send(Ok(())));
    }

    /// Refuses jobs from here on with `error`; what is queued or in line is still scored.
    pub(super) fn drain(&self, error: Error) {
        self.lock().draining.get_or_insert(error);
        self.changed.notify_all();
    }

    /// Completes everything that is queued, and everything that is submitted later, with `error`.
    /// The first error to close the queue stays, and is returned.
    pub(super) fn close(&self, error: Error) -> Error {
        let (error, replies) = self.stop(error);
        for reply in replies {
            reply.complete(Err(error.clone()));
        }
        error
    }

    /// Like [`close`](Self::close), but returns the replies of what is queued, for the caller to
    /// complete.
    pub(super) fn stop(&self, error: Error) -> (Error, Vec<Reply>) {
        let mut state = self.lock();
        let error = state.closed.get_or_insert(error).clone();
        let (jobs, line) = (std::mem::take(&mut state.jobs), std::mem::take(&mut state.line));
        state.tokens = 0;
        self.changed.notify_all();
        drop(state);
        let mut replies: Vec<Reply> = jobs.into_iter().map(|job| job.reply).collect();
        for Arrival { job, entered } in line {
            entered.send(Err(error.clone()));
            replies.push(job.reply);
        }
        (error, replies)
    }

    /// Returns the counters of what a replica has computed.
    pub(super) fn computed(&self, replica: usize) -> &Counters {
        &self.computed[replica]
    }

    /// Returns counts of what each replica has computed.
    pub(super) fn stats_of_replicas(&self) -> Vec<Stats> {
        self.computed.iter().map(Counters::read).collect()
    }

    /// Returns counts of what is queued and of what was computed.
    pub(super) fn stats(&self) -> Stats {
        let state = self.lock();
        let in_line = state.line.iter().map(|arrival| arrival.job.ids.len()).sum::<usize>();
        let mut stats = Stats {
            queued_sequences: state.jobs.len() + state.line.len(),
            queued_tokens: state.tokens + in_line,
            ..Stats::default()
        };
        self.computed.iter().for_each(|counters| stats += counters.read());
        stats
    }

    /// Returns the error that closed the queue, if one did.
    pub(super) fn closed(&self) -> Option<Error> {
        self.lock().closed.clone()
    }

    /// Like [`closed`](Self::closed), but waits up to `time` for the queue to close.
    pub(super) fn closed_within(&self, time: Duration) -> Option<Error> {
        let open = |state: &mut State| state.closed.is_none();
        let waited = self.changed.wait_timeout_while(self.lock(), time, open);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held and the state is half changed.
        lock(&self.state)
    }
}

/// Whether two jobs are responses to one prompt, by what they share from their start: at least half
/// of the shorter one.
fn have_one_prompt(a: &Job, b: &Job) -> bool {
    let shared = a.ids.iter().zip(&b.ids).take_while(|(a, b)| a == b).count();
    2 * shared >= a.ids.len().min(b.ids.len())
}

/// A submission: a future of a place in the queue, which resolves to the [`Pending`] score.
///
/// Needs no runtime. Dropping it takes the input back.
#[derive(Debug)]
#[must_use = "a submission that is dropped is cancelled"]
pub struct Submit(Stage);

#[derive(Debug)]
enum Stage {
    /// Waits for capacity.
    InLine(Receiver<Result<()>>, Pending),
    Done(Result<Pending>),
    /// The result was taken.
    Taken,
}

impl Submit {
    /// Makes a submission that failed.
    pub(super) fn refused(error: Error) -> Self {
        Self(Stage::Done(Err(error)))
    }

    /// Blocks until the input has entered the queue.
    pub fn wait(self) -> Result<Pending> {
        match self.0 {
            Stage::InLine(entered, pending) => {
                entered.wait().unwrap_or_else(|| Err(taken())).map(|()| pending)
            }
            Stage::Done(result) => result,
            Stage::Taken => Err(taken()),
        }
    }
}

impl Future for Submit {
    type Output = Result<Pending>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let entered = match &mut self.0 {
            Stage::InLine(entered, _) => match Pin::new(entered).poll(context) {
                Poll::Ready(entered) => entered.unwrap_or_else(|| Err(taken())),
                Poll::Pending => return Poll::Pending,
            },
            Stage::Done(_) | Stage::Taken => Ok(()),
        };
        Poll::Ready(match std::mem::replace(&mut self.0, Stage::Taken) {
            Stage::InLine(_, pending) => entered.map(|()| pending),
            Stage::Done(result) => result,
            Stage::Taken => Err(taken()),
        })
    }
}

/// A score that is pending: a future that needs no runtime, or [`wait`](Pending::wait) for it.
///
/// Dropping it cancels the request, unless the pass that runs, or a full batch that comes next, has
/// it.
#[derive(Debug)]
#[must_use = "a pending score that is dropped is cancelled"]
pub struct Pending(Receiver<Result<Score>>);

/// Completes a [`Pending`] score.
#[derive(Debug)]
pub(super) struct Reply {
    score: Sender<Result<Score>>,
    sequence: Sequence,
    submitted: Instant,
    /// The time at which a pass took the sequence.
    taken: Option<Instant>,
}

/// Makes the two ends of a score.
pub(super) fn pending(sequence: Sequence) -> (Reply, Pending) {
    let (score, receiver) = oneshot::channel();
    (Reply { score, sequence, submitted: Instant::now(), taken: None }, Pending(receiver))
}

impl Pending {
    /// Blocks until the score is there.
    pub fn wait(self) -> Result<Score> {
        self.0.wait().unwrap_or_else(|| Err(taken()))
    }
}

impl Future for Pending {
    type Output = Result<Score>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|score| score.unwrap_or_else(|| Err(taken())))
    }
}

impl Reply {
    /// Whether the caller dropped the future.
    fn is_cancelled(&self) -> bool {
        self.score.is_closed()
    }

    /// Notes the time at which a pass took the sequence.
    fn taken(mut self, now: Instant) -> Self {
        self.taken = Some(now);
        self
    }

    /// Completes the score with the logits of the scored token, or with an error.
    pub(super) fn complete(self, logits: Result<&[f32]>) {
        let taken = self.taken.unwrap_or(self.submitted);
        let times = Times {
            queue_time: taken.saturating_duration_since(self.submitted),
            compute_time: taken.elapsed(),
        };
        self.score.send(logits.and_then(|logits| Score::new(logits, self.sequence, times)));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // Has no effect after `complete`.
        self.score.send(Err(Error::new(ErrorKind::Stopped, "the engine ended before this was scored")));
    }
}

fn taken() -> Error {
    Error::new(ErrorKind::Stopped, "this result was taken before")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    use std::thread;

    const BUDGET: Budget = Budget { tokens: 8, sequences: 8 };

    fn job(ids: &[u32]) -> (Job, Pending) {
        let (reply, pending) = pending(Sequence::whole(ids.len()));
        (Job { ids: ids.to_vec(), reply }, pending)
    }

    #[test]
    fn jobs_are_taken_in_order_up_to_the_budget() {
        let queue = Queue::new(100, 1);
        let mut pendings = Vec::new();
        for ids in [[1, 2, 3], [1, 2, 4], [5, 6, 7], [8, 9, 10]] {
            let (job, pending) = job(&ids);
            queue.try_push(job).unwrap();
            pendings.push(pending);
        }
        let (packed, replies) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
        assert_eq!((packed.tokens.len(), replies.len()), (7, 3));
        let (packed, replies) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
        assert_eq!((packed.tokens.as_slice(), replies.len()), ([8, 9, 10].as_slice(), 1));
    }

    #[test]
    fn a_next_batch_is_taken_early_only_when_it_is_full() {
        let queue = Queue::new(100, 1);
        let mut pendings = Vec::new();
        let mut push = |ids: &[u32]| {
            let (job, pending) = job(ids);
            queue.try_push(job).unwrap();
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
    fn jobs_pushed_together_are_taken_together_by_a_waiting_rank() {
        let queue = Queue::new(100, 1);
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
    fn jobs_pushed_together_enter_a_small_queue_until_it_closes() {
        let queue = Queue::new(2, 1);
        let (jobs, pendings): (Vec<Job>, Vec<Pending>) =
            [[1, 2], [3, 4], [5, 6]].iter().map(|ids| job(ids)).unzip();
        thread::scope(|scope| {
            scope.spawn(|| queue.push_all(jobs));
            for first in [1, 3] {
                let (packed, replies) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
                assert_eq!(packed.tokens[0], first);
                replies.into_iter().for_each(|reply| reply.complete(Ok(&[1.0])));
            }
            queue.close(Error::new(ErrorKind::Stopped, "the end"));
        });
        let rewards: Vec<_> = pendings.into_iter().map(Pending::wait).collect();
        assert!(rewards[0].is_ok() && rewards[1].is_ok());
        assert_eq!(rewards[2].as_ref().unwrap_err().message(), "the end");
    }

    #[test]
    fn a_dropped_pending_is_never_packed() {
        let queue = Queue::new(100, 1);
        let (first, dropped) = job(&[1, 2]);
        let (second, kept) = job(&[3]);
        queue.try_push(first).unwrap();
        queue.try_push(second).unwrap();
        drop(dropped);
        let (packed, replies) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
        assert_eq!(packed.tokens, [3]);
        for reply in replies {
            reply.complete(Ok(&[1.5]));
        }
        assert_eq!(kept.wait().unwrap().reward, 1.5);
    }

    #[test]
    fn a_full_queue_refuses_or_blocks_until_there_is_capacity() {
        let queue = Arc::new(Queue::new(4, 1));
        let (long, _kept) = job(&[1; 9]);
        queue.try_push(long).expect("an empty queue takes a job of any length");
        let (refused, _pending) = job(&[2]);
        assert_eq!(queue.try_push(refused).unwrap_err().kind(), ErrorKind::QueueFull);
        let pusher = thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                let (job, pending) = job(&[3]);
                queue.submit(job, pending).wait()
            }
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!pusher.is_finished());
        drop(queue.next_batch(BUDGET, Sharing::Prefixes));
        let _pending = pusher.join().unwrap().unwrap();
    }

    #[test]
    fn closing_completes_queued_blocked_and_later_jobs() {
        let queue = Arc::new(Queue::new(1, 1));
        let (first, waiting) = job(&[1]);
        queue.try_push(first).unwrap();
        let blocked = thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                let (job, pending) = job(&[2]);
                queue.submit(job, pending).wait()
            }
        });
        thread::sleep(Duration::from_millis(20));
        queue.close(Error::new(ErrorKind::Stopped, "first cause"));
        queue.close(Error::new(ErrorKind::Stopped, "second cause"));
        assert_eq!(waiting.wait().unwrap_err().message(), "first cause");
        assert_eq!(blocked.join().unwrap().unwrap_err().message(), "first cause");
        let (late, pending) = job(&[3]);
        assert_eq!(queue.submit(late, pending).wait().unwrap_err().message(), "first cause");
        assert!(queue.next_batch(BUDGET, Sharing::Prefixes).is_none());
    }

    #[test]
    fn a_drained_queue_refuses_new_jobs_and_scores_queued_ones() {
        let queue = Queue::new(1, 1);
        let (first, _first) = job(&[1]);
        queue.try_push(first).unwrap();
        let (second, pending) = job(&[2]);
        let in_line = queue.submit(second, pending);
        queue.drain(Error::new(ErrorKind::Stopped, "closed"));
        let (late, pending) = job(&[3]);
        assert_eq!(queue.submit(late, pending).wait().unwrap_err().message(), "closed");
        let (late, _pending) = job(&[4]);
        assert_eq!(queue.try_push(late).unwrap_err().message(), "closed");
        for expected in [1, 2] {
            let (packed, replies) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
            assert_eq!(packed.tokens, [expected]);
            replies.into_iter().for_each(|reply| reply.complete(Ok(&[1.0])));
        }
        assert!(queue.next_batch(BUDGET, Sharing::Prefixes).is_none());
        assert_eq!(in_line.wait().unwrap().wait().unwrap().reward, 1.0);
        assert!(queue.closed().is_none());
    }

    #[test]
    fn submissions_enter_in_order_and_a_short_one_overtakes_none() {
        let queue = Queue::new(4, 1);
        let (first, _first) = job(&[1; 3]);
        queue.try_push(first).unwrap();
        let (long, pending) = job(&[2; 3]);
        let long = queue.submit(long, pending);
        let (short, pending) = job(&[3]);
        let short = queue.submit(short, pending);
        let (refused, _pending) = job(&[4]);
        assert_eq!(queue.try_push(refused).unwrap_err().kind(), ErrorKind::QueueFull);
        assert_eq!((queue.stats().queued_sequences, queue.stats().queued_tokens), (3, 7));
        let budget = Budget { tokens: 3, ..BUDGET };
        let (packed, _replies) = queue.next_batch(budget, Sharing::Prefixes).unwrap();
        assert_eq!(packed.tokens, [1; 3]);
        let _pending = (long.wait().unwrap(), short.wait().unwrap());
        assert_eq!(queue.stats().queued_tokens, 4);
    }

    /// Sequences of several prompts, as many responses to each: 200 tokens and 50 of their own.
    fn prompts(queue: &Queue, prompts: u32, responses: u32) -> Vec<Pending> {
        let ids = |prompt: u32, response: u32| -> Vec<u32> {
            let own = (0..50).map(|token| 1_000 * response + token);
            (0..200).map(|token| 1_000_000 * (prompt + 1) + token).chain(own).collect()
        };
        let all = (0..prompts).flat_map(|prompt| (0..responses).map(move |response| ids(prompt, response)));
        let jobs: Vec<(Job, Pending)> = all.map(|ids| job(&ids)).collect();
        let (jobs, pendings): (Vec<Job>, Vec<Pending>) = jobs.into_iter().unzip();
        queue.push_all(jobs);
        pendings
    }

    #[test]
    fn idle_replicas_share_what_is_queued_by_whole_prompts() {
        let budget = Budget { tokens: 10_000, sequences: 1_000 };
        let taken = |idle: usize, responses: u32| {
            let queue = Queue::new(100_000, 4);
            let _pendings = prompts(&queue, 8, responses);
            let mut taken = Vec::new();
            for others in (0..=idle).rev() {
                queue.lock().idle = others;
                if queue.stats().queued_sequences > 0 {
                    let (_, replies) = queue.next_batch(budget, Sharing::Prefixes).unwrap();
                    taken.push(replies.len());
                }
            }
            assert_eq!(queue.stats().queued_sequences, 0, "{taken:?}");
            taken
        };
        assert_eq!(taken(0, 6), [48]);
        // 8 prompts of 500 tokens.
        assert_eq!(taken(1, 6), [24, 24]);
        assert_eq!(taken(3, 6), [12, 12, 12, 12]);
        assert_eq!(taken(2, 6), [18, 18, 12]);
        // 8 prompts of 250 tokens, one response each.
        assert_eq!(taken(3, 1), [2, 2, 2, 2]);
    }

    #[test]
    fn one_prompt_and_a_full_queue_are_not_divided() {
        let taken = |jobs: (u32, u32), budget| {
            let queue = Queue::new(100_000, 4);
            let _pendings = prompts(&queue, jobs.0, jobs.1);
            queue.lock().idle = 3;
            queue.next_batch(budget, Sharing::Prefixes).unwrap().1.len()
        };
        let large = Budget { tokens: 10_000, sequences: 1_000 };
        assert_eq!(taken((1, 40), large), 40, "one prompt");
        // Four full batches: none leaves a part to the others.
        assert_eq!(taken((8, 6), Budget { tokens: 1_000, sequences: 1_000 }), 12);
    }

    #[test]
    fn a_submission_that_is_dropped_in_line_never_enters() {
        let queue = Queue::new(1, 1);
        let (first, _first) = job(&[1]);
        queue.try_push(first).unwrap();
        let (dropped, pending) = job(&[2]);
        drop(queue.submit(dropped, pending));
        let (third, pending) = job(&[3]);
        let third = queue.submit(third, pending);
        drop(queue.next_batch(BUDGET, Sharing::Prefixes));
        let _pending = third.wait().unwrap();
        let (packed, _replies) = queue.next_batch(BUDGET, Sharing::Prefixes).unwrap();
        assert_eq!(packed.tokens, [3]);
    }

    #[test]
    fn a_dropped_reply_completes_its_score_with_an_error() {
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
        job.reply.complete(Ok(&[2.0]));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(
            matches!(Pin::new(&mut pending).poll(&mut context), Poll::Ready(Ok(score)) if score.reward == 2.0)
        );
    }

    #[test]
    fn a_logit_that_is_not_finite_is_an_error_of_that_conversation() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (job, pending) = job(&[1]);
            job.reply.complete(Ok(&[bad]));
            assert_eq!(pending.wait().unwrap_err().kind(), ErrorKind::NonFinite);
        }
    }
}
