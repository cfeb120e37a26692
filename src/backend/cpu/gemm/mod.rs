//! Matrix products with stored weights: `out = x · weightᵀ`, f32 in and out, the weight read where it is mapped.
//!
//! ```text
//! out[m, n] = (out[m, n] or 0) + (sum over k of x[m, k] * weight[n, k]) + bias[n]
//! ```
//!
//! Or, of a weight of gate and up, `out[m, n] = silu(gate[m, n]) * up[m, n]` of these products.
//!
//! The sum over k runs from zero in the order of k, by vector instructions (`vector`) or by a matrix unit (`matrix`), and is
//! added to `out` at the end. So an element's bits depend on its own row of x and row of the weight alone: not on m, nor on
//! how n is cut into pieces, nor on the number of threads.
//!
//! A block of the output, some hundred rows, belongs to one worker. It packs a piece of the weight into its scratch and
//! multiplies all its rows of x with it before it goes on to the next piece: no second copy of a weight exists anywhere.

use std::ops::Range;

use super::CpuMath;
use super::matrix_unit::MatrixUnit;
use super::simd::{Bf16Isa, Isa};
use super::threads::{Scratch, Threads};
use super::tile::Ahead;
use super::view::{Rows, RowsMut, SharedRows, WeightView};
use crate::weights::Dtype;

pub use super::tile::Store;

mod matrix;
#[cfg(test)]
mod tests;
mod vector;

/// How products are computed, and attention with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Math {
    /// f32 products of x with the weight as stored, by vector instructions.
    F32,
    /// The same by a matrix unit, where the weight is stored as bfloat16; where it is not, by vector instructions. Attention is
    /// by the matrix unit always, both operands in three parts.
    F32Tiles(MatrixUnit),
    /// x and the weight rounded to bfloat16, products exact, sums in f32: faster, and some 100 times less exact. Attention is
    /// in f32 all the same.
    Bf16(Bf16Isa),
    /// The same by a matrix unit, for attention too: queries, keys, values and probabilities are rounded to bfloat16.
    Bf16Tiles(MatrixUnit),
}

impl Math {
    /// Whether products with a weight stored as `weight` can end with [`Store::Gate`].
    pub fn gates(self, weight: Dtype) -> bool {
        matches!(Way::of(self, weight), Way::Tiles { .. })
    }

    /// What comes closest to the arithmetic that is wanted.
    pub fn of(isa: Isa, wanted: CpuMath) -> Self {
        match wanted {
            CpuMath::F32 => Self::f32(isa),
            CpuMath::F32Vector => Self::F32,
            CpuMath::Bf16 => Self::bf16(isa).unwrap_or_else(|| Self::f32(isa)),
        }
    }

    /// The fastest way to f32 products.
    fn f32(isa: Isa) -> Self {
        isa.matrix_unit().map_or(Self::F32, Self::F32Tiles)
    }

    /// The fastest way to products of bfloat16 values; none where f32 products are as fast.
    pub fn bf16(isa: Isa) -> Option<Self> {
        let vectors = || isa.bf16().filter(|bf16| bf16.is_faster()).map(Self::Bf16);
        isa.matrix_unit().map(Self::Bf16Tiles).or_else(vectors)
    }

    /// The instructions as printed, beside those of `isa`: `avx512`, `avx512+amx`, `avx512-bf16`.
    pub fn instructions(self, isa: Isa) -> String {
        match self {
            Self::F32 => isa.name().to_owned(),
            Self::Bf16(bf16) => bf16.name().to_owned(),
            Self::F32Tiles(unit) | Self::Bf16Tiles(unit) => format!("{}+{}", isa.name(), unit.name()),
        }
    }
}

/// The operands of a matrix product.
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    /// `[m, k]`.
    pub x: Rows<'a>,
    /// `[n, k]`.
    pub weight: WeightView<'a>,
    /// `[n]`, or none.
    pub bias: Option<&'a [f32]>,
    /// Whether the product replaces `out` or is added to it.
    pub store: Store,
    /// How products are computed.
    pub math: Math,
}

/// Computes `gemm` into `out`, `[m, n]`, or `[m, n / 2]` with [`Store::Gate`]. See the module for the formula and its order.
///
/// # Panics
///
/// When the shapes do not fit together, or for a gate that the arithmetic has not ([`Math::gates`]).
pub fn gemm(isa: Isa, threads: &Threads, gemm: &Gemm, mut out: RowsMut) {
    let (m, n) = (gemm.x.rows(), gemm.weight.rows());
    assert_eq!(gemm.x.width(), gemm.weight.cols(), "the inner dimensions of x and the weight differ");
    let out_width = if gemm.store == Store::Gate { n / 2 } else { n };
    assert_eq!((out.rows(), out.width()), (m, out_width), "the output has another shape than the product");
    if gemm.store == Store::Gate {
        assert!(gemm.math.gates(gemm.weight.dtype()), "vector instructions do not gate");
        assert!(n.is_multiple_of(2), "{n} rows are not as many of gate as of up");
    }
    assert!(gemm.bias.is_none_or(|bias| bias.len() == n), "the bias has another width than the product");
    if m == 0 || n == 0 {
        return;
    }
    let way = Way::of(gemm.math, gemm.weight.dtype());
    let (block_rows, block_columns) = way.limits(isa, gemm.weight.cols()).block_shape(m, n, threads.count());
    let column_blocks = n.div_ceil(block_columns);
    let out = out.share();
    threads.for_each_item(column_blocks * m.div_ceil(block_rows), |item, scratch| {
        let (row, column) = (item / column_blocks * block_rows, item % column_blocks * block_columns);
        let rows = row..m.min(row + block_rows);
        let block = Block { gemm, out, rows, columns: column..n.min(column + block_columns), scratch };
        match way {
            Way::F32 => isa.run(block),
            Way::Bf16(bf16) => bf16.run(block),
            Way::Tiles { unit, parts: 1 } => unit.vectors().run(matrix::Tiles::<1> { block, unit }),
            Way::Tiles { unit, .. } => unit.vectors().run(matrix::Tiles::<3> { block, unit }),
        }
    });
}

