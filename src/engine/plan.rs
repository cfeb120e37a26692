//! What an engine holds in memory, known before anything is allocated.

use std::fmt;

use crate::backend::{Capacity, Footprint};
use crate::config::ModelConfig;
use crate::engine::device::Chosen;
use crate::engine::{Options, geometry};
use crate::error::{Error, ErrorKind, Result};
use crate::shard::Shard;
use crate::weights::WeightBytes;

/// Sequences with different last tokens in one pass, at most. The last layer's rows are sized by it: 32 MiB at the
/// width of a 70B.
const SEQUENCES_MAX: usize = 1024;

/// What an engine holds in memory, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Ranks that share the model.
    pub ranks: usize,
    /// Bytes of rank 0's weights, as stored. On the CPU they are used where they are mapped.
    pub weight_bytes: WeightBytes,
    /// Bytes that one rank allocates for weights and for passes.
    pub footprint: Footprint,
    /// Unique tokens that one pass takes together.
    pub batch_tokens: usize,
    /// The longest sequence, in tokens.
    pub max_tokens: usize,
    /// What passes are sized for.
    pub capacity: Capacity,
}

impl Plan {
    pub(super) fn new(
        config: &ModelConfig,
        options: &Options,
        chosen: &Chosen,
        ranks: usize,
        weight_bytes: WeightBytes,
    ) -> Result<Self> {
        let max_tokens = options.max_tokens.unwrap_or(config.max_tokens).min(config.max_tokens);
        if max_tokens == 0 || options.batch_tokens == 0 {
            return Err(Error::new(
                ErrorKind::Options,
                format!(
                    "a pass of at most 0 tokens scores nothing (batch {}, longest sequence {max_tokens})",
                    options.batch_tokens
                ),
            ));
        }
        let tokens = options.batch_tokens.max(max_tokens);
        let geometry = geometry(config, options, Shard::new(config, 0, ranks)?);
        let mlp_tokens = chosen.mlp_tokens(&geometry, tokens);
        let capacity = Capacity { tokens, sequences: SEQUENCES_MAX.min(tokens), mlp_tokens };
        let footprint = chosen.footprint(&geometry, &capacity, weight_bytes.layers + weight_bytes.head);
        let batch_tokens = options.batch_tokens;
        Ok(Self { ranks, weight_bytes, footprint, batch_tokens, max_tokens, capacity })
    }

    /// How many tokens are worth having in the queue: enough that a pass always finds a full batch.
    pub fn lookahead_tokens(&self) -> usize {
        4 * self.batch_tokens
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        writeln!(f, "ranks            {}", self.ranks)?;
        writeln!(
            f,
            "weights          {:.2} GiB a rank, {:.2} GiB of them allocated",
            gib(self.weight_bytes.layers + self.weight_bytes.head),
            gib(self.footprint.weights)
        )?;
        writeln!(f, "workspace        {:.2} GiB a rank", gib(self.footprint.workspace))?;
        writeln!(
            f,
            "batch            {} unique tokens, {} sequences",
            self.batch_tokens, self.capacity.sequences
        )?;
        write!(f, "longest sequence {} tokens", self.max_tokens)
    }
}
