//! One worker's rows against one tile of keys after the other, all in its scratch.

use super::super::pack::{Lanes32, pack_panel};
use super::super::simd::{Kernel, LANES_MAX, Shape, Sums, Vector, exp2, max_of_rows};
use super::super::threads::Scratch;
use super::super::tile::{Ahead, F32, Product, Start, multiply};
use super::super::view::{Rows, SharedRows};
use super::{AttentionInput, Heads, KEYS};

/// Vectors of a panel of V: head widths are multiples of 32 more often than of 48.
const VALUE_VECTORS: usize = 2;

/// The sizes of what lies in a worker's scratch, in floats.
pub(super) struct Sizes {
    q: usize,
    scores: usize,
    o: usize,
    k: usize,
    v: usize,
    row_max: usize,
    row_sums: usize,
}

impl Sizes {
    pub(super) fn new(heads: Heads, rows: usize, shape: Shape) -> Self {
        Self {
            q: rows * heads.head_dim,
            scores: shape.tile_rows * KEYS,
            o: rows * heads.head_dim.next_multiple_of(shape.lanes),
            k: KEYS * heads.head_dim,
            v: KEYS * heads.head_dim.next_multiple_of(VALUE_VECTORS * shape.lanes),
            row_max: rows,
            row_sums: rows * LANES_MAX,
        }
    }

    pub(super) fn total(&self) -> usize {
        self.q + self.scores + self.o + self.k + self.v + self.row_max + self.row_sums
    }
}

/// A worker's scratch in use. Row `r` is query `r / group` of the item under query head `kv_head * group + r % group`,
/// so that rows that see equally many keys are neighbours.
pub(super) struct Work<'b> {
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

impl<'b> Work<'b> {
    /// The work of `queries` queries from `first_position` on.
    #[inline(always)]
    pub(super) fn new<V: Vector>(
        heads: Heads,
        queries: usize,
        first_position: usize,
        scratch: &'b mut Scratch,
    ) -> Self {
        let group = heads.q_heads / heads.kv_heads;
        let rows = queries * group;
        let sizes = Sizes::new(heads, rows, Shape::of::<V>());
        // The tiles of K and V first: they begin at a cache line.
        let scratch = scratch.floats(sizes.total());
        let (k, rest) = scratch.split_at_mut(sizes.k);
        let (v, rest) = rest.split_at_mut(sizes.v);
        let (scores, rest) = rest.split_at_mut(sizes.scores);
        let (o, rest) = rest.split_at_mut(sizes.o);
        let (q, rest) = rest.split_at_mut(sizes.q);
        let (row_sums, row_max) = rest.split_at_mut(sizes.row_sums);
        Self { heads, group, rows, first_position, q, scores, o, k, v, row_max, row_sums }
    }

