//! Causal attention with grouped queries over paths of key spans, online softmax, f32.
//!
//! ```text
//! S = scale * q · Kᵀ     m' = max(m, rowmax S)     P = exp(S - m')
//! l = l * exp(m - m') + rowsum P     O = O * exp(m - m') + P · V     out = O / l
//! ```
//!
//! Keys are taken in tiles of 64 that are aligned to the absolute position in the sequence, first to last. A tile's keys
//! are gathered from their spans before anything is computed, the row maximum does not depend on an order, and all sums
//! run in the order of the keys. So a row's bits depend on its own path alone: not on where the path is cut into spans,
//! which query block the row falls into, what else is in the batch, or the number of threads.
//!
//! A key behind a row's own position never touches it: its score is cut off before the exponential and its value is not
//! multiplied, not even by zero, for zero times NaN is NaN.

use super::pack::{Lanes32, pack_panel};
use super::simd::{Isa, Kernel, LANES_MAX, Sums, Vector, exp};
use super::threads::{Scratch, Threads};
use super::tile::{Ahead, F32, Product, Start, multiply};
use super::view::{Rows, RowsMut, SharedRows};

mod plan;
#[cfg(test)]
mod tests;

pub use plan::{AttentionPlan, Heads, Queries};
use plan::{Item, KeyRows};

/// Keys of a tile. A multiple of every panel width.
const KEYS: usize = 64;
/// Vectors of a panel: head widths are multiples of 32 more often than of 48.
const VECTORS: usize = 2;

/// Where queries, keys and values lie. With the usual fused rows `q | k | v`, all three are views of one buffer.
#[derive(Clone, Copy)]
pub struct AttentionInput<'a> {
    /// `[query rows, q_heads * head_dim]`.
    pub q: Rows<'a>,
    /// `[key rows, kv_heads * head_dim]`.
    pub k: Rows<'a>,
    /// `[key rows, kv_heads * head_dim]`.
    pub v: Rows<'a>,
}

/// Attends as `plan` says; `out`, `[query rows, q_heads * head_dim]`, is written in the rows of the plan's segments.
///
/// # Panics
///
/// When the views are narrower than the plan's heads or have fewer rows than the plan names.
pub fn attention(
    isa: Isa,
    threads: &Threads,
    plan: &AttentionPlan,
    input: &AttentionInput,
    mut out: RowsMut,
) {
    let heads = plan.heads();
    let (q_width, kv_width) = (heads.q_heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    assert!(input.q.width() >= q_width && out.width() >= q_width, "fewer columns than {heads:?}");
    assert!(input.k.width() >= kv_width && input.v.width() >= kv_width, "fewer columns than {heads:?}");
    assert!(
        plan.query_rows_end() <= input.q.rows().min(out.rows()),
        "the plan names query rows that are not there"
    );
    assert!(
        plan.key_rows_end() <= input.k.rows().min(input.v.rows()),
        "the plan names key rows that are not there"
    );
    let out = out.share();
    // Within an item of the plan the heads are neighbours: they read the same rows.
    threads.for_each_item(plan.items().len() * heads.kv_heads, |index, scratch| {
        let (item, kv_head) = (plan.items()[index / heads.kv_heads], index % heads.kv_heads);
        isa.run(Block { plan, input, out, item, kv_head, scratch });
    });
}

/// Floats of scratch that each worker needs at most.
pub fn scratch_floats(isa: Isa, heads: Heads) -> usize {
    let shape = isa.shape();
    Sizes::new(heads, heads.rows_max(), VECTORS * shape.lanes, shape.tile_rows).total()
}

/// The sizes of what lies in a worker's scratch, in floats.
struct Sizes {
    q: usize,
    scores: usize,
    o: usize,
    k: usize,
    v: usize,
    row_max: usize,
    row_sums: usize,
}

impl Sizes {
    fn new(heads: Heads, rows: usize, panel: usize, tile_rows: usize) -> Self {
        let padded = heads.head_dim.next_multiple_of(panel);
        Self {
            q: rows * heads.head_dim,
            scores: tile_rows * KEYS,
            o: rows * padded,
            k: KEYS * heads.head_dim,
            v: KEYS * padded,
            row_max: rows,
            row_sums: rows * LANES_MAX,
        }
    }

    fn total(&self) -> usize {
        self.q + self.scores + self.o + self.k + self.v + self.row_max + self.row_sums
    }
}

/// One worker's piece: some neighbouring queries of a segment, all query heads of one kv head.
struct Block<'a, 'b> {
    plan: &'a AttentionPlan,
    input: &'a AttentionInput<'a>,
    out: SharedRows<'a>,
    item: Item,
    kv_head: usize,
    scratch: &'b mut Scratch,
}

/// A worker's scratch in use. Row `r` is query `r / group` of the item under query head `kv_head * group + r % group`,
/// so that rows that see equally many keys are neighbours.
struct Work<'b> {
    heads: Heads,
    group: usize,
    rows: usize,
    /// Position of row 0.
    first_position: usize,
    /// `[rows, head_dim]`, scaled.
    q: &'b mut [f32],
    /// `[tile rows, KEYS]`: scores, then probabilities.
    scores: &'b mut [f32],
    /// `[rows, padded head_dim]`.
    o: &'b mut [f32],
    /// Panels `[head_dim, keys of a panel]`.
    k: &'b mut [f32],
    /// Panels `[KEYS, dims of a panel]`.
    v: &'b mut [f32],
    /// `[rows]`
    row_max: &'b mut [f32],
    /// `[rows, LANES_MAX]`: see [`Sums`].
    row_sums: &'b mut [f32],
}

