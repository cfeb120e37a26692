//! Blocks of a product by vector instructions: packed panels of the weight times register tiles of x.
//!
//! The sum over k is one chain of fused multiply-adds (portable code rounds each product first).
//!
//! A piece of the weight is at most 192 columns and `K_BLOCK` steps of k, widened to f32: each value is widened once per 512
//! rows. The next piece is fetched out of memory meanwhile, a few lines with every tile. x is read in place, a tile's rows
//! ahead. The last round of k leaves the registers straight for `out`: a separate pass over finished sums cost 3 to 6 % of a
//! product.

use super::super::accumulators::Start;
use super::super::pack::{Lanes32, pack_pairs, pack_stored, round_row};
use super::super::simd::{Bf16Kernel, Bf16Vector, Kernel, Shape, Vector};
use super::super::tile::{Ahead, Bf16, Dot, F32, Finish, Product, multiply, tiles};
use super::super::view::{Rows, WeightView};
use super::block::{Block, Limits, Piece, round_of};

/// Rows of a block at most: packing a weight again for every so many costs 1 % of their products.
const BLOCK_ROWS_MAX: usize = 512;

/// Rows of x that are rounded to bfloat16 at a time. A multiple of every tile's rows.
const CHUNK_ROWS: usize = 24;
/// Columns that are packed at a time: x is read again for every so many. A multiple of every panel width.
const PACKED_COLUMNS_MAX: usize = 192;

/// What the size of a block may be. More columns at a time could be fetched ahead, fewer are easier to share among workers.
pub(super) fn limits(shape: Shape) -> Limits {
    let columns_max = 4 * PACKED_COLUMNS_MAX;
    // x is read in place.
    let x_cost = 0;
    Limits {
        rows_max: BLOCK_ROWS_MAX,
        rows_min: 64,
        columns_max,
        x_cost,
        panel: shape.panel_width,
        blocks: 4,
    }
}

/// Floats of scratch that a worker needs at most, with x and the weight rounded to bfloat16 or not.
pub(super) fn scratch_floats(shape: Shape, rounded: bool) -> usize {
    let converted = if rounded { (CHUNK_ROWS + shape.panel_width) * shape.k_block } else { 0 };
    Parts::new(BLOCK_ROWS_MAX, PACKED_COLUMNS_MAX, shape.k_block, converted).total()
}

impl Kernel for Block<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            if V::PANEL_VECTORS == 3 {
                self.compute::<V, F32, 3>();
            } else {
                self.compute::<V, F32, 2>();
            }
        }
    }
}

impl Bf16Kernel for Block<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        const { assert!(V::PANEL_VECTORS == 3) };
        // SAFETY: the caller vouches for the instructions.
        unsafe { self.compute::<V, Bf16, 3>() }
    }
}

/// The sizes of what lies in a worker's scratch, in floats.
struct Parts {
    packed: usize,
    sums: usize,
    converted: usize,
}

impl Parts {
    fn new(rows: usize, columns: usize, k_block: usize, converted: usize) -> Self {
        Self { packed: columns * k_block, sums: rows * columns, converted }
    }

    fn total(&self) -> usize {
        self.packed + self.sums + self.converted
    }
}

impl Block<'_, '_> {
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn compute<V: Vector, M: Operands<V>, const VECTORS: usize>(self) {
        let Self { gemm, out, rows, columns, scratch } = self;
        let (width, k) = (VECTORS * V::LANES, gemm.weight.cols());
        let k_round = round_of(k, V::K_BLOCK * M::VALUES, V::LANES * M::VALUES);
        // An empty sum takes one round too, of no values.
        let rounds = k.div_ceil(k_round).max(1);
        let parts =
            Parts::new(rows.len(), PACKED_COLUMNS_MAX, V::K_BLOCK, M::converted_floats(width, V::K_BLOCK));
        let (packed, rest) = scratch.floats(parts.total()).split_at_mut(parts.packed);
        let (sums, converted) = rest.split_at_mut(parts.sums);
        // One piece of the weight after the other: a group of columns, and of those a round of k.
        let piece = |index: usize| {
            let column = columns.start + index / rounds * PACKED_COLUMNS_MAX;
            let col = index % rounds * k_round;
            let rows = PACKED_COLUMNS_MAX.min(columns.end - column);
            Piece { row: column, rows, col, values: (k - col).min(k_round) }
        };
        let pieces = columns.len().div_ceil(PACKED_COLUMNS_MAX) * rounds;
        for index in 0..pieces {
            let weights = piece(index);
            let panels = weights.rows.div_ceil(width);
            let tiles = tiles::<V>(rows.len(), panels);
            let mut ahead = Ahead::NOTHING;
            if index + 1 < pieces {
                ahead = gemm.weight.ahead(piece(index + 1), M::VALUES, tiles);
            }
            let sums_stride = panels * width;
            let finish = Finish {
                out: out.element(rows.start, weights.row),
                stride: out.stride(),
                columns: weights.rows,
                bias: gemm.bias.map(|bias| bias[weights.row..][..weights.rows].as_ptr()),
                store: gemm.store,
            };
            let product = Product {
                steps: weights.values.div_ceil(M::VALUES),
                x: std::ptr::null(),
                x_stride: 0,
                panel: packed.as_ptr(),
                panel_width: width,
                panel_stride: width * V::K_BLOCK,
                sums: sums.as_mut_ptr(),
                sums_stride,
                start: if index % rounds == 0 { Start::Zero } else { Start::Reload },
                finish: (index % rounds + 1 == rounds).then_some(finish),
                ahead,
            };
            // SAFETY: pieces lie inside the weight, rows inside x (`gemm` checked the shapes); `packed` holds `panels` panels
            // of `width * K_BLOCK`, `sums` rows x panels x width, and both are this worker's alone. Sums are continued only
            // after the first round has written all of them. Blocks do not overlap, so what they finish is this worker's
            // alone too.
            unsafe {
                for panel in 0..panels {
                    let first = panel * width;
                    let piece =
                        Piece { row: weights.row + first, rows: width.min(weights.rows - first), ..weights };
                    let to = packed.as_mut_ptr().add(first * V::K_BLOCK);
                    M::pack(&gemm.weight, piece, width, to, converted);
                }
                for first in (0..rows.len()).step_by(CHUNK_ROWS) {
                    let chunk = CHUNK_ROWS.min(rows.len() - first);
                    let x = Piece { row: rows.start + first, rows: chunk, ..weights };
                    let (x, x_stride) = M::x(&gemm.x, x, converted);
                    let mut product = product.skip_rows(first);
                    (product.x, product.x_stride) = (x, x_stride);
                    product.ahead = ahead.skip_tiles(tiles * first / rows.len());
                    multiply::<V, M, VECTORS>(product, chunk, panels);
                }
            }
        }
    }
}

