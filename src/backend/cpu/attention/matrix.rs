//! The matmuls of attention by a matrix unit, all operands split into bfloat16 terms.
//!
//! The unit multiplies 32 rows by 32 keys at a time, whichever of them each row sees. So a key that
//! a row does not see has a probability of zero and a finite value (`NonFinite`).

use super::super::accumulators::Start;
use super::super::matrix_unit::{
    MR, NR, TILE_K, TileOperands, index_in_panel, index_in_tiles, split_rows, store_terms,
};
use super::super::pack::pack_panel;
use super::super::simd::{Bf16Vector, LANES_MAX, MatrixUnit};
use super::super::threads::Scratch;
use super::matmuls::Matmuls;
use super::non_finite::NonFinite;
use super::plan::Heads;
use super::softmax::Running;
use super::task::{KEYS, ROWS_MAX, Task, Tile};

/// Tiles of the matrix unit along a tile of keys.
const KEY_TILES: usize = KEYS / TILE_K;

/// Floats of scratch that a worker needs for `rows` rows.
pub(super) fn scratch_floats(heads: Heads, rows: usize, terms: usize) -> usize {
    let rows = rows.next_multiple_of(MR);
    ScratchSizes::new(heads.head_dim, rows, terms).total()
        + Running::floats(rows, heads.head_dim.next_multiple_of(NR))
}

/// Floats of each buffer in a worker's scratch.
struct ScratchSizes {
    q: usize,
    k: usize,
    v: usize,
    p: usize,
    scores: usize,
    split: usize,
}

impl ScratchSizes {
    /// For `rows` rows, in whole tiles.
    fn new(head_dim: usize, rows: usize, terms: usize) -> Self {
        let dims = head_dim.next_multiple_of(TILE_K);
        Self {
            q: rows * dims * terms / 2,
            k: KEYS * dims * terms / 2,
            v: KEYS * dims * terms / 2,
            p: MR * KEYS * terms / 2,
            scores: MR * KEYS,
            split: MR * dims * terms / 2,
        }
    }

    fn total(&self) -> usize {
        self.q + self.k + self.v + self.p + self.scores + self.split
    }
}

/// A worker's scratch in use.
pub(super) struct Tiles<'b, const TERMS: usize> {
    unit: MatrixUnit,
    head_dim: usize,
    /// `[rows / 32, tiles of dims, TERMS, 32, 32]` values.
    q: &'b mut [f32],
    /// Panels of 32 keys, `[tiles of dims, TERMS, 16, 32]` pairs.
    k: &'b mut [f32],
    /// Panels of 32 dims, `[KEY_TILES, TERMS, 16, 32]` pairs.
    v: &'b mut [f32],
    /// `[KEY_TILES, TERMS, 32, 32]` values.
    p: &'b mut [f32],
    /// `[32, KEYS]`.
    scores: &'b mut [f32],
    /// 32 keys before they are transposed, `[tiles of dims, TERMS, 32, 32]` values.
    split: &'b mut [f32],
    non_finite: NonFinite,
}

impl<'b, const TERMS: usize> Tiles<'b, TERMS> {
    /// Divides `scratch` for `task`.
    pub(super) fn new(unit: MatrixUnit, task: &Task, scratch: &'b mut Scratch) -> (Self, Running<'b>) {
        let (head_dim, rows) = (task.head_dim(), task.rows().next_multiple_of(MR));
        let o_stride = head_dim.next_multiple_of(NR);
        let sizes = ScratchSizes::new(head_dim, rows, TERMS);
        let scratch = scratch.floats(sizes.total() + Running::floats(rows, o_stride));
        let (q, rest) = scratch.split_at_mut(sizes.q);
        let (k, rest) = rest.split_at_mut(sizes.k);
        let (v, rest) = rest.split_at_mut(sizes.v);
        let (p, rest) = rest.split_at_mut(sizes.p);
        let (scores, rest) = rest.split_at_mut(sizes.scores);
        let (split, rest) = rest.split_at_mut(sizes.split);
        let tiles = Self { unit, head_dim, q, k, v, p, scores, split, non_finite: NonFinite::default() };
        (tiles, Running::new(task, rows, o_stride, rest))
    }

    /// Tiles of 32 dims.
    #[inline(always)]
    fn k_tiles(&self) -> usize {
        self.head_dim.div_ceil(TILE_K)
    }

