//! The register tile: a few rows of x times a few vectors of output columns, summed along k in registers.
//!
//! ```text
//! sums[r, n] = (0 or sums[r, n]) + x[r, 0] * panel[0, n] + x[r, 1] * panel[1, n] + ..
//! ```
//!
//! Each element is one chain of additions in the order of k, whatever tile it falls into and wherever the chain was cut
//! and continued. That is why a row's bits do not depend on how many rows there are. GEMM and both products of attention
//! are made of this one function.

use super::accumulators::Start;
use super::simd::{Bf16Vector, Vector, prefetch, prefetch_far};

/// A cache line.
const LINE_BYTES: usize = 64;
const LINE_FLOATS: usize = 16;

/// How one step of k is multiplied and added.
pub(super) trait Dot<V> {
    /// Values of k in one step: in one 32-bit lane.
    const VALUES: usize;

    /// `sum + x * w`.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    unsafe fn step(sum: V, x: V, w: V) -> V;
}

/// f32 products.
pub(super) struct F32;

impl<V: Vector> Dot<V> for F32 {
    const VALUES: usize = 1;

    #[inline(always)]
    unsafe fn step(sum: V, x: V, w: V) -> V {
        // SAFETY: the caller vouches for the instructions.
        unsafe { x.mul_add(w, sum) }
    }
}

/// Products of bfloat16 pairs.
pub(super) struct Bf16;

impl<V: Bf16Vector> Dot<V> for Bf16 {
    const VALUES: usize = 2;

    #[inline(always)]
    unsafe fn step(sum: V, x: V, w: V) -> V {
        // SAFETY: the caller vouches for the instructions.
        unsafe { sum.dot_pairs(x, w) }
    }
}

/// Operands of a product: `x` is `[rows, steps]`, a panel `[steps, panel_width]`, of which `VECTORS` vectors are multiplied,
/// `sums` `[rows, panels * VECTORS * LANES]`; strides in floats.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) steps: usize,
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    /// The first panel.
    pub(super) panel: *const f32,
    /// From one step of a panel to the next.
    pub(super) panel_width: usize,
    /// From one panel to the next.
    pub(super) panel_stride: usize,
    pub(super) sums: *mut f32,
    pub(super) sums_stride: usize,
    pub(super) start: Start,
    /// Where the sums go instead of `sums`, when these steps are the last.
    pub(super) finish: Option<Finish>,
    /// What is fetched meanwhile.
    pub(super) ahead: Ahead,
}

/// Rows of bytes that someone will read soon, to be brought into the second-level cache while a product is computed: a
/// few of them with every tile, as many bytes as there are steps. Nothing is read, so the addresses need not be valid.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) first: *const u8,
    /// From one row to the next.
    pub(super) row_bytes: usize,
    pub(super) rows: usize,
    pub(super) rows_per_tile: usize,
    /// Bytes of a row for each step.
    pub(super) step_bytes: usize,
}

impl Ahead {
    /// Nothing at all.
    pub(super) const NOTHING: Self =
        Self { first: std::ptr::null(), row_bytes: 0, rows: 0, rows_per_tile: 0, step_bytes: 0 };

    /// What is left after `tiles` tiles.
    #[inline(always)]
    pub(super) fn skip_tiles(mut self, tiles: usize) -> Self {
        let rows = self.rows.min(tiles * self.rows_per_tile);
        self.first = self.first.wrapping_add(rows * self.row_bytes);
        self.rows -= rows;
        self
    }

    /// Asks for one tile's share of what belongs to the line of steps from `step` on.
    #[inline(always)]
    fn fetch(&self, step: usize) {
        let offset = step * self.step_bytes;
        if offset.is_multiple_of(LINE_BYTES) {
            for row in 0..self.rows.min(self.rows_per_tile) {
                prefetch_far(self.first.wrapping_add(row * self.row_bytes + offset));
            }
        }
    }
}

/// What becomes of finished sums: `out = (out or 0) + (sums + bias)`.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    /// `[rows, columns]`.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    /// Columns that exist: in the last panel fewer than it has.
    pub(super) columns: usize,
    /// `[columns]`, or none.
    pub(super) bias: Option<*const f32>,
    pub(super) store: Store,
}

/// What becomes of the values that an output held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// They are overwritten.
    Replace,
    /// The product is added to them.
    Add,
    /// Of a weight of gate and, behind it, up, both equally many rows, silu(gate) * up overwrites them: half as many columns.
    /// By a matrix unit only.
    Gate,
}

