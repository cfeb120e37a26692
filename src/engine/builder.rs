//! [`EngineBuilder`]: collects the options of an engine and opens it.

use std::path::{Path, PathBuf};

use crate::backend::Loading;
use crate::backend::profile::Profile;
use crate::config::{ModelConfig, generation_warnings};
#[cfg(feature = "cluster")]
use crate::engine::cluster;
use crate::engine::handle::Engine;
use crate::engine::options::{Batching, Device, Options};
use crate::engine::parts::{Parts, Weights};
use crate::engine::residency::Residency;
#[cfg(feature = "cuda")]
use crate::engine::{
    parts::ranks_of,
    plan::MemoryPlan,
    platform::{CudaPlatform, PlannedGpus, Platform},
};
use crate::error::{Error, ErrorKind, Result};
use crate::prompt::{Prompt, PromptOptions};
#[cfg(feature = "cuda")]
use crate::weights::Checkpoint;
use crate::weights::RandomWeights;

impl Engine {
    /// Returns a builder of an engine for the model in folder `dir`, in Hugging Face's layout:
    /// `config.json`, the weights, and, to score conversations, `tokenizer.json` and a chat
    /// template.
    pub fn builder(dir: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder::new(dir)
    }

    /// Opens the model in folder `dir` with default options.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::builder(dir).open()
    }

    /// Returns a builder of an engine without files, to be measured: sizes as in `config`, weights
    /// random from `seed`. A device that can make the weights does so, with other values than the
    /// host. The engine scores token ids only, in this process only.
    #[doc(hidden)]
    pub fn builder_random(config: ModelConfig, seed: u64) -> EngineBuilder {
        EngineBuilder::random(config, seed)
    }
}

/// Options of an engine that is not open yet. The defaults suit one machine and one model.
#[derive(Clone, Debug)]
#[must_use = "an engine opens with `open`"]
pub struct EngineBuilder {
    source: Source,
    options: Options,
}

/// The source of a model.
#[derive(Clone, Debug)]
enum Source {
    Folder(PathBuf),
    Random(Box<ModelConfig>, u64),
}

impl EngineBuilder {
    /// Makes a builder for the model in folder `dir`: [`Engine::builder`].
    pub fn new(dir: impl AsRef<Path>) -> Self {
        Self { source: Source::Folder(dir.as_ref().to_owned()), options: Options::default() }
    }

    pub(super) fn random(config: ModelConfig, seed: u64) -> Self {
        Self { source: Source::Random(Box::new(config), seed), options: Options::default() }
    }

    /// Sets the device: a [`Device`], or a device's options.
    pub fn device(mut self, device: impl Into<Device>) -> Self {
        self.options.device = device.into();
        self
    }

    /// Sets the longest sequence that is scored, in tokens; at most, and by default, the model's
    /// limit. On GPUs the default is less where not all layers could stay on them otherwise, but at
    /// least 8,192, unless longer sequences are to be truncated or ranks are in several processes.
    pub fn max_tokens(mut self, max_tokens: impl Into<Option<usize>>) -> Self {
        self.options.max_tokens = max_tokens.into();
        self
    }

    /// Sets whether all layers stay on the device.
    pub fn residency(mut self, residency: Residency) -> Self {
        self.options.residency = residency;
        self
    }

    /// Sets how sequences are queued and put together in passes.
    pub fn batching(mut self, batching: Batching) -> Self {
        self.options.batching = batching;
        self
    }

    /// Sets how conversations become text and tokens.
    pub fn prompt(mut self, prompt: PromptOptions) -> Self {
        self.options.prompt = prompt;
        self
    }

    /// Counts weights in `loading` while the engine opens: keep a clone and read it meanwhile.
    pub fn loading(mut self, loading: Loading) -> Self {
        self.options.loading = loading;
        self
    }

    /// Records times of passes in `profile` on request: keep a clone and read it.
    #[doc(hidden)]
    pub fn profile(mut self, profile: Option<Profile>) -> Self {
        self.options.profile = profile;
        self
    }

