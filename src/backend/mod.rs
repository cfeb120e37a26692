//! The seam between what is computed and on which hardware: trait [`Backend`], one method per op.
//!
//! Above it stands one forward pass for every device ([`crate::model`]); below it each device keeps its own layout,
//! precision and arrangement of activations. The model never looks into an activation. A backend belongs to one
//! rank and lives on that rank's thread; nothing in it needs to be `Send`.
//!
//! Shapes are written `[rows, width]`, and widths are this rank's: `q_width`, `kv_width` and `ffn` stand for
//! [`Geometry`]'s local sizes, `qkv_width = q_width + 2 * kv_width`.

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
use crate::config::ModelConfig;
use crate::error::Result;
use crate::shard::Shard;
use crate::weights::{HostTensor, LayerTensors};

pub use layer::{HostWeight, LayerWeights};
pub use loading::Loading;

/// The sizes and constants that ops need: the model's, and this rank's part of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// Width of the residual stream.
    pub hidden: usize,
    /// This rank's heads and MLP width.
    pub shard: Shard,
    /// The epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// `[head_dim / 2]` radians per position of each rotated pair.
    pub rope_frequencies: Vec<f32>,
    /// Rewards per sequence: rows of the head.
    pub labels: usize,
    /// The algorithm of the all-reduce over ranks.
    pub all_reduce: AllReduce,
    /// Whether they run beside the computation of other rows.
    pub overlap: Overlap,
}

/// Algorithm of the all-reduce over ranks on GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum AllReduce {
    /// In the order of ranks: a reward does not depend on what shares its batch
    ///
    /// Every rank gets what each has computed, and adds it in f32 with one rounding. Over N ranks this
    /// moves N / 2 times the bytes of [`Nccl`](Self::Nccl).
    #[default]
    Ordered,
    /// By NCCL, which moves less over more than two ranks; rewards are less exact and change with their batch
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
    /// Never: an all-reduce begins when all rows are computed, and the next op waits for it
    Never,
}

/// Whether matmul algorithms on GPUs are timed at load, and the timings kept for the next start. No
/// reward changes by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum GemmTuning {
    /// Where no timings of this kind of GPU are kept: seconds at the first start
    #[default]
    Auto,
    /// Never: cublasLt's own proposal for a usual batch is used for all
    Off,
}

impl Geometry {
    /// The geometry of one rank's part of a model.
    pub fn new(config: &ModelConfig, shard: Shard, rope_frequencies: Vec<f32>, labels: usize) -> Self {
        let (hidden, rms_norm_eps) = (config.hidden, config.rms_norm_eps);
        let (all_reduce, overlap) = (AllReduce::Ordered, Overlap::Auto);
        Self { hidden, shard, rms_norm_eps, rope_frequencies, labels, all_reduce, overlap }
    }

    /// The widest row of an activation in `normed` form: a norm's output or attention's.
    pub fn normed_width(&self) -> usize {
        self.hidden.max(self.shard.q_width_local())
    }

    /// Rows of `hidden` numbers that a rank brings to sums over ranks: what output projections put out, until the next norm
    /// adds it. None where there is one rank, which adds at once.
    pub fn all_reduce_rows(&self, capacity: &Capacity) -> usize {
        if self.shard.ranks > 1 { capacity.tokens.max(capacity.sequences) } else { 0 }
    }
}

/// The most that one pass may hold: what activations are sized for, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Packed rows.
    pub tokens: usize,
    /// Rows in which sequences end.
    pub sequences: usize,
    /// Rows that go through the MLP at a time.
    pub mlp_tokens: usize,
}

/// Which of a model's matrices a weight is. Backends may lay heads out differently by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// Queries, keys and values, `[qkv_width, hidden]`.
    Qkv,
    /// From attention back to the residual stream, `[hidden, q_width]`.
    O,
    /// Gate and up, `[2 * ffn, hidden]`.
    GateUp,
    /// From the MLP back to the residual stream, `[hidden, ffn]`.
    Down,
    /// From the final norm to the logits, `[labels, hidden]`.
    Head,
}

/// What an activation is for. Backends choose its precision by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `[rows, hidden]` the residual stream.
    Residual,
    /// `[rows, max(hidden, q_width)]` what a norm or attention puts out and a linear layer reads.
    Normed,
    /// `[rows, qkv_width]`, and a chunk's `[mlp_tokens, 2 * ffn]`, one after the other in the same place, which has room
    /// for either at full [`Capacity`].
    Scratch,
}

/// Which rows of a pass an op works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// The rows of this one of the pass's parts ([`Backend::parts`]).
    Part(usize),
    /// Only the rows in which sequences end, in the order of [`Packed::last`].
    Last,
}

