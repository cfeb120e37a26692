//! The engine: a model folder opened, and conversations in, rewards out.
//!
//! An [`Engine`] may be shared by any number of threads. What waits when it is idle is batched together, up to the
//! token budget; a score does not depend on what else was in its batch.

mod device;
mod plan;
mod queue;
mod ranks;
mod residency;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use half::bf16;

use crate::backend::cpu::CpuMath;
use crate::backend::tier::CudaTier;
use crate::backend::{Geometry, RankSums};
use crate::batch::{Budget, Sharing};
use crate::config::{Head, ModelConfig, generation_warnings};
use crate::conversation::Conversation;
use crate::error::{Error, ErrorKind, Result};
use crate::model::rope;
use crate::prompt::{self, Prompt, PromptOptions, PromptTokens, Truncate};
use crate::shard::Shard;
use crate::weights::{Checkpoint, ModelTensors};

use device::Chosen;
pub use plan::Plan;
pub use queue::Pending;
use queue::{Facts, Job, Queue, WhenFull};
use ranks::Team;
pub use residency::{Placement, Residency};

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best device that this build supports and that is there.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// How an engine is opened. The defaults suit one machine and one model.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the model runs.
    pub device: Device,
    /// Ranks that share every layer (tensor parallel). When nothing is given, as few GPUs as the model fits on; one on
    /// the CPU. Two engines of several ranks must not run on the same GPUs at one time: NCCL's sums of one could wait for
    /// those of the other for ever.
    pub ranks: Option<usize>,
    /// How sums over ranks are taken on GPUs; the CPU always adds in order.
    pub rank_sums: RankSums,
    /// The GPUs to use, by number, in the order of ranks; all that there are when none is named.
    pub devices: Vec<usize>,
    /// How long a rank on a GPU waits for another one before the engine gives up.
    pub peer_timeout: Duration,
    /// Unique tokens that one pass takes together. A longer sequence makes a pass of its own.
    pub batch_tokens: usize,
    /// The longest sequence that is scored, in tokens; the model's own limit when that is smaller or nothing is given.
    pub max_tokens: Option<usize>,
    /// Whether all layers stay on the device, or some pass through it in every pass.
    pub residency: Residency,
    /// Tokens that may wait in the queue before [`Engine::submit`] blocks.
    pub queue_tokens: usize,
    /// Whether common prefixes are computed once.
    pub sharing: Sharing,
    /// CPU threads over all ranks; as many as the machine has when nothing is given.
    pub threads: Option<usize>,
    /// The arithmetic of the CPU's matrix products.
    pub cpu_math: CpuMath,
    /// The kernels that a GPU runs: those for a GPU of this age, or when nothing is given its own, which are fastest.
    pub cuda_tier: Option<CudaTier>,
    /// How conversations become text and tokens.
    pub prompt: PromptOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            ranks: None,
            rank_sums: RankSums::Ordered,
            devices: Vec::new(),
            peer_timeout: Duration::from_secs(600),
            batch_tokens: 4096,
            max_tokens: None,
            residency: Residency::Auto,
            queue_tokens: 65_536,
            sharing: Sharing::Prefixes,
            threads: None,
            cpu_math: CpuMath::F32,
            cuda_tier: None,
            prompt: PromptOptions::default(),
        }
    }
}

/// GPUs of one kind to plan for.
#[cfg(feature = "cuda")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedGpus {
    /// What they are called.
    pub name: String,
    /// The kernels that they run.
    pub tier: CudaTier,
    /// Bytes that are free on each.
    pub free_bytes: usize,
    /// How many there are.
    pub count: usize,
}

/// What the model thinks of one conversation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Score {
    /// The reward in f32, as computed: the raw logit 0, finite.
    pub reward: f32,
    /// The reward rounded to bf16, which is the number that Transformers reports for a bf16 model.
    pub reward_bf16: f32,
    /// Every label's logit, the reward first: more than one only for classifiers with several labels.
    pub logits: Vec<f32>,
    /// Tokens of the conversation, after truncation.
    pub tokens: usize,
    /// Whether the conversation was cut to the limit.
    pub truncated: bool,
    /// The token whose logits these are, counted from 0: the last one, except for a classifier whose input ends in
    /// `pad_token_id`.
    pub scored_token: usize,
}

