//! [`Score`]: the result of one conversation.

use std::time::Duration;

use half::bf16;

use crate::config::Normalization;
use crate::error::{Error, ErrorKind, Result};

/// The score of one conversation. Two are equal when all but their times are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Score {
    /// The reward in f32, as computed: the raw logit 0, finite.
    pub reward: f32,
    /// The reward rounded to bf16, the precision in which Transformers reports a bf16 model's.
    pub reward_bf16: f32,
    /// The reward less the mean, over the standard deviation that `config.json` gives, where that
    /// says `normalize_reward`, as OpenRLHF writes it.
    pub reward_normalized: Option<f32>,
    /// The logit of every label, the reward first: one, but for classifiers with several labels.
    pub logits: Vec<f32>,
    /// Tokens of the conversation, after truncation.
    pub tokens: usize,
    /// Whether the conversation was cut to the limit.
    pub truncated: bool,
    /// Index of the token whose logits these are, from 0: the last one, except for a classifier
    /// whose input ends in `pad_token_id`.
    pub scored_token: usize,
    /// Time from the submission until a pass took the conversation.
    pub queue_time: Duration,
    /// Time from then until the reward was there: the pass, and the end of the one before it where
    /// this one was packed meanwhile.
    pub compute_time: Duration,
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        let all_but_times = |score: &Self| {
            let Self { reward, reward_bf16, reward_normalized, tokens, truncated, scored_token, .. } = *score;
            (reward, reward_bf16, reward_normalized, tokens, truncated, scored_token)
        };
        all_but_times(self) == all_but_times(other) && self.logits == other.logits
    }
}

/// The part of a [`Score`] that is known before its logits are computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    pub(super) tokens: usize,
    pub(super) truncated: bool,
    pub(super) scored_token: usize,
    pub(super) normalization: Option<Normalization>,
}

/// The times of a [`Score`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) queue_time: Duration,
    pub(super) compute_time: Duration,
}

#[cfg(test)]
impl Sequence {
    /// One of so many tokens, of which the last is scored.
    pub(super) fn whole(tokens: usize) -> Self {
        Self { tokens, truncated: false, scored_token: tokens - 1, normalization: None }
    }
}

impl Score {
    pub(super) fn new(logits: &[f32], sequence: Sequence, times: Times) -> Result<Self> {
        if let Some(bad) = logits.iter().find(|logit| !logit.is_finite()) {
            return Err(Error::new(ErrorKind::NonFinite, format!("the reward came out as {bad}")).with_hint(
                "the weights hold NaN or infinity, or values that overflow; check the files against their source",
            ));
        }
        let (reward, logits) = (logits[0], logits.to_vec());
        let reward_bf16 = bf16::from_f32(reward).to_f32();
        let Sequence { tokens, truncated, scored_token, normalization } = sequence;
        let reward_normalized = normalization.map(|Normalization { mean, std }| (reward - mean) / std);
        let Times { queue_time, compute_time } = times;
        Ok(Self {
            reward,
            reward_bf16,
            reward_normalized,
            logits,
            tokens,
            truncated,
            scored_token,
            queue_time,
            compute_time,
        })
    }
}
