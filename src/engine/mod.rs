//! The engine: a model folder opened, and conversations in, rewards out.
//!
//! An [`Engine`] may be shared by any number of threads. What waits when it is idle is batched together, up to the
//! token budget; a score does not depend on what else was in its batch.

mod device;
mod plan;
mod processes;
mod queue;
mod ranks;
mod rendezvous;
mod residency;
mod stats;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use half::bf16;
use sha2::{Digest, Sha256};

use crate::backend::cpu::CpuMath;
use crate::backend::tier::CudaTier;
use crate::backend::{GemmTuning, Geometry, Loading, Overlap, RankSums};
use crate::batch::{Budget, Sharing};
use crate::config::{Head, ModelConfig, generation_warnings};
use crate::conversation::Conversation;
use crate::error::{Error, ErrorKind, Result};
use crate::model::rope;
use crate::prompt::{self, Prompt, PromptOptions, PromptTokens, Truncate};
use crate::shard::Shard;
use crate::weights::{Checkpoint, ModelTensors, RandomWeights};

use device::Chosen;
pub use plan::Plan;
use processes::{Follower, Remote};
pub use queue::Pending;
use queue::{Facts, Job, Queue, WhenFull};
use ranks::{LAST_WORDS, Rank, Team};
use rendezvous::Link;
pub use rendezvous::{ProcessRank, Secret};
pub use residency::{Placement, Residency};
pub use stats::Stats;

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
    /// Whether sums over ranks run beside computation on GPUs.
    pub overlap: Overlap,
    /// The GPUs to use, by number, in the order of ranks; all that there are when none is named.
    pub devices: Vec<usize>,
    /// How long a rank on a GPU waits for another one before the engine gives up.
    pub peer_timeout: Duration,
    /// This process's rank, when the ranks are in several processes.
    pub process: Option<ProcessRank>,
    /// Unique tokens that one pass takes together; when nothing is given 4,096, or up to 16,384 where layers are streamed
    /// through a GPU. A longer sequence makes a pass of its own.
    pub batch_tokens: Option<usize>,
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
    /// Whether matrix products are measured on GPUs at load.
    pub gemm_tuning: GemmTuning,
    /// The folder in which what was measured is kept. When nothing is given, the one that `KUDOS_CACHE_DIR` names in the
    /// environment (none where it is empty), or `kudos` in the user's folder for caches. A folder that cannot be used
    /// is no error.
    pub cache_dir: Option<PathBuf>,
    /// The kernels that a GPU runs: those for a GPU of this age, or when nothing is given its own, which are fastest.
    pub cuda_tier: Option<CudaTier>,
    /// How conversations become text and tokens.
    pub prompt: PromptOptions,
    /// Counts weights while the engine opens; keep a clone to read it meanwhile.
    pub loading: Loading,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            ranks: None,
            rank_sums: RankSums::Ordered,
            overlap: Overlap::Auto,
            devices: Vec::new(),
            peer_timeout: Duration::from_secs(600),
            process: None,
            batch_tokens: None,
            max_tokens: None,
            residency: Residency::Auto,
            queue_tokens: 1 << 20,
            sharing: Sharing::Prefixes,
            threads: None,
            cpu_math: CpuMath::F32,
            gemm_tuning: GemmTuning::Auto,
            cache_dir: None,
            cuda_tier: None,
            prompt: PromptOptions::default(),
            loading: Loading::default(),
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

