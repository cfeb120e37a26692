//! Rows of f32 as tiles of bfloat16 terms.
//!
//! ```text
//! x = x0 + x1 + x2, exactly: the upper 8, the middle 8 and the lower 8 bits of the significand
//! ```
//!
//! Or one term alone, x rounded to bfloat16.

use super::super::simd::Bf16Vector;
use super::tiles::{MR, TILE_K, index_in_tiles};

/// Splits 32 elements into terms and stores them as row `row < MR` of tile `k_tile` along k.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `to` is writable for tiles of `TERMS` terms, `k_tile + 1`
/// of them along k.
#[inline(always)]
pub(in crate::backend::cpu) unsafe fn store_terms<V: Bf16Vector, const TERMS: usize>(
    mut low: V,
    mut high: V,
    row: usize,
    k_tile: usize,
    to: *mut u16,
) {
    const { assert!(2 * V::LANES == TILE_K && (TERMS == 1 || TERMS == 3)) };
    // SAFETY: 32 elements at a row of a tile that the caller vouches for.
    unsafe {
        if TERMS == 1 {
            let to = to.add(index_in_tiles(row, k_tile, 1, 0));
            low.store_bf16(to);
            high.store_bf16(to.add(V::LANES));
            return;
        }
        for term in 0..TERMS {
            low.store_upper_halves(high, to.add(index_in_tiles(row, k_tile, TERMS, term)));
            (low, high) = (low.sub(low.upper_half()), high.sub(high.upper_half()));
        }
    }
}

/// Splits rows of `values` elements into tiles of terms, `[rows / 32, k_tiles, TERMS, 32, 32]`,
/// zeros where there are no rows or elements.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `row(r)` has `values` readable floats for r < `rows`,
/// `values` is at most `32 * k_tiles`, and `to` is writable for all of those tiles.
#[inline(always)]
pub(in crate::backend::cpu) unsafe fn split_rows<V: Bf16Vector, const TERMS: usize>(
    row: impl Fn(usize) -> *const f32,
    rows: usize,
    values: usize,
    k_tiles: usize,
    to: *mut u16,
) {
    for r in 0..rows.next_multiple_of(MR) {
        let to = to.wrapping_add(r / MR * MR * k_tiles * TERMS * TILE_K);
        let (from, values) = if r < rows { (row(r), values) } else { (std::ptr::null(), 0) };
        for k_tile in 0..k_tiles {
            let at = k_tile * TILE_K;
            let count = values.saturating_sub(at).min(TILE_K);
            // SAFETY: row r has `count` values from `at` on; row r % 32 of TERMS tiles is written.
            unsafe {
                let from = from.wrapping_add(at);
                let (low, high) = if count == TILE_K {
                    (V::load(from), V::load(from.add(V::LANES)))
                } else {
                    let first = count.min(V::LANES);
                    (V::load_first(from, first), V::load_first(from.wrapping_add(first), count - first))
                };
                store_terms::<V, TERMS>(low, high, r % MR, k_tile, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::{Bf16Kernel, Isa};
    use crate::backend::cpu::testing::Random;

    struct Split<'a, const TERMS: usize> {
        rows: &'a [Vec<f32>],
        k_tiles: usize,
        to: &'a mut [u16],
    }

    impl<const TERMS: usize> Bf16Kernel for Split<'_, TERMS> {
        #[inline(always)]
        unsafe fn run<V: Bf16Vector>(self) {
            let Self { rows, k_tiles, to } = self;
            assert_eq!(to.len(), rows.len().next_multiple_of(MR) * k_tiles * TILE_K * TERMS);
            let row = |r: usize| rows[r].as_ptr();
            // SAFETY: the caller vouches for the instructions; all rows have one length, and `to`
            // has all of their tiles.
            unsafe { split_rows::<V, TERMS>(row, rows.len(), rows[0].len(), k_tiles, to.as_mut_ptr()) };
        }
    }

    fn check<const TERMS: usize>(isa: Isa, rows: &[Vec<f32>], k_tiles: usize) {
        let Some(bf16) = isa.bf16() else { return };
        let rows_of_tiles = rows.len().next_multiple_of(MR);
        let mut tiles = vec![0xffff; rows_of_tiles * k_tiles * TILE_K * TERMS];
        bf16.run(Split::<TERMS> { rows, k_tiles, to: &mut tiles });
        for r in 0..rows_of_tiles {
            for i in 0..k_tiles * TILE_K {
                let tile = r / MR * MR * k_tiles * TERMS * TILE_K;
                let at = |term| tiles[tile + index_in_tiles(r % MR, i / TILE_K, TERMS, term) + i % TILE_K];
                let got: [_; TERMS] = std::array::from_fn(|i| half::bf16::from_bits(at(i)).to_f32());
                let x = rows.get(r).and_then(|row| row.get(i)).copied().unwrap_or(0.0);
                let what = format!("{} [{r}, {i}] {x:e}: {got:?}", bf16.name());
                if TERMS == 1 {
                    assert_eq!(got[0], half::bf16::from_f32(x).to_f32(), "{what}");
                } else {
                    assert_eq!(got.iter().map(|term| f64::from(*term)).sum::<f64>(), f64::from(x), "{what}");
                }
            }
        }
    }

    #[test]
    fn rows_are_the_sums_of_their_terms_or_rounded() {
        let mut random = Random::new(3);
        for (rows, values, k_tiles) in [(1, 1, 1), (5, 16, 1), (32, 64, 2), (33, 47, 2), (70, 65, 4)] {
            let mut rows: Vec<_> = (0..rows).map(|_| random.values(values)).collect();
            for (row, x) in rows.iter_mut().zip([f32::MAX, 1.0, -f32::MIN_POSITIVE, 0.0, -1.0 - f32::EPSILON])
            {
                row[values - 1] = x;
            }
            for isa in Isa::for_tests() {
                check::<1>(isa, &rows, k_tiles);
                check::<3>(isa, &rows, k_tiles);
            }
        }
    }
}