impl Score {
    fn new(logits: &[f32], facts: Facts) -> Result<Self> {
        if let Some(bad) = logits.iter().find(|logit| !logit.is_finite()) {
            return Err(Error::new(ErrorKind::NonFinite, format!("the reward came out as {bad}")).with_hint(
                "the weights hold NaN or infinity, or numbers that overflow; check the files against their source",
            ));
        }
        let (reward, logits) = (logits[0], logits.to_vec());
        let reward_bf16 = bf16::from_f32(reward).to_f32();
        let Facts { tokens, truncated, scored_token } = facts;
        Ok(Self { reward, reward_bf16, logits, tokens, truncated, scored_token })
    }
}

/// A reward model, open and ready.
///
/// Dropping it ends its threads after the pass that runs; what still waits is answered with an error.
#[derive(Debug)]
pub struct Engine {
    config: ModelConfig,
    prompt: Result<Prompt>,
    plan: Plan,
    device: String,
    device_reason: Option<String>,
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Engine {
    /// Opens the model in folder `dir`, in Hugging Face layout: `config.json`, safetensors files, and, unless only
    /// token ids will be scored, `tokenizer.json` with a chat template.
    ///
    /// Everything that can be checked is checked here: the config against what is implemented, every tensor against
    /// the config, the ranks against the model.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            return Err(Error::new(ErrorKind::Io, "there is no such model folder")
                .at(dir.display())
                .with_hint("name a folder that holds config.json and safetensors files"));
        }
        let config = ModelConfig::read(dir)?;
        if let Some(ranks) = options.ranks {
            Shard::new(&config, 0, ranks)?;
        }
        let checkpoint = Checkpoint::open(dir)?;
        let parts = |ranks: usize| -> Result<Vec<ModelTensors>> {
            let shards = (0..ranks).map(|rank| Shard::new(&config, rank, ranks));
            shards.map(|shard| ModelTensors::open(&checkpoint, &config, &shard?)).collect()
        };
        let whole = parts(1)?;
        let mut chosen = Chosen::new(&options)?;
        let ranks = ranks_of(&chosen, &checkpoint, &config, &options)?;
        chosen.divide(ranks, &options)?;
        let tensors = if ranks == 1 { whole } else { parts(ranks)? };
        let (plan, streaming) = Plan::new(&config, &options, &chosen, ranks, tensors[0].bytes())?;
        let prompt = Prompt::open(dir, options.prompt.clone());
        let mut warnings = generation_warnings(dir, &config.head);
        warnings.extend(tensors[0].warnings.iter().cloned());
        warnings.extend(streaming);
        warnings.extend(prompt.iter().flat_map(|prompt| prompt.warnings().iter().cloned()));

        let queue = Arc::new(Queue::new(options.queue_tokens));
        let team = Team {
            queue: Arc::clone(&queue),
            ranks,
            budget: Budget { tokens: options.batch_tokens, sequences: plan.capacity.sequences },
            sharing: options.sharing,
            labels: config.labels(),
            abort: chosen.abort(),
        };
        let (device, device_reason) = (chosen.describe(), chosen.reason.clone());
        let (capacity, footprint, resident_layers) = (plan.capacity, plan.footprint, plan.placement.resident);
        let geometries = (0..ranks)
            .map(|rank| Ok(geometry(&config, &options, Shard::new(&config, rank, ranks)?)))
            .collect::<Result<Vec<Geometry>>>()?;
        let warnings = Arc::new(Mutex::new(warnings));
        let shared_warnings = Arc::clone(&warnings);
        let threads = ranks::start(&team, move |rank| {
            let warn = |warning| warn_once(&shared_warnings, warning);
            let geometry = geometries[rank].clone();
            chosen.open_rank(geometry, capacity, &tensors[rank], resident_layers, &footprint, &warn)
        })?;
        Ok(Self { config, prompt, plan, device, device_reason, queue, threads, warnings })
    }

    /// What an engine with these options would hold on GPUs that need not be there. Reads `config.json` and the headers of
    /// the weights.
    #[cfg(feature = "cuda")]
    pub fn plan_for(dir: impl AsRef<Path>, options: &Options, gpus: &PlannedGpus) -> Result<Plan> {
        let config = ModelConfig::read(dir.as_ref())?;
        let checkpoint = Checkpoint::open(dir.as_ref())?;
        let chosen = Chosen::imagined(gpus);
        let ranks = ranks_of(&chosen, &checkpoint, &config, options)?;
        let tensors = ModelTensors::open(&checkpoint, &config, &Shard::new(&config, 0, ranks)?)?;
        Ok(Plan::new(&config, options, &chosen, ranks, tensors.bytes())?.0)
    }

    /// Scores conversations; results are in their order, and one's failure is not another's.
    pub fn score(&self, conversations: &[Conversation]) -> Vec<Result<Score>> {
        self.score_each(conversations.iter().map(|conversation| self.tokens(conversation)))
    }

    /// Scores sequences of token ids, taken as they are; results are in their order.
    pub fn score_tokens(&self, sequences: &[Vec<u32>]) -> Vec<Result<Score>> {
        self.score_each(sequences.iter().map(|ids| self.limited(ids.clone())))
    }

    /// Scores conversations as they come; results are in their order. Reads ahead far enough to fill batches, so
    /// memory stays bounded however many there are.
    pub fn score_all<I>(&self, conversations: I) -> ScoreAll<'_, I::IntoIter>
    where
        I: IntoIterator<Item = Conversation>,
    {
        ScoreAll { engine: self, source: conversations.into_iter(), ahead: VecDeque::new(), ahead_tokens: 0 }
    }

    /// Puts one conversation into the queue and returns its score to come. Blocks while the queue is full.
    pub fn submit(&self, conversation: &Conversation) -> Result<Pending> {
        self.enqueue(self.tokens(conversation)?, WhenFull::Wait)
    }

    /// Puts one sequence of token ids into the queue. Blocks while the queue is full.
    pub fn submit_tokens(&self, ids: Vec<u32>) -> Result<Pending> {
        self.enqueue(self.limited(ids)?, WhenFull::Wait)
    }

    /// Like [`submit`](Self::submit), but an error of kind [`ErrorKind::QueueFull`] while the queue is full.
    pub fn try_submit(&self, conversation: &Conversation) -> Result<Pending> {
        self.enqueue(self.tokens(conversation)?, WhenFull::Refuse)
    }

    /// What conversations go through before they are scored; an error when the folder has no usable tokenizer or
    /// template, in which case only token ids can be scored.
    pub fn prompt(&self) -> Result<&Prompt> {
        self.prompt.as_ref().map_err(Error::clone)
    }

    /// What the engine holds in memory, and its limits.
    pub fn plan(&self) -> &Plan {
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

    /// What the caller should know once: settings of the model folder that other programs would obey and this one
    /// does not, a template that read the clock, inputs that ended in padding, layers that do not fit on the device.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the engine scores nothing any more, if so.
    pub fn failure(&self) -> Option<Error> {
        self.queue.closed()
    }

    fn tokens(&self, conversation: &Conversation) -> Result<PromptTokens> {
        self.prompt()?.tokens(conversation, self.plan.max_tokens)
    }

    fn limited(&self, ids: Vec<u32>) -> Result<PromptTokens> {
        match &self.prompt {
            Ok(prompt) => prompt.limit(ids, self.plan.max_tokens),
            // Without a tokenizer nobody knows which token must stay at the start, so nothing is cut off.
            Err(_) => prompt::limited(ids, self.plan.max_tokens, Truncate::Refuse, None),
        }
    }

    /// Enters them in groups that fill several batches, so that what they share is found in the first batch already,
    /// and a rank need not wait for the last of many.
    fn score_each(&self, sequences: impl Iterator<Item = Result<PromptTokens>>) -> Vec<Result<Score>> {
        let (mut pending, mut group, mut group_tokens) = (Vec::new(), Vec::new(), 0);
        for sequence in sequences {
            pending.push(sequence.and_then(|tokens| self.job(tokens)).map(|(job, pending)| {
                group_tokens += job.ids.len();
                group.push(job);
                pending
            }));
            if group_tokens >= self.plan.lookahead_tokens() {
                self.queue.push_all(group.drain(..));
                group_tokens = 0;
            }
        }
        self.queue.push_all(group);
        pending.into_iter().map(|pending| pending?.wait()).collect()
    }

    fn enqueue(&self, tokens: PromptTokens, when_full: WhenFull) -> Result<Pending> {
        let (job, pending) = self.job(tokens)?;
        self.queue.push(job, when_full)?;
        Ok(pending)
    }

    /// A sequence as the queue takes it, and its score to come.
    fn job(&self, PromptTokens { mut ids, truncated }: PromptTokens) -> Result<(Job, Pending)> {
        if let Some((index, id)) = ids.iter().enumerate().find(|&(_, &id)| id as usize >= self.config.vocab) {
            return Err(Error::new(
                ErrorKind::Conversation,
                format!("token {index} has id {id}; the model's vocabulary has {} ids", self.config.vocab),
            )
            .with_hint(
                "the tokenizer and the model are from different folders, or the ids are another model's",
            ));
        }
        let facts = Facts { tokens: ids.len(), truncated, scored_token: self.scored_token(&ids) };
        // Nothing after the scored token can change its logits.
        ids.truncate(facts.scored_token + 1);
        let (reply, pending) = queue::pending(facts);
        Ok((Job { ids, reply }, pending))
    }

    /// The last token; for a classifier the rightmost one that is not padding, as Transformers has it.
    fn scored_token(&self, ids: &[u32]) -> usize {
        let last = ids.len() - 1;
        let Head::Score { pad_token_id: Some(pad), .. } = self.config.head else { return last };
        // With nothing but padding, Transformers takes the first token.
        let scored = ids.iter().rposition(|&id| id != pad).unwrap_or(0);
        if scored != last {
            let warning = format!(
                "a sequence ends in token {pad}, which is the classifier's pad_token_id: its reward is that of the \
                 rightmost other token, as in Transformers"
            );
            warn_once(&self.warnings, warning);
        }
        scored
    }
}

