//! [`Scheduler`]: sequences of all requests that wait for a pass, bounded in tokens.
//!
//! Requests take turns, oldest first. A turn is one sequence, and with it go all waiting ones, of
//! any request, that share its prompt and fit into the same pass: they cost only what they do not
//! share. A request that has had the tokens of a pass goes behind the others, so that one with many
//! sequences holds a short one for as long as a pass.
//!
//! The order is decided late: what arrives while a pass runs may share a prompt with what waits. The
//! engine gets the next pass near the expected end of the one that runs, so that it is never without
//! work and can prefetch.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kudos::{Engine, ErrorKind, PromptTokens, Score, Submit};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use crate::failure::Failure;

/// Passes whose tokens may wait, by default.
const PASSES_WAITING: usize = 32;

/// A request counts for at most this part of the limit: one that is larger shuts out no others.
const COUNTED_PART: usize = 4;

/// Part of a pass's expected time after which the next one is released.
const HELD_PART: f64 = 0.7;

/// Waiting sequences among which those that share a prompt are found.
const SHARING_WINDOW: usize = 4096;

/// Bounds of `Retry-After`, in seconds.
const RETRY_AFTER_SECONDS: [f64; 2] = [1.0, 60.0];

/// The scheduler of an engine. Its task ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Scheduler {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the task: a sequence arrived, or the engine has scored one.
    changed: Notify,
    /// Wakes streams that wait for capacity.
    freed: Notify,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Tokens that may wait.
    waiting_tokens: usize,
    /// Tokens of a pass.
    pass_tokens: usize,
    /// Tokens of a pass of every replica.
    running_tokens: usize,
    /// Whether the next pass is held while one runs: not where another replica may be idle.
    holds: bool,
    /// Time that an idle engine waits for more.
    gather: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// Requests with waiting sequences, in the order of their turns.
    requests: VecDeque<Request>,
    requests_made: u64,
    waiting_tokens: usize,
    waiting_sequences: usize,
    /// Unique tokens of the sequences that the engine has.
    released_tokens: usize,
    /// Those of them that are in a pass, as far as can be known: a pass takes what is there when the
    /// one before it ends.
    running_tokens: usize,
    /// The time at which that pass began.
    pass_began: Option<Instant>,
    rate: Rate,
    /// Unique tokens a second while the engine has work; 0 until some were scored.
    unique_rate: f64,
}

#[derive(Debug)]
struct Request {
    number: u64,
    sequences: VecDeque<Sequence>,
    /// Tokens of these.
    tokens: usize,
    /// Tokens of its present turn.
    spent: usize,
}

#[derive(Debug)]
struct Sequence {
    tokens: PromptTokens,
    released: oneshot::Sender<Released>,
}

/// A sequence that the engine has.
#[derive(Debug)]
struct Released {
    submit: Submit,
    permit: Permit,
}

/// Tokens that the engine has, until this is dropped.
#[derive(Debug)]
struct Permit {
    shared: Arc<Shared>,
    /// Tokens that the sequence adds to its pass.
    added: usize,
    /// Tokens of the sequence.
    tokens: usize,
}

/// Tokens that the engine scored since it was last idle.
#[derive(Debug)]
struct Rate {
    since: Instant,
    tokens: usize,
    unique_tokens: usize,
}

/// Counts of what waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) sequences: usize,
    pub(crate) tokens: usize,
    pub(crate) tokens_max: usize,
}

impl Scheduler {
    /// Starts the scheduler of `engine`, within a runtime.
    pub(crate) fn new(engine: Arc<Engine>, queue_tokens: Option<usize>, gather: Duration) -> Self {
        let plan = engine.plan();
        let pass_tokens = plan.batch_tokens;
        let limits = Limits {
            waiting_tokens: queue_tokens.unwrap_or(PASSES_WAITING * pass_tokens * plan.replicas),
            pass_tokens,
            running_tokens: pass_tokens * plan.replicas,
            holds: plan.replicas == 1,
            gather,
        };
        let state = Mutex::default();
        let shared = Arc::new(Shared { state, changed: Notify::new(), freed: Notify::new(), limits });
        let task = tokio::spawn(release(engine, Arc::clone(&shared)));
        Self { shared, task }
    }

    /// Makes a place for the sequences of one request.
    pub(crate) fn request(&self) -> Ticket {
        let mut state = self.shared.lock();
        state.requests_made += 1;
        Ticket { shared: Arc::clone(&self.shared), number: state.requests_made }
    }

