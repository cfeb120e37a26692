//! NVIDIA GPUs as a [`Platform`]: the choice of GPUs and of their number, and a rank's model on its
//! GPU.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::device::{DeviceInfo, DeviceKind};
use super::interface::{Platform, RankSetup, at_least_one};
use super::load::load;
use crate::backend::cuda::context::Context;
use crate::backend::cuda::probe::{self, Capability, DeviceInfo as Gpu};
use crate::backend::cuda::{Cuda, Setup, fault, gemm, nccl};
use crate::backend::tier::CudaTier;
use crate::backend::{Capacity, Footprint, Geometry, NextBatch, Overlap};
use crate::batch::Packed;
use crate::config::ModelConfig;
use crate::engine::options::{CudaOptions, Replicas};
use crate::engine::ranks::Rank;
use crate::engine::residency::Residency;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::lock;
use crate::shard::allowed_ranks;
use crate::weights::{ModelTensors, WeightBytes};

/// Rows that go through the MLP at a time, at least: enough for matmuls at full speed.
const MLP_TOKENS_MIN: usize = 4096;

/// GPUs of one kind to plan for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedGpus {
    /// Their name.
    pub name: String,
    /// The kernels that they run.
    pub tier: CudaTier,
    /// Bytes that are free on each.
    pub free_bytes: usize,
    /// Number of GPUs.
    pub count: usize,
}

pub(in crate::engine) struct CudaPlatform {
    /// One per rank, replica by replica, and the rest: of one kind, unless the options name others.
    gpus: Vec<Gpu>,
    /// GPUs of other kinds.
    left_out: Vec<Gpu>,
    /// Warnings of the search for GPUs.
    found_warnings: Vec<String>,
    tier: CudaTier,
    /// Versions and files of the libraries in use; empty where the GPUs need not exist.
    libraries: String,
    options: CudaOptions,
    /// The number of ranks of each replica, once it is set.
    ranks: usize,
    /// Each replica's ranks, where there are several.
    groups: Vec<Arc<nccl::Group>>,
    /// The folder for timings of matmuls.
    cache_dir: Option<PathBuf>,
    /// Free bytes of each GPU, where the GPUs are planned for and need not exist.
    free_bytes: Option<usize>,
    /// Contexts of GPUs that were asked for their free bytes, kept until the ranks have theirs: the
    /// last one of a GPU that is closed costs making another.
    probed: Mutex<Vec<Context>>,
}

impl CudaPlatform {
    /// Finds the GPUs that the options name, or those of the best kind.
    pub(in crate::engine) fn new(options: &CudaOptions) -> Result<Self> {
        if let Some(error) = fault::lost() {
            return Err(error);
        }
        let probe::Found { able, warnings: found_warnings } = probe::find()?;
        let gpus = named(able, &options.devices)?;
        let libraries = gemm::library()?;
        let (gpus, left_out) = match options.cluster() {
            Some(cluster) => (vec![local(gpus, &options.devices, cluster.local_rank)?], Vec::new()),
            None if options.devices.is_empty() => of_best_kind(gpus),
            None => (gpus, Vec::new()),
        };
        let tier = options.tier.unwrap_or_else(|| oldest(&gpus).capability.tier());
        let cache_dir = options.cache_dir.clone().or_else(gemm::cache::user_folder);
        let options = options.clone();
        Ok(Self {
            gpus,
            left_out,
            found_warnings,
            tier,
            libraries,
            options,
            ranks: 1,
            groups: Vec::new(),
            cache_dir,
            free_bytes: None,
            probed: Mutex::default(),
        })
    }

    /// Makes a platform of GPUs that need not exist.
    pub(in crate::engine) fn imagined(planned: &PlannedGpus, options: &CudaOptions) -> Self {
        let capability = match planned.tier {
            CudaTier::Sm75 => Capability { major: 7, minor: 5 },
            CudaTier::Sm80 => Capability { major: 8, minor: 0 },
        };
        let gpu = |ordinal| Gpu {
            ordinal,
            name: planned.name.clone(),
            capability,
            memory_bytes: planned.free_bytes,
            multiprocessors: 0,
            shared_bytes_max: 0,
            shared_bytes_sm: 0,
            shared_bytes_reserved: 0,
            has_clock: false,
        };
        Self {
            gpus: (0..planned.count).map(gpu).collect(),
            left_out: Vec::new(),
            found_warnings: Vec::new(),
            tier: planned.tier,
            libraries: String::new(),
            options: options.clone(),
            ranks: 1,
            groups: Vec::new(),
            cache_dir: None,
            free_bytes: Some(planned.free_bytes),
            probed: Mutex::default(),
        }
    }

