//! The operands of a GEMM, and the cut of its output into blocks of one worker each.

use std::ops::Range;

use super::super::arithmetic::Math;
use super::super::blocking::Blocking;
use super::super::epilogue::Store;
use super::super::simd::{Bf16Isa, Isa, MatrixUnit};
use super::super::strips::{SharedStrips, StripFormat, Strips, StripsMut};
use super::super::threads::Scratch;
use super::super::view::{Rows, RowsMut, SharedRows, WeightView};
use crate::weights::Dtype;

/// The operands of a GEMM.
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    /// `[m, k]`.
    pub x: Input<'a>,
    /// `[n, k]`.
    pub weight: WeightView<'a>,
    /// `[n]`, or none.
    pub bias: Option<&'a [f32]>,
    /// The epilogue.
    pub store: Store,
    /// The arithmetic of the matmul.
    pub math: Math,
}

/// x of a GEMM.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// Rows, which each worker packs for itself.
    Rows(Rows<'a>),
    /// Strips in the format that the arithmetic multiplies, of vector instructions.
    Strips(Strips<'a>),
}

impl<'a> From<Rows<'a>> for Input<'a> {
    fn from(rows: Rows<'a>) -> Self {
        Self::Rows(rows)
    }
}

impl Input<'_> {
    /// Number of rows.
    pub(in super::super) fn rows(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.rows(),
            Self::Strips(strips) => strips.rows(),
        }
    }

    /// Elements of a row.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.width(),
            Self::Strips(strips) => strips.width(),
        }
    }

    /// Returns the rows, of algorithms that take no strips.
    pub(super) fn as_rows(&self) -> Rows<'_> {
        match self {
            Self::Rows(rows) => *rows,
            Self::Strips(_) => panic!("a matrix unit multiplies no strips"),
        }
    }
}

/// The output of a GEMM.
pub enum Output<'a> {
    /// Rows.
    Rows(RowsMut<'a>),
    /// Strips for the next GEMM, of a gate by vector instructions.
    Strips(StripsMut<'a>),
}

impl<'a> From<RowsMut<'a>> for Output<'a> {
    fn from(rows: RowsMut<'a>) -> Self {
        Self::Rows(rows)
    }
}

impl<'a> From<StripsMut<'a>> for Output<'a> {
    fn from(strips: StripsMut<'a>) -> Self {
        Self::Strips(strips)
    }
}

impl Output<'_> {
    /// Rows and columns.
    pub(super) fn shape(&self) -> (usize, usize) {
        match self {
            Self::Rows(rows) => (rows.rows(), rows.width()),
            Self::Strips(strips) => (strips.rows(), strips.width()),
        }
    }

    pub(super) fn layout(&self) -> Layout {
        match self {
            Self::Rows(_) => Layout::Rows,
            Self::Strips(strips) => Layout::Strips(strips.format()),
        }
    }

    pub(super) fn share(&mut self) -> SharedOutput<'_> {
        match self {
            Self::Rows(rows) => SharedOutput::Rows(rows.share()),
            Self::Strips(strips) => SharedOutput::Strips(strips.share()),
        }
    }
}

/// [`Output`] that several workers write at once.
#[derive(Clone, Copy)]
pub(super) enum SharedOutput<'a> {
    Rows(SharedRows<'a>),
    Strips(SharedStrips<'a>),
}

/// The layout of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Rows of f32.
    Rows,
    /// Strips.
    Strips(StripFormat),
}

impl Math {
    /// Returns the layout in which a GEMM with a weight stored as `weight` writes a gated output
    /// ([`Store::Gated`]), for the next GEMM to read; none where it cannot.
    pub fn gated(self, isa: Isa, weight: Dtype) -> Option<Layout> {
        match (self.strips(isa), Algorithm::of(self, weight)) {
            (Some(format), _) => Some(Layout::Strips(format)),
            (None, Algorithm::Tiles { .. }) => Some(Layout::Rows),
            (None, _) => None,
        }
    }

