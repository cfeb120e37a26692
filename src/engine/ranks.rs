//! One thread per rank: the threads start together, score batches, and end together.
//!
//! Rank 0 takes batches from the queue, sends them to the other ranks, and completes the scores.
//! The first failure of any rank, error or panic, closes the queue with its cause and aborts the
//! other ranks' collectives, so that no rank waits for one that has failed.
//!
//! Replicas are teams of ranks that take from one queue. The failure of one ends the others when
//! their passes end.
//!
//! A rank in another process has a thread here too, which sends it the batches
//! (`cluster/processes.rs`).

use std::any::Any;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::backend::NextBatch;
use crate::batch::{Budget, Packed, Sharing};
use crate::engine::queue::{Queue, Reply};
use crate::error::{Error, ErrorKind, Result};

/// Interval at which a rank that waits for a batch checks itself ([`Rank::check_idle`]).
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Time for which a rank whose failure is a consequence of another one's waits for that one's
/// error, where ranks are in several processes: the end of a process may be noticed before its
/// error arrives.
pub(super) const CAUSE_TIMEOUT: Duration = Duration::from_secs(2);

/// One rank's model on its device.
pub(super) trait Rank {
    /// Connects to the other ranks; called once, after all have opened.
    fn connect(&mut self) -> Result<()> {
        Ok(())
    }