impl Finish {
    /// Asks, with `prefetch`, for the lines of a tile, which will be written, or read and written, many steps later.
    #[inline(always)]
    pub(super) fn prefetch(&self, rows: usize, columns: usize, prefetch: impl Fn(*const u8)) {
        for r in 0..rows {
            let row = self.out.wrapping_add(r.wrapping_mul(self.stride));
            for column in (0..columns).step_by(LINE_FLOATS) {
                prefetch(row.wrapping_add(column).cast());
            }
        }
    }

    /// Finishes the vector of sums at `[row, column]` of the tile.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; what exists of the vector lies inside `out` and `bias`.
    #[inline(always)]
    unsafe fn put<V: Vector>(&self, row: usize, column: usize, mut sums: V) {
        let count = V::LANES.min(self.columns.saturating_sub(column));
        // SAFETY: `count` columns from `column` on exist; where none do, nothing is read or written.
        unsafe {
            if let Some(bias) = self.bias {
                sums = sums.add(V::load_first(bias.wrapping_add(column), count));
            }
            let out = self.out.wrapping_add(row.wrapping_mul(self.stride).wrapping_add(column));
            if self.store == Store::Add {
                sums = V::load_first(out, count).add(sums);
            }
            sums.store_first(out, count);
        }
    }

    /// Finishes `rows` rows of sums, `stride` floats apart, in whole vectors.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; these sums are readable, and what exists of them lies inside `out` and `bias`.
    #[inline(always)]
    pub(super) unsafe fn put_rows<V: Vector>(&self, sums: *const f32, stride: usize, rows: usize) {
        for row in 0..rows {
            for column in (0..self.columns).step_by(V::LANES) {
                // SAFETY: the caller's promises.
                unsafe { self.put(row, column, V::load(sums.add(row * stride + column))) };
            }
        }
    }

    #[inline(always)]
    pub(super) fn skip(mut self, rows: usize, columns: usize) -> Self {
        self.out = self.out.wrapping_add(rows.wrapping_mul(self.stride).wrapping_add(columns));
        self.bias = self.bias.map(|bias| bias.wrapping_add(columns));
        self.columns = self.columns.saturating_sub(columns);
        self
    }
}

impl Product {
    /// The product without its first `rows` rows.
    #[inline(always)]
    pub(super) fn skip_rows(mut self, rows: usize) -> Self {
        self.x = self.x.wrapping_add(rows.wrapping_mul(self.x_stride));
        self.sums = self.sums.wrapping_add(rows.wrapping_mul(self.sums_stride));
        self.finish = self.finish.map(|finish| finish.skip(rows, 0));
        self
    }

    /// The product without its first `panels` panels of `width` columns.
    #[inline(always)]
    pub(super) fn skip_panels(mut self, panels: usize, width: usize) -> Self {
        self.panel = self.panel.wrapping_add(panels.wrapping_mul(self.panel_stride));
        self.sums = self.sums.wrapping_add(panels.wrapping_mul(width));
        self.finish = self.finish.map(|finish| finish.skip(0, panels.wrapping_mul(width)));
        self
    }
}

/// Computes `rows` rows of `panels` panels of `VECTORS` vectors: a few rows of x stay in the first-level cache while all
/// panels go past them, out of the second.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `x` and the panels are readable and `sums` writable (and initialised, to
/// continue) in the shapes that [`Product`] states; nobody else touches those sums.
#[inline(always)]
pub(super) unsafe fn multiply<V: Vector, D: Dot<V>, const VECTORS: usize>(
    mut product: Product,
    rows: usize,
    panels: usize,
) {
    let width = VECTORS * V::LANES;
    // SAFETY: every tile covers rows below `rows` and panels below `panels`.
    unsafe {
        // With one or two rows a panel has too few chains to hide an addition's latency: take several at once.
        match rows {
            0 => {}
            1 => {
                let grouped = panels - panels % 4;
                for panel in (0..grouped).step_by(4) {
                    tile::<V, D, 1, 4, VECTORS>(product.skip_panels(panel, width));
                    product.ahead = product.ahead.skip_tiles(1);
                }
                for panel in grouped..panels {
                    tile::<V, D, 1, 1, VECTORS>(product.skip_panels(panel, width));
                    product.ahead = product.ahead.skip_tiles(1);
                }
            }
            2 => {
                let grouped = panels - panels % 2;
                for panel in (0..grouped).step_by(2) {
                    tile::<V, D, 2, 2, VECTORS>(product.skip_panels(panel, width));
                    product.ahead = product.ahead.skip_tiles(1);
                }
                for panel in grouped..panels {
                    tile::<V, D, 2, 1, VECTORS>(product.skip_panels(panel, width));
                    product.ahead = product.ahead.skip_tiles(1);
                }
            }
            _ => {
                for row in (0..rows).step_by(V::TILE_ROWS) {
                    let tile_rows = V::TILE_ROWS.min(rows - row);
                    for panel in 0..panels {
                        let part = product.skip_panels(panel, width).skip_rows(row);
                        rows_of_panel::<V, D, VECTORS>(part, tile_rows);
                        product.ahead = product.ahead.skip_tiles(1);
                    }
                }
            }
        }
    }
}