    /// Floats of a row of `o`.
    #[inline(always)]
    fn padded<V: Vector>(&self) -> usize {
        self.heads.head_dim.next_multiple_of(V::LANES)
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
    pub(super) unsafe fn gather_queries<V: Vector>(&mut self, q: &Rows, first_row: usize, kv_head: usize) {
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
    pub(super) unsafe fn gather_keys<V: Vector, const VECTORS: usize>(
        &mut self,
        input: &AttentionInput,
        key_rows: &[usize],
        kv_head: usize,
    ) {
        let (width, head_dim) = (VECTORS * V::LANES, self.heads.head_dim);
        let first = kv_head * head_dim;
        for start in (0..key_rows.len()).step_by(width) {
            let row = |r: usize| input.k.row(key_rows[start + r])[first..][..head_dim].as_ptr().cast();
            let panel = self.k[start * head_dim..][..width * head_dim].as_mut_ptr();
            let rows = width.min(key_rows.len() - start);
            // SAFETY: `row` checked head_dim floats for each of these rows; the panel has width * head_dim.
            unsafe { pack_panel::<V, Lanes32>(row, rows, 4 * head_dim, 0, width, panel) };
        }
        let width = VALUE_VECTORS * V::LANES;
        for (key, row) in key_rows.iter().enumerate() {
            let from = &input.v.row(*row)[first..][..head_dim];
            for start in (0..head_dim).step_by(V::LANES) {
                let at = start / width * width * KEYS + key * width + start % width;
                let to = self.v[at..][..V::LANES].as_mut_ptr();
                // SAFETY: what is left of head_dim from `start` on is read; `to` has LANES floats.
                unsafe {
                    V::load_first(from.as_ptr().add(start), V::LANES.min(head_dim - start)).store(to);
                }
            }
        }
    }

    /// One tile of keys against all rows that see any of them.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the tile that begins at `first_key` has been gathered as far as the last
    /// row sees, and all tiles before it have been attended.
    #[inline(always)]
    pub(super) unsafe fn attend_tile<V: Vector, const VECTORS: usize>(&mut self, first_key: usize) {
        // Row r sees a key of this tile when first_position + r / group >= first_key.
        let first_row = first_key.saturating_sub(self.first_position) * self.group;
        for row in (first_row..self.rows).step_by(V::TILE_ROWS) {
            let rows = V::TILE_ROWS.min(self.rows - row);
            // SAFETY: the caller's promises; these rows see a key of the tile.
            unsafe {
                self.score::<V, VECTORS>(row, rows, first_key);
                self.softmax::<V>(row, rows, first_key);
                self.add_values::<V>(row, rows, first_key);
            }
        }
    }

    /// S of rows `row..row + rows`, and of keys that only some of them see.
    ///
    /// # Safety
    ///
    /// As [`attend_tile`](Self::attend_tile), for at most `TILE_ROWS` rows that see a key of the tile.
    #[inline(always)]
    unsafe fn score<V: Vector, const VECTORS: usize>(&mut self, row: usize, rows: usize, first_key: usize) {
        let (width, head_dim) = (VECTORS * V::LANES, self.heads.head_dim);
        let product = Product {
            steps: head_dim,
            x: self.q[row * head_dim..][..rows * head_dim].as_ptr(),
            x_stride: head_dim,
            panel: self.k.as_ptr(),
            panel_width: width,
            panel_stride: width * head_dim,
            sums: self.scores.as_mut_ptr(),
            sums_stride: KEYS,
            start: Start::Zero,
            finish: None,
            ahead: Ahead::NOTHING,
        };
        // The last row sees the most keys.
        let keys = KEYS.min(self.keys_of(row + rows - 1) - first_key);
        // SAFETY: `q` has these rows, `k` the panels of KEYS keys, `scores` TILE_ROWS rows of KEYS.
        unsafe { V::run_apart(Columns::<VECTORS> { product, rows, columns: keys }) };
    }

    /// Turns the scores of rows `row..row + rows` into probabilities, and carries their maxima, sums and outputs over to
    /// the new maxima.
    ///
    /// # Safety
    ///
    /// As [`score`](Self::score), which has been called for the same rows.
    #[inline(always)]
    unsafe fn softmax<V: Vector>(&mut self, row: usize, rows: usize, first_key: usize) {
        const { assert!(V::TILE_ROWS <= V::LANES && KEYS.is_multiple_of(LANES_MAX)) };
        let padded = self.padded::<V>();
        let keys: [usize; LANES_MAX] =
            std::array::from_fn(|r| if r < rows { KEYS.min(self.keys_of(row + r) - first_key) } else { 0 });
        let scores = &mut self.scores[..V::TILE_ROWS * KEYS];
        // SAFETY: a row of scores is a whole number of vectors; `row_max` and `factors` are read and written for `rows`
        // or LANES floats that they have; a row has LANES_MAX partial sums and `padded` outputs, both whole vectors.
        unsafe {
            // Into units of ln 2 by differences, not by the queries' scale: of that, what is rounded off would be multiplied
            // by the whole score.
            let log2_e = V::splat(std::f32::consts::LOG2_E);
            // Each row's maximum lane by lane; then all rows' maxima in one vector.
            let mut max = [V::splat(f32::NEG_INFINITY); LANES_MAX];
            for r in 0..rows {
                let scores = &mut scores[r * KEYS..][..KEYS];
                scores[keys[r]..keys[r].next_multiple_of(V::LANES)].fill(f32::NEG_INFINITY);
                for i in (0..keys[r]).step_by(V::LANES) {
                    max[r] = max[r].max(V::load(scores.as_ptr().add(i)));
                }
            }
            let mut row_max = max_of_rows(max);
            let mut factors = [1.0f32; LANES_MAX];
            let row_max_at = self.row_max[row..][..rows].as_mut_ptr();
            if first_key > 0 {
                let before = V::load_first(row_max_at, rows);
                row_max = before.max(row_max);
                exp2(before.sub(row_max).mul(log2_e)).store(factors.as_mut_ptr());
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
                    let p = exp2(V::load(scores.add(i)).sub(max).mul(log2_e));
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

    /// Adds P · V to the outputs of rows `row..row + rows`.
    ///
    /// # Safety
    ///
    /// As [`softmax`](Self::softmax), which has been called for the same rows.
    #[inline(always)]
    unsafe fn add_values<V: Vector>(&mut self, row: usize, rows: usize, first_key: usize) {
        let (width, head_dim, padded) = (VALUE_VECTORS * V::LANES, self.heads.head_dim, self.padded::<V>());
        // The rows from `first` on, and keys that all of these see.
        let product = |first: usize, key: usize, keys: usize, start: Start| Product {
            steps: keys,
            x: self.scores[first * KEYS + key..].as_ptr(),
            x_stride: KEYS,
            panel: self.v[key * width..].as_ptr(),
            panel_width: width,
            panel_stride: KEYS * width,
            sums: self.o[(row + first) * padded..].as_ptr().cast_mut(),
            sums_stride: padded,
            start,
            finish: None,
            ahead: Ahead::NOTHING,
        };
        let mut done = 0;
        for r in 0..rows {
            // Every row after this one sees these keys too.
            let keys = KEYS.min(self.keys_of(row + r) - first_key);
            if keys > done {
                let start = if first_key + done == 0 { Start::Zero } else { Start::Continue };
                let product = product(r, done, keys - done, start);
                // SAFETY: `scores` has these rows and keys; `v` the panels of all dims with KEYS keys, gathered as far
                // as the last row sees; `o` rows of padded width, which every row's tile 0 has written (each sees key 0).
                unsafe {
                    V::run_apart(Columns::<VALUE_VECTORS> { product, rows: rows - r, columns: head_dim });
                }
                done = keys;
            }
        }
    }

    /// Divides by the sums and writes the rows out.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; nobody else writes these rows and heads of `out`.
    #[inline(always)]
    pub(super) unsafe fn store<V: Vector>(&self, out: SharedRows, first_row: usize, kv_head: usize) {
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

/// The first `columns` columns, rounded up to whole vectors, of a product with panels of `VECTORS` vectors.
///
/// Whoever makes one vouches for what [`multiply`] asks, for the panels that have any of these columns.
struct Columns<const VECTORS: usize> {
    product: Product,
    rows: usize,
    columns: usize,
}

impl<const VECTORS: usize> Kernel for Columns<VECTORS> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { product, rows, columns } = self;
        let width = VECTORS * V::LANES;
        let panels = columns / width;
        let last = product.skip_panels(panels, width);
        // SAFETY: the maker's promises; of the last panel only vectors that have a column are multiplied.
        unsafe {
            multiply::<V, F32, VECTORS>(product, rows, panels);
            match (columns % width).div_ceil(V::LANES) {
                0 => {}
                1 => multiply::<V, F32, 1>(last, rows, 1),
                2 => multiply::<V, F32, 2>(last, rows, 1),
                _ => multiply::<V, F32, VECTORS>(last, rows, 1),
            }
        }
    }
}
