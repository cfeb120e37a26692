//! Rows of f32 as tiles of bfloat16 parts.
//!
//! ```text
//! x = x0 + x1 + x2, exactly: the upper 8, the middle 8 and the lower 8 bits of the significand
//! ```
//!
//! Or one part alone, x rounded to bfloat16.

use super::super::simd::Bf16Vector;
use super::{BLOCK, ROWS, row_of_tiles};

/// Stores 32 values in parts, as row `row` (below 32) of block `block`.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `to` is writable for tiles of `PARTS` parts, `block + 1` blocks of them.
#[inline(always)]
pub(in super::super) unsafe fn put_parts<V: Bf16Vector, const PARTS: usize>(
    mut low: V,
    mut high: V,
    row: usize,
    block: usize,
    to: *mut u16,
) {
    const { assert!(2 * V::LANES == BLOCK && (PARTS == 1 || PARTS == 3)) };
    // SAFETY: 32 values at a row of a tile that the caller vouches for.
    unsafe {
        if PARTS == 1 {
            let to = to.add(row_of_tiles(row, block, 1, 0));
            low.store_bf16(to);
            high.store_bf16(to.add(V::LANES));
            return;
        }
        for part in 0..PARTS {
            low.store_upper_halves(high, to.add(row_of_tiles(row, block, PARTS, part)));
            (low, high) = (low.sub(low.upper_half()), high.sub(high.upper_half()));
        }
    }
}

/// Cuts rows of `values` values into tiles of parts, `[rows / 32, blocks, PARTS, 32, 32]`, zeros where there are no rows or
/// values.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `row(r)` has `values` readable floats for r < `rows`, which are at most 32 for each of
/// `blocks`; `to` is writable for all of those tiles.
#[inline(always)]
pub(in super::super) unsafe fn cut_rows<V: Bf16Vector, const PARTS: usize>(
    row: impl Fn(usize) -> *const f32,
    rows: usize,
    values: usize,
    blocks: usize,
    to: *mut u16,
) {
    for r in 0..rows.next_multiple_of(ROWS) {
        let to = to.wrapping_add(r / ROWS * ROWS * blocks * PARTS * BLOCK);
        let (from, values) = if r < rows { (row(r), values) } else { (std::ptr::null(), 0) };
        for block in 0..blocks {
            let at = block * BLOCK;
            let count = values.saturating_sub(at).min(BLOCK);
            // SAFETY: row r has `count` values from `at` on; row r % 32 of PARTS tiles is written.
            unsafe {
                let from = from.wrapping_add(at);
                let (low, high) = if count == BLOCK {
                    (V::load(from), V::load(from.add(V::LANES)))
                } else {
                    let first = count.min(V::LANES);
                    (V::load_first(from, first), V::load_first(from.wrapping_add(first), count - first))
                };
                put_parts::<V, PARTS>(low, high, r % ROWS, block, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::simd::{Bf16Kernel, Isa};
    use super::*;
    use crate::backend::cpu::testing::Random;

    struct Cut<'a, const PARTS: usize> {
        rows: &'a [Vec<f32>],
        blocks: usize,
        to: &'a mut [u16],
    }

    impl<const PARTS: usize> Bf16Kernel for Cut<'_, PARTS> {
        #[inline(always)]
        unsafe fn run<V: Bf16Vector>(self) {
            let Self { rows, blocks, to } = self;
            assert_eq!(to.len(), rows.len().next_multiple_of(ROWS) * blocks * BLOCK * PARTS);
            let row = |r: usize| rows[r].as_ptr();
            // SAFETY: the caller vouches for the instructions; all rows are equally long, and `to` has all of their tiles.
            unsafe { cut_rows::<V, PARTS>(row, rows.len(), rows[0].len(), blocks, to.as_mut_ptr()) };
        }
    }

    fn check<const PARTS: usize>(isa: Isa, rows: &[Vec<f32>], blocks: usize) {
        let Some(bf16) = isa.bf16() else { return };
        let rows_of_tiles = rows.len().next_multiple_of(ROWS);
        let mut tiles = vec![0xffff; rows_of_tiles * blocks * BLOCK * PARTS];
        bf16.run(Cut::<PARTS> { rows, blocks, to: &mut tiles });
        for r in 0..rows_of_tiles {
            for i in 0..blocks * BLOCK {
                let tile = r / ROWS * ROWS * blocks * PARTS * BLOCK;
                let part = |part| tiles[tile + row_of_tiles(r % ROWS, i / BLOCK, PARTS, part) + i % BLOCK];
                let got: [_; PARTS] = std::array::from_fn(|i| half::bf16::from_bits(part(i)).to_f32());
                let x = rows.get(r).and_then(|row| row.get(i)).copied().unwrap_or(0.0);
                let what = format!("{} [{r}, {i}] {x:e}: {got:?}", bf16.name());
                if PARTS == 1 {
                    assert_eq!(got[0], half::bf16::from_f32(x).to_f32(), "{what}");
                } else {
                    assert_eq!(got.iter().map(|part| f64::from(*part)).sum::<f64>(), f64::from(x), "{what}");
                }
            }
        }
    }

    #[test]
    fn rows_are_the_sums_of_their_parts_or_rounded() {
        let mut random = Random::new(3);
        for (rows, values, blocks) in [(1, 1, 1), (5, 16, 1), (32, 64, 2), (33, 47, 2), (70, 65, 4)] {
            let mut rows: Vec<_> = (0..rows).map(|_| random.values(values)).collect();
            for (row, x) in rows.iter_mut().zip([f32::MAX, 1.0, -f32::MIN_POSITIVE, 0.0, -1.0 - f32::EPSILON])
            {
                row[values - 1] = x;
            }
            for isa in Isa::for_tests() {
                check::<1>(isa, &rows, blocks);
                check::<3>(isa, &rows, blocks);
            }
        }
    }
}
