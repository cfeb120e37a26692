//! [`MemoryPlan`]: the memory of an engine, planned before anything is allocated.

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

/// Tokens of a batch per sequence with a last token of its own, at least. The unshared part of a
/// sequence is rarely shorter; the last layer's rows and, on GPUs, the seam tiles of shared
/// prefixes are sized by it.
pub const TOKENS_PER_SEQUENCE: usize = 16;

/// Unique tokens of a pass by default: matmuls are at full speed from this size on.
pub const BATCH_TOKENS: usize = 4096;

/// Unique tokens of a pass by default where layers are streamed: the first value that leaves half
/// of the free memory to layers. Each layer is copied once a pass, while that many tokens are
/// computed: 13,000 hide the copies over PCIe 5 behind an H200's bf16.
const BATCH_TOKENS_STREAMED: [usize; 2] = [16_384, 8192];

/// The longest sequence by default, at least, where the device's memory limits it.
pub(super) const MAX_TOKENS_MIN: usize = 8192;

/// Step of the longest sequence where the device's memory limits it.
const MAX_TOKENS_STEP: usize = 1024;

/// The memory of an engine, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Copies of the model, on devices of their own.
    pub replicas: usize,
    /// Ranks of each replica.
    pub ranks: usize,
    /// Bytes of rank 0's weights, as stored. On the CPU they are used where they are mapped.
    pub weight_bytes: WeightBytes,
    /// Bytes of a layer of rank 0 on the device, the largest; none on the CPU.
    pub layer_bytes: usize,
    /// The layers that stay on the device.
    pub placement: Placement,
    /// Bytes that one rank allocates for weights and for passes.
    pub footprint: Footprint,
    /// Unique tokens that one pass takes together.
    pub batch_tokens: usize,
    /// Sequences with different last tokens that one pass takes together.
    pub sequences: usize,
    /// The longest sequence, in tokens.
    pub max_tokens: usize,
    /// Whether `max_tokens` follows from the device's memory, and is less than the model's limit:
    /// with longer sequences, not all layers would stay on the device.
    pub limited_by_memory: bool,
    /// The largest pass, for which activations are sized.
    pub(crate) capacity: Capacity,
    /// Floating-point operations of one rank's matmuls for one token.
    pub flops_per_token: u64,
}

impl MemoryPlan {
    /// Makes the plan, and a warning where the engine decided to stream layers.
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
                    "batches and sequences need at least 1 token, and the limits are {batch_tokens} and {max_tokens}"
                ),
            )
            .with_hint("leave the limits out (`--batch-tokens`, `--max-tokens`) for their defaults"));
        }
        let free = match options.residency {
            // Opening the device takes time: done only where its free memory matters.
            Residency::Resident | Residency::Streamed { resident_layers: Some(_) } => None,
            Residency::Auto | Residency::Streamed { resident_layers: None } => platform.free_bytes()?,
        };
        let geometry = geometry(config, options, Shard::new(config, 0, ranks)?);
        let (stored, on_device) = (tensors.bytes(), platform.weight_bytes(&geometry, tensors));
        let residency = options.residency;
        let mut sizing = Sizing {
            config,
            geometry,
            residency,
            platform,
            stored,
            on_device,
            max_tokens,
            limited_by_memory: false,
            free,
        };
        if options.max_tokens_may_follow_memory()
            && let Some(free) = if free.is_some() { free } else { platform.free_bytes()? }
        {
            sizing.max_tokens = sizing.longest_that_fits(free, batch_tokens);
            sizing.limited_by_memory = sizing.max_tokens < max_tokens;
        }
        let plan = sizing.plan(batch_tokens)?;
        let plan = match free {
            // Ranks in other processes may have less or more memory free, and all need the same
            // batch size.
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

    /// Returns the bytes of one rank's layers that are copied to its device in every pass.
    pub fn streamed_bytes(&self) -> usize {
        self.placement.streamed * self.layer_bytes
    }

    /// Returns the tokens to keep in the queue: enough for a full batch in every pass, even where
    /// sequences share nearly all of their tokens.
    pub fn lookahead_tokens(&self) -> usize {
        64 * self.batch_tokens
    }
}

