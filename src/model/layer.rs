//! One decoder layer of Llama on one page.
//!
//! ```text
//! x += o(attention(rope(qkv(norm(x)))))        x += down(silu(gate(norm(x))) * up(norm(x)))
//! ```
//!
//! With several ranks the two sums are not in the residual stream `x` at once: they are all-reduced into a buffer
//! that was free (`wide` after o, `normed` after down), and the norm that comes next adds them.

use crate::backend::{Backend, Delta, Features, LayerWeights, Rotate, Sum, Tokens};
use crate::error::Result;

/// The residual stream of some rows, and its normed form that linear layers read.
#[derive(Debug)]
pub struct Stream<A> {
    /// `[rows, hidden]`
    pub residual: A,
    /// `[rows, max(hidden, q_width)]`: a norm's output, attention's output, and a sum that waits for the next norm.
    pub normed: A,
}

/// What the layers of one pass have in common.
pub struct Pass<'a, P> {
    /// Positions, spans and last rows on the device.
    pub plan: &'a P,
    /// Packed rows.
    pub tokens: usize,
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
    input_norm(backend, weights, pass, before, x)?;
    backend.linear(&x.normed, 0..pass.tokens, &weights.qkv, Features::All, wide)?;
    backend.rope(wide, pass.plan, Tokens::All, Rotate::QueriesAndKeys)?;
    backend.attention(wide, pass.plan, Tokens::All, &mut x.normed)?;
    output_and_mlp(backend, weights, pass, pass.tokens, x, wide)
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
    input_norm(backend, weights, pass, before, x)?;
    backend.linear(&x.normed, 0..pass.tokens, &weights.qkv, Features::KeysAndValues, wide)?;
    backend.rope(wide, pass.plan, Tokens::All, Rotate::Keys)?;
    backend.gather_last(&x.residual, pass.plan, &mut last.residual)?;
    backend.gather_last(&x.normed, pass.plan, &mut last.normed)?;
    // The queries of the last rows take the first rows' empty places beside the keys.
    backend.linear(&last.normed, 0..pass.sequences, &weights.qkv, Features::Queries, wide)?;
    backend.rope(wide, pass.plan, Tokens::Last, Rotate::Queries)?;
    backend.attention(wide, pass.plan, Tokens::Last, &mut last.normed)?;
    output_and_mlp(backend, weights, pass, pass.sequences, last, wide)
}

fn input_norm<B: Backend>(
    backend: &mut B,
    weights: &LayerWeights<B::Weight>,
    pass: &Pass<'_, B::Plan>,
    before: Sum,
    x: &mut Stream<B::Act>,
) -> Result<()> {
    let delta = match before {
        Sum::InResidual => Delta::None,
        Sum::Pending => Delta::InOutput,
    };
    backend.add_rms_norm(&mut x.residual, delta, &weights.input_norm, pass.tokens, &mut x.normed)
}

/// From attention's output in `x.normed` to the end of the layer, for rows `0..rows`.
fn output_and_mlp<B: Backend>(
    backend: &mut B,
    weights: &LayerWeights<B::Weight>,
    pass: &Pass<'_, B::Plan>,
    rows: usize,
    x: &mut Stream<B::Act>,
    wide: &mut B::Act,
) -> Result<Sum> {
    let delta = match backend.row_parallel(&x.normed, &weights.o, 0..rows, &mut x.residual, wide)? {
        Sum::InResidual => Delta::None,
        Sum::Pending => Delta::In(&*wide),
    };
    backend.add_rms_norm(&mut x.residual, delta, &weights.post_attention_norm, rows, &mut x.normed)?;
    let mut sum = Sum::InResidual;
    for start in (0..rows).step_by(pass.mlp_tokens) {
        let chunk = start..(start + pass.mlp_tokens).min(rows);
        backend.linear(&x.normed, chunk.clone(), &weights.gate_up, Features::All, wide)?;
        backend.silu_mul(wide, chunk.len())?;
        // The chunk's rows of `normed` were read for the last time: they may hold its sum.
        sum = backend.row_parallel(wide, &weights.down, chunk, &mut x.residual, &mut x.normed)?;
    }
    Ok(sum)
}