/// Floats of scratch that each worker needs at most.
pub fn scratch_floats(isa: Isa, math: Math) -> usize {
    let ways = [Dtype::BF16, Dtype::F32].map(|dtype| Way::of(math, dtype));
    let floats = |way| match way {
        Way::F32 => vector::scratch_floats(isa.shape(), false),
        Way::Bf16(_) => vector::scratch_floats(isa.shape(), true),
        Way::Tiles { parts, .. } => matrix::scratch_floats(parts),
    };
    ways.into_iter().map(floats).max().unwrap_or(0)
}

/// What [`Math`] comes to for a weight.
#[derive(Clone, Copy)]
enum Way {
    F32,
    Bf16(Bf16Isa),
    /// x in so many bfloat16 parts.
    Tiles {
        unit: MatrixUnit,
        parts: usize,
    },
}

impl Way {
    fn of(math: Math, weight: Dtype) -> Self {
        match (math, weight) {
            (Math::F32Tiles(unit), Dtype::BF16) => Self::Tiles { unit, parts: 3 },
            (Math::F32 | Math::F32Tiles(_), _) => Self::F32,
            (Math::Bf16(bf16), _) => Self::Bf16(bf16),
            (Math::Bf16Tiles(unit), _) => Self::Tiles { unit, parts: 1 },
        }
    }

    fn limits(self, isa: Isa, k: usize) -> Limits {
        match self {
            Self::F32 | Self::Bf16(_) => vector::limits(isa.shape()),
            Self::Tiles { parts, .. } => matrix::limits(parts, k),
        }
    }
}

/// What the size of a block may be.
struct Limits {
    /// A weight is packed again for every so many rows.
    rows_max: usize,
    /// Below which more blocks would cost more packing than they gain in balance.
    rows_min: usize,
    columns_max: usize,
    /// What bringing a value of x into shape costs, once for each block of columns: so many times what it costs for a value of
    /// the weight, once for each block of rows.
    x_cost: usize,
    /// Columns come in multiples of this.
    panel: usize,
    /// Blocks wanted for each of several workers, for balance.
    blocks: usize,
}

impl Limits {
    /// Rows and columns of the blocks that `[m, n]` is cut into: a few blocks for each worker where there are so many, and of
    /// the ways to cut those the one that costs least.
    fn block_shape(&self, m: usize, n: usize, threads: usize) -> (usize, usize) {
        let wanted = if threads == 1 { 1 } else { self.blocks * threads };
        let cut = |row_blocks: usize| {
            let rows = m.div_ceil(row_blocks).clamp(self.rows_min, self.rows_max);
            let column_blocks = wanted.div_ceil(m.div_ceil(rows));
            (rows, n.div_ceil(column_blocks).next_multiple_of(self.panel).min(self.columns_max))
        };
        let least = m.div_ceil(self.rows_max);
        let cuts = (least..=least.max(wanted)).map(cut);
        let best = cuts.min_by_key(|&(rows, columns)| {
            let (row_blocks, column_blocks) = (m.div_ceil(rows), n.div_ceil(columns));
            let missing = wanted.saturating_sub(row_blocks * column_blocks);
            (missing, self.x_cost * m * column_blocks + n * row_blocks)
        });
        best.expect("at least one way")
    }
}

/// One worker's block of the output.
struct Block<'a, 'b> {
    gemm: &'a Gemm<'a>,
    out: SharedRows<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    scratch: &'b mut Scratch,
}

/// Values of k in a round: as few rounds as blocks of `most` allow, all about equally long, in whole `squares`.
fn round_of(k: usize, most: usize, square: usize) -> usize {
    let rounds = k.div_ceil(most).max(1);
    k.div_ceil(rounds).max(1).next_multiple_of(square)
}

/// Rows `row..row + rows`, columns `col..col + values` of x or of a weight.
#[derive(Clone, Copy)]
struct Piece {
    row: usize,
    rows: usize,
    col: usize,
    values: usize,
}

impl WeightView<'_> {
    /// A piece to be fetched while `tiles` tiles are computed, of steps of `values` values.
    fn ahead(&self, piece: Piece, values: usize, tiles: usize) -> Ahead {
        Ahead {
            first: self.element(piece.row, piece.col),
            row_bytes: self.row_stride() * self.dtype().size(),
            rows: piece.rows,
            rows_per_tile: piece.rows.div_ceil(tiles),
            step_bytes: values * self.dtype().size(),
        }
    }
}