    /// The number of GPUs, in words.
    fn there_are(&self) -> String {
        let gpus = self.gpus.len();
        match self.left_out.first() {
            Some(other) => format!("{gpus} of one kind; {} is of another", name_of(other)),
            None => gpus.to_string(),
        }
    }

    /// Returns the bytes that are free on a GPU. A context takes memory itself, so they are read
    /// within one, as they are by the rank that will load.
    fn free_on(&self, gpu: &Gpu) -> Result<usize> {
        if let Some(known) = self.free_bytes {
            return Ok(known);
        }
        let mut probed = lock(&self.probed);
        if let Some(context) = probed.iter().find(|context| context.info().ordinal == gpu.ordinal) {
            return context.free_bytes();
        }
        let context = Context::open(gpu)?;
        let free_bytes = context.free_bytes()?;
        probed.push(context);
        Ok(free_bytes)
    }

    /// Returns the GPUs as they can be planned for.
    pub(in crate::engine) fn planned(&self) -> Result<PlannedGpus> {
        let free_bytes = self.free_bytes()?.unwrap_or_default();
        Ok(PlannedGpus {
            name: self.gpus[0].name.clone(),
            tier: self.tier,
            free_bytes,
            count: self.gpus.len(),
        })
    }
}

impl Platform for CudaPlatform {
    fn device(&self) -> DeviceInfo {
        let (Gpu { name, capability, .. }, count) = (&self.gpus[0], self.gpus.len());
        let numbers: Vec<String> = self.gpus.iter().map(|gpu| gpu.ordinal.to_string()).collect();
        let (gpus, numbers) = (if count == 1 { "GPU" } else { "GPUs" }, numbers.join(", "));
        let tier = self.tier.name();
        let libraries = if self.libraries.is_empty() { "" } else { ", " };
        let libraries = format!("{libraries}{}", self.libraries);
        DeviceInfo {
            kind: DeviceKind::Cuda,
            name: name.clone(),
            count,
            reason: None,
            simulated: !self.gpus.iter().all(|gpu| gpu.has_clock),
            description: format!(
                "CUDA, {gpus} {numbers} ({name}, compute capability {capability}, {tier} kernels){libraries}"
            ),
        }
    }

    fn ranks(
        &self,
        config: &ModelConfig,
        residency: Residency,
        footprint: &dyn Fn(usize) -> Result<Footprint>,
    ) -> Result<usize> {
        if let Some(cluster) = self.options.cluster() {
            return Ok(cluster.world_size);
        }
        let gpus = match self.options.replicas {
            Replicas::Count(count) => self.gpus.len() / count.max(1),
            Replicas::Auto => self.gpus.len(),
        };
        match self.options.ranks {
            Some(ranks) if ranks > self.gpus.len() => {
                let message = format!("{ranks} ranks need as many GPUs, and there are {}", self.there_are());
                return Err(Error::new(ErrorKind::Options, message)
                    .with_hint("request fewer (`--ranks`), or let processes on several machines share the model (`--rendezvous`)"));
            }
            // `replicas` refuses more than there are GPUs for.
            Some(ranks) => return Ok(ranks),
            // A user who requests streaming wants no further GPUs.
            None if matches!(residency, Residency::Streamed { .. }) => return Ok(1),
            None => {}
        }
        let able = |ranks: &usize| *ranks <= gpus && Cuda::divides(config, *ranks);
        let counts: Vec<usize> = allowed_ranks(config).into_iter().filter(able).collect();
        // One GPU leaves no choice, and its free bytes need not be read.
        let [candidates @ .., most] = &counts[..] else { return Ok(1) };
        let (mut free, mut seen) = (usize::MAX, 0);
        for &ranks in candidates {
            for gpu in &self.gpus[seen..ranks] {
                free = free.min(self.free_on(gpu)?);
            }
            seen = ranks;
            if footprint(ranks)?.total() <= free {
                return Ok(ranks);
            }
        }
        Ok(*most)
    }

