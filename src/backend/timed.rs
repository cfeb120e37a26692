//! [`Timed`]: a backend whose passes are timed op by op while a [`Profile`] is on.
//!
//! It wraps any backend that is a [`Clock`], and records a mark after every op. The time between
//! two marks belongs to the later op: on a GPU also the time for which the GPU waited for it. A
//! pass that is not profiled makes the inner backend's calls and no others, and an engine that is
//! opened without a profile has no `Timed` at all.
//!
//! Marks are recorded here and not in the model, where they would double the lines of
//! [`crate::model::layer`].

use std::ops::Range;

use super::profile::{Class, Cost, Profile};
use super::{Backend, Features, Geometry, LayerWeights, Matrix, Reduction, Role, Rotate, Tokens};
use crate::batch::Packed;
use crate::error::Result;
use crate::weights::{HostTensor, LayerTensors};

/// Bytes of an element in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementBytes {
    /// In the residual stream, and in what is added to it.
    pub residual: usize,
    /// In weights and all other activations.
    pub other: usize,
}

/// A backend whose ops can be timed.
pub trait Clock: Backend {
    /// A point in time after an op.
    type Mark;

    /// Records a mark after everything that was queued so far, all-reduces included. `unused` is a
    /// mark that may be recorded anew.
    fn mark(&mut self, unused: Option<Self::Mark>) -> Result<Self::Mark>;

    /// Seconds from one mark to a later one; waits until the later one is reached.
    fn seconds(&self, from: &Self::Mark, to: &Self::Mark) -> Result<f64>;

    /// The sizes of the model and of this rank's part.
    fn geometry(&self) -> &Geometry;

    /// The sizes of elements where ops read and write the device's memory; `None` where caches hold
    /// them.
    fn element_bytes(&self) -> Option<ElementBytes>;

    /// Which matrix a weight is.
    fn matrix_of(weight: &Self::Weight) -> Matrix;
}

/// A backend and its marks.
pub struct Timed<B: Clock> {
    inner: B,
    profile: Profile,
    /// Positions of the present pass's rows and of its last rows; `None` while it is not profiled.
    positions: Option<(Vec<u32>, Vec<u32>)>,
    /// The beginning of the present pass, then a mark after every op.
    marks: Vec<B::Mark>,
    ops: Vec<(Class, Cost)>,
    unused: Vec<B::Mark>,
}

impl<B: Clock> Timed<B> {
    /// Wraps a backend, whose passes are timed while `profile` is on.
    pub fn new(inner: B, profile: Profile) -> Self {
        Self { inner, profile, positions: None, marks: Vec::new(), ops: Vec::new(), unused: Vec::new() }
    }

    fn begin(&mut self, packed: &Packed) -> Result<()> {
        self.ops.clear();
        self.unused.append(&mut self.marks);
        let last = || packed.last.iter().map(|last| packed.positions[last.row]).collect();
        self.positions = self.profile.is_on().then(|| (packed.positions.clone(), last()));
        if self.positions.is_some() { self.mark() } else { Ok(()) }
    }

    /// Records a mark after `op`; without one, as in passes that are not profiled, does nothing.
    fn did(&mut self, op: Option<(Class, Cost)>) -> Result<()> {
        if op.is_none() {
            return Ok(());
        }
        self.ops.extend(op);
        self.mark()
    }

    fn mark(&mut self) -> Result<()> {
        let mark = self.inner.mark(self.unused.pop())?;
        self.marks.push(mark);
        Ok(())
    }

    /// Ends a pass, and adds its ops to the profile if this is rank 0.
    fn end(&mut self) -> Result<()> {
        let is_counted = self.positions.take().is_some() && self.inner.geometry().shard.rank == 0;
        for (&(class, cost), marks) in self.ops.iter().zip(self.marks.windows(2)).filter(|_| is_counted) {
            self.profile.add(class, self.inner.seconds(&marks[0], &marks[1])?, cost);
        }
        Ok(())
    }

    /// Bytes of these elements of the residual stream and of others.
    fn bytes(&self, residual: usize, other: usize) -> Option<usize> {
        self.inner.element_bytes().map(|bytes| residual * bytes.residual + other * bytes.other)
    }

    /// A matmul of `rows` rows with a matrix `[out_features, in_features]`, which writes these
    /// elements per row.
    fn matmul(
        &self,
        rows: usize,
        (out_features, in_features): (usize, usize),
        (residual, other): (usize, usize),
    ) -> Cost {
        let flop = 2.0 * rows as f64 * (out_features * in_features) as f64;
        let read = (rows + out_features) * in_features;
        Cost { flop, bytes: self.bytes(rows * residual, read + rows * other) }
    }

    /// Bytes alone.
    fn moved(&self, residual: usize, other: usize) -> Cost {
        Cost { flop: 0.0, bytes: self.bytes(residual, other) }
    }

