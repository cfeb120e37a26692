//! The cases of `bench kernels`: every kernel at the sizes of a model, with its fewest bytes and
//! its FLOP.

use std::cell::RefCell;
use std::rc::Rc;

use kudos::internals::backend::cuda::buffer::DeviceBuffer;
use kudos::internals::backend::cuda::context::Context;
use kudos::internals::backend::cuda::format::ActivationFormat;
use kudos::internals::backend::cuda::gemm::cache::Cache;
use kudos::internals::backend::cuda::gemm::tuning::Tuner;
use kudos::internals::backend::cuda::gemm::{Lt, MatmulShape, Operands, Out, Share};
use kudos::internals::backend::cuda::kernels::{ATTENTION, AttentionFeatures, AttentionKernel};
use kudos::internals::backend::cuda::ops::{
    AddParts, AddRmsNorm, Attention, BRANCH_HIDDEN_MAX, Delta, GateMul, GatherRows, HeadNorms, Heads, Norm,
    Ops, Rope, RopeTables, Score, SeamTiles, norms_heads_of,
};
use kudos::internals::backend::cuda::stopwatch;
use kudos::internals::backend::cuda::tables::{DeviceTables, HostTables};
use kudos::internals::backend::cuda::tiles::{TILE_KEYS, Tiles};
use kudos::internals::batch::{Batch, Budget, Sharing};
use kudos::internals::config::{Gate, ModelConfig};
use kudos::internals::engine::TOKENS_PER_SEQUENCE;
use kudos::{GemmTuning, Result};

/// Bytes of all sets of operands, which launches take in turn: far more than the second-level cache
/// of any GPU holds.
const ROTATED_BYTES: usize = 512 << 20;

/// Elements of a word of 16 bytes in bf16 or f16.
const WIDE: usize = 8;

/// The yardsticks: bytes of the copy, and M = N = K of the matmul.
const COPY_BYTES: usize = 512 << 20;
const SQUARE: usize = 8192;

/// A launch that can be repeated.
pub(super) struct Case {
    pub(super) kernel: String,
    /// Sizes, in words.
    pub(super) sizes: String,
    /// The fewest bytes read and written.
    pub(super) bytes: usize,
    /// 0 where the bytes alone count.
    pub(super) flop: f64,
    pub(super) ops: Rc<Ops>,
    /// Queues the launch of this index.
    pub(super) launch: Box<dyn FnMut(usize) -> Result<()>>,
}

/// Makes the cases of one device and one model.
pub(super) struct Maker<'a> {
    pub(super) ops: Rc<Ops>,
    pub(super) config: &'a ModelConfig,
    /// Whether nothing is measured: yardsticks are small, and there is one set of operands.
    pub(super) dry_run: bool,
}

