//! The options of an engine, in groups: device, batching, and what [`Options`] holds of all of
//! them.
//!
//! Groups have public fields and a default for each. New fields may come with any version: end a
//! literal with `..Default::default()`.

mod cluster;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use cluster::{Cluster, Secret};

use crate::backend::cpu::CpuMath;
use crate::backend::profile::Profile;
use crate::backend::tier::CudaTier;
use crate::backend::{AllReduce, GemmTuning, Loading, Overlap};
use crate::batch::Sharing;
use crate::engine::residency::Residency;
use crate::error::{Error, ErrorKind};
use crate::prompt::{PromptOptions, Truncate};

/// The device that a model runs on, with the device's own options.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// The GPUs that this build supports, or the CPU on a machine where CUDA cannot be used.
    Auto {
        /// Options of the CPU, where that is chosen.
        cpu: CpuOptions,
        /// Options of the GPUs, where those are chosen. Options that name GPUs rule the CPU out.
        cuda: CudaOptions,
    },
    /// The CPU.
    Cpu(CpuOptions),
    /// NVIDIA GPUs. An error where the build has no feature `cuda`.
    Cuda(CudaOptions),
}

impl Default for Device {
    fn default() -> Self {
        Self::Auto { cpu: CpuOptions::default(), cuda: CudaOptions::default() }
    }
}

impl From<CpuOptions> for Device {
    fn from(options: CpuOptions) -> Self {
        Self::Cpu(options)
    }
}

impl From<CudaOptions> for Device {
    fn from(options: CudaOptions) -> Self {
        Self::Cuda(options)
    }
}

/// The number of replicas of a model: copies on devices of their own, which take batches from one
/// queue. Rewards are the same for any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// This number.
    Count(usize),
    /// As many as there are GPUs for; on the CPU one for each NUMA node.
    Auto,
}

impl Default for Replicas {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl FromStr for Replicas {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.parse() {
            _ if text == "auto" => Ok(Self::Auto),
            Ok(count) if count > 0 => Ok(Self::Count(count)),
            _ => Err(Error::new(ErrorKind::Options, "expected a number from 1 on, or `auto`")),
        }
    }
}

/// Options of a model on the CPU.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads over all ranks of all replicas; as many as the machine has by default.
    pub threads: Option<usize>,
    /// Copies of the model's activations, each with its part of the threads, at least one; the
    /// weights are shared. 1 by default. On a machine of several NUMA nodes the threads of a replica
    /// stay on its part of the nodes, or on one that it shares.
    pub replicas: Replicas,
    /// Ranks that share every layer (tensor parallel), in this process; 1 by default.
    pub ranks: Option<usize>,
    /// The arithmetic of matmuls and attention.
    pub math: CpuMath,
}

/// Options of a model on NVIDIA GPUs.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Ranks that share every layer (tensor parallel), a GPU each; by default the fewest GPUs that
    /// the model fits on. Two engines of several ranks must not run on the same GPUs at one time:
    /// an NCCL collective of one could wait for the other's for ever.
    pub ranks: Option<usize>,
    /// Copies of the model on GPUs of their own; 1 by default. Each has `ranks` ranks.
    pub replicas: Replicas,
    /// The GPUs to use, by number, in the order of ranks, the first replica's before the next one's;
    /// all GPUs if empty.
    pub devices: Vec<usize>,
    /// The algorithm of the all-reduce over ranks.
    pub all_reduce: AllReduce,
    /// Whether all-reduces overlap with computation.
    pub overlap: Overlap,
    /// Whether matmul algorithms are timed at load.
    pub gemm_tuning: GemmTuning,
    /// The folder for timings of matmuls. By default the one that `KUDOS_CACHE_DIR` names in the
    /// environment (none if it is empty), or `kudos` in the user's cache folder. A folder that
    /// cannot be used is no error.
    pub cache_dir: Option<PathBuf>,
    /// The generation of kernels to run; by default the GPU's own, which is fastest.
    pub tier: Option<CudaTier>,
    /// The attention kernel to run, by name or by its file's, such as `sm80`; by default the first in
    /// the table that fits, which is fastest.
    pub attention: Option<String>,
    /// Bytes of each GPU that are left to CUDA's libraries and to other programs; by default 256
    /// MiB, and 1 GiB more where several ranks connect through NCCL.
    pub reserved_bytes: Option<usize>,
    /// Time that a rank waits for another one before the engine gives up.
    pub peer_timeout: Duration,
    /// This process's rank, where the ranks are in several processes.
    #[cfg(feature = "cluster")]
    pub cluster: Option<Cluster>,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ranks: None,
            replicas: Replicas::default(),
            devices: Vec::new(),
            all_reduce: AllReduce::Ordered,
            overlap: Overlap::Auto,
            gemm_tuning: GemmTuning::Auto,
            cache_dir: None,
            tier: None,
            attention: None,
            reserved_bytes: None,
            peer_timeout: Duration::from_secs(600),
            #[cfg(feature = "cluster")]
            cluster: None,
        }
    }
}

