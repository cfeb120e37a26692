//! Which device an engine runs on: chosen once, here, and opened per rank.

#[cfg(feature = "cuda")]
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use crate::backend::cpu::{Arithmetic, Cpu, Group};
#[cfg(feature = "cuda")]
use crate::backend::cuda::probe::{self, Capability, DeviceInfo};
#[cfg(feature = "cuda")]
use crate::backend::cuda::{Cuda, Setup, context::Context, gemm, nccl};
use crate::backend::profile::Profile;
#[cfg(feature = "cuda")]
use crate::backend::tier::CudaTier;
use crate::backend::timed::{Clock, Timed};
use crate::backend::{Ahead, Backend, Capacity, Footprint, Geometry, Loading};
#[cfg(feature = "cuda")]
use crate::backend::{GemmTuning, Overlap};
use crate::batch::Packed;
use crate::config::ModelConfig;
use crate::engine::ranks::Rank;
use crate::engine::{Device, Options};
#[cfg(feature = "cuda")]
use crate::engine::{PlannedGpus, Residency};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{LayerSource, Model, Resident, Streamed};
#[cfg(feature = "cuda")]
use crate::shard::allowed_ranks;
use crate::weights::{ModelTensors, WeightBytes};

/// Rows that go through the MLP at a time on the CPU: gate and up of a chunk stay near the cache, while a weight block
/// is packed once for many rows.
const MLP_TOKENS_CPU: usize = 512;

/// Multiprocessors that sums over ranks may occupy where other kernels run beside them: NCCL's all-reduce is as fast with
/// 4 to 8 as with more where the switch adds (published); an all-gather of 8 was not measured.
#[cfg(feature = "cuda")]
const SUM_BLOCKS_MAX: u8 = 8;

/// Rows that go through the MLP at a time on a GPU, at least: enough for matrix products at full speed.
#[cfg(feature = "cuda")]
const MLP_TOKENS_CUDA_MIN: usize = 4096;

/// The device of an engine.
pub(super) struct Chosen {
    hardware: Hardware,
    /// Why it is this one, when nobody asked for it by name.
    pub(super) reason: Option<String>,
    /// Where ranks are counted in that bring weights to a device.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU brings nothing"))]
    loading: Loading,
    /// Asks for the times of passes, where somebody may.
    profile: Option<Profile>,
}

enum Hardware {
    Cpu {
        threads: usize,
        arithmetic: Arithmetic,
        group: Arc<Group>,
    },
    #[cfg(feature = "cuda")]
    Cuda {
        /// One for each rank, and those that are left over.
        gpus: Vec<DeviceInfo>,
        tier: CudaTier,
        /// The ranks, where there are several.
        group: Option<Arc<nccl::Group>>,
        /// How matrix products are tuned, and the folder in which that is kept.
        gemm_tuning: GemmTuning,
        cache_dir: Option<PathBuf>,
        /// What is free on each, of GPUs that need not be there: they are planned for, not opened.
        free_bytes: Option<usize>,
    },
}