/// The inputs of every plan of one engine.
struct Sizing<'a> {
    config: &'a ModelConfig,
    /// Rank 0's; the other ranks' have the same sizes.
    geometry: Geometry,
    residency: Residency,
    platform: &'a dyn Platform,
    /// Rank 0's weights in their files.
    stored: WeightBytes,
    /// Rank 0's weights on the device.
    on_device: WeightBytes,
    max_tokens: usize,
    limited_by_memory: bool,
    /// Free bytes on the device, where they matter.
    free: Option<usize>,
}

impl Sizing<'_> {
    fn capacity(&self, batch_tokens: usize) -> Capacity {
        self.capacity_for(batch_tokens, self.max_tokens)
    }

    fn capacity_for(&self, batch_tokens: usize, max_tokens: usize) -> Capacity {
        let tokens = batch_tokens.max(max_tokens);
        let mlp_tokens = self.platform.mlp_tokens(&self.geometry, tokens);
        Capacity { tokens, sequences: batch_tokens.div_ceil(TOKENS_PER_SEQUENCE), mlp_tokens }
    }

    /// Counts a multiplication and an addition for each weight of the layers' matrices.
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

    /// Makes the plan for passes of `batch_tokens` tokens.
    fn plan(&self, batch_tokens: usize) -> Result<MemoryPlan> {
        let Self { stored: weight_bytes, on_device, .. } = *self;
        let (capacity, ranks) = (self.capacity(batch_tokens), self.geometry.shard.ranks);
        // A pass of one sequence may take what one of many takes.
        let max_tokens = match self.limited_by_memory {
            true => capacity.tokens.min(self.config.max_tokens),
            false => self.max_tokens,
        };
        let needed = |placement| self.footprint(&capacity, placement).total();
        let placement = Placement::choose(self.residency, self.config.layers, self.free, needed)?;
        let footprint = self.footprint(&capacity, placement);
        let flops_per_token = self.flops_per_token();
        Ok(MemoryPlan {
            replicas: 1,
            ranks,
            weight_bytes,
            layer_bytes: on_device.layer_max,
            placement,
            footprint,
            batch_tokens,
            sequences: capacity.sequences,
            max_tokens,
            limited_by_memory: self.limited_by_memory && max_tokens < self.config.max_tokens,
            capacity,
            flops_per_token,
        })
    }

    /// Returns the longest sequence with which all layers stay on the device, or as many as are
    /// requested: the model's limit, or a multiple of [`MAX_TOKENS_STEP`], or [`MAX_TOKENS_MIN`]
    /// where that is too long, too.
    fn longest_that_fits(&self, free: usize, batch_tokens: usize) -> usize {
        let (most, layers) = (self.max_tokens, self.config.layers);
        let placement = match self.residency {
            Residency::Auto | Residency::Resident => Placement::resident(layers),
            Residency::Streamed { resident_layers: Some(count) } if count < layers => {
                Placement::streamed(count, layers)
            }
            // As many stay as fit beside the shortest.
            Residency::Streamed { .. } => return MAX_TOKENS_MIN.min(most),
        };
        let fits = |tokens| {
            let capacity = self.capacity_for(batch_tokens, tokens);
            self.footprint(&capacity, placement).total() <= free
        };
        if fits(most) {
            return most;
        }
        let (mut fit, mut too_long) = (MAX_TOKENS_MIN / MAX_TOKENS_STEP, most.div_ceil(MAX_TOKENS_STEP));
        while fit + 1 < too_long {
            let middle = (fit + too_long) / 2;
            *(if fits(middle * MAX_TOKENS_STEP) { &mut fit } else { &mut too_long }) = middle;
        }
        (fit * MAX_TOKENS_STEP).min(most)
    }

    /// Makes the plan for the largest passes that leave half of `free` to streamed layers.
    fn largest_streaming(&self, free: usize) -> Result<Option<MemoryPlan>> {
        let workspace = |tokens| self.footprint(&self.capacity(tokens), Placement::resident(0)).workspace;
        let largest = BATCH_TOKENS_STREAMED.into_iter().find(|&tokens| workspace(tokens) <= free / 2);
        largest.map(|tokens| self.plan(tokens)).transpose()
    }
}

