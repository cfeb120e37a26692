//! Blocks of a GEMM by vector instructions: rows of the weight, broadcast where they are mapped,
//! times packed strips of x.
//!
//! The sum over k is one chain of fused multiply-adds (portable code rounds each product first).
//!
//! A block packs its rows of x once, in strips `[steps, LANES]` with a row of x in each lane, which
//! stay in the second-level cache. Rows of the weight go past them, `mr` at a time and three strips
//! at a time, each element broadcast to all lanes: a weight that is stored in the format of the multiply-add is read in
//! place, another is converted into the first-level cache, once for all rows of the block. So
//! nothing is transposed but x and, in registers, the finished accumulators.

use super::super::accumulators::Start;
use super::super::blocking::{Blocked, Blocking};
use super::super::epilogue::Epilogue;
use super::super::microkernel::{Bf16, Dot, F32, Operands, Prefetch, microkernel};
use super::super::pack::{self, Halves, Lanes32, pack_pairs, pack_panel, round_row, widen_row};
use super::super::simd::{Bf16Kernel, Bf16Vector, Kernel, Vector, prefetch_far};
use super::super::view::Rows;
use super::block::{Block, Partition, Submatrix, k_block};
use crate::weights::Dtype;

/// The partition of the output. x is packed again for every block of columns; where there is one k
/// block, a block can have them all.
pub(super) fn partition(blocking: Blocking, elements: usize, k: usize) -> Partition {
    let columns_max = if k <= blocking.kc * elements { usize::MAX } else { blocking.nc };
    Partition { blocking, rows_min: blocking.nr, columns_max, x_cost: 1, blocks_per_worker: 4 }
}

/// Floats of scratch that a worker needs at most, for steps of `elements` elements.
pub(super) fn scratch_floats(blocking: Blocking, elements: usize) -> usize {
    let Blocking { mc, nc, kc, .. } = blocking;
    ScratchSizes::new(blocking, mc, nc, kc, elements).total()
}

impl Kernel for Block<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller vouches for the instructions.
        unsafe { self.compute_in::<V, F32>() }
    }
}

impl Bf16Kernel for Block<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        // SAFETY: the caller vouches for the instructions.
        unsafe { self.compute_in::<V, Bf16>() }
    }
}

/// Floats of each buffer in a worker's scratch.
struct ScratchSizes {
    x: usize,
    acc: usize,
    weights: usize,
    rounded: usize,
}

impl ScratchSizes {
    /// For blocks of `rows` rows and `columns` columns whose accumulators are kept, and k blocks of
    /// `steps`, which are `elements` elements each.
    fn new(blocking: Blocking, rows: usize, columns: usize, steps: usize, elements: usize) -> Self {
        let Blocking { lanes, group, .. } = blocking;
        let rows = rows.next_multiple_of(lanes);
        Self {
            x: rows / lanes * strip_stride(steps, lanes),
            acc: rows * columns.next_multiple_of(group),
            weights: group * weight_stride(steps),
            rounded: if elements > 1 { lanes * steps } else { 0 },
        }
    }

    fn total(&self) -> usize {
        self.x + self.acc + self.weights + self.rounded
    }
}

/// Floats from one strip of x to the next: an odd number of steps, so that the strips of a
/// microkernel lie in different sets of the first-level cache.
fn strip_stride(steps: usize, lanes: usize) -> usize {
    (steps | 1) * lanes
}

/// Floats from one converted row of the weight to the next: an odd number of cache lines, as of
/// strips.
fn weight_stride(steps: usize) -> usize {
    (steps.div_ceil(16) | 1) * 16
}