/// Which heads of a `[rows, qkv_width]` activation RoPE turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotate {
    /// Queries and keys.
    QueriesAndKeys,
    /// Queries only.
    Queries,
    /// Keys only.
    Keys,
}

/// Which output features of a fused weight a linear layer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// All of them.
    All,
    /// The queries of a fused q, k and v.
    Queries,
    /// The keys and values of a fused q, k and v.
    KeysAndValues,
}

/// Where the all-reduced result of an output projection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// In the residual stream.
    InResidual,
    /// On its way: the next norm of the same rows waits for it and adds it to the residual stream.
    Pending,
}

/// Bytes that a backend will hold for one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Weights copied to the device; zero where they are used from the mapping.
    pub weights: usize,
    /// Activations and everything else that is sized by [`Capacity`].
    pub workspace: usize,
}

impl Footprint {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.workspace
    }
}

/// Gives the batch of the next pass while one runs, if it is known.
pub type Ahead<'a> = &'a mut dyn FnMut() -> Option<Arc<Packed>>;

/// The operations that a Llama forward pass consists of, on one device, for one rank.
///
/// Ops are queued in the order of the calls; only [`head`](Backend::head) waits for their results. An error leaves
/// the activations undefined.
pub trait Backend: Sized {
    /// An activation: rows of numbers on the device.
    type Act;
    /// A weight on the device: a matrix `[out_features, in_features]` with an optional bias, or a vector.
    type Weight;
    /// What a pass needs besides its tokens: positions, spans, last rows.
    type Metadata;
    /// A place on the device for the weights of one layer, which many layers pass through one after the other.
    type Slot;

    /// Meets the other ranks. Called once, on each rank, after all of them have allocated what they need: a rank that
    /// could not is then known, and nobody waits for it here.
    fn connect(&mut self) -> Result<()> {
        Ok(())
    }

    /// An activation with room for `rows` rows of what its role says; contents undefined.
    fn activation(&mut self, role: Role, rows: usize) -> Result<Self::Act>;

    /// The matrix whose output features are those of `pieces`, one piece after the other: each
    /// `[piece_features, in_features]`. `bias`, if any, has a piece for each of them.
    fn matrix(
        &mut self,
        matrix: Matrix,
        pieces: &[HostTensor],
        bias: Option<&[HostTensor]>,
    ) -> Result<Self::Weight>;

    /// A vector `[width]`: the weight of a norm.
    fn vector(&mut self, tensor: &HostTensor) -> Result<Self::Weight>;

    /// A slot for layers of the shapes of `like`, which all layers of a rank have; contents undefined.
    fn slot(&mut self, like: &LayerTensors) -> Result<Self::Slot>;

    /// Finds of a layer that will be staged what loading it would find: a weight that the device's format cannot hold,
    /// and what is to be warned of. Asked once for each such layer, so that no pass finds it.
    fn check(&mut self, _layer: &LayerTensors) -> Result<()> {
        Ok(())
    }

    /// Begins to put a layer into a slot, and does not wait for it. Ops that were queued before this call still find
    /// what was in the slot; no op may use it until [`await_slot`](Backend::await_slot) was called. What is staged
    /// first arrives first: slots are awaited in the order in which they were staged, and the copies run beside the
    /// ops that are queued meanwhile. An error may also show only when the slot is awaited.
    fn stage(&mut self, slot: &mut Self::Slot, layer: &LayerTensors) -> Result<()>;

