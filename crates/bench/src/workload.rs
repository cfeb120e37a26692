//! The sequences of one test: random ids, which share nothing but a prefix.

use std::fmt;

use kudos::internals::config::ModelConfig;
use kudos::internals::random::Random;
use kudos::internals::shard::Shard;
use kudos::{Error, ErrorKind, Result};
use kudos_cli::work::Work;

/// Sequences of one length, of which consecutive ones share a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    /// Tokens of each sequence, its prefix included.
    pub(super) tokens: usize,
    pub(super) sequences: usize,
    /// Tokens that `responses` consecutive sequences share; less than `tokens`.
    pub(super) shared_prefix: usize,
    /// 1 where nothing is shared.
    pub(super) responses: usize,
}

impl Workload {
    /// Refuses more sequences than there are ids: the first id after the prefix tells sequences
    /// apart, and equal ones would make them share more than the prefix.
    pub(super) fn check(&self, config: &ModelConfig) -> Result<()> {
        let ids = Ids::of(config).count;
        let alike = self.prefixes().max(self.responses);
        if alike <= ids {
            return Ok(());
        }
        let message = format!("{alike} different sequences were asked for, and the model has {ids} ids");
        Err(Error::new(ErrorKind::Options, message).with_hint("ask for fewer sequences (`--seqs`)"))
    }

    /// Prefixes that are computed: one per sequence where none is shared.
    fn prefixes(&self) -> usize {
        self.sequences.div_ceil(self.responses)
    }

    /// Tokens that must be computed, each shared prefix once.
    pub(super) fn unique_tokens(&self) -> usize {
        self.prefixes() * self.shared_prefix + self.sequences * (self.tokens - self.shared_prefix)
    }

    /// The sequences, equal in every run. None ends in a classifier's padding, at which no reward
    /// is read.
    pub(super) fn ids(&self, config: &ModelConfig) -> Vec<Vec<u32>> {
        let all = Ids::of(config);
        let run = |first: usize, len: usize, seed: usize| {
            let mut run = all.run(seed as u64, len);
            if let Some(id) = run.first_mut() {
                *id = all.id(first);
            }
            run
        };
        let sequence = |index: usize| {
            let (prompt, response) = (index / self.responses, index % self.responses);
            // The first id tells sequences apart: of all sequences where nothing is shared, else of
            // one prompt's.
            let first = if self.shared_prefix > 0 { response } else { index };
            let own = run(first, self.tokens - self.shared_prefix, self.prefixes() + index);
            [run(prompt, self.shared_prefix, prompt), own].concat()
        };
        (0..self.sequences).map(sequence).collect()
    }

    /// FLOP of all sequences on all ranks.
    pub(super) fn flop(&self, config: &ModelConfig) -> f64 {
        let shard = Shard::new(config, 0, 1).expect("one rank takes every model");
        let work = Work {
            sequences: self.sequences as f64,
            tokens: self.tokens as f64,
            prefixes: self.prefixes() as f64,
            prefix_tokens: self.shared_prefix as f64,
        };
        work.flop(config, &shard)
    }
}

/// `8 x 512`, or `32 x 1024, 768 shared by 8`
impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.sequences, self.tokens)?;
        if self.shared_prefix == 0 {
            return Ok(());
        }
        write!(f, ", {} shared by {}", self.shared_prefix, self.responses)
    }
}

/// A model's token ids without a classifier's padding, at which no reward is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids {
    pub(super) count: usize,
    /// One beyond the vocabulary where the model has no padding.
    pub(super) padding: usize,
}

impl Ids {
    pub(super) fn of(config: &ModelConfig) -> Self {
        let padding = match config.head.pad_token_id() {
            Some(pad) => pad as usize,
            None => config.vocab,
        };
        Self { count: config.vocab - usize::from(padding < config.vocab), padding }
    }

    /// The id of this index.
    fn id(self, index: usize) -> u32 {
        if index < self.padding { index as u32 } else { index as u32 + 1 }
    }

    /// Random ids; equal seeds give equal ids.
    pub(super) fn run(self, seed: u64, len: usize) -> Vec<u32> {
        let mut random = Random::new(seed);
        (0..len).map(|_| self.id((random.next_bits() % self.count as u64) as usize)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kudos::internals::batch::{Batch, Budget, Sharing};
    use kudos::internals::config::Head;

    fn config(pad_token_id: Option<u32>) -> ModelConfig {
        let text = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 8192,
            "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
            "vocab_size": 50, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192,
            "tie_word_embeddings": false,
        });
        let config = ModelConfig::parse(&text.to_string(), std::path::Path::new("config.json")).unwrap();
        let head =
            pad_token_id.map(|pad| Head::Score { labels: 1, labels_named: true, pad_token_id: Some(pad) });
        ModelConfig { head: head.unwrap_or(config.head), ..config }
    }

    #[test]
    fn sequences_share_only_their_prefix() {
        for (shared_prefix, responses) in [(0, 1), (1, 3), (7, 4)] {
            for tokens in [shared_prefix + 1, 12] {
                let workload = Workload { tokens, sequences: 11, shared_prefix, responses };
                let ids = workload.ids(&config(Some(3)));
                assert_eq!(ids.iter().map(Vec::len).sum::<usize>(), workload.sequences * tokens);
                assert!(ids.iter().flatten().all(|&id| id < 50 && id != 3));
                let budget = Budget { tokens: 10_000, sequences: 1000 };
                let mut batch = Batch::new(budget, Sharing::Prefixes);
                assert!(ids.iter().all(|ids| batch.try_add(ids)));
                assert_eq!(batch.tokens(), workload.unique_tokens(), "{workload}");
            }
        }
    }

    #[test]
    fn flop_are_the_70b_s_less_what_the_last_layer_saves() {
        let workload = Workload { tokens: 4096, sequences: 1, shared_prefix: 0, responses: 1 };
        let per_token = workload.flop(&config(None)) / 4096.0;
        // 136.90 GFLOP of matmuls and 5.37 of attention over 80 layers.
        let layer = 136.902e9 / 80.0;
        let expected = 79.0 * layer + 2.0 * 8192.0 * 2048.0 + (5.37e9 / 80.0) * 79.0;
        assert!((per_token / expected - 1.0).abs() < 1e-3, "{per_token} {expected}");
    }

    #[test]
    fn more_sequences_than_first_ids_are_refused() {
        let workload = Workload { tokens: 4, sequences: 50, shared_prefix: 0, responses: 1 };
        assert!(workload.check(&config(None)).is_ok());
        assert!(workload.check(&config(Some(3))).unwrap_err().hint().is_some());
    }
}