    /// Packs a tile's values, zeros behind them up to a multiple of 32 keys. Returns false when one
    /// is not finite.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn pack_values<V: Bf16Vector>(&mut self, task: &Task, key_rows: &[usize]) -> bool {
        let from = |key: usize| key_rows.get(key).map_or(std::ptr::null(), |row| task.value(*row).as_ptr());
        // Zero times all values: NaN where one is not finite.
        // SAFETY: the caller vouches for the instructions; `count` floats of a value are read from
        // `dim` on, none where there is no key; vectors of 16 pairs are written inside their tile.
        unsafe {
            let mut zeros = V::splat(0.0);
            for key in (0..key_rows.len().next_multiple_of(TILE_K)).step_by(2) {
                let (even_from, odd_from) = (from(key), from(key + 1));
                for dim in (0..self.k_tiles() * TILE_K).step_by(V::LANES) {
                    let count = V::LANES.min(self.head_dim.saturating_sub(dim));
                    let count_of = |from: *const f32| if from.is_null() { 0 } else { count };
                    let mut even = V::load_first(even_from.wrapping_add(dim), count_of(even_from));
                    let mut odd = V::load_first(odd_from.wrapping_add(dim), count_of(odd_from));
                    if TERMS == 1 {
                        (even, odd) = (even.nearest_bf16(), odd.nearest_bf16());
                    }
                    zeros = even.mul_add(V::splat(0.0), zeros);
                    zeros = odd.mul_add(V::splat(0.0), zeros);
                    for term in 0..TERMS {
                        let to = self.v[pair_of_value(key, dim, TERMS, term)..][..V::LANES].as_mut_ptr();
                        even.pair_upper_halves(odd).store(to);
                        (even, odd) = (even.sub(even.upper_half()), odd.sub(odd.upper_half()));
                    }
                }
            }
            let mut lanes = [0.0f32; LANES_MAX];
            zeros.store(lanes.as_mut_ptr());
            lanes.iter().all(|zero| *zero == 0.0)
        }
    }

    /// Zeroes the values that are not finite, and records the rows that see them.
    #[cold]
    fn zero_non_finite(&mut self, task: &Task, first_key: usize, keys: usize) {
        for key in 0..keys {
            for dim in 0..self.head_dim {
                let at = |term: usize| pair_of_value(key, dim, TERMS, term);
                let shift = 16 * (key as u32 % 2);
                // A value that is not finite has a first or second term that is not.
                let is_finite = |pair: f32| f32::from_bits(pair.to_bits() >> shift << 16).is_finite();
                if (0..TERMS).any(|term| !is_finite(self.v[at(term)])) {
                    for term in 0..TERMS {
                        let pair = &mut self.v[at(term)];
                        *pair = f32::from_bits(pair.to_bits() & !(0xffff << shift));
                    }
                    self.non_finite.record(task, first_key + key, dim);
                }
            }
        }
    }
}

/// Returns the index in panels of V of the pair that has the value of `key` in dimension `dim`.
#[inline(always)]
const fn pair_of_value(key: usize, dim: usize, terms: usize, term: usize) -> usize {
    let panel = dim / NR * index_in_panel(KEY_TILES, terms, 0);
    panel + index_in_panel(key / TILE_K, terms, term) + key % TILE_K / 2 * NR + dim % NR
}