/// Tiles that [`multiply`] makes of so many rows and panels.
pub(super) fn tiles<V: Vector>(rows: usize, panels: usize) -> usize {
    match rows {
        1 => panels / 4 + panels % 4,
        2 => panels / 2 + panels % 2,
        _ => rows.div_ceil(V::TILE_ROWS) * panels,
    }
}

/// At most `TILE_ROWS` rows of one panel.
///
/// # Safety
///
/// As [`multiply`].
#[inline(always)]
unsafe fn rows_of_panel<V: Vector, D: Dot<V>, const VECTORS: usize>(product: Product, rows: usize) {
    // SAFETY: the caller's promises, for this many rows.
    unsafe {
        match rows {
            1 => tile::<V, D, 1, 1, VECTORS>(product),
            2 => tile::<V, D, 2, 1, VECTORS>(product),
            3 => tile::<V, D, 3, 1, VECTORS>(product),
            4 => tile::<V, D, 4, 1, VECTORS>(product),
            5 if V::TILE_ROWS > 4 => tile::<V, D, 5, 1, VECTORS>(product),
            6 if V::TILE_ROWS > 4 => tile::<V, D, 6, 1, VECTORS>(product),
            7 if V::TILE_ROWS > 6 => tile::<V, D, 7, 1, VECTORS>(product),
            8 if V::TILE_ROWS > 6 => tile::<V, D, 8, 1, VECTORS>(product),
            _ => unreachable!("a tile has 1 to {} rows, not {rows}", V::TILE_ROWS),
        }
    }
}

/// One tile, its sums in registers.
///
/// # Safety
///
/// As [`multiply`], for `ROWS` rows and `PANELS` panels.
#[inline(always)]
unsafe fn tile<V: Vector, D: Dot<V>, const ROWS: usize, const PANELS: usize, const VECTORS: usize>(
    product: Product,
) {
    // SAFETY: all addresses are rows below ROWS, panels below PANELS, vectors below VECTORS and steps below `steps`,
    // which the caller vouches for.
    unsafe {
        let width = VECTORS * V::LANES;
        if let Some(finish) = product.finish {
            finish.prefetch(ROWS, PANELS * width, prefetch);
        }
        let mut sums = [[[V::splat(0.0); VECTORS]; PANELS]; ROWS];
        if product.start == Start::Reload {
            for r in 0..ROWS {
                let row = product.skip_rows(r).sums;
                for p in 0..PANELS {
                    for v in 0..VECTORS {
                        sums[r][p][v] = V::load(row.add(p * width + v * V::LANES));
                    }
                }
            }
        }
        let x: [*const f32; ROWS] = std::array::from_fn(|r| product.skip_rows(r).x);
        let mut panels: [*const f32; PANELS] = std::array::from_fn(|p| product.skip_panels(p, 0).panel);
        let next_tile = ROWS.wrapping_mul(product.x_stride);
        for line in (0..product.steps).step_by(LINE_FLOATS) {
            for x in x {
                prefetch(x.wrapping_add(next_tile.wrapping_add(line)).cast());
            }
            product.ahead.fetch(line);
            for step in line..product.steps.min(line + LINE_FLOATS) {
                let mut w = [[V::splat(0.0); VECTORS]; PANELS];
                for p in 0..PANELS {
                    for v in 0..VECTORS {
                        w[p][v] = V::load(panels[p].add(v * V::LANES));
                    }
                    panels[p] = panels[p].add(product.panel_width);
                }
                for r in 0..ROWS {
                    let x = V::splat(*x[r].add(step));
                    for p in 0..PANELS {
                        for v in 0..VECTORS {
                            sums[r][p][v] = D::step(sums[r][p][v], x, w[p][v]);
                        }
                    }
                }
            }
        }
        for r in 0..ROWS {
            for p in 0..PANELS {
                for v in 0..VECTORS {
                    let column = p * width + v * V::LANES;
                    match product.finish {
                        Some(finish) => finish.put(r, column, sums[r][p][v]),
                        None => sums[r][p][v].store(product.skip_rows(r).sums.add(column)),
                    }
                }
            }
        }
    }
}
