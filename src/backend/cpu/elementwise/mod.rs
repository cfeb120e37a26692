//! The operations between the matmuls: normalisation, rotation, gating. Memory-bound; cut by rows.

use super::gate;
use super::simd::{Isa, Kernel, PartialSums, Vector};
use super::threads::Threads;
use super::view::{Rows, RowsMut, SharedRows};
use crate::config::Gate;

#[cfg(test)]
mod tests;

/// Floats of a chunk at least: below, waking a second worker costs more than it saves.
const CHUNK_FLOATS: usize = 16 * 1024;

/// Rows that are added to the residual stream.
#[derive(Clone, Copy)]
pub struct Delta<'a> {
    /// `[tokens, hidden]`.
    pub rows: Rows<'a>,
    /// `[hidden]`: the weight of their own norm, which comes first, where there is one.
    pub norm: Option<&'a [f32]>,
}

/// `residual += delta;  out[t, :] = residual[t, :] / sqrt(mean(residual[t, :]^2) + eps) * weight`
///
/// residual and delta (or none) `[tokens, hidden]`, residual in/out, out `[tokens, hidden]`, weight
/// `[hidden]`. Where delta has a norm, it is normed in the same way before it is added. The squares
/// are added in f32 as sixteen partial sums and a tree, on every instruction set; a row's bits
/// depend on nothing else. As in Hugging Face's float32 the row is multiplied by the reciprocal root
/// first and by the weight then.
///
/// # Panics
///
/// When the shapes differ.
pub fn add_rms_norm(
    isa: Isa,
    threads: &Threads,
    mut residual: RowsMut,
    delta: Option<Delta>,
    weight: &[f32],
    eps: f32,
    mut out: RowsMut,
) {
    let (tokens, hidden) = (residual.rows(), residual.width());
    assert_eq!((out.rows(), out.width()), (tokens, hidden), "out and residual differ in shape");
    assert_eq!(weight.len(), hidden, "the weight is not as wide as the residual");
    if let Some(delta) = delta {
        let rows = delta.rows;
        assert_eq!((rows.rows(), rows.width()), (tokens, hidden), "delta and residual differ in shape");
        assert!(delta.norm.is_none_or(|norm| norm.len() == hidden), "a norm as wide as delta");
    }
    let (residual, out) = (residual.share(), out.share());
    threads.for_each_chunk(tokens, CHUNK_FLOATS / hidden.max(1), |chunk| {
        for token in chunk {
            isa.run(AddRmsNorm { residual, delta, weight, eps, out, token });
        }
    });
}

struct AddRmsNorm<'a> {
    residual: SharedRows<'a>,
    delta: Option<Delta<'a>>,
    weight: &'a [f32],
    eps: f32,
    out: SharedRows<'a>,
    token: usize,
}

impl Kernel for AddRmsNorm<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let hidden = self.weight.len();
        // SAFETY: chunks do not overlap, so these rows are this worker's alone; residual and out
        // are two exclusive borrows. All rows have `hidden` floats, and i + count <= hidden.
        unsafe {
            let residual = self.residual.part(self.token, 0..hidden).as_mut_ptr();
            let out = self.out.part(self.token, 0..hidden).as_mut_ptr();
            let delta = self.delta.map(|delta| delta.rows.row(self.token).as_ptr());
            let norm = self.delta.and_then(|delta| delta.norm.map(<[f32]>::as_ptr));
            let delta_inverse = match (delta, norm) {
                (Some(delta), Some(_)) => inverse_root::<V>(delta, hidden, self.eps),
                _ => 1.0,
            };
            let mut sums = PartialSums::<V>::zero();
            for i in (0..hidden).step_by(V::LANES) {
                let count = V::LANES.min(hidden - i);
                let mut x = V::load_first(residual.add(i), count);
                if let Some(delta) = delta {
                    let mut d = V::load_first(delta.add(i), count);
                    if let Some(norm) = norm {
                        d = d.mul(V::splat(delta_inverse)).mul(V::load_first(norm.add(i), count));
                    }
                    x = x.add(d);
                    x.store_first(residual.add(i), count);
                }
                let sum = sums.of(i / V::LANES);
                *sum = x.mul_add(x, *sum);
            }
            let inverse = 1.0 / (sums.total() / hidden as f32 + self.eps).sqrt();
            for i in (0..hidden).step_by(V::LANES) {
                let count = V::LANES.min(hidden - i);
                let x = V::load_first(residual.add(i), count).mul(V::splat(inverse));
                x.mul(V::load_first(self.weight.as_ptr().add(i), count)).store_first(out.add(i), count);
            }
        }
    }
}

/// Returns `1 / sqrt(mean(row^2) + eps)`, the squares added as [`add_rms_norm`] says.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `row` is valid for `width` floats.
#[inline(always)]
unsafe fn inverse_root<V: Vector>(row: *const f32, width: usize, eps: f32) -> f32 {
    // SAFETY: the caller's promises; i + count <= width.
    unsafe {
        let mut sums = PartialSums::<V>::zero();
        for i in (0..width).step_by(V::LANES) {
            let x = V::load_first(row.add(i), V::LANES.min(width - i));
            let sum = sums.of(i / V::LANES);
            *sum = x.mul_add(x, *sum);
        }
        1.0 / (sums.total() / width as f32 + eps).sqrt()
    }
}