impl Options {
    /// This process's rank, where there is more than one process.
    fn several_processes(&self) -> Option<&ProcessRank> {
        self.process.as_ref().filter(|process| process.world_size > 1)
    }
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
    has_clock: bool,
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// To the ranks in other processes.
    links: Vec<Arc<Link>>,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Engine {
    /// Opens the model in folder `dir`, in Hugging Face layout: `config.json`, safetensors files, and, unless only
    /// token ids will be scored, `tokenizer.json` with a chat template.
    ///
    /// Everything that can be checked is checked here: the config against what is implemented, every tensor against
    /// the config, the ranks against the model. With [`Options::process`] this is rank 0, and waits for the others.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self> {
        let dir = dir.as_ref();
        if let Some(process) = options.process.as_ref().filter(|process| process.rank > 0) {
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
        let links = match options.several_processes() {
            None => Vec::new(),
            Some(process) => {
                let facts = facts(&parts, &options);
                let links = rendezvous::gather(process, &facts, options.peer_timeout)?;
                parts.keep(processes::agree(&links, parts.plan.placement.resident)?, &options)?;
                links.into_iter().map(Arc::new).collect()
            }
        };
        let Parts { config, chosen, ranks, tensors, plan, said } = parts;
        warnings.extend(said);
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
                return Ok(Box::new(Remote::open(Arc::clone(link), chosen.nccl_id())?));
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
    pub fn serve(dir: impl AsRef<Path>, options: Options, began: impl FnOnce(&str, &[String])) -> Result<()> {
        let Some(process) = options.several_processes().filter(|process| process.rank > 0).cloned() else {
            return Err(Error::new(ErrorKind::Options, "rank 0 opens the engine, and serves none")
                .with_hint("`Engine::open` runs rank 0"));
        };
        let mut parts = Parts::in_folder(dir.as_ref(), &options)?;
        let link = rendezvous::join(&process, &facts(&parts, &options), options.peer_timeout)?;
        parts.keep(processes::agreed(&link, parts.plan.placement.resident)?, &options)?;
        let Parts { config, chosen, ranks, mut tensors, plan, said } = parts;
        let tensors = tensors.swap_remove(0);
        began(&chosen.describe(), &said);
        let geometry = geometry(&config, &options, Shard::new(&config, process.rank, ranks)?);
        let (vocab, capacity) = (config.vocab, plan.capacity);
        let (abort, chosen) = (chosen.abort(), Arc::new(chosen));
        let meeting = Arc::clone(&chosen);
        let open = move || -> Result<Box<dyn Rank>> {
            let Plan { capacity, footprint, placement, .. } = plan;
            // Rank 0 has the same ones to tell.
            let unheard = |_| {};
            chosen.open_rank(geometry, capacity, &tensors, placement.resident, &footprint, &unheard)
        };
        let meet = move |nccl_id: &[u8]| meeting.meet_at(nccl_id);
        processes::follow(Follower { process, vocab, capacity, open, meet, abort }, link)
    }

    /// What an engine with these options would hold on GPUs that need not be there. Reads `config.json` and the headers of
    /// the weights.
    #[cfg(feature = "cuda")]
    pub fn plan_for(dir: impl AsRef<Path>, options: &Options, gpus: &PlannedGpus) -> Result<Plan> {
        let config = ModelConfig::read(dir.as_ref())?;
        let weights = Weights::Stored(Checkpoint::open(dir.as_ref())?);
        let chosen = Chosen::imagined(gpus);
        let ranks = ranks_of(&chosen, &weights, &config, options)?;
        let tensors = weights.part(&config, 0, ranks)?;
        Ok(Plan::new(&config, options, &chosen, ranks, &tensors)?.0)
    }

    /// What an engine with these options would hold on this machine's GPUs, and how they are called and have free; nothing
    /// where there is none that it can use.
    #[cfg(feature = "cuda")]
    pub fn plan_here(dir: impl AsRef<Path>, options: &Options) -> Result<Option<(PlannedGpus, Plan)>> {
        let Ok(chosen) = Chosen::new(&Options { device: Device::Cuda, ..options.clone() }) else {
            return Ok(None);
        };
        let config = ModelConfig::read(dir.as_ref())?;
        let weights = Weights::Stored(Checkpoint::open(dir.as_ref())?);
        let ranks = ranks_of(&chosen, &weights, &config, options)?;
        let tensors = weights.part(&config, 0, ranks)?;
        let plan = Plan::new(&config, options, &chosen, ranks, &tensors)?.0;
        Ok(chosen.planned()?.map(|gpus| (gpus, plan)))
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

    /// What [`submit`](Self::submit) does to a conversation first: renders and tokenizes it, and holds it to the limit.
    /// Takes the caller's time and none of the engine's, so that several threads can prepare for one that submits.
    pub fn prepare(&self, conversation: &Conversation) -> Result<PromptTokens> {
        self.tokens(conversation)
    }

    /// What [`submit_tokens`](Self::submit_tokens) does to token ids first.
    pub fn prepare_tokens(&self, ids: Vec<u32>) -> Result<PromptTokens> {
        self.limited(ids)
    }

    /// Puts what was prepared into the queue and returns its score to come. Blocks while the queue is full.
    pub fn submit_prepared(&self, tokens: PromptTokens) -> Result<Pending> {
        self.enqueue(tokens, WhenFull::Wait)
    }

    /// Puts what was prepared into the queue together, so that what the sequences share is found in the first pass already;
    /// where they are very many, in groups that fill several passes, so that the first need not wait for the last. Results
    /// are in their order. Blocks while the queue is full.
    pub fn submit_together(
        &self,
        sequences: impl IntoIterator<Item = Result<PromptTokens>>,
    ) -> Vec<Result<Pending>> {
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
        pending
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

    /// Whether the device names a clock rate, as hardware does: how long anything takes on one that does not says nothing
    /// of speed.
    pub fn has_clock(&self) -> bool {
        self.has_clock
    }

    /// What the caller should know once: settings of the model folder that other programs would obey and this one
    /// does not, a template that read the clock, inputs that ended in padding, layers that do not fit on the device.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        self.queue.close(Error::new(ErrorKind::Dead, "the engine was closed before this was scored"));
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A waker may close the engine on the thread that answered; that thread ends by itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
        // Does nothing where they were told of a failure.
        self.links.iter().for_each(|link| link.end(None));
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

    fn score_each(&self, sequences: impl Iterator<Item = Result<PromptTokens>>) -> Vec<Result<Score>> {
        self.submit_together(sequences).into_iter().map(|pending| pending?.wait()).collect()
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

/// Where a model's weights are from.
enum Weights {
    Stored(Checkpoint),
    Random(RandomWeights),
}

impl Weights {
    /// One rank's part, checked against the config.
    fn part(&self, config: &ModelConfig, rank: usize, ranks: usize) -> Result<ModelTensors> {
        let shard = Shard::new(config, rank, ranks)?;
        match self {
            Self::Stored(checkpoint) => ModelTensors::open(checkpoint, config, &shard),
            Self::Random(weights) => Ok(ModelTensors::random(weights, config, &shard)),
        }
    }
}

/// Among how many ranks the model is divided on the chosen device.
fn ranks_of(chosen: &Chosen, weights: &Weights, config: &ModelConfig, options: &Options) -> Result<usize> {
    chosen.ranks(options, config, |ranks| {
        let tensors = weights.part(config, 0, ranks)?;
        let resident = Options { residency: Residency::Resident, ..options.clone() };
        Ok(Plan::new(config, &resident, chosen, ranks, &tensors)?.0.footprint)
    })
}

/// What an engine or a rank of one is made of, checked before anything is allocated.
struct Parts {
    config: ModelConfig,
    chosen: Chosen,
    ranks: usize,
    /// Of each rank in this process.
    tensors: Vec<ModelTensors>,
    plan: Plan,
    /// Warnings of the files and of the plan.
    said: Vec<String>,
}

impl Parts {
    /// Of the model in a folder.
    fn in_folder(dir: &Path, options: &Options) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::new(ErrorKind::Io, "there is no such model folder")
                .at(dir.display())
                .with_hint("name a folder that holds config.json and safetensors files"));
        }
        if let Some(process) = &options.process {
            process.check()?;
            if let Some(ranks) = options.ranks.filter(|&ranks| ranks != process.world_size) {
                let message = format!("{ranks} ranks in {} processes of one rank each", process.world_size);
                return Err(Error::new(ErrorKind::Options, message).with_hint("leave the ranks out"));
            }
        }
        Self::new(ModelConfig::read(dir)?, options, |_| Ok(Weights::Stored(Checkpoint::open(dir)?)))
    }

    /// Of the weights that `open` opens, which is asked when all else is known to fit the model.
    fn new(
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
        let (plan, streaming) = Plan::new(&config, options, &chosen, ranks, &tensors[0])?;
        let said = tensors[0].warnings.iter().cloned().chain(streaming).collect();
        Ok(Self { config, chosen, ranks, tensors, plan, said })
    }

    /// Keeps only so many layers resident, because another rank has no room for more.
    fn keep(&mut self, resident: usize, options: &Options) -> Result<()> {
        if resident == self.plan.placement.resident {
            return Ok(());
        }
        let residency = Residency::Streamed { resident_layers: Some(resident) };
        let options = Options { residency, ..options.clone() };
        self.plan = Plan::new(&self.config, &options, &self.chosen, self.ranks, &self.tensors[0])?.0;
        let layers = self.config.layers;
        self.said.push(format!(
            "another rank's GPU has room for {resident} of {layers} layers: here, too, the other {} are streamed",
            layers - resident
        ));
        Ok(())
    }
}

/// What ranks in several processes must have in common, by name.
fn facts(parts: &Parts, options: &Options) -> rendezvous::Facts {
    let Parts { config, chosen, plan, tensors, .. } = parts;
    // Rows that every rank holds whole, and in which models differ that are trained from the same one.
    let mut weights = Sha256::new();
    weights.update(tensors[0].final_norm.bytes());
    weights.update(tensors[0].head.bytes());
    let weights: String = weights.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let facts = [
        ("hidden_size", config.hidden.to_string()),
        ("layers", config.layers.to_string()),
        ("heads", format!("{} of {} with {} for keys", config.q_heads, config.head_dim, config.kv_heads)),
        ("ffn", config.ffn.to_string()),
        ("vocabulary", config.vocab.to_string()),
        ("rms_norm_eps", config.rms_norm_eps.to_string()),
        ("rope", format!("{:?}", config.rope)),
        ("biases", format!("attention {}, mlp {}", config.attention_bias, config.mlp_bias)),
        ("head", format!("{:?}", config.head)),
        ("digest of weights", weights),
        ("tier", chosen.tier_name().to_owned()),
        ("batch tokens", plan.batch_tokens.to_string()),
        ("max tokens", plan.max_tokens.to_string()),
        ("rank sums", format!("{:?}", options.rank_sums).to_lowercase()),
        // Ranks begin the same sums in the same order.
        ("overlap", format!("{:?}", options.overlap).to_lowercase()),
        // Signs of life are sent as often as the one who waits for them expects.
        ("peer timeout", format!("{} s", options.peer_timeout.as_secs_f64())),
        ("residency", format!("{:?}", options.residency).to_lowercase()),
    ];
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
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
    let (rank_sums, overlap) = (options.rank_sums, options.overlap);
    Geometry { rank_sums, overlap, ..Geometry::new(config, shard, frequencies, config.labels()) }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
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
