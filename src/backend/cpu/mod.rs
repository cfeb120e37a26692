//! The backend that runs anywhere: f32 activations, weights as stored, straight from the mapped files.
//!
//! [`Cpu`] holds what a rank needs and calls the kernels, which are plain functions on slices: [`mod@gemm`], [`mod@attention`],
//! [`elementwise`], one algorithm each for every instruction set ([`simd`]), and products by a [`matrix_unit`] too. Nothing is
//! copied at load but norm weights and biases, and nothing allocated during a pass but its plan.

mod act;
pub mod attention;
mod clock;
pub mod elementwise;
pub mod gemm;
mod group;
pub mod matrix_unit;
mod pack;
pub mod peak;
mod pool;
pub mod simd;
#[cfg(test)]
mod testing;
pub mod threads;
mod tile;
pub mod view;

use std::ops::Range;
use std::sync::Arc;

use crate::backend::{
    Backend, Capacity, Features, Footprint, Geometry, LayerWeights, Matrix, Reduction, Role, Rotate, Tokens,
};
use crate::batch::Packed;
use crate::error::Result;
use crate::weights::{HostTensor, LayerTensors};
use act::{RopeTables, row_stride};
use attention::{AttentionInput, AttentionPlan, Heads, Queries, attention};
use elementwise::{add_rms_norm, rope, silu_mul};
use gemm::{Gemm, Math, Store, gemm};
use threads::Threads;
use view::{Rows, RowsMut, WeightView};

pub use act::{Act, Weight};
pub use group::Group;
pub use simd::Isa;

/// The arithmetic of matrix products and of attention on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum CpuMath {
    /// f32 products of f32 activations with the weights as stored, and f32 attention, as fast as this CPU can: by a matrix
    /// unit, which takes f32 numbers as exact sums of three bf16 values, where it has one.
    #[default]
    F32,
    /// The same by vector instructions alone, where the CPU has a faster matrix unit: the same bits on every CPU that has
    /// AVX2 or AVX-512.
    F32Vector,
    /// Activations and weights rounded to bf16, sums in f32, where the CPU is faster with that, and rewards move by about as
    /// much as a bf16 model's do; elsewhere the same as f32, with a warning. A matrix unit takes the queries, keys, values and
    /// probabilities of attention rounded to bf16, too; without one attention stays in f32.
    Bf16,
}

/// The instructions that this CPU computes with, and the arithmetic of matmuls and attention.
#[derive(Clone, Debug)]
pub struct Arithmetic {
    isa: Isa,
    math: Math,
    /// A warning where that is not the requested arithmetic.
    warning: Option<String>,
}

impl Arithmetic {
    /// Returns the arithmetic closest to the requested one, by the fastest instructions of this CPU.
    pub fn of(wanted: CpuMath) -> Self {
        let isa = Isa::detect();
        let warning = (wanted == CpuMath::Bf16 && Math::bf16(isa).is_none()).then(|| {
            let why =
                if isa.bf16().is_some() { "multiplies bf16 no faster" } else { "has no bf16 instructions" };
            format!("products are computed in f32, not bf16: this CPU {why}")
        });
        Self { isa, math: Math::of(isa, wanted), warning }
    }

    /// Its instructions as printed: `avx512`, `avx512+amx`, `avx512-bf16`.
    pub fn instructions(&self) -> String {
        self.math.instructions(self.isa)
    }

    /// Every one that this CPU has or can emulate. Left out are those of which no CPU has the bits: what multiplies bf16
    /// values beside vectors that do not fuse.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Vec<TestArithmetic> {
        let (fused, available) = (Isa::fused_for_tests(), Isa::available());
        let section = |isa: &Isa, math: Math| match math {
            Math::F32 => Some(if fused.contains(isa) { "f32-vector" } else { "portable" }),
            _ if !fused.contains(isa) => None,
            Math::F32Tiles(_) => Some("f32-amx"),
            Math::Bf16(_) => Some("bf16-avx512"),
            Math::Bf16Tiles(_) => Some("bf16-amx"),
        };
        let all = testing::all_ways().into_iter().filter_map(|(isa, math)| {
            let arithmetic = Self { isa, math, warning: None };
            Some(TestArithmetic {
                section: section(&isa, math)?,
                emulated: !available.contains(&isa),
                arithmetic,
            })
        });
        all.collect()
    }
}

