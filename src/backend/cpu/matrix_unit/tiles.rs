//! Shapes of tiles, and where their elements lie in memory.

use super::super::accumulators::Start;

/// Rows of a tile of x, and columns of a tile of the weight.
pub(super) const TILE_ROWS: usize = 16;
/// Elements of k in a tile.
pub(in crate::backend::cpu) const TILE_K: usize = 32;
/// Rows of the microkernel: two tiles of x.
pub(in crate::backend::cpu) const MR: usize = 2 * TILE_ROWS;
/// Columns of the microkernel, and of a panel: two tiles of the weight.
pub(in crate::backend::cpu) const NR: usize = 2 * TILE_ROWS;

/// FLOP of the product of two tiles.
pub(in crate::backend::cpu) const TILE_FLOPS: usize = 2 * TILE_ROWS * TILE_ROWS * TILE_K;

/// Returns the index at which row `row < MR` begins in tiles of `terms` terms, for tile `k_tile`
/// along k and term `term`: its 32 elements lie together.
#[inline(always)]
pub(in crate::backend::cpu) const fn index_in_tiles(
    row: usize,
    k_tile: usize,
    terms: usize,
    term: usize,
) -> usize {
    ((k_tile * terms + term) * MR + row) * TILE_K
}

/// Returns the index at which tile `k_tile` along k and term `term` begin in a panel of `terms`
/// terms: 16 steps of 32 pairs.
#[inline(always)]
pub(in crate::backend::cpu) const fn index_in_panel(k_tile: usize, terms: usize, term: usize) -> usize {
    (k_tile * terms + term) * TILE_K / 2 * NR
}

/// Operands of the microkernel: [`MR`] rows of x times one panel, along `k_tiles` tiles.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct TileOperands {
    /// `[k_tiles, terms, 2, 16, 32]` bfloat16 values.
    pub(in crate::backend::cpu) x: *const u16,
    /// At least 1.
    pub(in crate::backend::cpu) k_tiles: usize,
    /// `[k_tiles, panel terms, 16, 32]` pairs of bfloat16 values: the weight's for two neighbouring
    /// k side by side.
    pub(in crate::backend::cpu) panel: *const f32,
    /// Accumulators `[MR, NR]`, rows `acc_stride` floats apart.
    pub(in crate::backend::cpu) acc: *mut f32,
    pub(in crate::backend::cpu) acc_stride: usize,
    pub(in crate::backend::cpu) start: Start,
}
