//! [`Cuda`]: the backend on one GPU, with the kernels, cublasLt and the memory of one rank.
//!
//! All memory is allocated at the start, for passes of full capacity, and all matmuls are prepared.
//! A pass's tables are uploaded in one copy from pinned memory, and its tokens' embeddings in a
//! second one, or while the pass before runs. Only [`logits`](Backend::logits) waits for the GPU. A
//! test counts the calls of the driver in a pass.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::all_reduce::AllReducer;
use super::buffer::DeviceBuffer;
use super::context::Context;
use super::format::ActivationFormat;
use super::gemm::cache::Cache;
use super::gemm::tuning::Tuner;
use super::gemm::{BitCheck, Lt, Matmul, MatmulShape, Operands, Share};
use super::heads::HeadLayout;
use super::kernels::{AttentionFeatures, AttentionKernel};
use super::matmuls::{self, Biases, WeightShape, features_of};
use super::nccl::{BLOCKS_BESIDE_MATMULS, Group};
use super::ops::{
    self, AddRmsNorm, Attention, GateMul, GatherRows, HeadNorms, Norm, Ops, Rope, RopeTables, Score,
    SeamTiles,
};
use super::probe::DeviceInfo;
use super::results::Results;
use super::sizes::{
    AllReduceSizes, normed_width, overlapped_rows_min, parts, scratch_elements, tables_bytes,
};
use super::slot::Slot;
use super::staging::Staging;
use super::tables::{DeviceTables, HostTables, RowIndices, SeamSources, WorkList};
use super::tiles::{PartTiles, Tiles, WorkItem};
use super::uploader::Uploader;
use super::weight::{Weight, WeightLayout};
use crate::backend::tier::CudaTier;
use crate::backend::{
    Backend, Capacity, Features, Footprint, GemmTuning, Geometry, HostWeight, LayerWeights, Matrix,
    Reduction, Role, Rotate, Tokens,
};
use crate::batch::Packed;
use crate::config::{self, ModelConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::units::gib;
use crate::weights::{Dtype, HostTensor, LayerTensors, Normal};

/// Layers of the next pass that are queued early: the GPU computes them while the host completes
/// scores. More would fill the driver's queue, and the host would wait there instead, with logits
/// that callers want.
const LAYERS_BEGUN: usize = 2;

/// Factor of gate times up in f16, so that it stays below 65,504; the matmul with down undoes it.
const GATED_SCALE_F16: f32 = 1.0 / 16.0;

/// One rank's CUDA backend.
#[derive(Debug)]
pub struct Cuda {
    // Dropped in this order: the all-reducer first, which ends collectives that wait for other
    // ranks; then the uploader, whose thread ends before anything that it may use is freed; and
    // memory, whose drop waits for the device, before the context.
    /// `None` with one rank.
    pub(super) all_reducer: Option<AllReducer>,
    /// `[rows, hidden]`, with one rank whose outputs of projections are normed before they are
    /// added: these, until the next norm takes them.
    pending: Option<DeviceBuffer>,
    uploader: Uploader,
    lt: Lt,
    /// Those of a layer: all layers have the same shapes.
    matmuls: HashMap<MatmulShape, Matmul>,
    /// Compares bits of matmuls, where that is requested.
    bit_check: Option<BitCheck>,
    staging: Staging,
    rope_tables: RopeTables,
    /// Tables of the present pass.
    tables: DeviceTables,
    /// The part of the GPU that the matmuls of the present pass have.
    share: Share,
    layers_begun: usize,
    logits: DeviceBuffer,
    /// Where logits are copied to.
    results: Results,
    pub(super) ops: Ops,
    pub(super) geometry: Geometry,
    capacity: Capacity,
    heads: HeadLayout,
}

/// An activation: rows on the device. The width is that of the op that wrote it last.
#[derive(Debug)]
pub struct Act {
    buffer: DeviceBuffer,
    role: Role,
    width: usize,
}

/// A pass's tables on the device.
#[derive(Debug)]
pub struct Metadata {
    parts: Vec<Range<usize>>,
    /// One per part.
    rows: Vec<MetadataRows>,
    last: MetadataRows,
    last_rows: RowIndices,
}

#[derive(Debug)]
struct MetadataRows {
    first_row: usize,
    positions: RowIndices,
    work: WorkList,
    /// The first row of the seam tiles that these rows' keys complete.
    seam_row: usize,
    seam_sources: SeamSources,
}

/// Settings of a rank's backend.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The GPU.
    pub info: &'a DeviceInfo,
    /// The kernels' tier, which the GPU can run.
    pub tier: CudaTier,
    /// The ranks, where there are several.
    pub group: Option<Arc<Group>>,
    /// Whether matmuls are measured.
    pub tuning: GemmTuning,
    /// Folder of the cache of measurements.
    pub cache: Option<PathBuf>,
    /// Any of the layers: all have the same shapes.
    pub layer: &'a LayerTensors,
    /// The memory that was planned for the rank.
    pub planned: &'a Footprint,
    /// The name of the attention kernel to use instead of the best one that fits.
    pub attention: Option<String>,
    /// Whether all ranks are in this process.
    pub in_one_process: bool,
}

