//! One decoder layer of Llama on one page.
//!
//! ```text
//! x += o(attention(rope(qkv(norm(x)))))        x += down(silu(gate(norm(x))) * up(norm(x)))
//! ```
//!
//! With several ranks the two sums are not in the residual stream `x` at once: they are taken over ranks while other rows
//! compute, and the norm that comes next adds them. So a pass goes through attention part by part of its rows, and
//! then through the MLP.

use std::ops::Range;

use crate::backend::{Backend, Features, LayerWeights, Rotate, Sum, Tokens};
use crate::error::Result;

/// The residual stream of some rows, and its normed form that linear layers read.
#[derive(Debug)]
pub struct Stream<A> {
    /// `[rows, hidden]`
    pub residual: A,
    /// `[rows, max(hidden, q_width)]`: a norm's output, or attention's.
    pub normed: A,
}

/// What the layers of one pass have in common.
pub struct Pass<'a, P> {
    /// Positions, spans and last rows on the device.
    pub plan: &'a P,
    /// The packed rows, in parts that follow each other.
    pub parts: &'a [Range<usize>],
    /// Rows in which sequences end.
    pub sequences: usize,
    /// Rows that go through the MLP at a time.
    pub mlp_tokens: usize,
}

/// A layer that is not the last: every row goes through all of it.
pub fn forward<B: Backend>(
    backend: &mut B,
    weights: &LayerWeights<B::Weight>,
    pass: &Pass<'_, B::Plan>,
    before: Sum,
    x: &mut Stream<B::Act>,
    wide: &mut B::Act,
) -> Result<Sum> {
    let mut sum = before;
    for (index, rows) in pass.parts.iter().enumerate() {
        let (first, part) = (rows.start, Tokens::Part(index));
        backend.add_rms_norm(&mut x.residual, before, &weights.input_norm, rows.clone(), &mut x.normed)?;
        backend.linear(&x.normed, rows.clone(), &weights.qkv, Features::All, wide, first)?;
        backend.rope(wide, pass.plan, part, Rotate::QueriesAndKeys)?;
        backend.attention(wide, pass.plan, part, &mut x.normed)?;
        backend.row_parallel(&x.normed, first, &weights.o, rows.clone(), &mut x.residual)?;
        sum = backend.sum(rows.clone())?;
    }
    let after_attention = sum;
    for rows in pass.parts {
        sum = mlp(backend, weights, pass, after_attention, rows.clone(), x, wide)?;
    }
    Ok(sum)
}

/// The last layer: every row gives keys and values, but only the rows in which sequences end go on from there.
pub fn forward_last<B: Backend>(
    backend: &mut B,
    weights: &LayerWeights<B::Weight>,
    pass: &Pass<'_, B::Plan>,
    before: Sum,
    x: &mut Stream<B::Act>,
    last: &mut Stream<B::Act>,
    wide: &mut B::Act,
) -> Result<Sum> {
    for (index, rows) in pass.parts.iter().enumerate() {
        backend.add_rms_norm(&mut x.residual, before, &weights.input_norm, rows.clone(), &mut x.normed)?;
        backend.linear(&x.normed, rows.clone(), &weights.qkv, Features::KeysAndValues, wide, rows.start)?;
        backend.rope(wide, pass.plan, Tokens::Part(index), Rotate::Keys)?;
    }
    backend.gather_last(&x.residual, pass.plan, &mut last.residual)?;
    backend.gather_last(&x.normed, pass.plan, &mut last.normed)?;
    // The queries of the last rows take the first rows' empty places beside the keys.
    let rows = 0..pass.sequences;
    backend.linear(&last.normed, rows.clone(), &weights.qkv, Features::Queries, wide, 0)?;
    backend.rope(wide, pass.plan, Tokens::Last, Rotate::Queries)?;
    backend.attention(wide, pass.plan, Tokens::Last, &mut last.normed)?;
    backend.row_parallel(&last.normed, 0, &weights.o, rows.clone(), &mut last.residual)?;
    let sum = backend.sum(rows.clone())?;
    mlp(backend, weights, pass, sum, rows, last, wide)
}

/// From o's sum over ranks to the end of the layer, for rows `rows`.
fn mlp<B: Backend>(
    backend: &mut B,
    weights: &LayerWeights<B::Weight>,
    pass: &Pass<'_, B::Plan>,
    before: Sum,
    rows: Range<usize>,
    x: &mut Stream<B::Act>,
    wide: &mut B::Act,
) -> Result<Sum> {
    backend.add_rms_norm(&mut x.residual, before, &weights.mlp_norm, rows.clone(), &mut x.normed)?;
    for start in rows.clone().step_by(pass.mlp_tokens) {
        let chunk = start..(start + pass.mlp_tokens).min(rows.end);
        backend.gate_up(&x.normed, chunk.clone(), &weights.gate_up, wide)?;
        backend.row_parallel(wide, 0, &weights.down, chunk, &mut x.residual)?;
    }
    backend.sum(rows)
}
