//! Blocks of a GEMM by vector instructions: rows of the weight, broadcast where they are mapped,
//! times packed strips of x.
//!
//! The sum over k is one chain of fused multiply-adds (portable code rounds each product first).
//!
//! A block packs its rows of x once, in strips `[steps, LANES]` with a row of x in each lane, which
//! stay in the second-level cache. Rows of the weight go past them, `mr` rows and two or three strips
//! at a time, each element broadcast to all lanes: a weight that is stored in the format of the
//! multiply-add is read in place, another is converted into the first-level cache, once for all rows
//! of the block. So nothing is transposed but x and the finished accumulators, and where those become
//! the strips of the next GEMM, as of gate and up, they are not either. Rows of x that make one strip
//! only are multiplied the other way round (`few_rows`).

use std::ops::Range;

use super::super::accumulators::Start;
use super::super::blocking::{Blocked, Blocking};
use super::super::epilogue::{Epilogue, Store};
use super::super::gate;
use super::super::microkernel::{Bf16, Dot, F32, Operands, Prefetch, microkernel};
use super::super::pack::{Bfloats, Halves, Lanes32, round_row, widen_row};
use super::super::simd::{Bf16Kernel, Bf16Vector, Kernel, LANES_MAX, Vector};
use super::super::strips::{SharedStrips, StripFormat, pack_floats, pack_rounded};
use super::super::view::{Rows, SharedRows, WeightView};
use super::block::{Block, Gemm, Input, Partition, SharedOutput, k_block};
use super::few_rows::{self, FewRows, Lane};
use crate::weights::Dtype;

/// The partition of the output. Where there is one k block, a block can have all columns. Packing an
/// element of x was measured to take 0.37 cycles of Zen 4, which has 16 multiply-adds of f32 or 32 of
/// bfloat16 in one; widening an element of the weight takes half of that.
pub(super) fn partition(blocking: Blocking, format: StripFormat, x: &Input, k: usize) -> Partition {
    let columns_max = if k <= blocking.kc * format.elements { usize::MAX } else { blocking.nc };
    let (x_cost, weight_cost) = if format.elements == 1 { (6, 3) } else { (12, 1) };
    let x_cost = if let Input::Rows(_) = x { x_cost } else { 0 };
    let keeps_x = columns_max == usize::MAX;
    Partition { blocking, rows_multiple: format.lanes, columns_max, x_cost, keeps_x, weight_cost }
}

/// Floats of scratch that a worker needs at most, for strips of `format`.
pub(super) fn scratch_floats(blocking: Blocking, format: StripFormat) -> usize {
    let Blocking { mc, nc, kc, .. } = blocking;
    ScratchSizes::new(blocking, mc, nc, kc * format.elements, format).total()
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
    /// A strip, while x is packed and where there is one alone.
    spare: usize,
}

impl ScratchSizes {
    /// For blocks of `rows` rows and `columns` columns whose accumulators are kept, and k blocks of
    /// `k` elements, which are multiplied in strips of `format`.
    fn new(blocking: Blocking, rows: usize, columns: usize, k: usize, format: StripFormat) -> Self {
        let steps = k.div_ceil(format.elements);
        Self {
            x: format.floats(rows, k),
            acc: rows.next_multiple_of(format.lanes) * columns.next_multiple_of(blocking.group),
            weights: blocking.group * weight_stride(steps),
            spare: format.lanes * steps,
        }
    }

    fn total(&self) -> usize {
        self.x + self.acc + self.weights + self.spare
    }
}

/// Floats from one converted row of the weight to the next: an odd number of cache lines, so that
/// the rows lie in different sets of the first-level cache.
fn weight_stride(steps: usize) -> usize {
    (steps.div_ceil(16) | 1) * 16
}

/// The columns of a group: rows of the weight, or as many of gate as of up.
#[derive(Clone, Copy)]
struct Group {
    /// The first column of the output, and row of the weight.
    first: usize,
    /// Columns of the output.
    columns: usize,
    /// End of the rows of the weight, or of its gate.
    end: usize,
    /// The number of columns before those of up, and the rows from a row of gate to that of up.
    up: Option<(usize, usize)>,
}

impl Group {
    /// The group of at most `group` columns at `column` of the accumulators' columns, which end at
    /// `end`.
    #[inline(always)]
    fn new(gemm: &Gemm, column: usize, end: usize, group: usize) -> Self {
        if !matches!(gemm.store, Store::Gated(_)) {
            return Self { first: column, columns: group.min(end - column), end, up: None };
        }
        // Two columns of accumulators make one of the output.
        let (first, ffn, half) = (column / 2, gemm.weight.rows() / 2, group / 2);
        Self { first, columns: half.min(ffn - first), end: ffn, up: Some((half, ffn)) }
    }

