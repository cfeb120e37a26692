//! [`Timed`]: a backend whose passes are timed op by op while a [`Profile`] asks for that.
//!
//! It stands around any backend that is a [`Clock`], and puts a mark behind every op. What lies between two marks is the
//! later op's time: on a GPU also the time for which that had nothing to do before it. A pass that is not profiled is the
//! backend's own, call by call; an engine that is opened without a profile has no such backend at all. It is long because every
//! op says here what it has to do.

use std::ops::Range;

use super::profile::{Class, Profile, Work};
use super::{Ahead, Backend, Features, Geometry, LayerWeights, Matrix, Reduction, Role, Rotate, Tokens};
use crate::batch::Packed;
use crate::error::Result;
use crate::weights::{HostTensor, LayerTensors};

/// Bytes of numbers as a device keeps them in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberBytes {
    /// Of the residual stream, and of what is added to it.
    pub residual: usize,
    /// Of weights and of all other activations.
    pub other: usize,
}

/// What [`Timed`] asks of a backend besides its ops.
pub trait Clock: Backend {
    /// A point behind ops, to measure time from and to.
    type Mark;

    /// A mark behind everything that was queued so far, sums over ranks included. `unused` is one that is not needed any
    /// more.
    fn mark(&mut self, unused: Option<Self::Mark>) -> Result<Self::Mark>;

    /// Seconds from one mark to a later one; waits until that is reached.
    fn seconds(&self, from: &Self::Mark, to: &Self::Mark) -> Result<f64>;

    /// The sizes of the model and of this rank's part.
    fn geometry(&self) -> &Geometry;

    /// How numbers are kept where the device's memory is what ops read and write; `None` where caches hold them.
    fn number_bytes(&self) -> Option<NumberBytes>;

    /// Which matrix a weight is.
    fn matrix_of(weight: &Self::Weight) -> Matrix;
}

/// A backend and its marks.
pub struct Timed<B: Clock> {
    inner: B,
    profile: Profile,
    /// Of the present pass, if it is profiled: the positions of its rows, and those of its last rows.
    positions: Option<(Vec<u32>, Vec<u32>)>,
    /// Where the present pass begins, then one behind every op.
    marks: Vec<B::Mark>,
    ops: Vec<(Class, Work)>,
    unused: Vec<B::Mark>,
}

impl<B: Clock> Timed<B> {
    /// A backend that `profile` can ask for the times of its passes.
    pub fn new(inner: B, profile: Profile) -> Self {
        Self { inner, profile, positions: None, marks: Vec::new(), ops: Vec::new(), unused: Vec::new() }
    }

    /// Begins a pass.
    fn begin(&mut self, packed: &Packed) -> Result<()> {
        self.ops.clear();
        self.unused.append(&mut self.marks);
        let last = || packed.last.iter().map(|last| packed.positions[last.row]).collect();
        self.positions = self.profile.is_on().then(|| (packed.positions.clone(), last()));
        if self.positions.is_some() { self.mark() } else { Ok(()) }
    }

    /// Says what the op was that has just been queued.
    fn did(&mut self, class: Class, work: impl FnOnce(&Self) -> Work) -> Result<()> {
        if self.positions.is_none() {
            return Ok(());
        }
        self.ops.push((class, work(self)));
        self.mark()
    }

    fn mark(&mut self) -> Result<()> {
        let mark = self.inner.mark(self.unused.pop())?;
        self.marks.push(mark);
        Ok(())
    }

    /// Ends a pass, of which rank 0 tells.
    fn end(&mut self) -> Result<()> {
        let is_told = self.positions.take().is_some() && self.inner.geometry().shard.rank == 0;
        for (&(class, work), marks) in self.ops.iter().zip(self.marks.windows(2)).filter(|_| is_told) {
            self.profile.add(class, self.inner.seconds(&marks[0], &marks[1])?, work);
        }
        Ok(())
    }

    /// So many numbers of the residual stream and others, read or written.
    fn bytes(&self, residual: usize, other: usize) -> Option<usize> {
        self.inner.number_bytes().map(|bytes| residual * bytes.residual + other * bytes.other)
    }

    /// A product of `rows` rows with a matrix `[out_features, in_features]`, which writes so many numbers.
    fn product(
        &self,
        rows: usize,
        (out_features, in_features): (usize, usize),
        (residual, other): (usize, usize),
    ) -> Work {
        let flop = 2.0 * rows as f64 * (out_features * in_features) as f64;
        let read = (rows + out_features) * in_features;
        Work { flop, bytes: self.bytes(rows * residual, read + rows * other) }
    }