    /// Positions of the rows that an op works on.
    fn positions(&self, metadata: &B::Metadata, tokens: Tokens) -> &[u32] {
        let (all, last) = self.positions.as_ref().expect("the pass is profiled");
        match tokens {
            Tokens::Part(index) => &all[B::parts(metadata)[index].clone()],
            Tokens::Last => last,
        }
    }

    fn linear_op(&self, weight: &B::Weight, rows: usize, features: Features) -> (Class, Cost) {
        let Geometry { hidden, shard, .. } = self.inner.geometry();
        let (class, width) = match (B::matrix_of(weight), features) {
            (Matrix::GateUp, _) => (Class::GateUp, 2 * shard.ffn_local),
            (_, Features::All) => (Class::Qkv, shard.qkv_width_local()),
            (_, Features::Queries) => (Class::Qkv, shard.q_width_local()),
            (_, Features::KeysAndValues) => (Class::Qkv, 2 * shard.kv_width_local()),
        };
        (class, self.matmul(rows, (width, *hidden), (0, width)))
    }

    fn row_parallel_op(&self, weight: &B::Weight, rows: usize) -> (Class, Cost) {
        let Geometry { hidden, shard, .. } = self.inner.geometry();
        let (class, width) = match B::matrix_of(weight) {
            Matrix::O => (Class::O, shard.q_width_local()),
            _ => (Class::Down, shard.ffn_local),
        };
        // Where the residual stream is added to, it is read, too.
        let times = if self.inner.geometry().adds_at_once() { 2 } else { 1 };
        (class, self.matmul(rows, (*hidden, width), (times * hidden, 0)))
    }

    fn rope_cost(&self, metadata: &B::Metadata, tokens: Tokens, heads: Rotate) -> Cost {
        let shard = &self.inner.geometry().shard;
        let width = match heads {
            Rotate::QueriesAndKeys => shard.q_width_local() + shard.kv_width_local(),
            Rotate::Queries => shard.q_width_local(),
            Rotate::Keys => shard.kv_width_local(),
        };
        self.moved(0, 2 * self.positions(metadata, tokens).len() * width)
    }

    fn attention_cost(&self, metadata: &B::Metadata, tokens: Tokens, window: Option<usize>) -> Cost {
        let shard = &self.inner.geometry().shard;
        let (queries, q_width) = (self.positions(metadata, tokens), shard.q_width_local());
        let window = window.unwrap_or(usize::MAX);
        let keys: f64 = queries.iter().map(|&position| (position as usize + 1).min(window) as f64).sum();
        // A part reads its own keys; the last rows read those of all parts.
        let key_rows = match tokens {
            Tokens::Part(_) => queries.len(),
            Tokens::Last => B::parts(metadata).last().map_or(0, |part| part.end),
        };
        let elements = 2 * queries.len() * q_width + 2 * key_rows * shard.kv_width_local();
        Cost { flop: 4.0 * q_width as f64 * keys, bytes: self.bytes(0, elements) }
    }

    fn head_cost(&self, rows: usize) -> Cost {
        let Geometry { hidden, labels, .. } = *self.inner.geometry();
        Cost { flop: 2.0 * (rows * labels * hidden) as f64, bytes: self.bytes(0, (rows + labels) * hidden) }
    }
}

/// Methods that call the inner backend. A class and a cost behind `=>` make one an op, after which
/// a mark is recorded; both are computed before the call takes the arguments, and only while the
/// pass is profiled.
macro_rules! forward {
    ($(fn $name:ident(&mut $self:ident $(, $arg:ident: $type:ty)*) -> $out:ty $(=> $op:expr)?;)*) => {$(
        fn $name(&mut $self $(, $arg: $type)*) -> $out {
            let op = None::<(Class, Cost)>$(.or($self.positions.is_some().then(|| $op)))?;
            let done = $self.inner.$name($($arg),*)?;
            $self.did(op)?;
            Ok(done)
        }
    )*};
}

impl<B: Clock> Backend for Timed<B> {
    type Act = B::Act;
    type Weight = B::Weight;
    type Metadata = B::Metadata;
    type Slot = B::Slot;

