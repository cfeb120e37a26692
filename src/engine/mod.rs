//! The engine: a model folder opened, and conversations in, rewards out.
//!
//! An [`Engine`] may be shared by any number of threads. What waits when it is idle is batched together, up to the
//! token budget; a score does not depend on what else was in its batch.

mod cluster;
mod device;
#[cfg(test)]
mod golden;
mod options;
mod parts;
mod plan;
mod process_rank;
mod queue;
mod ranks;
mod residency;
mod scoring;
mod stats;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::backend::Geometry;
use crate::batch::Budget;
use crate::config::{ModelConfig, generation_warnings};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;
use crate::prompt::Prompt;
use crate::shard::Shard;
#[cfg(feature = "cuda")]
use crate::weights::Checkpoint;
use crate::weights::RandomWeights;

#[cfg(feature = "cuda")]
use device::Chosen;
#[cfg(feature = "cuda")]
pub use options::PlannedGpus;
pub use options::{Device, Options};
#[cfg(feature = "cuda")]
use parts::ranks_of;
use parts::{Parts, Weights, geometry};
pub use plan::MemoryPlan;
pub use process_rank::{ProcessRank, Secret};
pub use queue::Pending;
use queue::Queue;
use ranks::{LAST_WORDS, Team};
pub use residency::{Placement, Residency};
pub use scoring::{Score, ScoreAll};
pub use stats::Stats;

/// A reward model, open and ready.
///
/// Dropping it ends its threads after the pass that runs; what still waits is answered with an error.
#[derive(Debug)]
pub struct Engine {
    config: ModelConfig,
    prompt: Result<Prompt>,
    plan: MemoryPlan,
    device: String,
    device_reason: Option<String>,
    has_clock: bool,
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// To the ranks in other processes.
    links: Vec<Arc<cluster::Link>>,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Engine {
    /// Opens the model in folder `dir`, in Hugging Face layout: `config.json`, safetensors files, and, unless only
    /// token ids will be scored, `tokenizer.json` with a chat template.
    ///
    /// Everything that can be checked is checked here: the config against what is implemented, every tensor against
    /// the config, the ranks against the model. Where ranks are in several processes (feature `cluster`) this is rank 0, and waits for the others.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let dir = dir.as_ref();
        if let Some(process) = options.process_rank().filter(|process| process.rank > 0) {
            let message = format!("rank {} cannot open the engine, which is rank 0's", process.rank);
            return Err(Error::new(ErrorKind::Options, message).with_hint("`Engine::serve` runs the others"));
        }
        let parts = Parts::in_folder(dir, &options)?;
        let warnings = generation_warnings(dir, &parts.config.head);
        Self::start(parts, Prompt::open(dir, options.prompt.clone()), warnings, options)
    }

    /// Opens a model without files: of the sizes that `config` gives, with random weights of this seed, to be measured.
    /// Devices that can make the weights themselves do; the numbers are then others than on the host. It scores token
    /// ids only, in this process only.
    #[doc(hidden)]
    pub fn open_random(config: ModelConfig, seed: u64, options: Options) -> Result<Self> {
        if options.several_processes().is_some() {
            let message = "random weights are of one process, and several were asked for";
            return Err(Error::new(ErrorKind::Options, message).with_hint("leave out the processes"));
        }
        let weights = |config: &ModelConfig| Ok(Weights::Random(RandomWeights::new(config, seed)));
        let parts = Parts::new(config, &options, weights)?;
        let none = Error::new(ErrorKind::Tokenizer, "random weights have no tokenizer");
        Self::start(parts, Err(none.with_hint("score token ids")), Vec::new(), options)
    }

    /// Starts the ranks of what was checked; what is known to be warned of comes first.
    fn start(
        mut parts: Parts,
        prompt: Result<Prompt>,
        mut warnings: Vec<String>,
        options: Options,
    ) -> Result<Self> {
        let links = cluster::gather(&mut parts, &options)?;
        let Parts { config, chosen, ranks, tensors, plan, warnings: of_parts } = parts;
        warnings.extend(of_parts);
        warnings.extend(prompt.iter().flat_map(|prompt| prompt.warnings().iter().cloned()));

        let queue = Arc::new(Queue::new(options.queue_tokens));
        let (abort, told) = (chosen.abort(), links.clone());
        let team = Team {
            queue: Arc::clone(&queue),
            ranks,
            budget: Budget { tokens: plan.batch_tokens, sequences: plan.capacity.sequences },
            sharing: options.sharing,
            labels: config.labels(),
            abort: Arc::new(move |cause| {
                told.iter().for_each(|link| link.end(Some(cause)));
                abort();
            }),
            last_words: if links.is_empty() { Duration::ZERO } else { LAST_WORDS },
        };
        let (device, device_reason) = (chosen.describe(), chosen.reason.clone());
        let has_clock = chosen.has_clock();
        let (capacity, footprint, resident_layers) = (plan.capacity, plan.footprint, plan.placement.resident);
        let geometries = (0..ranks)
            .map(|rank| Ok(geometry(&config, &options, Shard::new(&config, rank, ranks)?)))
            .collect::<Result<Vec<Geometry>>>()?;
        let warnings = Arc::new(Mutex::new(warnings));
        let (shared_warnings, shared_links) = (Arc::clone(&warnings), links.clone());
        let threads = ranks::start(&team, move |rank| {
            if let Some(link) = rank.checked_sub(1).and_then(|index| shared_links.get(index)) {
                return cluster::remote(Arc::clone(link), chosen.nccl_id());
            }
            let warn = |warning| warn_once(&shared_warnings, warning);
            let geometry = geometries[rank].clone();
            chosen.open_rank(geometry, capacity, &tensors[rank], resident_layers, &footprint, &warn)
        });
        if let Err(error) = &threads {
            links.iter().for_each(|link| link.end(Some(error)));
        }
        let threads = Mutex::new(threads?);
        Ok(Self { config, prompt, plan, device, device_reason, has_clock, queue, threads, links, warnings })
    }

