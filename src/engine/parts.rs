//! [`Parts`]: the components of an engine, or of one of its ranks, checked before anything is
//! allocated.

use std::path::Path;

use crate::config::ModelConfig;
use crate::engine::options::Options;
use crate::engine::plan::{MAX_TOKENS_MIN, MemoryPlan};
use crate::engine::platform::{self, DeviceInfo, Platform};
use crate::engine::residency::Residency;
use crate::error::{Error, ErrorKind, Result};
use crate::shard::Shard;
use crate::weights::{Checkpoint, ModelTensors, RandomWeights};

/// The source of a model's weights.
pub(super) enum Weights {
    Stored(Checkpoint),
    Random(RandomWeights),
}

impl Weights {
    /// Returns one rank's tensors, checked against the config.
    pub(super) fn part(&self, config: &ModelConfig, rank: usize, ranks: usize) -> Result<ModelTensors> {
        let shard = Shard::new(config, rank, ranks)?;
        match self {
            Self::Stored(checkpoint) => ModelTensors::open(checkpoint, config, &shard),
            Self::Random(weights) => Ok(ModelTensors::random(weights, config, &shard)),
        }
    }
}

/// Returns the number of ranks that share the model on a platform.
pub(super) fn ranks_of(
    platform: &dyn Platform,
    weights: &Weights,
    config: &ModelConfig,
    options: &Options,
) -> Result<usize> {
    platform.ranks(config, options.residency, &|ranks| {
        let tensors = weights.part(config, 0, ranks)?;
        let max_tokens = match options.max_tokens_may_follow_memory() {
            true => Some(MAX_TOKENS_MIN),
            false => options.max_tokens,
        };
        let resident = Options { residency: Residency::Resident, max_tokens, ..options.clone() };
        Ok(MemoryPlan::new(config, &resident, platform, ranks, &tensors)?.0.footprint)
    })
}

/// The components of an engine, or of one of its ranks, checked before anything is allocated.
pub(super) struct Parts {
    pub(super) config: ModelConfig,
    pub(super) platform: Box<dyn Platform>,
    /// The reason for the platform, where the engine chose it.
    pub(super) reason: Option<String>,
    /// Copies of the model, each of `ranks` ranks.
    pub(super) replicas: usize,
    pub(super) ranks: usize,
    /// One per rank of a replica in this process; replicas share them.
    pub(super) tensors: Vec<ModelTensors>,
    pub(super) plan: MemoryPlan,
    /// Warnings about the files and the plan.
    pub(super) warnings: Vec<String>,
}

impl Parts {
    /// Reads the model in a folder.
    pub(super) fn in_folder(dir: &Path, options: &Options) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::new(ErrorKind::Io, "there is no such model folder")
                .at(dir.display())
                .with_hint("name a folder that holds config.json and the weights"));
        }
        if let Some(cluster) = options.any_cluster() {
            cluster.check()?;
            if let Some(ranks) = options.requested_ranks().find(|&ranks| ranks != cluster.world_size) {
                let message = format!(
                    "{ranks} ranks were requested for {} processes, which have one rank each",
                    cluster.world_size
                );
                return Err(
                    Error::new(ErrorKind::Options, message).with_hint("leave out the number of ranks")
                );
            }
        }
        Self::new(ModelConfig::read(dir)?, options, |_| Ok(Weights::Stored(Checkpoint::open(dir)?)))
    }

    /// Checks the options against the model, then calls `open` for the weights.
    pub(super) fn new(
        config: ModelConfig,
        options: &Options,
        open: impl FnOnce(&ModelConfig) -> Result<Weights>,
    ) -> Result<Self> {
        match options.cluster() {
            Some(cluster) => drop(Shard::new(&config, 0, cluster.world_size)?),
            None => {
                for ranks in options.requested_ranks() {
                    Shard::new(&config, 0, ranks)?;
                }
            }
        }
        let weights = open(&config)?;
        let whole = weights.part(&config, 0, 1)?;
        let (platform, reason) = platform::choose(&options.device)?;
        Self::on(platform, reason, config, options, &weights, whole)
    }

    /// Makes the parts on a platform. `whole` is the whole model's tensors.
    pub(super) fn on(
        mut platform: Box<dyn Platform>,
        reason: Option<String>,
        config: ModelConfig,
        options: &Options,
        weights: &Weights,
        whole: ModelTensors,
    ) -> Result<Self> {
        let part = |rank: usize, ranks: usize| weights.part(&config, rank, ranks);
        let ranks = ranks_of(&*platform, weights, &config, options)?;
        let replicas = platform.replicas(ranks)?;
        platform.divide(replicas, ranks)?;
        let tensors = match options.cluster() {
            Some(cluster) => vec![part(cluster.rank, ranks)?],
            None if ranks == 1 => vec![whole],
            None => (0..ranks).map(|rank| part(rank, ranks)).collect::<Result<_>>()?,
        };
        let (mut plan, streaming) = MemoryPlan::new(&config, options, &*platform, ranks, &tensors[0])?;
        plan.replicas = replicas;
        let of_tensors = tensors[0].warnings.iter().cloned();
        let warnings = platform.warnings().into_iter().chain(of_tensors).chain(streaming).collect();
        Ok(Self { config, platform, reason, replicas, ranks, tensors, plan, warnings })
    }

    /// Returns the device's description, with the reason for the choice.
    pub(super) fn device(&self) -> DeviceInfo {
        let mut device = self.platform.device();
        device.reason.clone_from(&self.reason);
        device
    }

    /// Plans for `resident` resident layers, the most that another rank can keep.
    #[cfg(feature = "cluster")]
    pub(super) fn limit_resident(&mut self, resident: usize, options: &Options) -> Result<()> {
        if resident == self.plan.placement.resident {
            return Ok(());
        }
        let residency = Residency::Streamed { resident_layers: Some(resident) };
        let options = Options { residency, ..options.clone() };
        self.plan = MemoryPlan::new(&self.config, &options, &*self.platform, self.ranks, &self.tensors[0])?.0;
        let layers = self.config.layers;
        self.warnings.push(format!(
            "another rank's GPU has memory for {resident} of {layers} layers: this rank streams the other {} too",
            layers - resident
        ));
        Ok(())
    }
}
