//! The microkernel: a few rows of x times a panel of output columns, accumulated along k in
//! registers.
//!
//! ```text
//! acc[r, n] = (0 or acc[r, n]) + x[r, 0] * panel[0, n] + x[r, 1] * panel[1, n] + ..
//! ```
//!
//! Each element is one chain of additions in the order of k, whatever tile it falls into and
//! wherever the chain was spilled and reloaded. That is why a row's bits do not depend on how many
//! rows there are. GEMM and both matmuls of attention are made of this one function.

use super::accumulators::Start;
use super::blocking::Blocked;
use super::epilogue::Epilogue;
use super::simd::{Bf16Vector, Vector, prefetch, prefetch_far};

/// A cache line.
const LINE_BYTES: usize = 64;
const LINE_FLOATS: usize = 16;

/// The multiply-add of one step of k.
pub(super) trait Dot<V> {
    /// Elements of k in one step: in one 32-bit lane.
    const ELEMENTS: usize;

    /// Returns `acc + x * w`.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    unsafe fn step(acc: V, x: V, w: V) -> V;
}

/// f32 multiply-adds.
pub(super) struct F32;

impl<V: Vector> Dot<V> for F32 {
    const ELEMENTS: usize = 1;

    #[inline(always)]
    unsafe fn step(acc: V, x: V, w: V) -> V {
        // SAFETY: the caller vouches for the instructions.
        unsafe { x.mul_add(w, acc) }
    }
}

/// Dot products of bfloat16 pairs.
pub(super) struct Bf16;

impl<V: Bf16Vector> Dot<V> for Bf16 {
    const ELEMENTS: usize = 2;

    #[inline(always)]
    unsafe fn step(acc: V, x: V, w: V) -> V {
        // SAFETY: the caller vouches for the instructions.
        unsafe { acc.dot_pairs(x, w) }
    }
}

/// Operands of a macrokernel: `x` is `[rows, steps]`, a panel `[steps, panel_width]`, of which
/// `VECTORS` vectors are multiplied, `acc` `[rows, panels * VECTORS * LANES]`; strides in floats.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) steps: usize,
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    /// The first panel.
    pub(super) panel: *const f32,
    /// From one step of a panel to the next.
    pub(super) panel_width: usize,
    /// From one panel to the next.
    pub(super) panel_stride: usize,
    /// Accumulators, where they are reloaded from and spilled to.
    pub(super) acc: *mut f32,
    pub(super) acc_stride: usize,
    pub(super) start: Start,
    /// Stores the accumulators instead of spilling them to `acc`, when these steps are the last.
    pub(super) epilogue: Option<Epilogue>,
    pub(super) prefetch: Prefetch,
}

/// Rows of bytes to prefetch into the second-level cache while a macrokernel runs: a few of them
/// with every microkernel, as many bytes as there are steps. Nothing is read, so the addresses need
/// not be valid.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    pub(super) first: *const u8,
    /// From one row to the next.
    pub(super) row_bytes: usize,
    pub(super) rows: usize,
    pub(super) rows_per_tile: usize,
    /// Bytes of a row for each step.
    pub(super) step_bytes: usize,
}

impl Prefetch {
    /// No rows.
    pub(super) const NONE: Self =
        Self { first: std::ptr::null(), row_bytes: 0, rows: 0, rows_per_tile: 0, step_bytes: 0 };

    /// Returns what is left after `tiles` microkernels.
    #[inline(always)]
    pub(super) fn skip_tiles(mut self, tiles: usize) -> Self {
        let rows = self.rows.min(tiles * self.rows_per_tile);
        self.first = self.first.wrapping_add(rows * self.row_bytes);
        self.rows -= rows;
        self
    }

    /// Prefetches one microkernel's share of the bytes that belong to the line of steps from `step`
    /// on.
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

impl Operands {
    /// Returns the operands without their first `rows` rows.
    #[inline(always)]
    pub(super) fn skip_rows(mut self, rows: usize) -> Self {
        self.x = self.x.wrapping_add(rows.wrapping_mul(self.x_stride));
        self.acc = self.acc.wrapping_add(rows.wrapping_mul(self.acc_stride));
        self.epilogue = self.epilogue.map(|epilogue| epilogue.skip(rows, 0));
        self
    }

