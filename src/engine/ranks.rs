//! One thread per rank: start together, score batches, end together.
//!
//! Rank 0 takes batches from the queue, passes them on to the others and answers. The first failure of any rank,
//! error or panic, closes the queue with its cause and aborts the others' collectives, so that nobody waits for a
//! rank that will not come.
//!
//! A rank in another process has a thread here too, which passes on to it what it is told ([`super::processes`]).

use std::any::Any;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::backend::Ahead;
use crate::batch::{Budget, Packed, Sharing};
use crate::engine::queue::{Queue, Reply};
use crate::error::{Error, ErrorKind, Result};

/// Interval at which a rank that waits for a batch checks its own health.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How long a rank that failed because another one did waits for that one to say why, where ranks are in several
/// processes: the end of a process may be known before its last words are.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);

/// One rank's model on its device.
pub(super) trait Rank {
    /// Meets the other ranks; once, after all have opened.
    fn connect(&mut self) -> Result<()> {
        Ok(())
    }

    /// One pass: a packed batch to `[packed.last.len(), labels]` logits. `ahead` gives the next pass's batch, if
    /// it is known; a rank whose device works by itself calls it once, when that has everything to do.
    fn forward(&mut self, packed: &Packed, ahead: Ahead<'_>) -> Result<Vec<f32>>;

    /// Whether the rank is well, asked now and then while it waits for a batch.
    fn idle(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What needs nobody else.
impl<F: FnMut(&Packed) -> Result<Vec<f32>>> Rank for F {
    fn forward(&mut self, packed: &Packed, _ahead: Ahead<'_>) -> Result<Vec<f32>> {
        self(packed)
    }
}

/// What every rank of one engine shares.
#[derive(Clone)]
pub(super) struct Team {
    pub(super) queue: Arc<Queue>,
    pub(super) ranks: usize,
    pub(super) budget: Budget,
    pub(super) sharing: Sharing,
    /// Logits per sequence.
    pub(super) labels: usize,
    /// Makes every rank that waits for another give up, for this cause, which the queue knows by then.
    pub(super) abort: Arc<dyn Fn(&Error) + Send + Sync>,
    /// How long a rank that failed because of another one waits for that one's error.
    pub(super) last_words: Duration,
}

impl Team {
    /// Makes a rank's failure that of all. Returns the first cause, and who waits for scores.
    fn fail(&self, error: Error) -> (Error, Vec<Reply>) {
        if error.kind() == ErrorKind::Stopped {
            let _ = self.queue.closed_within(self.last_words);
        }
        // If another rank's failure is behind this one, the queue knows that cause already and keeps it.
        let (cause, waiting) = self.queue.stop(error);
        (self.abort)(&cause);
        (cause, waiting)
    }
}

/// Starts one thread per rank. `open(rank)` runs on that rank's thread; when all have opened they meet, and begin to
/// work when all have met. An error of either step is returned here, after all threads have ended.
pub(super) fn start(
    team: &Team,
    open: impl Fn(usize) -> Result<Box<dyn Rank>> + Send + Sync + 'static,
) -> Result<Vec<JoinHandle<()>>> {
    let open = Arc::new(open);
    let (mut votes, mut go, mut orders) = (Vec::new(), Vec::new(), Vec::new());
    let mut receivers = Vec::new();
    for _ in 1..team.ranks {
        let (sender, receiver) = channel();
        orders.push(sender);
        receivers.push(receiver);
    }
    let (following, followers_end) = channel();
    let mut leader = Some((orders, followers_end));
    let mut followers = receivers.into_iter();
    let mut threads = Vec::new();
    for rank in 0..team.ranks {
        let (vote_sender, vote) = channel();
        let (go_sender, start) = channel();
        votes.push(vote);
        go.push(go_sender);
        let duty = match leader.take() {
            Some((orders, followers_end)) => Duty::Lead(orders, followers_end),
            None => Duty::Follow(followers.next().expect("a channel for every follower"), following.clone()),
        };
        let (team, open) = (team.clone(), Arc::clone(&open));
        let thread = thread::Builder::new()
            .name(format!("kudos-rank-{rank}"))
            .spawn(move || run(rank, &team, &*open, duty, &vote_sender, &start))
            .map_err(|error| {
                Error::new(ErrorKind::Io, format!("cannot start a thread for rank {rank}")).caused_by(error)
            });
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => return give_up(error, go, threads),
        }
    }
    drop(following);
    // Opened, then met.
    for _ in 0..2 {
        if let Err(error) = agree(&votes) {
            return give_up(error, go, threads);
        }
        for sender in &go {
            // A rank that is gone by now has said why in its next vote, or closed the queue with its reason.
            let _ = sender.send(());
        }
    }
    Ok(threads)
}

/// Every rank's vote; the first cause, if there is one, rather than what it led to on other ranks.
fn agree(votes: &[Receiver<Result<()>>]) -> Result<()> {
    let lost = || Err(Error::new(ErrorKind::Stopped, "a rank ended without a word"));
    let mut errors = votes.iter().filter_map(|vote| vote.recv().unwrap_or_else(|_| lost()).err());
    let Some(first) = errors.next() else { return Ok(()) };
    let causes = [first].into_iter().chain(errors).collect::<Vec<_>>();
    let cause = causes.iter().find(|error| error.kind() != ErrorKind::Stopped).unwrap_or(&causes[0]);
    Err(cause.clone())
}

/// Ends the threads that wait for their start and returns the error.
fn give_up<T>(error: Error, go: Vec<Sender<()>>, threads: Vec<JoinHandle<()>>) -> Result<T> {
    drop(go);
    for thread in threads {
        let _ = thread.join();
    }
    Err(error)
}

/// What a rank does with batches.
enum Duty {
    /// Takes them from the queue, passes them on and answers. The receiver tells when no follower works any more.
    Lead(Vec<Sender<Order>>, Receiver<Infallible>),
    /// Gets them from rank 0. The sender is held while it works.
    Follow(Receiver<Order>, Sender<Infallible>),
}

/// What rank 0 passes on.
#[derive(Clone)]
enum Order {
    /// Begin with this batch.
    Pass(Arc<Packed>),
    /// Once for each pass, while it runs: the next one's batch where it is known, to get ready for.
    Ahead(Option<Arc<Packed>>),
}

fn run(
    rank: usize,
    team: &Team,
    open: &(dyn Fn(usize) -> Result<Box<dyn Rank>> + Send + Sync),
    duty: Duty,
    vote: &Sender<Result<()>>,
    go: &Receiver<()>,
) {
    let opened = guarded(rank, team.ranks, || open(rank));
    let mut forward = match opened {
        Ok(forward) => forward,
        Err(error) => {
            // Ranks elsewhere need not load to the end to hear of it.
            let (cause, _) = team.fail(error);
            return drop(vote.send(Err(cause)));
        }
    };
    if vote.send(Ok(())).is_err() || go.recv().is_err() {
        return;
    }
    if let Err(error) = guarded(rank, team.ranks, || forward.connect()) {
        // The others may be waiting for this one.
        let (cause, _) = team.fail(error);
        drop(forward);
        return drop(vote.send(Err(cause)));
    }
    if vote.send(Ok(())).is_err() || go.recv().is_err() {
        return;
    }
    let mut in_flight = Vec::new();
    let result = guarded(rank, team.ranks, || match duty {
        Duty::Lead(followers, followers_end) => {
            lead(team, &mut *forward, &followers, &mut in_flight)?;
            drop(followers);
            // They may be about to receive what this rank has sent them, in the last pass's last sum.
            let Err(_ended) = followers_end.recv();
            Ok(())
        }
        Duty::Follow(orders, _following) => follow(&mut *forward, &orders),
    });
    if let Err(error) = result {
        let (cause, waiting) = team.fail(error);
        // The device is let go of before anybody is told: whoever then opens another engine finds the memory free, and
        // on a GPU not the context that this failure has spoilt.
        drop(forward);
        for reply in in_flight.into_iter().chain(waiting) {
            reply.complete(Err(cause.clone()));
        }
    }
}

/// Scores batches until the queue is closed. The replies of the pass that runs, and behind them those of a batch that was
/// taken ahead, are in `in_flight`.
fn lead(
    team: &Team,
    forward: &mut dyn Rank,
    followers: &[Sender<Order>],
    in_flight: &mut Vec<Reply>,
) -> Result<()> {
    let tell = |order: &Order| {
        for follower in followers {
            // A follower that is gone has closed the queue and broken the collectives: the pass ends at once.
            let _ = follower.send(order.clone());
        }
    };
    let mut next = None;
    loop {
        let packed = match next.take() {
            Some(packed) => packed,
            None => {
                let Some((packed, replies)) = team.queue.next_batch(team.budget, team.sharing) else {
                    return Ok(());
                };
                *in_flight = replies;
                Arc::new(packed)
            }
        };
        tell(&Order::Pass(Arc::clone(&packed)));
        let mut asked = false;
        let mut ahead = || {
            asked = true;
            if let Some((packed, replies)) = team.queue.full_batch(team.budget, team.sharing) {
                in_flight.extend(replies);
                next = Some(Arc::new(packed));
            }
            tell(&Order::Ahead(next.clone()));
            next.clone()
        };
        let logits = forward.forward(&packed, &mut ahead)?;
        if !asked {
            tell(&Order::Ahead(None));
        }
        team.queue.computed().add(&packed);
        for (reply, &row) in in_flight.drain(..packed.sequences.len()).zip(&packed.sequences) {
            reply.complete(Ok(&logits[row * team.labels..(row + 1) * team.labels]));
        }
        if let Some(error) = team.queue.closed() {
            // What was taken ahead has not begun.
            in_flight.drain(..).for_each(|reply| reply.complete(Err(error.clone())));
            return Ok(());
        }
    }
}

/// Runs what rank 0 passes on until it ends.
fn follow(forward: &mut dyn Rank, orders: &Receiver<Order>) -> Result<()> {
    // Rank 0 says so once in every pass; if it is gone, there is no next one.
    let mut ahead = || match orders.recv() {
        Ok(Order::Ahead(packed)) => packed,
        Ok(Order::Pass(_)) => {
            unreachable!("a pass begins after rank 0 has said what comes after the one before")
        }
        Err(_) => None,
    };
    loop {
        match orders.recv_timeout(POLL_INTERVAL) {
            Ok(Order::Pass(packed)) => drop(forward.forward(&packed, &mut ahead)?),
            // Of a pass that did not ask.
            Ok(Order::Ahead(_)) => {}
            Err(RecvTimeoutError::Timeout) => forward.idle()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Runs `work`; a panic becomes an error, and with several ranks an error names its rank.
pub(super) fn guarded<T>(rank: usize, ranks: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(Error::new(
            ErrorKind::Stopped,
            format!("the engine has a bug and panicked: {}", panic_text(&*panic)),
        ))
    });
    let name = format!("rank {rank} of {ranks}");
    // A rank in another process may be known by its name already.
    let is_named = |error: &Error| ranks == 1 || error.message().starts_with(&name);
    result.map_err(|error| if is_named(&error) { error } else { error.prefixed(&name) })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::queue::{Job, Pending, pending};
    use crate::engine::score::Sequence;
    use std::sync::{Condvar, Mutex};

    fn team(ranks: usize) -> Team {
        Team {
            queue: Arc::new(Queue::new(1000)),
            ranks,
            budget: Budget { tokens: 100, sequences: 100 },
            sharing: Sharing::Prefixes,
            labels: 1,
            abort: Arc::new(|_| {}),
            last_words: Duration::ZERO,
        }
    }

    fn submit(team: &Team, ids: &[u32]) -> Pending {
        let (reply, pending) =
            pending(Sequence { tokens: ids.len(), truncated: false, scored_token: ids.len() - 1 });
        team.queue.try_push(Job { ids: ids.to_vec(), reply }).unwrap();
        pending
    }

    fn last_tokens(packed: &Packed) -> Result<Vec<f32>> {
        Ok(packed.last.iter().map(|last| packed.tokens[last.row] as f32).collect())
    }

    fn stop(team: &Team, threads: Vec<JoinHandle<()>>) {
        team.queue.close(Error::new(ErrorKind::Stopped, "the end"));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn every_rank_sees_every_batch_and_rank_0_answers() {
        let team = team(3);
        let seen = Arc::new(Mutex::new(vec![0; 3]));
        let counts = Arc::clone(&seen);
        let threads = start(&team, move |rank| {
            let counts = Arc::clone(&counts);
            Ok(Box::new(move |packed: &Packed| {
                counts.lock().unwrap()[rank] += packed.tokens.len();
                last_tokens(packed)
            }))
        })
        .unwrap();
        let pending = submit(&team, &[4, 5, 6]);
        assert_eq!(pending.wait().unwrap().reward, 6.0);
        stop(&team, threads);
        assert_eq!(*seen.lock().unwrap(), [3, 3, 3]);
    }

    /// A rank that asks for the next batch in every pass.
    struct Asking(Box<Pass>);

    /// A pass, told of the next one.
    type Pass = dyn FnMut(&Packed, Option<&Packed>) -> Result<Vec<f32>>;

    impl Rank for Asking {
        fn forward(&mut self, packed: &Packed, ahead: Ahead<'_>) -> Result<Vec<f32>> {
            let next = ahead();
            self.0(packed, next.as_deref())
        }
    }

    #[test]
    fn while_a_pass_runs_every_rank_learns_of_the_next_full_batch() {
        let team = Team { budget: Budget { tokens: 3, sequences: 100 }, ..team(3) };
        let seen = Arc::new(Mutex::new(vec![Vec::new(); 3]));
        let all = Arc::clone(&seen);
        // Before a rank takes any: the first batch is full, and so is the second.
        let pendings = [[1, 2, 3], [4, 5, 6], [7, 8, 9]].map(|ids| submit(&team, &ids));
        let threads = start(&team, move |rank| {
            let all = Arc::clone(&all);
            Ok(Box::new(Asking(Box::new(move |packed, next| {
                let next = next.map(|next| next.tokens.clone());
                all.lock().unwrap()[rank].push((packed.tokens.clone(), next));
                last_tokens(packed)
            }))))
        })
        .unwrap();
        let rewards = pendings.map(|pending| pending.wait().unwrap().reward);
        assert_eq!(rewards, [3.0, 6.0, 9.0]);
        stop(&team, threads);
        let passes = vec![
            (vec![1, 2, 3], Some(vec![4, 5, 6])),
            // Something may come that shares with the last one.
            (vec![4, 5, 6], None),
            (vec![7, 8, 9], None),
        ];
        assert_eq!(*seen.lock().unwrap(), vec![passes; 3]);
    }

    #[test]
    fn a_batch_that_was_taken_ahead_is_answered_when_its_time_does_not_come() {
        for fails in [false, true] {
            let team = Team { budget: Budget { tokens: 3, sequences: 100 }, ..team(2) };
            let pendings = [[1, 2, 3], [4, 5, 6], [7, 8, 9]].map(|ids| submit(&team, &ids));
            let queue = Arc::clone(&team.queue);
            let threads = start(&team, move |_| {
                let queue = Arc::clone(&queue);
                Ok(Box::new(Asking(Box::new(move |packed, _| match fails {
                    true => Err(Error::new(ErrorKind::Device, "lost")),
                    false => {
                        queue.close(Error::new(ErrorKind::Stopped, "the end"));
                        last_tokens(packed)
                    }
                }))))
            })
            .unwrap();
            let answers = pendings.map(Pending::wait);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let messages = answers.map(|answer| answer.map_err(|error| error.message().to_owned()));
            let [first, ahead, waiting] = messages;
            assert_eq!(first.map(|score| score.reward).ok(), (!fails).then_some(3.0));
            let cause =
                |message: &str| if fails { message.ends_with(": lost") } else { message == "the end" };
            assert!(cause(&ahead.unwrap_err()) && cause(&waiting.unwrap_err()), "fails: {fails}");
        }
    }

    #[test]
    fn a_rank_that_cannot_open_ends_all_and_is_named() {
        let error = start(&team(4), |rank| match rank {
            2 => Err(Error::new(ErrorKind::Memory, "no memory left")),
            _ => Ok(Box::new(last_tokens)),
        })
        .unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Memory, "rank 2 of 4: no memory left"));
    }

    #[test]
    fn a_panic_answers_the_batch_and_all_that_wait_and_all_that_come() {
        let team = team(1);
        let threads = start(&team, |_| Ok(Box::new(|_: &Packed| panic!("planted")))).unwrap();
        let error = submit(&team, &[1]).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stopped);
        assert!(error.message().contains("planted"), "{error}");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(team.queue.closed().unwrap().message(), error.message());
    }

    #[test]
    fn callers_are_told_of_a_failure_after_the_device_is_let_go_of() {
        let team = team(1);
        let device = Arc::new(());
        let held = Arc::clone(&device);
        let threads = start(&team, move |_| {
            let held = Arc::clone(&held);
            Ok(Box::new(move |_: &Packed| {
                let _held = &held;
                Err(Error::new(ErrorKind::Device, "lost"))
            }))
        })
        .unwrap();
        assert_eq!(submit(&team, &[1]).wait().unwrap_err().message(), "lost");
        // The one here, and at most that of `open`, which ends with its thread.
        assert!(Arc::strong_count(&device) <= 2);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_follower_that_fails_gives_its_cause_to_callers_while_rank_0_waits_in_a_collective() {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let abort = Arc::clone(&gate);
        let team = Team {
            abort: Arc::new(move |_| {
                *abort.0.lock().unwrap() = true;
                abort.1.notify_all();
            }),
            ..team(2)
        };
        let threads = start(&team, move |rank| {
            let gate = Arc::clone(&gate);
            Ok(Box::new(move |_: &Packed| {
                if rank == 1 {
                    return Err(Error::new(ErrorKind::Device, "lost"));
                }
                let mut aborted = gate.0.lock().unwrap();
                while !*aborted {
                    aborted = gate.1.wait(aborted).unwrap();
                }
                Err(Error::new(ErrorKind::Stopped, "another rank failed"))
            }))
        })
        .unwrap();
        assert_eq!(submit(&team, &[1]).wait().unwrap_err().message(), "rank 1 of 2: lost");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
