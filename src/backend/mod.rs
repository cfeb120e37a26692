//! The seam between the model and the hardware: trait [`Backend`], one method per op.
//!
//! Above it is one forward pass for every device ([`crate::model`]); below it each device has its
//! own layout and precision of activations, whose elements the model never reads. A backend belongs
//! to one rank and is used on that rank's thread only; it need not be `Send`.
//!
//! Shapes are written `[rows, width]`, and widths are this rank's: `q_width`, `kv_width` and `ffn`
//! stand for [`Geometry`]'s local sizes, `qkv_width = q_width + 2 * kv_width`.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod layer;
mod loading;
pub mod profile;
pub mod tier;
pub mod timed;

use std::ops::Range;
use std::sync::Arc;

use crate::batch::Packed;
use crate::config::{Gate, ModelConfig, Norm, Scores};
use crate::error::Result;
use crate::shard::Shard;
use crate::weights::{HostTensor, LayerTensors};

pub use layer::{HostWeight, LayerWeights, Matrix};
pub use loading::Loading;

/// The sizes and constants of the model, and of this rank's part of it, that ops use.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// Width of the residual stream.
    pub hidden: usize,
    /// This rank's heads and MLP width.
    pub shard: Shard,
    /// The epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// The factor of norms.
    pub norm: Norm,
    /// Whether the outputs of attention and of the MLP are normed before they join the residual
    /// stream.
    pub branch_norms: bool,
    /// The factor of embeddings.
    pub embedding_scale: f32,
    /// The function of the MLP's gate.
    pub gate: Gate,
    /// The scores of attention.
    pub scores: Scores,
    /// Whether some layers have a sliding window.
    pub has_windows: bool,
    /// `[head_dim / 2]` radians per position of each rotated pair.
    pub rope_frequencies: Vec<f32>,
    /// Rows of the head: logits per sequence, or the width of the head's hidden layer.
    pub labels: usize,
    /// The algorithm of the all-reduce over ranks.
    pub all_reduce: AllReduce,
    /// Whether all-reduces run while other rows are computed.
    pub overlap: Overlap,
}

/// Algorithm of the all-reduce over ranks on GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum AllReduce {
    /// In the order of ranks, so that a reward does not depend on what shares its batch
    ///
    /// All ranks' parts are added in f32 with one rounding. Of many rows over more than two ranks each adds
    /// a slice, where the model's width can be divided: that moves the bytes of a ring all-reduce.
    #[default]
    Ordered,
    /// By NCCL, in one step, within the switch where that can; rewards are less exact and change with their batch
    ///
    /// NCCL rounds at every hop, and over more than two ranks in an order that depends on where in its
    /// batch an element lies: rewards are further from float32 by about a quarter.
    Nccl,
}

/// Whether all-reduces overlap with computation. A pass is then cut into parts by rows: while the
/// all-reduces of one part are under way, the next part computes. No reward changes by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Overlap {
    /// In passes of 2,048 tokens and more, whose parts are still fast
    #[default]
    Auto,
    /// In every pass that can be cut into parts
    Always,
    /// In no pass: an all-reduce begins when all rows are computed, and the next op waits for it
    Never,
}

/// Whether matmul algorithms on GPUs are timed at load, and the timings kept for the next start. No
/// reward changes by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum GemmTuning {
    /// They are timed if no timings of this kind of GPU are kept: seconds at the first start
    #[default]
    Auto,
    /// They are not timed: cublasLt's own proposal for a usual batch is used for all
    Off,
}

impl Geometry {
    /// Makes the geometry of one rank's part of a model.
    pub fn new(config: &ModelConfig, shard: Shard, rope_frequencies: Vec<f32>, labels: usize) -> Self {
        let &ModelConfig { hidden, rms_norm_eps, norm, branch_norms, .. } = config;
        let &ModelConfig { embedding_scale, gate, scores, .. } = config;
        Self {
            hidden,
            shard,
            rms_norm_eps,
            norm,
            branch_norms,
            embedding_scale,
            gate,
            scores,
            has_windows: config.windows.iter().any(Option::is_some),
            rope_frequencies,
            labels,
            all_reduce: AllReduce::Ordered,
            overlap: Overlap::Auto,
        }
    }

    /// Returns the widest row of an activation in `normed` form: a norm's output or attention's.
    pub fn normed_width(&self) -> usize {
        self.hidden.max(self.shard.q_width_local())
    }

    /// Whether outputs of projections are added to the residual stream as they are computed: not
    /// where they are all-reduced or normed first, by the next norm.
    pub fn adds_at_once(&self) -> bool {
        self.shard.ranks == 1 && !self.branch_norms
    }

