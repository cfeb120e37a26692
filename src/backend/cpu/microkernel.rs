//! The microkernel: a few rows, whose elements are broadcast, times a panel of columns, which lie side
//! by side in vectors, accumulated along k in registers.
//!
//! ```text
//! acc[r, n] = (0 or acc[r, n]) + row[r, 0] * panel[0, n] + row[r, 1] * panel[1, n] + ..
//! ```
//!
//! Each element is one chain of additions in the order of k, whatever tile it falls into and
//! wherever the chain was spilled and reloaded. That is why a row's bits do not depend on how many
//! rows there are. GEMM and both matmuls of attention are made of this one function, but for a GEMM
//! of few rows: GEMM broadcasts rows of the weight over panels of x, attention broadcasts queries over
//! panels of keys and probabilities over panels of values.

use super::accumulators::Start;
use super::blocking::Blocked;
use super::simd::{Bf16Vector, Vector, prefetch};

/// A cache line.
const LINE_BYTES: usize = 64;
const LINE_FLOATS: usize = 16;

/// The multiply-add of one step of k.
pub(super) trait Dot<V> {
    /// Elements of k in one step: in one 32-bit lane.
    const ELEMENTS: usize;

    /// Returns `acc + row * column`.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    unsafe fn step(acc: V, row: V, column: V) -> V;
}

/// f32 multiply-adds.
pub(super) struct F32;

impl<V: Vector> Dot<V> for F32 {
    const ELEMENTS: usize = 1;

    #[inline(always)]
    unsafe fn step(acc: V, row: V, column: V) -> V {
        // SAFETY: the caller vouches for the instructions.
        unsafe { row.mul_add(column, acc) }
    }
}

/// Dot products of bfloat16 pairs.
pub(super) struct Bf16;

impl<V: Bf16Vector> Dot<V> for Bf16 {
    const ELEMENTS: usize = 2;

    #[inline(always)]
    unsafe fn step(acc: V, row: V, column: V) -> V {
        // SAFETY: the caller vouches for the instructions.
        unsafe { acc.dot_pairs(row, column) }
    }
}

/// Rows that are broadcast, `stride` steps apart, any address.
#[derive(Clone, Copy)]
pub(super) struct Strided {
    pub(super) first: *const f32,
    pub(super) stride: usize,
}

impl Strided {
    /// Returns the address of row `row`.
    #[inline(always)]
    fn row(&self, row: usize) -> *const f32 {
        self.first.wrapping_add(row.wrapping_mul(self.stride))
    }
}

/// Rows of bytes to prefetch while a microkernel runs, some for each step. Nothing is read, so the
/// addresses need not be valid.
#[derive(Clone, Copy)]
pub(super) struct Prefetch<const ROWS: usize> {
    pub(super) rows: [*const u8; ROWS],
    /// Bytes of a row for each step; 0 for none.
    pub(super) step_bytes: usize,
}

impl<const ROWS: usize> Prefetch<ROWS> {
    /// No rows.
    pub(super) const NONE: Self = Self { rows: [std::ptr::null(); ROWS], step_bytes: 0 };

    /// Calls `prefetch` for the bytes that belong to the line of steps from `step` on.
    #[inline(always)]
    pub(super) fn fetch(&self, step: usize, prefetch: impl Fn(*const u8)) {
        let offset = step * self.step_bytes;
        if self.step_bytes > 0 && offset.is_multiple_of(LINE_BYTES) {
            for row in self.rows {
                prefetch(row.wrapping_add(offset));
            }
        }
    }
}

/// Operands beside the rows: panels `[steps, panel_width]`, of which `VECTORS` vectors are
/// multiplied, and accumulators `[rows, panels * VECTORS * LANES]`; strides in floats.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) steps: usize,
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
}

impl Operands {
    /// Returns the operands of rows from `rows` on.
    #[inline(always)]
    fn skip_rows(mut self, rows: usize) -> Self {
        self.acc = self.acc.wrapping_add(rows.wrapping_mul(self.acc_stride));
        self
    }

    /// Returns the operands without their first `panels` panels of `width` columns.
    #[inline(always)]
    pub(super) fn skip_panels(mut self, panels: usize, width: usize) -> Self {
        self.panel = self.panel.wrapping_add(panels.wrapping_mul(self.panel_stride));
        self.acc = self.acc.wrapping_add(panels.wrapping_mul(width));
        self
    }
}