impl Cuda {
    /// A backend for passes of up to `capacity`. [`ErrorKind::Memory`], before anything is
    /// allocated, when less memory is free on the GPU than is planned.
    pub fn new(setup: Setup<'_>, geometry: Geometry, capacity: Capacity) -> Result<Self> {
        let Setup { info, tier, group, tuning, cache, layer, planned, attention, in_one_process } = setup;
        let format = ActivationFormat::of(tier);
        let heads = HeadLayout::new(&geometry);
        needs_multiple("hidden_size", geometry.hidden)?;
        needs_multiple("a rank's part of intermediate_size", geometry.shard.ffn_local)?;
        needs_head_norms(layer, heads.head_dim)?;
        needs_norm(&geometry, layer)?;
        let features = AttentionFeatures { window: geometry.has_windows, cap: geometry.scores.cap.is_some() };
        let head_dim = heads.padded;
        let attention = match attention {
            Some(name) => AttentionKernel::named(&name, info, format, head_dim, features)?,
            None => AttentionKernel::choose(info, format, head_dim, features)?,
        };
        let context = Context::open(info)?;
        fits(&context, planned)?;
        let ops = Ops::with_attention(context, attention)?;
        let context = ops.context();
        let mut lt = Lt::new(context, format)?;
        if group.is_some() {
            let left = info.multiprocessors.saturating_sub(usize::from(BLOCKS_BESIDE_MATMULS)).max(1);
            lt = lt.beside_collectives(left, overlapped_rows_min(geometry.overlap));
        }
        let row_bytes = geometry.hidden * format.residual_bytes();
        let tables_bytes = tables_bytes(&geometry, &heads, &capacity, attention.boxes);
        let staging = Staging::new(context, capacity.tokens, row_bytes, tables_bytes)?;
        let uploader = Uploader::new(context, group.clone())?;
        uploader.prefetch(layer);
        let frequencies = heads.frequencies(&geometry.rope_frequencies);
        let rope_tables = RopeTables::new(&ops, &frequencies, capacity.tokens)?;
        let tables = DeviceTables::allocate(context, tables_bytes)?;
        let logits = context.allocate(capacity.sequences * geometry.labels * size_of::<f32>())?;
        let results = Results::new(context, logits.bytes())?;
        let all_reducer = match group.clone() {
            Some(group) => Some(AllReducer::new(context, group, &geometry, &capacity, format)?),
            None => None,
        };
        let pending = match AllReduceSizes::bytes(&geometry, &capacity, format) {
            bytes if bytes > 0 && all_reducer.is_none() => Some(context.allocate(bytes)?),
            _ => None,
        };
        let cache = Cache::new(cache, info, format)?;
        let shapes = matmuls::of_layers(&geometry, &heads, &capacity, format, Biases::of(layer));
        // Before weights and activations are allocated: the trials of matmuls use that memory.
        let tuner = Tuner::new(&ops, &lt, tuning, cache)?.with_group(group);
        let matmuls = prepare(tuner, &shapes)?;
        let bit_check = BitCheck::from_environment(context, format, shapes.iter().map(|(shape, _)| *shape))?;
        Ok(Self {
            all_reducer,
            pending,
            uploader,
            lt,
            matmuls,
            bit_check,
            staging,
            rope_tables,
            tables,
            share: Share::Whole,
            // A rank of another process gets the next batch when this pass has ended: a rank that
            // queued all-reduces with it before would wait for it, and it for that rank.
            layers_begun: if in_one_process { LAYERS_BEGUN } else { 0 },
            logits,
            results,
            ops,
            geometry,
            capacity,
            heads,
        })
    }