    /// Whether an ordered all-reduce of many rows is divided among the ranks: each adds all parts of
    /// its slice of the elements, in whole words. Of two ranks each receives one part either way, and
    /// a branch that is normed before it is added takes whole rows.
    pub fn adds_by_slices(&self) -> bool {
        /// Elements of a word.
        const WORD: usize = 8;
        let ranks = self.shard.ranks;
        ranks > 2 && self.hidden.is_multiple_of(ranks * WORD) && !self.branch_norms
    }

    /// Returns the rows of `hidden` elements that a rank buffers: outputs of projections, until the
    /// next norm adds them.
    pub fn pending_rows(&self, capacity: &Capacity) -> usize {
        if self.adds_at_once() { 0 } else { capacity.tokens.max(capacity.sequences) }
    }
}

/// The largest pass, for which activations are allocated once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Packed rows.
    pub tokens: usize,
    /// Rows in which sequences end.
    pub sequences: usize,
    /// Rows that go through the MLP at a time.
    pub mlp_tokens: usize,
}

/// The role of an activation. Backends choose its precision by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `[rows, hidden]` the residual stream.
    Residual,
    /// `[rows, max(hidden, q_width)]` the output of a norm or of attention, which a linear layer
    /// reads.
    Normed,
    /// `[rows, qkv_width]`, then a chunk's `[mlp_tokens, 2 * ffn]` in the same buffer, which is
    /// large enough for either at full [`Capacity`].
    Scratch,
}

/// The rows of a pass that an op works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// The rows of one of the pass's parts, by index ([`Backend::parts`]).
    Part(usize),
    /// The rows in which sequences end, in the order of [`Packed::last`].
    Last,
}

/// The heads of a `[rows, qkv_width]` activation that RoPE rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotate {
    /// Queries and keys.
    QueriesAndKeys,
    /// Queries only.
    Queries,
    /// Keys only.
    Keys,
}

/// The output features of a fused weight that a linear layer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// All of them.
    All,
    /// The queries of a fused q, k and v.
    Queries,
    /// The keys and values of a fused q, k and v.
    KeysAndValues,
}

/// The state of the all-reduce of an output projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The result is in the residual stream.
    InResidual,
    /// In progress, or kept for its norm: the next norm of the same rows waits for the result and
    /// adds it to the residual stream.
    Pending,
}

/// Bytes that a backend will allocate for one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Weights copied to the device; zero where they are used from the mapping.
    pub weights: usize,
    /// Activations and other buffers that are sized for the largest pass.
    pub workspace: usize,
    /// Memory that is left to the vendor's libraries, which take it while the engine opens: for the
    /// code of their kernels and for buffers between ranks. It is an estimate.
    pub libraries: usize,
}

impl Footprint {
    /// Returns the bytes in all.
    pub fn total(&self) -> usize {
        self.weights + self.workspace + self.libraries
    }
}

/// A function that returns the batch of the next pass while one runs, where it is known.
pub type NextBatch<'a> = &'a mut dyn FnMut() -> Option<Arc<Packed>>;

/// The operations that a forward pass consists of, on one device, for one rank.
///
/// Ops are queued in the order of the calls; only [`logits`](Backend::logits) waits for their
/// results. After an error the activations are undefined.
pub trait Backend: Sized {
    /// An activation: rows of elements on the device.
    type Act;
    /// A weight on the device: a matrix `[out_features, in_features]` with an optional bias, or a
    /// vector.
    type Weight;
    /// The metadata of a pass on the device: positions, spans, last rows.
    type Metadata;
    /// A device buffer for the weights of one layer, into which one layer after the other is
    /// copied.
    type Slot;

    /// Connects to the other ranks. Called once on each rank, after all have allocated their
    /// memory: if one fails to, no rank gets here and waits for it.
    fn connect(&mut self) -> Result<()> {
        Ok(())
    }

    /// Allocates an activation of `rows` rows for a role; its contents are undefined.
    fn activation(&mut self, role: Role, rows: usize) -> Result<Self::Act>;

    /// Loads the matrix whose output features are those of `pieces`, concatenated: each piece is
    /// `[piece_features, in_features]`. `bias`, if any, has a piece for each of them.
    ///
    /// Ops may use a loaded weight after [`finish_loads`](Backend::finish_loads). An error may be
    /// one of an earlier load.
    fn matrix(
        &mut self,
        matrix: Matrix,
        pieces: &[HostTensor],
        bias: Option<&[HostTensor]>,
    ) -> Result<Self::Weight>;

