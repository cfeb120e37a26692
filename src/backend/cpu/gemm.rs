//! Matrix products with stored weights: `out = x · weightᵀ`, f32 in and out, the weight read where it is mapped.
//!
//! ```text
//! out[m, n] = (out[m, n] or 0) + (sum over k of x[m, k] * weight[n, k]) + bias[n]
//! ```
//!
//! The sum over k is one chain of fused multiply-adds from zero in the order of k (portable code rounds each product
//! first); it is added to `out` at the end. So an element's bits depend on its own row of x and row of the weight alone:
//! not on m, nor on how n is cut into pieces, nor on the number of threads.
//!
//! A block of the output, at most 512 rows, belongs to one worker. It packs a piece of the weight (at most 192 columns,
//! `K_BLOCK` steps of k), widened to f32, into its scratch and multiplies all its rows of x with it before it goes on to
//! the next piece: no f32 copy of a weight exists anywhere, and each value is widened once per 512 rows. The next piece
//! is fetched out of memory meanwhile, a few lines with every tile. x is read in place, a tile's rows ahead. The last round
//! of k leaves the registers straight for `out`: a separate pass over finished sums cost 3 to 6 % of a product.

use std::ops::Range;

use super::pack::{Lanes32, Source, load_bytes, pack_panel, pack_stored};
use super::simd::{Bf16Isa, Bf16Kernel, Bf16Vector, Isa, Kernel, Vector};
use super::threads::{Scratch, Threads};
use super::tile::{Ahead, Bf16, Dot, F32, Finish, Product, Start, multiply, tiles};
use super::view::{Rows, RowsMut, SharedRows, WeightView};
use crate::weights::Dtype;

pub use super::tile::Store;

#[cfg(test)]
mod tests;

