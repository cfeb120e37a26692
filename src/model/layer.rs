//! One decoder layer.
//!
//! ```text
//! x += o(attention(rope(qkv(norm(x)))))        x += down(silu(gate(norm(x))) * up(norm(x)))
//! ```
//!
//! Some models norm each head of q and k before it is rotated.
//!
//! With several ranks the two outputs are not added to the residual stream `x` at once: they are
//! all-reduced while other rows are computed, and the next norm adds them. So a pass runs attention
//! for one part of its rows after the other, then the MLP.

use std::ops::Range;

use crate::backend::{Backend, Features, LayerWeights, Reduction, Rotate, Tokens};
use crate::error::Result;

/// The residual stream of some rows, and its normed form, which linear layers read.
#[derive(Debug)]
pub struct Activations<A> {
    /// `[rows, hidden]`
    pub residual: A,
    /// `[rows, max(hidden, q_width)]`: a norm's output, or attention's.
    pub normed: A,
}

/// The arguments that all layers of one pass share.
pub struct Pass<'a, P> {
    /// Positions, spans and last rows on the device.
    pub metadata: &'a P,
    /// The packed rows, cut into consecutive parts.
    pub parts: &'a [Range<usize>],
    /// Rows in which sequences end.
    pub sequences: usize,
    /// Rows that go through the MLP at a time.
    pub mlp_tokens: usize,
}

/// Runs a layer other than the last, for every row.
pub fn forward<B: Backend>(
    backend: &mut B,
    weights: &LayerWeights<B::Weight>,
    pass: &Pass<'_, B::Metadata>,
    before: Reduction,
    x: &mut Activations<B::Act>,
    scratch: &mut B::Act,
) -> Result<Reduction> {
    let (mut reduction, norms) = (before, weights.head_norms.as_ref());
    for (index, rows) in pass.parts.iter().enumerate() {
        let (first, part) = (rows.start, Tokens::Part(index));
        backend.add_rms_norm(&mut x.residual, before, &weights.input_norm, rows.clone(), &mut x.normed)?;
        backend.linear(&x.normed, rows.clone(), &weights.qkv, Features::All, scratch, first)?;
        backend.rope(scratch, pass.metadata, part, Rotate::QueriesAndKeys, norms)?;
        backend.attention(scratch, pass.metadata, part, &mut x.normed)?;
        backend.row_parallel(&x.normed, first, &weights.o, rows.clone(), &mut x.residual)?;
        reduction = backend.all_reduce(rows.clone())?;
    }
    let after_attention = reduction;
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
    before: Reduction,
    x: &mut Activations<B::Act>,
    last: &mut Activations<B::Act>,
    scratch: &mut B::Act,
) -> Result<Reduction> {
    let norms = weights.head_norms.as_ref();
    for (index, rows) in pass.parts.iter().enumerate() {
        backend.add_rms_norm(&mut x.residual, before, &weights.input_norm, rows.clone(), &mut x.normed)?;
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
    backend.attention(scratch, pass.metadata, Tokens::Last, &mut last.normed)?;
    backend.row_parallel(&last.normed, 0, &weights.o, rows.clone(), &mut last.residual)?;
    let reduction = backend.all_reduce(rows.clone())?;
    mlp(backend, weights, pass, reduction, rows, last, scratch)
}

/// Runs the layer from the all-reduce of `o` to its end, for rows `rows`.
fn mlp<B: Backend>(
    backend: &mut B,
    weights: &LayerWeights<B::Weight>,
    pass: &Pass<'_, B::Metadata>,
    before: Reduction,
    rows: Range<usize>,
    x: &mut Activations<B::Act>,
    scratch: &mut B::Act,
) -> Result<Reduction> {
    backend.add_rms_norm(&mut x.residual, before, &weights.mlp_norm, rows.clone(), &mut x.normed)?;
    for start in rows.clone().step_by(pass.mlp_tokens) {
        let chunk = start..(start + pass.mlp_tokens).min(rows.end);
        backend.gate_up(&x.normed, chunk.clone(), &weights.gate_up, scratch)?;
        backend.row_parallel(scratch, 0, &weights.down, chunk, &mut x.residual)?;
    }
    backend.all_reduce(rows)
}
