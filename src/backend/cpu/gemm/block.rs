//! What both algorithms of a GEMM share: its operands, and how the output is cut into blocks of one worker each.

use std::ops::Range;

use super::super::arithmetic::Math;
use super::super::simd::{Bf16Isa, MatrixUnit};
use super::super::threads::Scratch;
use super::super::tile::{Ahead, Store};
use super::super::view::{Rows, SharedRows, WeightView};
use crate::weights::Dtype;

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

impl Math {
    /// Returns whether a GEMM with a weight stored as `weight` can end with [`Store::Gate`].
    pub fn gates(self, weight: Dtype) -> bool {
        matches!(Algorithm::of(self, weight), Algorithm::Tiles { .. })
    }
}

/// The algorithm of a GEMM in some [`Math`], with a weight of one format.
#[derive(Clone, Copy)]
pub(super) enum Algorithm {
    F32,
    Bf16(Bf16Isa),
    /// x in so many bfloat16 terms.
    Tiles {
        unit: MatrixUnit,
        terms: usize,
    },
}

impl Algorithm {
    pub(super) fn of(math: Math, weight: Dtype) -> Self {
        match (math, weight) {
            (Math::F32Tiles(unit), Dtype::BF16) => Self::Tiles { unit, terms: 3 },
            (Math::F32 | Math::F32Tiles(_), _) => Self::F32,
            (Math::Bf16(bf16), _) => Self::Bf16(bf16),
            (Math::Bf16Tiles(unit), _) => Self::Tiles { unit, terms: 1 },
        }
    }
}

/// What the size of a block may be.
pub(super) struct Limits {
    /// A weight is packed again for every so many rows.
    pub(super) rows_max: usize,
    /// Below which more blocks would cost more packing than they gain in balance.
    pub(super) rows_min: usize,
    pub(super) columns_max: usize,
    /// What bringing a value of x into shape costs, once for each block of columns: so many times what it costs for a value of
    /// the weight, once for each block of rows.
    pub(super) x_cost: usize,
    /// Columns come in multiples of this.
    pub(super) panel: usize,
    /// Blocks wanted for each of several workers, for balance.
    pub(super) blocks: usize,
}

impl Limits {
    /// Rows and columns of the blocks that `[m, n]` is cut into: a few blocks for each worker where there are so many, and of
    /// the ways to cut those the one that costs least.
    pub(super) fn block_shape(&self, m: usize, n: usize, threads: usize) -> (usize, usize) {
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
pub(super) struct Block<'a, 'b> {
    pub(super) gemm: &'a Gemm<'a>,
    pub(super) out: SharedRows<'a>,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    pub(super) scratch: &'b mut Scratch,
}

/// Values of k in a round: as few rounds as blocks of `most` allow, all about equally long, in whole `squares`.
pub(super) fn round_of(k: usize, most: usize, square: usize) -> usize {
    let rounds = k.div_ceil(most).max(1);
    k.div_ceil(rounds).max(1).next_multiple_of(square)
}

/// Rows `row..row + rows`, columns `col..col + values` of x or of a weight.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) col: usize,
    pub(super) values: usize,
}

impl WeightView<'_> {
    /// A piece to be fetched while `tiles` tiles are computed, of steps of `values` values.
    pub(super) fn ahead(&self, piece: Piece, values: usize, tiles: usize) -> Ahead {
        Ahead {
            first: self.element(piece.row, piece.col),
            row_bytes: self.row_stride() * self.dtype().size(),
            rows: piece.rows,
            rows_per_tile: piece.rows.div_ceil(tiles),
            step_bytes: values * self.dtype().size(),
        }
    }
}
