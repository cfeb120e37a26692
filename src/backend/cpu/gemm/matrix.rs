//! Blocks of a GEMM by a matrix unit: packed panels of the weight times tiles of x in bfloat16
//! terms.
//!
//! ```text
//! x = x0 + x1 + x2
//! acc += x0 · w, acc += x1 · w, acc += x2 · w      for 32 elements of k, then for the next 32
//! ```
//!
//! Products are exact, so that only sums are rounded, as in a chain of f32 multiply-adds. With one
//! term, x rounded to bfloat16, it is bfloat16 arithmetic.
//!
//! x is split into its terms once per block and k block and stays in the second-level cache, while
//! panels of the weight go by in the first.

use super::super::accumulators::Start;
use super::super::blocking::Blocking;
use super::super::epilogue::{Epilogue, Store};
use super::super::matrix_unit::{MR, NR, TILE_K, TileOperands, split_rows};
use super::super::pack::pack_pairs;
use super::super::simd::{Bf16Kernel, Bf16Vector, MatrixUnit, prefetch_far};
use super::block::{Block, Gemm, Partition, SharedOutput, k_block};

/// Columns of the output that a panel of gate and up makes.
const GATED_COLUMNS: usize = NR / 2;

/// Cost of packing an element in multiply-adds of one term: half a cycle of AMX, which has 512 in one.
const PACKING_COST: usize = 256;

/// The partition of the output, of x in `terms` terms. x is split again for every block of columns;
/// where there is one k block, a block can have them all.
pub(super) fn partition(terms: usize, k: usize) -> Partition {
    let blocking = Blocking::of_tiles(terms);
    let columns_max = if k <= blocking.kc { usize::MAX } else { blocking.nc };
    let (x_cost, weight_cost) = (PACKING_COST / terms, PACKING_COST / terms);
    Partition { blocking, rows_multiple: MR, columns_max, x_cost, keeps_x: false, weight_cost }
}

/// Floats of scratch that a worker needs at most, of x in `terms` terms.
pub(super) fn scratch_floats(terms: usize) -> usize {
    let Blocking { kc, mc, nc, .. } = Blocking::of_tiles(terms);
    ScratchSizes::new(mc, (mc, nc), kc, terms).total()
}

/// A block for a matrix unit, of x in `TERMS` terms.
pub(super) struct Tiles<'a, 'b, const TERMS: usize> {
    pub(super) block: Block<'a, 'b>,
    pub(super) unit: MatrixUnit,
}

/// Floats of each buffer in a worker's scratch.
struct ScratchSizes {
    panel: usize,
    x: usize,
    acc: usize,
    rounded: usize,
}

impl ScratchSizes {
    /// For `x_rows` rows of x and k blocks of `k_block` elements, and accumulators of the shape
    /// `acc`; whole tiles.
    fn new(x_rows: usize, acc: (usize, usize), k_block: usize, terms: usize) -> Self {
        Self {
            panel: NR * k_block / 2,
            x: x_rows * k_block * terms / 2,
            acc: acc.0 * acc.1,
            rounded: NR * k_block / 2,
        }
    }

    fn total(&self) -> usize {
        self.panel + self.x + self.acc + self.rounded
    }
}