/// How the operands are brought into 32-bit steps.
trait Operands<V>: Dot<V> {
    /// Floats of scratch for what is converted on the way.
    fn converted_floats(panel_width: usize, k_block: usize) -> usize;

    /// Packs a piece of the weight, at most `width` rows, as a panel of `width` columns.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the piece lies inside the weight; `panel` is writable for `width` columns
    /// times the piece's steps; `converted` has `converted_floats`.
    unsafe fn pack(weight: &WeightView, piece: Piece, width: usize, panel: *mut f32, converted: &mut [f32]);

    /// A piece of x as rows of steps, and their stride. Valid until `converted` is written again.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the piece lies inside x and has at most `CHUNK_ROWS` rows; `converted` has
    /// `converted_floats`.
    unsafe fn x(x: &Rows, piece: Piece, converted: &mut [f32]) -> (*const f32, usize);
}

impl<V: Vector> Operands<V> for F32 {
    fn converted_floats(_: usize, _: usize) -> usize {
        0
    }

    #[inline(always)]
    unsafe fn pack(weight: &WeightView, piece: Piece, width: usize, panel: *mut f32, _: &mut [f32]) {
        let row = |r: usize| weight.element(piece.row + r, piece.col);
        // SAFETY: the caller's promises.
        unsafe {
            pack_stored::<V>(weight.dtype(), row, piece.rows, piece.values, weight.row_stride(), width, panel)
        }
    }

    #[inline(always)]
    unsafe fn x(x: &Rows, piece: Piece, _: &mut [f32]) -> (*const f32, usize) {
        (x.as_ptr().wrapping_add(piece.row * x.stride() + piece.col), x.stride())
    }
}

impl<V: Bf16Vector> Operands<V> for Bf16 {
    fn converted_floats(panel_width: usize, k_block: usize) -> usize {
        (CHUNK_ROWS + panel_width) * k_block
    }

    #[inline(always)]
    unsafe fn pack(weight: &WeightView, piece: Piece, width: usize, panel: *mut f32, converted: &mut [f32]) {
        let row = |r: usize| weight.element(piece.row + r, piece.col);
        // Behind the rows of x, which stay until the next chunk.
        let rounded = converted[CHUNK_ROWS * V::K_BLOCK..].as_mut_ptr();
        let (dtype, stride) = (weight.dtype(), weight.row_stride());
        // SAFETY: the caller's promises; `rounded` has a row of K_BLOCK floats, at least one a step, for each of `width` rows.
        unsafe {
            pack_pairs::<V>(dtype, row, piece.rows, piece.values, stride, width, panel, rounded, V::K_BLOCK);
        }
    }

    #[inline(always)]
    unsafe fn x(x: &Rows, piece: Piece, converted: &mut [f32]) -> (*const f32, usize) {
        for r in 0..piece.rows {
            let from = x.row(piece.row + r)[piece.col..][..piece.values].as_ptr();
            let to = converted[r * V::K_BLOCK..][..V::K_BLOCK].as_mut_ptr();
            // SAFETY: `from` has `values` floats, `to` room for 2 * K_BLOCK >= values bfloat16 values.
            unsafe { round_row::<V, Lanes32>(from.cast(), piece.values, to.cast()) };
        }
        (converted.as_ptr(), V::K_BLOCK)
    }
}
