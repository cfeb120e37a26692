//! What an engine holds in memory, known before anything is allocated.

use std::fmt;

use crate::backend::{Capacity, Footprint, Geometry};
use crate::config::ModelConfig;
use crate::engine::options::Options;
use crate::engine::platform::Platform;
use crate::engine::residency::{Placement, Residency};
use crate::error::{Error, ErrorKind, Result};
use crate::model::rope;
use crate::shard::Shard;
use crate::units::gib;
use crate::weights::{ModelTensors, WeightBytes};

/// Sequences with different last tokens in one pass, at most: one for so many of the batch's tokens. What is a sequence's
/// own is rarely shorter, and the last layer's rows and, on GPUs, the seam tiles of shared prefixes are sized by it.
const TOKENS_PER_SEQUENCE: usize = 16;

/// Unique tokens of a pass, where nothing else is asked for: matrix products are at full speed from there on.
const BATCH_TOKENS: usize = 4096;

/// The same where layers are streamed, the largest first that leaves half of what is free to layers: each layer is copied
/// once a pass, under the computation of that many tokens. 13,000 hide a link of PCIe 5 behind an H200's bf16.
const BATCH_TOKENS_STREAMED: [usize; 2] = [16_384, 8192];

/// What an engine holds in memory, and its limits.
///
/// What NCCL holds for several ranks on GPUs is not in it, as it is not known beforehand: about 10 MiB of buffers for each
/// channel and each neighbour in it that it receives from, by its source. How many of both there are NCCL decides, by its
/// version, its algorithm and how the GPUs are linked (channels are at most 8 here, unless sums never overlap), and
/// multicast over NVLink has buffers of its own. One communicator with 1.6 GB was reported; NVIDIA's tests of NCCL leave
/// it 1 GB of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Ranks that share the model.
    pub ranks: usize,
    /// Bytes of rank 0's weights, as stored. On the CPU they are used where they are mapped.
    pub weight_bytes: WeightBytes,
    /// Bytes of a layer of rank 0 on the device, the largest; none on the CPU.
    pub layer_bytes: usize,
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
    /// Floating-point operations of one rank's matrix products for one token.
    pub flops_per_token: u64,
}

impl MemoryPlan {
    /// The plan, and what is to be said of layers that do not stay on the device, if nobody asked for that.
    pub(super) fn new(
        config: &ModelConfig,
        options: &Options,
        platform: &dyn Platform,
        ranks: usize,
        tensors: &ModelTensors,
    ) -> Result<(Self, Option<String>)> {
        let max_tokens = options.max_tokens.unwrap_or(config.max_tokens).min(config.max_tokens);
        let batch_tokens = options.batching.batch_tokens.unwrap_or(BATCH_TOKENS);
        if max_tokens == 0 || batch_tokens == 0 {
            return Err(Error::new(
                ErrorKind::Options,
                format!(
                    "a pass of at most 0 tokens scores nothing (batch {batch_tokens}, longest sequence {max_tokens})"
                ),
            ));
        }
        let free = match options.residency {
            // Opening the device to ask it takes time: only where the answer matters.
            Residency::Resident | Residency::Streamed { resident_layers: Some(_) } => None,
            Residency::Auto | Residency::Streamed { resident_layers: None } => platform.free_bytes()?,
        };
        let geometry = geometry(config, options, Shard::new(config, 0, ranks)?);
        let (stored, on_device) = (tensors.bytes(), platform.weight_bytes(&geometry, tensors));
        let residency = options.residency;
        let sizing = Sizing { config, geometry, residency, platform, stored, on_device, max_tokens, free };
        let plan = sizing.plan(batch_tokens)?;
        let plan = match free {
            // Ranks in other processes may have other memory free, and must come to the same batches.
            Some(free)
                if plan.placement.streamed > 0
                    && options.batching.batch_tokens.is_none()
                    && options.cluster().is_none() =>
            {
                sizing.largest_streaming(free)?.unwrap_or(plan)
            }
            _ => plan,
        };
        let warning = free.filter(|_| options.residency == Residency::Auto && plan.placement.streamed > 0);
        let warning = warning.map(|free| {
            let Placement { resident, streamed, .. } = plan.placement;
            let all = sizing.footprint(&plan.capacity, Placement::resident(config.layers));
            format!(
                "the whole model needs {:.2} GiB, the GPU has {:.2} free: {resident} of {} layers stay on it, the other \
                 {streamed} are streamed through it in every pass",
                gib(all.total()),
                gib(free),
                config.layers,
            )
        });
        Ok((plan, warning))
    }

    /// Bytes of one rank's layers that are copied to its device in every pass.
    pub fn streamed_bytes(&self) -> usize {
        self.placement.streamed * self.layer_bytes
    }

    /// How many tokens are worth having in the queue: enough that a pass always finds a full batch, also where
    /// sequences share nearly all of their tokens.
    pub fn lookahead_tokens(&self) -> usize {
        64 * self.batch_tokens
    }
}