    fn replicas(&self, ranks: usize) -> Result<usize> {
        let most = self.gpus.len() / ranks;
        match self.options.replicas {
            Replicas::Count(count) if count > 1 && self.options.cluster().is_some() => Err(Error::new(
                ErrorKind::Options,
                "a model whose ranks are in several processes has one replica",
            )
            .with_hint("start the processes of each replica with an address of their own (`--rendezvous`)")),
            _ if self.options.cluster().is_some() => Ok(1),
            Replicas::Auto => Ok(most.max(1)),
            Replicas::Count(count) if count > most => {
                let needed = count.saturating_mul(ranks);
                let each = if ranks == 1 { String::new() } else { format!(" of {ranks} ranks") };
                let message =
                    format!("{count} replicas{each} need {needed} GPUs, and there are {}", self.there_are());
                Err(Error::new(ErrorKind::Options, message)
                    .with_hint("`--replicas auto` makes as many as there are GPUs for"))
            }
            Replicas::Count(count) => at_least_one(count),
        }
    }

    fn divide(&mut self, replicas: usize, ranks: usize) -> Result<()> {
        self.gpus.truncate(replicas * ranks);
        let is_used = |context: &Context| self.gpus.iter().any(|gpu| gpu.ordinal == context.info().ordinal);
        lock(&self.probed).retain(is_used);
        self.ranks = ranks;
        // All ranks use one format for elements: the oldest of their GPUs decides.
        let Gpu { name, capability, .. } = oldest(&self.gpus);
        let tier = self.options.tier.unwrap_or_else(|| capability.tier());
        if !capability.runs(tier) {
            let tier = tier.name();
            let message = format!("a GPU of compute capability {capability} cannot run {tier} kernels");
            return Err(Error::new(ErrorKind::Options, message).at(name).with_hint("leave the tier out"));
        }
        self.tier = tier;
        if ranks == 1 {
            return Ok(());
        }
        self.libraries = format!("{}, {}", self.libraries, nccl::library()?);
        let timeout = self.options.peer_timeout;
        let group = |_| {
            let group = match self.options.cluster() {
                Some(cluster) if cluster.rank > 0 => nccl::Group::elsewhere(ranks, timeout)?,
                _ => nccl::Group::new(ranks, timeout)?,
            };
            Ok(Arc::new(match self.options.overlap {
                Overlap::Never => group,
                Overlap::Auto | Overlap::Always => group.with_blocks_max(nccl::BLOCKS_BESIDE_MATMULS),
            }))
        };
        self.groups = (0..replicas).map(group).collect::<Result<_>>()?;
        Ok(())
    }

    fn mlp_tokens(&self, geometry: &Geometry, tokens: usize) -> usize {
        // As many as fit into the memory of q, k and v.
        let shard = &geometry.shard;
        let beside_qkv = tokens * shard.qkv_width_local() / (2 * shard.ffn_local);
        beside_qkv.max(MLP_TOKENS_MIN).min(tokens)
    }

    fn weight_bytes(&self, geometry: &Geometry, tensors: &ModelTensors) -> WeightBytes {
        Cuda::weight_bytes(self.tier, geometry, tensors)
    }

    fn footprint(&self, geometry: &Geometry, capacity: &Capacity, weights: usize) -> Footprint {
        let footprint =
            Cuda::footprint(self.tier, geometry, capacity, weights, self.options.attention.as_deref());
        let libraries = self.options.reserved_bytes.unwrap_or(footprint.libraries);
        Footprint { libraries, ..footprint }
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        let free = self.gpus.iter().map(|gpu| self.free_on(gpu));
        free.collect::<Result<Vec<_>>>().map(|free| free.into_iter().min())
    }

    fn open_rank(&self, rank: RankSetup<'_>) -> Result<Box<dyn Rank>> {
        // With several processes each has one rank and one GPU.
        let index = rank.replica * self.ranks + rank.geometry.shard.rank;
        let gpu = if let [gpu] = &self.gpus[..] { gpu } else { &self.gpus[index] };
        let setup = Setup {
            info: gpu,
            tier: self.tier,
            group: self.groups.get(rank.replica).cloned(),
            tuning: self.options.gemm_tuning,
            cache: self.cache_dir.clone(),
            layer: &rank.tensors.layers[0],
            planned: rank.footprint,
            attention: self.options.attention.clone(),
            in_one_process: self.options.cluster().is_none(),
        };
        let WeightBytes { layers, head, .. } = rank.tensors.bytes();
        let to_stay = layers / rank.tensors.layers.len().max(1) * rank.resident_layers + head;
        let opened = Cuda::new(setup, rank.geometry.clone(), rank.capacity);
        // The rank has opened its own context, or has failed to.
        lock(&self.probed).retain(|context| context.info().ordinal != gpu.ordinal);
        let model = opened.and_then(|cuda| {
            rank.loading.count_in(to_stay as u64, Arc::clone(cuda.brought_bytes()));
            load(cuda, &rank)
        });
        model
            .map(|model| {
                let (name, ranks) = (name_of(gpu), rank.geometry.shard.ranks);
                Box::new(NamesPass { gpu: name, ranks, model }) as Box<dyn Rank>
            })
            .map_err(|error| {
                fault::name_place(&name_of(gpu));
                with_plan(error, rank.footprint)
            })
    }