    /// Whether the kernels can do each rank's part of the MLP, for a model that can be divided
    /// among `ranks`.
    pub fn divides(config: &ModelConfig, ranks: usize) -> bool {
        (config.ffn / ranks).is_multiple_of(WIDTH_STEP)
    }

    /// The GPU.
    pub fn info(&self) -> &DeviceInfo {
        self.ops.context().info()
    }

    /// Bytes of weights, as stored in their files, that were loaded to stay.
    pub fn brought_bytes(&self) -> &Arc<AtomicU64> {
        self.uploader.brought()
    }

    pub(super) fn format(&self) -> ActivationFormat {
        self.ops.format()
    }

    fn layout(&self) -> WeightLayout {
        WeightLayout::new(self.format(), self.heads)
    }

    /// Loads a weight to stay.
    fn load(&mut self, part: &HostWeight<'_>) -> Result<Weight> {
        let context = self.ops.context();
        let mut weight = Weight::allocate(context, self.layout(), part)?;
        match weight.normal(part) {
            Some(Normal { seed, deviation }) => {
                let elements = weight.out_features * weight.in_features;
                self.ops.fill_normal(weight.values_mut(), elements, seed, deviation)?;
                let stored = part.pieces.iter().map(HostTensor::size_bytes).sum::<usize>();
                self.brought_bytes().fetch_add(stored as u64, Ordering::Relaxed);
            }
            None => self.uploader.load(&weight, part)?,
        }
        Ok(weight)
    }

    fn ops_heads(&self) -> ops::Heads {
        let HeadLayout { q_heads, kv_heads, padded, .. } = self.heads;
        ops::Heads { q_heads, kv_heads, head_dim: padded }
    }

    /// Queues a matmul.
    ///
    /// # Panics
    ///
    /// When its shape was not prepared.
    fn multiply(&mut self, shape: MatmulShape, operands: Operands<'_>) -> Result<()> {
        let matmul = self.matmuls.get_mut(&shape).unwrap_or_else(|| panic!("{shape:?} was not prepared"));
        match &mut self.bit_check {
            Some(check) => check.run(self.ops.context(), &self.lt, matmul, operands),
            None => self.lt.run(matmul, operands),
        }
    }
}

/// A function that writes an id's row of the embedding table in the format of the residual stream.
/// Multiplied by a `scale` that is rounded to that format first, as in transformers.
fn embedding(table: &HostTensor, format: ActivationFormat, scale: f32) -> impl FnMut(u32, &mut [u8]) {
    let mut scratch = vec![0.0; table.cols()];
    let scale = match format {
        ActivationFormat::F16 => scale,
        ActivationFormat::Bf16 => half::bf16::from_f32(scale).to_f32(),
    };
    move |id, bytes| {
        if format == ActivationFormat::Bf16 && table.dtype() == Dtype::BF16 && scale == 1.0 {
            return bytes.copy_from_slice(table.row_bytes(id as usize));
        }
        table.row_to_f32(id as usize, &mut scratch);
        if scale != 1.0 {
            scratch.iter_mut().for_each(|x| *x = rounded(*x, format) * scale);
        }
        match format {
            ActivationFormat::F16 => bytes.copy_from_slice(bytemuck::cast_slice(&scratch)),
            ActivationFormat::Bf16 => {
                for (bytes, &value) in bytes.chunks_exact_mut(format.bytes()).zip(&scratch) {
                    bytes.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
                }
            }
        }
    }
}

/// An element of a table of embeddings as the model has it in a format: in bf16, the residual
/// stream's; with f16, whose residual stream is in f32, as it is stored.
fn rounded(value: f32, format: ActivationFormat) -> f32 {
    match format {
        ActivationFormat::F16 => value,
        ActivationFormat::Bf16 => half::bf16::from_f32(value).to_f32(),
    }
}

/// Prepares matmuls of these shapes, each with its most rows.
fn prepare(mut tuner: Tuner<'_>, shapes: &[(MatmulShape, usize)]) -> Result<HashMap<MatmulShape, Matmul>> {
    shapes.iter().map(|&(shape, rows_max)| Ok((shape, tuner.matmul(shape, rows_max)?))).collect()
}