/// `row[i] = gate(row[i]) * row[ffn + i]`
///
/// rows `[tokens, 2 * ffn]`: gate and up side by side in a row. The result overwrites gate; up
/// stays.
///
/// # Panics
///
/// When the width is odd.
pub fn gate_mul(isa: Isa, threads: &Threads, gate: Gate, mut rows: RowsMut) {
    assert!(rows.width().is_multiple_of(2), "gate and up have different widths in {}", rows.width());
    let (tokens, width) = (rows.rows(), rows.width());
    let rows = rows.share();
    threads.for_each_chunk(tokens, CHUNK_FLOATS / width.max(1), |chunk| {
        for token in chunk {
            isa.run(GateMul { gate, rows, ffn: width / 2, token });
        }
    });
}

struct GateMul<'a> {
    gate: Gate,
    rows: SharedRows<'a>,
    ffn: usize,
    token: usize,
}

impl Kernel for GateMul<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: chunks do not overlap, so the row is this worker's alone; i + count <= ffn, half
        // of the row.
        unsafe {
            let row = self.rows.part(self.token, 0..2 * self.ffn).as_mut_ptr();
            let up = row.add(self.ffn);
            for i in (0..self.ffn).step_by(V::LANES) {
                let count = V::LANES.min(self.ffn - i);
                let (gate, up) = (V::load_first(row.add(i), count), V::load_first(up.add(i), count));
                gate::apply(self.gate, gate, up).store_first(row.add(i), count);
            }
        }
    }
}

/// Cosines and sines by position.
#[derive(Clone, Copy)]
pub struct RopeTable<'a> {
    /// `[positions, head_dim / 2]`.
    pub cos: Rows<'a>,
    /// `[positions, head_dim / 2]`.
    pub sin: Rows<'a>,
}

/// The norms of heads.
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    /// `[head_dim]` each: for query heads and for key heads.
    pub weights: [&'a [f32]; 2],
    /// The first heads of a row, which are query heads.
    pub queries: usize,
    /// Added to the mean of the squares.
    pub eps: f32,
}

/// Norms each head, where there are norms, as [`add_rms_norm`] does a row. Then rotates it in place,
/// halves apart (Hugging Face's `rotate_half`): `a' = a * cos - b * sin`, `b' = b * cos + a * sin`
/// for `a = head[i]`, `b = head[i + head_dim / 2]`.
///
/// The first `heads` heads of every row of `rows` (in rows of `q | k | v` those are the heads of q
/// and k together), row `t` at position `positions[t]`. The head width is twice the table's.
///
/// # Panics
///
/// When a row is narrower than the heads, or the table shorter than a position.
pub fn rope(
    isa: Isa,
    threads: &Threads,
    mut rows: RowsMut,
    heads: usize,
    norms: Option<HeadNorms>,
    table: RopeTable,
    positions: &[u32],
) {
    let half = table.cos.width();
    assert_eq!(table.sin.width(), half, "the tables of cosines and sines differ in width");
    assert_eq!(positions.len(), rows.rows(), "as many positions as rows");
    assert!(heads * 2 * half <= rows.width(), "{heads} heads of {} in a row of {}", 2 * half, rows.width());
    let of_head = |weight: &&[f32]| weight.len() == 2 * half;
    assert!(norms.is_none_or(|norms| norms.weights.iter().all(of_head)), "norms as wide as heads");
    let tokens = rows.rows();
    let rows = rows.share();
    threads.for_each_chunk(tokens, CHUNK_FLOATS / (heads * 2 * half).max(1), |chunk| {
        for token in chunk {
            let position = positions[token] as usize;
            let (cos, sin) = (table.cos.row(position), table.sin.row(position));
            isa.run(Rope { rows, heads, norms, cos, sin, token });
        }
    });
}

struct Rope<'a> {
    rows: SharedRows<'a>,
    heads: usize,
    norms: Option<HeadNorms<'a>>,
    cos: &'a [f32],
    sin: &'a [f32],
    token: usize,
}

impl Kernel for Rope<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let half = self.cos.len();
        // SAFETY: chunks do not overlap, so the row is this worker's alone; a head's halves are
        // `half` floats each inside the part, cos and sin have `half`, and i + count <= half; the
        // weights of norms have `2 * half`, as `rope` has checked, and so has a whole head.
        unsafe {
            let row = self.rows.part(self.token, 0..self.heads * 2 * half).as_mut_ptr();
            for head in 0..self.heads {
                let (a_half, b_half) = (row.add(head * 2 * half), row.add((head * 2 + 1) * half));
                if let Some(HeadNorms { weights, queries, eps }) = self.norms {
                    let (width, weight) = (2 * half, weights[usize::from(head >= queries)].as_ptr());
                    let inverse = inverse_root::<V>(a_half, width, eps);
                    for i in (0..width).step_by(V::LANES) {
                        let count = V::LANES.min(width - i);
                        let x = V::load_first(a_half.add(i), count).mul(V::splat(inverse));
                        x.mul(V::load_first(weight.add(i), count)).store_first(a_half.add(i), count);
                    }
                }
                for i in (0..half).step_by(V::LANES) {
                    let count = V::LANES.min(half - i);
                    let (a, b) = (V::load_first(a_half.add(i), count), V::load_first(b_half.add(i), count));
                    let cos = V::load_first(self.cos.as_ptr().add(i), count);
                    let sin = V::load_first(self.sin.as_ptr().add(i), count);
                    let minus_b = V::splat(0.0).sub(b);
                    minus_b.mul_add(sin, a.mul(cos)).store_first(a_half.add(i), count);
                    a.mul_add(sin, b.mul(cos)).store_first(b_half.add(i), count);
                }
            }
        }
    }
}
