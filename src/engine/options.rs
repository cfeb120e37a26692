//! [`Options`]: how an engine is opened.

use std::path::PathBuf;
use std::time::Duration;

use crate::backend::cpu::CpuMath;
use crate::backend::profile::Profile;
use crate::backend::tier::CudaTier;
use crate::backend::{AllReduce, GemmTuning, Loading, Overlap};
use crate::batch::Sharing;
use crate::engine::{ProcessRank, Residency};
use crate::prompt::PromptOptions;

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
    pub all_reduce: AllReduce,
    /// Whether sums over ranks run beside computation on GPUs.
    pub overlap: Overlap,
    /// The GPUs to use, by number, in the order of ranks; all that there are when none is named.
    pub devices: Vec<usize>,
    /// How long a rank on a GPU waits for another one before the engine gives up.
    pub peer_timeout: Duration,
    /// This process's rank, when the ranks are in several processes.
    #[cfg(feature = "cluster")]
    pub process: Option<ProcessRank>,
    /// Unique tokens that one pass takes together; when nothing is given 4,096, or up to 16,384 where layers are streamed
    /// through a GPU. A longer sequence makes a pass of its own.
    pub batch_tokens: Option<usize>,
    /// The longest sequence that is scored, in tokens; the model's own limit when that is smaller or nothing is given.
    pub max_tokens: Option<usize>,
    /// Whether all layers stay on the device, or some pass through it in every pass.
    pub residency: Residency,
    /// Tokens that may wait in the queue before [`Engine::submit`](crate::Engine::submit) blocks.
    pub queue_tokens: usize,
    /// Whether common prefixes are computed once.
    pub sharing: Sharing,
    /// CPU threads over all ranks; as many as the machine has when nothing is given.
    pub threads: Option<usize>,
    /// The arithmetic of the CPU's matrix products and attention.
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
    /// Can be asked where the time of passes goes; keep a clone for that.
    #[doc(hidden)]
    pub profile: Option<Profile>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            ranks: None,
            all_reduce: AllReduce::Ordered,
            overlap: Overlap::Auto,
            devices: Vec::new(),
            peer_timeout: Duration::from_secs(600),
            #[cfg(feature = "cluster")]
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
            profile: None,
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
    /// This process's rank, where ranks may be in several processes.
    #[cfg(feature = "cluster")]
    pub(super) fn process_rank(&self) -> Option<&ProcessRank> {
        self.process.as_ref()
    }

    #[cfg(not(feature = "cluster"))]
    pub(super) fn process_rank(&self) -> Option<&ProcessRank> {
        None
    }

    /// This process's rank, where there is more than one process.
    pub(super) fn several_processes(&self) -> Option<&ProcessRank> {
        self.process_rank().filter(|process| process.world_size > 1)
    }
}