    /// Returns the addresses of element `col` of the rows of the weight from the group's column
    /// `column` on, which may lie in the next group, to be prefetched. Where a row is missing another
    /// one takes its place, whose accumulators are not read.
    #[inline(always)]
    fn elements<const ROWS: usize>(
        &self,
        weight: &WeightView,
        column: usize,
        col: usize,
    ) -> [*const u8; ROWS] {
        let Some((half, up)) = self.up else {
            return weight.elements((self.first + column).min(self.end - 1), self.end, col);
        };
        let first = self.first + column / (2 * half) * half;
        if ROWS <= half {
            let (rows, end) = if column % (2 * half) < half { (0, self.end) } else { (up, up + self.end) };
            return weight.elements((rows + first + column % half).min(end - 1), end, col);
        }
        let mut elements = [std::ptr::null(); ROWS];
        for (i, element) in elements.iter_mut().enumerate() {
            let (rows, end) = if i < half { (0, self.end) } else { (up, up + self.end) };
            *element = weight.element((rows + first + i % half).min(end - 1), col);
        }
        elements
    }
}

impl Block<'_, '_> {
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn compute_in<V: Blocked, M: Operand<V>>(self) {
        let is_strip = self.rows.len() <= V::LANES;
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            match (V::BLOCKING.mr, is_strip) {
                (8, true) => self.compute::<V, M, 16>(),
                (8, false) => self.compute::<V, M, 8>(),
                (6, true) => self.compute::<V, M, 8>(),
                (6, false) => self.compute::<V, M, 6>(),
                _ => self.compute::<V, M, 4>(),
            }
        }
    }

    /// Computes the block with microkernels of `ROWS` rows of the weight, a divisor of the group; with
    /// as many as a vector has lanes where there is one strip.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn compute<V: Blocked, M: Operand<V>, const ROWS: usize>(self) {
        let Self { gemm, out, rows, columns, scratch } = self;
        let Blocking { mr, kc, group, .. } = V::BLOCKING;
        let format = StripFormat { lanes: V::LANES, elements: M::ELEMENTS };
        let (k, dtype) = (gemm.weight.cols(), gemm.weight.dtype());
        let k_block = k_block(k, kc * M::ELEMENTS, V::LANES * M::ELEMENTS);
        // An empty sum takes one k block too, of no elements.
        let k_blocks = k.div_ceil(k_block).max(1);
        // Accumulators of the only k block go to the output at once, and are kept for one group of
        // columns only.
        let kept = if k_blocks == 1 { group } else { columns.len() };
        let sizes = ScratchSizes::new(V::BLOCKING, rows.len(), kept, k_block, format);
        let (floats, is_packed) = scratch.floats_holding(sizes.total(), rows.start);
        // A worker often continues with the same rows of x and other columns.
        let is_packed = is_packed && k_blocks == 1;
        let (packed, rest) = floats.split_at_mut(sizes.x);
        let (acc, rest) = rest.split_at_mut(sizes.acc);
        let (weights, spare) = rest.split_at_mut(sizes.weights);
        let strips = rows.len().div_ceil(V::LANES);
        // Of each group `[group, strips * LANES]`.
        let acc_stride = strips * V::LANES;
        let tiles = strips.div_ceil(V::NR_VECTORS);
        let is_few = ROWS == V::LANES && strips == 1;
        for index in 0..k_blocks {
            let col = index * k_block;
            let cols = (k - col).min(k_block);
            let steps = cols.div_ceil(M::ELEMENTS);
            let start = if index == 0 { Start::Zero } else { Start::Reload };
            let (x, x_stride) = match &gemm.x {
                Input::Strips(strips) => (strips.step(rows.start, col), format.stride(k)),
                Input::Rows(x) => {
                    let stride = format.stride(k_block);
                    for strip in 0..if is_packed { 0 } else { strips } {
                        let row = rows.start + strip * V::LANES;
                        let (rows, cols) = (row..rows.end.min(row + V::LANES), col..col + cols);
                        let to = packed[strip * stride..].as_mut_ptr();
                        // SAFETY: the caller vouches for the instructions; a strip has `LANES` floats
                        // of each step, and so has `spare`.
                        unsafe { M::pack_x(x, rows, cols, to, spare.as_mut_ptr()) };
                    }
                    (packed.as_ptr(), stride)
                }
            };
            if is_few {
                // SAFETY: the strip has these rows and steps, `spare` as many.
                unsafe { few_rows::pack(x, V::LANES, steps, rows.len(), spare.as_mut_ptr()) };
            }
            for first in (0..columns.len()).step_by(group) {
                let columns = Group::new(gemm, columns.start + first, columns.end, group);
                let acc_first = if k_blocks == 1 { 0 } else { first * acc_stride };
                let acc = acc[acc_first..][..group * acc_stride].as_mut_ptr();
                let last = (index + 1 == k_blocks).then(|| StoreGroup {
                    gemm,
                    rows: rows.clone(),
                    columns,
                    acc,
                    acc_stride,
                });
                for column in (0..group).step_by(ROWS) {
                    if columns.up.is_none() && column >= columns.columns {
                        break;
                    }
                    let acc = acc.wrapping_add(column * acc_stride);
                    let stored = columns.elements::<ROWS>(&gemm.weight, column, col);
                    let mut next = Prefetch {
                        rows: columns.elements(&gemm.weight, column + ROWS, col),
                        step_bytes: M::ELEMENTS * dtype.size(),
                    };
                    let weights = weights.as_mut_ptr();
                    if is_few {
                        let (lane, rows) = (M::lane(dtype), rows.len());
                        let weight = match lane {
                            Lane::BfloatPair => stored,
                            // SAFETY: as below.
                            Lane::Step => unsafe {
                                weight_rows::<V, M, ROWS>(dtype, stored, cols, weights)
                                    .map(<*const f32>::cast)
                            },
                        };
                        let weight = padded(weight);
                        let next = Prefetch { rows: padded(next.rows), step_bytes: next.step_bytes };
                        let x = spare.as_ptr();
                        let few = FewRows { weight, lane, next, x, steps, rows, acc, acc_stride, start };
                        // SAFETY: the caller vouches for the instructions; of `LANES` rows of the
                        // weight and of the strip these steps exist, and `acc` has as many rows of
                        // the group, and is this worker's alone.
                        unsafe { M::multiply_apart(few) };
                        continue;
                    }
                    // SAFETY: the caller vouches for the instructions; the rows lie inside the weight;
                    // `weights` has rows of these steps.
                    let from = unsafe { weight_rows::<V, M, ROWS>(dtype, stored, cols, weights) };
                    // As even as can be: few chains are slow.
                    for tile in 0..tiles {
                        let strip = strips * tile / tiles;
                        let operands = Operands {
                            steps,
                            panel: x.wrapping_add(strip * x_stride),
                            panel_width: V::LANES,
                            panel_stride: x_stride,
                            acc: acc.wrapping_add(strip * V::LANES),
                            acc_stride,
                            start,
                        };
                        // SAFETY: the strips have these rows of x, and `from` the rows of the weight,
                        // in as many steps; `acc` has these strips of `ROWS` rows of the group, which
                        // the k block before has spilled, if there was one; it is this worker's alone.
                        unsafe {
                            match strips * (tile + 1) / tiles - strip {
                                1 if ROWS == mr => microkernel::<V, M, ROWS, 1, 1>(from, operands, next),
                                2 if ROWS == mr => microkernel::<V, M, ROWS, 2, 1>(from, operands, next),
                                3 if ROWS == mr => microkernel::<V, M, ROWS, 3, 1>(from, operands, next),
                                strips => unreachable!("{ROWS} rows of the weight by {strips} strips"),
                            }
                        }
                        next = Prefetch::NONE;
                    }
                }
                if let Some(last) = last {
                    // SAFETY: the accumulators of the group were written above, by all k blocks.
                    // Blocks of `out` do not overlap, and these rows and columns of it exist; `gemm`
                    // has checked that gates write strips.
                    unsafe {
                        match out {
                            SharedOutput::Rows(out) => V::run_apart(StoreRows(last, out)),
                            SharedOutput::Strips(out) => M::store_apart(StoreStrips(last, out)),
                        }
                    }
                }
            }
        }
    }
}