/// An arithmetic that tests can compute in.
#[cfg(test)]
pub(crate) struct TestArithmetic {
    /// Section of `tests/golden/bits.json` that holds its bits.
    pub(crate) section: &'static str,
    /// True for portable code, which is slow.
    pub(crate) emulated: bool,
    pub(crate) arithmetic: Arithmetic,
}

/// One rank's CPU backend.
pub struct Cpu {
    geometry: Geometry,
    capacity: Capacity,
    isa: Isa,
    math: Math,
    warning: Option<String>,
    threads: Threads,
    group: Arc<Group>,
    tables: RopeTables,
    /// `[rows, hidden]` sums over ranks that the next norm adds, where there are several.
    sums: Option<Act>,
}

/// Rows of a part at most. Ranks share the processor, so that nothing is gained by other work beside their sums; but what one
/// op of a part writes is still near when the next one reads it.
const PART_ROWS: usize = 1024;

/// What a pass needs besides its tokens.
pub struct Metadata {
    /// Cuts of all packed rows.
    parts: Vec<Range<usize>>,
    /// Of all packed rows.
    positions: Vec<u32>,
    /// Of each part.
    attention: Vec<AttentionPlan>,
    last: LastRows,
}

/// The rows in which sequences end.
struct LastRows {
    /// Where they lie among the packed rows.
    rows: Vec<usize>,
    positions: Vec<u32>,
    attention: AttentionPlan,
}

impl Cpu {
    /// What a rank of this geometry will hold. Weights are used where they are mapped.
    pub fn footprint(geometry: &Geometry, capacity: &Capacity) -> Footprint {
        let stream = |rows: usize| rows * (row_stride(geometry.hidden) + row_stride(geometry.normed_width()));
        // What a rank brings to a sum lies in the group, too, for the time of the sum.
        let sums = 2 * geometry.all_reduce_rows(capacity) * row_stride(geometry.hidden);
        let tables = capacity.tokens * geometry.shard.head_dim;
        let floats = stream(capacity.tokens)
            + stream(capacity.sequences)
            + wide_floats(geometry, capacity)
            + sums
            + tables;
        Footprint { weights: 0, workspace: floats * size_of::<f32>() }
    }

    /// A backend for the rank of `geometry` and passes of up to `capacity`, with `threads` worker threads of its own.
    ///
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) or [`ErrorKind::Io`](crate::ErrorKind::Io) when there is no room for tables or no thread to be had.
    pub fn new(
        geometry: Geometry,
        capacity: Capacity,
        Arithmetic { isa, math, warning }: Arithmetic,
        threads: usize,
        group: Arc<Group>,
    ) -> Result<Self> {
        let threads = Threads::new(threads)?;
        let scratch =
            gemm::scratch_floats(isa, math).max(attention::scratch_floats(isa, math, heads(&geometry)));
        threads.reserve(scratch);
        let tables = RopeTables::new(geometry.rope_frequencies.clone());
        let sums = match geometry.all_reduce_rows(&capacity) {
            0 => None,
            rows => Some(Act::new(rows * row_stride(geometry.hidden))?),
        };
        Ok(Self { geometry, capacity, isa, math, warning, threads, group, tables, sums })
    }

    /// `out[0..rows.len(), features] = (out or 0) + x[rows] * weight[features]^T + bias[features]`: at once for all pieces that
    /// are stored alike, so that x is read, and workers are woken, once.
    fn product(&self, x: Rows<'_>, weight: &Weight, features: Range<usize>, store: Store, out: &mut [f32]) {
        let out_stride = row_stride(weight.out_features());
        let multiply = |first: usize, view: WeightView, out: &mut [f32]| {
            let bias = weight.bias().map(|bias| &bias[first..][..view.rows()]);
            let out = RowsMut::new(&mut out[first..], x.rows(), view.rows(), out_stride);
            gemm(self.isa, &self.threads, &Gemm { x, weight: view, bias, store, math: self.math }, out);
        };
        // The feature at which what has been joined begins, and that.
        let mut joined: Option<(usize, WeightView)> = None;
        let mut first = 0;
        for piece in weight.pieces() {
            let piece_features = first..first + piece.rows();
            first = piece_features.end;
            let wanted = piece_features.start.max(features.start)..piece_features.end.min(features.end);
            if wanted.is_empty() {
                continue;
            }
            let view = view_of(piece, wanted.start - piece_features.start..wanted.end - piece_features.start);
            joined = Some(match joined {
                None => (wanted.start, view),
                Some((first, before)) => match before.followed_by(view) {
                    Some(both) => (first, both),
                    None => {
                        multiply(first, before, out);
                        (wanted.start, view)
                    }
                },
            });
        }
        if let Some((first, view)) = joined {
            multiply(first, view, out);
        }
    }

    /// A weight of gate and up as a product reads it that gates; none where the arithmetic has no such product.
    fn gated<'a>(&self, weight: &'a Weight) -> Option<WeightView<'a>> {
        let [gate, up] = weight.pieces() else { return None };
        let ffn = self.geometry.shard.ffn_local;
        view_of(gate, 0..ffn).followed_by(view_of(up, 0..ffn)).filter(|_| self.math.gates(gate.dtype()))
    }
}