impl Kernel for Block<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let heads = self.plan.heads();
        let group = heads.q_heads / heads.kv_heads;
        let rows = self.item.rows.len() * group;
        let sizes = Sizes::new(heads, rows, VECTORS * V::LANES, V::TILE_ROWS);
        // The tiles of K and V first: they begin at a cache line.
        let scratch = self.scratch.floats(sizes.total());
        let (k, rest) = scratch.split_at_mut(sizes.k);
        let (v, rest) = rest.split_at_mut(sizes.v);
        let (scores, rest) = rest.split_at_mut(sizes.scores);
        let (o, rest) = rest.split_at_mut(sizes.o);
        let (q, rest) = rest.split_at_mut(sizes.q);
        let (row_sums, row_max) = rest.split_at_mut(sizes.row_sums);
        let first_position = self.item.first_position;
        let mut work = Work { heads, group, rows, first_position, q, scores, o, k, v, row_max, row_sums };
        // SAFETY: the caller vouches for the instructions. Items have disjoint query rows (`AttentionPlan::new` checks
        // the segments) or different heads, so no other worker writes these parts of `out`.
        unsafe {
            work.gather_queries::<V>(&self.input.q, self.item.rows.start, self.kv_head);
            let keys = first_position + self.item.rows.len();
            let mut path = KeyRows::new(self.plan.spans(&self.item));
            for first_key in (0..keys).step_by(KEYS) {
                let mut key_rows = [0; KEYS];
                let key_rows = &mut key_rows[..KEYS.min(keys - first_key)];
                path.next_rows(key_rows);
                work.gather_keys::<V>(self.input, key_rows, self.kv_head);
                work.attend_tile::<V>(first_key);
            }
            work.store::<V>(self.out, self.item.rows.start, self.kv_head);
        }
    }
}