/// Returns the addresses with as many behind them as a vector may have lanes.
fn padded<const ROWS: usize>(addresses: [*const u8; ROWS]) -> [*const u8; LANES_MAX] {
    std::array::from_fn(|i| addresses.get(i).copied().unwrap_or(std::ptr::null()))
}

/// Writes the accumulators of a group to the output.
///
/// Its maker vouches that `acc` has been written for all rows and columns, and that no other thread
/// writes these of the output.
struct StoreGroup<'a> {
    gemm: &'a Gemm<'a>,
    rows: Range<usize>,
    columns: Group,
    /// `[group, acc_stride]`: a column of the output in each row.
    acc: *const f32,
    acc_stride: usize,
}

impl StoreGroup<'_> {
    #[inline(always)]
    fn epilogue(&self, out: SharedRows) -> Epilogue {
        let Group { first, columns, .. } = self.columns;
        Epilogue {
            out: out.element(self.rows.start, first),
            out_stride: out.stride(),
            columns,
            bias: self.gemm.bias.map(|bias| bias[first..][..columns].as_ptr()),
            up_bias: None,
            store: self.gemm.store,
        }
    }

    /// Returns output column `column` of the group for `LANES` rows, whose accumulators begin at
    /// `acc`.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the column exists, and the store is gated.
    #[inline(always)]
    unsafe fn gated<V: Vector>(&self, acc: *const f32, column: usize) -> V {
        let (Store::Gated(function), Some((half, up))) = (self.gemm.store, self.columns.up) else {
            unreachable!("strips are written by gates")
        };
        // SAFETY: the caller's and the maker's promises.
        unsafe {
            let at = |column: usize| acc.wrapping_add(column * self.acc_stride);
            let (mut gate, mut of_up) = (V::load(at(column)), V::load(at(half + column)));
            if let Some(bias) = self.gemm.bias {
                gate = gate.add(V::splat(bias[self.columns.first + column]));
                of_up = of_up.add(V::splat(bias[self.columns.first + up + column]));
            }
            gate::apply(function, gate, of_up)
        }
    }

    /// Writes gated columns as steps of strips.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the store is gated.
    #[inline(always)]
    unsafe fn store_strips<V: Vector, M: Operand<V>>(&self, out: SharedStrips) {
        let Group { first, columns, .. } = self.columns;
        for row in self.rows.clone().step_by(V::LANES) {
            let acc = self.acc.wrapping_add(row - self.rows.start);
            let mut step = out.step(row, first);
            for column in (0..columns).step_by(M::ELEMENTS) {
                // SAFETY: the caller's promises; a step has `LANES` floats.
                unsafe {
                    let value = self.gated::<V>(acc, column);
                    let next = if column + 1 < columns && M::ELEMENTS > 1 {
                        self.gated::<V>(acc, column + 1)
                    } else {
                        V::splat(0.0)
                    };
                    M::step_of([value, next]).store(step);
                }
                step = step.wrapping_add(V::LANES);
            }
        }
    }
}

