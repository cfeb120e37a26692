//! Online softmax: the state of rows from one tile of keys to the next.

use super::super::simd::{LANES_MAX, PartialSums, Vector, exp2, max_of_rows, tanh};
use super::super::view::SharedRows;
use super::matmuls::Matmuls;
use super::task::{KEYS, Task, Tile};
use crate::config::Scores;

/// Maxima, sums and outputs of a task's rows.
pub(super) struct Running<'b> {
    /// Factor from a difference of scores to an exponent of 2.
    exponent_scale: f32,
    /// Where scores are capped.
    cap: Option<Cap>,
    /// `[rows, o_stride]`.
    pub(super) o: &'b mut [f32],
    pub(super) o_stride: usize,
    /// `[rows, LANES_MAX]`: see [`PartialSums`].
    sums: &'b mut [f32],
    /// `[rows]`
    max: &'b mut [f32],
}

/// `limit * tanh(S / limit)`, for a score before it is divided by the root of its scalar.
#[derive(Clone, Copy)]
struct Cap {
    limit: f32,
    inverse: f32,
}

/// A maximum of no score: below every score, and finite, so that the difference of two is not NaN.
const NO_SCORE: f32 = -1e30;

impl<'b> Running<'b> {
    /// Floats of scratch for `rows` rows.
    pub(super) fn floats(rows: usize, o_stride: usize) -> usize {
        rows * (o_stride + LANES_MAX + 1)
    }

    /// Divides `scratch`, of [`floats`](Self::floats), for `rows` rows, which
    /// [`softmax`](Self::softmax) of the first tile fills, or [`begin`](Self::begin).
    pub(super) fn new(task: &Task, rows: usize, o_stride: usize, scratch: &'b mut [f32]) -> Self {
        let Scores { query_scalar, cap } = task.scoring.scores;
        let exponent_scale = (std::f64::consts::LOG2_E / query_scalar.sqrt()) as f32;
        let cap = cap.map(|cap| {
            let limit = f64::from(cap) * query_scalar.sqrt();
            Cap { limit: limit as f32, inverse: (1.0 / limit) as f32 }
        });
        let (o, rest) = scratch.split_at_mut(rows * o_stride);
        let (sums, max) = rest.split_at_mut(rows * LANES_MAX);
        Self { exponent_scale, cap, o, o_stride, sums, max }
    }

    /// Begins the states of all rows as those of rows that have seen no key.
    pub(super) fn begin(&mut self) {
        self.max.fill(NO_SCORE);
        self.sums.fill(0.0);
        self.o.fill(0.0);
    }

    /// Turns the scores of a tile into probabilities, and rescales the sums and outputs of its rows
    /// to their new maxima.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; `matmuls` has just scored the tile, and all tiles of
    /// keys before it of which a row sees any have been through this.
    #[inline(always)]
    pub(super) unsafe fn softmax<V: Vector, P: Matmuls<V>>(&mut self, matmuls: &mut P, tile: &Tile) {
        for first in (0..tile.seen.len()).step_by(V::LANES) {
            let rows = V::LANES.min(tile.seen.len() - first);
            // SAFETY: the caller's promises.
            unsafe { self.softmax_of_rows(matmuls, tile, first, rows) };
        }
    }