    fn warnings(&self) -> Vec<String> {
        if self.left_out.is_empty() {
            return self.found_warnings.clone();
        }
        let names = self.left_out.iter().map(name_of).collect::<Vec<_>>().join(", ");
        let left_out = format!(
            "ranks share GPUs of one kind, so that these are not used: {names}; `--devices` names others"
        );
        self.found_warnings.iter().cloned().chain([left_out]).collect()
    }

    fn abort(&self, replica: usize) -> Arc<dyn Fn() + Send + Sync> {
        match self.groups.get(replica).cloned() {
            Some(group) => Arc::new(move || group.abort()),
            // One rank waits for no other.
            None => Arc::new(|| {}),
        }
    }

    #[cfg(feature = "cluster")]
    fn kernels(&self) -> &'static str {
        self.tier.name()
    }

    fn nccl_id(&self) -> Vec<u8> {
        self.groups.first().map_or_else(Vec::new, |group| group.id())
    }

    #[cfg(feature = "cluster")]
    fn set_nccl_id(&self, nccl_id: &[u8]) -> Result<()> {
        self.groups.first().map_or(Ok(()), |group| group.meet_at(nccl_id))
    }
}

/// A model whose errors name the GPU and the pass in which it failed.
struct NamesPass {
    gpu: String,
    ranks: usize,
    model: Box<dyn Rank>,
}

impl NamesPass {
    /// Names the place of an error, and of the GPU's failure, if this is one.
    fn at(&self, error: Error, place: String) -> Error {
        fault::name_place(&place);
        error.at(place)
    }
}

impl Rank for NamesPass {
    fn connect(&mut self) -> Result<()> {
        self.model.connect().map_err(|error| self.at(error, self.gpu.clone()))
    }

    fn finish(&mut self) -> Result<()> {
        self.model.finish().map_err(|error| self.at(error, self.gpu.clone()))
    }

    fn forward(&mut self, packed: &Packed, next_batch: NextBatch<'_>) -> Result<Vec<f32>> {
        let mut next = None;
        let mut next_batch = || next_batch().inspect(|batch| next = Some(batch.tokens.len()));
        let result = self.model.forward(packed, &mut next_batch);
        result.map_err(|error| {
            let (gpu, sequences, tokens) = (&self.gpu, packed.last.len(), packed.tokens.len());
            // Its first layers may have been queued.
            let next = next.map_or_else(String::new, |tokens| format!(", or in the next, of {tokens} tokens"));
            let place = format!("{gpu}, in a pass of {tokens} tokens and {sequences} last tokens{next}");
            let error = self.at(error, place);
            if error.kind() != ErrorKind::Device || error.hint().is_some() {
                return error;
            }
            // With several ranks, launches that block can keep NCCL from making progress.
            let hint = match self.ranks {
                1 => "a kernel's failure shows at a later call; run with `CUDA_LAUNCH_BLOCKING=1` in the environment and the error names the kernel",
                _ => "a kernel's failure shows at a later call; the system's log has the driver's own message (`dmesg`, `Xid`)",
            };
            error.with_hint(hint)
        })
    }
}

/// Returns the number and the name of a GPU.
fn name_of(gpu: &Gpu) -> String {
    format!("GPU {} ({})", gpu.ordinal, gpu.name)
}

/// Adds the planned bytes, which were free when the engine began to load, to a failed allocation.
fn with_plan(error: Error, footprint: &Footprint) -> Error {
    if error.kind() != ErrorKind::Memory || error.hint().is_some() {
        return error;
    }
    let bytes = footprint.total();
    error.with_hint(format!(
        "{bytes} bytes are needed in all and were free when loading began: another program may be using this GPU, or \
         CUDA's libraries take more than the {} that are reserved for them (`--gpu-reserve-gib`)",
        footprint.libraries
    ))
}