    /// Loads a vector `[width]`: the weight of a norm.
    fn vector(&mut self, tensor: &HostTensor) -> Result<Self::Weight>;

    /// Loads one layer to stay.
    fn load_layer(&mut self, layer: &LayerTensors) -> Result<LayerWeights<Self::Weight>> {
        LayerWeights::make(layer, |weight| match weight.matrix {
            Some(matrix) => self.matrix(matrix, weight.pieces, weight.bias),
            None => self.vector(&weight.pieces[0]),
        })
    }

    /// Allocates a slot for layers with the shapes of `like`, which all layers of a rank have; its
    /// contents are undefined.
    fn slot(&mut self, like: &LayerTensors) -> Result<Self::Slot>;

    /// Checks a layer that will be staged as loading would: an error for a weight that the device's
    /// format cannot represent, and warnings. Called once for each such layer at load, so that no
    /// pass fails with it. An error may be returned only by
    /// [`finish_loads`](Backend::finish_loads).
    fn check(&mut self, _layer: &LayerTensors) -> Result<()> {
        Ok(())
    }

    /// Waits until all weights that were loaded can be used, and all checks are complete. Called
    /// once, when all are, before the first pass: errors of loads and checks are returned by now.
    fn finish_loads(&mut self) -> Result<()> {
        Ok(())
    }

    /// Begins to copy a layer into a slot, and does not wait for the copy. Ops that were queued
    /// before this call still use the slot's previous layer; later ones may use the slot after
    /// [`await_slot`](Backend::await_slot). Slots are awaited in the order in which they were
    /// staged, and the copies overlap with the ops that are queued meanwhile. An error may be
    /// returned only by `await_slot`.
    fn stage(&mut self, slot: &mut Self::Slot, layer: &LayerTensors) -> Result<()>;

