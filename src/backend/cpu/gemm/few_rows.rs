//! Few rows of x: a row of the weight in each lane.
//!
//! With a row of x in each lane, few rows leave lanes idle, and a weight is read no faster than its
//! elements are broadcast. Here squares of the weight are transposed in registers, and elements of x
//! are broadcast: a matmul takes little more than reading the weight, until there are enough rows to
//! fill the multiply-adds. The chain of an element is the same.

use super::super::accumulators::Start;
use super::super::microkernel::{Bf16, Dot, F32, Prefetch};
use super::super::simd::{Bf16Kernel, Bf16Vector, Kernel, LANES_MAX, Vector, prefetch_far};

/// As many rows of the weight as a vector has lanes, times the rows of one strip of x.
///
/// Its maker vouches that the rows of the weight, `steps` steps of [`pack`]'s x, and whole vectors of
/// `acc`, `LANES` rows of them, exist, and that no other thread touches the accumulators.
pub(super) struct FewRows {
    /// Rows of the weight, `LANES` of them.
    pub(super) weight: [*const u8; LANES_MAX],
    /// The contents of 32 bits of a row.
    pub(super) lane: Lane,
    /// Rows that are multiplied next, to be prefetched.
    pub(super) next: Prefetch<LANES_MAX>,
    /// By [`pack`].
    pub(super) x: *const f32,
    pub(super) steps: usize,
    /// Rows of x, at most `LANES`.
    pub(super) rows: usize,
    /// `[LANES, acc_stride]`: a row of the weight in each row, a row of x in each lane.
    pub(super) acc: *mut f32,
    pub(super) acc_stride: usize,
    pub(super) start: Start,
}

/// The contents of 32 bits of a row of the weight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// A step.
    Step,
    /// Two elements in bfloat16, each of which is a step when it is widened.
    BfloatPair,
}

/// Rows of x at a time, of `rows` that are left: a power of two, and at most half as many as a vector
/// has lanes, for accumulators share the registers with a square of the weight.
fn tile_rows(rows: usize, lanes: usize) -> usize {
    rows.next_power_of_two().min(lanes / 2)
}

/// Packs the first `rows` rows of a strip of `lanes` as [`FewRows`] reads them: `[steps, tile]` for each
/// tile of rows, so that a step of few rows takes little of a cache line.
///
/// # Safety
///
/// `strip` is readable and `to` writable for `lanes` floats of each step; they do not overlap.
pub(super) unsafe fn pack(strip: *const f32, lanes: usize, steps: usize, rows: usize, to: *mut f32) {
    let mut row = 0;
    while row < rows {
        let tile = tile_rows(rows - row, lanes);
        let to = to.wrapping_add(row * steps);
        for step in 0..steps {
            for r in 0..tile {
                // SAFETY: a tile ends at `lanes` at the latest.
                unsafe { to.add(step * tile + r).write(strip.add(step * lanes + row + r).read()) };
            }
        }
        row += tile;
    }
}

impl Kernel for FewRows {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the maker's promises; the caller vouches for the instructions.
        unsafe { self.multiply::<V, F32>() }
    }
}

impl Bf16Kernel for FewRows {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        // SAFETY: the maker's promises; the caller vouches for the instructions.
        unsafe { self.multiply::<V, Bf16>() }
    }
}