/// The shape of a weight that is multiplied with `x`.
fn shape_of(weight: &Weight, x: &Act) -> WeightShape {
    let Weight { matrix, out_features, in_features, .. } = *weight;
    WeightShape { matrix, out_features, in_features, x_stride: x.width, bias: weight.has_bias() }
}

/// Checks that as much memory is free on the GPU as is planned.
fn fits(context: &Context, planned: &Footprint) -> Result<()> {
    let (free, total) = (context.free_bytes()?, planned.total());
    if total <= free {
        return Ok(());
    }
    let message = format!(
        "the model needs {:.2} GiB ({:.2} of weights, {:.2} of workspace, {:.2} for libraries), the GPU has {:.2} free",
        gib(total),
        gib(planned.weights),
        gib(planned.workspace),
        gib(planned.libraries),
        gib(free)
    );
    let workspace = "a smaller longest sequence (`--max-tokens`) and fewer tokens per batch (`--batch-tokens`) need less workspace; ";
    let weights = "weights need less where layers are streamed (`--residency auto`, the default) or more GPUs share them (`--ranks`)";
    let hint = format!("{}{weights}", if planned.weights < free { workspace } else { "" });
    Err(Error::new(ErrorKind::Memory, message).at(&context.info().name).with_hint(hint))
}

/// Widths are whole multiples of this: rows are read in 16-byte words.
const WIDTH_STEP: usize = 8;

fn needs_multiple(name: &str, size: usize) -> Result<()> {
    if size.is_multiple_of(WIDTH_STEP) {
        return Ok(());
    }
    let message = format!("{name} is {size}; the CUDA backend needs a multiple of {WIDTH_STEP}");
    Err(Error::new(ErrorKind::Unsupported, message).with_hint("the CPU can score this model"))
}

/// Checks that the kernels can norm heads of this width, where the model does.
fn needs_head_norms(layer: &LayerTensors, head_dim: usize) -> Result<()> {
    if layer.head_norms.is_none() || ops::norms_heads_of(head_dim) {
        return Ok(());
    }
    let message =
        format!("no CUDA kernel norms heads of width {head_dim}: a power of two from 16 to 512 is needed");
    Err(Error::new(ErrorKind::Unsupported, message).with_hint("the CPU can score this model"))
}

/// Checks that the kernels can do the norms of a model: of branches only those that add 1 to their
/// weight, which hold a row and its branch's in registers, and of heads only those that do not.
fn needs_norm(geometry: &Geometry, layer: &LayerTensors) -> Result<()> {
    let message = match geometry.norm {
        config::Norm::Scale if geometry.branch_norms => {
            "no CUDA kernel norms branches by their weight alone".to_owned()
        }
        config::Norm::OnePlus if layer.head_norms.is_some() => {
            "no CUDA kernel norms heads by 1 + their weight".to_owned()
        }
        config::Norm::OnePlus if geometry.hidden > ops::BRANCH_HIDDEN_MAX => format!(
            "hidden_size is {}; the CUDA kernel of this model's norms holds at most {}",
            geometry.hidden,
            ops::BRANCH_HIDDEN_MAX
        ),
        config::Norm::Scale | config::Norm::OnePlus => return Ok(()),
    };
    Err(Error::new(ErrorKind::Unsupported, message).with_hint("the CPU can score this model"))
}

impl Backend for Cuda {
    type Act = Act;
    type Weight = Weight;
    type Metadata = Metadata;
    type Slot = Slot;

    fn connect(&mut self) -> Result<()> {
        self.all_reducer.as_mut().map_or(Ok(()), |all_reducer| all_reducer.connect(&self.ops))
    }

    fn activation(&mut self, role: Role, rows: usize) -> Result<Act> {
        let bytes = match role {
            Role::Residual => rows * self.geometry.hidden * self.format().residual_bytes(),
            Role::Normed => rows * normed_width(&self.geometry, &self.heads) * self.format().bytes(),
            Role::Scratch => {
                let whole = self.ops.attention_kernel().boxes;
                scratch_elements(&self.geometry, &self.heads, &self.capacity, whole) * self.format().bytes()
            }
        };
        Ok(Act { buffer: self.ops.context().allocate(bytes)?, role, width: 0 })
    }