    /// Opens the model.
    ///
    /// Checks everything that can be checked: the config against what is implemented, every tensor
    /// against the config, the ranks against the model. Where the ranks are in several processes,
    /// this is rank 0, and waits for the others.
    pub fn open(self) -> Result<Engine> {
        let Self { source, options } = self;
        match source {
            Source::Folder(dir) => {
                if let Some(cluster) = options.any_cluster().filter(|cluster| cluster.rank > 0) {
                    let message =
                        format!("rank {} cannot open the engine: only rank 0 opens it", cluster.rank);
                    return Err(Error::new(ErrorKind::Options, message)
                        .with_hint("`EngineBuilder::serve` runs the other ranks"));
                }
                let parts = Parts::in_folder(&dir, &options)?;
                let warnings = generation_warnings(&dir, &parts.config.head);
                Engine::start(parts, Prompt::open(&dir, options.prompt.clone()), warnings, options)
            }
            Source::Random(config, seed) => {
                if options.cluster().is_some() {
                    let message = "random weights need one process, and several were requested";
                    return Err(Error::new(ErrorKind::Options, message)
                        .with_hint("leave out the options of several processes"));
                }
                let weights = |config: &ModelConfig| Ok(Weights::Random(RandomWeights::new(config, seed)));
                let parts = Parts::new(*config, &options, weights)?;
                let none = Error::new(ErrorKind::Tokenizer, "random weights have no tokenizer");
                Engine::start(parts, Err(none.with_hint("score token ids")), Vec::new(), options)
            }
        }
    }

    /// Runs a rank other than 0 of several processes ([`Cluster`](crate::Cluster)), until the
    /// engine that rank 0 opened is dropped. Calls `began` with the device and the warnings when
    /// rank 0 has accepted this rank. An error is the first cause for which the ranks end,
    /// of this rank or of another.
    #[cfg(feature = "cluster")]
    pub fn serve(self, began: impl FnOnce(&crate::DeviceInfo, &[String])) -> Result<()> {
        match self.source {
            Source::Folder(dir) => cluster::serve(&dir, self.options, began),
            Source::Random(..) => Err(Error::new(ErrorKind::Options, "random weights need one process")),
        }
    }

    /// Returns the memory plan of the engine on GPUs that need not exist. Reads `config.json` and the
    /// headers of the weights.
    #[cfg(feature = "cuda")]
    pub fn plan_for(&self, gpus: &PlannedGpus) -> Result<MemoryPlan> {
        let options = self.options.cuda().cloned().unwrap_or_default();
        self.plan_on(&CudaPlatform::imagined(gpus, &options))
    }

    /// Returns the memory plan of the engine on this machine's GPUs, and those GPUs with their free
    /// bytes; `None` where there is no usable GPU.
    #[cfg(feature = "cuda")]
    pub fn plan_here(&self) -> Result<Option<(PlannedGpus, MemoryPlan)>> {
        let options = self.options.cuda().cloned().unwrap_or_default();
        let Ok(platform) = CudaPlatform::new(&options) else { return Ok(None) };
        let plan = self.plan_on(&platform)?;
        Ok(Some((platform.planned()?, plan)))
    }

    #[cfg(feature = "cuda")]
    fn plan_on(&self, platform: &dyn Platform) -> Result<MemoryPlan> {
        let (config, weights) = match &self.source {
            Source::Folder(dir) => (ModelConfig::read(dir)?, Weights::Stored(Checkpoint::open(dir)?)),
            Source::Random(config, seed) => {
                (config.as_ref().clone(), Weights::Random(RandomWeights::new(config, *seed)))
            }
        };
        let ranks = ranks_of(platform, &weights, &config, &self.options)?;
        let tensors = weights.part(&config, 0, ranks)?;
        let plan = MemoryPlan::new(&config, &self.options, platform, ranks, &tensors)?.0;
        Ok(MemoryPlan { replicas: platform.replicas(ranks)?, ..plan })
    }
}