/// Rows of a stored matrix, as products read them.
fn view_of(tensor: &HostTensor, rows: Range<usize>) -> WeightView<'_> {
    let bytes = &tensor.bytes()[rows.start * tensor.row_stride() * tensor.dtype().size()..];
    WeightView::new(bytes, tensor.dtype(), rows.len(), tensor.cols(), tensor.row_stride())
}

/// Floats of [`Role::Scratch`]: q, k and v of every row, or gate and up of a chunk.
fn wide_floats(geometry: &Geometry, capacity: &Capacity) -> usize {
    let qkv = capacity.tokens * row_stride(geometry.shard.qkv_width_local());
    let gate_up = capacity.mlp_tokens * row_stride(2 * geometry.shard.ffn_local);
    qkv.max(gate_up)
}

fn heads(geometry: &Geometry) -> Heads {
    let shard = &geometry.shard;
    Heads { q_heads: shard.q_heads_local, kv_heads: shard.kv_heads_local, head_dim: shard.head_dim }
}

impl Backend for Cpu {
    type Act = Act;
    type Weight = Weight;
    type Metadata = Metadata;
    /// Weights are used where they are mapped, so a layer arrives as it is staged.
    type Slot = Option<LayerWeights<Weight>>;

    fn warnings(&self) -> Vec<String> {
        self.warning.iter().cloned().collect()
    }

    fn activation(&mut self, role: Role, rows: usize) -> Result<Act> {
        Act::new(match role {
            Role::Residual => rows.saturating_mul(row_stride(self.geometry.hidden)),
            Role::Normed => rows.saturating_mul(row_stride(self.geometry.normed_width())),
            Role::Scratch => wide_floats(&self.geometry, &self.capacity),
        })
    }

    fn matrix(
        &mut self,
        matrix: Matrix,
        pieces: &[HostTensor],
        bias: Option<&[HostTensor]>,
    ) -> Result<Weight> {
        Ok(Weight::matrix(matrix, pieces, bias))
    }

    fn vector(&mut self, tensor: &HostTensor) -> Result<Weight> {
        Ok(Weight::vector(tensor))
    }

    fn slot(&mut self, _like: &LayerTensors) -> Result<Self::Slot> {
        Ok(None)
    }

    fn stage(&mut self, slot: &mut Self::Slot, layer: &LayerTensors) -> Result<()> {
        *slot = Some(LayerWeights::load(self, layer)?);
        Ok(())
    }