impl Chosen {
    /// The device that the options ask for, or the best one that is there.
    pub(super) fn new(options: &Options) -> Result<Self> {
        let (loading, profile) = (options.loading.clone(), options.profile.clone());
        if options.several_processes().is_some() {
            if options.device == Device::Cpu {
                let message = "ranks on the CPU share one process, and several processes were asked for";
                return Err(Error::new(ErrorKind::Options, message)
                    .with_hint("give each process a GPU, or leave out the processes: `--ranks N` alone"));
            }
            return Ok(Self { hardware: cuda(options)?, reason: None, loading, profile });
        }
        if options.device == Device::Cpu && !options.devices.is_empty() {
            let message = "GPUs were named for a model that is to run on the CPU";
            return Err(Error::new(ErrorKind::Options, message).with_hint("leave out one of the two"));
        }
        if options.device == Device::Cpu {
            return Self::cpu(options, None);
        }
        match (cuda(options), options.device) {
            (Ok(hardware), Device::Auto) => Ok(Self {
                hardware,
                reason: Some("the first GPU that this build supports".to_owned()),
                loading,
                profile,
            }),
            (Ok(hardware), _) => Ok(Self { hardware, reason: None, loading, profile }),
            // Whoever names GPUs does not mean the CPU.
            (Err(error), Device::Auto) if options.devices.is_empty() => {
                Self::cpu(options, Some(error.message().to_owned()))
            }
            (Err(error), _) if error.hint().is_none() => {
                Err(error.with_hint("leave the device to `auto`, or choose `cpu`"))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// GPUs that need not be there.
    #[cfg(feature = "cuda")]
    pub(super) fn imagined(gpus: &PlannedGpus) -> Self {
        let capability = match gpus.tier {
            CudaTier::Sm75 => Capability { major: 7, minor: 5 },
            CudaTier::Sm80 => Capability { major: 8, minor: 0 },
        };
        let info = |ordinal| DeviceInfo {
            ordinal,
            name: gpus.name.clone(),
            capability,
            memory_bytes: gpus.free_bytes,
            multiprocessors: 0,
            shared_bytes_max: 0,
            has_clock: false,
        };
        let (infos, free_bytes) = ((0..gpus.count).map(info).collect(), Some(gpus.free_bytes));
        Self {
            hardware: Hardware::Cuda {
                gpus: infos,
                tier: gpus.tier,
                group: None,
                gemm_tuning: GemmTuning::Off,
                cache_dir: None,
                free_bytes,
            },
            reason: None,
            loading: Loading::default(),
            profile: None,
        }
    }

    /// The GPUs that were found, as they can be planned for.
    #[cfg(feature = "cuda")]
    pub(super) fn planned(&self) -> Result<Option<PlannedGpus>> {
        let Hardware::Cuda { gpus, tier, .. } = &self.hardware else { return Ok(None) };
        let free_bytes = self.free_bytes()?.unwrap_or_default();
        Ok(Some(PlannedGpus { name: gpus[0].name.clone(), tier: *tier, free_bytes, count: gpus.len() }))
    }

    fn cpu(options: &Options, reason: Option<String>) -> Result<Self> {
        let all = || thread::available_parallelism().map_or(1, |n| n.get());
        let threads = options.threads.unwrap_or_else(all);
        if threads == 0 {
            return Err(Error::new(ErrorKind::Options, "0 threads cannot compute anything"));
        }
        let (arithmetic, group) = (Arithmetic::of(options.cpu_math), Arc::new(Group::new(1)));
        Ok(Self {
            hardware: Hardware::Cpu { threads, arithmetic, group },
            reason,
            loading: options.loading.clone(),
            profile: options.profile.clone(),
        })
    }

    /// Replaces the arithmetic of the CPU.
    #[cfg(test)]
    pub(super) fn compute_in(&mut self, another: Arithmetic) {
        match &mut self.hardware {
            Hardware::Cpu { arithmetic, .. } => *arithmetic = another,
            #[cfg(feature = "cuda")]
            Hardware::Cuda { .. } => panic!("a GPU has its own arithmetic"),
        }
    }

    /// How many ranks are to share the model: as many as are asked for, or as few GPUs as it fits on. When it fits on
    /// none of the counts, as many as there can be. `footprint(ranks)` is what one of so many ranks will allocate.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "only GPUs are counted"))]
    pub(super) fn ranks(
        &self,
        options: &Options,
        config: &ModelConfig,
        footprint: impl Fn(usize) -> Result<Footprint>,
    ) -> Result<usize> {
        if let Some(process) = options.several_processes() {
            return Ok(process.world_size);
        }
        match (&self.hardware, options.ranks) {
            (Hardware::Cpu { .. }, asked) => Ok(asked.unwrap_or(1)),
            #[cfg(feature = "cuda")]
            (Hardware::Cuda { gpus, .. }, Some(ranks)) if ranks > gpus.len() => {
                let message = format!("{ranks} ranks need as many GPUs, and there are {}", gpus.len());
                Err(Error::new(ErrorKind::Options, message)
                    .with_hint("ask for fewer (`--ranks`), or let processes on several machines share the model (`--rendezvous`)"))
            }
            #[cfg(feature = "cuda")]
            (Hardware::Cuda { .. }, Some(ranks)) => Ok(ranks),
            // Whoever asks for streaming means to do without more GPUs.
            #[cfg(feature = "cuda")]
            (Hardware::Cuda { .. }, None) if matches!(options.residency, Residency::Streamed { .. }) => Ok(1),
            #[cfg(feature = "cuda")]
            (Hardware::Cuda { gpus, free_bytes, .. }, None) => {
                let able = |ranks: &usize| *ranks <= gpus.len() && Cuda::divides(config, *ranks);
                let counts: Vec<usize> = allowed_ranks(config).into_iter().filter(able).collect();
                // One GPU needs no choice, and no look at what is free.
                let [candidates @ .., most] = &counts[..] else { return Ok(1) };
                let mut free = usize::MAX;
                let mut looked = 0;
                for &ranks in candidates {
                    for info in &gpus[looked..ranks] {
                        free = free.min(free_on(info, *free_bytes)?);
                    }
                    looked = ranks;
                    if footprint(ranks)?.total() <= free {
                        return Ok(ranks);
                    }
                }
                Ok(*most)
            }
        }
    }

    /// Divides the work among so many ranks.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "only GPUs wait for each other"))]
    pub(super) fn divide(&mut self, ranks: usize, options: &Options) -> Result<()> {
        match &mut self.hardware {
            Hardware::Cpu { group, .. } => *group = Arc::new(Group::new(ranks)),
            #[cfg(feature = "cuda")]
            Hardware::Cuda { gpus, group, .. } => {
                gpus.truncate(ranks);
                if ranks > 1 {
                    let made = match options.several_processes() {
                        Some(process) if process.rank > 0 => {
                            nccl::Group::elsewhere(ranks, options.peer_timeout)
                        }
                        _ => nccl::Group::new(ranks, options.peer_timeout),
                    };
                    let made = match options.overlap {
                        Overlap::Never => made?,
                        Overlap::Auto | Overlap::Always => made?.with_blocks_max(SUM_BLOCKS_MAX),
                    };
                    *group = Some(Arc::new(made));
                }
            }
        }
        Ok(())
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

    /// What a rank's weights take on the device; nothing on the CPU, which uses them where they are mapped.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "the CPU holds none"))]
    pub(super) fn weight_bytes(&self, geometry: &Geometry, tensors: &ModelTensors) -> WeightBytes {
        match &self.hardware {
            Hardware::Cpu { .. } => WeightBytes::default(),
            #[cfg(feature = "cuda")]
            Hardware::Cuda { tier, .. } => Cuda::weight_bytes(*tier, geometry, tensors),
        }
    }

    /// What one rank will allocate, when its weights take `weights` bytes on the device.
    #[cfg_attr(
        not(feature = "cuda"),
        allow(unused_variables, reason = "the CPU uses weights where they are")
    )]
    pub(super) fn footprint(&self, geometry: &Geometry, capacity: &Capacity, weights: usize) -> Footprint {
        match &self.hardware {
            Hardware::Cpu { .. } => Cpu::footprint(geometry, capacity),
            #[cfg(feature = "cuda")]
            Hardware::Cuda { tier, .. } => Cuda::footprint(*tier, geometry, capacity, weights),
        }
    }

    /// Bytes that are free on the device at present, where weights must fit into them; on the CPU they need not.
    pub(super) fn free_bytes(&self) -> Result<Option<usize>> {
        match &self.hardware {
            Hardware::Cpu { .. } => Ok(None),
            #[cfg(feature = "cuda")]
            Hardware::Cuda { gpus, free_bytes, .. } => {
                let free = gpus.iter().map(|info| free_on(info, *free_bytes));
                free.collect::<Result<Vec<_>>>().map(|free| free.into_iter().min())
            }
        }
    }

    /// Opens one rank, on the thread that will run it. `warn` gets what the caller should know.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "the CPU plans without it"))]
    pub(super) fn open_rank(
        &self,
        geometry: Geometry,
        capacity: Capacity,
        tensors: &ModelTensors,
        resident_layers: usize,
        footprint: &Footprint,
        warn: &dyn Fn(String),
    ) -> Result<Box<dyn Rank>> {
        match &self.hardware {
            Hardware::Cpu { threads, arithmetic, group } => {
                let threads = (threads / geometry.shard.ranks).max(1);
                let cpu = Cpu::new(geometry, capacity, arithmetic.clone(), threads, Arc::clone(group))?;
                self.load(cpu, capacity, tensors, resident_layers, warn)
            }
            #[cfg(feature = "cuda")]
            Hardware::Cuda { gpus, tier, group, gemm_tuning, cache_dir, .. } => {
                // A process of several has one rank and one GPU.
                let info = if let [info] = &gpus[..] { info } else { &gpus[geometry.shard.rank] };
                let setup = Setup {
                    info,
                    tier: *tier,
                    group: group.clone(),
                    tuning: *gemm_tuning,
                    cache: cache_dir.clone(),
                    layer: &tensors.layers[0],
                    planned: footprint,
                };
                let cuda = Cuda::new(setup, geometry, capacity);
                let WeightBytes { layers, head, .. } = tensors.bytes();
                let to_stay = layers / tensors.layers.len().max(1) * resident_layers + head;
                let model = cuda.and_then(|cuda| {
                    self.loading.count_in(to_stay as u64, Arc::clone(cuda.brought_bytes()));
                    self.load(cuda, capacity, tensors, resident_layers, warn)
                });
                model
                    .map(|model| Box::new(NamingPasses { info: info.clone(), model }) as Box<dyn Rank>)
                    .map_err(|error| lacking(error, footprint))
            }
        }
    }

    /// A model of which so many layers are resident, ready for passes, and for their times where somebody may ask.
    fn load<B: Clock + 'static>(
        &self,
        backend: B,
        capacity: Capacity,
        tensors: &ModelTensors,
        resident_layers: usize,
        warn: &dyn Fn(String),
    ) -> Result<Box<dyn Rank>> {
        match &self.profile {
            None => load(backend, capacity, tensors, resident_layers, warn),
            Some(profile) => {
                load(Timed::new(backend, profile.clone()), capacity, tensors, resident_layers, warn)
            }
        }
    }

    /// What ranks in other processes find this one by; nothing where there are none.
    pub(super) fn nccl_id(&self) -> Vec<u8> {
        match &self.hardware {
            #[cfg(feature = "cuda")]
            Hardware::Cuda { group: Some(group), .. } => group.id(),
            _ => Vec::new(),
        }
    }

    /// Says where the ranks of several processes meet, which is what [`nccl_id`](Self::nccl_id) gave at rank 0.
    #[cfg(feature = "cluster")]
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "only GPUs meet"))]
    pub(super) fn meet_at(&self, nccl_id: &[u8]) -> Result<()> {
        match &self.hardware {
            #[cfg(feature = "cuda")]
            Hardware::Cuda { group: Some(group), .. } => group.meet_at(nccl_id),
            _ => Ok(()),
        }
    }

    /// The kernels that are run, which all ranks share.
    #[cfg(feature = "cluster")]
    pub(super) fn tier_name(&self) -> &'static str {
        match &self.hardware {
            Hardware::Cpu { .. } => "none",
            #[cfg(feature = "cuda")]
            Hardware::Cuda { tier, .. } => tier.name(),
        }
    }

    /// Makes every rank that waits for another give up.
    pub(super) fn abort(&self) -> Arc<dyn Fn() + Send + Sync> {
        match &self.hardware {
            Hardware::Cpu { group, .. } => {
                let group = Arc::clone(group);
                Arc::new(move || group.abort())
            }
            #[cfg(feature = "cuda")]
            Hardware::Cuda { group: Some(group), .. } => {
                let group = Arc::clone(group);
                Arc::new(move || group.abort())
            }
            // One rank waits for nobody.
            #[cfg(feature = "cuda")]
            Hardware::Cuda { group: None, .. } => Arc::new(|| {}),
        }
    }

    /// Whether times on the device are those of hardware.
    pub(super) fn has_clock(&self) -> bool {
        match &self.hardware {
            Hardware::Cpu { .. } => true,
            #[cfg(feature = "cuda")]
            Hardware::Cuda { gpus, .. } => gpus.iter().all(|gpu| gpu.has_clock),
        }
    }

    /// The device in words.
    pub(super) fn describe(&self) -> String {
        match &self.hardware {
            Hardware::Cpu { threads, arithmetic, .. } => {
                format!("CPU, {threads} threads, {}", arithmetic.instructions())
            }
            #[cfg(feature = "cuda")]
            Hardware::Cuda { gpus, tier, .. } => {
                let DeviceInfo { name, capability, .. } = &gpus[0];
                let numbers: Vec<String> = gpus.iter().map(|gpu| gpu.ordinal.to_string()).collect();
                let (gpu, numbers) = (if gpus.len() == 1 { "GPU" } else { "GPUs" }, numbers.join(", "));
                format!(
                    "CUDA, {gpu} {numbers} ({name}, compute capability {capability}, {} kernels)",
                    tier.name()
                )
            }
        }
    }
}

