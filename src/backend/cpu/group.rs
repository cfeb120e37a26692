//! The all-reduce between rank threads of one process, with a barrier that a failure breaks.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;

/// The ranks of one engine on the CPU.
///
/// Every rank adds the contributions in rank order by itself, so all ranks hold the same bits, in
/// every run.
#[derive(Debug)]
pub struct Group {
    ranks: usize,
    gate: Mutex<Gate>,
    advanced: Condvar,
    /// Contribution of each rank to the present all-reduce.
    contributions: Vec<RwLock<Vec<f32>>>,
}

#[derive(Debug, Default)]
struct Gate {
    arrived: usize,
    round: usize,
    aborted: bool,
}

impl Group {
    /// Creates a group of `ranks` ranks, none of which has arrived.
    pub fn new(ranks: usize) -> Self {
        let contributions = (0..ranks).map(|_| RwLock::default()).collect();
        Self { ranks, gate: Mutex::default(), advanced: Condvar::new(), contributions }
    }

    /// Number of ranks that take part in each all-reduce.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Replaces `data` by its sum over all ranks. Every rank calls this with the same length; it
    /// returns when all have arrived, or with an error when the group was aborted.
    pub fn all_reduce(&self, rank: usize, data: &mut [f32]) -> Result<()> {
        {
            let mut own = self.contributions[rank].write().unwrap_or_else(PoisonError::into_inner);
            own.clear();
            own.extend_from_slice(data);
        }
        self.wait_for_all()?;
        data.fill(0.0);
        for contribution in &self.contributions {
            let contribution = contribution.read().unwrap_or_else(PoisonError::into_inner);
            assert_eq!(contribution.len(), data.len(), "ranks contribute different numbers of elements");
            data.iter_mut().zip(contribution.iter()).for_each(|(sum, x)| *sum += x);
        }
        // No rank may overwrite its contribution while another still reads it.
        self.wait_for_all()
    }

    /// Fails the all-reduce of every rank that waits, and every later one.
    pub fn abort(&self) {
        self.lock().aborted = true;
        self.advanced.notify_all();
    }

    fn wait_for_all(&self) -> Result<()> {
        let mut gate = self.lock();
        gate.arrived += 1;
        if gate.arrived == self.ranks {
            gate.arrived = 0;
            gate.round += 1;
            self.advanced.notify_all();
        } else {
            let round = gate.round;
            while gate.round == round && !gate.aborted {
                gate = self.advanced.wait(gate).unwrap_or_else(PoisonError::into_inner);
            }
        }
        match gate.aborted {
            true => Err(Error::new(ErrorKind::Stopped, "another rank of this engine failed")),
            false => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        lock(&self.gate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn every_rank_gets_the_same_sum_in_every_all_reduce() {
        let group = Group::new(4);
        let sums: Vec<Vec<f32>> = thread::scope(|scope| {
            let ranks: Vec<_> = (0..4)
                .map(|rank| {
                    let group = &group;
                    scope.spawn(move || {
                        let mut last = vec![];
                        for round in 0..100 {
                            last = vec![0.1 * rank as f32, round as f32];
                            group.all_reduce(rank, &mut last).unwrap();
                        }
                        last
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let expected = [0.0 + 0.1 * 1.0 + 0.1 * 2.0 + 0.1 * 3.0_f32, 4.0 * 99.0];
        assert!(sums.iter().all(|sum| sum == &expected), "{sums:?}");
    }

    #[test]
    fn an_abort_fails_waiting_and_later_ranks() {
        let group = Group::new(2);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| group.all_reduce(0, &mut [1.0]));
            thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waiting.is_finished());
            group.abort();
            assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::Stopped);
        });
        assert!(group.all_reduce(1, &mut [1.0]).is_err());
    }
}