/// Writes a group as rows.
struct StoreRows<'a>(StoreGroup<'a>, SharedRows<'a>);

impl Kernel for StoreRows<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self(group, out) = self;
        // SAFETY: the maker's promises.
        unsafe { group.epilogue(out).store_columns::<V>(group.acc, group.acc_stride, group.rows.len()) }
    }
}

/// Writes a group as strips.
struct StoreStrips<'a>(StoreGroup<'a>, SharedStrips<'a>);

impl Kernel for StoreStrips<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the maker's promises.
        unsafe { self.0.store_strips::<V, F32>(self.1) }
    }
}

impl Bf16Kernel for StoreStrips<'_> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        // SAFETY: the maker's promises.
        unsafe { self.0.store_strips::<V, Bf16>(self.1) }
    }
}

/// The operands of a GEMM in the format of a multiply-add.
trait Operand<V>: Dot<V> {
    /// Packs elements of rows of x, at most `LANES`, as a strip, zeros where there is no row.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; `strip` is writable for `LANES` floats of each step, and
    /// `rounded` for as many where steps are pairs.
    unsafe fn pack_x(x: &Rows, rows: Range<usize>, cols: Range<usize>, strip: *mut f32, rounded: *mut f32);

    /// Returns a step of the next GEMM's x from its elements.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    unsafe fn step_of(elements: [V; 2]) -> V;

    /// Runs `store` in a function of its own, as [`Vector::run_apart`] does.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    unsafe fn store_apart(store: StoreStrips);

    /// Runs `few` in a function of its own.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    unsafe fn multiply_apart(few: FewRows);

    /// The contents of 32 bits of a row that is stored as `dtype`, for [`FewRows`].
    fn lane(dtype: Dtype) -> Lane;

    /// Whether rows of `cols` elements that are stored as `dtype` are in steps already.
    fn reads(dtype: Dtype, cols: usize) -> bool;