    /// Returns the layer that was last staged into the slot, for ops that are queued from now on.
    /// May block until the copies are queued, but waits for no op.
    fn await_slot<'a>(&mut self, slot: &'a mut Self::Slot) -> Result<&'a LayerWeights<Self::Weight>>;

    /// Returns warnings about the loaded weights.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Uploads the metadata of the pass over `packed`.
    fn metadata(&mut self, packed: &Packed) -> Result<Self::Metadata>;

    /// Returns the parts into which the pass's rows are cut, in order. All layers except the last
    /// run attention for one part after the other, so that the all-reduce of one overlaps with the
    /// ops of the next. One part where that gains nothing.
    fn parts(metadata: &Self::Metadata) -> &[Range<usize>];

    /// Computes `residual[t, :] = table[tokens[t], :] * embedding_scale`; the table
    /// `[vocab, hidden]` is used where it is mapped.
    fn embed(&mut self, table: &HostTensor, packed: &Packed, residual: &mut Self::Act) -> Result<()>;

    /// Whether ops run while the host goes on. Then the next pass is prepared, and its first ops are
    /// queued, before the logits of the present one are waited for.
    fn is_asynchronous(&self) -> bool {
        false
    }

    /// Brings rows that [`embed`](Backend::embed) will need for this batch to the device, while it
    /// computes; returns whether these are all of them, and the next pass may begin. Called with an
    /// asynchronous device when a pass is queued, for the next one.
    fn prefetch_embeddings(&mut self, _table: &HostTensor, _packed: &Packed) -> Result<bool> {
        Ok(false)
    }

    /// Layers of the next pass that are queued before the logits of the present one are waited for,
    /// at most.
    fn layers_begun(&self) -> usize {
        0
    }

    /// Waits for all that is queued.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    /// Computes `residual += before` and
    /// `out[t, :] = residual[t, :] / sqrt(mean(residual[t, :]^2) + eps) * weight`
    /// for rows `rows`, where `before` is the pending all-reduce of these rows, if there is one.
    /// With a `branch_norm`, `before` is normed by that weight before it is added. With
    /// [`Norm::OnePlus`], 1 is added to each weight. `residual` and `out` are `[.., hidden]`.
    fn add_rms_norm(
        &mut self,
        residual: &mut Self::Act,
        before: Reduction,
        branch_norm: Option<&Self::Weight>,
        weight: &Self::Weight,
        rows: Range<usize>,
        out: &mut Self::Act,
    ) -> Result<()>;

    /// Computes
    /// `out[out_first + i, features] = x[rows[i], :] * weight[features, :]^T + bias[features]`,
    /// where `out` is `[.., out_features]`; its columns outside of `features` stay unchanged.
    fn linear(
        &mut self,
        x: &Self::Act,
        rows: Range<usize>,
        weight: &Self::Weight,
        features: Features,
        out: &mut Self::Act,
        out_first: usize,
    ) -> Result<()>;

    /// Computes the MLP's gate and up with its activation: `out[i, j] = f(gate[i, j]) * up[i, j]`
    /// for `j < ffn` and the model's function `f` ([`Gate`]), where gate and up are the halves of
    /// the output of [`linear`](Backend::linear) for `rows` rows. `out` is at least
    /// `[rows, 2 * ffn]`.
    fn gate_up(
        &mut self,
        x: &Self::Act,
        rows: Range<usize>,
        weight: &Self::Weight,
        out: &mut Self::Act,
    ) -> Result<()> {
        self.linear(x, rows.clone(), weight, Features::All, out, 0)?;
        self.gate_mul(out, rows.len())
    }

    /// Whether [`gate_up`](Backend::gate_up) with this weight is one op rather than two.
    fn gates(&self, _weight: &Self::Weight) -> bool {
        false
    }

    /// Norms heads of `qkv` in place, where there are norms: for a head `v` of width `d`,
    /// `v[i] = v[i] / sqrt(mean(v^2) + eps) * weight[i]` with the first weight for query heads and
    /// the second for key heads.
    ///
    /// Then rotates them by their positions, in the half-split layout: for a head `v` at position
    /// `p`, `v[i], v[i + d/2] = v[i] cos - v[i + d/2] sin, v[i + d/2] cos + v[i] sin`
    /// with the angle `p * rope_frequencies[i]`. With [`Tokens::Last`], row `i` of `qkv` has the
    /// position of last row `i`.
    fn rope(
        &mut self,
        qkv: &mut Self::Act,
        metadata: &Self::Metadata,
        tokens: Tokens,
        heads: Rotate,
        norms: Option<&[Self::Weight; 2]>,
    ) -> Result<()>;

    /// Computes causal grouped-query attention along each row's path, which is the keys at
    /// positions up to the query's own, or the last `window` of these. For `g = h / group`:
    /// `out[i, h, :] = softmax(score(q[i, h, :] . k[path, g, :])) * v[path, g, :]`, where `score`
    /// divides and caps ([`Scores`]).
    ///
    /// With [`Tokens::Last`], the query of last row `i` is row `i` of `qkv`; keys and values stay in
    /// the rows that they were computed in, which for a part are those up to its last row. `qkv` is
    /// `[tokens, qkv_width]`, `out` is `[rows, q_width]`. A backend may write copies of keys and
    /// values after the last row of `qkv`.
    fn attention(
        &mut self,
        qkv: &mut Self::Act,
        metadata: &Self::Metadata,
        tokens: Tokens,
        window: Option<usize>,
        out: &mut Self::Act,
    ) -> Result<()>;

    /// Computes this rank's part of an output projection `x * weight^T + bias`, whose input
    /// features are divided among ranks. Where [`Geometry::adds_at_once`], it is added to rows
    /// `rows` of `residual`; else it is buffered for [`all_reduce`](Backend::all_reduce). `x` is
    /// read from row `x_first` on.
    fn row_parallel(
        &mut self,
        x: &Self::Act,
        x_first: usize,
        weight: &Self::Weight,
        rows: Range<usize>,
        residual: &mut Self::Act,
    ) -> Result<()>;

    /// Begins the all-reduce of an output projection's rows `rows`, which with one rank is only
    /// kept, and which may add it to `residual` already. Every rank begins the same all-reduces in
    /// the same order, and norms take their results in that order; until then, no op uses these
    /// rows of `residual`.
    fn all_reduce(&mut self, rows: Range<usize>, residual: &mut Self::Act) -> Result<Reduction>;

    /// Computes `gate_up[i, j] = f(gate_up[i, j]) * gate_up[i, ffn + j]` for `j < ffn`, rows
    /// `0..rows` and the model's function `f` ([`Gate`]). `gate_up` is `[rows, 2 * ffn]`; the
    /// results overwrite the gate.
    fn gate_mul(&mut self, gate_up: &mut Self::Act, rows: usize) -> Result<()>;

    /// Computes `out[i, :] = x[last[i], :]`, `[sequences, hidden]`.
    fn gather_last(&mut self, x: &Self::Act, metadata: &Self::Metadata, out: &mut Self::Act) -> Result<()>;

    /// Computes `x[i, :] . head[label, :]` in f32 for rows `0..rows`: the logits, `[rows, labels]`.
    fn head(&mut self, x: &Self::Act, head: &Self::Weight, rows: usize) -> Result<()>;

    /// Returns the logits of the last [`head`](Backend::head), and waits for all ops that were
    /// queued before it.
    fn logits(&mut self) -> Result<Vec<f32>>;
}