/// Multiplies `rows` rows by `panels` panels of `VECTORS` vectors: a few rows stay in the first-level
/// cache while all panels go past them, out of the second.
///
/// # Safety
///
/// The CPU has the instructions of `V`; the rows and the panels are readable and `acc` writable (and
/// initialised, to be reloaded) in the shapes that [`Operands`] states; no other thread touches them.
#[inline(always)]
pub(super) unsafe fn macrokernel<V: Blocked, D: Dot<V>, const VECTORS: usize>(
    x: Strided,
    operands: Operands,
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
                    strided::<V, D, 1, 4, VECTORS>(x, operands.skip_panels(panel, width));
                }
                for panel in grouped..panels {
                    strided::<V, D, 1, 1, VECTORS>(x, operands.skip_panels(panel, width));
                }
            }
            2 => {
                let grouped = panels - panels % 2;
                for panel in (0..grouped).step_by(2) {
                    strided::<V, D, 2, 2, VECTORS>(x, operands.skip_panels(panel, width));
                }
                for panel in grouped..panels {
                    strided::<V, D, 2, 1, VECTORS>(x, operands.skip_panels(panel, width));
                }
            }
            _ => {
                for row in (0..rows).step_by(V::BLOCKING.mr) {
                    let tile_rows = V::BLOCKING.mr.min(rows - row);
                    let x = Strided { first: x.row(row), ..x };
                    for panel in 0..panels {
                        let tile = operands.skip_panels(panel, width).skip_rows(row);
                        strided_rows::<V, D, VECTORS>(x, tile, tile_rows);
                    }
                }
            }
        }
    }
}

/// Runs the microkernel of 1 to `mr` rows by one panel.
///
/// # Safety
///
/// As [`macrokernel`].
#[inline(always)]
unsafe fn strided_rows<V: Blocked, D: Dot<V>, const VECTORS: usize>(
    x: Strided,
    operands: Operands,
    rows: usize,
) {
    // SAFETY: the caller's promises, for this many rows.
    unsafe {
        match rows {
            1 => strided::<V, D, 1, 1, VECTORS>(x, operands),
            2 => strided::<V, D, 2, 1, VECTORS>(x, operands),
            3 => strided::<V, D, 3, 1, VECTORS>(x, operands),
            4 => strided::<V, D, 4, 1, VECTORS>(x, operands),
            5 if V::BLOCKING.mr > 4 => strided::<V, D, 5, 1, VECTORS>(x, operands),
            6 if V::BLOCKING.mr > 4 => strided::<V, D, 6, 1, VECTORS>(x, operands),
            7 if V::BLOCKING.mr > 6 => strided::<V, D, 7, 1, VECTORS>(x, operands),
            8 if V::BLOCKING.mr > 6 => strided::<V, D, 8, 1, VECTORS>(x, operands),
            _ => unreachable!("a tile has 1 to {} rows, not {rows}", V::BLOCKING.mr),
        }
    }
}

/// Runs the microkernel of `ROWS` rows, the next of which are prefetched.
///
/// # Safety
///
/// As [`macrokernel`], for `ROWS` rows and `PANELS` panels.
#[inline(always)]
unsafe fn strided<V: Blocked, D: Dot<V>, const ROWS: usize, const PANELS: usize, const VECTORS: usize>(
    x: Strided,
    operands: Operands,
) {
    let next = Prefetch { rows: std::array::from_fn(|r| x.row(ROWS + r).cast()), step_bytes: 4 };
    // SAFETY: the caller's promises.
    unsafe {
        microkernel::<V, D, ROWS, PANELS, VECTORS>(std::array::from_fn(|r| x.row(r)), operands, next);
    }
}

/// Multiplies `ROWS` rows by `PANELS` panels, accumulators in registers.
///
/// # Safety
///
/// As [`macrokernel`], for `ROWS` rows, each at an address of its own, and `PANELS` panels.
#[inline(always)]
pub(super) unsafe fn microkernel<
    V: Blocked,
    D: Dot<V>,
    const ROWS: usize,
    const PANELS: usize,
    const VECTORS: usize,
>(
    rows: [*const f32; ROWS],
    operands: Operands,
    next: Prefetch<ROWS>,
) {
    // SAFETY: all addresses are rows below ROWS, panels below PANELS, vectors below VECTORS and
    // steps below `steps`, which the caller vouches for.
    unsafe {
        let width = VECTORS * V::LANES;
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
        let mut panels: [*const f32; PANELS] = std::array::from_fn(|p| operands.skip_panels(p, 0).panel);
        for line in (0..operands.steps).step_by(LINE_FLOATS) {
            next.fetch(line, prefetch);
            for step in line..operands.steps.min(line + LINE_FLOATS) {
                let mut columns = [[V::splat(0.0); VECTORS]; PANELS];
                for p in 0..PANELS {
                    for v in 0..VECTORS {
                        columns[p][v] = V::load(panels[p].add(v * V::LANES));
                    }
                    panels[p] = panels[p].add(operands.panel_width);
                }
                for r in 0..ROWS {
                    let x = V::splat(rows[r].add(step).read_unaligned());
                    for p in 0..PANELS {
                        for v in 0..VECTORS {
                            acc[r][p][v] = D::step(acc[r][p][v], x, columns[p][v]);
                        }
                    }
                }
            }
        }
        for r in 0..ROWS {
            let row = operands.skip_rows(r).acc;
            for p in 0..PANELS {
                for v in 0..VECTORS {
                    acc[r][p][v].store(row.add(p * width + v * V::LANES));
                }
            }
        }
    }
}