impl<V: Bf16Vector, const TERMS: usize> Matmuls<V> for Tiles<'_, TERMS> {
    const ROWS: usize = MR;
    const ALIGNMENT: usize = MR;

    #[inline(always)]
    unsafe fn gather_queries(&mut self, task: &Task) {
        let (from, k_tiles) = (|r: usize| task.query(r).as_ptr(), self.k_tiles());
        // SAFETY: the caller vouches for the instructions; a query has head_dim floats; `q` has all
        // tiles of these rows.
        unsafe {
            split_rows::<V, TERMS>(from, task.rows(), self.head_dim, k_tiles, self.q.as_mut_ptr().cast())
        };
    }

    #[inline(always)]
    unsafe fn gather_keys(&mut self, task: &Task, first_key: usize, key_rows: &[usize]) {
        const { assert!(KEYS.is_multiple_of(TILE_K)) };
        let k_tiles = self.k_tiles();
        let panel_floats = index_in_panel(k_tiles, TERMS, 0);
        for (panel, key_rows) in self.k.chunks_exact_mut(panel_floats).zip(key_rows.chunks(NR)) {
            let (from, split) =
                (|r: usize| task.key(key_rows[r]).as_ptr(), self.split.as_mut_ptr().cast::<u16>());
            // SAFETY: the caller vouches for the instructions; a key has head_dim floats; `split`
            // has all terms of 32 keys; a panel has 16 steps of 32 pairs for each of their tiles.
            unsafe {
                split_rows::<V, TERMS>(from, key_rows.len(), self.head_dim, k_tiles, split);
                for k_tile in 0..k_tiles {
                    for term in 0..TERMS {
                        let row = |r: usize| {
                            split.wrapping_add(index_in_tiles(r, k_tile, TERMS, term)).cast_const().cast()
                        };
                        let to = panel.as_mut_ptr().add(index_in_panel(k_tile, TERMS, term));
                        pack_panel::<V>(row, NR, 2 * TILE_K, 0, NR, to);
                    }
                }
            }
        }
        // SAFETY: the caller vouches for the instructions.
        let is_finite = unsafe { self.pack_values::<V>(task, key_rows) };
        if !is_finite {
            self.zero_non_finite(task, first_key, key_rows.len());
        }
    }

    #[inline(always)]
    unsafe fn score(&mut self, tile: &Tile) {
        const { assert!(MR <= ROWS_MAX) };
        let k_tiles = self.k_tiles();
        let panel_floats = index_in_panel(k_tiles, TERMS, 0);
        for panel in 0..tile.keys().div_ceil(NR) {
            let operands = TileOperands {
                x: self.q[tile.row * k_tiles * TERMS * TILE_K / 2..].as_ptr().cast(),
                k_tiles,
                panel: self.k[panel * panel_floats..][..panel_floats].as_ptr(),
                acc: self.scores[panel * NR..].as_mut_ptr(),
                acc_stride: KEYS,
                start: Start::Zero,
            };
            // SAFETY: the unit has begun; `q` has the tiles of 32 rows from `tile.row` on, a
            // multiple of 32; `scores` 32 rows of KEYS.
            unsafe { self.unit.microkernel::<TERMS, TERMS>(&operands) };
        }
    }

    #[inline(always)]
    fn scores(&mut self) -> &mut [f32] {
        self.scores
    }

    #[inline(always)]
    unsafe fn store_probabilities(&mut self, r: usize, key: usize, p: [V; 2]) -> [V; 2] {
        // SAFETY: the caller vouches for the instructions; row r < 32 of a tile of keys.
        unsafe { store_terms::<V, TERMS>(p[0], p[1], r, key / TILE_K, self.p.as_mut_ptr().cast()) };
        p
    }

    #[inline(always)]
    unsafe fn add_values(&mut self, tile: &Tile, o: &mut [f32], o_stride: usize) {
        let k_tiles = tile.keys().div_ceil(TILE_K);
        for (r, (&hidden, &seen)) in tile.hidden.iter().zip(tile.seen).enumerate() {
            // The tiles that the softmax has written.
            let written = if hidden < seen { hidden / TILE_K..seen.div_ceil(TILE_K) } else { 0..0 };
            for k_tile in (0..written.start).chain(written.end..k_tiles) {
                for term in 0..TERMS {
                    self.p[index_in_tiles(r, k_tile, TERMS, term) / 2..][..TILE_K / 2].fill(0.0);
                }
            }
        }
        let panel_floats = index_in_panel(KEY_TILES, TERMS, 0);
        for (index, panel) in self.v.chunks_exact(panel_floats).enumerate() {
            let operands = TileOperands {
                x: self.p.as_ptr().cast(),
                k_tiles,
                panel: panel.as_ptr(),
                acc: o[tile.row * o_stride + index * NR..].as_mut_ptr(),
                acc_stride: o_stride,
                start: if tile.is_first { Start::Zero } else { Start::Reload },
            };
            // SAFETY: the unit has begun; P of the tile's rows and a panel of as many keys have
            // been written (the products of rows behind the last one are not read); `o` has 32 rows
            // from `tile.row` on, written with the first tile of keys or before all.
            unsafe { self.unit.microkernel::<TERMS, TERMS>(&operands) };
        }
    }

    #[inline(always)]
    fn finish(&self, task: &Task, o: &mut [f32], o_stride: usize) {
        self.non_finite.finish(task, o, o_stride);
    }
}