/// Rows of an output block: a weight is packed again for every so many rows, which costs 1 % of their products.
const BLOCK_ROWS_MAX: usize = 512;
/// Rows of an output block below which more blocks would cost more packing than they gain in balance.
const BLOCK_ROWS_MIN: usize = 64;
/// Rows of x that are rounded to bfloat16 at a time. A multiple of every tile's rows.
const CHUNK_ROWS: usize = 24;
/// Columns that are packed at a time: x is read again for every so many. A multiple of every panel width.
const PACKED_COLUMNS_MAX: usize = 192;
/// Columns of a block at most. More at a time could be fetched ahead, fewer are easier to share among workers.
const BLOCK_COLUMNS_MAX: usize = 4 * PACKED_COLUMNS_MAX;

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Math {
    /// f32 products of x with the weight as stored.
    F32,
    /// x and the weight rounded to bfloat16, products exact, sums in f32: faster, and some 100 times less exact.
    Bf16(Bf16Isa),
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

/// Computes `gemm` into `out`, `[m, n]`. See the module for the formula and its order.
///
/// # Panics
///
/// When the shapes do not fit together.
pub fn gemm(isa: Isa, threads: &Threads, gemm: &Gemm, mut out: RowsMut) {
    let (m, n) = (gemm.x.rows(), gemm.weight.rows());
    assert_eq!(gemm.x.width(), gemm.weight.cols(), "the inner dimensions of x and the weight differ");
    assert_eq!((out.rows(), out.width()), (m, n), "the output has another shape than the product");
    assert!(gemm.bias.is_none_or(|bias| bias.len() == n), "the bias has another width than the product");
    if m == 0 || n == 0 {
        return;
    }
    let (block_rows, block_columns) = block_shape(isa, m, n, threads.count());
    let column_blocks = n.div_ceil(block_columns);
    let out = out.share();
    threads.for_each_item(column_blocks * m.div_ceil(block_rows), |item, scratch| {
        let (row, column) = (item / column_blocks * block_rows, item % column_blocks * block_columns);
        let rows = row..m.min(row + block_rows);
        let block = Block { gemm, out, rows, columns: column..n.min(column + block_columns), scratch };
        match gemm.math {
            Math::F32 => isa.run(block),
            Math::Bf16(bf16) => bf16.run(block),
        }
    });
}

/// Floats of scratch that each worker needs at most.
pub fn scratch_floats(isa: Isa, math: Math) -> usize {
    let shape = isa.shape();
    match math {
        Math::F32 => Parts::new(BLOCK_ROWS_MAX, PACKED_COLUMNS_MAX, shape.k_block, 0).total(),
        Math::Bf16(_) => {
            let converted = (CHUNK_ROWS + shape.panel_width) * shape.k_block;
            Parts::new(BLOCK_ROWS_MAX, PACKED_COLUMNS_MAX, shape.k_block, converted).total()
        }
    }
}

/// Rows and columns of the blocks that `[m, n]` is cut into: a few blocks for each worker. Rows are cut where there are
/// more than a weight should be packed for, then columns, for each cut of those makes x be read once more; then rows again.
fn block_shape(isa: Isa, m: usize, n: usize, threads: usize) -> (usize, usize) {
    let panel = isa.shape().panel_width;
    let blocks_wanted = if threads == 1 { 1 } else { 4 * threads };
    let column_blocks = blocks_wanted.div_ceil(m.div_ceil(BLOCK_ROWS_MAX));
    let columns = n.div_ceil(column_blocks).next_multiple_of(panel).min(BLOCK_COLUMNS_MAX);
    let row_blocks = blocks_wanted.div_ceil(n.div_ceil(columns));
    (m.div_ceil(row_blocks).clamp(BLOCK_ROWS_MIN, BLOCK_ROWS_MAX), columns)
}

/// One worker's block of the output.
struct Block<'a, 'b> {
    gemm: &'a Gemm<'a>,
    out: SharedRows<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    scratch: &'b mut Scratch,
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
                start: if index % rounds == 0 { Start::Zero } else { Start::Continue },
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
        let steps = piece.values.div_ceil(2);
        let stored = |r: usize| weight.element(piece.row + r, piece.col);
        // Behind the rows of x, which stay until the next chunk.
        let rounded = converted[CHUNK_ROWS * V::K_BLOCK..].as_mut_ptr();
        // SAFETY: the caller's promises; `rounded` has a row of K_BLOCK >= steps floats for each of `width` rows.
        unsafe {
            if weight.dtype() == Dtype::BF16 {
                let ahead = 2 * V::LANES * weight.row_stride();
                return pack_panel::<V, Lanes32>(stored, piece.rows, 2 * piece.values, ahead, width, panel);
            }
            for r in 0..piece.rows {
                let to = rounded.add(r * V::K_BLOCK).cast();
                match weight.dtype() {
                    Dtype::F16 => round_row::<V, super::pack::Halves>(stored(r), piece.values, to),
                    _ => round_row::<V, Lanes32>(stored(r), piece.values, to),
                }
            }
            let row = |r: usize| rounded.wrapping_add(r * V::K_BLOCK).cast_const().cast();
            pack_panel::<V, Lanes32>(row, piece.rows, 4 * steps, 0, width, panel);
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

/// Rounds `values` values to bfloat16, side by side, and one zero behind an odd number of them.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `values` values of `S` are readable at `from`; `to` is writable for `values`
/// rounded up to a multiple of two.
#[inline(always)]
unsafe fn round_row<V: Bf16Vector, S: Source>(from: *const u8, values: usize, to: *mut u16) {
    let whole = values - values % V::LANES;
    // SAFETY: `whole` values in whole vectors, the rest through a buffer; all inside what the caller vouches for.
    unsafe {
        for i in (0..whole).step_by(V::LANES) {
            S::load::<V>(from.wrapping_add(i.wrapping_mul(S::LANE_BYTES))).store_bf16(to.wrapping_add(i));
        }
        if whole < values {
            let rest = values - whole;
            let mut buffer = [0u16; super::simd::LANES_MAX];
            load_bytes::<V, S>(from.add(whole * S::LANE_BYTES), rest * S::LANE_BYTES)
                .store_bf16(buffer.as_mut_ptr());
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), to.add(whole), rest.next_multiple_of(2));
        }
    }
}