    fn await_slot<'a>(&mut self, slot: &'a mut Self::Slot) -> Result<&'a LayerWeights<Weight>> {
        Ok(slot.as_ref().expect("a slot is staged before it is awaited"))
    }

    fn metadata(&mut self, packed: &Packed) -> Result<Metadata> {
        let positions = packed.positions.iter().max().map_or(0, |&last| last as usize + 1);
        self.tables.reach(positions)?;
        let heads = heads(&self.geometry);
        let rows = packed.tokens.len();
        let part_rows = rows.div_ceil(rows.div_ceil(PART_ROWS).max(1)).max(1);
        // A pass of no rows has a part, too.
        let starts = (0..rows.max(1)).step_by(part_rows);
        let parts: Vec<_> = starts.map(|start| start..rows.min(start + part_rows)).collect();
        let attention = parts.iter().map(|part| {
            let within = packed.segments.iter().map(|segment| {
                let start = segment.rows.start.clamp(part.start, part.end);
                let end = segment.rows.end.clamp(start, part.end);
                let first_position = segment.first_position + start.saturating_sub(segment.rows.start);
                Queries { rows: start..end, first_position, spans: &segment.spans }
            });
            AttentionPlan::new(heads, within.filter(|queries| !queries.rows.is_empty()))
        });
        let last = packed.last.iter().enumerate().map(|(index, last)| Queries {
            rows: index..index + 1,
            first_position: packed.positions[last.row] as usize,
            spans: &packed.segments[last.segment].spans,
        });
        Ok(Metadata {
            attention: attention.collect(),
            parts,
            positions: packed.positions.clone(),
            last: LastRows {
                rows: packed.last.iter().map(|last| last.row).collect(),
                positions: packed.last.iter().map(|last| packed.positions[last.row]).collect(),
                attention: AttentionPlan::new(heads, last),
            },
        })
    }

    fn parts(metadata: &Metadata) -> &[Range<usize>] {
        &metadata.parts
    }

    fn embed(&mut self, table: &HostTensor, packed: &Packed, residual: &mut Act) -> Result<()> {
        let hidden = self.geometry.hidden;
        let rows = residual.write(0..packed.tokens.len(), hidden);
        for (row, &id) in rows.chunks_exact_mut(row_stride(hidden)).zip(&packed.tokens) {
            table.row_to_f32(id as usize, &mut row[..hidden]);
        }
        Ok(())
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut Act,
        before: Reduction,
        weight: &Weight,
        rows: Range<usize>,
        out: &mut Act,
    ) -> Result<()> {
        let hidden = self.geometry.hidden;
        let pending = self.sums.as_ref().filter(|_| before == Reduction::Pending);
        let delta = pending.map(|sums| sums.rows(rows.clone(), hidden));
        let eps = self.geometry.rms_norm_eps;
        let (residual, out) = (residual.rows_mut(rows.clone(), hidden), out.rows_mut(rows, hidden));
        add_rms_norm(self.isa, &self.threads, residual, delta, weight.values(), eps, out);
        Ok(())
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
        let (width, out_rows) = (weight.out_features(), out_first..out_first + rows.len());
        let q_width = self.geometry.shard.q_width_local();
        let features = match features {
            Features::All => 0..width,
            Features::Queries => 0..q_width,
            Features::KeysAndValues => q_width..width,
        };
        let x = x.rows(rows, weight.in_features());
        self.product(x, weight, features, Store::Replace, out.write(out_rows, width));
        Ok(())
    }

    fn gate_up(&mut self, x: &Act, rows: Range<usize>, weight: &Weight, out: &mut Act) -> Result<()> {
        let Some(both) = self.gated(weight) else {
            self.linear(x, rows.clone(), weight, Features::All, out, 0)?;
            return self.silu_mul(out, rows.len());
        };
        let (x, out) = (
            x.rows(rows.clone(), weight.in_features()),
            out.rows_mut(0..rows.len(), self.geometry.shard.ffn_local),
        );
        let operands = Gemm { x, weight: both, bias: weight.bias(), store: Store::Gate, math: self.math };
        gemm(self.isa, &self.threads, &operands, out);
        Ok(())
    }

    fn gates(&self, weight: &Weight) -> bool {
        self.gated(weight).is_some()
    }

    fn rope(&mut self, qkv: &mut Act, metadata: &Metadata, tokens: Tokens, rotate: Rotate) -> Result<()> {
        let shard = self.geometry.shard;
        let (q_width, kv_width, width) =
            (shard.q_width_local(), shard.kv_width_local(), shard.qkv_width_local());
        let stride = row_stride(width);
        let columns = match rotate {
            Rotate::QueriesAndKeys => 0..q_width + kv_width,
            Rotate::Queries => 0..q_width,
            Rotate::Keys => q_width..q_width + kv_width,
        };
        let (rows, positions) = metadata.rows(tokens);
        let data = &mut qkv.write(rows, width)[columns.start..];
        let rows = RowsMut::new(data, positions.len(), columns.len(), stride);
        rope(self.isa, &self.threads, rows, columns.len() / shard.head_dim, self.tables.table(), positions);
        Ok(())
    }

    fn attention(&mut self, qkv: &mut Act, metadata: &Metadata, tokens: Tokens, out: &mut Act) -> Result<()> {
        let shard = self.geometry.shard;
        let (q_width, kv_width, width) =
            (shard.q_width_local(), shard.kv_width_local(), shard.qkv_width_local());
        let stride = row_stride(width);
        let key_rows = metadata.positions.len();
        let queries_end = metadata.rows(tokens).0.end;
        let data = qkv.read(key_rows, width);
        let keys = |column: usize| Rows::new(&data[column..], key_rows, kv_width, stride);
        let input = AttentionInput {
            q: Rows::new(data, queries_end, q_width, stride),
            k: keys(q_width),
            v: keys(q_width + kv_width),
        };
        let out = out.rows_mut(0..queries_end, q_width);
        attention(self.isa, &self.threads, metadata.attention(tokens), &input, self.math, out);
        Ok(())
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
        let x = x.rows(x_first..x_first + rows.len(), weight.in_features());
        // Out of `self` for the time of the product, which reads the rest of it.
        let mut sums = self.sums.take();
        match &mut sums {
            None => self.product(x, weight, 0..hidden, Store::Add, residual.write(rows, hidden)),
            Some(sums) => self.product(x, weight, 0..hidden, Store::Replace, sums.write(rows, hidden)),
        }
        self.sums = sums;
        Ok(())
    }

    fn all_reduce(&mut self, rows: Range<usize>) -> Result<Reduction> {
        let Some(sums) = &mut self.sums else { return Ok(Reduction::InResidual) };
        // What lies between the rows is added too, and read by nobody.
        self.group.all_reduce(self.geometry.shard.rank, sums.write(rows, self.geometry.hidden))?;
        Ok(Reduction::Pending)
    }

    fn silu_mul(&mut self, gate_up: &mut Act, rows: usize) -> Result<()> {
        silu_mul(self.isa, &self.threads, gate_up.rows_mut(0..rows, 2 * self.geometry.shard.ffn_local));
        Ok(())
    }

    fn gather_last(&mut self, x: &Act, metadata: &Metadata, out: &mut Act) -> Result<()> {
        let hidden = self.geometry.hidden;
        let out = out.write(0..metadata.last.rows.len(), hidden);
        for (out, &row) in out.chunks_exact_mut(row_stride(hidden)).zip(&metadata.last.rows) {
            out[..hidden].copy_from_slice(x.rows(row..row + 1, hidden).row(0));
        }
        Ok(())
    }

    fn head(&mut self, x: &Act, head: &Weight, rows: usize) -> Result<Vec<f32>> {
        let labels = head.out_features();
        let mut logits = vec![0.0; rows * labels];
        // In f32 whatever the arithmetic of the layers: this product is the reward.
        let x = x.rows(0..rows, head.in_features());
        let exact = Math::F32;
        for piece in head.pieces() {
            let product = Gemm {
                x,
                weight: view_of(piece, 0..piece.rows()),
                bias: None,
                store: Store::Replace,
                math: exact,
            };
            gemm(self.isa, &self.threads, &product, RowsMut::new(&mut logits, rows, labels, labels));
        }
        Ok(logits)
    }
}

impl Metadata {
    /// Where rows lie in an activation of theirs, and their positions.
    fn rows(&self, tokens: Tokens) -> (Range<usize>, &[u32]) {
        match tokens {
            Tokens::Part(part) => (self.parts[part].clone(), &self.positions[self.parts[part].clone()]),
            Tokens::Last => (0..self.last.rows.len(), &self.last.positions),
        }
    }

    fn attention(&self, tokens: Tokens) -> &AttentionPlan {
        match tokens {
            Tokens::Part(part) => &self.attention[part],
            Tokens::Last => &self.last.attention,
        }
    }
}
