//! [`Platform`]: a kind of device as the engine sees it: chosen once by [`choose`], asked for sizes while
//! the engine plans, and opened once per rank.
//!
//! A platform stands in the engine, not beside its backend: opening a rank builds the model, which
//! stands above the backends. This is the one place of the engine that names them.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use std::fmt;
use std::sync::Arc;

use crate::backend::profile::Profile;
use crate::backend::timed::{Clock, Timed};
use crate::backend::{Ahead, Backend, Capacity, Footprint, Geometry, Loading};
use crate::batch::Packed;
use crate::config::ModelConfig;
use crate::engine::options::{CudaOptions, Device};
use crate::engine::ranks::Rank;
use crate::engine::residency::Residency;
use crate::error::Result;
#[cfg(not(feature = "cuda"))]
use crate::error::{Error, ErrorKind};
use crate::model::{LayerSource, Model, Resident, Streamed};
use crate::weights::{ModelTensors, WeightBytes};

pub(super) use cpu::CpuPlatform;
#[cfg(feature = "cuda")]
pub(super) use cuda::CudaPlatform;
#[cfg(feature = "cuda")]
pub use cuda::PlannedGpus;

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// The device that an engine runs on. `{}` describes it in one line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its kind.
    pub kind: DeviceKind,
    /// The name of the GPU, or the instructions that the CPU computes with.
    pub name: String,
    /// GPUs, or threads of the CPU.
    pub count: usize,
    /// Why this device was chosen, where the choice was the engine's.
    pub reason: Option<String>,
    /// Whether the device is a software GPU, whose timings say nothing of speed.
    pub simulated: bool,
    description: String,
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

/// A kind of device, with its options. Ranks are the engine's ranks on it, in this process.
pub(super) trait Platform: Send + Sync {
    /// Returns the device's description.
    fn device(&self) -> DeviceInfo;

    /// Returns the number of ranks: as requested, or the fewest that the model fits on, or the most there
    /// can be where it fits on none. `footprint(ranks)` is what one of so many ranks will allocate.
    fn ranks(
        &self,
        config: &ModelConfig,
        residency: Residency,
        footprint: &dyn Fn(usize) -> Result<Footprint>,
    ) -> Result<usize>;

    /// Sets the number of ranks, before any is opened.
    fn divide(&mut self, ranks: usize) -> Result<()>;

    /// Returns the rows that go through the MLP at a time, in passes of up to `tokens` rows.
    fn mlp_tokens(&self, geometry: &Geometry, tokens: usize) -> usize;

    /// Returns the bytes of a rank's weights on the device: none where they are used as mapped.
    fn weight_bytes(&self, geometry: &Geometry, tensors: &ModelTensors) -> WeightBytes;

    /// Returns the bytes that one rank will allocate, where its weights take `weights` bytes on the device.
    fn footprint(&self, geometry: &Geometry, capacity: &Capacity, weights: usize) -> Footprint;

    /// Returns the bytes that are free on the device, the least of several; `None` where weights need no
    /// device memory.
    fn free_bytes(&self) -> Result<Option<usize>>;

    /// Opens one rank, on the thread that will run it.
    fn open_rank(&self, rank: RankSetup<'_>) -> Result<Box<dyn Rank>>;

    /// Returns a function that makes every rank give up that waits for another one.
    fn abort(&self) -> Arc<dyn Fn() + Send + Sync>;

    /// Returns the name of the kernels that are run, on which all ranks agree.
    fn kernels(&self) -> &'static str {
        "none"
    }

    /// Returns the id by which ranks in other processes find rank 0; empty where there are none.
    fn nccl_id(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Sets the id that [`nccl_id`](Self::nccl_id) returned at rank 0.
    fn meet_at(&self, _nccl_id: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// The parts of one rank, to be opened.
pub(super) struct RankSetup<'a> {
    pub(super) geometry: Geometry,
    pub(super) capacity: Capacity,
    pub(super) tensors: &'a ModelTensors,
    /// Layers that stay on the device.
    pub(super) resident_layers: usize,
    /// The planned allocations.
    pub(super) footprint: &'a Footprint,
    /// Counts the weights that reach the device.
    pub(super) loading: &'a Loading,
    /// Records times of passes on request.
    pub(super) profile: Option<&'a Profile>,
    /// Receives warnings.
    pub(super) warn: &'a dyn Fn(String),
}

/// Returns the platform that the options ask for, and the reason where they leave the choice.
pub(super) fn choose(device: &Device) -> Result<(Box<dyn Platform>, Option<String>)> {
    match device {
        Device::Cpu(options) => Ok((Box::new(CpuPlatform::new(options)?), None)),
        Device::Cuda(options) => match cuda(options) {
            Err(error) if error.hint().is_none() => {
                Err(error.with_hint("leave the device to `auto`, or choose `cpu`"))
            }
            platform => Ok((platform?, None)),
        },
        Device::Auto { cpu, cuda: options } => match cuda(options) {
            Ok(platform) => Ok((platform, Some("the first GPU that this build supports".to_owned()))),
            // GPUs or processes that were named rule the CPU out.
            Err(error) if options.devices.is_empty() && options.cluster().is_none() => {
                Ok((Box::new(CpuPlatform::new(cpu)?), Some(error.message().to_owned())))
            }
            Err(error) => Err(error),
        },
    }
}

#[cfg(feature = "cuda")]
fn cuda(options: &CudaOptions) -> Result<Box<dyn Platform>> {
    Ok(Box::new(CudaPlatform::new(options)?))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &CudaOptions) -> Result<Box<dyn Platform>> {
    Err(Error::new(ErrorKind::Device, "this build of kudos has no CUDA backend"))
}

/// Loads the model onto a backend, with a recorder of times where a profile is asked for.
fn load<B: Clock + 'static>(backend: B, rank: &RankSetup<'_>) -> Result<Box<dyn Rank>> {
    match rank.profile {
        None => load_layers(backend, rank),
        Some(profile) => load_layers(Timed::new(backend, profile.clone()), rank),
    }
}

fn load_layers<B: Backend + 'static>(mut backend: B, rank: &RankSetup<'_>) -> Result<Box<dyn Rank>> {
    if rank.resident_layers < rank.tensors.layers.len() {
        let layers = Streamed::load(&mut backend, rank.tensors, rank.resident_layers)?;
        return load_model(backend, layers, rank);
    }
    let layers = Resident::load(&mut backend, rank.tensors)?;
    load_model(backend, layers, rank)
}

fn load_model<B, L>(backend: B, layers: L, rank: &RankSetup<'_>) -> Result<Box<dyn Rank>>
where
    B: Backend + 'static,
    L: LayerSource<B> + 'static,
{
    let model = Model::new(backend, rank.capacity, rank.tensors, layers)?;
    model.warnings().into_iter().for_each(rank.warn);
    Ok(Box::new(model))
}

impl<B: Backend, L: LayerSource<B>> Rank for Model<B, L> {
    fn connect(&mut self) -> Result<()> {
        Self::connect(self)
    }

    fn forward(&mut self, packed: &Packed, ahead: Ahead<'_>) -> Result<Vec<f32>> {
        Self::forward(self, packed, ahead)
    }
}