/// A model of which so many layers are resident and the others streamed, ready for passes.
fn load<B: Backend + 'static>(
    mut backend: B,
    capacity: Capacity,
    tensors: &ModelTensors,
    resident_layers: usize,
    warn: &dyn Fn(String),
) -> Result<Box<dyn Rank>> {
    if resident_layers < tensors.layers.len() {
        let layers = Streamed::load(&mut backend, tensors, resident_layers)?;
        return ready(Model::new(backend, capacity, tensors, layers)?, warn);
    }
    let layers = Resident::load(&mut backend, tensors)?;
    ready(Model::new(backend, capacity, tensors, layers)?, warn)
}

fn ready<B, L>(model: Model<B, L>, warn: &dyn Fn(String)) -> Result<Box<dyn Rank>>
where
    B: Backend + 'static,
    L: LayerSource<B> + 'static,
{
    model.warnings().into_iter().for_each(warn);
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

/// A model whose errors say in which pass its GPU failed.
#[cfg(feature = "cuda")]
struct NamingPasses {
    info: DeviceInfo,
    model: Box<dyn Rank>,
}

#[cfg(feature = "cuda")]
impl Rank for NamingPasses {
    fn connect(&mut self) -> Result<()> {
        self.model
            .connect()
            .map_err(|error| error.at(format!("GPU {} ({})", self.info.ordinal, self.info.name)))
    }

    fn forward(&mut self, packed: &Packed, ahead: Ahead<'_>) -> Result<Vec<f32>> {
        self.model.forward(packed, ahead).map_err(|error| {
            let gpu = format!("GPU {} ({})", self.info.ordinal, self.info.name);
            let (sequences, tokens) = (packed.last.len(), packed.tokens.len());
            let error = error.at(format!("{gpu}, in a pass of {tokens} tokens and {sequences} last tokens"));
            if error.kind() != ErrorKind::Device {
                return error;
            }
            error.with_hint(
                "a kernel's failure shows at a later call; run with `CUDA_LAUNCH_BLOCKING=1` in the environment and the error names the kernel",
            )
        })
    }
}

/// An allocation's failure with what was planned: it was free when the engine began to load.
#[cfg(feature = "cuda")]
fn lacking(error: Error, footprint: &Footprint) -> Error {
    if error.kind() != ErrorKind::Memory || error.hint().is_some() {
        return error;
    }
    let bytes = footprint.total();
    error.with_hint(format!(
        "{bytes} bytes are needed in all and were free at first; is another program using this GPU?"
    ))
}

#[cfg(feature = "cuda")]
fn cuda(options: &Options) -> Result<Hardware> {
    let mut gpus = named(probe::devices()?, &options.devices)?;
    gemm::is_present()?;
    if let Some(process) = options.several_processes() {
        gpus = vec![local(gpus, &options.devices, process.local_rank)?];
    }
    // All ranks store numbers alike: the oldest GPU decides.
    let oldest = gpus.iter().min_by_key(|info| info.capability).expect("there is at least one GPU");
    let tier = options.cuda_tier.unwrap_or_else(|| oldest.capability.tier());
    if !oldest.capability.runs(tier) {
        let (capability, tier) = (oldest.capability, tier.name());
        let message = format!("a GPU of compute capability {capability} cannot run {tier} kernels");
        return Err(Error::new(ErrorKind::Options, message).at(&oldest.name).with_hint("leave the tier out"));
    }
    let gemm_tuning = options.gemm_tuning;
    let cache_dir = options.cache_dir.clone().or_else(gemm::cache::user_folder);
    Ok(Hardware::Cuda { gpus, tier, group: None, gemm_tuning, cache_dir, free_bytes: None })
}

/// Bytes that are free on a GPU, where they are not known. A context takes memory itself, so that is asked within one, as
/// the rank does that will load.
#[cfg(feature = "cuda")]
fn free_on(info: &DeviceInfo, known: Option<usize>) -> Result<usize> {
    known.map_or_else(|| Context::open(info)?.free_bytes(), Ok)
}

/// The one GPU of a process of several.
#[cfg(feature = "cuda")]
fn local(gpus: Vec<DeviceInfo>, named: &[usize], local_rank: usize) -> Result<DeviceInfo> {
    let (there, named) = (gpus.len(), named.len());
    if named > 1 {
        let message = format!("a process of several has one rank and one GPU, and {named} are named");
        return Err(Error::new(ErrorKind::Options, message));
    }
    // Slurm and containers may show each process its own GPU only.
    let index = if there == 1 { 0 } else { local_rank };
    gpus.into_iter().nth(index).ok_or_else(|| {
        let message = format!("this is process {local_rank} of its machine, which has {there} GPUs");
        Error::new(ErrorKind::Options, message).with_hint("start as many processes there as it has GPUs")
    })
}

/// The GPUs with these numbers, in their order; all when none is named.
#[cfg(feature = "cuda")]
fn named(gpus: Vec<DeviceInfo>, numbers: &[usize]) -> Result<Vec<DeviceInfo>> {
    if numbers.is_empty() {
        return Ok(gpus);
    }
    let mut chosen: Vec<DeviceInfo> = Vec::new();
    for &number in numbers {
        if chosen.iter().any(|gpu| gpu.ordinal == number) {
            return Err(Error::new(ErrorKind::Options, format!("GPU {number} is named twice")));
        }
        let Some(gpu) = gpus.iter().find(|gpu| gpu.ordinal == number) else {
            let there: Vec<String> = gpus.iter().map(|gpu| gpu.ordinal.to_string()).collect();
            let message = format!("there is no GPU {number} that this build supports");
            return Err(Error::new(ErrorKind::Options, message)
                .with_hint(format!("GPUs that are there: {}", there.join(", "))));
        };
        chosen.push(gpu.clone());
    }
    Ok(chosen)
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &Options) -> Result<Hardware> {
    Err(Error::new(ErrorKind::Device, "this build of kudos has no CUDA backend"))
}
