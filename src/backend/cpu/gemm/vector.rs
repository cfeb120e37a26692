//! Blocks of a GEMM by vector instructions: packed panels of the weight times rows of x in the
//! microkernel.
//!
//! The sum over k is one chain of fused multiply-adds (portable code rounds each product first).
//!
//! A slice of the weight is at most `nc` columns and `kc` steps of k, widened to f32: each element
//! is widened once per `mc` rows. The next slice is prefetched from memory meanwhile, a few lines
//! with every microkernel. x is read in place, its rows prefetched a microkernel early. The last k
//! block goes straight from the registers to `out`: a separate pass over finished accumulators cost
//! 3 to 6 % of a matmul.

use super::super::accumulators::Start;
use super::super::blocking::{Blocked, Blocking};
use super::super::epilogue::Epilogue;
use super::super::microkernel::{Bf16, Dot, F32, Operands, Prefetch, macrokernel, microkernels};
use super::super::pack::{Lanes32, pack_pairs, pack_stored, round_row};
use super::super::simd::{Bf16Kernel, Bf16Vector, Kernel, Vector};
use super::super::view::{Rows, WeightView};
use super::block::{Block, Partition, Submatrix, k_block};

/// Rows of x that are rounded to bfloat16 at a time. A multiple of every `mr`.
const ROUNDED_ROWS: usize = 24;

/// The partition of the output. With more columns to a block more could be prefetched, fewer are
/// easier to share among workers.
pub(super) fn partition(blocking: Blocking) -> Partition {
    // x is read in place.
    let x_cost = 0;
    Partition { blocking, rows_min: 64, columns_max: 4 * blocking.nc, x_cost, blocks_per_worker: 4 }
}

/// Floats of scratch that a worker needs at most, with x and the weight rounded to bfloat16 or not.
pub(super) fn scratch_floats(blocking: Blocking, rounded: bool) -> usize {
    let converted = if rounded { (ROUNDED_ROWS + blocking.nr) * blocking.kc } else { 0 };
    ScratchSizes::new(blocking.mc, blocking, converted).total()
}

impl Kernel for Block<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            if V::NR_VECTORS == 3 {
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
        const { assert!(V::NR_VECTORS == 3) };
        // SAFETY: the caller vouches for the instructions.
        unsafe { self.compute::<V, Bf16, 3>() }
    }
}

/// Floats of each buffer in a worker's scratch.
struct ScratchSizes {
    packed: usize,
    acc: usize,
    converted: usize,
}

impl ScratchSizes {
    fn new(rows: usize, blocking: Blocking, converted: usize) -> Self {
        Self { packed: blocking.nc * blocking.kc, acc: rows * blocking.nc, converted }
    }

    fn total(&self) -> usize {
        self.packed + self.acc + self.converted
    }
}

impl Block<'_, '_> {
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn compute<V: Blocked, M: Packing<V>, const VECTORS: usize>(self) {
        debug_assert_eq!(VECTORS, V::NR_VECTORS);
        let Self { gemm, out, rows, columns, scratch } = self;
        let Blocking { nr, kc, nc, .. } = V::BLOCKING;
        let k = gemm.weight.cols();
        let k_block = k_block(k, kc * M::ELEMENTS, V::LANES * M::ELEMENTS);
        // An empty sum takes one k block too, of no elements.
        let k_blocks = k.div_ceil(k_block).max(1);
        let sizes = ScratchSizes::new(rows.len(), V::BLOCKING, M::converted_floats());
        let (packed, rest) = scratch.floats(sizes.total()).split_at_mut(sizes.packed);
        let (acc, converted) = rest.split_at_mut(sizes.acc);
        // One slice of the weight after the other: a group of columns, and of those a k block.
        let slice = |index: usize| {
            let column = columns.start + index / k_blocks * nc;
            let col = index % k_blocks * k_block;
            let rows = nc.min(columns.end - column);
            Submatrix { row: column, rows, col, cols: (k - col).min(k_block) }
        };
        let slices = columns.len().div_ceil(nc) * k_blocks;
        for index in 0..slices {
            let weights = slice(index);
            let panels = weights.rows.div_ceil(nr);
            let tiles = microkernels::<V>(rows.len(), panels);
            let mut prefetch = Prefetch::NONE;
            if index + 1 < slices {
                prefetch = gemm.weight.prefetch(slice(index + 1), M::ELEMENTS, tiles);
            }
            let epilogue = Epilogue {
                out: out.element(rows.start, weights.row),
                out_stride: out.stride(),
                columns: weights.rows,
                bias: gemm.bias.map(|bias| bias[weights.row..][..weights.rows].as_ptr()),
                up_bias: None,
                store: gemm.store,
            };
            let operands = Operands {
                steps: weights.cols.div_ceil(M::ELEMENTS),
                x: std::ptr::null(),
                x_stride: 0,
                panel: packed.as_ptr(),
                panel_width: nr,
                panel_stride: nr * kc,
                acc: acc.as_mut_ptr(),
                acc_stride: panels * nr,
                start: if index % k_blocks == 0 { Start::Zero } else { Start::Reload },
                epilogue: (index % k_blocks + 1 == k_blocks).then_some(epilogue),
                prefetch,
            };
            // SAFETY: slices lie inside the weight, rows inside x (`gemm` checked the shapes);
            // `packed` holds `panels` panels of `nr * kc`, `acc` rows x panels x nr, and both are
            // this worker's alone. Accumulators are reloaded only after the first k block has
            // spilled all of them. Blocks do not overlap, so what their epilogues write is this
            // worker's alone too.
            unsafe {
                for panel in 0..panels {
                    let first = panel * nr;
                    let part =
                        Submatrix { row: weights.row + first, rows: nr.min(weights.rows - first), ..weights };
                    let to = packed.as_mut_ptr().add(first * kc);
                    M::pack(&gemm.weight, part, to, converted);
                }
                for first in (0..rows.len()).step_by(ROUNDED_ROWS) {
                    let count = ROUNDED_ROWS.min(rows.len() - first);
                    let x = Submatrix { row: rows.start + first, rows: count, ..weights };
                    let (x, x_stride) = M::x(&gemm.x, x, converted);
                    let mut operands = operands.skip_rows(first);
                    (operands.x, operands.x_stride) = (x, x_stride);
                    operands.prefetch = prefetch.skip_tiles(tiles * first / rows.len());
                    macrokernel::<V, M, VECTORS>(operands, count, panels);
                }
            }
        }
    }
}

