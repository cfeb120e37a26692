//! Blocks of a product by a matrix unit: packed panels of the weight times tiles of x in bfloat16 terms.
//!
//! ```text
//! x = x0 + x1 + x2
//! sums += x0 · w, sums += x1 · w, sums += x2 · w      for 32 values of k, then for the next 32
//! ```
//!
//! Products are exact, so that what is rounded are sums alone, as in a chain of f32 multiply-adds. With one term, x rounded to
//! bfloat16, it is bfloat16 arithmetic.
//!
//! x is cut into its terms once per block and round of k and stays in the second-level cache, while panels of the weight go
//! by in the first.

use super::super::accumulators::Start;
use super::super::matrix_unit::{MR, NR, TILE_K, TileOperands, split_rows};
use super::super::pack::pack_pairs;
use super::super::simd::{Bf16Kernel, Bf16Vector, MatrixUnit, prefetch_far, silu};
use super::super::tile::{Finish, Store};
use super::block::{Block, Gemm, Limits, Piece, round_of};

/// Values of k in a round at most: a panel then takes 40 KiB of the first-level cache, which tiles of x pass by. With 768 it
/// takes all 48, and products over k = 576, in one round with either, are as fast; those over 1,536 lost 5 %.
const K_BLOCK: usize = 640;
/// Columns of the output that a panel of gate and up makes.
const GATED_COLUMNS: usize = NR / 2;
/// Columns of a block at most where sums are put down between rounds.
const BLOCK_COLUMNS_MAX: usize = 768;

/// Rows of a block at most: a weight is packed again for every so many, and x of so many, in all its terms, stays in the
/// second-level cache. One term of 512 rows takes 640 KiB of it, three terms of 256 take 960.
fn rows_max(terms: usize) -> usize {
    if terms == 1 { 512 } else { 256 }
}

/// What the size of a block may be, of x in `terms` terms and for sums over `k`. x is cut into terms again for every block of
/// columns; where one round does, a block can have them all.
pub(super) fn limits(terms: usize, k: usize) -> Limits {
    let columns_max = if k <= K_BLOCK { usize::MAX } else { BLOCK_COLUMNS_MAX };
    Limits { rows_max: rows_max(terms), rows_min: MR, columns_max, x_cost: 1, panel: NR, blocks: 2 }
}

/// Floats of scratch that a worker needs at most, of x in `terms` terms.
pub(super) fn scratch_floats(terms: usize) -> usize {
    Sizes::new(rows_max(terms), BLOCK_COLUMNS_MAX, K_BLOCK, terms).total()
}

/// A block for a matrix unit, of x in `TERMS` terms.
pub(super) struct Tiles<'a, 'b, const TERMS: usize> {
    pub(super) block: Block<'a, 'b>,
    pub(super) unit: MatrixUnit,
}

/// The sizes of what lies in a worker's scratch, in floats.
struct Sizes {
    panel: usize,
    x: usize,
    sums: usize,
    rounded: usize,
}

impl Sizes {
    /// Of a block with that many rows and columns, in rounds of `k_round` values; whole tiles.
    fn new(rows: usize, columns: usize, k_round: usize, terms: usize) -> Self {
        Self {
            panel: NR * k_round / 2,
            x: rows * k_round * terms / 2,
            sums: rows * columns,
            rounded: NR * k_round / 2,
        }
    }

    fn total(&self) -> usize {
        self.panel + self.x + self.sums + self.rounded
    }
}