impl Block<'_, '_> {
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn compute_in<V: Blocked, M: Operand<V>>(self) {
        // With one strip a few rows of the weight have too few chains to hide the latency of a
        // multiply-add: take a whole group.
        let is_one_strip = self.rows.len() <= V::LANES;
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            match (V::BLOCKING.mr, is_one_strip) {
                (8, true) => self.compute::<V, M, 16>(),
                (8, false) => self.compute::<V, M, 8>(),
                (6, true) => self.compute::<V, M, 12>(),
                (6, false) => self.compute::<V, M, 6>(),
                _ => self.compute::<V, M, 4>(),
            }
        }
    }

    /// Computes the block with microkernels of `ROWS` rows of the weight, a divisor of the group.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn compute<V: Blocked, M: Operand<V>, const ROWS: usize>(self) {
        let Self { gemm, out, rows, columns, scratch } = self;
        let Blocking { mr, kc, group, .. } = V::BLOCKING;
        let k = gemm.weight.cols();
        let k_block = k_block(k, kc * M::ELEMENTS, V::LANES * M::ELEMENTS);
        // An empty sum takes one k block too, of no elements.
        let k_blocks = k.div_ceil(k_block).max(1);
        // Accumulators of the only k block go to the output at once, and are kept for one group of
        // columns only.
        let kept = if k_blocks == 1 { group } else { columns.len() };
        let steps_max = k_block.div_ceil(M::ELEMENTS);
        let sizes = ScratchSizes::new(V::BLOCKING, rows.len(), kept, steps_max, M::ELEMENTS);
        let (x, rest) = scratch.floats(sizes.total()).split_at_mut(sizes.x);
        let (acc, rest) = rest.split_at_mut(sizes.acc);
        let (weights, rounded) = rest.split_at_mut(sizes.weights);
        let strips = rows.len().div_ceil(V::LANES);
        let strip_stride = strip_stride(steps_max, V::LANES);
        // Of each group `[group, strips * LANES]`.
        let acc_stride = strips * V::LANES;
        let tiles = strips.div_ceil(V::NR_VECTORS);
        for index in 0..k_blocks {
            let col = index * k_block;
            let cols = (k - col).min(k_block);
            let steps = cols.div_ceil(M::ELEMENTS);
            for strip in 0..strips {
                let row = rows.start + strip * V::LANES;
                let part = Submatrix { row, rows: V::LANES.min(rows.end - row), col, cols };
                let to = x[strip * strip_stride..].as_mut_ptr();
                // SAFETY: the caller vouches for the instructions; the part lies inside x; a strip has
                // `LANES` columns of `steps` steps; `rounded` as many where it is used.
                unsafe { M::pack_x(&gemm.x, part, to, rounded) };
            }
            for first in (0..columns.len()).step_by(group) {
                let acc_first = if k_blocks == 1 { 0 } else { first * acc_stride };
                let acc = acc[acc_first..][..group * acc_stride].as_mut_ptr();
                let count = group.min(columns.len() - first);
                let column = columns.start + first;
                let epilogue = Epilogue {
                    out: out.element(rows.start, column),
                    out_stride: out.stride(),
                    columns: count,
                    bias: gemm.bias.map(|bias| bias[column..][..count].as_ptr()),
                    up_bias: None,
                    store: gemm.store,
                };
                if index + 1 == k_blocks {
                    // The output comes from memory; the first-level cache is for x.
                    epilogue.prefetch(rows.len(), count, prefetch_far);
                }
                for column in (0..count).step_by(ROWS) {
                    let row = columns.start + first + column;
                    let stored: [*const u8; ROWS] = gemm.weight.elements(row, columns.end, col);
                    // SAFETY: the caller vouches for the instructions; the rows lie inside the weight;
                    // `weights` has `ROWS` rows of `steps`.
                    let from =
                        unsafe { M::weight_rows(gemm.weight.dtype(), stored, cols, weights.as_mut_ptr()) };
                    let next = (row + ROWS).min(columns.end - 1);
                    let mut prefetch = Prefetch {
                        rows: gemm.weight.elements(next, columns.end, col),
                        step_bytes: M::ELEMENTS * gemm.weight.dtype().size(),
                    };
                    // As even as can be: few chains are slow.
                    for tile in 0..tiles {
                        let strip = strips * tile / tiles;
                        let operands = Operands {
                            steps,
                            panel: x[strip * strip_stride..].as_ptr(),
                            panel_width: V::LANES,
                            panel_stride: strip_stride,
                            acc: acc.wrapping_add(column * acc_stride + strip * V::LANES),
                            acc_stride,
                            start: if index == 0 { Start::Zero } else { Start::Reload },
                        };
                        // SAFETY: the strips and the rows were written above, for `steps` steps; `acc`
                        // has these strips of `ROWS` rows of the group, which the k block before has
                        // spilled, if there was one; all are this worker's alone.
                        unsafe {
                            match strips * (tile + 1) / tiles - strip {
                                1 => microkernel::<V, M, ROWS, 1, 1>(from, operands, prefetch),
                                2 if ROWS == mr => microkernel::<V, M, ROWS, 2, 1>(from, operands, prefetch),
                                3 if ROWS == mr => microkernel::<V, M, ROWS, 3, 1>(from, operands, prefetch),
                                strips => unreachable!("{ROWS} rows of the weight by {strips} strips"),
                            }
                        }
                        prefetch = Prefetch::NONE;
                    }
                }
                if index + 1 < k_blocks {
                    continue;
                }
                // SAFETY: the accumulators of the group were written above, by all k blocks. Blocks of
                // `out` do not overlap, and these rows and columns of it exist.
                unsafe { V::run_apart(StoreColumns { epilogue, acc, acc_stride, rows: rows.len() }) };
            }
        }
    }
}

