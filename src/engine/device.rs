//! Which device an engine runs on: chosen once, here, and opened per rank.

use std::sync::Arc;
use std::thread;

use crate::backend::cpu::{Cpu, CpuMath, Group, Isa};
#[cfg(feature = "cuda")]
use crate::backend::cuda::probe::{self, DeviceInfo};
#[cfg(feature = "cuda")]
use crate::backend::cuda::{Cuda, gemm};
#[cfg(feature = "cuda")]
use crate::backend::tier::CudaTier;
use crate::backend::{Backend, Capacity, Footprint, Geometry};
use crate::engine::ranks::Forward;
use crate::engine::{Device, Options};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Model, Resident};
use crate::weights::ModelTensors;

/// Rows that go through the MLP at a time on the CPU: gate and up of a chunk stay near the cache, while a weight block
/// is packed once for many rows.
const MLP_TOKENS_CPU: usize = 512;

/// Rows that go through the MLP at a time on a GPU, at least: enough for matrix products at full speed.
#[cfg(feature = "cuda")]
const MLP_TOKENS_CUDA_MIN: usize = 4096;

/// The device of an engine.
pub(super) struct Chosen {
    hardware: Hardware,
    /// Why it is this one, when nobody asked for it by name.
    pub(super) reason: Option<String>,
}

enum Hardware {
    Cpu {
        threads: usize,
        math: CpuMath,
        group: Arc<Group>,
    },
    #[cfg(feature = "cuda")]
    Cuda {
        info: DeviceInfo,
        tier: CudaTier,
    },
}

impl Chosen {
    /// The device that the options ask for, or the best one that is there.
    pub(super) fn new(options: &Options) -> Result<Self> {
        if options.device == Device::Cpu {
            return Self::cpu(options, None);
        }
        match (cuda(options), options.device) {
            (Ok(hardware), Device::Auto) => {
                Ok(Self { hardware, reason: Some("the first GPU that this build supports".to_owned()) })
            }
            (Ok(hardware), _) => Ok(Self { hardware, reason: None }),
            (Err(error), Device::Auto) => Self::cpu(options, Some(error.message().to_owned())),
            (Err(error), _) if error.hint().is_none() => {
                Err(error.with_hint("leave the device to `auto`, or choose `cpu`"))
            }
            (Err(error), _) => Err(error),
        }
    }

    fn cpu(options: &Options, reason: Option<String>) -> Result<Self> {
        let all = || thread::available_parallelism().map_or(1, |n| n.get());
        let threads = options.threads.unwrap_or_else(all);
        if threads == 0 {
            return Err(Error::new(ErrorKind::Options, "0 threads cannot compute anything"));
        }
        let group = Arc::new(Group::new(options.ranks));
        Ok(Self { hardware: Hardware::Cpu { threads, math: options.cpu_math, group }, reason })
    }

    /// Rows that go through the MLP at a time, when a pass has up to `tokens`.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "the CPU plans without it"))]
    pub(super) fn mlp_tokens(&self, geometry: &Geometry, tokens: usize) -> usize {
        match &self.hardware {
            Hardware::Cpu { .. } => MLP_TOKENS_CPU.min(tokens),
            // As many as fit where q, k and v lay.
            #[cfg(feature = "cuda")]
            Hardware::Cuda { .. } => {
                let shard = &geometry.shard;
                let beside_qkv = tokens * shard.qkv_width_local() / (2 * shard.ffn_local);
                beside_qkv.max(MLP_TOKENS_CUDA_MIN).min(tokens)
            }
        }
    }

    /// What one rank will allocate.
    pub(super) fn footprint(
        &self,
        geometry: &Geometry,
        capacity: &Capacity,
        weight_bytes: usize,
    ) -> Footprint {
        match &self.hardware {
            Hardware::Cpu { .. } => Cpu::footprint(geometry, capacity, weight_bytes),
            #[cfg(feature = "cuda")]
            Hardware::Cuda { .. } => Cuda::footprint(geometry, capacity, weight_bytes),
        }
    }

