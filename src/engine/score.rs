//! [`Score`]: the result of one conversation.

use half::bf16;

use crate::config::Normalization;
use crate::error::{Error, ErrorKind, Result};

/// The score of one conversation.
#[derive(Clone, Debug, PartialEq)]
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
}

/// The part of a [`Score`] that is known before its logits are computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    pub(super) tokens: usize,
    pub(super) truncated: bool,
    pub(super) scored_token: usize,
    pub(super) normalization: Option<Normalization>,
}

#[cfg(test)]
impl Sequence {
    /// One of so many tokens, of which the last is scored.
    pub(super) fn whole(tokens: usize) -> Self {
        Self { tokens, truncated: false, scored_token: tokens - 1, normalization: None }
    }
}

impl Score {
    pub(super) fn new(logits: &[f32], sequence: Sequence) -> Result<Self> {
        if let Some(bad) = logits.iter().find(|logit| !logit.is_finite()) {
            return Err(Error::new(ErrorKind::NonFinite, format!("the reward came out as {bad}")).with_hint(
                "the weights hold NaN or infinity, or values that overflow; check the files against their source",
            ));
        }
        let (reward, logits) = (logits[0], logits.to_vec());
        let reward_bf16 = bf16::from_f32(reward).to_f32();
        let Sequence { tokens, truncated, scored_token, normalization } = sequence;
        let reward_normalized = normalization.map(|Normalization { mean, std }| (reward - mean) / std);
        Ok(Self { reward, reward_bf16, reward_normalized, logits, tokens, truncated, scored_token })
    }
}
