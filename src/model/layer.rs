//! One decoder layer.
//!
//! ```text
//! x += o(attention(rope(qkv(norm(x)))))        x += down(f(gate(norm(x))) * up(norm(x)))
//! ```
//!
//! Some models norm each head of q and k before it is rotated, and some the two outputs before they
//! are added.
//!
//! With several ranks the two outputs are not added to the residual stream `x` at once: they are
//! all-reduced while other rows are computed, and the next norm adds them. So a pass runs attention
//! for one part of its rows after the other, then the MLP. The output of the last layer's MLP is
//! normed with the weight of its own layer, by the first norm of the next.

use std::ops::Range;

use crate::backend::{Backend, Features, LayerWeights, Reduction, Rotate, Tokens};
use crate::batch::Packed;
use crate::error::Result;

/// The residual stream of some rows, and its normed form, which linear layers read.
#[derive(Debug)]
pub struct Activations<A> {
    /// `[rows, hidden]`
    pub residual: A,
    /// `[rows, max(hidden, q_width)]`: a norm's output, or attention's.
    pub normed: A,
}

/// The output of a branch that the next norm adds to the residual stream.
#[derive(Debug)]
pub struct Branch<'a, W> {
    /// The state of its all-reduce.
    pub reduction: Reduction,
    /// Its norm, in models that have one.
    pub norm: Option<&'a W>,
}

impl<'a, P> Pass<'a, P> {
    /// The arguments of a pass over a batch; its layers set their window.
    pub fn new(packed: &Packed, parts: &'a [Range<usize>], metadata: &'a P, mlp_tokens: usize) -> Self {
        Self { metadata, parts, sequences: packed.last.len(), mlp_tokens, window: None }
    }
}

impl<W> Clone for Branch<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Branch<'_, W> {}

/// The arguments that all layers of one pass share, but for the window.
pub struct Pass<'a, P> {
    /// Positions, spans and last rows on the device.
    pub metadata: &'a P,
    /// The packed rows, cut into consecutive parts.
    pub parts: &'a [Range<usize>],
    /// Rows in which sequences end.
    pub sequences: usize,
    /// Rows that go through the MLP at a time.
    pub mlp_tokens: usize,
    /// The keys that a query of the present layer sees, its own included; `None` for all.
    pub window: Option<usize>,
}

/// Runs a layer other than the last, for every row.
pub fn forward<B: Backend>(
    backend: &mut B,
    weights: &LayerWeights<B::Weight>,
    pass: &Pass<'_, B::Metadata>,
    before: Branch<'_, B::Weight>,
    x: &mut Activations<B::Act>,
    scratch: &mut B::Act,
) -> Result<Reduction> {
    let (mut reduction, norms) = (before.reduction, weights.head_norms.as_ref());
    for (index, rows) in pass.parts.iter().enumerate() {
        let (first, part) = (rows.start, Tokens::Part(index));
        add_rms_norm(backend, before, &weights.input_norm, rows.clone(), x)?;
        backend.linear(&x.normed, rows.clone(), &weights.qkv, Features::All, scratch, first)?;
        backend.rope(scratch, pass.metadata, part, Rotate::QueriesAndKeys, norms)?;
        backend.attention(scratch, pass.metadata, part, pass.window, &mut x.normed)?;
        backend.row_parallel(&x.normed, first, &weights.o, rows.clone(), &mut x.residual)?;
        reduction = backend.all_reduce(rows.clone(), &mut x.residual)?;
    }
    let after_attention = Branch { reduction, norm: weights.attention_branch_norm.as_ref() };
    for rows in pass.parts {
        reduction = mlp(backend, weights, pass, after_attention, rows.clone(), x, scratch)?;
    }
    Ok(reduction)
}

/// Runs the last layer: keys and values for every row, and the rest for the rows in which sequences
/// end.
pub fn forward_last<B: Backend>(
    backend: &mut B,
    weights: &LayerWeights<B::Weight>,
    pass: &Pass<'_, B::Metadata>,
    before: Branch<'_, B::Weight>,
    x: &mut Activations<B::Act>,
    last: &mut Activations<B::Act>,
    scratch: &mut B::Act,
) -> Result<Reduction> {
    let norms = weights.head_norms.as_ref();
    for (index, rows) in pass.parts.iter().enumerate() {
        add_rms_norm(backend, before, &weights.input_norm, rows.clone(), x)?;
        backend.linear(
            &x.normed,
            rows.clone(),
            &weights.qkv,
            Features::KeysAndValues,
            scratch,
            rows.start,
        )?;
        backend.rope(scratch, pass.metadata, Tokens::Part(index), Rotate::Keys, norms)?;
    }
    backend.gather_last(&x.residual, pass.metadata, &mut last.residual)?;
    backend.gather_last(&x.normed, pass.metadata, &mut last.normed)?;
    // The queries of the last rows go into the first rows, whose queries are not computed.
    let rows = 0..pass.sequences;
    backend.linear(&last.normed, rows.clone(), &weights.qkv, Features::Queries, scratch, 0)?;
    backend.rope(scratch, pass.metadata, Tokens::Last, Rotate::Queries, norms)?;
    backend.attention(scratch, pass.metadata, Tokens::Last, pass.window, &mut last.normed)?;
    backend.row_parallel(&last.normed, 0, &weights.o, rows.clone(), &mut last.residual)?;
    let reduction = backend.all_reduce(rows.clone(), &mut last.residual)?;
    let after_attention = Branch { reduction, norm: weights.attention_branch_norm.as_ref() };
    mlp(backend, weights, pass, after_attention, rows, last, scratch)
}

/// Runs the layer from the all-reduce of `o` to its end, for rows `rows`.
fn mlp<B: Backend>(
    backend: &mut B,
    weights: &LayerWeights<B::Weight>,
    pass: &Pass<'_, B::Metadata>,
    before: Branch<'_, B::Weight>,
    rows: Range<usize>,
    x: &mut Activations<B::Act>,
    scratch: &mut B::Act,
) -> Result<Reduction> {
    add_rms_norm(backend, before, &weights.mlp_norm, rows.clone(), x)?;
    for start in rows.clone().step_by(pass.mlp_tokens) {
        let chunk = start..(start + pass.mlp_tokens).min(rows.end);
        backend.gate_up(&x.normed, chunk.clone(), &weights.gate_up, scratch)?;
        backend.row_parallel(scratch, 0, &weights.down, chunk, &mut x.residual)?;
    }
    backend.all_reduce(rows, &mut x.residual)
}

/// Adds a branch to the residual stream of rows `rows`, and norms it.
pub fn add_rms_norm<B: Backend>(
    backend: &mut B,
    Branch { reduction, norm }: Branch<'_, B::Weight>,
    weight: &B::Weight,
    rows: Range<usize>,
    x: &mut Activations<B::Act>,
) -> Result<()> {
    backend.add_rms_norm(&mut x.residual, reduction, norm, weight, rows, &mut x.normed)
}