    /// Opens one rank, on the thread that will run it. `warn` gets what the caller should know.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "the CPU plans without it"))]
    pub(super) fn open_rank(
        &self,
        geometry: Geometry,
        capacity: Capacity,
        tensors: &ModelTensors,
        footprint: &Footprint,
        warn: &dyn Fn(String),
    ) -> Result<Forward> {
        match &self.hardware {
            Hardware::Cpu { threads, math, group } => {
                let threads = (threads / geometry.shard.ranks).max(1);
                let cpu = Cpu::new(geometry, capacity, *math, threads, Arc::clone(group))?;
                load(cpu, capacity, tensors, warn)
            }
            #[cfg(feature = "cuda")]
            Hardware::Cuda { info, tier } => {
                let cuda = Cuda::new(info, *tier, geometry, capacity, footprint);
                let forward = cuda.and_then(|cuda| load(cuda, capacity, tensors, warn));
                forward.map(|forward| naming_passes(info, forward)).map_err(|error| lacking(error, footprint))
            }
        }
    }

    /// Makes every rank that waits for another give up.
    pub(super) fn abort(&self) -> Arc<dyn Fn() + Send + Sync> {
        match &self.hardware {
            Hardware::Cpu { group, .. } => {
                let group = Arc::clone(group);
                Arc::new(move || group.abort())
            }
            // One rank waits for nobody.
            #[cfg(feature = "cuda")]
            Hardware::Cuda { .. } => Arc::new(|| {}),
        }
    }

    /// The device in words.
    pub(super) fn describe(&self) -> String {
        match &self.hardware {
            Hardware::Cpu { threads, .. } => format!("CPU, {threads} threads, {}", Isa::detect().name()),
            #[cfg(feature = "cuda")]
            Hardware::Cuda { info, tier } => {
                let DeviceInfo { ordinal, name, capability, .. } = info;
                let tier = tier.name();
                format!("CUDA, GPU {ordinal} ({name}, compute capability {capability}, {tier} kernels)")
            }
        }
    }
}

/// A model with all layers resident, ready for passes.
fn load<B: Backend + 'static>(
    mut backend: B,
    capacity: Capacity,
    tensors: &ModelTensors,
    warn: &dyn Fn(String),
) -> Result<Forward>
where
    B::Act: 'static,
    B::Weight: 'static,
{
    let layers = Resident::load(&mut backend, tensors)?;
    let mut model = Model::new(backend, capacity, tensors, layers)?;
    model.warnings().into_iter().for_each(warn);
    Ok(Box::new(move |packed| model.forward(packed)))
}

/// `forward` with errors that say in which pass the GPU failed.
#[cfg(feature = "cuda")]
fn naming_passes(info: &DeviceInfo, mut forward: Forward) -> Forward {
    let gpu = format!("GPU {} ({})", info.ordinal, info.name);
    Box::new(move |packed| {
        forward(packed).map_err(|error| {
            let (sequences, tokens) = (packed.last.len(), packed.tokens.len());
            let error = error.at(format!("{gpu}, in a pass of {tokens} tokens and {sequences} last tokens"));
            if error.kind() != ErrorKind::Device {
                return error;
            }
            error.with_hint(
                "a kernel's failure shows at a later call; run with `CUDA_LAUNCH_BLOCKING=1` in the environment and the error names the kernel",
            )
        })
    })
}

/// An allocation's failure with what was planned: it was free when the engine began to load.
#[cfg(feature = "cuda")]
fn lacking(error: Error, footprint: &Footprint) -> Error {
    if error.kind() != ErrorKind::Memory || error.hint().is_some() {
        return error;
    }
    let bytes = footprint.weights + footprint.workspace;
    error.with_hint(format!(
        "{bytes} bytes are needed in all and were free at first; is another program using this GPU?"
    ))
}

#[cfg(feature = "cuda")]
fn cuda(options: &Options) -> Result<Hardware> {
    let devices = probe::devices()?;
    gemm::is_present()?;
    if options.ranks > 1 {
        return Err(Error::new(ErrorKind::Unsupported, "the CUDA backend has one rank so far"));
    }
    let info = devices.into_iter().next().expect("the probe names at least one GPU");
    let tier = options.cuda_tier.unwrap_or_else(|| info.capability.tier());
    if !info.capability.runs(tier) {
        let message =
            format!("a GPU of compute capability {} cannot run {} kernels", info.capability, tier.name());
        return Err(Error::new(ErrorKind::Options, message).at(info.name).with_hint("leave the tier out"));
    }
    Ok(Hardware::Cuda { info, tier })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &Options) -> Result<Hardware> {
    Err(Error::new(ErrorKind::Device, "this build of kudos has no CUDA backend"))
}
