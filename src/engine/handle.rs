//! [`Engine`]: the handle of an open model.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use crate::backend::Geometry;
use crate::batch::Budget;
use crate::config::ModelConfig;
use crate::engine::cluster;
use crate::engine::options::Options;
use crate::engine::parts::Parts;
use crate::engine::plan::{MemoryPlan, geometry};
use crate::engine::platform::{DeviceInfo, RankSetup};
use crate::engine::queue::Queue;
use crate::engine::ranks::{self, CAUSE_TIMEOUT, Team};
use crate::engine::stats::Stats;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;
use crate::prompt::Prompt;
use crate::shard::Shard;

/// A reward model, open and ready. Threads share it by reference or in an `Arc`.
///
/// Dropping it is [`abort`](Self::abort).
#[derive(Debug)]
pub struct Engine {
    pub(super) config: ModelConfig,
    pub(super) prompt: Result<Prompt>,
    pub(super) plan: MemoryPlan,
    device: DeviceInfo,
    pub(super) queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    rank_threads: Vec<ThreadId>,
    /// Links to the ranks in other processes.
    links: Vec<Arc<cluster::Link>>,
    pub(super) warnings: Arc<Mutex<Vec<String>>>,
}

impl Engine {
    /// Starts the ranks of checked parts.
    pub(super) fn start(
        mut parts: Parts,
        prompt: Result<Prompt>,
        mut warnings: Vec<String>,
        options: Options,
    ) -> Result<Self> {
        let links = cluster::gather(&mut parts, &options)?;
        let device = parts.device();
        let Parts { config, platform, replicas, ranks, tensors, plan, warnings: part_warnings, .. } = parts;
        warnings.extend(part_warnings);
        warnings.extend(prompt.iter().flat_map(|prompt| prompt.warnings().iter().cloned()));

        let queue = Arc::new(Queue::new(options.batching.queue_tokens, replicas));
        let team = |replica| {
            let (abort, followers) = (platform.abort(replica), links.clone());
            Team {
                replica: (replica, replicas),
                queue: Arc::clone(&queue),
                ranks,
                budget: Budget { tokens: plan.batch_tokens, sequences: plan.sequences },
                sharing: options.batching.sharing,
                labels: config.labels(),
                abort: Arc::new(move |cause| {
                    followers.iter().for_each(|link| link.close(Some(cause)));
                    abort();
                }),
                cause_timeout: if links.is_empty() { Duration::ZERO } else { CAUSE_TIMEOUT },
            }
        };
        let teams: Vec<Team> = (0..replicas).map(team).collect();
        let (capacity, footprint, resident_layers) = (plan.capacity, plan.footprint, plan.placement.resident);
        let geometries = (0..ranks)
            .map(|rank| Ok(geometry(&config, &options, Shard::new(&config, rank, ranks)?)))
            .collect::<Result<Vec<Geometry>>>()?;
        let warnings = Arc::new(Mutex::new(warnings));
        let model_config = config.clone();
        let (shared_warnings, shared_links) = (Arc::clone(&warnings), links.clone());
        let threads = ranks::start(&teams, move |replica, rank| {
            if let Some(link) = rank.checked_sub(1).and_then(|index| shared_links.get(index)) {
                return cluster::remote(Arc::clone(link), platform.nccl_id());
            }
            platform.open_rank(RankSetup {
                config: &model_config,
                replica,
                geometry: geometries[rank].clone(),
                capacity,
                tensors: &tensors[rank],
                resident_layers,
                footprint: &footprint,
                loading: &options.loading,
                profile: options.profile.as_ref(),
                warn: &|warning| warn_once(&shared_warnings, warning),
            })
        });
        if let Err(error) = &threads {
            links.iter().for_each(|link| link.close(Some(error)));
        }
        let threads = threads?;
        let rank_threads = threads.iter().map(|thread| thread.thread().id()).collect();
        let threads = Mutex::new(threads);
        Ok(Self { config, prompt, plan, device, queue, threads, rank_threads, links, warnings })
    }

    /// Returns the model's chat template and tokenizer, or the error for which they cannot be used:
    /// then only token ids can be scored.
    pub fn prompt(&self) -> Result<&Prompt> {
        self.prompt.as_ref().map_err(Error::clone)
    }

    /// Returns the engine's memory and its limits.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Returns the model's configuration.
    #[cfg(feature = "internals")]
    #[doc(hidden)]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the number of logits of a sequence: 1, or the labels of a classifier.
    pub fn labels(&self) -> usize {
        self.config.labels()
    }

    /// Returns the device that the model runs on.
    pub fn device(&self) -> &DeviceInfo {
        &self.device
    }

    /// Returns the warnings, each once: settings of the model folder that other programs obey and
    /// this one does not, a template that read the clock, inputs that ended in padding, layers that
    /// do not fit on the device.
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }

    /// Returns counts of what is queued and of what was computed.
    pub fn stats(&self) -> Stats {
        self.queue.stats()
    }

    /// Returns counts of what each replica has computed.
    pub fn stats_of_replicas(&self) -> Vec<Stats> {
        self.queue.stats_of_replicas()
    }

    /// Returns the error that stopped the engine, where it has stopped.
    pub fn failure(&self) -> Option<Error> {
        self.queue.closed()
    }

    /// Closes the engine for every thread: refuses new submissions with [`ErrorKind::Stopped`],
    /// scores what is queued, and returns when the ranks have ended, those in other processes too.
    ///
    /// In a waker, which may run on a rank's thread, it does not wait.
    pub fn close(&self) {
        self.queue.drain(Error::new(ErrorKind::Stopped, "the engine was closed before this was submitted"));
        if self.join() {
            self.close_links();
        }
    }

    /// Stops the engine for every thread after the pass that runs: completes what is queued,
    /// and every later submission, with [`ErrorKind::Stopped`]. Ranks in other processes end
    /// without an error.
    pub fn abort(&self) {
        self.queue.close(Error::new(ErrorKind::Stopped, "the engine was stopped before this was scored"));
        self.join();
        self.close_links();
    }

    /// Waits for the ranks to end, and returns true; returns false at once on a rank's own thread,
    /// where a waker may run.
    fn join(&self) -> bool {
        if self.rank_threads.contains(&thread::current().id()) {
            return false;
        }
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
        true
    }

    /// Ends the ranks in other processes. Has no effect on those that received a failure.
    fn close_links(&self) {
        self.links.iter().for_each(|link| link.close(None));
    }
}

/// Adds a warning, unless it is there already.
pub(super) fn warn_once(warnings: &Mutex<Vec<String>>, warning: String) {
    let mut warnings = lock(warnings);
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.abort();
    }
}