impl Work<'_> {
    /// Rows of padded width in `o`, and in a panel of `v`.
    #[inline(always)]
    fn padded<V: Vector>(&self) -> usize {
        self.heads.head_dim.next_multiple_of(VECTORS * V::LANES)
    }

    /// Keys that row `r` sees.
    #[inline(always)]
    fn keys_of(&self, r: usize) -> usize {
        self.first_position + r / self.group + 1
    }

    /// Copies and scales the queries.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn gather_queries<V: Vector>(&mut self, q: &Rows, first_row: usize, kv_head: usize) {
        let head_dim = self.heads.head_dim;
        let scale = (1.0 / (head_dim as f64).sqrt()) as f32;
        for r in 0..self.rows {
            let head = kv_head * self.group + r % self.group;
            let from = &q.row(first_row + r / self.group)[head * head_dim..][..head_dim];
            let to = &mut self.q[r * head_dim..][..head_dim];
            for i in (0..head_dim).step_by(V::LANES) {
                let count = V::LANES.min(head_dim - i);
                // SAFETY: i + count <= head_dim, the length of both.
                unsafe {
                    let scaled = V::load_first(from.as_ptr().add(i), count).mul(V::splat(scale));
                    scaled.store_first(to.as_mut_ptr().add(i), count);
                }
            }
        }
    }

    /// Gathers a tile's keys, transposed, and its values: as panels.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn gather_keys<V: Vector>(&mut self, input: &AttentionInput, key_rows: &[usize], kv_head: usize) {
        let (width, head_dim) = (VECTORS * V::LANES, self.heads.head_dim);
        let first = kv_head * head_dim;
        for start in (0..key_rows.len()).step_by(width) {
            let row = |r: usize| input.k.row(key_rows[start + r])[first..][..head_dim].as_ptr().cast();
            let panel = self.k[start * head_dim..][..width * head_dim].as_mut_ptr();
            let rows = width.min(key_rows.len() - start);
            // SAFETY: `row` checked head_dim floats for each of these rows; the panel has width * head_dim.
            unsafe { pack_panel::<V, Lanes32>(row, rows, 4 * head_dim, 0, width, panel) };
        }
        for (key, row) in key_rows.iter().enumerate() {
            let from = &input.v.row(*row)[first..][..head_dim];
            for start in (0..self.padded::<V>()).step_by(V::LANES) {
                let to =
                    &mut self.v[start / width * width * KEYS + key * width + start % width..][..V::LANES];
                let count = V::LANES.min(head_dim.saturating_sub(start));
                // SAFETY: start + count <= head_dim, or nothing is read; `to` has LANES floats.
                unsafe {
                    V::load_first(from.as_ptr().add(start.min(head_dim)), count).store(to.as_mut_ptr())
                };
            }
        }
    }

    /// One tile of keys against all rows that see any of them.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the tile that begins at `first_key` has been gathered as far as the last
    /// row sees.
    #[inline(always)]
    unsafe fn attend_tile<V: Vector>(&mut self, first_key: usize) {
        let (width, head_dim, padded) = (VECTORS * V::LANES, self.heads.head_dim, self.padded::<V>());
        // Row r sees a key of this tile when first_position + r / group >= first_key.
        let first_row = first_key.saturating_sub(self.first_position) * self.group;
        for row in (first_row..self.rows).step_by(V::TILE_ROWS) {
            let rows = V::TILE_ROWS.min(self.rows - row);
            // The last row sees the most keys.
            let keys_max = KEYS.min(self.keys_of(row + rows - 1) - first_key);
            let scores = Product {
                steps: head_dim,
                x: self.q[row * head_dim..][..rows * head_dim].as_ptr(),
                x_stride: head_dim,
                panel: self.k.as_ptr(),
                panel_stride: width * head_dim,
                sums: self.scores.as_mut_ptr(),
                sums_stride: KEYS,
                start: Start::Zero,
                finish: None,
                ahead: Ahead::NOTHING,
            };
            // SAFETY: `q` has these rows, `k` the panels of KEYS keys, `scores` TILE_ROWS rows of KEYS.
            unsafe { multiply::<V, F32, VECTORS>(scores, rows, keys_max.div_ceil(width)) };
            // SAFETY: the caller vouches for the instructions; `scores` holds these rows.
            unsafe { self.softmax::<V>(row, rows, first_key) };
            // Keys that all these rows see, then, row by row, those that only some of them see.
            let keys_all = KEYS.min(self.keys_of(row) - first_key);
            let start = if first_key == 0 { Start::Zero } else { Start::Continue };
            // SAFETY: `scores` has these rows and keys; `v` the panels of all dims with KEYS keys, gathered up to
            // keys_max; `o` rows of padded width, which every row's tile 0 has written (each row sees key 0).
            unsafe {
                let o = self.o.as_mut_ptr();
                let product = |r: usize, key: usize, keys: usize, start: Start| Product {
                    steps: keys,
                    x: self.scores.as_ptr().add(r * KEYS + key),
                    x_stride: KEYS,
                    panel: self.v.as_ptr().add(key * width),
                    panel_stride: KEYS * width,
                    sums: o.add((row + r) * padded),
                    sums_stride: padded,
                    start,
                    finish: None,
                    ahead: Ahead::NOTHING,
                };
                multiply::<V, F32, VECTORS>(product(0, 0, keys_all, start), rows, padded / width);
                for r in 0..rows {
                    let keys = KEYS.min(self.keys_of(row + r) - first_key);
                    if keys > keys_all {
                        let rest = product(r, keys_all, keys - keys_all, Start::Continue);
                        multiply::<V, F32, VECTORS>(rest, 1, padded / width);
                    }
                }
            }
        }
    }

    /// Turns the scores of rows `row..row + rows` into probabilities, and carries their maxima, sums and outputs over to
    /// the new maxima. Row `r` of them sees `keys(r)` keys of this tile.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; `rows <= TILE_ROWS`, and `scores` holds them.
    #[inline(always)]
    unsafe fn softmax<V: Vector>(&mut self, row: usize, rows: usize, first_key: usize) {
        const { assert!(V::TILE_ROWS <= V::LANES && KEYS.is_multiple_of(LANES_MAX)) };
        let keys: [usize; LANES_MAX] =
            std::array::from_fn(|r| if r < rows { KEYS.min(self.keys_of(row + r) - first_key) } else { 0 });
        let padded = self.padded::<V>();
        let scores = &mut self.scores[..V::TILE_ROWS * KEYS];
        // SAFETY: a row of scores is a whole number of vectors; `row_max` and `factors` are read and written for `rows`
        // or LANES floats that they have; a row has LANES_MAX partial sums and `padded` outputs, both whole vectors.
        unsafe {
            // Each row's maximum lane by lane; then, transposed, all rows' maxima in one vector.
            let mut max = [V::splat(f32::NEG_INFINITY); LANES_MAX];
            for r in 0..rows {
                let scores = &mut scores[r * KEYS..][..KEYS];
                scores[keys[r]..keys[r].next_multiple_of(V::LANES)].fill(f32::NEG_INFINITY);
                for i in (0..keys[r]).step_by(V::LANES) {
                    max[r] = max[r].max(V::load(scores.as_ptr().add(i)));
                }
            }
            V::transpose(&mut max);
            let mut row_max = max[0];
            for lanes in &max[1..V::LANES] {
                row_max = row_max.max(*lanes);
            }
            let mut factors = [1.0f32; LANES_MAX];
            let row_max_at = self.row_max[row..][..rows].as_mut_ptr();
            if first_key > 0 {
                let before = V::load_first(row_max_at, rows);
                row_max = before.max(row_max);
                exp(before.sub(row_max)).store(factors.as_mut_ptr());
            }
            row_max.store_first(row_max_at, rows);
            for r in 0..rows {
                let max = V::splat(self.row_max[row + r]);
                let scores = scores[r * KEYS..][..KEYS].as_mut_ptr();
                let row_sums = self.row_sums[(row + r) * LANES_MAX..][..LANES_MAX].as_mut_ptr();
                let mut sums = Sums::<V>::zero();
                if first_key > 0 {
                    sums = Sums::load(row_sums).scale(V::splat(factors[r]));
                }
                for i in (0..keys[r]).step_by(V::LANES) {
                    let p = exp(V::load(scores.add(i)).sub(max));
                    p.store(scores.add(i));
                    let sum = sums.of(i / V::LANES);
                    *sum = sum.add(p);
                }
                sums.store(row_sums);
                // Once a row has met its largest score the factor is exactly 1.
                if factors[r] != 1.0 {
                    let o = self.o[(row + r) * padded..][..padded].as_mut_ptr();
                    for i in (0..padded).step_by(V::LANES) {
                        V::load(o.add(i)).mul(V::splat(factors[r])).store(o.add(i));
                    }
                }
            }
        }
    }

    /// Divides by the sums and writes the rows out.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; nobody else writes these rows and heads of `out`.
    #[inline(always)]
    unsafe fn store<V: Vector>(&self, out: SharedRows, first_row: usize, kv_head: usize) {
        let (head_dim, padded) = (self.heads.head_dim, self.padded::<V>());
        for r in 0..self.rows {
            let first = (kv_head * self.group + r % self.group) * head_dim;
            let from = &self.o[r * padded..][..padded];
            // SAFETY: the caller promises that the part is this worker's alone; i + count <= head_dim <= padded; a row has
            // LANES_MAX partial sums.
            unsafe {
                let sum = Sums::<V>::load(self.row_sums[r * LANES_MAX..][..LANES_MAX].as_ptr()).total();
                let to = out.part(first_row + r / self.group, first..first + head_dim);
                for i in (0..head_dim).step_by(V::LANES) {
                    let o = V::load(from.as_ptr().add(i)).div(V::splat(sum));
                    o.store_first(to.as_mut_ptr().add(i), V::LANES.min(head_dim - i));
                }
            }
        }
    }
}
