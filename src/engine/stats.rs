//! What an engine has computed, for progress bars and for seeing what sharing saves.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::batch::Packed;

/// What an engine has computed since it was opened. Counts only grow; a pass counts when it is through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Passes through the model.
    pub passes: u64,
    /// Sequences that got their logits, one for each conversation.
    pub sequences: u64,
    /// Tokens of those sequences, up to the scored one.
    pub tokens: u64,
    /// Tokens that were computed for them: those that sequences of a pass share from their start count once.
    pub unique_tokens: u64,
}

impl Stats {
    /// The part of `tokens` that was not computed again, from 0 to 1.
    pub fn shared(&self) -> f64 {
        let tokens = self.tokens.max(1) as f64;
        self.tokens.saturating_sub(self.unique_tokens) as f64 / tokens
    }
}

/// [`Stats`] that threads add to.
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

    pub(super) fn read(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            passes: read(&self.passes),
            sequences: read(&self.sequences),
            tokens: read(&self.tokens),
            unique_tokens: read(&self.unique_tokens),
        }
    }
}
