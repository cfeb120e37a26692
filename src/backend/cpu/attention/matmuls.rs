//! The seam between attention and what multiplies in it.

use super::super::simd::Vector;
use super::task::{Task, Tile};

/// The two products of attention, with what they read gathered in a worker's scratch.
///
/// # Safety
///
/// Of all unsafe methods: the CPU has the instructions of `V`. For `score`, `put_probabilities` and `add_values`, queries have
/// been gathered, and the tile's keys as far as any row sees; they are called in this order, with the same tile.
pub(super) trait Matmuls<V: Vector> {
    /// Rows of a tile at most.
    const ROWS: usize;
    /// Rows at which a tile begins are multiples of this.
    const ALIGNMENT: usize;

    /// Takes over the queries of all rows.
    unsafe fn gather_queries(&mut self, task: &Task);

    /// Takes over a tile's keys, transposed, and its values.
    unsafe fn gather_keys(&mut self, task: &Task, first_key: usize, key_rows: &[usize]);

    /// S of the tile's rows and of at least all keys that they see.
    unsafe fn score(&mut self, tile: &Tile);

    /// `[ROWS, KEYS]`, of which [`score`](Self::score) wrote S; what no row sees may hold anything.
    fn scores(&mut self) -> &mut [f32];

    /// Takes over P of row `r` of the tile for as many keys from `key` on as two vectors hold: zeros where not all are seen.
    unsafe fn put_probabilities(&mut self, r: usize, key: usize, p: [V; 2]);

    /// Adds P · V to `o`, the outputs `[rows, o_stride]` of all rows; those of the first tile of keys hold anything before.
    unsafe fn add_values(&mut self, tile: &Tile, o: &mut [f32], o_stride: usize);

    /// What is left to do to the outputs behind the last tile.
    fn finish(&self, _task: &Task, _o: &mut [f32], _o_stride: usize) {}
}
