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
//! A block of the output, at most 512 x 96, belongs to one worker. It packs `96 x k_block` of the weight, widened to f32,
//! into its scratch and multiplies all its rows of x with them before it goes on to the next of k: no f32 copy of a
//! weight exists anywhere, and each value is widened once per 512 rows. (x itself is read in place: packing it too was
//! not tried.)

use std::ops::Range;

use super::pack::{Lanes32, Source, load_bytes, pack_panel, pack_stored};
use super::simd::{Bf16Isa, Bf16Kernel, Bf16Vector, Isa, Kernel, Vector};
use super::threads::{Scratch, Threads};
use super::tile::{Bf16, Dot, F32, Product, Start, multiply};
use super::view::{Rows, RowsMut, SharedRows, WeightView};
use crate::weights::Dtype;

#[cfg(test)]
mod tests;

/// Rows of an output block: a weight is packed again for every so many rows, which costs 1 % of their products.
const BLOCK_ROWS_MAX: usize = 512;
/// Rows of an output block below which more blocks would cost more packing than they gain in balance.
const BLOCK_ROWS_MIN: usize = 64;
/// Rows of x that go past all packed panels while they lie in the second-level cache (96 x 256 floats: 96 KiB).
const CHUNK_ROWS: usize = 96;
/// Columns of a block: x is read again for every so many. A multiple of every panel width.
const BLOCK_COLUMNS_MAX: usize = 96;
/// The same for bfloat16 products, where x is also rounded again for every so many.
const BLOCK_COLUMNS_MAX_BF16: usize = 192;

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Math {
    /// f32 products of x with the weight as stored.
    F32,
    /// x and the weight rounded to bfloat16, products exact, sums in f32: faster, and some 100 times less exact.
    Bf16(Bf16Isa),
}

/// What becomes of the values that `out` held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// They are overwritten.
    Replace,
    /// The product is added to them.
    Add,
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
    let (block_rows, block_columns) = block_shape(isa, gemm.math, m, n, threads.count());
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
        Math::F32 => Parts::new(BLOCK_ROWS_MAX, BLOCK_COLUMNS_MAX, shape.k_block, 0).total(),
        Math::Bf16(_) => {
            let converted = (CHUNK_ROWS + shape.panel_width) * shape.k_block;
            Parts::new(BLOCK_ROWS_MAX, BLOCK_COLUMNS_MAX_BF16, shape.k_block, converted).total()
        }
    }
}

/// Rows and columns of the blocks that `[m, n]` is cut into: a few blocks for each worker, columns cut first.
fn block_shape(isa: Isa, math: Math, m: usize, n: usize, threads: usize) -> (usize, usize) {
    let columns_max = match math {
        Math::F32 => BLOCK_COLUMNS_MAX,
        Math::Bf16(_) => BLOCK_COLUMNS_MAX_BF16,
    };
    let panel = isa.shape().panel_width;
    let blocks_wanted = if threads == 1 { 1 } else { 4 * threads };
    let columns = n.div_ceil(blocks_wanted).next_multiple_of(panel).min(columns_max);
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
                self.compute::<V, F32, 3>(BLOCK_COLUMNS_MAX);
            } else {
                self.compute::<V, F32, 2>(BLOCK_COLUMNS_MAX);
            }
        }
    }
}