    /// Converts `cols` elements, stored as `dtype` at `from`, to steps.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the elements are readable; `to` is writable for as many
    /// steps, rounded up to a cache line.
    unsafe fn convert(dtype: Dtype, from: *const u8, cols: usize, to: *mut f32);
}

/// Returns `ROWS` rows of the weight, of which `cols` elements are stored at `stored`, in steps: where
/// they are stored, or converted to `converted`.
///
/// # Safety
///
/// The CPU has the instructions of `V`; these elements are readable; `converted` is writable for
/// `ROWS` rows of [`weight_stride`] floats.
#[inline(always)]
unsafe fn weight_rows<V, M: Operand<V>, const ROWS: usize>(
    dtype: Dtype,
    stored: [*const u8; ROWS],
    cols: usize,
    converted: *mut f32,
) -> [*const f32; ROWS] {
    if M::reads(dtype, cols) {
        return stored.map(<*const u8>::cast);
    }
    let stride = weight_stride(cols.div_ceil(M::ELEMENTS));
    let mut rows = [std::ptr::null(); ROWS];
    for r in 0..ROWS {
        let to = converted.wrapping_add(r * stride);
        // SAFETY: the caller's promises.
        unsafe { M::convert(dtype, stored[r], cols, to) };
        rows[r] = to.cast_const();
    }
    rows
}

impl<V: Blocked> Operand<V> for F32 {
    #[inline(always)]
    unsafe fn pack_x(x: &Rows, rows: Range<usize>, cols: Range<usize>, strip: *mut f32, _: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { pack_floats::<V>(x, rows, cols, strip) }
    }

    #[inline(always)]
    unsafe fn step_of([element, _]: [V; 2]) -> V {
        element
    }

    #[inline(always)]
    unsafe fn store_apart(store: StoreStrips) {
        // SAFETY: the caller's promise.
        unsafe { V::run_apart(store) }
    }

    #[inline(always)]
    unsafe fn multiply_apart(few: FewRows) {
        // SAFETY: the caller's promise.
        unsafe { V::run_apart(few) }
    }

    fn lane(dtype: Dtype) -> Lane {
        if dtype == Dtype::BF16 { Lane::BfloatPair } else { Lane::Step }
    }

    fn reads(dtype: Dtype, _: usize) -> bool {
        dtype == Dtype::F32
    }

    #[inline(always)]
    unsafe fn convert(dtype: Dtype, from: *const u8, cols: usize, to: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe {
            match dtype {
                Dtype::BF16 => widen_row::<V, Bfloats>(from, cols, to),
                Dtype::F16 => widen_row::<V, Halves>(from, cols, to),
                Dtype::F32 => widen_row::<V, Lanes32>(from, cols, to),
            }
        }
    }
}

impl<V: Blocked + Bf16Vector> Operand<V> for Bf16 {
    #[inline(always)]
    unsafe fn pack_x(x: &Rows, rows: Range<usize>, cols: Range<usize>, strip: *mut f32, rounded: *mut f32) {
        // SAFETY: the caller's promises.
        unsafe { pack_rounded::<V>(x, rows, cols, strip, rounded) }
    }

    #[inline(always)]
    unsafe fn step_of([first, second]: [V; 2]) -> V {
        // SAFETY: the caller's promise.
        unsafe { first.nearest_bf16().pair_upper_halves(second.nearest_bf16()) }
    }

    #[inline(always)]
    unsafe fn store_apart(store: StoreStrips) {
        // SAFETY: the caller's promise.
        unsafe { V::run_bf16_apart(store) }
    }

    #[inline(always)]
    unsafe fn multiply_apart(few: FewRows) {
        // SAFETY: the caller's promise.
        unsafe { V::run_bf16_apart(few) }
    }

    fn lane(_: Dtype) -> Lane {
        Lane::Step
    }

    fn reads(dtype: Dtype, cols: usize) -> bool {
        dtype == Dtype::BF16 && cols.is_multiple_of(2)
    }

    #[inline(always)]
    unsafe fn convert(dtype: Dtype, from: *const u8, cols: usize, to: *mut f32) {
        let to = to.cast();
        // SAFETY: the caller's promises. Rounding changes no bfloat16 value but subnormals, which the
        // multiply-add takes as zero too.
        unsafe {
            match dtype {
                Dtype::BF16 => round_row::<V, Bfloats>(from, cols, to),
                Dtype::F16 => round_row::<V, Halves>(from, cols, to),
                Dtype::F32 => round_row::<V, Lanes32>(from, cols, to),
            }
        }
    }
}