    /// Returns the format of strips that every GEMM multiplies; none where some are by a matrix unit,
    /// which multiplies none.
    pub(in super::super) fn strips(self, isa: Isa) -> Option<StripFormat> {
        match self {
            Self::F32 => Some(StripFormat::of(isa, 1)),
            Self::Bf16(_) => Some(StripFormat::of(isa, 2)),
            Self::F32Tiles(_) | Self::Bf16Tiles(_) => None,
        }
    }
}

/// The algorithm of a GEMM in some [`Math`], with a weight of one format.
#[derive(Clone, Copy)]
pub(super) enum Algorithm {
    F32,
    Bf16(Bf16Isa),
    /// x in `terms` bfloat16 terms.
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

/// Rules for the cut of an output into blocks. Costs are in multiply-adds of an element.
pub(super) struct Partition {
    pub(super) blocking: Blocking,
    /// Blocks have a multiple of these rows, a divisor of `mc`.
    pub(super) rows_multiple: usize,
    /// Columns of a block at most.
    pub(super) columns_max: usize,
    /// Cost of packing an element of x: again for each block, or where `keeps_x` for each block of rows
    /// that a worker takes blocks of.
    pub(super) x_cost: usize,
    pub(super) keeps_x: bool,
    /// Cost of packing or converting an element of the weight, once for each block of rows.
    pub(super) weight_cost: usize,
}

impl Partition {
    /// Returns the rows and columns of the blocks that `[m, n]` is cut into: those for which the
    /// workers are done first, when each takes one block after the other and the last one, on average,
    /// begins a quarter of a block late.
    pub(super) fn block_shape(&self, m: usize, n: usize, threads: usize) -> (usize, usize) {
        /// Blocks for each worker at most where rows are not cut further for the cache's sake.
        const BLOCKS_MAX: usize = 6;
        let Blocking { mc, group, .. } = self.blocking;
        let blocks_max = if threads == 1 { 1 } else { BLOCKS_MAX * threads };
        let least = m.div_ceil(mc);
        let row_cuts =
            (least..=least.max(blocks_max.min(m.div_ceil(self.rows_multiple)))).map(|row_blocks| {
                let rows = m.div_ceil(row_blocks).next_multiple_of(self.rows_multiple);
                (rows, m.div_ceil(rows))
            });
        let cuts = row_cuts.flat_map(|(rows, row_blocks)| {
            let column_blocks = n.div_ceil(self.columns_max)..=n.div_ceil(group);
            let most = blocks_max.div_ceil(row_blocks).max(*column_blocks.start());
            column_blocks.take_while(move |blocks| *blocks <= most).map(move |column_blocks| {
                let columns = n.div_ceil(column_blocks).next_multiple_of(group).min(self.columns_max);
                (rows, columns, row_blocks * n.div_ceil(columns))
            })
        });
        let best = cuts.min_by_key(|&(rows, columns, blocks)| {
            let turns = blocks.div_ceil(threads);
            let packings = if self.keeps_x { turns.min(m.div_ceil(rows)) } else { turns };
            (4 * turns + usize::from(threads > 1)) * columns * (rows + self.weight_cost)
                + 4 * packings * self.x_cost * rows
        });
        let (rows, columns, _) = best.expect("at least one cut");
        (rows, columns)
    }
}

/// One worker's block of the output.
pub(super) struct Block<'a, 'b> {
    pub(super) gemm: &'a Gemm<'a>,
    pub(super) out: SharedOutput<'a>,
    pub(super) rows: Range<usize>,
    /// Columns of the matmul: twice as many as of the output where it is gated.
    pub(super) columns: Range<usize>,
    pub(super) scratch: &'b mut Scratch,
}

/// Returns the elements of a k block: as few k blocks as `most` allows, all about equally long,
/// multiples of `multiple`.
pub(super) fn k_block(k: usize, most: usize, multiple: usize) -> usize {
    let k_blocks = k.div_ceil(most).max(1);
    k.div_ceil(k_blocks).max(1).next_multiple_of(multiple)
}