/// Among how many ranks the model is divided on the chosen device.
fn ranks_of(
    chosen: &Chosen,
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    options: &Options,
) -> Result<usize> {
    chosen.ranks(options, config, |ranks| {
        let tensors = ModelTensors::open(checkpoint, config, &Shard::new(config, 0, ranks)?)?;
        let resident = Options { residency: Residency::Resident, ..options.clone() };
        Ok(Plan::new(config, &resident, chosen, ranks, tensors.bytes())?.0.footprint)
    })
}

/// Adds a warning that is not there yet.
fn warn_once(warnings: &Mutex<Vec<String>>, warning: String) {
    let mut warnings = warnings.lock().unwrap_or_else(PoisonError::into_inner);
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}

/// What the ops of one rank need to know of the model.
fn geometry(config: &ModelConfig, options: &Options, shard: Shard) -> Geometry {
    let frequencies = rope::frequencies(&config.rope, config.head_dim);
    Geometry { rank_sums: options.rank_sums, ..Geometry::new(config, shard, frequencies, config.labels()) }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close(Error::new(ErrorKind::Dead, "the engine was dropped before this was scored"));
        for thread in self.threads.drain(..) {
            // A waker may drop the engine on the thread that answered; that thread ends by itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

/// The iterator of [`Engine::score_all`].
#[derive(Debug)]
pub struct ScoreAll<'a, I> {
    engine: &'a Engine,
    source: I,
    ahead: VecDeque<(usize, Result<Pending>)>,
    ahead_tokens: usize,
}

impl<I: Iterator<Item = Conversation>> Iterator for ScoreAll<'_, I> {
    type Item = Result<Score>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ahead_tokens < self.engine.plan.lookahead_tokens() {
            let Some(conversation) = self.source.next() else { break };
            let tokens = self.engine.tokens(&conversation);
            // A conversation that failed already counts too: errors also take memory.
            let weight = tokens.as_ref().map_or(1, |tokens| tokens.ids.len());
            let pending = tokens.and_then(|tokens| self.engine.enqueue(tokens, WhenFull::Wait));
            self.ahead.push_back((weight, pending));
            self.ahead_tokens += weight;
        }
        let (weight, pending) = self.ahead.pop_front()?;
        self.ahead_tokens -= weight;
        Some(pending.and_then(Pending::wait))
    }
}