    /// What was last staged into the slot, for ops that are queued from here on. It may block the caller until the
    /// copies are on their way, but waits for no op.
    fn await_slot<'a>(&mut self, slot: &'a mut Self::Slot) -> Result<&'a LayerWeights<Self::Weight>>;

    /// What the caller should know of the weights as they were loaded.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Sends up what the pass over `packed` needs.
    fn metadata(&mut self, packed: &Packed) -> Result<Self::Metadata>;

    /// The parts into which this pass's rows are cut, in their order: the layers' ops but the last one's take one after
    /// the other, so that sums over ranks of one part can run beside the ops of the next. One part where nothing is
    /// gained by that.
    fn parts(metadata: &Self::Metadata) -> &[Range<usize>];

    /// `residual[t, :] = table[tokens[t], :]`; the table `[vocab, hidden]` stays where it is mapped.
    fn embed(&mut self, table: &HostTensor, packed: &Packed, residual: &mut Self::Act) -> Result<()>;

    /// Called when a pass is queued but for its head: where a device works by itself, this asks for the batch that comes
    /// next and gathers on the host what [`embed`](Backend::embed) will need for it. Another batch may come all the same.
    fn embed_ahead(&mut self, _table: &HostTensor, _ahead: Ahead<'_>) -> Result<()> {
        Ok(())
    }

    /// `residual += before; out[t, :] = residual[t, :] / sqrt(mean(residual[t, :]^2) + eps) * weight` for rows `rows`,
    /// where `before` is the sum of these rows that is pending, if one is. `residual` and `out` are `[.., hidden]`.
    fn add_rms_norm(
        &mut self,
        residual: &mut Self::Act,
        before: Reduction,
        weight: &Self::Weight,
        rows: Range<usize>,
        out: &mut Self::Act,
    ) -> Result<()>;

    /// `out[out_first + i, features] = x[rows[i], :] * weight[features, :]^T + bias[features]`, where `out` is
    /// `[.., out_features]` with the columns outside of `features` left alone.
    fn linear(
        &mut self,
        x: &Self::Act,
        rows: Range<usize>,
        weight: &Self::Weight,
        features: Features,
        out: &mut Self::Act,
        out_first: usize,
    ) -> Result<()>;

    /// The MLP's gate and up with its activation: `out[i, j] = silu(gate[i, j]) * up[i, j]` for `j < ffn`, where gate and up are
    /// the halves of what [`linear`](Backend::linear) of `rows` rows would put out. `out` has room for `[rows, 2 * ffn]`.
    fn gate_up(
        &mut self,
        x: &Self::Act,
        rows: Range<usize>,
        weight: &Self::Weight,
        out: &mut Self::Act,
    ) -> Result<()> {
        self.linear(x, rows.clone(), weight, Features::All, out, 0)?;
        self.silu_mul(out, rows.len())
    }

    /// Whether [`gate_up`](Backend::gate_up) with that weight is one op rather than two.
    fn gates(&self, _weight: &Self::Weight) -> bool {
        false
    }

    /// Rotates heads of `qkv` in place by their positions, in the half-split layout: for a head `v` at position `p`,
    /// `v[i], v[i + d/2] = v[i] cos - v[i + d/2] sin, v[i + d/2] cos + v[i] sin` with the angle
    /// `p * rope_frequencies[i]`. With [`Tokens::Last`], row `i` of `qkv` has the position of last row `i`.
    fn rope(
        &mut self,
        qkv: &mut Self::Act,
        metadata: &Self::Metadata,
        tokens: Tokens,
        heads: Rotate,
    ) -> Result<()>;

    /// Causal grouped-query attention along each row's path:
    /// `out[i, h, :] = softmax(q[i, h, :] . k[path, h / group, :] / sqrt(head_dim)) * v[path, h / group, :]`, where
    /// the path is the keys at positions up to the query's own. With [`Tokens::Last`], the query of last row `i` is
    /// row `i` of `qkv`; keys and values are where they were computed, for a part by then up to its last row. `qkv`
    /// `[tokens, qkv_width]`, `out` `[rows, q_width]`. A backend may put copies of keys and values behind the last row of
    /// `qkv`.
    fn attention(
        &mut self,
        qkv: &mut Self::Act,
        metadata: &Self::Metadata,
        tokens: Tokens,
        out: &mut Self::Act,
    ) -> Result<()>;

    /// An output projection, whose input features are divided among ranks: this rank's part of
    /// `x * weight^T + bias`. With one rank it is added to rows `rows` of `residual`; with more it waits for
    /// [`all_reduce`](Backend::all_reduce). `x` is read from its row `x_first` on.
    fn row_parallel(
        &mut self,
        x: &Self::Act,
        x_first: usize,
        weight: &Self::Weight,
        rows: Range<usize>,
        residual: &mut Self::Act,
    ) -> Result<()>;

    /// Begins the sum over ranks of what output projections put out for rows `rows`; every rank begins the same ones in
    /// the same order, and norms take them in that order.
    fn all_reduce(&mut self, rows: Range<usize>) -> Result<Reduction>;

    /// `gate_up[i, j] = silu(gate_up[i, j]) * gate_up[i, ffn + j]` for `j < ffn` and rows `0..rows`, with
    /// `silu(x) = x / (1 + exp(-x))`. `gate_up` is `[rows, 2 * ffn]` and stays so: the product takes the gate's place.
    fn silu_mul(&mut self, gate_up: &mut Self::Act, rows: usize) -> Result<()>;

    /// `out[i, :] = x[last[i], :]`, `[sequences, hidden]`.
    fn gather_last(&mut self, x: &Self::Act, metadata: &Self::Metadata, out: &mut Self::Act) -> Result<()>;

    /// `x[i, :] . head[label, :]` in f32 for rows `0..rows`: `[rows, labels]`. Waits for everything queued so far.
    fn head(&mut self, x: &Self::Act, head: &Self::Weight, rows: usize) -> Result<Vec<f32>>;
}