    forward! {
        fn connect(&mut self) -> Result<()>;
        fn activation(&mut self, role: Role, rows: usize) -> Result<B::Act>;
        fn matrix(
            &mut self, matrix: Matrix, pieces: &[HostTensor], bias: Option<&[HostTensor]>
        ) -> Result<B::Weight>;
        fn vector(&mut self, tensor: &HostTensor) -> Result<B::Weight>;
        fn slot(&mut self, like: &LayerTensors) -> Result<B::Slot>;
        fn check(&mut self, layer: &LayerTensors) -> Result<()>;
        fn finish_loads(&mut self) -> Result<()>;
        fn stage(&mut self, slot: &mut B::Slot, layer: &LayerTensors) -> Result<()>;
        fn embed(&mut self, table: &HostTensor, packed: &Packed, residual: &mut B::Act) -> Result<()>
            => (Class::Embeddings, Cost::default());
        fn add_rms_norm(
            &mut self, residual: &mut B::Act, before: Reduction, branch_norm: Option<&B::Weight>,
            weight: &B::Weight, rows: Range<usize>, out: &mut B::Act
        ) -> Result<()> => {
            let (hidden, rows) = (self.inner.geometry().hidden, rows.len());
            let streams = if before == Reduction::Pending { 3 } else { 1 };
            let weights = 1 + usize::from(branch_norm.is_some());
            (Class::AddRmsNorm, self.moved(streams * rows * hidden, (rows + weights) * hidden))
        };
        fn linear(
            &mut self, x: &B::Act, rows: Range<usize>, weight: &B::Weight, features: Features,
            out: &mut B::Act, out_first: usize
        ) -> Result<()> => self.linear_op(weight, rows.len(), features);
        fn rope(
            &mut self, qkv: &mut B::Act, metadata: &B::Metadata, tokens: Tokens, heads: Rotate,
            norms: Option<&[B::Weight; 2]>
        ) -> Result<()> => (Class::Rope, self.rope_cost(metadata, tokens, heads));
        fn attention(
            &mut self, qkv: &mut B::Act, metadata: &B::Metadata, tokens: Tokens, window: Option<usize>,
            out: &mut B::Act
        ) -> Result<()> => (Class::Attention, self.attention_cost(metadata, tokens, window));
        fn row_parallel(
            &mut self, x: &B::Act, x_first: usize, weight: &B::Weight, rows: Range<usize>,
            residual: &mut B::Act
        ) -> Result<()> => self.row_parallel_op(weight, rows.len());
        fn gate_mul(&mut self, gate_up: &mut B::Act, rows: usize) -> Result<()>
            => (Class::GateMul, self.moved(0, 3 * rows * self.inner.geometry().shard.ffn_local));
        fn gather_last(&mut self, x: &B::Act, metadata: &B::Metadata, out: &mut B::Act) -> Result<()> => {
            // The residual stream or its normed form, counted as the narrower one.
            let rows = self.positions(metadata, Tokens::Last).len();
            (Class::GatherRows, self.moved(0, 2 * rows * self.inner.geometry().hidden))
        };
    }

    fn warnings(&self) -> Vec<String> {
        self.inner.warnings()
    }

    fn parts(metadata: &B::Metadata) -> &[Range<usize>] {
        B::parts(metadata)
    }

    fn gates(&self, weight: &B::Weight) -> bool {
        self.inner.gates(weight)
    }

    fn await_slot<'a>(&mut self, slot: &'a mut B::Slot) -> Result<&'a LayerWeights<B::Weight>> {
        let weights = self.inner.await_slot(slot)?;
        self.did(self.positions.is_some().then_some((Class::StreamedLayers, Cost::default())))?;
        Ok(weights)
    }

    fn metadata(&mut self, packed: &Packed) -> Result<B::Metadata> {
        self.begin(packed)?;
        let metadata = self.inner.metadata(packed)?;
        self.did(self.positions.is_some().then_some((Class::Tables, Cost::default())))?;
        Ok(metadata)
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
            return self.gate_mul(out, rows.len());
        }
        let op = self.positions.is_some().then(|| {
            let Geometry { hidden, shard, .. } = self.inner.geometry();
            let ffn = shard.ffn_local;
            (Class::GateUp, self.matmul(rows.len(), (2 * ffn, *hidden), (0, ffn)))
        });
        self.inner.gate_up(x, rows, weight, out)?;
        self.did(op)
    }

    fn all_reduce(&mut self, rows: Range<usize>, residual: &mut B::Act) -> Result<Reduction> {
        let reduction = self.inner.all_reduce(rows, residual)?;
        let is_reduced = reduction == Reduction::Pending && self.inner.geometry().shard.ranks > 1;
        let is_op = self.positions.is_some() && is_reduced;
        self.did(is_op.then_some((Class::AllReduce, Cost::default())))?;
        Ok(reduction)
    }

    fn is_asynchronous(&self) -> bool {
        self.inner.is_asynchronous()
    }

    /// Ops of the next pass would be among those of a pass that is profiled: it does not begin.
    fn prefetch_embeddings(&mut self, table: &HostTensor, packed: &Packed) -> Result<bool> {
        Ok(self.inner.prefetch_embeddings(table, packed)? && self.positions.is_none())
    }

    fn layers_begun(&self) -> usize {
        self.inner.layers_begun()
    }

    fn finish(&mut self) -> Result<()> {
        self.inner.finish()
    }

    fn head(&mut self, x: &B::Act, head: &B::Weight, rows: usize) -> Result<()> {
        let op = self.positions.is_some().then(|| (Class::Score, self.head_cost(rows)));
        self.inner.head(x, head, rows)?;
        self.did(op)
    }

    fn logits(&mut self) -> Result<Vec<f32>> {
        let logits = self.inner.logits()?;
        self.end()?;
        Ok(logits)
    }
}