/// Returns the GPU with the lowest compute capability.
fn oldest(gpus: &[Gpu]) -> &Gpu {
    gpus.iter().min_by_key(|gpu| gpu.capability).expect("there is at least one GPU")
}

/// Divides GPUs, in their order, into those of the best kind and the others. A kind is a compute
/// capability and a size of memory in GiB: GPUs with bf16 come before those without, then more
/// memory before less, then the newer ones.
fn of_best_kind(gpus: Vec<Gpu>) -> (Vec<Gpu>, Vec<Gpu>) {
    let kind = |gpu: &Gpu| (gpu.capability.runs(CudaTier::Sm80), gpu.memory_bytes >> 30, gpu.capability);
    let best = gpus.iter().map(kind).max();
    gpus.into_iter().partition(|gpu| Some(kind(gpu)) == best)
}

/// Returns the GPU of this process, where there are several processes.
fn local(gpus: Vec<Gpu>, named: &[usize], local_rank: usize) -> Result<Gpu> {
    let (there, named) = (gpus.len(), named.len());
    if named > 1 {
        let message = format!("with several processes each has one GPU, and {named} are named");
        return Err(Error::new(ErrorKind::Options, message));
    }
    // Slurm and containers may show each process its own GPU only.
    let index = if there == 1 { 0 } else { local_rank };
    gpus.into_iter().nth(index).ok_or_else(|| {
        let message = format!("local rank {local_rank} needs a GPU of its own, and its machine has {there}");
        Error::new(ErrorKind::Options, message).with_hint("start at most one process per GPU on each machine")
    })
}

/// Returns the GPUs with these numbers, in this order; all GPUs where no number is given.
fn named(gpus: Vec<Gpu>, numbers: &[usize]) -> Result<Vec<Gpu>> {
    if numbers.is_empty() {
        return Ok(gpus);
    }
    let mut chosen: Vec<Gpu> = Vec::new();
    for &number in numbers {
        if chosen.iter().any(|gpu| gpu.ordinal == number) {
            return Err(Error::new(ErrorKind::Options, format!("GPU {number} is named twice")));
        }
        let Some(gpu) = gpus.iter().find(|gpu| gpu.ordinal == number) else {
            let there: Vec<String> = gpus.iter().map(|gpu| gpu.ordinal.to_string()).collect();
            let message = format!("there is no GPU {number} that this build supports");
            return Err(Error::new(ErrorKind::Options, message)
                .with_hint(format!("available GPUs: {}", there.join(", "))));
        };
        chosen.push(gpu.clone());
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_display_card_is_left_out_and_more_memory_comes_first() {
        let gpu = |ordinal, (major, minor), gib: f64| Gpu {
            ordinal,
            name: String::new(),
            capability: Capability { major, minor },
            memory_bytes: (gib * f64::from(1 << 30)) as usize,
            multiprocessors: 1,
            shared_bytes_max: 0,
            shared_bytes_sm: 0,
            shared_bytes_reserved: 0,
            has_clock: true,
        };
        let chosen = |gpus: &[((u32, u32), f64)]| {
            let gpus = gpus.iter().enumerate().map(|(index, (cc, gib))| gpu(index, *cc, *gib)).collect();
            let (used, left_out) = of_best_kind(gpus);
            let numbers = |gpus: Vec<Gpu>| gpus.iter().map(|gpu| gpu.ordinal).collect::<Vec<_>>();
            (numbers(used), numbers(left_out))
        };
        // The driver's totals of equal cards can differ by some MiB.
        let [ada, turing] = [((8, 9), 23.6), ((7, 5), 3.8)];
        assert_eq!(chosen(&[ada]), (vec![0], vec![]));
        assert_eq!(chosen(&[ada, turing, ((8, 9), 23.5)]), (vec![0, 2], vec![1]));
        assert_eq!(chosen(&[turing, ada]), (vec![1], vec![0]));
        assert_eq!(chosen(&[((7, 5), 47.4), ada]), (vec![1], vec![0]), "bf16 before memory");
        assert_eq!(chosen(&[ada, ((8, 0), 79.1), ((8, 0), 79.1)]), (vec![1, 2], vec![0]));
        assert_eq!(chosen(&[((8, 0), 79.1), ((9, 0), 79.3)]), (vec![1], vec![0]), "then the newer one");
    }
}