/// Packing of the operands into 32-bit steps.
trait Packing<V>: Dot<V> {
    /// Floats of scratch for conversions.
    fn converted_floats() -> usize;

    /// Packs part of the weight, at most `nr` rows, as a panel of `nr` columns.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the part lies inside the weight; `panel` is writable
    /// for `nr` columns times the part's steps; `converted` has `converted_floats`.
    unsafe fn pack(weight: &WeightView, part: Submatrix, panel: *mut f32, converted: &mut [f32]);

    /// Returns part of x as rows of steps, and their stride. Valid until `converted` is written
    /// again.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the part lies inside x and has at most `ROUNDED_ROWS`
    /// rows; `converted` has `converted_floats`.
    unsafe fn x(x: &Rows, part: Submatrix, converted: &mut [f32]) -> (*const f32, usize);
}

impl<V: Blocked> Packing<V> for F32 {
    fn converted_floats() -> usize {
        0
    }

    #[inline(always)]
    unsafe fn pack(weight: &WeightView, part: Submatrix, panel: *mut f32, _: &mut [f32]) {
        let row = |r: usize| weight.element(part.row + r, part.col);
        let (dtype, stride, width) = (weight.dtype(), weight.row_stride(), V::BLOCKING.nr);
        // SAFETY: the caller's promises.
        unsafe { pack_stored::<V>(dtype, row, part.rows, part.cols, stride, width, panel) }
    }

    #[inline(always)]
    unsafe fn x(x: &Rows, part: Submatrix, _: &mut [f32]) -> (*const f32, usize) {
        (x.as_ptr().wrapping_add(part.row * x.stride() + part.col), x.stride())
    }
}

impl<V: Blocked + Bf16Vector> Packing<V> for Bf16 {
    fn converted_floats() -> usize {
        (ROUNDED_ROWS + V::BLOCKING.nr) * V::BLOCKING.kc
    }

    #[inline(always)]
    unsafe fn pack(weight: &WeightView, part: Submatrix, panel: *mut f32, converted: &mut [f32]) {
        let Blocking { nr, kc, .. } = V::BLOCKING;
        let row = |r: usize| weight.element(part.row + r, part.col);
        // Behind the rows of x, which stay until the next ones are rounded.
        let rounded = converted[ROUNDED_ROWS * kc..].as_mut_ptr();
        let (dtype, stride) = (weight.dtype(), weight.row_stride());
        // SAFETY: the caller's promises; `rounded` has a row of `kc` floats, at least one a step,
        // for each of `nr` rows.
        unsafe { pack_pairs::<V>(dtype, row, part.rows, part.cols, stride, nr, panel, rounded, kc) };
    }

    #[inline(always)]
    unsafe fn x(x: &Rows, part: Submatrix, converted: &mut [f32]) -> (*const f32, usize) {
        let kc = V::BLOCKING.kc;
        for r in 0..part.rows {
            let from = x.row(part.row + r)[part.col..][..part.cols].as_ptr();
            let to = converted[r * kc..][..kc].as_mut_ptr();
            // SAFETY: `from` has `cols` floats, and `to` is writable for 2 * kc >= cols bfloat16
            // values.
            unsafe { round_row::<V, Lanes32>(from.cast(), part.cols, to.cast()) };
        }
        (converted.as_ptr(), kc)
    }
}
