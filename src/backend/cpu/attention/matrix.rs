//! The products of attention by a matrix unit: all operands cut into bfloat16 parts, as `matrix_unit` has them.
//!
//! The unit multiplies 32 rows by 32 keys at a time, whatever each row sees of them. So what a row does not see has a
//! probability of zero and a value that is finite: values that are not are taken out of the panel, and the rows that see
//! them get NaN in that dimension at the end.

use super::super::matrix_unit::{
    BLOCK, COLUMNS, MatrixUnit, ROWS, TileProduct, cut_rows, panel_block, put_parts, row_of_tiles,
};
use super::super::pack::{Lanes32, pack_panel};
use super::super::simd::{Bf16Vector, LANES_MAX};
use super::super::threads::Scratch;
use super::super::tile::Start;
use super::softmax::Running;
use super::{Heads, KEYS, Piece, Products, ROWS_MAX, Tile};

/// Blocks of a tile's keys.
const KEY_BLOCKS: usize = KEYS / BLOCK;

/// Floats of scratch that a worker needs for so many rows.
pub(super) fn scratch_floats(heads: Heads, rows: usize, parts: usize) -> usize {
    let rows = rows.next_multiple_of(ROWS);
    Sizes::new(heads.head_dim, rows, parts).total()
        + Running::floats(rows, heads.head_dim.next_multiple_of(COLUMNS))
}

/// The sizes of what lies in a worker's scratch, in floats.
struct Sizes {
    q: usize,
    k: usize,
    v: usize,
    p: usize,
    scores: usize,
    cut: usize,
}

impl Sizes {
    /// For so many rows, in whole tiles.
    fn new(head_dim: usize, rows: usize, parts: usize) -> Self {
        let dims = head_dim.next_multiple_of(BLOCK);
        Self {
            q: rows * dims * parts / 2,
            k: KEYS * dims * parts / 2,
            v: KEYS * dims * parts / 2,
            p: ROWS * KEYS * parts / 2,
            scores: ROWS * KEYS,
            cut: ROWS * dims * parts / 2,
        }
    }

    fn total(&self) -> usize {
        self.q + self.k + self.v + self.p + self.scores + self.cut
    }
}

/// A worker's scratch in use.
pub(super) struct Tiles<'b, const PARTS: usize> {
    unit: MatrixUnit,
    head_dim: usize,
    /// `[rows / 32, blocks of dims, PARTS, 32, 32]` values.
    q: &'b mut [f32],
    /// Panels of 32 keys, `[blocks of dims, PARTS, 16, 32]` pairs.
    k: &'b mut [f32],
    /// Panels of 32 dims, `[KEY_BLOCKS, PARTS, 16, 32]` pairs.
    v: &'b mut [f32],
    /// `[KEY_BLOCKS, PARTS, 32, 32]` values.
    p: &'b mut [f32],
    /// `[32, KEYS]`.
    scores: &'b mut [f32],
    /// 32 keys before they are transposed, `[blocks of dims, PARTS, 32, 32]` values.
    cut: &'b mut [f32],
    /// For each dimension the first key with a value that is not finite; empty while there is none at all.
    spoilt: Vec<usize>,
}

impl<'b, const PARTS: usize> Tiles<'b, PARTS> {
    /// What `piece` takes, in `scratch`.
    pub(super) fn new(unit: MatrixUnit, piece: &Piece, scratch: &'b mut Scratch) -> (Self, Running<'b>) {
        let (head_dim, rows) = (piece.head_dim(), piece.rows().next_multiple_of(ROWS));
        let o_stride = head_dim.next_multiple_of(COLUMNS);
        let sizes = Sizes::new(head_dim, rows, PARTS);
        let scratch = scratch.floats(sizes.total() + Running::floats(rows, o_stride));
        let (q, rest) = scratch.split_at_mut(sizes.q);
        let (k, rest) = rest.split_at_mut(sizes.k);
        let (v, rest) = rest.split_at_mut(sizes.v);
        let (p, rest) = rest.split_at_mut(sizes.p);
        let (scores, rest) = rest.split_at_mut(sizes.scores);
        let (cut, rest) = rest.split_at_mut(sizes.cut);
        let tiles = Self { unit, head_dim, q, k, v, p, scores, cut, spoilt: Vec::new() };
        (tiles, Running::new(piece, rows, o_stride, rest))
    }