    fn matrix(
        &mut self,
        matrix: Matrix,
        pieces: &[HostTensor],
        bias: Option<&[HostTensor]>,
    ) -> Result<Weight> {
        self.load(&HostWeight { matrix: Some(matrix), pieces, bias })
    }

    fn vector(&mut self, tensor: &HostTensor) -> Result<Weight> {
        self.load(&HostWeight { matrix: None, pieces: std::slice::from_ref(tensor), bias: None })
    }

    fn slot(&mut self, like: &LayerTensors) -> Result<Slot> {
        Slot::new(self.ops.context(), self.layout(), like)
    }

    fn check(&mut self, layer: &LayerTensors) -> Result<()> {
        // bf16 holds every weight, and weights in f16 are not converted.
        let all_f16 = layer.tensors().all(|tensor| tensor.dtype() == Dtype::F16);
        if self.format() == ActivationFormat::Bf16 || all_f16 {
            return Ok(());
        }
        self.uploader.check(self.layout(), layer)
    }

    fn finish_loads(&mut self) -> Result<()> {
        self.uploader.finish_loads(self.ops.context())
    }

    fn stage(&mut self, slot: &mut Slot, layer: &LayerTensors) -> Result<()> {
        slot.stage(self.ops.context(), &self.uploader, layer)
    }

