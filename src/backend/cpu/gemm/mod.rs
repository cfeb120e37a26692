//! GEMM with stored weights: `out = x · weightᵀ`, f32 in and out, the weight read where it is
//! mapped.
//!
//! ```text
//! out[m, n] = (out[m, n] or 0) + (sum over k of x[m, k] * weight[n, k]) + bias[n]
//! ```
//!
//! For a weight with gate and up, `out[m, n] = f(gate[m, n]) * up[m, n]` of these two matmuls.
//!
//! The sum over k runs from zero in the order of k, by vector instructions (`vector`) or by a
//! matrix unit (`matrix`), and is added to `out` at the end. So an element's bits depend on its own
//! row of x and row of the weight alone: not on m, nor on how n is cut into blocks, nor on the
//! number of threads.
//!
//! A block of the output, some hundred rows, belongs to one worker. It packs a slice of the weight
//! into its scratch and multiplies all its rows of x with it before it goes on to the next slice:
//! no second copy of a weight exists anywhere.

mod block;
mod few_rows;
mod matrix;
#[cfg(test)]
mod tests;
mod vector;

use super::blocking::Blocking;
use super::simd::Isa;
use super::strips::StripFormat;
use super::threads::Threads;
use crate::weights::Dtype;
use block::{Algorithm, Block, Partition};

pub use super::arithmetic::Math;
pub use super::epilogue::Store;
pub use block::{Gemm, Input, Layout, Output};

/// Computes `gemm` into `out`, `[m, n]`, or `[m, n / 2]` with [`Store::Gated`]. See the module for
/// the formula and its order.
///
/// # Panics
///
/// When the shapes do not fit together, when x is in strips of another format than the arithmetic
/// multiplies, or when the output has another layout than it writes ([`Math::gated`] for a gate,
/// rows for everything else).
pub fn gemm<'o>(isa: Isa, threads: &Threads, gemm: &Gemm, out: impl Into<Output<'o>>) {
    let mut out = out.into();
    let (m, n) = (gemm.x.rows(), gemm.weight.rows());
    assert_eq!(gemm.x.width(), gemm.weight.cols(), "the inner dimensions of x and the weight differ");
    let is_gated = matches!(gemm.store, Store::Gated(_));
    let out_width = if is_gated { n / 2 } else { n };
    assert_eq!(out.shape(), (m, out_width), "the output has another shape than the matmul");
    let layout = if is_gated { gemm.math.gated(isa, gemm.weight.dtype()) } else { Some(Layout::Rows) };
    assert_eq!(Some(out.layout()), layout, "the output has another layout than the matmul writes");
    assert!(!is_gated || n.is_multiple_of(2), "{n} rows are not as many of gate as of up");
    assert!(gemm.bias.is_none_or(|bias| bias.len() == n), "the bias has another width than the matmul");
    if let Input::Strips(strips) = gemm.x {
        let format = gemm.math.strips(isa);
        assert_eq!(Some(strips.format()), format, "x has another format than the arithmetic multiplies");
    }
    if m == 0 || n == 0 {
        return;
    }
    let algorithm = Algorithm::of(gemm.math, gemm.weight.dtype());
    let (block_rows, block_columns) = partition(algorithm, isa, gemm).block_shape(m, n, threads.count());
    let column_blocks = n.div_ceil(block_columns);
    let out = out.share();
    threads.for_each_item(column_blocks * m.div_ceil(block_rows), |item, scratch| {
        let (row, column) = (item / column_blocks * block_rows, item % column_blocks * block_columns);
        let rows = row..m.min(row + block_rows);
        let block = Block { gemm, out, rows, columns: column..n.min(column + block_columns), scratch };
        match algorithm {
            Algorithm::F32 => isa.run(block),
            Algorithm::Bf16(bf16) => bf16.run(block),
            Algorithm::Tiles { unit, terms: 1 } => unit.vectors().run(matrix::Tiles::<1> { block, unit }),
            Algorithm::Tiles { unit, .. } => unit.vectors().run(matrix::Tiles::<3> { block, unit }),
        }
    });
}

/// Floats of scratch that each worker needs at most.
pub fn scratch_floats(isa: Isa, math: Math) -> usize {
    let algorithms = [Dtype::BF16, Dtype::F32].map(|dtype| Algorithm::of(math, dtype));
    let floats = |algorithm| match algorithm {
        Algorithm::F32 => vector::scratch_floats(Blocking::of(isa), StripFormat::of(isa, 1)),
        Algorithm::Bf16(_) => vector::scratch_floats(Blocking::of(isa), StripFormat::of(isa, 2)),
        Algorithm::Tiles { terms, .. } => matrix::scratch_floats(terms),
    };
    algorithms.into_iter().map(floats).max().unwrap_or(0)
}

fn partition(algorithm: Algorithm, isa: Isa, gemm: &Gemm) -> Partition {
    let k = gemm.weight.cols();
    let vector = |elements| vector::partition(Blocking::of(isa), StripFormat::of(isa, elements), &gemm.x, k);
    match algorithm {
        Algorithm::F32 => vector(1),
        Algorithm::Bf16(_) => vector(2),
        Algorithm::Tiles { terms, .. } => matrix::partition(terms, k),
    }
}
