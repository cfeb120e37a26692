//! The seam between attention and its two matmuls.

use super::super::simd::Vector;
use super::task::{Task, Tile};

/// The two matmuls of attention, their operands gathered in a worker's scratch.
///
/// # Safety
///
/// All unsafe methods: the CPU has the instructions of `V`. `score`, `store_probabilities` and
/// `add_values`: queries have been gathered, and the tile's keys as far as any row sees; they are
/// called in this order, with the same tile.
pub(super) trait Matmuls<V: Vector> {
    /// Rows of a tile at most.
    const ROWS: usize;
    /// Rows at which a tile begins are multiples of this.
    const ALIGNMENT: usize;

    /// Copies the queries of all rows.
    unsafe fn gather_queries(&mut self, task: &Task);

    /// Copies a tile's keys, transposed, and its values.
    unsafe fn gather_keys(&mut self, task: &Task, first_key: usize, key_rows: &[usize]);

    /// Computes S of the tile's rows and of at least all keys that they see.
    unsafe fn score(&mut self, tile: &Tile);

    /// `[ROWS, KEYS]`: S as [`score`](Self::score) wrote it, and any value for keys that the row
    /// does not see.
    fn scores(&mut self) -> &mut [f32];

    /// Stores P of row `r` of the tile for as many keys from `key` on as two vectors hold: zeros
    /// for those that it does not see. Called for every pair of vectors with a key that the row
    /// sees. Returns P as the row's sum is to have it.
    unsafe fn store_probabilities(&mut self, r: usize, key: usize, p: [V; 2]) -> [V; 2];

    /// Adds P · V to `o`, the outputs `[rows, o_stride]` of all rows; overwrites them where the
    /// tile is the first.
    unsafe fn add_values(&mut self, tile: &Tile, o: &mut [f32], o_stride: usize);

    /// Completes the outputs after the last tile.
    fn finish(&self, _task: &Task, _o: &mut [f32], _o_stride: usize) {}
}
