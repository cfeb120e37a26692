//! Where ranks meet: one slot a rank and collective, a deadline, a way out by abort.

use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a waiting rank looks for an abort.
const LOOK: Duration = Duration::from_millis(5);

/// Element types with their `ncclDataType_t` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    F16 = 6,
    F32 = 7,
    Bf16 = 9,
}

impl Element {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        [Self::F16, Self::F32, Self::Bf16].into_iter().find(|e| *e as u32 == number)
    }

    pub(super) fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }

    fn write(self, value: f32, bytes: &mut [u8]) {
        match self {
            Self::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
            Self::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Self::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        }
    }
}

struct Round {
    parts: Vec<Option<Vec<u8>>>,
    left: usize,
}

/// What the ranks of one communicator share.
pub struct Group {
    pub(super) ranks: usize,
    /// Device of each rank that has joined.
    pub(super) joined: Mutex<Vec<Option<usize>>>,
    rounds: Mutex<HashMap<u64, Round>>,
    changed: Condvar,
}

/// One rank's end.
pub struct Comm {
    pub(super) group: std::sync::Arc<Group>,
    pub(super) rank: usize,
    pub(super) device: usize,
    pub(super) aborted: AtomicBool,
    /// `ncclResult_t` that `ncclCommGetAsyncError` reports.
    pub(super) error: AtomicU32,
    pub(super) next: std::sync::atomic::AtomicU64,
}

/// How a meeting ended.
pub enum Outcome {
    /// Everybody's bytes, by rank.
    All(Vec<Vec<u8>>),
    /// This rank's communicator was aborted.
    Aborted,
    /// The deadline passed; the ranks that did not come.
    Missing(Vec<usize>),
}

impl Group {
    pub(super) fn new(ranks: usize) -> Self {
        Self {
            ranks,
            joined: Mutex::new(vec![None; ranks]),
            rounds: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner).iter().all(Option::is_some)
    }

    /// Brings `bytes` to meeting `sequence` and waits for the others.
    pub(super) fn meet(&self, comm: &Comm, sequence: u64, bytes: Vec<u8>, deadline: Instant) -> Outcome {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let ranks = self.ranks;
        let round = rounds.entry(sequence).or_insert_with(|| Round { parts: vec![None; ranks], left: 0 });
        round.parts[comm.rank] = Some(bytes);
        self.changed.notify_all();
        loop {
            let Some(round) = rounds.get_mut(&sequence) else { return Outcome::Aborted };
            if round.parts.iter().all(Option::is_some) {
                let parts = round.parts.iter().flatten().cloned().collect();
                round.left += 1;
                if round.left == ranks {
                    rounds.remove(&sequence);
                }
                return Outcome::All(parts);
            }
            if comm.aborted.load(Ordering::Acquire) {
                return Outcome::Aborted;
            }
            if Instant::now() >= deadline {
                let missing = (0..ranks).filter(|&r| round.parts[r].is_none()).collect();
                return Outcome::Missing(missing);
            }
            rounds = self.changed.wait_timeout(rounds, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The sum that every rank receives.
pub(super) fn ring_sum(element: Element, parts: &[Vec<u8>]) -> Vec<u8> {
    let (ranks, size) = (parts.len(), element.bytes());
    let count = parts[0].len() / size;
    let chunk = count.div_ceil(ranks).max(1);
    let mut out = vec![0u8; parts[0].len()];
    for i in 0..count {
        let at = i * size..(i + 1) * size;
        let first = i / chunk + 1;
        let hop = |r: usize| element.read(&parts[(first + r) % ranks][at.clone()]);
        let mut held = vec![0u8; size];
        element.write(hop(0), &mut held);
        for r in 1..ranks {
            let sum = element.read(&held) + hop(r);
            element.write(sum, &mut held);
        }
        out[at].copy_from_slice(&held);
    }
    out
}