    /// Returns the operands without their first `panels` panels of `width` columns.
    #[inline(always)]
    pub(super) fn skip_panels(mut self, panels: usize, width: usize) -> Self {
        self.panel = self.panel.wrapping_add(panels.wrapping_mul(self.panel_stride));
        self.acc = self.acc.wrapping_add(panels.wrapping_mul(width));
        self.epilogue = self.epilogue.map(|epilogue| epilogue.skip(0, panels.wrapping_mul(width)));
        self
    }
}

/// Multiplies `rows` rows by `panels` panels of `VECTORS` vectors: a few rows of x stay in the
/// first-level cache while all panels go past them, out of the second.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `x` and the panels are readable and `acc` writable (and
/// initialised, to be reloaded) in the shapes that [`Operands`] states, and an epilogue's output
/// writable; no other thread touches them.
#[inline(always)]
pub(super) unsafe fn macrokernel<V: Blocked, D: Dot<V>, const VECTORS: usize>(
    mut operands: Operands,
    rows: usize,
    panels: usize,
) {
    let width = VECTORS * V::LANES;
    // SAFETY: every tile covers rows below `rows` and panels below `panels`.
    unsafe {
        // With one or two rows a panel has too few chains to hide the latency of an addition: take
        // several panels.
        match rows {
            0 => {}
            1 => {
                let grouped = panels - panels % 4;
                for panel in (0..grouped).step_by(4) {
                    microkernel::<V, D, 1, 4, VECTORS>(operands.skip_panels(panel, width));
                    operands.prefetch = operands.prefetch.skip_tiles(1);
                }
                for panel in grouped..panels {
                    microkernel::<V, D, 1, 1, VECTORS>(operands.skip_panels(panel, width));
                    operands.prefetch = operands.prefetch.skip_tiles(1);
                }
            }
            2 => {
                let grouped = panels - panels % 2;
                for panel in (0..grouped).step_by(2) {
                    microkernel::<V, D, 2, 2, VECTORS>(operands.skip_panels(panel, width));
                    operands.prefetch = operands.prefetch.skip_tiles(1);
                }
                for panel in grouped..panels {
                    microkernel::<V, D, 2, 1, VECTORS>(operands.skip_panels(panel, width));
                    operands.prefetch = operands.prefetch.skip_tiles(1);
                }
            }
            _ => {
                for row in (0..rows).step_by(V::BLOCKING.mr) {
                    let tile_rows = V::BLOCKING.mr.min(rows - row);
                    for panel in 0..panels {
                        let tile = operands.skip_panels(panel, width).skip_rows(row);
                        microkernel_of_rows::<V, D, VECTORS>(tile, tile_rows);
                        operands.prefetch = operands.prefetch.skip_tiles(1);
                    }
                }
            }
        }
    }
}

/// Returns the number of microkernels that [`macrokernel`] runs.
pub(super) fn microkernels<V: Blocked>(rows: usize, panels: usize) -> usize {
    match rows {
        1 => panels / 4 + panels % 4,
        2 => panels / 2 + panels % 2,
        _ => rows.div_ceil(V::BLOCKING.mr) * panels,
    }
}

/// Runs the microkernel of 1 to `mr` rows by one panel.
///
/// # Safety
///
/// As [`macrokernel`].
#[inline(always)]
unsafe fn microkernel_of_rows<V: Blocked, D: Dot<V>, const VECTORS: usize>(operands: Operands, rows: usize) {
    // SAFETY: the caller's promises, for this many rows.
    unsafe {
        match rows {
            1 => microkernel::<V, D, 1, 1, VECTORS>(operands),
            2 => microkernel::<V, D, 2, 1, VECTORS>(operands),
            3 => microkernel::<V, D, 3, 1, VECTORS>(operands),
            4 => microkernel::<V, D, 4, 1, VECTORS>(operands),
            5 if V::BLOCKING.mr > 4 => microkernel::<V, D, 5, 1, VECTORS>(operands),
            6 if V::BLOCKING.mr > 4 => microkernel::<V, D, 6, 1, VECTORS>(operands),
            7 if V::BLOCKING.mr > 6 => microkernel::<V, D, 7, 1, VECTORS>(operands),
            8 if V::BLOCKING.mr > 6 => microkernel::<V, D, 8, 1, VECTORS>(operands),
            _ => unreachable!("a tile has 1 to {} rows, not {rows}", V::BLOCKING.mr),
        }
    }
}

/// Multiplies `ROWS` rows by `PANELS` panels, accumulators in registers.
///
/// # Safety
///
/// As [`macrokernel`], for `ROWS` rows and `PANELS` panels.
#[inline(always)]
unsafe fn microkernel<V: Blocked, D: Dot<V>, const ROWS: usize, const PANELS: usize, const VECTORS: usize>(
    operands: Operands,
) {
    // SAFETY: all addresses are rows below ROWS, panels below PANELS, vectors below VECTORS and
    // steps below `steps`, which the caller vouches for.
    unsafe {
        let width = VECTORS * V::LANES;
        if let Some(epilogue) = operands.epilogue {
            epilogue.prefetch(ROWS, PANELS * width, prefetch);
        }
        let mut acc = [[[V::splat(0.0); VECTORS]; PANELS]; ROWS];
        if operands.start == Start::Reload {
            for r in 0..ROWS {
                let row = operands.skip_rows(r).acc;
                for p in 0..PANELS {
                    for v in 0..VECTORS {
                        acc[r][p][v] = V::load(row.add(p * width + v * V::LANES));
                    }
                }
            }
        }
        let x: [*const f32; ROWS] = std::array::from_fn(|r| operands.skip_rows(r).x);
        let mut panels: [*const f32; PANELS] = std::array::from_fn(|p| operands.skip_panels(p, 0).panel);
        let next_tile = ROWS.wrapping_mul(operands.x_stride);
        for line in (0..operands.steps).step_by(LINE_FLOATS) {
            for x in x {
                prefetch(x.wrapping_add(next_tile.wrapping_add(line)).cast());
            }
            operands.prefetch.fetch(line);
            for step in line..operands.steps.min(line + LINE_FLOATS) {
                let mut w = [[V::splat(0.0); VECTORS]; PANELS];
                for p in 0..PANELS {
                    for v in 0..VECTORS {
                        w[p][v] = V::load(panels[p].add(v * V::LANES));
                    }
                    panels[p] = panels[p].add(operands.panel_width);
                }
                for r in 0..ROWS {
                    let x = V::splat(*x[r].add(step));
                    for p in 0..PANELS {
                        for v in 0..VECTORS {
                            acc[r][p][v] = D::step(acc[r][p][v], x, w[p][v]);
                        }
                    }
                }
            }
        }
        for r in 0..ROWS {
            for p in 0..PANELS {
                for v in 0..VECTORS {
                    let column = p * width + v * V::LANES;
                    match operands.epilogue {
                        Some(epilogue) => epilogue.store_vector(r, column, acc[r][p][v]),
                        None => acc[r][p][v].store(operands.skip_rows(r).acc.add(column)),
                    }
                }
            }
        }
    }
}
