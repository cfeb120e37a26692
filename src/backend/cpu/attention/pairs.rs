//! The matmuls of attention by bfloat16 instructions of vectors: the GEMM's microkernel over panels of
//! Kᵀ and of V, queries, keys, values and probabilities rounded to bfloat16.
//!
//! Steps are pairs: of dimensions for S, of keys for O. So a key that a row does not see may stand in a
//! pair with one that it sees: its probability is zero, and its value finite ([`NonFinite`]).

use super::super::blocking::Blocked;
use super::super::pack::{Lanes32, pack_pairs, round_row};
use super::super::simd::{Bf16Vector, LANES_MAX, Vector};
use super::super::threads::Scratch;
use super::matmuls::Matmuls;
use super::non_finite::NonFinite;
use super::plan::Heads;
use super::softmax::Running;
use super::task::{KEYS, ROWS_MAX, Task, Tile};
use super::vector::{Columns, VALUE_VECTORS};
use crate::weights::Dtype;

/// Vectors of a panel of keys.
const KEY_VECTORS: usize = 3;

/// Floats of scratch that a worker needs for `rows` rows.
pub(super) fn scratch_floats(heads: Heads, rows: usize, lanes: usize, mr: usize) -> usize {
    ScratchSizes::new(heads.head_dim, rows, lanes, mr).total()
        + Running::floats(rows, heads.head_dim.next_multiple_of(lanes))
}

/// Floats of each buffer in a worker's scratch.
struct ScratchSizes {
    k: usize,
    v: usize,
    scores: usize,
    p: usize,
    q: usize,
    rounded: usize,
}

impl ScratchSizes {
    fn new(head_dim: usize, rows: usize, lanes: usize, mr: usize) -> Self {
        let pairs = head_dim.div_ceil(2);
        Self {
            k: KEYS * pairs,
            v: KEYS / 2 * head_dim.next_multiple_of(VALUE_VECTORS * lanes),
            scores: mr * KEYS,
            p: mr * KEYS / 2,
            q: rows * pairs,
            rounded: KEY_VECTORS * lanes * pairs,
        }
    }

    fn total(&self) -> usize {
        self.k + self.v + self.scores + self.p + self.q + self.rounded
    }
}

/// A worker's scratch in use.
pub(super) struct Pairs<'b> {
    head_dim: usize,
    /// Panels `[head_dim / 2, keys of a panel]`.
    k: &'b mut [f32],
    /// Panels `[KEYS / 2, dims of a panel]`.
    v: &'b mut [f32],
    /// `[mr, KEYS]`.
    scores: &'b mut [f32],
    /// `[mr, KEYS / 2]`.
    p: &'b mut [f32],
    /// `[rows, head_dim / 2]`.
    q: &'b mut [f32],
    /// The keys of a panel before they are transposed, `[keys, head_dim / 2]`.
    rounded: &'b mut [f32],
    non_finite: NonFinite,
}

impl<'b> Pairs<'b> {
    /// Divides `scratch` for `task`.
    #[inline(always)]
    pub(super) fn new<V: Blocked>(task: &Task, scratch: &'b mut Scratch) -> (Self, Running<'b>) {
        const { assert!(V::NR_VECTORS == KEY_VECTORS) };
        let (head_dim, rows) = (task.head_dim(), task.rows());
        let o_stride = head_dim.next_multiple_of(V::LANES);
        let sizes = ScratchSizes::new(head_dim, rows, V::LANES, V::BLOCKING.mr);
        let scratch = scratch.floats(sizes.total() + Running::floats(rows, o_stride));
        let (k, rest) = scratch.split_at_mut(sizes.k);
        let (v, rest) = rest.split_at_mut(sizes.v);
        let (scores, rest) = rest.split_at_mut(sizes.scores);
        let (p, rest) = rest.split_at_mut(sizes.p);
        let (q, rest) = rest.split_at_mut(sizes.q);
        let (rounded, rest) = rest.split_at_mut(sizes.rounded);
        let non_finite = NonFinite::default();
        let pairs = Self { head_dim, k, v, scores, p, q, rounded, non_finite };
        (pairs, Running::new(task, rows, o_stride, rest))
    }

    /// Packs a tile's values. Returns false when one is not finite.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn pack_values<V: Bf16Vector>(&mut self, task: &Task, key_rows: &[usize]) -> bool {
        // Zero times all values: NaN where one is not finite.
        // SAFETY: the caller vouches for the instructions.
        let mut zeros = unsafe { V::splat(0.0) };
        for key in (0..key_rows.len()).step_by(2) {
            let even = task.value(key_rows[key]).as_ptr();
            let odd = key_rows.get(key + 1).map_or(std::ptr::null(), |row| task.value(*row).as_ptr());
            for dim in (0..self.head_dim).step_by(V::LANES) {
                let count = V::LANES.min(self.head_dim - dim);
                let to = self.v[pair_of_value::<V>(key, dim)..][..V::LANES].as_mut_ptr();
                // SAFETY: the caller vouches for the instructions; `count` floats of a value are read
                // from `dim` on, none where there is no key; `to` has LANES floats.
                unsafe {
                    let even = V::load_first(even.wrapping_add(dim), count).nearest_bf16();
                    let odd_count = if odd.is_null() { 0 } else { count };
                    let odd = V::load_first(odd.wrapping_add(dim), odd_count).nearest_bf16();
                    zeros = even.mul_add(V::splat(0.0), zeros);
                    zeros = odd.mul_add(V::splat(0.0), zeros);
                    even.pair_upper_halves(odd).store(to);
                }
            }
        }
        let mut lanes = [0.0f32; LANES_MAX];
        // SAFETY: the caller vouches for the instructions; `lanes` has LANES_MAX floats.
        unsafe { zeros.store(lanes.as_mut_ptr()) };
        lanes.iter().all(|zero| *zero == 0.0)
    }

    /// Zeroes the values that are not finite, and records the rows that see them.
    #[cold]
    fn zero_non_finite<V: Bf16Vector>(&mut self, task: &Task, first_key: usize, keys: usize) {
        for key in 0..keys {
            let shift = 16 * (key as u32 % 2);
            for dim in 0..self.head_dim {
                let pair = &mut self.v[pair_of_value::<V>(key, dim)];
                if !f32::from_bits(pair.to_bits() >> shift << 16).is_finite() {
                    *pair = f32::from_bits(pair.to_bits() & !(0xffff << shift));
                    self.non_finite.record(task, first_key + key, dim);
                }
            }
        }
    }
}