    /// Runs a rank other than 0 of several processes ([`Options::process`]) for the engine that rank 0 opens, until
    /// that one is dropped. An error is the first cause for which all ranks end, whichever rank it befell.
    /// `began` gets the device in words, and what the caller should know, when rank 0 has let this rank in.
    #[cfg(feature = "cluster")]
    pub fn serve(dir: impl AsRef<Path>, options: Options, began: impl FnOnce(&str, &[String])) -> Result<()> {
        cluster::serve(dir.as_ref(), options, began)
    }

    /// What an engine with these options would hold on GPUs that need not be there. Reads `config.json` and the headers of
    /// the weights.
    #[cfg(feature = "cuda")]
    pub fn plan_for(dir: impl AsRef<Path>, options: &Options, gpus: &PlannedGpus) -> Result<MemoryPlan> {
        let config = ModelConfig::read(dir.as_ref())?;
        let weights = Weights::Stored(Checkpoint::open(dir.as_ref())?);
        let chosen = Chosen::imagined(gpus);
        let ranks = ranks_of(&chosen, &weights, &config, options)?;
        let tensors = weights.part(&config, 0, ranks)?;
        Ok(MemoryPlan::new(&config, options, &chosen, ranks, &tensors)?.0)
    }

    /// What an engine with these options would hold on this machine's GPUs, and how they are called and have free; nothing
    /// where there is none that it can use.
    #[cfg(feature = "cuda")]
    pub fn plan_here(dir: impl AsRef<Path>, options: &Options) -> Result<Option<(PlannedGpus, MemoryPlan)>> {
        let Ok(chosen) = Chosen::new(&Options { device: Device::Cuda, ..options.clone() }) else {
            return Ok(None);
        };
        let config = ModelConfig::read(dir.as_ref())?;
        let weights = Weights::Stored(Checkpoint::open(dir.as_ref())?);
        let ranks = ranks_of(&chosen, &weights, &config, options)?;
        let tensors = weights.part(&config, 0, ranks)?;
        let plan = MemoryPlan::new(&config, options, &chosen, ranks, &tensors)?.0;
        Ok(chosen.planned()?.map(|gpus| (gpus, plan)))
    }

    /// What conversations go through before they are scored; an error when the folder has no usable tokenizer or
    /// template, in which case only token ids can be scored.
    pub fn prompt(&self) -> Result<&Prompt> {
        self.prompt.as_ref().map_err(Error::clone)
    }

    /// What the engine holds in memory, and its limits.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// The model's sizes, as `config.json` gives them.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the model runs on, in words.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Why it runs there, when the device was left to the engine.
    pub fn device_reason(&self) -> Option<&str> {
        self.device_reason.as_deref()
    }

    /// Whether the device names a clock rate, as hardware does: how long anything takes on one that does not says nothing
    /// of speed.
    pub fn has_clock(&self) -> bool {
        self.has_clock
    }

    /// What the caller should know once: settings of the model folder that other programs would obey and this one
    /// does not, a template that read the clock, inputs that ended in padding, layers that do not fit on the device.
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }

    /// What the engine has computed so far.
    pub fn stats(&self) -> Stats {
        self.queue.computed().read()
    }

    /// Why the engine scores nothing any more, if so.
    pub fn failure(&self) -> Option<Error> {
        self.queue.closed()
    }

    /// Ends the engine for all who share it, after the pass that runs: what waits is answered with an error, and so is
    /// what comes. Ranks in other processes end as well, without an error. Dropping the last owner does the same.
    pub fn close(&self) {
        self.queue.close(Error::new(ErrorKind::Stopped, "the engine was closed before this was scored"));
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // A waker may close the engine on the thread that answered; that thread ends by itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
        // Does nothing where they were told of a failure.
        self.links.iter().for_each(|link| link.end(None));
    }
}

/// Adds a warning that is not there yet.
fn warn_once(warnings: &Mutex<Vec<String>>, warning: String) {
    let mut warnings = lock(warnings);
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}