/// Writes transposed accumulators to the output.
///
/// Its maker vouches for what [`Epilogue::store_columns`] asks.
struct StoreColumns {
    epilogue: Epilogue,
    acc: *const f32,
    acc_stride: usize,
    rows: usize,
}

impl Kernel for StoreColumns {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the maker's promises.
        unsafe { self.epilogue.store_columns::<V>(self.acc, self.acc_stride, self.rows) }
    }
}

/// The operands of a GEMM in the format of a multiply-add.
trait Operand<V>: Dot<V> {
    /// Packs part of x, at most `LANES` rows, as a strip, zeros where there is no row.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the part lies inside x; `strip` is writable for `LANES`
    /// columns times the part's steps, and `rounded` for as many floats where steps are pairs.
    unsafe fn pack_x(x: &Rows, part: Submatrix, strip: *mut f32, rounded: &mut [f32]);

    /// Returns `ROWS` rows of the weight of which `cols` elements are stored at `stored`, in steps:
    /// where they are stored, or converted to `converted`.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; `cols` elements of each row are readable; `converted` is
    /// writable for `ROWS` rows of [`weight_stride`] floats.
    unsafe fn weight_rows<const ROWS: usize>(
        dtype: Dtype,
        stored: [*const u8; ROWS],
        cols: usize,
        converted: *mut f32,
    ) -> [*const f32; ROWS];
}

impl<V: Blocked> Operand<V> for F32 {
    #[inline(always)]
    unsafe fn pack_x(x: &Rows, part: Submatrix, strip: *mut f32, _: &mut [f32]) {
        let row = |r: usize| x.row(part.row + r)[part.col..][..part.cols].as_ptr().cast();
        // SAFETY: the caller's promises.
        unsafe { pack_panel::<V, Lanes32>(row, part.rows, 4 * part.cols, 0, V::LANES, strip) }
    }

    #[inline(always)]
    unsafe fn weight_rows<const ROWS: usize>(
        dtype: Dtype,
        stored: [*const u8; ROWS],
        cols: usize,
        converted: *mut f32,
    ) -> [*const f32; ROWS] {
        if dtype == Dtype::F32 {
            return stored.map(<*const u8>::cast);
        }
        let stride = weight_stride(cols);
        for (r, from) in stored.into_iter().enumerate() {
            let to = converted.wrapping_add(r * stride);
            // SAFETY: the caller's promises.
            unsafe {
                match dtype {
                    Dtype::BF16 => widen_row::<V, pack::Bfloats>(from, cols, to),
                    _ => widen_row::<V, Halves>(from, cols, to),
                }
            }
        }
        std::array::from_fn(|r| converted.wrapping_add(r * stride).cast_const())
    }
}

impl<V: Blocked + Bf16Vector> Operand<V> for Bf16 {
    #[inline(always)]
    unsafe fn pack_x(x: &Rows, part: Submatrix, strip: *mut f32, rounded: &mut [f32]) {
        let row = |r: usize| x.row(part.row + r)[part.col..][..part.cols].as_ptr().cast();
        let stride = part.cols.div_ceil(2);
        let rounded = rounded.as_mut_ptr();
        // SAFETY: the caller's promises; rounded rows are `stride` floats of pairs.
        unsafe {
            pack_pairs::<V>(Dtype::F32, row, part.rows, part.cols, 0, V::LANES, strip, rounded, stride);
        }
    }

    #[inline(always)]
    unsafe fn weight_rows<const ROWS: usize>(
        dtype: Dtype,
        stored: [*const u8; ROWS],
        cols: usize,
        converted: *mut f32,
    ) -> [*const f32; ROWS] {
        if dtype == Dtype::BF16 && cols.is_multiple_of(2) {
            return stored.map(<*const u8>::cast);
        }
        let stride = weight_stride(cols.div_ceil(2));
        for (r, from) in stored.into_iter().enumerate() {
            let to = converted.wrapping_add(r * stride).cast();
            // SAFETY: the caller's promises; rounding changes no bfloat16 value but subnormals, which
            // the multiply-add takes as zero too.
            unsafe {
                match dtype {
                    Dtype::BF16 => round_row::<V, pack::Bfloats>(from, cols, to),
                    Dtype::F16 => round_row::<V, Halves>(from, cols, to),
                    Dtype::F32 => round_row::<V, Lanes32>(from, cols, to),
                }
            }
        }
        std::array::from_fn(|r| converted.wrapping_add(r * stride).cast_const())
    }
}