impl Bf16Kernel for Block<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        const { assert!(V::PANEL_VECTORS == 3) };
        // SAFETY: the caller vouches for the instructions.
        unsafe { self.compute::<V, Bf16, 3>(BLOCK_COLUMNS_MAX_BF16) }
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
    unsafe fn compute<V: Vector, M: Operands<V>, const VECTORS: usize>(self, columns_max: usize) {
        let Self { gemm, out, rows, columns, scratch } = self;
        let (width, k) = (VECTORS * V::LANES, gemm.weight.cols());
        let panels = columns.len().div_ceil(width);
        let sums_stride = panels * width;
        debug_assert!(sums_stride <= columns_max && rows.len() <= BLOCK_ROWS_MAX);
        let parts = Parts::new(rows.len(), sums_stride, V::K_BLOCK, M::converted_floats(width, V::K_BLOCK));
        let (packed, rest) = scratch.floats(parts.total()).split_at_mut(parts.packed);
        let (sums, converted) = rest.split_at_mut(parts.sums);
        let mut start = Start::Zero;
        for k_start in (0..k).step_by(V::K_BLOCK * M::VALUES) {
            let values = (k - k_start).min(V::K_BLOCK * M::VALUES);
            let steps = values.div_ceil(M::VALUES);
            // SAFETY: columns and k_start + values lie inside the weight, rows inside x (`gemm` checked the shapes);
            // `packed` holds `panels` panels of `width * K_BLOCK`, `sums` rows x panels x width, and both are this
            // worker's alone. Sums are continued only after the first round has written all of them.
            unsafe {
                for panel in 0..panels {
                    let column = columns.start + panel * width;
                    let piece =
                        Piece { row: column, rows: width.min(columns.end - column), col: k_start, values };
                    let to = packed.as_mut_ptr().add(panel * width * V::K_BLOCK);
                    M::pack(&gemm.weight, piece, width, to, converted);
                }
                for row in rows.clone().step_by(CHUNK_ROWS) {
                    let chunk = CHUNK_ROWS.min(rows.end - row);
                    let (x, x_stride) =
                        M::x(&gemm.x, Piece { row, rows: chunk, col: k_start, values }, converted);
                    let product = Product {
                        steps,
                        x,
                        x_stride,
                        panel: packed.as_ptr(),
                        panel_stride: width * V::K_BLOCK,
                        sums: sums.as_mut_ptr().add((row - rows.start) * sums_stride),
                        sums_stride,
                        start,
                    };
                    multiply::<V, M, VECTORS>(product, chunk, panels);
                }
            }
            start = Start::Continue;
        }
        if k == 0 {
            sums.fill(0.0);
        }
        for row in rows.clone() {
            // SAFETY: blocks do not overlap, and this worker holds one part of its own block at a time.
            let out = unsafe { out.part(row, columns.clone()) };
            let bias = gemm.bias.map(|bias| &bias[columns.clone()]);
            let sums = &sums[(row - rows.start) * sums_stride..][..columns.len()];
            // SAFETY: the three have the same length.
            unsafe { store_row::<V>(sums, bias, gemm.store, out) };
        }
    }
}

/// `out = (out or 0) + (sums + bias)`.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `sums`, `bias` and `out` have the same length.
#[inline(always)]
unsafe fn store_row<V: Vector>(sums: &[f32], bias: Option<&[f32]>, store: Store, out: &mut [f32]) {
    for i in (0..out.len()).step_by(V::LANES) {
        let count = V::LANES.min(out.len() - i);
        // SAFETY: i + count <= the common length.
        unsafe {
            let mut value = V::load_first(sums.as_ptr().add(i), count);
            if let Some(bias) = bias {
                value = value.add(V::load_first(bias.as_ptr().add(i), count));
            }
            if store == Store::Add {
                value = V::load_first(out.as_ptr().add(i), count).add(value);
            }
            value.store_first(out.as_mut_ptr().add(i), count);
        }
    }
}

/// Rows `row..row + rows`, columns `col..col + values` of x or of a weight.
#[derive(Clone, Copy)]
struct Piece {
    row: usize,
    rows: usize,
    col: usize,
    values: usize,
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
            S::load::<V>(from.wrapping_add(i.wrapping_mul(S::STEP_BYTES))).store_bf16(to.wrapping_add(i));
        }
        if whole < values {
            let rest = values - whole;
            let mut buffer = [0u16; super::simd::LANES_MAX];
            load_bytes::<V, S>(from.add(whole * S::STEP_BYTES), rest * S::STEP_BYTES)
                .store_bf16(buffer.as_mut_ptr());
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), to.add(whole), rest.next_multiple_of(2));
        }
    }
}