/// Returns the index in panels of V of the pair that has the value of `key` in dimension `dim`.
#[inline(always)]
const fn pair_of_value<V: Vector>(key: usize, dim: usize) -> usize {
    let width = VALUE_VECTORS * V::LANES;
    dim / width * (KEYS / 2 * width) + key / 2 * width + dim % width
}

impl<V: Blocked + Bf16Vector> Matmuls<V> for Pairs<'_> {
    const ROWS: usize = V::BLOCKING.mr;
    const ALIGNMENT: usize = 1;

    #[inline(always)]
    unsafe fn gather_queries(&mut self, task: &Task) {
        for (r, to) in self.q.chunks_exact_mut(self.head_dim.div_ceil(2)).enumerate() {
            let (from, to) = (task.query(r).as_ptr().cast(), to.as_mut_ptr().cast());
            // SAFETY: the caller vouches for the instructions; a query has head_dim floats, and `to`
            // as many values, rounded up to a pair.
            unsafe { round_row::<V, Lanes32>(from, self.head_dim, to) };
        }
    }

    #[inline(always)]
    unsafe fn gather_keys(&mut self, task: &Task, first_key: usize, key_rows: &[usize]) {
        let (width, pairs) = (KEY_VECTORS * V::LANES, self.head_dim.div_ceil(2));
        for (panel, key_rows) in self.k.chunks_exact_mut(width * pairs).zip(key_rows.chunks(width)) {
            let row = |r: usize| task.key(key_rows[r]).as_ptr().cast();
            let (panel, rounded, count) = (panel.as_mut_ptr(), self.rounded.as_mut_ptr(), key_rows.len());
            let (dims, dtype) = (self.head_dim, Dtype::F32);
            // SAFETY: the caller vouches for the instructions; a key has head_dim floats; the panel
            // and `rounded` have a float for each of its pairs.
            unsafe { pack_pairs::<V>(dtype, row, count, dims, 0, width, panel, rounded, pairs) };
        }
        // SAFETY: the caller vouches for the instructions.
        let is_finite = unsafe { self.pack_values::<V>(task, key_rows) };
        if !is_finite {
            self.zero_non_finite::<V>(task, first_key, key_rows.len());
        }
    }

    #[inline(always)]
    unsafe fn score(&mut self, tile: &Tile) {
        const { assert!(V::BLOCKING.mr <= ROWS_MAX) };
        let pairs = self.head_dim.div_ceil(2);
        let columns = Columns::<KEY_VECTORS>::of_scores::<V>(tile, self.q, self.k, pairs, self.scores);
        // SAFETY: `q` has these rows, `k` the panels of KEYS keys, `scores` `mr` rows of KEYS.
        unsafe { V::run_bf16_apart(columns) };
    }

    #[inline(always)]
    fn scores(&mut self) -> &mut [f32] {
        self.scores
    }

    #[inline(always)]
    unsafe fn store_probabilities(&mut self, r: usize, key: usize, p: [V; 2]) -> [V; 2] {
        let to = self.p[(r * KEYS + key) / 2..][..V::LANES].as_mut_ptr().cast::<u16>();
        // SAFETY: the caller vouches for the instructions; two vectors of values, half as wide.
        unsafe {
            p[0].store_bf16(to);
            p[1].store_bf16(to.add(V::LANES));
            // Then the weights of the values add up to 1, as rounded.
            [p[0].nearest_bf16(), p[1].nearest_bf16()]
        }
    }

    #[inline(always)]
    unsafe fn add_values(&mut self, tile: &Tile, o: &mut [f32], o_stride: usize) {
        for run in tile.runs(2) {
            let columns = Columns::of_values::<V>(tile, run, 2, self.p, self.v, o, o_stride);
            // SAFETY: `p` has these rows and pairs, zeros for keys that a row does not see, written by
            // the softmax; `v` the panels of all dims with the pairs of KEYS keys, gathered as far as
            // the last row sees; `o` rows of padded width, which are written: in their first tile,
            // where each sees key 0, or before all tiles.
            unsafe { V::run_bf16_apart(columns) };
        }
    }

    #[inline(always)]
    fn finish(&self, task: &Task, o: &mut [f32], o_stride: usize) {
        self.non_finite.finish(task, o, o_stride);
    }
}