/// Returns the geometry of one rank's part of the model.
pub(super) fn geometry(config: &ModelConfig, options: &Options, shard: Shard) -> Geometry {
    let frequencies = rope::frequencies(&config.rope, config.head_dim);
    let geometry = Geometry::new(config, shard, frequencies, config.head_rows());
    match options.cuda() {
        Some(cuda) => Geometry { all_reduce: cuda.all_reduce, overlap: cuda.overlap, ..geometry },
        None => geometry,
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.replicas > 1 {
            writeln!(f, "replicas         {}, of the same memory each", self.replicas)?;
        }
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
        writeln!(f, "libraries        {:.2} GiB a rank", gib(self.footprint.libraries))?;
        writeln!(f, "batch            {} unique tokens, {} sequences", self.batch_tokens, self.sequences)?;
        let why = if self.limited_by_memory { ", by the device's memory" } else { "" };
        write!(f, "longest sequence {} tokens{why}", self.max_tokens)
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::backend::tier::CudaTier;
    use crate::config::Head;
    use crate::engine::options::CudaOptions;
    use crate::engine::platform::{CudaPlatform, PlannedGpus};
    use crate::prompt::{PromptOptions, Truncate};
    use crate::weights::{Dtype, ModelTensors, RandomWeights};

    #[test]
    fn random_weights_of_the_70b_are_planned_like_stored_ones() {
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
    /// Plans a model of the sizes of Llama 3.1 8B for a GPU with so many MiB free.
    fn plan_of_8b(free_mib: usize, tier: CudaTier, options: &Options) -> MemoryPlan {
        let config = ModelConfig {
            hidden: 4096,
            layers: 32,
            q_heads: 32,
            kv_heads: 8,
            head_dim: 128,
            ffn: 14_336,
            vocab: 4096,
            max_tokens: 131_072,
            head: Head::LogitZero { tied: true },
            ..ModelConfig::tiny()
        };
        let gpus = PlannedGpus { name: "a GPU".to_owned(), tier, free_bytes: free_mib << 20, count: 1 };
        let shard = Shard::new(&config, 0, 1).unwrap();
        let tensors = ModelTensors::random(&RandomWeights::new(&config, 0), &config, &shard);
        let platform = CudaPlatform::imagined(&gpus, &CudaOptions::default());
        MemoryPlan::new(&config, options, &platform, 1, &tensors).unwrap().0
    }

    #[test]
    fn the_longest_sequence_keeps_all_layers_where_that_is_possible() {
        let options = Options::default();
        let long = |max_tokens| Options { max_tokens: Some(max_tokens), ..Options::default() };
        let roomy = plan_of_8b(80_000, CudaTier::Sm80, &options);
        assert_eq!((roomy.max_tokens, roomy.limited_by_memory), (131_072, false));
        // The layers have 13.0 GiB.
        let tight = plan_of_8b(15_500, CudaTier::Sm80, &options);
        assert_eq!((tight.placement, tight.limited_by_memory), (Placement::resident(32), true));
        assert!((MAX_TOKENS_MIN..131_072).contains(&tight.max_tokens), "{tight}");
        assert!(tight.max_tokens.is_multiple_of(MAX_TOKENS_STEP) && tight.footprint.total() <= 15_500 << 20);
        let longer = plan_of_8b(15_500, CudaTier::Sm80, &long(tight.max_tokens + MAX_TOKENS_STEP));
        assert!(longer.placement.streamed > 0 && !longer.limited_by_memory, "{longer}");
        // Layers are streamed anyway.
        let small = plan_of_8b(10_000, CudaTier::Sm80, &options);
        assert_eq!((small.max_tokens, small.limited_by_memory), (small.batch_tokens, true), "{small}");
        assert!(small.placement.streamed > 0 && small.max_tokens >= MAX_TOKENS_MIN);
    }

    #[test]
    fn a_limit_to_truncate_to_does_not_depend_on_the_gpu() {
        let prompt = PromptOptions { truncate: Truncate::Left, ..PromptOptions::default() };
        let options = Options { prompt, ..Options::default() };
        let plan = plan_of_8b(15_500, CudaTier::Sm80, &options);
        assert_eq!((plan.max_tokens, plan.limited_by_memory), (131_072, false));
    }
}
