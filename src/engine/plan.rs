//! What an engine holds in memory, known before anything is allocated.

use std::fmt;

use crate::backend::{Capacity, Footprint};
use crate::config::ModelConfig;
use crate::engine::device::Chosen;
use crate::engine::residency::{Placement, Residency};
use crate::engine::{Options, geometry};
use crate::error::{Error, ErrorKind, Result};
use crate::shard::Shard;
use crate::weights::WeightBytes;

/// Sequences with different last tokens in one pass, at most: one for so many of the batch's tokens. What is a sequence's
/// own is rarely shorter, and the last layer's rows and, on GPUs, the seam tiles of shared prefixes are sized by it.
const TOKENS_PER_SEQUENCE: usize = 16;

/// What an engine holds in memory, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Ranks that share the model.
    pub ranks: usize,
    /// Bytes of rank 0's weights, as stored. On the CPU they are used where they are mapped.
    pub weight_bytes: WeightBytes,
    /// Which layers stay on the device.
    pub placement: Placement,
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
    /// The plan, and what is to be said of layers that do not stay on the device, if nobody asked for that.
    pub(super) fn new(
        config: &ModelConfig,
        options: &Options,
        chosen: &Chosen,
        ranks: usize,
        weight_bytes: WeightBytes,
    ) -> Result<(Self, Option<String>)> {
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
        let capacity =
            Capacity { tokens, sequences: options.batch_tokens.div_ceil(TOKENS_PER_SEQUENCE), mlp_tokens };
        let footprint = |placement: Placement| {
            let layers = match placement.streamed {
                0 => weight_bytes.layers,
                _ => (placement.resident + placement.slots) * weight_bytes.layer_max,
            };
            chosen.footprint(&geometry, &capacity, layers + weight_bytes.head)
        };
        let needed = |placement| footprint(placement).total();
        let free = match options.residency {
            // Opening the device to ask it takes time: only where the answer matters.
            Residency::Resident | Residency::Streamed { resident_layers: Some(_) } => None,
            Residency::Auto | Residency::Streamed { resident_layers: None } => chosen.free_bytes()?,
        };
        let placement = Placement::choose(options.residency, config.layers, free, needed)?;
        let said = free.filter(|_| options.residency == Residency::Auto && placement.streamed > 0).map(|free| {
            let Placement { resident, streamed, .. } = placement;
            format!(
                "the whole model needs {:.2} GiB, the GPU has {:.2} free: {resident} of {} layers stay on it, the other \
                 {streamed} are streamed through it in every pass",
                gib(needed(Placement::resident(config.layers))),
                gib(free),
                config.layers,
            )
        });
        let batch_tokens = options.batch_tokens;
        let footprint = footprint(placement);
        Ok((Self { ranks, weight_bytes, placement, footprint, batch_tokens, max_tokens, capacity }, said))
    }

    /// How many tokens are worth having in the queue: enough that a pass always finds a full batch.
    pub fn lookahead_tokens(&self) -> usize {
        4 * self.batch_tokens
    }
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ranks            {}", self.ranks)?;
        writeln!(
            f,
            "weights          {:.2} GiB a rank, {:.2} GiB of them allocated",
            gib(self.weight_bytes.layers + self.weight_bytes.head),
            gib(self.footprint.weights)
        )?;
        let Placement { resident, streamed, slots } = self.placement;
        writeln!(f, "layers           {resident} resident, {streamed} streamed through {slots} slots")?;
        writeln!(f, "workspace        {:.2} GiB a rank", gib(self.footprint.workspace))?;
        writeln!(
            f,
            "batch            {} unique tokens, {} sequences",
            self.batch_tokens, self.capacity.sequences
        )?;
        write!(f, "longest sequence {} tokens", self.max_tokens)
    }
}
