//! One rank's backend: the operations of a pass, each a call of a kernel.

use std::ops::Range;
use std::sync::Arc;

use super::act::{Act, RopeTables, Weight, row_stride};
use super::arithmetic::{Arithmetic, Math};
use super::attention::{self, AttentionInput, Heads, Scoring, attention};
use super::elementwise::{Delta, HeadNorms, add_rms_norm, gate_mul, rope};
use super::gemm::{self, Gemm, Input, Layout, Store, gemm};
use super::group::Group;
use super::metadata::Metadata;
use super::simd::Isa;
use super::threads::Threads;
use super::view::{Rows, RowsMut, WeightView};
use crate::backend::{
    Backend, Capacity, Features, Footprint, Geometry, LayerWeights, Matrix, Reduction, Role, Rotate, Tokens,
};
use crate::batch::Packed;
use crate::error::Result;
use crate::weights::{HostTensor, LayerTensors};

/// One rank's CPU backend.
pub struct Cpu {
    pub(super) geometry: Geometry,
    capacity: Capacity,
    isa: Isa,
    math: Math,
    warning: Option<String>,
    threads: Threads,
    group: Arc<Group>,
    tables: RopeTables,
    /// `[rows, hidden]`, unless outputs of projections are added at once: what ranks all-reduce,
    /// and the next norm adds.
    pending: Option<Act>,
    /// Those of the last head, until they are returned.
    logits: Vec<f32>,
}

impl Cpu {
    /// Returns the bytes that a rank of this geometry will hold. Weights are used where they are
    /// mapped.
    pub fn footprint(geometry: &Geometry, capacity: &Capacity) -> Footprint {
        let activations =
            |rows: usize| rows * (row_stride(geometry.hidden) + row_stride(geometry.normed_width()));
        // A rank's contribution to an all-reduce is copied into the group.
        let copies = if geometry.shard.ranks > 1 { 2 } else { 1 };
        let pending = copies * geometry.pending_rows(capacity) * row_stride(geometry.hidden);
        let tables = capacity.tokens * geometry.shard.head_dim;
        let floats = activations(capacity.tokens)
            + activations(capacity.sequences)
            + scratch_floats(geometry, capacity)
            + pending
            + tables;
        Footprint { weights: 0, workspace: floats * size_of::<f32>(), libraries: 0 }
    }

    /// Creates a backend for the rank of `geometry` and passes of up to `capacity`, with `threads`
    /// worker threads of its own.
    ///
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) or [`ErrorKind::Io`](crate::ErrorKind::Io)
    /// when memory or threads cannot be had.
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
        let pending = match geometry.pending_rows(&capacity) {
            0 => None,
            rows => Some(Act::new(rows * row_stride(geometry.hidden))?),
        };
        let logits = Vec::new();
        Ok(Self { geometry, capacity, isa, math, warning, threads, group, tables, pending, logits })
    }

    /// `out[0..rows.len(), features] = (out or 0) + x[rows] * weight[features]^T + bias[features]`:
    /// in one call for all pieces of one format, so that x is read, and workers are woken, once.
    fn matmul(&self, x: Input<'_>, weight: &Weight, features: Range<usize>, store: Store, out: &mut [f32]) {
        let out_stride = row_stride(weight.out_features());
        let call = |first: usize, view: WeightView, out: &mut [f32]| {
            let bias = weight.bias().map(|bias| &bias[first..][..view.rows()]);
            let out = RowsMut::new(&mut out[first..], x.rows(), view.rows(), out_stride);
            gemm(self.isa, &self.threads, &Gemm { x, weight: view, bias, store, math: self.math }, out);
        };
        // The pieces joined so far, and their first feature.
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
                        call(first, before, out);
                        (wanted.start, view)
                    }
                },
            });
        }
        if let Some((first, view)) = joined {
            call(first, view, out);
        }
    }

    /// Returns a weight of gate and up as one view, for a GEMM with a gate, and the layout that it
    /// writes; none where the arithmetic has no such GEMM.
    fn gated<'a>(&self, weight: &'a Weight) -> Option<(WeightView<'a>, Layout)> {
        let [gate, up] = weight.pieces() else { return None };
        let ffn = self.geometry.shard.ffn_local;
        let both = view_of(gate, 0..ffn).followed_by(view_of(up, 0..ffn))?;
        Some((both, self.math.gated(self.isa, gate.dtype())?))
    }
}