    /// Blocks of 32 dims.
    #[inline(always)]
    fn blocks(&self) -> usize {
        self.head_dim.div_ceil(BLOCK)
    }

    /// Packs a tile's values, zeros behind them up to a whole block of keys. False when one is not finite.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn pack_values<V: Bf16Vector>(&mut self, piece: &Piece, key_rows: &[usize]) -> bool {
        let from = |key: usize| key_rows.get(key).map_or(std::ptr::null(), |row| piece.value(*row).as_ptr());
        // Zero times all values: NaN where one is not finite.
        // SAFETY: the caller vouches for the instructions; `count` floats of a value are read from `dim` on, none where there is
        // no key; vectors of 16 pairs are written inside their block.
        unsafe {
            let mut zeros = V::splat(0.0);
            for key in (0..key_rows.len().next_multiple_of(BLOCK)).step_by(2) {
                let (even_from, odd_from) = (from(key), from(key + 1));
                for dim in (0..self.blocks() * BLOCK).step_by(V::LANES) {
                    let count = V::LANES.min(self.head_dim.saturating_sub(dim));
                    let count_of = |from: *const f32| if from.is_null() { 0 } else { count };
                    let mut even = V::load_first(even_from.wrapping_add(dim), count_of(even_from));
                    let mut odd = V::load_first(odd_from.wrapping_add(dim), count_of(odd_from));
                    if PARTS == 1 {
                        (even, odd) = (even.nearest_bf16(), odd.nearest_bf16());
                    }
                    zeros = even.mul_add(V::splat(0.0), zeros);
                    zeros = odd.mul_add(V::splat(0.0), zeros);
                    for part in 0..PARTS {
                        let to = self.v[pair_of_value(key, dim, PARTS, part)..][..V::LANES].as_mut_ptr();
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

    /// Makes the values that are not finite zero, and keeps in mind who sees them.
    #[cold]
    fn take_out_spoilt(&mut self, first_key: usize, keys: usize) {
        self.spoilt.resize(self.head_dim, usize::MAX);
        for key in 0..keys {
            for dim in 0..self.head_dim {
                let at = |part: usize| pair_of_value(key, dim, PARTS, part);
                let shift = 16 * (key as u32 % 2);
                // The first part of what is not finite is not finite either, or the second.
                let is_finite = |pair: f32| f32::from_bits(pair.to_bits() >> shift << 16).is_finite();
                if (0..PARTS).any(|part| !is_finite(self.v[at(part)])) {
                    for part in 0..PARTS {
                        let pair = &mut self.v[at(part)];
                        *pair = f32::from_bits(pair.to_bits() & !(0xffff << shift));
                    }
                    self.spoilt[dim] = self.spoilt[dim].min(first_key + key);
                }
            }
        }
    }
}

/// Where the pair lies in panels of V that has the value of `key` in dimension `dim`.
#[inline(always)]
const fn pair_of_value(key: usize, dim: usize, parts: usize, part: usize) -> usize {
    let panel = dim / COLUMNS * panel_block(KEY_BLOCKS, parts, 0);
    panel + panel_block(key / BLOCK, parts, part) + key % BLOCK / 2 * COLUMNS + dim % COLUMNS
}

impl<V: Bf16Vector, const PARTS: usize> Products<V> for Tiles<'_, PARTS> {
    const ROWS: usize = ROWS;
    const ALIGNMENT: usize = ROWS;

    #[inline(always)]
    unsafe fn gather_queries(&mut self, piece: &Piece) {
        let (from, blocks) = (|r: usize| piece.query(r).as_ptr(), self.blocks());
        // SAFETY: the caller vouches for the instructions; a query has head_dim floats; `q` has all tiles of these rows.
        unsafe {
            cut_rows::<V, PARTS>(from, piece.rows(), self.head_dim, blocks, self.q.as_mut_ptr().cast())
        };
    }

    #[inline(always)]
    unsafe fn gather_keys(&mut self, piece: &Piece, first_key: usize, key_rows: &[usize]) {
        const { assert!(KEYS.is_multiple_of(BLOCK)) };
        let blocks = self.blocks();
        let panel_floats = panel_block(blocks, PARTS, 0);
        for (panel, key_rows) in self.k.chunks_exact_mut(panel_floats).zip(key_rows.chunks(COLUMNS)) {
            let (from, cut) =
                (|r: usize| piece.key(key_rows[r]).as_ptr(), self.cut.as_mut_ptr().cast::<u16>());
            // SAFETY: the caller vouches for the instructions; a key has head_dim floats; `cut` has all parts of 32 keys; a panel
            // has 16 steps of 32 pairs for each of their tiles.
            unsafe {
                cut_rows::<V, PARTS>(from, key_rows.len(), self.head_dim, blocks, cut);
                for block in 0..blocks {
                    for part in 0..PARTS {
                        let row = |r: usize| {
                            cut.wrapping_add(row_of_tiles(r, block, PARTS, part)).cast_const().cast()
                        };
                        let to = panel.as_mut_ptr().add(panel_block(block, PARTS, part));
                        pack_panel::<V, Lanes32>(row, COLUMNS, 2 * BLOCK, 0, COLUMNS, to);
                    }
                }
            }
        }
        // SAFETY: the caller vouches for the instructions.
        let is_finite = unsafe { self.pack_values::<V>(piece, key_rows) };
        if !is_finite {
            self.take_out_spoilt(first_key, key_rows.len());
        }
    }

    #[inline(always)]
    unsafe fn score(&mut self, tile: &Tile) {
        const { assert!(ROWS <= ROWS_MAX) };
        let blocks = self.blocks();
        let panel_floats = panel_block(blocks, PARTS, 0);
        for panel in 0..tile.keys().div_ceil(COLUMNS) {
            let product = TileProduct {
                x: self.q[tile.row * blocks * PARTS * BLOCK / 2..].as_ptr().cast(),
                blocks,
                panel: self.k[panel * panel_floats..][..panel_floats].as_ptr(),
                sums: self.scores[panel * COLUMNS..].as_mut_ptr(),
                sums_stride: KEYS,
                start: Start::Zero,
            };
            // SAFETY: the unit has begun; `q` has the tiles of 32 rows from `tile.row` on, a multiple of 32; `scores` 32 rows of
            // KEYS.
            unsafe { self.unit.multiply::<PARTS, PARTS>(&product) };
        }
    }

    #[inline(always)]
    fn scores(&mut self) -> &mut [f32] {
        self.scores
    }

    #[inline(always)]
    unsafe fn put_probabilities(&mut self, r: usize, key: usize, p: [V; 2]) {
        // SAFETY: the caller vouches for the instructions; row r < 32 of a block of keys.
        unsafe { put_parts::<V, PARTS>(p[0], p[1], r, key / BLOCK, self.p.as_mut_ptr().cast()) };
    }

    #[inline(always)]
    unsafe fn add_values(&mut self, tile: &Tile, o: &mut [f32], o_stride: usize) {
        let blocks = tile.keys().div_ceil(BLOCK);
        for (r, seen) in tile.seen.iter().enumerate() {
            for block in seen.div_ceil(BLOCK)..blocks {
                for part in 0..PARTS {
                    self.p[row_of_tiles(r, block, PARTS, part) / 2..][..BLOCK / 2].fill(0.0);
                }
            }
        }
        let panel_floats = panel_block(KEY_BLOCKS, PARTS, 0);
        for (index, panel) in self.v.chunks_exact(panel_floats).enumerate() {
            let product = TileProduct {
                x: self.p.as_ptr().cast(),
                blocks,
                panel: panel.as_ptr(),
                sums: o[tile.row * o_stride + index * COLUMNS..].as_mut_ptr(),
                sums_stride: o_stride,
                start: if tile.first_key == 0 { Start::Zero } else { Start::Continue },
            };
            // SAFETY: the unit has begun; P of the tile's rows and a panel of as many keys have been written (what rows behind
            // the last one multiply nobody reads); `o` has 32 rows from `tile.row` on, written with the first tile of keys.
            unsafe { self.unit.multiply::<PARTS, PARTS>(&product) };
        }
    }

    #[inline(always)]
    fn finish(&self, piece: &Piece, o: &mut [f32], o_stride: usize) {
        for r in 0..piece.rows() {
            for (dim, first_key) in self.spoilt.iter().enumerate() {
                if piece.keys_of(r) > *first_key {
                    o[r * o_stride + dim] = f32::NAN;
                }
            }
        }
    }
}