impl Maker<'_> {
    /// The copy from which the rate of memory is taken.
    pub(super) fn copy(&self) -> Result<Case> {
        let bytes = if self.dry_run { 4096 } else { COPY_BYTES };
        let (from, mut to) = (self.random(bytes)?, self.random(bytes)?);
        let ops = Rc::clone(&self.ops);
        let sizes = format!("{bytes} bytes");
        Ok(self.case("copy", sizes, 2 * bytes, 0.0, move |_| {
            stopwatch::copy(ops.context(), from.all(), &mut to)
        }))
    }

    /// Every kernel and matmul of a layer, and those after the last layer, in a pass of `tokens`
    /// tokens.
    pub(super) fn of_tokens(&self, tokens: usize) -> Result<Vec<Case>> {
        let mut cases = vec![
            self.add_rms_norm(tokens, true)?,
            self.add_rms_norm(tokens, false)?,
            self.add_parts(tokens)?,
            self.rope(tokens, false)?,
            self.gate_mul(tokens, Gate::Silu)?,
            self.gate_mul(tokens, Gate::GeluTanh)?,
            self.gather_rows(tokens)?,
            self.score(tokens)?,
            self.seam_tiles(tokens)?,
        ];
        // Kernels of other models, where they take the sizes of this one.
        if self.config.hidden <= BRANCH_HIDDEN_MAX {
            cases.push(self.add_branch_rms_norm(tokens)?);
        }
        if norms_heads_of(self.config.head_dim) {
            cases.push(self.rope(tokens, true)?);
        }
        for kernel in self.attention_kernels() {
            cases.push(self.attention(kernel, tokens)?);
        }
        let ModelConfig { hidden, ffn, .. } = *self.config;
        let add = if self.ops.format() == ActivationFormat::F16 { Out::AddF32 } else { Out::AddActivation };
        for (name, features, width, x_stride, out) in [
            ("qkv", self.row_width(), hidden, hidden, Out::Activation),
            ("o", hidden, self.config.q_width(), self.config.q_width(), add),
            ("gate_up", 2 * ffn, hidden, hidden, Out::Activation),
            ("down", hidden, ffn, 2 * ffn, add),
        ] {
            cases.push(self.matmul(name, tokens, (features, width, x_stride), out)?);
        }
        Ok(cases)
    }

    /// Attention in a pass of `tokens` tokens. Without tensor cores, long passes would take minutes.
    pub(super) fn attention_with_tensor_cores(&self, tokens: usize) -> Result<Vec<Case>> {
        let kernels = self.attention_kernels().into_iter().filter(|kernel| !kernel.is_plain());
        kernels.map(|kernel| self.attention(kernel, tokens)).collect()
    }

    /// A large matmul, of no size of the model.
    pub(super) fn square(&self) -> Result<Case> {
        let size = if self.dry_run { 64 } else { SQUARE };
        self.matmul("square", size, (size, size, size), Out::Activation)
    }

    fn heads(&self) -> Heads {
        let ModelConfig { q_heads, kv_heads, head_dim, .. } = *self.config;
        Heads { q_heads, kv_heads, head_dim }
    }

    fn row_width(&self) -> usize {
        self.config.q_width() + 2 * self.config.kv_width()
    }

    fn case(
        &self,
        kernel: impl Into<String>,
        sizes: String,
        bytes: usize,
        flop: f64,
        launch: impl FnMut(usize) -> Result<()> + 'static,
    ) -> Case {
        let (kernel, ops, launch) = (kernel.into(), Rc::clone(&self.ops), Box::new(launch));
        Case { kernel, sizes, bytes, flop, ops, launch }
    }

    /// `bytes` bytes of nearly normal elements, a multiple of 16 bytes.
    fn random(&self, bytes: usize) -> Result<DeviceBuffer> {
        let mut buffer = self.ops.context().allocate(bytes)?;
        self.ops.fill_normal(&mut buffer, bytes / self.ops.format().bytes(), bytes as u64, 1.0)?;
        Ok(buffer)
    }

    /// Sets of buffers of these sizes, which launches take in turn.
    fn sets<const N: usize>(&self, bytes: [usize; N]) -> Result<Vec<[DeviceBuffer; N]>> {
        let of_set = bytes.iter().sum::<usize>().max(1);
        let count = if self.dry_run { 1 } else { ROTATED_BYTES.div_ceil(of_set).max(2) };
        let set = |_| {
            let buffers = bytes.iter().map(|&bytes| self.random(bytes)).collect::<Result<Vec<_>>>()?;
            Ok(buffers.try_into().unwrap_or_else(|_| unreachable!("one buffer per size")))
        };
        (0..count).map(set).collect()
    }

    /// Tables on the GPU, and what `add` returns of the table that it adds to them.
    fn tables<T>(&self, add: impl FnOnce(&mut HostTables) -> T) -> Result<(DeviceTables, T)> {
        let mut tables = HostTables::new();
        let added = add(&mut tables);
        Ok((DeviceTables::upload(self.ops.context(), tables)?, added))
    }

    fn add_rms_norm(&self, tokens: usize, adds: bool) -> Result<Case> {
        let hidden = self.config.hidden;
        let (stream, row) =
            (tokens * hidden * self.ops.format().residual_bytes(), hidden * self.ops.format().bytes());
        let bytes = stream * if adds { 3 } else { 1 } + tokens * row + row;
        let mut sets = self.sets([stream, if adds { stream } else { 16 }, row, tokens * row])?;
        let ops = Rc::clone(&self.ops);
        let sizes = format!("{tokens} x {hidden}{}", if adds { ", adding" } else { "" });
        Ok(self.case("add_rms_norm", sizes, bytes, 0.0, move |turn| {
            let sets_len = sets.len();
            let [residual, delta, weight, out] = &mut sets[turn % sets_len];
            let delta = if adds { Delta::In(delta.all()) } else { Delta::None };
            let weight = weight.all();
            ops.add_rms_norm(AddRmsNorm {
                residual,
                delta,
                norm: Norm::Scale,
                weight,
                out,
                first_row: 0,
                tokens,
                hidden,
                eps: 1e-5,
            })
        }))
    }

    /// The slice of one of 8 ranks.
    fn add_parts(&self, tokens: usize) -> Result<Case> {
        let (parts, width) = (8, self.config.hidden);
        let count = tokens * width / parts / WIDE * WIDE;
        let slice = count * self.ops.format().residual_bytes();
        let mut sets = self.sets([slice, slice, parts * slice])?;
        let ops = Rc::clone(&self.ops);
        let sizes = format!("{parts} parts of {count} elements");
        Ok(self.case("add_parts", sizes, (parts + 2) * slice, 0.0, move |turn| {
            let sets_len = sets.len();
            let [residual, own, received] = &mut sets[turn % sets_len];
            let (own, received) = (own.all(), received.all());
            let args = AddParts { residual, first: 0, own, received, parts, rank: 0, count };
            ops.add_parts(args, ops.context().compute())
        }))
    }

    fn add_branch_rms_norm(&self, tokens: usize) -> Result<Case> {
        let hidden = self.config.hidden;
        let (stream, row) =
            (tokens * hidden * self.ops.format().residual_bytes(), hidden * self.ops.format().bytes());
        let bytes = 3 * stream + tokens * row + 2 * row;
        let mut sets = self.sets([stream, stream, row, row, tokens * row])?;
        let ops = Rc::clone(&self.ops);
        let sizes = format!("{tokens} x {hidden}");
        Ok(self.case("add_branch_rms_norm", sizes, bytes, 0.0, move |turn| {
            let sets_len = sets.len();
            let [residual, delta, branch, weight, out] = &mut sets[turn % sets_len];
            ops.add_rms_norm(AddRmsNorm {
                residual,
                delta: Delta::In(delta.all()),
                norm: Norm::OnePlus { branch: Some(branch.all()) },
                weight: weight.all(),
                out,
                first_row: 0,
                tokens,
                hidden,
                eps: 1e-6,
            })
        }))
    }

    fn rope(&self, tokens: usize, norms_heads: bool) -> Result<Case> {
        let heads = self.heads();
        let (row_stride, turned) = (self.row_width(), heads.q_heads + heads.kv_heads);
        let rope_tables = RopeTables::new(&self.ops, &vec![0.5; heads.head_dim / 2], tokens)?;
        let positions: Vec<u32> = (0..tokens as u32).collect();
        let (tables, positions) = self.tables(|tables| tables.row_indices(&positions))?;
        let head_bytes = heads.head_dim * self.ops.format().bytes();
        let mut sets = self.sets([tokens * row_stride * self.ops.format().bytes(), 2 * head_bytes])?;
        let table_bytes = RopeTables::bytes(self.ops.format(), heads.head_dim, tokens);
        let weight_bytes = if norms_heads { 2 * head_bytes } else { 0 };
        let bytes = 2 * tokens * turned * head_bytes + tokens * 4 + table_bytes + weight_bytes;
        let ops = Rc::clone(&self.ops);
        let kernel = if norms_heads { "rope_norm" } else { "rope" };
        let sizes = format!("{tokens} x {turned} heads of {}", heads.head_dim);
        Ok(self.case(kernel, sizes, bytes, 0.0, move |turn| {
            let count = sets.len();
            let [qkv, weights] = &mut sets[turn % count];
            let norms = HeadNorms {
                q_weight: weights.slice(0..head_bytes),
                k_weight: weights.slice(head_bytes..2 * head_bytes),
                q_heads: heads.q_heads,
                eps: 1e-6,
            };
            ops.rope(Rope {
                qkv,
                first_row: 0,
                tables: &tables,
                positions: &positions,
                rope_tables: &rope_tables,
                row_stride,
                first_head: 0,
                heads: turned,
                norms: norms_heads.then_some(norms),
            })
        }))
    }

    fn gate_mul(&self, tokens: usize, gate: Gate) -> Result<Case> {
        let ffn = self.config.ffn;
        let mut sets = self.sets([tokens * 2 * ffn * self.ops.format().bytes()])?;
        let ops = Rc::clone(&self.ops);
        let (sizes, bytes) = (format!("{tokens} x {ffn}"), 3 * tokens * ffn * self.ops.format().bytes());
        let kernel = match gate {
            Gate::Silu => "gate_mul_silu",
            Gate::GeluTanh => "gate_mul_gelu",
        };
        Ok(self.case(kernel, sizes, bytes, 0.0, move |turn| {
            let sets_len = sets.len();
            let [gate_up] = &mut sets[turn % sets_len];
            ops.gate_mul(GateMul { gate_up, tokens, ffn, gate, scale: 1.0 })
        }))
    }

    fn gather_rows(&self, tokens: usize) -> Result<Case> {
        let (hidden, count) = (self.config.hidden, tokens.div_ceil(TOKENS_PER_SEQUENCE));
        let row_bytes = hidden * self.ops.format().residual_bytes();
        let rows: Vec<u32> = (0..count).map(|i| (i * tokens / count) as u32).collect();
        let (tables, rows) = self.tables(|tables| tables.row_indices(&rows))?;
        let mut sets = self.sets([tokens * row_bytes, count * row_bytes])?;
        let ops = Rc::clone(&self.ops);
        let (sizes, bytes) = (format!("{count} of {tokens} x {hidden}"), count * (2 * row_bytes + 4));
        Ok(self.case("gather_rows", sizes, bytes, 0.0, move |turn| {
            let number = sets.len();
            let [x, out] = &mut sets[turn % number];
            ops.gather_rows(GatherRows { x: x.all(), tables: &tables, rows: &rows, out, row_bytes })
        }))
    }

    fn score(&self, tokens: usize) -> Result<Case> {
        let (hidden, rows) = (self.config.hidden, tokens.div_ceil(TOKENS_PER_SEQUENCE));
        let row = hidden * self.ops.format().bytes();
        let mut sets = self.sets([rows * row, row, (rows * 4).next_multiple_of(16)])?;
        let ops = Rc::clone(&self.ops);
        let (sizes, bytes) = (format!("{rows} x {hidden}"), rows * (row + 4) + row);
        Ok(self.case("score", sizes, bytes, 0.0, move |turn| {
            let sets_len = sets.len();
            let [x, head, out] = &mut sets[turn % sets_len];
            ops.score(Score { x: x.all(), head: head.all(), out, tokens: rows, labels: 1, hidden })
        }))
    }

    fn seam_tiles(&self, tokens: usize) -> Result<Case> {
        let heads = self.heads();
        // One tile per sequence; each of its rows copies another row.
        let count = tokens.div_ceil(TOKENS_PER_SEQUENCE) * TILE_KEYS;
        let sources: Vec<u32> = (0..count).map(|i| (i % tokens) as u32).collect();
        let (tables, sources) = self.tables(|tables| tables.seam_sources(&sources))?;
        let mut sets = self.sets([(tokens + count) * self.row_width() * self.ops.format().bytes()])?;
        let kv = 2 * heads.kv_heads * heads.head_dim * self.ops.format().bytes();
        let ops = Rc::clone(&self.ops);
        let sizes = format!("{count} rows of {tokens}");
        Ok(self.case("seam_tiles", sizes, count * (kv + 4) + tokens.min(count) * kv, 0.0, move |turn| {
            let number = sets.len();
            let [qkv] = &mut sets[turn % number];
            ops.seam_tiles(SeamTiles { qkv, tables: &tables, sources: &sources, first_row: tokens, heads })
        }))
    }

    /// The tier's attention kernels for exactly this head_dim that this GPU can run.
    fn attention_kernels(&self) -> Vec<&'static AttentionKernel> {
        let (device, format, head_dim) = (self.ops.context().info(), self.ops.format(), self.config.head_dim);
        let fits = |kernel: &AttentionKernel| {
            kernel.head_dim == head_dim && kernel.fits(device, format, head_dim, AttentionFeatures::NONE)
        };
        ATTENTION.iter().filter(|kernel| fits(kernel)).collect()
    }

    fn attention(&self, kernel: &'static AttentionKernel, tokens: usize) -> Result<Case> {
        let heads = self.heads();
        let ops = Rc::new(Ops::with_attention(Context::open(self.ops.context().info())?, kernel)?);
        let mut batch = Batch::new(Budget { tokens, sequences: 1 }, Sharing::Nothing);
        batch.try_add(&vec![0; tokens]);
        let group = heads.q_heads / heads.kv_heads;
        let all = 0..tokens;
        let tiles =
            Tiles::new(&batch.pack(), std::slice::from_ref(&all), group, kernel.tile_needs(group), tokens);
        let rows = tokens + tiles.seam_sources.len();
        let (tables, work) = self.tables(|tables| {
            let tile_rows = tables.tile_rows(&tiles.tile_rows);
            tables.work_list(&tiles.all, &tile_rows, group)
        })?;
        let work = work?;
        let q_width = self.config.q_width();
        let mut sets = self.sets([
            rows * self.row_width() * self.ops.format().bytes(),
            tokens * q_width * self.ops.format().bytes(),
        ])?;
        // Made on another stream than the one that they are used on.
        self.ops.context().synchronize()?;
        let bytes = tokens * (self.row_width() + q_width) * self.ops.format().bytes();
        let flop = 4.0 * q_width as f64 * (tokens * (tokens + 1) / 2) as f64;
        let Heads { q_heads, kv_heads, head_dim } = heads;
        let sizes = format!("{tokens} tokens, {q_heads} / {kv_heads} heads of {head_dim}");
        let own = Rc::clone(&ops);
        let launch = move |turn: usize| {
            let number = sets.len();
            let [qkv, out] = &mut sets[turn % number];
            let (qkv, scale) = (qkv.all(), 1.0 / (head_dim as f32).sqrt());
            let (tables, work, share) = (&tables, &work, Share::Whole);
            own.attention(Attention { qkv, out, tables, work, share, heads, scale, window: None, cap: None })
        };
        Ok(Case { ops, ..self.case(kernel.name, sizes, bytes, flop, launch) })
    }

    fn matmul(
        &self,
        name: &str,
        rows: usize,
        (features, width, x_stride): (usize, usize, usize),
        out: Out,
    ) -> Result<Case> {
        let lt = Lt::new(self.ops.context(), self.ops.format())?;
        let shape = MatmulShape { features, width, x_stride, out_stride: features, out, bias: false };
        let number = match out {
            Out::Activation | Out::AddActivation => self.ops.format().bytes(),
            Out::F32 | Out::AddF32 => size_of::<f32>(),
        };
        let times = if matches!(out, Out::AddActivation | Out::AddF32) { 2 } else { 1 };
        let (weight, out_bytes) = (features * width * self.ops.format().bytes(), rows * features * number);
        let bytes = weight + rows * width * self.ops.format().bytes() + times * out_bytes;
        let mut sets = self.sets([rows * x_stride * self.ops.format().bytes(), weight, out_bytes])?;
        // As an engine chooses it, but without what was kept of earlier runs.
        let context = self.ops.context();
        let cache = Cache::new(None, context.info(), self.ops.format())?;
        let product = Tuner::new(&self.ops, &lt, GemmTuning::Auto, cache)?.matmul(shape, rows)?;
        let product = RefCell::new(product);
        let flop = 2.0 * (rows * features) as f64 * width as f64;
        let sizes = format!("{rows} x {features} x {width}");
        Ok(self.case(format!("product_{name}"), sizes, bytes, flop, move |turn| {
            let sets_len = sets.len();
            let [x, weight, out] = &mut sets[turn % sets_len];
            let (x, weight) = (x.all(), weight.all());
            let (bias, share) = (None, Share::Whole);
            let operands = Operands { x, weight, bias, out, out_first: 0, rows, alpha: 1.0, share };
            lt.run(&mut product.borrow_mut(), operands)
        }))
    }
}