    /// Work of bytes alone.
    fn moved(&self, residual: usize, other: usize) -> Work {
        Work { flop: 0.0, bytes: self.bytes(residual, other) }
    }

    /// Positions of the rows that an op works on.
    fn positions(&self, metadata: &B::Metadata, tokens: Tokens) -> &[u32] {
        let (all, last) = self.positions.as_ref().expect("the pass is profiled");
        match tokens {
            Tokens::Part(index) => &all[B::parts(metadata)[index].clone()],
            Tokens::Last => last,
        }
    }
}

impl<B: Clock> Backend for Timed<B> {
    type Act = B::Act;
    type Weight = B::Weight;
    type Metadata = B::Metadata;
    type Slot = B::Slot;

    fn connect(&mut self) -> Result<()> {
        self.inner.connect()
    }

    fn activation(&mut self, role: Role, rows: usize) -> Result<B::Act> {
        self.inner.activation(role, rows)
    }

    fn matrix(
        &mut self,
        matrix: Matrix,
        pieces: &[HostTensor],
        bias: Option<&[HostTensor]>,
    ) -> Result<B::Weight> {
        self.inner.matrix(matrix, pieces, bias)
    }

    fn vector(&mut self, tensor: &HostTensor) -> Result<B::Weight> {
        self.inner.vector(tensor)
    }

    fn slot(&mut self, like: &LayerTensors) -> Result<B::Slot> {
        self.inner.slot(like)
    }

    fn check(&mut self, layer: &LayerTensors) -> Result<()> {
        self.inner.check(layer)
    }

    fn stage(&mut self, slot: &mut B::Slot, layer: &LayerTensors) -> Result<()> {
        self.inner.stage(slot, layer)
    }

