//! The register tile: a few rows of x times a few vectors of output columns, summed along k in registers.
//!
//! ```text
//! sums[r, n] = (0 or sums[r, n]) + x[r, 0] * panel[0, n] + x[r, 1] * panel[1, n] + ..
//! ```
//!
//! Each element is one chain of additions in the order of k, whatever tile it falls into and wherever the chain was cut
//! and continued. That is why a row's bits do not depend on how many rows there are. GEMM and both products of attention
//! are made of this one function.

use super::simd::{Bf16Vector, Vector};

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

/// What the sums begin with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Zero.
    Zero,
    /// What `sums` holds.
    Continue,
}

/// Operands of a product: `x` is `[rows, steps]`, a panel `[steps, VECTORS * LANES]`, `sums` `[rows, panels * VECTORS *
/// LANES]`; strides in floats.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) steps: usize,
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    /// The first panel.
    pub(super) panel: *const f32,
    /// From one panel to the next.
    pub(super) panel_stride: usize,
    pub(super) sums: *mut f32,
    pub(super) sums_stride: usize,
    pub(super) start: Start,
}

impl Product {
    /// The product without its first `rows` rows.
    #[inline(always)]
    fn skip_rows(mut self, rows: usize) -> Self {
        self.x = self.x.wrapping_add(rows.wrapping_mul(self.x_stride));
        self.sums = self.sums.wrapping_add(rows.wrapping_mul(self.sums_stride));
        self
    }

    /// The product without its first `panels` panels of `width` columns.
    #[inline(always)]
    fn skip_panels(mut self, panels: usize, width: usize) -> Self {
        self.panel = self.panel.wrapping_add(panels.wrapping_mul(self.panel_stride));
        self.sums = self.sums.wrapping_add(panels.wrapping_mul(width));
        self
    }
}

/// Computes `rows` rows of `panels` panels of `VECTORS` vectors. A panel stays in the first-level cache while the rows
/// go past it.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `x` and the panels are readable and `sums` writable (and initialised, to
/// continue) in the shapes that [`Product`] states; nobody else touches those sums.
#[inline(always)]
pub(super) unsafe fn multiply<V: Vector, D: Dot<V>, const VECTORS: usize>(
    product: Product,
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
                }
                for panel in grouped..panels {
                    tile::<V, D, 1, 1, VECTORS>(product.skip_panels(panel, width));
                }
            }
            2 => {
                let grouped = panels - panels % 2;
                for panel in (0..grouped).step_by(2) {
                    tile::<V, D, 2, 2, VECTORS>(product.skip_panels(panel, width));
                }
                for panel in grouped..panels {
                    tile::<V, D, 2, 1, VECTORS>(product.skip_panels(panel, width));
                }
            }
            _ => {
                for panel in 0..panels {
                    let product = product.skip_panels(panel, width);
                    for row in (0..rows).step_by(V::TILE_ROWS) {
                        rows_of_panel::<V, D, VECTORS>(product.skip_rows(row), V::TILE_ROWS.min(rows - row));
                    }
                }
            }
        }
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
        let mut sums = [[[V::splat(0.0); VECTORS]; PANELS]; ROWS];
        if product.start == Start::Continue {
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
        for step in 0..product.steps {
            let mut w = [[V::splat(0.0); VECTORS]; PANELS];
            for p in 0..PANELS {
                for v in 0..VECTORS {
                    w[p][v] = V::load(panels[p].add(v * V::LANES));
                }
                panels[p] = panels[p].add(width);
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
        for r in 0..ROWS {
            let row = product.skip_rows(r).sums;
            for p in 0..PANELS {
                for v in 0..VECTORS {
                    sums[r][p][v].store(row.add(p * width + v * V::LANES));
                }
            }
        }
    }
}