impl<const TERMS: usize> Bf16Kernel for Tiles<'_, '_, TERMS> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        const { assert!(V::LANES == GATED_COLUMNS) };
        let Self { block: Block { gemm, out, rows, columns, scratch }, unit } = self;
        let (x_rows, SharedOutput::Rows(out)) = (gemm.x.as_rows(), out) else {
            unreachable!("a matrix unit writes rows")
        };
        let k = gemm.weight.cols();
        let k_block = k_block(k, Blocking::of_tiles(TERMS).kc, TILE_K);
        // An empty sum takes one k block too, of zeros.
        let k_blocks = k.div_ceil(k_block).max(1);
        let padded_rows = rows.len().next_multiple_of(MR);
        // Accumulators of the only k block go to the output at once, and are kept for one
        // microkernel only.
        let (acc_rows, acc_columns) = match k_blocks {
            1 => (MR, NR),
            _ => (padded_rows, columns.len().next_multiple_of(NR)),
        };
        let sizes = ScratchSizes::new(padded_rows, (acc_rows, acc_columns), k_block, TERMS);
        let (panel, rest) = scratch.floats(sizes.total()).split_at_mut(sizes.panel);
        let (x, rest) = rest.split_at_mut(sizes.x);
        let (acc, rounded) = rest.split_at_mut(sizes.acc);
        unit.begin();
        for index in 0..k_blocks {
            let col = index * k_block;
            let cols = (k - col).min(k_block);
            let k_tiles = cols.div_ceil(TILE_K).max(1);
            let from = |r: usize| x_rows.as_ptr().wrapping_add((rows.start + r) * x_rows.stride() + col);
            // SAFETY: the caller vouches for the instructions; the part lies inside x; `x` is
            // writable for all its tiles.
            unsafe { split_rows::<V, TERMS>(from, rows.len(), cols, k_tiles, x.as_mut_ptr().cast()) };
            for first in (0..columns.len()).step_by(NR) {
                let panel_rows = PanelRows::new(gemm, columns.start + first, columns.end);
                let (from, count) =
                    (|r: usize| gemm.weight.element(panel_rows.row(r), col), panel_rows.count());
                let (dtype, stride) = (gemm.weight.dtype(), gemm.weight.row_stride());
                // SAFETY: the caller vouches for the instructions; the rows and columns lie inside
                // the weight; a panel has 16 steps of NR floats for each tile of k, of which those
                // without an element become zero; `rounded` has half a float for each element of NR
                // rows.
                unsafe {
                    let (to, rounded) = (panel.as_mut_ptr(), rounded.as_mut_ptr());
                    pack_pairs::<V>(dtype, from, count, cols, stride, NR, to, rounded, k_block / 2);
                    let (packed, steps) = (cols.div_ceil(2), k_tiles * TILE_K / 2);
                    to.add(packed * NR).write_bytes(0, (steps - packed) * NR);
                }
                let bias = |row: usize| gemm.bias.map(|bias| bias[row..].as_ptr());
                let epilogue = Epilogue {
                    out: out.element(rows.start, panel_rows.first),
                    out_stride: out.stride(),
                    columns: panel_rows.columns,
                    bias: bias(panel_rows.first),
                    up_bias: panel_rows.up.and_then(|up| bias(panel_rows.first + up)),
                    store: gemm.store,
                };
                for tile_row in (0..rows.len()).step_by(MR) {
                    let at = if k_blocks == 1 { 0 } else { tile_row * acc_columns + first };
                    let operands = TileOperands {
                        x: x[tile_row * k_tiles * TERMS * TILE_K / 2..].as_ptr().cast(),
                        k_tiles,
                        panel: panel.as_ptr(),
                        acc: acc[at..].as_mut_ptr(),
                        acc_stride: acc_columns,
                        start: if index == 0 { Start::Zero } else { Start::Reload },
                    };
                    // SAFETY: the tiles of x and the panel were written above; `acc` has these rows
                    // and columns, spilled by the k block before where there was one; all of it is
                    // this worker's alone. Blocks of `out` do not overlap, and the rows and columns
                    // that the epilogue writes exist.
                    unsafe {
                        let count = MR.min(rows.len() - tile_row);
                        let epilogue = epilogue.skip(tile_row, 0);
                        // The output comes from memory; the first-level cache is the panel's.
                        if index + 1 == k_blocks {
                            epilogue.prefetch(count, epilogue.columns, prefetch_far);
                        }
                        unit.microkernel::<TERMS, 1>(&operands);
                        if index + 1 == k_blocks {
                            epilogue.store_rows::<V>(operands.acc, acc_columns, count);
                        }
                    }
                }
            }
        }
        unit.end();
    }
}

/// The rows of the weight in a panel.
#[derive(Clone, Copy)]
struct PanelRows {
    /// The first column of the output, and row of the weight.
    first: usize,
    /// Columns of the output, and rows of the weight from the first on.
    columns: usize,
    /// Rows from a row of gate to that of up which stands 16 columns further on in the panel.
    up: Option<usize>,
}

impl PanelRows {
    /// The panel at `column` of the accumulators' columns, which end at `end`.
    #[inline(always)]
    fn new(gemm: &Gemm, column: usize, end: usize) -> Self {
        if !matches!(gemm.store, Store::Gated(_)) {
            return Self { first: column, columns: NR.min(end - column), up: None };
        }
        // Two columns of accumulators make one of the output.
        let (first, half) = (column / 2, gemm.weight.rows() / 2);
        Self { first, columns: GATED_COLUMNS.min(half - first), up: Some(half) }
    }

    /// Rows of the weight.
    #[inline(always)]
    fn count(&self) -> usize {
        if self.up.is_some() { GATED_COLUMNS + self.columns } else { self.columns }
    }

    /// Returns the row of the weight for column `r` of the panel. Between gate and up some rows are
    /// repeated, whose accumulators are not read.
    #[inline(always)]
    fn row(&self, r: usize) -> usize {
        match self.up {
            Some(up) if r >= GATED_COLUMNS => self.first + up + r - GATED_COLUMNS,
            Some(_) => self.first + r.min(self.columns - 1),
            None => self.first + r,
        }
    }
}
