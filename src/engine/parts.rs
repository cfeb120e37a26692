//! [`Parts`]: what an engine or a rank of one is made of, checked before anything is allocated.

use std::path::Path;

use crate::backend::Geometry;
use crate::config::ModelConfig;
use crate::engine::device::Chosen;
use crate::engine::{MemoryPlan, Options, Residency};
use crate::error::{Error, ErrorKind, Result};
use crate::model::rope;
use crate::shard::Shard;
use crate::weights::{Checkpoint, ModelTensors, RandomWeights};

/// Where a model's weights are from.
pub(super) enum Weights {
    Stored(Checkpoint),
    Random(RandomWeights),
}

impl Weights {
    /// One rank's part, checked against the config.
    pub(super) fn part(&self, config: &ModelConfig, rank: usize, ranks: usize) -> Result<ModelTensors> {
        let shard = Shard::new(config, rank, ranks)?;
        match self {
            Self::Stored(checkpoint) => ModelTensors::open(checkpoint, config, &shard),
            Self::Random(weights) => Ok(ModelTensors::random(weights, config, &shard)),
        }
    }
}

/// Among how many ranks the model is divided on the chosen device.
pub(super) fn ranks_of(
    chosen: &Chosen,
    weights: &Weights,
    config: &ModelConfig,
    options: &Options,
) -> Result<usize> {
    chosen.ranks(options, config, |ranks| {
        let tensors = weights.part(config, 0, ranks)?;
        let resident = Options { residency: Residency::Resident, ..options.clone() };
        Ok(MemoryPlan::new(config, &resident, chosen, ranks, &tensors)?.0.footprint)
    })
}

/// What an engine or a rank of one is made of, checked before anything is allocated.
pub(super) struct Parts {
    pub(super) config: ModelConfig,
    pub(super) chosen: Chosen,
    pub(super) ranks: usize,
    /// Of each rank in this process.
    pub(super) tensors: Vec<ModelTensors>,
    pub(super) plan: MemoryPlan,
    /// Warnings of the files and of the plan.
    pub(super) warnings: Vec<String>,
}

impl Parts {
    /// Of the model in a folder.
    pub(super) fn in_folder(dir: &Path, options: &Options) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::new(ErrorKind::Io, "there is no such model folder")
                .at(dir.display())
                .with_hint("name a folder that holds config.json and safetensors files"));
        }
        if let Some(process) = options.process_rank() {
            process.check()?;
            if let Some(ranks) = options.ranks.filter(|&ranks| ranks != process.world_size) {
                let message = format!("{ranks} ranks in {} processes of one rank each", process.world_size);
                return Err(Error::new(ErrorKind::Options, message).with_hint("leave the ranks out"));
            }
        }
        Self::new(ModelConfig::read(dir)?, options, |_| Ok(Weights::Stored(Checkpoint::open(dir)?)))
    }

    /// Of the weights that `open` opens, which is asked when all else is known to fit the model.
    pub(super) fn new(
        config: ModelConfig,
        options: &Options,
        open: impl FnOnce(&ModelConfig) -> Result<Weights>,
    ) -> Result<Self> {
        if let Some(ranks) = options.several_processes().map(|process| process.world_size).or(options.ranks) {
            Shard::new(&config, 0, ranks)?;
        }
        let weights = open(&config)?;
        let part = |rank: usize, ranks: usize| weights.part(&config, rank, ranks);
        let whole = part(0, 1)?;
        let mut chosen = Chosen::new(options)?;
        let ranks = ranks_of(&chosen, &weights, &config, options)?;
        chosen.divide(ranks, options)?;
        let tensors = match options.several_processes() {
            Some(process) => vec![part(process.rank, ranks)?],
            None if ranks == 1 => vec![whole],
            None => (0..ranks).map(|rank| part(rank, ranks)).collect::<Result<_>>()?,
        };
        let (plan, streaming) = MemoryPlan::new(&config, options, &chosen, ranks, &tensors[0])?;
        let warnings = tensors[0].warnings.iter().cloned().chain(streaming).collect();
        Ok(Self { config, chosen, ranks, tensors, plan, warnings })
    }

    /// Keeps only so many layers resident, because another rank has no room for more.
    #[cfg(feature = "cluster")]
    pub(super) fn keep(&mut self, resident: usize, options: &Options) -> Result<()> {
        if resident == self.plan.placement.resident {
            return Ok(());
        }
        let residency = Residency::Streamed { resident_layers: Some(resident) };
        let options = Options { residency, ..options.clone() };
        self.plan = MemoryPlan::new(&self.config, &options, &self.chosen, self.ranks, &self.tensors[0])?.0;
        let layers = self.config.layers;
        self.warnings.push(format!(
            "another rank's GPU has room for {resident} of {layers} layers: here, too, the other {} are streamed",
            layers - resident
        ));
        Ok(())
    }
}

/// What the ops of one rank need to know of the model.
pub(super) fn geometry(config: &ModelConfig, options: &Options, shard: Shard) -> Geometry {
    let frequencies = rope::frequencies(&config.rope, config.head_dim);
    let (all_reduce, overlap) = (options.all_reduce, options.overlap);
    Geometry { all_reduce, overlap, ..Geometry::new(config, shard, frequencies, config.labels()) }
}