    /// Returns what waits now.
    pub(crate) fn waiting(&self) -> Waiting {
        let state = self.shared.lock();
        Waiting {
            sequences: state.waiting_sequences,
            tokens: state.waiting_tokens,
            tokens_max: self.shared.limits.waiting_tokens,
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A request's place. Dropping it takes back what waits.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    number: u64,
}

/// The score of a sequence that waits.
#[derive(Debug)]
pub(crate) struct Pending(oneshot::Receiver<Released>);

impl Ticket {
    /// Puts sequences at the end, together, unless as many tokens wait as may. A request of more
    /// than that enters where there is any capacity, and counts for a part of it.
    pub(crate) fn try_push(&self, sequences: Vec<PromptTokens>) -> Result<Vec<Pending>, Failure> {
        let mut state = self.shared.lock();
        let tokens_max = self.shared.limits.waiting_tokens;
        if state.counted_tokens(tokens_max) >= tokens_max {
            let message = format!("{} tokens wait, and the limit is {tokens_max}", state.waiting_tokens);
            let [least, most] = RETRY_AFTER_SECONDS;
            let seconds = state.rate.seconds(state.waiting_tokens).clamp(least, most).ceil();
            return Err(Failure::from(kudos::Error::new(ErrorKind::QueueFull, message))
                .with_hint("send the request again after the time in `Retry-After`")
                .with_retry_after(seconds as u64));
        }
        Ok(self.put(&mut state, sequences))
    }

    /// Puts sequences at the end when less than half of the limit waits: streams leave the rest to
    /// other requests.
    pub(crate) async fn push(&self, sequences: Vec<PromptTokens>) -> Vec<Pending> {
        loop {
            let freed = self.shared.freed.notified();
            {
                let mut state = self.shared.lock();
                let tokens_max = self.shared.limits.waiting_tokens;
                if 2 * state.counted_tokens(2 * tokens_max) < tokens_max {
                    return self.put(&mut state, sequences);
                }
            }
            freed.await;
        }
    }

    fn put(&self, state: &mut State, sequences: Vec<PromptTokens>) -> Vec<Pending> {
        if sequences.is_empty() {
            return Vec::new();
        }
        let tokens = sequences.iter().map(|tokens| tokens.ids.len()).sum::<usize>();
        state.waiting_tokens += tokens;
        state.waiting_sequences += sequences.len();
        let (waiting, pending): (Vec<Sequence>, Vec<Pending>) = sequences
            .into_iter()
            .map(|tokens| {
                let (released, receiver) = oneshot::channel();
                (Sequence { tokens, released }, Pending(receiver))
            })
            .unzip();
        match state.requests.iter_mut().find(|request| request.number == self.number) {
            Some(request) => {
                request.tokens += tokens;
                request.sequences.extend(waiting);
            }
            None => {
                let sequences = waiting.into();
                state.requests.push_back(Request { number: self.number, sequences, tokens, spent: 0 });
            }
        }
        self.shared.changed.notify_one();
        pending
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(index) = state.requests.iter().position(|request| request.number == self.number)
            && let Some(request) = state.requests.remove(index)
        {
            state.waiting_tokens -= request.tokens;
            state.waiting_sequences -= request.sequences.len();
            self.shared.freed.notify_waiters();
        }
    }
}

impl Pending {
    /// Waits for the score.
    pub(crate) async fn score(self) -> kudos::Result<Score> {
        let stopped = || kudos::Error::new(ErrorKind::Stopped, "the server ended before this was scored");
        let Released { submit, permit } = self.0.await.map_err(|_| stopped())?;
        let score = submit.await?.await;
        drop(permit);
        score
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.released_tokens -= self.added;
        state.running_tokens = state.released_tokens.min(self.shared.limits.running_tokens);
        state.pass_began = Some(Instant::now());
        state.rate.tokens += self.tokens;
        state.rate.unique_tokens += self.added;
        state.unique_rate = state.rate.unique_tokens as f64 / state.rate.since.elapsed().as_secs_f64();
        self.shared.changed.notify_one();
    }
}

/// Releases waiting sequences to the engine as it has scored others: the scheduler's task.
async fn release(engine: Arc<Engine>, shared: Arc<Shared>) {
    loop {
        let gather = shared.limits.gather;
        let is_first = {
            let state = shared.lock();
            state.released_tokens == 0 && !state.requests.is_empty()
        };
        if is_first && !gather.is_zero() {
            tokio::time::sleep(gather).await;
        }
        let held = shared.held();
        let taken = if held.is_zero() { shared.take() } else { Vec::new() };
        if taken.is_empty() {
            let held = if held.is_zero() { Duration::MAX } else { held };
            // What waits has a turn at once when the pass ends early.
            let _ = tokio::time::timeout(held, shared.changed.notified()).await;
            continue;
        }
        let (tokens, waiting): (Vec<_>, Vec<_>) = taken
            .into_iter()
            .map(|(Sequence { tokens, released }, permit)| (tokens, (released, permit)))
            .unzip();
        // Together: the engine would compute what they share once for each that it takes alone.
        for (submit, (released, permit)) in engine.submit_group(tokens).into_iter().zip(waiting) {
            // Where nothing waits for it any more, this takes it back.
            drop(released.send(Released { submit, permit }));
        }
        shared.freed.notify_waiters();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held and the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time for which the next pass is held, from now on.
    fn held(&self) -> Duration {
        let state = self.lock();
        let Some(began) = state.pass_began.filter(|_| self.limits.holds && state.released_tokens > 0) else {
            return Duration::ZERO;
        };
        let expected = HELD_PART * state.running_tokens as f64 / state.unique_rate;
        Duration::try_from_secs_f64(expected).unwrap_or_default().saturating_sub(began.elapsed())
    }

    /// Takes the sequences for which the engine has capacity.
    fn take(self: &Arc<Self>) -> Vec<(Sequence, Permit)> {
        let mut state = self.lock();
        if state.released_tokens == 0 {
            state.rate = Rate::default();
        }
        let mut taken = Vec::new();
        let is_idle = state.released_tokens == 0;
        while state.released_tokens < state.running_tokens + self.limits.running_tokens {
            let turn = state.turn(self.limits.pass_tokens);
            if turn.is_empty() {
                break;
            }
            for (sequence, added) in turn {
                state.released_tokens += added;
                let tokens = sequence.tokens.ids.len();
                taken.push((sequence, Permit { shared: Arc::clone(self), added, tokens }));
            }
        }
        if is_idle {
            state.running_tokens = state.released_tokens.min(self.limits.running_tokens);
            state.pass_began = Some(Instant::now());
        }
        taken
    }
}

impl State {
    /// Takes a sequence of the first request, and those that share its prompt, each with the tokens
    /// that it adds to the pass.
    fn turn(&mut self, pass_tokens: usize) -> Vec<(Sequence, usize)> {
        let Some(first) = self.requests.front_mut().and_then(|request| request.take(0)) else {
            return Vec::new();
        };
        let ids = first.tokens.ids.clone();
        let mut spent = ids.len();
        let mut turn = vec![(first, spent)];
        let mut unseen = SHARING_WINDOW;
        for request in &mut self.requests {
            let mut index = 0;
            while index < request.sequences.len() && unseen > 0 {
                unseen -= 1;
                let other = &request.sequences[index].tokens.ids;
                let shared = ids.iter().zip(other).take_while(|(a, b)| a == b).count();
                let added = other.len() - shared;
                if 2 * shared < ids.len().min(other.len()) || spent + added > pass_tokens {
                    index += 1;
                    continue;
                }
                spent += added;
                turn.extend(request.take(index).map(|sequence| (sequence, added)));
            }
        }
        self.waiting_tokens -= turn.iter().map(|(sequence, _)| sequence.tokens.ids.len()).sum::<usize>();
        self.waiting_sequences -= turn.len();
        self.next_request(spent, pass_tokens);
        turn
    }

    /// Counts the tokens of a turn, and lets the next request have its own where the first one has
    /// had a pass. Removes requests that have nothing more.
    fn next_request(&mut self, spent: usize, pass_tokens: usize) {
        if let Some(first) = self.requests.front_mut() {
            first.spent += spent;
            if first.spent >= pass_tokens {
                first.spent = 0;
                self.requests.rotate_left(1);
            }
        }
        self.requests.retain(|request| !request.sequences.is_empty());
    }

    /// Returns the tokens that count for the limit.
    fn counted_tokens(&self, tokens_max: usize) -> usize {
        let counted = |request: &Request| request.tokens.min((tokens_max / COUNTED_PART).max(1));
        self.requests.iter().map(counted).sum()
    }
}

impl Request {
    /// Takes the sequence at an index.
    fn take(&mut self, index: usize) -> Option<Sequence> {
        let sequence = self.sequences.remove(index)?;
        self.tokens -= sequence.tokens.ids.len();
        Some(sequence)
    }
}

impl Default for Rate {
    fn default() -> Self {
        Self { since: Instant::now(), tokens: 0, unique_tokens: 0 }
    }
}

impl Rate {
    /// Returns the seconds that so many tokens take, by those scored so far; 0 where there are none.
    fn seconds(&self, tokens: usize) -> f64 {
        if self.tokens == 0 {
            0.0
        } else {
            self.since.elapsed().as_secs_f64() * tokens as f64 / self.tokens as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds a request of sequences, and returns their receivers.
    fn add(state: &mut State, number: u64, sequences: &[&[u32]]) -> Vec<oneshot::Receiver<Released>> {
        let (mut waiting, mut receivers) = (VecDeque::new(), Vec::new());
        for ids in sequences {
            let (released, receiver) = oneshot::channel();
            waiting.push_back(Sequence {
                tokens: PromptTokens { ids: ids.to_vec(), truncated: false },
                released,
            });
            receivers.push(receiver);
        }
        let tokens = sequences.iter().map(|ids| ids.len()).sum();
        state.waiting_tokens += tokens;
        state.waiting_sequences += sequences.len();
        state.requests.push_back(Request { number, sequences: waiting, tokens, spent: 0 });
        receivers
    }

    /// Returns the sequences of turns until nothing waits, and what each adds to its pass.
    fn turns(state: &mut State, pass_tokens: usize) -> Vec<Vec<(Vec<u32>, usize)>> {
        let mut turns = Vec::new();
        loop {
            let turn = state.turn(pass_tokens);
            if turn.is_empty() {
                assert_eq!((state.waiting_tokens, state.waiting_sequences), (0, 0));
                return turns;
            }
            turns.push(turn.into_iter().map(|(sequence, added)| (sequence.tokens.ids, added)).collect());
        }
    }

    #[test]
    fn what_shares_a_prompt_goes_together() {
        let mut state = State::default();
        let _receivers = [
            add(&mut state, 1, &[&[1, 1, 1, 5], &[2, 2, 2, 5]]),
            add(&mut state, 2, &[&[2, 2, 2, 6], &[1, 1, 1, 6, 6]]),
            add(&mut state, 3, &[&[1, 9, 9, 9]]),
        ];
        let turns = turns(&mut state, 100);
        let expected = [
            vec![(vec![1, 1, 1, 5], 4), (vec![1, 1, 1, 6, 6], 2)],
            vec![(vec![2, 2, 2, 5], 4), (vec![2, 2, 2, 6], 1)],
            vec![(vec![1, 9, 9, 9], 4)],
        ];
        assert_eq!(turns, expected);
    }

    #[test]
    fn a_request_goes_behind_the_others_after_a_pass() {
        let mut state = State::default();
        let sequences: Vec<Vec<u32>> = (0..6).map(|n| vec![n; 4]).collect();
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let _receivers =
            [add(&mut state, 1, &sequences), add(&mut state, 2, &[&[9, 9]]), add(&mut state, 3, &[&[8]])];
        let firsts: Vec<u32> = turns(&mut state, 8).iter().map(|turn| turn[0].0[0]).collect();
        assert_eq!(firsts, [0, 1, 9, 8, 2, 3, 4, 5]);
    }

    #[test]
    fn a_turn_is_no_more_than_a_pass() {
        let mut state = State::default();
        let sequences: Vec<Vec<u32>> = (0..6).map(|n| vec![1, 1, 1, n, n]).collect();
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let _receivers = add(&mut state, 1, &sequences);
        let added: Vec<Vec<usize>> =
            turns(&mut state, 9).iter().map(|turn| turn.iter().map(|(_, added)| *added).collect()).collect();
        assert_eq!(added, [vec![5, 2, 2], vec![5, 2, 2]]);
    }

    #[test]
    fn a_time_to_wait_follows_from_what_was_scored() {
        let since = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        let seconds = |tokens| Rate { since, tokens, unique_tokens: 0 }.seconds(1000);
        assert_eq!(seconds(0), 0.0);
        let seconds = seconds(500);
        assert!((4.0..5.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_large_request_counts_for_a_part_of_the_limit() {
        let mut state = State::default();
        let large = vec![1; 1000];
        let _receivers = [add(&mut state, 1, &[&large]), add(&mut state, 2, &[&[1, 2]])];
        assert_eq!(state.counted_tokens(100), 27);
        assert_eq!(state.counted_tokens(10_000), 1002);
    }
}