    /// Runs one pass: from a packed batch to `[packed.last.len(), labels]` logits. A rank whose
    /// device is asynchronous calls `next_batch` once, when the pass is queued, and begins the pass
    /// over the batch that it returns, which is the next.
    fn forward(&mut self, packed: &Packed, next_batch: NextBatch<'_>) -> Result<Vec<f32>>;

    /// Waits for what was begun of a pass that will not be run. Called once, at the end of a rank
    /// that has not failed, while the others live.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    /// Checks the rank while it waits for a batch.
    fn check_idle(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The state that all ranks of one replica share.
#[derive(Clone)]
pub(super) struct Team {
    /// The replica, from 0, and the number of replicas.
    pub(super) replica: (usize, usize),
    pub(super) queue: Arc<Queue>,
    pub(super) ranks: usize,
    pub(super) budget: Budget,
    pub(super) sharing: Sharing,
    /// Logits per sequence.
    pub(super) labels: usize,
    /// Aborts the collectives that ranks wait in, for a cause that the queue has been closed with.
    pub(super) abort: Arc<dyn Fn(&Error) + Send + Sync>,
    /// Time for which a rank whose failure is a consequence of another one's waits for that one's
    /// error.
    pub(super) cause_timeout: Duration,
}

impl Team {
    /// Runs `work` of a rank, as [`guarded`] does, and prefixes an error with the replica where there
    /// are several.
    fn guarded<T>(&self, rank: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = guarded(rank, self.ranks, work);
        match self.replica {
            (_, 1) => result,
            (replica, replicas) => {
                result.map_err(|error| error.prefixed(format!("replica {replica} of {replicas}")))
            }
        }
    }

    /// Ends all ranks because one failed with `error`. Returns the first cause, and the replies of
    /// what is queued.
    fn fail(&self, error: Error) -> (Error, Vec<Reply>) {
        if error.kind() == ErrorKind::Stopped {
            let _ = self.queue.closed_within(self.cause_timeout);
        }
        // The queue keeps the first error: if this one is a consequence of another rank's, that is
        // the cause.
        let (cause, queued) = self.queue.stop(error);
        (self.abort)(&cause);
        (cause, queued)
    }
}

/// Starts one thread per rank of each team. `open(replica, rank)` runs on that rank's thread; when
/// all have opened they connect, and when all are connected they take batches. Returns an error of
/// either step after all threads have ended.
pub(super) fn start(
    teams: &[Team],
    open: impl Fn(usize, usize) -> Result<Box<dyn Rank>> + Send + Sync + 'static,
) -> Result<Vec<JoinHandle<()>>> {
    let open = Arc::new(open);
    let mut started = Started { votes: Vec::new(), go: Vec::new(), threads: Vec::new() };
    for team in teams {
        let (open, replica) = (Arc::clone(&open), team.replica.0);
        if let Err(error) = start_team(team, Arc::new(move |rank| open(replica, rank)), &mut started) {
            return abort_start(error, started);
        }
    }
    // All have opened; then all are connected.
    for _ in 0..2 {
        if let Err(error) = collect_votes(&started.votes) {
            return abort_start(error, started);
        }
        for sender in &started.go {
            // A rank that has exited reported its error in its next vote, or closed the queue with
            // it.
            let _ = sender.send(());
        }
    }
    Ok(started.threads)
}

/// Threads that have started, in one order.
struct Started {
    votes: Vec<Receiver<Result<()>>>,
    go: Vec<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts a thread for each rank of a team.
fn start_team(
    team: &Team,
    open: Arc<dyn Fn(usize) -> Result<Box<dyn Rank>> + Send + Sync>,
    started: &mut Started,
) -> Result<()> {
    let (mut commands, mut receivers) = (Vec::new(), Vec::new());
    for _ in 1..team.ranks {
        let (sender, receiver) = channel();
        commands.push(sender);
        receivers.push(receiver);
    }
    let (following, followers_end) = channel();
    let mut leader = Some((commands, followers_end));
    let mut followers = receivers.into_iter();
    for rank in 0..team.ranks {
        let (vote_sender, vote) = channel();
        let (go_sender, start) = channel();
        started.votes.push(vote);
        started.go.push(go_sender);
        let channels = match leader.take() {
            Some((commands, followers_end)) => Channels::Leader(commands, followers_end),
            None => {
                let commands = followers.next().expect("a channel for every follower");
                Channels::Follower(commands, following.clone())
            }
        };
        let (team, open) = (team.clone(), Arc::clone(&open));
        let name = match team.replica {
            (_, 1) => format!("kudos-rank-{rank}"),
            (replica, _) => format!("kudos-rank-{replica}-{rank}"),
        };
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || run(rank, &team, &*open, channels, &vote_sender, &start))
            .map_err(|error| {
                Error::new(ErrorKind::Io, format!("cannot start a thread for rank {rank}")).caused_by(error)
            });
        started.threads.push(thread?);
    }
    Ok(())
}

/// Waits for every rank's vote. Returns the first error that is a cause, rather than its
/// consequence on another rank.
fn collect_votes(votes: &[Receiver<Result<()>>]) -> Result<()> {
    let lost = || Err(Error::new(ErrorKind::Stopped, "a rank thread exited without reporting an error"));
    let mut errors = votes.iter().filter_map(|vote| vote.recv().unwrap_or_else(|_| lost()).err());
    let Some(first) = errors.next() else { return Ok(()) };
    let causes = [first].into_iter().chain(errors).collect::<Vec<_>>();
    let cause = causes.iter().find(|error| error.kind() != ErrorKind::Stopped).unwrap_or(&causes[0]);
    Err(cause.clone())
}

/// Ends the threads that wait for their start and returns the error.
fn abort_start<T>(error: Error, started: Started) -> Result<T> {
    drop(started.go);
    for thread in started.threads {
        let _ = thread.join();
    }
    Err(error)
}

/// A rank's ends of the channels between rank 0 and the followers.
enum Channels {
    /// Senders of commands, one per follower. The receiver disconnects when all followers have
    /// ended.
    Leader(Vec<Sender<Command>>, Receiver<Infallible>),
    /// The receiver of commands. The sender is dropped when the follower ends.
    Follower(Receiver<Command>, Sender<Infallible>),
}

/// A command of rank 0 to the followers.
#[derive(Clone)]
enum Command {
    /// Run a pass over this batch.
    Pass(Arc<Packed>),
    /// The batch of the next pass, where it is known. Sent once per pass, while it runs.
    Next(Option<Arc<Packed>>),
}

fn run(
    rank: usize,
    team: &Team,
    open: &(dyn Fn(usize) -> Result<Box<dyn Rank>> + Send + Sync),
    channels: Channels,
    vote: &Sender<Result<()>>,
    go: &Receiver<()>,
) {
    let opened = team.guarded(rank, || open(rank));
    let mut forward = match opened {
        Ok(forward) => forward,
        Err(error) => {
            // Ranks in other processes learn of it now, while they load.
            let (cause, _) = team.fail(error);
            return drop(vote.send(Err(cause)));
        }
    };
    if vote.send(Ok(())).is_err() || go.recv().is_err() {
        return;
    }
    if let Err(error) = team.guarded(rank, || forward.connect()) {
        // Other ranks may be waiting for this one.
        let (cause, _) = team.fail(error);
        drop(forward);
        return drop(vote.send(Err(cause)));
    }
    if vote.send(Ok(())).is_err() || go.recv().is_err() {
        return;
    }
    let mut in_flight = Vec::new();
    let result = team.guarded(rank, || match channels {
        Channels::Leader(followers, followers_end) => {
            lead(team, &mut *forward, &followers, &mut in_flight)?;
            drop(followers);
            forward.finish()?;
            // They may still be receiving from this rank, in the last pass's last all-reduce.
            let Err(_ended) = followers_end.recv();
            Ok(())
        }
        Channels::Follower(commands, _following) => follow(&mut *forward, &commands),
    });
    if let Err(error) = result {
        let (cause, queued) = team.fail(error);
        // The device is released before any caller is notified: one that then opens another engine
        // finds the memory free.
        drop(forward);
        for reply in in_flight.into_iter().chain(queued) {
            reply.complete(Err(cause.clone()));
        }
    }
}

/// Scores batches until the queue is closed. `in_flight` holds the replies of the pass that runs,
/// then those of the next batch where it was taken already.
fn lead(
    team: &Team,
    forward: &mut dyn Rank,
    followers: &[Sender<Command>],
    in_flight: &mut Vec<Reply>,
) -> Result<()> {
    let broadcast = |command: &Command| {
        for follower in followers {
            // A follower that has failed has closed the queue and aborted the collectives: the pass
            // ends at once.
            let _ = follower.send(command.clone());
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
        broadcast(&Command::Pass(Arc::clone(&packed)));
        let mut asked = false;
        let mut next_batch = || {
            asked = true;
            if let Some((packed, replies)) = team.queue.full_batch(team.budget, team.sharing) {
                in_flight.extend(replies);
                next = Some(Arc::new(packed));
            }
            broadcast(&Command::Next(next.clone()));
            next.clone()
        };
        let logits = forward.forward(&packed, &mut next_batch)?;
        if !asked {
            broadcast(&Command::Next(None));
        }
        team.queue.computed(team.replica.0).add(&packed);
        for (reply, &row) in in_flight.drain(..packed.sequences.len()).zip(&packed.sequences) {
            reply.complete(Ok(&logits[row * team.labels..(row + 1) * team.labels]));
        }
        if let Some(error) = team.queue.closed() {
            // The next batch, where it was taken, has no scores yet.
            in_flight.drain(..).for_each(|reply| reply.complete(Err(error.clone())));
            return Ok(());
        }
    }
}

/// Runs rank 0's commands until rank 0 ends.
fn follow(forward: &mut dyn Rank, commands: &Receiver<Command>) -> Result<()> {
    // Rank 0 sends one `Next` per pass; if it has ended, there is no next pass.
    let mut next_batch = || match commands.recv() {
        Ok(Command::Next(packed)) => packed,
        Ok(Command::Pass(_)) => {
            unreachable!("rank 0 sends `Next` for a pass before it runs the next one")
        }
        Err(_) => None,
    };
    loop {
        match commands.recv_timeout(POLL_INTERVAL) {
            Ok(Command::Pass(packed)) => drop(forward.forward(&packed, &mut next_batch)?),
            // From a pass that asked for nothing.
            Ok(Command::Next(_)) => {}
            Err(RecvTimeoutError::Timeout) => forward.check_idle()?,
            Err(RecvTimeoutError::Disconnected) => return forward.finish(),
        }
    }
}

/// Runs `work`. Turns a panic into an error, and prefixes an error with the rank where there are
/// several.
pub(super) fn guarded<T>(rank: usize, ranks: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(Error::new(
            ErrorKind::Stopped,
            format!("the engine has a bug and panicked: {}", panic_message(&*panic)),
        ))
    });
    let name = format!("rank {rank} of {ranks}");
    // An error from another process may have the prefix already.
    let is_named = |error: &Error| ranks == 1 || error.message().starts_with(&name);
    result.map_err(|error| if is_named(&error) { error } else { error.prefixed(&name) })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let message = panic.downcast_ref::<&str>().copied();
    message.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::queue::{Job, Pending, pending};
    use crate::engine::score::Sequence;
    use std::sync::{Condvar, Mutex};

    /// A rank that ignores the next batch.
    impl<F: FnMut(&Packed) -> Result<Vec<f32>>> Rank for F {
        fn forward(&mut self, packed: &Packed, _next_batch: NextBatch<'_>) -> Result<Vec<f32>> {
            self(packed)
        }
    }

    fn team(ranks: usize) -> Team {
        Team {
            replica: (0, 1),
            queue: Arc::new(Queue::new(1000, 1)),
            ranks,
            budget: Budget { tokens: 100, sequences: 100 },
            sharing: Sharing::Prefixes,
            labels: 1,
            abort: Arc::new(|_| {}),
            cause_timeout: Duration::ZERO,
        }
    }

    fn submit(team: &Team, ids: &[u32]) -> Pending {
        let (reply, pending) = pending(Sequence::whole(ids.len()));
        team.queue.try_push(Job { ids: ids.to_vec(), reply }).unwrap();
        pending
    }

    fn last_tokens(packed: &Packed) -> Result<Vec<f32>> {
        Ok(packed.last.iter().map(|last| packed.tokens[last.row] as f32).collect())
    }

    fn start_one(
        team: &Team,
        open: impl Fn(usize) -> Result<Box<dyn Rank>> + Send + Sync + 'static,
    ) -> Result<Vec<JoinHandle<()>>> {
        start(std::slice::from_ref(team), move |_, rank| open(rank))
    }

    #[test]
    fn replicas_take_from_one_queue_and_end_with_the_one_that_fails() {
        let queue = Arc::new(Queue::new(1000, 2));
        let budget = Budget { tokens: 1, sequences: 1 };
        let of = |replica| Team { replica: (replica, 2), queue: Arc::clone(&queue), budget, ..team(1) };
        let teams = [of(0), of(1)];
        // Each waits in its first pass for the other's: neither can take both.
        let both = Arc::new(std::sync::Barrier::new(2));
        let threads = start(&teams, move |replica, _| {
            let (both, mut passes) = (Arc::clone(&both), 0);
            Ok(Box::new(move |packed: &Packed| {
                passes += 1;
                if passes == 1 {
                    both.wait();
                } else if replica == 1 {
                    return Err(Error::new(ErrorKind::Device, "planted"));
                }
                last_tokens(packed)
            }))
        })
        .unwrap();
        let pendings = [7, 8].map(|id| submit(&teams[0], &[id]));
        let rewards = pendings.map(|pending| pending.wait().unwrap().reward);
        assert_eq!(rewards, [7.0, 8.0]);
        assert!(queue.stats_of_replicas().iter().all(|stats| stats.passes == 1));
        let error = loop {
            if let Err(error) = submit(&teams[0], &[9]).wait() {
                break error;
            }
        };
        assert_eq!(error.message(), "replica 1 of 2: planted");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(queue.closed().unwrap().message(), error.message());
    }

    fn stop(team: &Team, threads: Vec<JoinHandle<()>>) {
        team.queue.close(Error::new(ErrorKind::Stopped, "the end"));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn every_rank_runs_every_batch_and_rank_0_completes_the_scores() {
        let team = team(3);
        let seen = Arc::new(Mutex::new(vec![0; 3]));
        let counts = Arc::clone(&seen);
        let threads = start_one(&team, move |rank| {
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

    /// A rank that prefetches in every pass.
    struct Prefetching(Box<Pass>);

    /// A pass, with the next one's batch.
    type Pass = dyn FnMut(&Packed, Option<&Packed>) -> Result<Vec<f32>>;

    impl Rank for Prefetching {
        fn forward(&mut self, packed: &Packed, next_batch: NextBatch<'_>) -> Result<Vec<f32>> {
            let next = next_batch();
            self.0(packed, next.as_deref())
        }
    }

    #[test]
    fn every_rank_receives_the_next_full_batch_while_a_pass_runs() {
        let team = Team { budget: Budget { tokens: 3, sequences: 100 }, ..team(3) };
        let seen = Arc::new(Mutex::new(vec![Vec::new(); 3]));
        let all = Arc::clone(&seen);
        // Queued before a rank takes any: the first two batches are full.
        let pendings = [[1, 2, 3], [4, 5, 6], [7, 8, 9]].map(|ids| submit(&team, &ids));
        let threads = start_one(&team, move |rank| {
            let all = Arc::clone(&all);
            Ok(Box::new(Prefetching(Box::new(move |packed, next| {
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
            // Not full: a sequence that shares its prefix may still come.
            (vec![4, 5, 6], None),
            (vec![7, 8, 9], None),
        ];
        assert_eq!(*seen.lock().unwrap(), vec![passes; 3]);
    }

    #[test]
    fn a_next_batch_that_never_runs_is_completed_with_the_cause() {
        for fails in [false, true] {
            let team = Team { budget: Budget { tokens: 3, sequences: 100 }, ..team(2) };
            let pendings = [[1, 2, 3], [4, 5, 6], [7, 8, 9]].map(|ids| submit(&team, &ids));
            let queue = Arc::clone(&team.queue);
            let threads = start_one(&team, move |_| {
                let queue = Arc::clone(&queue);
                Ok(Box::new(Prefetching(Box::new(move |packed, _| match fails {
                    true => Err(Error::new(ErrorKind::Device, "lost")),
                    false => {
                        queue.close(Error::new(ErrorKind::Stopped, "the end"));
                        last_tokens(packed)
                    }
                }))))
            })
            .unwrap();
            let results = pendings.map(Pending::wait);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let messages = results.map(|result| result.map_err(|error| error.message().to_owned()));
            let [first, next, queued] = messages;
            assert_eq!(first.map(|score| score.reward).ok(), (!fails).then_some(3.0));
            let cause =
                |message: &str| if fails { message.ends_with(": lost") } else { message == "the end" };
            assert!(cause(&next.unwrap_err()) && cause(&queued.unwrap_err()), "fails: {fails}");
        }
    }

    #[test]
    fn a_rank_that_cannot_open_ends_the_others_and_is_named() {
        let error = start_one(&team(4), |rank| match rank {
            2 => Err(Error::new(ErrorKind::Memory, "no memory left")),
            _ => Ok(Box::new(last_tokens)),
        })
        .unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Memory, "rank 2 of 4: no memory left"));
    }

    #[test]
    fn a_panic_completes_the_batch_the_queue_and_later_submissions() {
        let team = team(1);
        let threads = start_one(&team, |_| Ok(Box::new(|_: &Packed| panic!("planted")))).unwrap();
        let error = submit(&team, &[1]).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stopped);
        assert!(error.message().contains("planted"), "{error}");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(team.queue.closed().unwrap().message(), error.message());
    }

    #[test]
    fn callers_are_notified_after_the_device_is_released() {
        let team = team(1);
        let device = Arc::new(());
        let held = Arc::clone(&device);
        let threads = start_one(&team, move |_| {
            let held = Arc::clone(&held);
            Ok(Box::new(move |_: &Packed| {
                let _held = &held;
                Err(Error::new(ErrorKind::Device, "lost"))
            }))
        })
        .unwrap();
        assert_eq!(submit(&team, &[1]).wait().unwrap_err().message(), "lost");
        // This one, and at most the one in `open`, which its thread drops at its end.
        assert!(Arc::strong_count(&device) <= 2);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_failed_follower_aborts_the_collective_of_rank_0() {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let abort = Arc::clone(&gate);
        let team = Team {
            abort: Arc::new(move |_| {
                *abort.0.lock().unwrap() = true;
                abort.1.notify_all();
            }),
            ..team(2)
        };
        let threads = start_one(&team, move |rank| {
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
