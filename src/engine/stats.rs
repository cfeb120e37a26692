//! [`Stats`]: counts of what an engine has queued and computed, for metrics and progress bars.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::batch::Packed;

/// Counts of what an engine has queued now, and of what it has computed since it was opened. A pass
/// counts when it is through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Sequences that wait for a pass, and for capacity of the queue.
    pub queued_sequences: usize,
    /// Tokens of those sequences, up to the scored one.
    pub queued_tokens: usize,
    /// Passes through the model.
    pub passes: u64,
    /// Sequences that were scored, one for each conversation.
    pub sequences: u64,
    /// Tokens of those sequences, up to the scored one.
    pub tokens: u64,
    /// Tokens that were computed for them: those that sequences of a pass share from their start
    /// count once.
    pub unique_tokens: u64,
}

impl Stats {
    /// Returns the fraction of `tokens` that sharing saved, from 0 to 1.
    pub fn shared(&self) -> f64 {
        let tokens = self.tokens.max(1) as f64;
        self.tokens.saturating_sub(self.unique_tokens) as f64 / tokens
    }
}

impl AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        self.queued_sequences += other.queued_sequences;
        self.queued_tokens += other.queued_tokens;
        self.passes += other.passes;
        self.sequences += other.sequences;
        self.tokens += other.tokens;
        self.unique_tokens += other.unique_tokens;
    }
}

/// The part of [`Stats`] that a replica counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    passes: AtomicU64,
    sequences: AtomicU64,
    tokens: AtomicU64,
    unique_tokens: AtomicU64,
}

impl Counters {
    /// Counts a pass that is through.
    pub(super) fn add(&self, packed: &Packed) {
        let length = |&last: &usize| u64::from(packed.positions[packed.last[last].row]) + 1;
        for (counter, more) in [
            (&self.passes, 1),
            (&self.sequences, packed.sequences.len() as u64),
            (&self.tokens, packed.sequences.iter().map(length).sum()),
            (&self.unique_tokens, packed.tokens.len() as u64),
        ] {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// Returns the counts, with nothing queued.
    pub(super) fn read(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            queued_sequences: 0,
            queued_tokens: 0,
            passes: read(&self.passes),
            sequences: read(&self.sequences),
            tokens: read(&self.tokens),
            unique_tokens: read(&self.unique_tokens),
        }
    }
}