    fn await_slot<'a>(&mut self, slot: &'a mut Slot) -> Result<&'a LayerWeights<Weight>> {
        slot.wait(self.ops.context())
    }

    fn warnings(&self) -> Vec<String> {
        match self.uploader.subnormal() {
            0 => Vec::new(),
            count => vec![format!(
                "{count} weights are subnormal numbers in f16, the format of this GPU, and lost digits by it"
            )],
        }
    }

    fn metadata(&mut self, packed: &Packed) -> Result<Metadata> {
        // Reports failures of calls that return nothing, before they could be taken for this
        // pass's.
        self.ops.context().bind()?;
        let tokens = packed.tokens.len();
        let needs = self.ops.attention_kernel().tile_needs(self.heads.group());
        let parts = parts(&self.geometry, tokens);
        // All-reduces of one part run beside the matmuls of another.
        self.share = if parts.len() > 1 { Share::BesideCollectives } else { Share::Whole };
        let tiles = Tiles::new(packed, &parts, self.heads.group(), needs, tokens);
        let last_positions: Vec<u32> = packed.last.iter().map(|last| packed.positions[last.row]).collect();
        let last_rows: Vec<u32> = packed.last.iter().map(|last| last.row as u32).collect();
        let mut tables = HostTables::new();
        let tile_rows = tables.tile_rows(&tiles.tile_rows);
        let group = self.heads.group();
        let mut rows = |first_row, positions: &[u32], work: &[WorkItem], seams: Range<usize>| {
            Ok(MetadataRows {
                first_row,
                positions: tables.row_indices(positions),
                work: tables.work_list(work, &tile_rows, group)?,
                seam_row: tokens + seams.start,
                seam_sources: tables.seam_sources(&tiles.seam_sources[seams]),
            })
        };
        let of_part = |(part, tiles_of): (&Range<usize>, &PartTiles)| {
            let positions = &packed.positions[part.clone()];
            rows(part.start, positions, &tiles.all[tiles_of.work.clone()], tiles_of.seam_rows.clone())
        };
        let rows_of_parts = parts.iter().zip(&tiles.parts).map(of_part).collect::<Result<_>>()?;
        // The last rows' paths end in rows of all parts, so their seam tiles are those of the
        // parts.
        let last = rows(0, &last_positions, &tiles.last, 0..0)?;
        let last_rows = tables.row_indices(&last_rows);
        self.tables.replace(self.ops.context(), &mut self.staging, tables)?;
        Ok(Metadata { rows: rows_of_parts, parts, last, last_rows })
    }

    fn parts(metadata: &Metadata) -> &[Range<usize>] {
        &metadata.parts
    }

    fn embed(&mut self, table: &HostTensor, packed: &Packed, residual: &mut Act) -> Result<()> {
        residual.width = self.geometry.hidden;
        let fill = embedding(table, self.format(), self.geometry.embedding_scale);
        self.staging.copy_rows(self.ops.context(), &mut residual.buffer, &packed.tokens, fill)
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn layers_begun(&self) -> usize {
        self.layers_begun
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(all_reducer) = &mut self.all_reducer {
            all_reducer.finish(self.ops.context())?;
        }
        self.ops.context().synchronize()
    }

    fn prefetch_embeddings(&mut self, table: &HostTensor, packed: &Packed) -> Result<bool> {
        let fill = embedding(table, self.format(), self.geometry.embedding_scale);
        self.staging.prefetch(self.ops.context(), &packed.tokens, fill)
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut Act,
        before: Reduction,
        branch_norm: Option<&Weight>,
        weight: &Weight,
        rows: Range<usize>,
        out: &mut Act,
    ) -> Result<()> {
        let (hidden, eps, ops) = (self.geometry.hidden, self.geometry.rms_norm_eps, &self.ops);
        out.width = hidden;
        let kind = match self.geometry.norm {
            config::Norm::Scale => Norm::Scale,
            config::Norm::OnePlus => Norm::OnePlus { branch: branch_norm.map(Weight::values) },
        };
        let mut norm = |rows: Range<usize>, delta: ops::Delta<'_>, residual: &mut DeviceBuffer| {
            ops.add_rms_norm(AddRmsNorm {
                residual,
                delta,
                norm: kind,
                weight: weight.values(),
                out: &mut out.buffer,
                first_row: rows.start,
                tokens: rows.len(),
                hidden,
                eps,
            })
        };
        match (before, &mut self.all_reducer) {
            (Reduction::Pending, Some(all_reducer)) => {
                all_reducer.take(ops, rows, &mut residual.buffer, norm)
            }
            (Reduction::Pending, None) => {
                let pending = self.pending.as_ref().expect("what is pending is kept");
                norm(rows, ops::Delta::In(pending.all()), &mut residual.buffer)
            }
            (Reduction::InResidual, _) => norm(rows, ops::Delta::None, &mut residual.buffer),
        }
    }

    fn linear(
        &mut self,
        x: &Act,
        rows: Range<usize>,
        weight: &Weight,
        features: Features,
        out: &mut Act,
        out_first: usize,
    ) -> Result<()> {
        let width = weight.out_features;
        let features = match features {
            Features::All => 0..width,
            Features::Queries | Features::KeysAndValues => features_of(&self.heads, features),
        };
        out.width = width;
        let first = rows.start * x.width * self.format().bytes();
        let bias = weight.bias(features.start, features.len());
        let shape = shape_of(weight, x).linear(features.len());
        let operands = Operands {
            x: x.buffer.slice(first..x.buffer.bytes()),
            weight: weight.rows(features.start, features.len()),
            bias,
            out: &mut out.buffer,
            out_first: out_first * width + features.start,
            rows: rows.len(),
            alpha: 1.0,
            share: self.share,
        };
        self.multiply(shape, operands)
    }

    fn rope(
        &mut self,
        qkv: &mut Act,
        metadata: &Metadata,
        tokens: Tokens,
        rotate: Rotate,
        norms: Option<&[Weight; 2]>,
    ) -> Result<()> {
        let rows = metadata.rows(tokens);
        let HeadLayout { q_heads, kv_heads, .. } = self.heads;
        let (first_head, heads) = match rotate {
            Rotate::QueriesAndKeys => (0, q_heads + kv_heads),
            Rotate::Queries => (0, q_heads),
            Rotate::Keys => (q_heads, kv_heads),
        };
        self.ops.rope(Rope {
            qkv: &mut qkv.buffer,
            first_row: rows.first_row,
            tables: &self.tables,
            positions: &rows.positions,
            rope_tables: &self.rope_tables,
            row_stride: self.heads.qkv_width(),
            first_head,
            heads,
            norms: norms.map(|[q, k]| HeadNorms {
                q_weight: q.values(),
                k_weight: k.values(),
                q_heads,
                eps: self.geometry.rms_norm_eps,
            }),
        })
    }

    fn attention(
        &mut self,
        qkv: &mut Act,
        metadata: &Metadata,
        tokens: Tokens,
        window: Option<usize>,
        out: &mut Act,
    ) -> Result<()> {
        let (heads, rows) = (self.ops_heads(), metadata.rows(tokens));
        // The last rows' keys were computed part by part, and attention is called once: all seam
        // tiles are due by then.
        let due = if tokens == Tokens::Last { &metadata.rows[..] } else { std::slice::from_ref(rows) };
        for MetadataRows { seam_row, seam_sources, .. } in due {
            self.ops.seam_tiles(SeamTiles {
                qkv: &mut qkv.buffer,
                tables: &self.tables,
                sources: seam_sources,
                first_row: *seam_row,
                heads,
            })?;
        }
        out.width = self.heads.q_width();
        self.ops.attention(Attention {
            qkv: qkv.buffer.all(),
            out: &mut out.buffer,
            tables: &self.tables,
            work: &rows.work,
            share: self.share,
            heads,
            scale: 1.0 / (self.geometry.scores.query_scalar as f32).sqrt(),
            window,
            cap: self.geometry.scores.cap,
        })
    }

    fn row_parallel(
        &mut self,
        x: &Act,
        x_first: usize,
        weight: &Weight,
        rows: Range<usize>,
        residual: &mut Act,
    ) -> Result<()> {
        let hidden = self.geometry.hidden;
        let alpha = match (weight.matrix, self.format()) {
            (Matrix::Down, ActivationFormat::F16) => 1.0 / GATED_SCALE_F16,
            _ => 1.0,
        };
        let bias = weight.bias(0, hidden);
        let shape = shape_of(weight, x).row_parallel(self.format(), self.geometry.adds_at_once());
        // Taken out of `self` for the call, which borrows the rest.
        let (mut all_reducer, mut pending) = (self.all_reducer.take(), self.pending.take());
        let out = match (&mut all_reducer, &mut pending) {
            (Some(all_reducer), _) => all_reducer.partial(),
            (None, Some(pending)) => pending,
            (None, None) => &mut residual.buffer,
        };
        let operands = Operands {
            x: x.buffer.slice(x_first * x.width * self.format().bytes()..x.buffer.bytes()),
            weight: weight.values(),
            bias,
            out,
            out_first: rows.start * hidden,
            rows: rows.len(),
            alpha,
            share: self.share,
        };
        let multiplied = self.multiply(shape, operands);
        (self.all_reducer, self.pending) = (all_reducer, pending);
        multiplied
    }

    fn all_reduce(&mut self, rows: Range<usize>, residual: &mut Act) -> Result<Reduction> {
        match (&mut self.all_reducer, &self.pending) {
            (Some(all_reducer), _) => all_reducer.begin(&self.ops, rows, &mut residual.buffer)?,
            (None, Some(_)) => {}
            (None, None) => return Ok(Reduction::InResidual),
        }
        Ok(Reduction::Pending)
    }

    fn gate_mul(&mut self, gate_up: &mut Act, rows: usize) -> Result<()> {
        let scale = if self.format() == ActivationFormat::F16 { GATED_SCALE_F16 } else { 1.0 };
        let ffn = self.geometry.shard.ffn_local;
        let gate = self.geometry.gate;
        self.ops.gate_mul(GateMul { gate_up: &mut gate_up.buffer, tokens: rows, ffn, gate, scale })
    }

    fn gather_last(&mut self, x: &Act, metadata: &Metadata, out: &mut Act) -> Result<()> {
        let hidden = self.geometry.hidden;
        let element_bytes = match x.role {
            Role::Residual => self.format().residual_bytes(),
            Role::Normed | Role::Scratch => self.format().bytes(),
        };
        out.width = hidden;
        self.ops.gather_rows(GatherRows {
            x: x.buffer.all(),
            tables: &self.tables,
            rows: &metadata.last_rows,
            out: &mut out.buffer,
            row_bytes: hidden * element_bytes,
        })
    }

    fn head(&mut self, x: &Act, head: &Weight, rows: usize) -> Result<()> {
        let labels = head.out_features;
        self.ops.score(Score {
            x: x.buffer.all(),
            head: head.values(),
            out: &mut self.logits,
            tokens: rows,
            labels,
            hidden: self.geometry.hidden,
        })?;
        let logits = self.logits.slice(0..rows * labels * size_of::<f32>());
        self.results.queue(self.ops.context(), logits)
    }

    fn logits(&mut self) -> Result<Vec<f32>> {
        if let Some(all_reducer) = &self.all_reducer {
            all_reducer.wait_for(self.results.copied())?;
        }
        self.results.read()
    }
}

impl Metadata {
    fn rows(&self, tokens: Tokens) -> &MetadataRows {
        match tokens {
            Tokens::Part(index) => &self.rows[index],
            Tokens::Last => &self.last,
        }
    }
}