/// Returns rows of a stored matrix as a view.
fn view_of(tensor: &HostTensor, rows: Range<usize>) -> WeightView<'_> {
    let bytes = &tensor.bytes()[rows.start * tensor.row_stride() * tensor.dtype().size()..];
    WeightView::new(bytes, tensor.dtype(), rows.len(), tensor.cols(), tensor.row_stride())
}

/// Floats of [`Role::Scratch`]: q, k and v of every row, or gate and up of a chunk.
fn scratch_floats(geometry: &Geometry, capacity: &Capacity) -> usize {
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
            Role::Scratch => scratch_floats(&self.geometry, &self.capacity),
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
        Ok(Weight::vector(tensor, self.geometry.norm))
    }

    fn slot(&mut self, _like: &LayerTensors) -> Result<Self::Slot> {
        Ok(None)
    }

    fn stage(&mut self, slot: &mut Self::Slot, layer: &LayerTensors) -> Result<()> {
        *slot = Some(self.load_layer(layer)?);
        Ok(())
    }

    fn await_slot<'a>(&mut self, slot: &'a mut Self::Slot) -> Result<&'a LayerWeights<Weight>> {
        Ok(slot.as_ref().expect("a slot is staged before it is awaited"))
    }

    fn metadata(&mut self, packed: &Packed) -> Result<Metadata> {
        let positions = packed.positions.iter().max().map_or(0, |&last| last as usize + 1);
        self.tables.extend(positions)?;
        Ok(Metadata::new(heads(&self.geometry), packed))
    }

    fn parts(metadata: &Metadata) -> &[Range<usize>] {
        metadata.parts()
    }

    fn embed(&mut self, table: &HostTensor, packed: &Packed, residual: &mut Act) -> Result<()> {
        let Geometry { hidden, embedding_scale: scale, .. } = self.geometry;
        let rows = residual.write(0..packed.tokens.len(), hidden);
        for (row, &id) in rows.chunks_exact_mut(row_stride(hidden)).zip(&packed.tokens) {
            table.row_to_f32(id as usize, &mut row[..hidden]);
            if scale != 1.0 {
                row[..hidden].iter_mut().for_each(|x| *x *= scale);
            }
        }
        Ok(())
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
        let hidden = self.geometry.hidden;
        let pending = self.pending.as_ref().filter(|_| before == Reduction::Pending);
        let delta = pending.map(|pending| Delta {
            rows: pending.rows(rows.clone(), hidden),
            norm: branch_norm.map(Weight::values),
        });
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
        let x = x.input(rows, weight.in_features());
        self.matmul(x, weight, features, Store::Replace, out.write(out_rows, width));
        Ok(())
    }

    fn gate_up(&mut self, x: &Act, rows: Range<usize>, weight: &Weight, out: &mut Act) -> Result<()> {
        let Some((both, layout)) = self.gated(weight) else {
            self.linear(x, rows.clone(), weight, Features::All, out, 0)?;
            return self.gate_mul(out, rows.len());
        };
        let operands = Gemm {
            x: x.input(rows.clone(), weight.in_features()),
            weight: both,
            bias: weight.bias(),
            store: Store::Gated(self.geometry.gate),
            math: self.math,
        };
        let out = out.output(rows.len(), self.geometry.shard.ffn_local, layout);
        gemm(self.isa, &self.threads, &operands, out);
        Ok(())
    }

    fn gates(&self, weight: &Weight) -> bool {
        self.gated(weight).is_some()
    }

    fn rope(
        &mut self,
        qkv: &mut Act,
        metadata: &Metadata,
        tokens: Tokens,
        rotate: Rotate,
        norms: Option<&[Weight; 2]>,
    ) -> Result<()> {
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
        let norms = norms.map(|[q, k]| HeadNorms {
            weights: [q.values(), k.values()],
            queries: q_width.saturating_sub(columns.start) / shard.head_dim,
            eps: self.geometry.rms_norm_eps,
        });
        let heads = columns.len() / shard.head_dim;
        rope(self.isa, &self.threads, rows, heads, norms, self.tables.table(), positions);
        Ok(())
    }

    fn attention(
        &mut self,
        qkv: &mut Act,
        metadata: &Metadata,
        tokens: Tokens,
        window: Option<usize>,
        out: &mut Act,
    ) -> Result<()> {
        let shard = self.geometry.shard;
        let (q_width, kv_width, width) =
            (shard.q_width_local(), shard.kv_width_local(), shard.qkv_width_local());
        let stride = row_stride(width);
        let key_rows = metadata.row_count();
        let queries_end = metadata.rows(tokens).0.end;
        let data = qkv.read(key_rows, width);
        let keys = |column: usize| Rows::new(&data[column..], key_rows, kv_width, stride);
        let input = AttentionInput {
            q: Rows::new(data, queries_end, q_width, stride),
            k: keys(q_width),
            v: keys(q_width + kv_width),
        };
        let out = out.rows_mut(0..queries_end, q_width);
        let scoring = Scoring { scores: self.geometry.scores, window };
        attention(self.isa, &self.threads, metadata.attention(tokens), &input, scoring, self.math, out);
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
        let x = x.input(x_first..x_first + rows.len(), weight.in_features());
        // Taken out of `self`, the rest of which the matmul reads.
        let mut pending = self.pending.take();
        match &mut pending {
            None => self.matmul(x, weight, 0..hidden, Store::Add, residual.write(rows, hidden)),
            Some(pending) => self.matmul(x, weight, 0..hidden, Store::Replace, pending.write(rows, hidden)),
        }
        self.pending = pending;
        Ok(())
    }

    fn all_reduce(&mut self, rows: Range<usize>, _residual: &mut Act) -> Result<Reduction> {
        let Some(pending) = &mut self.pending else { return Ok(Reduction::InResidual) };
        let Geometry { hidden, shard, .. } = &self.geometry;
        if shard.ranks > 1 {
            // Elements between the rows are added too, and never read.
            self.group.all_reduce(shard.rank, pending.write(rows, *hidden))?;
        }
        Ok(Reduction::Pending)
    }

    fn gate_mul(&mut self, gate_up: &mut Act, rows: usize) -> Result<()> {
        let rows = gate_up.rows_mut(0..rows, 2 * self.geometry.shard.ffn_local);
        gate_mul(self.isa, &self.threads, self.geometry.gate, rows);
        Ok(())
    }

    fn gather_last(&mut self, x: &Act, metadata: &Metadata, out: &mut Act) -> Result<()> {
        let hidden = self.geometry.hidden;
        let out = out.write(0..metadata.last_rows().len(), hidden);
        for (out, &row) in out.chunks_exact_mut(row_stride(hidden)).zip(metadata.last_rows()) {
            out[..hidden].copy_from_slice(x.rows(row..row + 1, hidden).row(0));
        }
        Ok(())
    }

    fn head(&mut self, x: &Act, head: &Weight, rows: usize) -> Result<()> {
        let labels = head.out_features();
        let mut logits = vec![0.0; rows * labels];
        // In f32 whatever the arithmetic of the layers: this matmul is the reward.
        let x = x.rows(0..rows, head.in_features()).into();
        let exact = Math::F32;
        for piece in head.pieces() {
            let operands = Gemm {
                x,
                weight: view_of(piece, 0..piece.rows()),
                bias: None,
                store: Store::Replace,
                math: exact,
            };
            gemm(self.isa, &self.threads, &operands, RowsMut::new(&mut logits, rows, labels, labels));
        }
        self.logits = logits;
        Ok(())
    }

    fn logits(&mut self) -> Result<Vec<f32>> {
        Ok(std::mem::take(&mut self.logits))
    }
}