    fn await_slot<'a>(&mut self, slot: &'a mut B::Slot) -> Result<&'a LayerWeights<B::Weight>> {
        let weights = self.inner.await_slot(slot)?;
        self.did(Class::StreamedLayers, |_| Work::default())?;
        Ok(weights)
    }

    fn warnings(&self) -> Vec<String> {
        self.inner.warnings()
    }

    fn metadata(&mut self, packed: &Packed) -> Result<B::Metadata> {
        self.begin(packed)?;
        let metadata = self.inner.metadata(packed)?;
        self.did(Class::Tables, |_| Work::default())?;
        Ok(metadata)
    }

    fn parts(metadata: &B::Metadata) -> &[Range<usize>] {
        B::parts(metadata)
    }

    fn embed(&mut self, table: &HostTensor, packed: &Packed, residual: &mut B::Act) -> Result<()> {
        self.inner.embed(table, packed, residual)?;
        self.did(Class::Embeddings, |_| Work::default())
    }

    fn embed_ahead(&mut self, table: &HostTensor, ahead: Ahead<'_>) -> Result<()> {
        self.inner.embed_ahead(table, ahead)
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut B::Act,
        before: Reduction,
        weight: &B::Weight,
        rows: Range<usize>,
        out: &mut B::Act,
    ) -> Result<()> {
        self.inner.add_rms_norm(residual, before, weight, rows.clone(), out)?;
        self.did(Class::AddRmsNorm, |this| {
            let hidden = this.inner.geometry().hidden;
            let streams = if before == Reduction::Pending { 3 } else { 1 };
            this.moved(streams * rows.len() * hidden, (rows.len() + 1) * hidden)
        })
    }

    fn linear(
        &mut self,
        x: &B::Act,
        rows: Range<usize>,
        weight: &B::Weight,
        features: Features,
        out: &mut B::Act,
        out_first: usize,
    ) -> Result<()> {
        self.inner.linear(x, rows.clone(), weight, features, out, out_first)?;
        let matrix = B::matrix_of(weight);
        let class = if matrix == Matrix::GateUp { Class::GateUp } else { Class::Qkv };
        self.did(class, |this| {
            let Geometry { hidden, shard, .. } = this.inner.geometry();
            let width = match (matrix, features) {
                (Matrix::GateUp, _) => 2 * shard.ffn_local,
                (_, Features::All) => shard.qkv_width_local(),
                (_, Features::Queries) => shard.q_width_local(),
                (_, Features::KeysAndValues) => 2 * shard.kv_width_local(),
            };
            this.product(rows.len(), (width, *hidden), (0, width))
        })
    }

    fn gate_up(
        &mut self,
        x: &B::Act,
        rows: Range<usize>,
        weight: &B::Weight,
        out: &mut B::Act,
    ) -> Result<()> {
        if !self.inner.gates(weight) {
            self.linear(x, rows.clone(), weight, Features::All, out, 0)?;
            return self.silu_mul(out, rows.len());
        }
        self.inner.gate_up(x, rows.clone(), weight, out)?;
        self.did(Class::GateUp, |this| {
            let Geometry { hidden, shard, .. } = this.inner.geometry();
            this.product(rows.len(), (2 * shard.ffn_local, *hidden), (0, shard.ffn_local))
        })
    }

    fn gates(&self, weight: &B::Weight) -> bool {
        self.inner.gates(weight)
    }

    fn rope(
        &mut self,
        qkv: &mut B::Act,
        metadata: &B::Metadata,
        tokens: Tokens,
        heads: Rotate,
    ) -> Result<()> {
        self.inner.rope(qkv, metadata, tokens, heads)?;
        self.did(Class::Rope, |this| {
            let shard = &this.inner.geometry().shard;
            let width = match heads {
                Rotate::QueriesAndKeys => shard.q_width_local() + shard.kv_width_local(),
                Rotate::Queries => shard.q_width_local(),
                Rotate::Keys => shard.kv_width_local(),
            };
            this.moved(0, 2 * this.positions(metadata, tokens).len() * width)
        })
    }

    fn attention(
        &mut self,
        qkv: &mut B::Act,
        metadata: &B::Metadata,
        tokens: Tokens,
        out: &mut B::Act,
    ) -> Result<()> {
        self.inner.attention(qkv, metadata, tokens, out)?;
        self.did(Class::Attention, |this| {
            let shard = &this.inner.geometry().shard;
            let (queries, q_width) = (this.positions(metadata, tokens), shard.q_width_local());
            let keys: f64 = queries.iter().map(|&position| f64::from(position) + 1.0).sum();
            // Of a part its own keys; the last rows' lie in all parts.
            let key_rows = match tokens {
                Tokens::Part(_) => queries.len(),
                Tokens::Last => B::parts(metadata).last().map_or(0, |part| part.end),
            };
            let numbers = 2 * queries.len() * q_width + 2 * key_rows * shard.kv_width_local();
            Work { flop: 4.0 * q_width as f64 * keys, bytes: this.bytes(0, numbers) }
        })
    }

    fn row_parallel(
        &mut self,
        x: &B::Act,
        x_first: usize,
        weight: &B::Weight,
        rows: Range<usize>,
        residual: &mut B::Act,
    ) -> Result<()> {
        self.inner.row_parallel(x, x_first, weight, rows.clone(), residual)?;
        let matrix = B::matrix_of(weight);
        let class = if matrix == Matrix::O { Class::O } else { Class::Down };
        self.did(class, |this| {
            let Geometry { hidden, shard, .. } = this.inner.geometry();
            let width = if matrix == Matrix::O { shard.q_width_local() } else { shard.ffn_local };
            // One rank adds to what is there.
            let times = if shard.ranks == 1 { 2 } else { 1 };
            this.product(rows.len(), (*hidden, width), (times * hidden, 0))
        })
    }

    fn all_reduce(&mut self, rows: Range<usize>) -> Result<Reduction> {
        let sum = self.inner.all_reduce(rows)?;
        if sum == Reduction::Pending {
            self.did(Class::AllReduce, |_| Work::default())?;
        }
        Ok(sum)
    }

    fn silu_mul(&mut self, gate_up: &mut B::Act, rows: usize) -> Result<()> {
        self.inner.silu_mul(gate_up, rows)?;
        self.did(Class::SiluMul, |this| this.moved(0, 3 * rows * this.inner.geometry().shard.ffn_local))
    }

    fn gather_last(&mut self, x: &B::Act, metadata: &B::Metadata, out: &mut B::Act) -> Result<()> {
        self.inner.gather_last(x, metadata, out)?;
        self.did(Class::GatherRows, |this| {
            // Of the residual stream or its normed form: as if it were the narrower one.
            let rows = this.positions(metadata, Tokens::Last).len();
            this.moved(0, 2 * rows * this.inner.geometry().hidden)
        })
    }

    fn head(&mut self, x: &B::Act, head: &B::Weight, rows: usize) -> Result<Vec<f32>> {
        let logits = self.inner.head(x, head, rows)?;
        self.did(Class::Score, |this| {
            let Geometry { hidden, labels, .. } = *this.inner.geometry();
            Work {
                flop: 2.0 * (rows * labels * hidden) as f64,
                bytes: this.bytes(0, (rows + labels) * hidden),
            }
        })?;
        self.end()?;
        Ok(logits)
    }
}