impl<const TERMS: usize> Bf16Kernel for Tiles<'_, '_, TERMS> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        let Self { block: Block { gemm, out, rows, columns, scratch }, unit } = self;
        let k = gemm.weight.cols();
        let k_round = round_of(k, K_BLOCK, TILE_K);
        // An empty sum takes one round too, of zeros.
        let rounds = k.div_ceil(k_round).max(1);
        let x_rows = rows.len().next_multiple_of(MR);
        // Sums of one round leave at once and need room for one product only.
        let (sums_rows, sums_columns) = match rounds {
            1 => (MR, NR),
            _ => (x_rows, columns.len().next_multiple_of(NR)),
        };
        let sizes =
            Sizes { sums: sums_rows * sums_columns, ..Sizes::new(x_rows, sums_columns, k_round, TERMS) };
        let (panel, rest) = scratch.floats(sizes.total()).split_at_mut(sizes.panel);
        let (x, rest) = rest.split_at_mut(sizes.x);
        let (sums, rounded) = rest.split_at_mut(sizes.sums);
        unit.begin();
        for round in 0..rounds {
            let values = (k - round * k_round).min(k_round);
            let k_tiles = values.div_ceil(TILE_K).max(1);
            let piece = Piece { row: rows.start, rows: rows.len(), col: round * k_round, values };
            let from = |r: usize| gemm.x.as_ptr().wrapping_add((piece.row + r) * gemm.x.stride() + piece.col);
            // SAFETY: the caller vouches for the instructions; the piece lies inside x; `x` has room for all its tiles.
            unsafe { split_rows::<V, TERMS>(from, rows.len(), values, k_tiles, x.as_mut_ptr().cast()) };
            for first in (0..columns.len()).step_by(NR) {
                let panel_rows = PanelRows::new(gemm, columns.start + first, columns.end);
                let (from, count) =
                    (|r: usize| gemm.weight.element(panel_rows.row(r), piece.col), panel_rows.count());
                let (dtype, stride) = (gemm.weight.dtype(), gemm.weight.row_stride());
                // SAFETY: the caller vouches for the instructions; the rows and values lie inside the weight; a panel has
                // 16 steps of NR floats for each block, of which what no value belongs to becomes zero; `rounded`
                // has half a float for each value of NR rows.
                unsafe {
                    let to = panel.as_mut_ptr();
                    pack_pairs::<V>(
                        dtype,
                        from,
                        count,
                        values,
                        stride,
                        NR,
                        to,
                        rounded.as_mut_ptr(),
                        k_round / 2,
                    );
                    let (packed, steps) = (values.div_ceil(2), k_tiles * TILE_K / 2);
                    to.add(packed * NR).write_bytes(0, (steps - packed) * NR);
                }
                let finish = Finish {
                    out: out.element(rows.start, panel_rows.first),
                    stride: out.stride(),
                    columns: panel_rows.columns,
                    bias: gemm.bias.map(|bias| bias[panel_rows.first..].as_ptr()),
                    store: gemm.store,
                };
                for tile_row in (0..rows.len()).step_by(MR) {
                    let at = if rounds == 1 { 0 } else { tile_row * sums_columns + first };
                    let product = TileOperands {
                        x: x[tile_row * k_tiles * TERMS * TILE_K / 2..].as_ptr().cast(),
                        k_tiles,
                        panel: panel.as_ptr(),
                        acc: sums[at..].as_mut_ptr(),
                        acc_stride: sums_columns,
                        start: if round == 0 { Start::Zero } else { Start::Reload },
                    };
                    // SAFETY: the tiles of x and the panel were written above; sums have these rows and columns, written by
                    // the round before where there was one; all of it is this worker's alone. Blocks of `out` do not
                    // overlap, and the rows and columns that are finished exist.
                    unsafe {
                        let count = MR.min(rows.len() - tile_row);
                        let finish = finish.skip(tile_row, 0);
                        // The output comes from memory; the first-level cache is the panel's.
                        if round + 1 == rounds {
                            finish.prefetch(count, finish.columns, prefetch_far);
                        }
                        unit.microkernel::<TERMS, 1>(&product);
                        if round + 1 == rounds {
                            match panel_rows.up {
                                None => finish.put_rows::<V>(product.acc, sums_columns, count),
                                Some(up) => put_gated::<V>(&finish, up, product.acc, sums_columns, count),
                            }
                        }
                    }
                }
            }
        }
        unit.end();
    }
}

/// Which rows of the weight a panel has.
#[derive(Clone, Copy)]
struct PanelRows {
    /// The first column of the output, and row of the weight.
    first: usize,
    /// Columns of the output: so many rows of the weight from the first on.
    columns: usize,
    /// How far behind each of these the row of up lies, whose product with the same x is column 16 further on in the panel.
    up: Option<usize>,
}

impl PanelRows {
    /// The panel at `column` of the columns that sums have, which end at `end`.
    #[inline(always)]
    fn new(gemm: &Gemm, column: usize, end: usize) -> Self {
        if gemm.store != Store::Gate {
            return Self { first: column, columns: NR.min(end - column), up: None };
        }
        // Two columns of sums make one of the output.
        let (first, half) = (column / 2, gemm.weight.rows() / 2);
        Self { first, columns: GATED_COLUMNS.min(half - first), up: Some(half) }
    }

    /// Rows of the weight.
    #[inline(always)]
    fn count(&self) -> usize {
        if self.up.is_some() { GATED_COLUMNS + self.columns } else { self.columns }
    }

    /// The row of the weight for column `r` of the panel. Between gate and up some are there twice, and nobody reads them.
    #[inline(always)]
    fn row(&self, r: usize) -> usize {
        match self.up {
            Some(up) if r >= GATED_COLUMNS => self.first + up + r - GATED_COLUMNS,
            Some(_) => self.first + r.min(self.columns - 1),
            None => self.first + r,
        }
    }
}

/// Writes silu(gate) * up for `rows` rows of sums, gate in the first 16 columns and up in the next. The bias of up lies `up`
/// floats behind that of gate.
///
/// # Safety
///
/// As [`Finish::put_rows`], with a bias for both.
#[inline(always)]
unsafe fn put_gated<V: Bf16Vector>(finish: &Finish, up: usize, sums: *const f32, stride: usize, rows: usize) {
    const { assert!(V::LANES == GATED_COLUMNS) };
    // SAFETY: the caller's promises; a row of sums has two vectors.
    unsafe {
        let bias =
            finish.bias.map(|bias| [0, up].map(|at| V::load_first(bias.wrapping_add(at), finish.columns)));
        for row in 0..rows {
            let sums = sums.add(row * stride);
            let (mut gate, mut up) = (V::load(sums), V::load(sums.add(GATED_COLUMNS)));
            if let Some([gate_bias, up_bias]) = bias {
                (gate, up) = (gate.add(gate_bias), up.add(up_bias));
            }
            silu(gate).mul(up).store_first(finish.out.wrapping_add(row * finish.stride), finish.columns);
        }
    }
}