    /// Like [`softmax`](Self::softmax), for `rows <= LANES` rows of the tile from its row `first`
    /// on.
    ///
    /// # Safety
    ///
    /// As [`softmax`](Self::softmax).
    #[inline(always)]
    unsafe fn softmax_of_rows<V: Vector, P: Matmuls<V>>(
        &mut self,
        matmuls: &mut P,
        tile: &Tile,
        first: usize,
        rows: usize,
    ) {
        const { assert!(KEYS.is_multiple_of(2 * LANES_MAX)) };
        let row = tile.row + first;
        let keys_of = |r: usize| {
            let (hidden, seen) = (tile.hidden[first + r], tile.seen[first + r]);
            // From a pair of vectors on; no pair where the row sees none.
            (hidden, if hidden < seen { hidden / (2 * V::LANES) * (2 * V::LANES) } else { seen }, seen)
        };
        // SAFETY: a row of scores is a whole number of pairs of vectors; maxima and `factors` are
        // read and written for `rows` or LANES floats that they have; a row has LANES_MAX partial
        // sums and `o_stride` outputs, both whole vectors.
        unsafe {
            // Each row's maximum lane by lane; then all rows' maxima in one vector.
            let mut max = [V::splat(f32::NEG_INFINITY); LANES_MAX];
            for (r, max) in max.iter_mut().enumerate().take(rows) {
                let (hidden, start, keys) = keys_of(r);
                let scores = &mut matmuls.scores()[(first + r) * KEYS..][..KEYS];
                if let Some(Cap { limit, inverse }) = self.cap {
                    for i in (start..keys).step_by(V::LANES) {
                        let score = V::load(scores.as_ptr().add(i)).mul(V::splat(inverse));
                        tanh(score).mul(V::splat(limit)).store(scores.as_mut_ptr().add(i));
                    }
                }
                scores[start..hidden.max(start)].fill(f32::NEG_INFINITY);
                scores[keys..keys.next_multiple_of(2 * V::LANES)].fill(f32::NEG_INFINITY);
                for i in (start..keys).step_by(V::LANES) {
                    *max = max.max(V::load(scores.as_ptr().add(i)));
                }
            }
            let mut row_max = max_of_rows(max);
            let mut factors = [1.0f32; LANES_MAX];
            let max_at = self.max[row..][..rows].as_mut_ptr();
            let exponent_scale = V::splat(self.exponent_scale);
            if !tile.is_first {
                let before = V::load_first(max_at, rows);
                row_max = before.max(row_max);
                exp2(before.sub(row_max).mul(exponent_scale)).store(factors.as_mut_ptr());
            }
            row_max.store_first(max_at, rows);
            for r in 0..rows {
                let (_, start, keys) = keys_of(r);
                if start == keys && !tile.is_first {
                    continue;
                }
                // Differences are scaled, not the queries: an error in a scaled query would grow
                // with the whole score.
                let max = V::splat(self.max[row + r]);
                let scores = matmuls.scores()[(first + r) * KEYS..][..KEYS].as_ptr();
                let sums_at = self.sums[(row + r) * LANES_MAX..][..LANES_MAX].as_mut_ptr();
                let mut sums = PartialSums::<V>::zero();
                if !tile.is_first {
                    sums = PartialSums::load(sums_at).scale(V::splat(factors[r]));
                }
                for i in (start..keys).step_by(2 * V::LANES) {
                    let low = exp2(V::load(scores.add(i)).sub(max).mul(exponent_scale));
                    let high = exp2(V::load(scores.add(i + V::LANES)).sub(max).mul(exponent_scale));
                    let [low, high] = matmuls.store_probabilities(first + r, i, [low, high]);
                    let sum = sums.of(i / V::LANES);
                    *sum = sum.add(low);
                    let sum = sums.of(i / V::LANES + 1);
                    *sum = sum.add(high);
                }
                sums.store(sums_at);
                // Once a row has met its largest score the factor is exactly 1.
                if factors[r] != 1.0 {
                    let o = self.o[(row + r) * self.o_stride..][..self.o_stride].as_mut_ptr();
                    for i in (0..self.o_stride).step_by(V::LANES) {
                        V::load(o.add(i)).mul(V::splat(factors[r])).store(o.add(i));
                    }
                }
            }
        }
    }

    /// Divides by the sums and writes the rows to `out`.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; no other thread writes the task's rows and heads of
    /// `out`.
    #[inline(always)]
    pub(super) unsafe fn store<V: Vector>(&self, task: &Task, out: SharedRows) {
        let head_dim = task.head_dim();
        for r in 0..task.rows() {
            let (row, column) = task.position(r);
            let from = &self.o[r * self.o_stride..][..self.o_stride];
            // SAFETY: the caller promises that the part is this worker's alone; i + count <=
            // head_dim <= o_stride; a row has LANES_MAX partial sums.
            unsafe {
                let sum = PartialSums::<V>::load(self.sums[r * LANES_MAX..][..LANES_MAX].as_ptr()).total();
                let to = out.part(row, column..column + head_dim);
                for i in (0..head_dim).step_by(V::LANES) {
                    // A matrix unit turns a negative zero positive with a tile of keys of which the
                    // row sees none, so depending on its neighbours: adding zero always does.
                    let o = V::load(from.as_ptr().add(i)).add(V::splat(0.0)).div(V::splat(sum));
                    o.store_first(to.as_mut_ptr().add(i), V::LANES.min(head_dim - i));
                }
            }
        }
    }
}