impl CudaOptions {
    /// Returns this process's rank, where ranks may be in several processes.
    #[cfg(feature = "cluster")]
    pub(super) fn any_cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    #[cfg(not(feature = "cluster"))]
    pub(super) fn any_cluster(&self) -> Option<&Cluster> {
        None
    }

    /// Returns this process's rank, where there is more than one process.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        self.any_cluster().filter(|cluster| cluster.world_size > 1)
    }
}

/// How sequences are queued and put together in passes.
#[derive(Clone, Debug)]
pub struct Batching {
    /// Unique tokens of one pass; by default 4,096, or up to 16,384 where layers are streamed
    /// through a GPU. A longer sequence makes a pass of its own.
    pub batch_tokens: Option<usize>,
    /// Capacity of the queue in tokens. Submissions beyond it wait.
    pub queue_tokens: usize,
    /// Whether common prefixes are computed once.
    pub sharing: Sharing,
}

impl Default for Batching {
    fn default() -> Self {
        Self { batch_tokens: None, queue_tokens: 1 << 20, sharing: Sharing::Prefixes }
    }
}

/// All options of an engine, as [`EngineBuilder`](crate::EngineBuilder) collects them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(super) device: Device,
    pub(super) batching: Batching,
    /// The longest sequence; the model's own limit where that is smaller.
    pub(super) max_tokens: Option<usize>,
    pub(super) residency: Residency,
    pub(super) prompt: PromptOptions,
    pub(super) loading: Loading,
    pub(super) profile: Option<Profile>,
}

impl Options {
    /// Returns the options of the GPUs, where the model may run on some.
    pub(super) fn cuda(&self) -> Option<&CudaOptions> {
        match &self.device {
            Device::Auto { cuda, .. } | Device::Cuda(cuda) => Some(cuda),
            Device::Cpu(_) => None,
        }
    }

    /// Returns this process's rank, where ranks may be in several processes.
    pub(super) fn any_cluster(&self) -> Option<&Cluster> {
        self.cuda().and_then(CudaOptions::any_cluster)
    }

    /// Returns this process's rank, where there is more than one process.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        self.cuda().and_then(CudaOptions::cluster)
    }

    /// Returns whether the longest sequence may follow from the device's memory: where none is
    /// given, and a longer one is refused. The reward of a sequence that is cut must not depend on
    /// the machine, and ranks in several processes must agree on the limit.
    pub(super) fn max_tokens_may_follow_memory(&self) -> bool {
        let refuses = self.prompt.truncate == Truncate::Refuse;
        self.max_tokens.is_none() && refuses && self.cluster().is_none()
    }

    /// Returns the requested numbers of ranks, of which the device's will be used.
    pub(super) fn requested_ranks(&self) -> impl Iterator<Item = usize> {
        let (cpu, cuda) = match &self.device {
            Device::Auto { cpu, cuda } => (cpu.ranks, cuda.ranks),
            Device::Cpu(cpu) => (cpu.ranks, None),
            Device::Cuda(cuda) => (None, cuda.ranks),
        };
        cpu.into_iter().chain(cuda)
    }
}