impl FewRows {
    /// Multiplies all rows of x, tile by tile.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn multiply<V: Vector, D: Dot<V>>(&self) {
        // A row of x in each row, a row of the weight in each lane.
        let mut sums = [[0.0f32; LANES_MAX]; LANES_MAX];
        let acc = |column: usize| self.acc.wrapping_add(column.wrapping_mul(self.acc_stride));
        // SAFETY: the maker's promises.
        unsafe {
            if self.start == Start::Reload {
                let square =
                    V::load_square(&std::array::from_fn(|column| acc(column).cast_const().cast()), 0);
                for r in 0..V::LANES {
                    square[r].store(sums[r].as_mut_ptr());
                }
            }
            let mut row = 0;
            while row < self.rows {
                let tile = tile_rows(self.rows - row, V::LANES);
                match tile {
                    1 => self.multiply_rows::<V, D, 1>(row, &mut sums[row..]),
                    2 => self.multiply_rows::<V, D, 2>(row, &mut sums[row..]),
                    4 if V::LANES >= 8 => self.multiply_rows::<V, D, 4>(row, &mut sums[row..]),
                    8 if V::LANES >= 16 => self.multiply_rows::<V, D, 8>(row, &mut sums[row..]),
                    _ => unreachable!("{tile} rows in {} lanes", V::LANES),
                }
                row += tile;
            }
            let square = V::load_square(&std::array::from_fn(|r| sums[r].as_ptr().cast()), 0);
            for column in 0..V::LANES {
                square[column].store(acc(column));
            }
        }
    }

    /// Adds the products of `ROWS` rows of x from `row` on to `sums`. Where a row is missing, what
    /// lies in the strip is multiplied.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn multiply_rows<V: Vector, D: Dot<V>, const ROWS: usize>(
        &self,
        row: usize,
        sums: &mut [[f32; LANES_MAX]],
    ) {
        // SAFETY: the maker's promises.
        unsafe {
            let mut acc = [V::splat(0.0); ROWS];
            for r in 0..ROWS {
                acc[r] = V::load(sums[r].as_ptr());
            }
            let x = self.x.wrapping_add(row * self.steps);
            acc = match self.lane {
                Lane::Step => self.add_steps::<V, D, ROWS>(acc, x),
                Lane::BfloatPair => self.add_widened::<V, ROWS>(acc, x),
            };
            for r in 0..ROWS {
                acc[r].store(sums[r].as_mut_ptr());
            }
        }
    }

    /// Adds the products of rows in steps.
    ///
    /// # Safety
    ///
    /// As [`multiply_rows`](Self::multiply_rows); `x` is `[steps, ROWS]`.
    #[inline(always)]
    unsafe fn add_steps<V: Vector, D: Dot<V>, const ROWS: usize>(
        &self,
        mut acc: [V; ROWS],
        mut x: *const f32,
    ) -> [V; ROWS] {
        let whole = self.steps - self.steps % V::LANES;
        // SAFETY: the maker's promises, for whole squares and for the rest through a buffer.
        unsafe {
            for step in (0..whole).step_by(V::LANES) {
                self.next.fetch(step, prefetch_far);
                let square = V::load_square(&self.weight, 4 * step);
                for s in 0..V::LANES {
                    acc = add_step::<V, D, ROWS>(acc, square[s], x);
                    x = x.wrapping_add(ROWS);
                }
            }
            if whole < self.steps {
                let square = self.last_square::<V>(4 * whole, 4 * (self.steps - whole));
                for s in 0..self.steps - whole {
                    acc = add_step::<V, D, ROWS>(acc, square[s], x);
                    x = x.wrapping_add(ROWS);
                }
            }
        }
        acc
    }

    /// Adds the products of rows in bfloat16, widened.
    ///
    /// # Safety
    ///
    /// As [`add_steps`](Self::add_steps).
    #[inline(always)]
    unsafe fn add_widened<V: Vector, const ROWS: usize>(
        &self,
        mut acc: [V; ROWS],
        mut x: *const f32,
    ) -> [V; ROWS] {
        let whole = self.steps - self.steps % (2 * V::LANES);
        // SAFETY: as in `add_steps`.
        unsafe {
            for step in (0..whole).step_by(2 * V::LANES) {
                self.next.fetch(step, prefetch_far);
                let square = V::load_square(&self.weight, 2 * step);
                for s in 0..V::LANES {
                    let (first, second) = square[s].widen_bf16_pairs();
                    acc = add_step::<V, F32, ROWS>(acc, first, x);
                    acc = add_step::<V, F32, ROWS>(acc, second, x.wrapping_add(ROWS));
                    x = x.wrapping_add(2 * ROWS);
                }
            }
            if whole < self.steps {
                let square = self.last_square::<V>(2 * whole, 2 * (self.steps - whole));
                for s in 0..self.steps - whole {
                    let (first, second) = square[s / 2].widen_bf16_pairs();
                    let element = if s.is_multiple_of(2) { first } else { second };
                    acc = add_step::<V, F32, ROWS>(acc, element, x);
                    x = x.wrapping_add(ROWS);
                }
            }
        }
        acc
    }

    /// Loads what is less than a square: `bytes` bytes of each row at `offset`, zeros behind them.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the rows have these bytes.
    #[inline(always)]
    unsafe fn last_square<V: Vector>(&self, offset: usize, bytes: usize) -> [V; LANES_MAX] {
        let mut square = [[0u8; 4 * LANES_MAX]; LANES_MAX];
        // SAFETY: the caller's promise; a row of the square holds as many.
        unsafe {
            for r in 0..V::LANES {
                let from = self.weight[r].wrapping_add(offset);
                std::ptr::copy_nonoverlapping(from, square[r].as_mut_ptr(), bytes);
            }
            V::load_square(&std::array::from_fn(|r| square[r].as_ptr()), 0)
        }
    }
}

/// Adds the products of a step of the weight and `ROWS` elements at `x`.
///
/// # Safety
///
/// The CPU has the instructions of `V`; the elements are readable.
#[inline(always)]
unsafe fn add_step<V: Vector, D: Dot<V>, const ROWS: usize>(
    mut acc: [V; ROWS],
    weight: V,
    x: *const f32,
) -> [V; ROWS] {
    for r in 0..ROWS {
        // SAFETY: the caller's promises.
        acc[r] = unsafe { D::step(acc[r], weight, V::splat(x.add(r).read_unaligned())) };
    }
    acc
}