/// What plans of one engine have in common.
struct Sizing<'a> {
    config: &'a ModelConfig,
    /// Of rank 0, like whose the other ranks' are.
    geometry: Geometry,
    residency: Residency,
    platform: &'a dyn Platform,
    /// Its weights in their files, and on the device.
    stored: WeightBytes,
    on_device: WeightBytes,
    max_tokens: usize,
    /// Bytes that are free on the device, where that matters.
    free: Option<usize>,
}

impl Sizing<'_> {
    fn capacity(&self, batch_tokens: usize) -> Capacity {
        let tokens = batch_tokens.max(self.max_tokens);
        let mlp_tokens = self.platform.mlp_tokens(&self.geometry, tokens);
        Capacity { tokens, sequences: batch_tokens.div_ceil(TOKENS_PER_SEQUENCE), mlp_tokens }
    }

    /// A multiplication and an addition for each weight of the layers' matrices.
    fn flops_per_token(&self) -> u64 {
        let Geometry { hidden, shard, .. } = &self.geometry;
        let attention = hidden * (shard.qkv_width_local() + shard.q_width_local());
        2 * (self.config.layers * (attention + 3 * hidden * shard.ffn_local)) as u64
    }

    fn footprint(&self, capacity: &Capacity, placement: Placement) -> Footprint {
        let WeightBytes { layers, layer_max, head, .. } = self.on_device;
        let layers = match placement.streamed {
            0 => layers,
            _ => (placement.resident + placement.slots) * layer_max,
        };
        self.platform.footprint(&self.geometry, capacity, layers + head)
    }

    /// The plan for passes of so many tokens.
    fn plan(&self, batch_tokens: usize) -> Result<MemoryPlan> {
        let Self { stored: weight_bytes, on_device, max_tokens, .. } = *self;
        let (capacity, ranks) = (self.capacity(batch_tokens), self.geometry.shard.ranks);
        let needed = |placement| self.footprint(&capacity, placement).total();
        let placement = Placement::choose(self.residency, self.config.layers, self.free, needed)?;
        let footprint = self.footprint(&capacity, placement);
        let flops_per_token = self.flops_per_token();
        Ok(MemoryPlan {
            ranks,
            weight_bytes,
            layer_bytes: on_device.layer_max,
            placement,
            footprint,
            batch_tokens,
            max_tokens,
            capacity,
            flops_per_token,
        })
    }

    /// The plan for the largest passes of streamed layers that leave half of `free` to them.
    fn largest_streaming(&self, free: usize) -> Result<Option<MemoryPlan>> {
        let workspace = |tokens| self.footprint(&self.capacity(tokens), Placement::resident(0)).workspace;
        let largest = BATCH_TOKENS_STREAMED.into_iter().find(|&tokens| workspace(tokens) <= free / 2);
        largest.map(|tokens| self.plan(tokens)).transpose()
    }
}

/// Returns what the ops of one rank need to know of the model.
pub(super) fn geometry(config: &ModelConfig, options: &Options, shard: Shard) -> Geometry {
    let frequencies = rope::frequencies(&config.rope, config.head_dim);
    let geometry = Geometry::new(config, shard, frequencies, config.labels());
    match options.cuda() {
        Some(cuda) => Geometry { all_reduce: cuda.all_reduce, overlap: cuda.overlap, ..geometry },
        None => geometry,
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ranks            {}", self.ranks)?;
        writeln!(
            f,
            "weights          {:.2} GiB a rank as stored, {:.2} GiB allocated",
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

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::backend::tier::CudaTier;
    use crate::config::Head;
    use crate::engine::options::CudaOptions;
    use crate::engine::platform::{CudaPlatform, PlannedGpus};
    use crate::weights::{Dtype, ModelTensors, RandomWeights};

    #[test]
    fn random_weights_of_the_70b_fit_on_a_card_of_141_gb_as_its_own_do() {
        let config = ModelConfig {
            hidden: 8192,
            layers: 80,
            q_heads: 64,
            kv_heads: 8,
            head_dim: 128,
            ffn: 28_672,
            vocab: 4096,
            max_tokens: 131_072,
            head: Head::LogitZero { tied: true },
            ..ModelConfig::tiny()
        };
        let free_bytes = 143_000 << 20;
        let gpus = PlannedGpus { name: "H200".to_owned(), tier: CudaTier::Sm80, free_bytes, count: 1 };
        let shard = Shard::new(&config, 0, 1).unwrap();
        let tensors = ModelTensors::random(&RandomWeights::new(&config, 0), &config, &shard);
        let options = Options { max_tokens: Some(4096), ..Options::default() };
        let platform = CudaPlatform::imagined(&gpus, &CudaOptions::default());
        let (random, warning) = MemoryPlan::new(&config, &options, &platform, 1, &tensors).unwrap();
        assert_eq!(random.weight_bytes, WeightBytes::of(&config, &shard, Dtype::BF16));
        assert_eq!((random.placement, warning), (Placement::resident(80), None));
        assert_eq!(format!("{:.2}", gib(random.footprint.weights)), "127.50");
        assert!(random.footprint.total() <= free_bytes);
    }
}
