//! Activations packed for matmuls by vector instructions: a row in each lane.
//!
//! ```text
//! strips[row / LANES][step][row % LANES]
//! ```
//!
//! A step is one f32 element of a row, or a pair of elements rounded to bfloat16. One behind the
//! last of an odd number of elements is zero. What lies in lanes behind the last row affects no
//! other lane.

use std::marker::PhantomData;
use std::ops::Range;

use super::pack::{pack_pairs, pack_panel};
use super::simd::{Bf16Vector, Isa, Vector};
use super::view::Rows;
use crate::weights::Dtype;

/// The format of strips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripFormat {
    /// Rows of a strip.
    pub(super) lanes: usize,
    /// Elements of a step: 1 in f32, 2 in bfloat16.
    pub(super) elements: usize,
}

impl StripFormat {
    /// The format that matmuls of `isa` read, in f32 or in bfloat16.
    pub(super) fn of(isa: Isa, elements: usize) -> Self {
        Self { lanes: isa.lanes(), elements }
    }

    /// Rows of a strip.
    pub(super) fn lanes(self) -> usize {
        self.lanes
    }

    /// Returns the floats from one strip of rows of `width` elements to the next: an odd number of
    /// steps, so that the strips that a microkernel reads lie in different sets of the first-level
    /// cache.
    pub(super) fn stride(self, width: usize) -> usize {
        (width.div_ceil(self.elements) | 1) * self.lanes
    }

    /// Returns the index of the step that begins with element `col` of row `row`'s strip.
    #[inline(always)]
    fn step(self, width: usize, row: usize, col: usize) -> usize {
        debug_assert!(row.is_multiple_of(self.lanes) && col.is_multiple_of(self.elements));
        row / self.lanes * self.stride(width) + col / self.elements * self.lanes
    }

    /// Returns the floats of `rows` rows of `width` elements.
    pub(super) fn floats(self, rows: usize, width: usize) -> usize {
        rows.div_ceil(self.lanes) * self.stride(width)
    }
}

/// Strips to read: `[rows, width]`.
#[derive(Clone, Copy)]
pub struct Strips<'a> {
    data: &'a [f32],
    rows: usize,
    width: usize,
    format: StripFormat,
}

impl<'a> Strips<'a> {
    /// Views rows from the start of `data`.
    ///
    /// # Panics
    ///
    /// When the rows end after `data` does.
    pub(super) fn new(data: &'a [f32], rows: usize, width: usize, format: StripFormat) -> Self {
        assert!(format.floats(rows, width) <= data.len(), "[{rows}, {width}] strips in {}", data.len());
        Self { data, rows, width, format }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn format(&self) -> StripFormat {
        self.format
    }

    /// Returns the address of the step that begins with element `col` of the strip of row `row`, the
    /// first of its strip.
    #[inline(always)]
    pub(super) fn step(&self, row: usize, col: usize) -> *const f32 {
        debug_assert!(row < self.rows);
        self.data.as_ptr().wrapping_add(self.format.step(self.width, row, col))
    }
}

/// Strips to write: `[rows, width]`.
pub struct StripsMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    width: usize,
    format: StripFormat,
}

impl<'a> StripsMut<'a> {
    /// Views rows from the start of `data`.
    ///
    /// # Panics
    ///
    /// When the rows end after `data` does.
    pub(super) fn new(data: &'a mut [f32], rows: usize, width: usize, format: StripFormat) -> Self {
        assert!(format.floats(rows, width) <= data.len(), "[{rows}, {width}] strips in {}", data.len());
        Self { data, rows, width, format }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn format(&self) -> StripFormat {
        self.format
    }

    /// Shares the rows among several workers.
    pub(super) fn share(&mut self) -> SharedStrips<'_> {
        let &mut Self { ref mut data, rows, width, format } = self;
        SharedStrips { data: data.as_mut_ptr(), rows, width, format, life: PhantomData }
    }
}

/// [`StripsMut`] that several workers write at once, each its own steps.
#[derive(Clone, Copy)]
pub(super) struct SharedStrips<'a> {
    data: *mut f32,
    rows: usize,
    width: usize,
    format: StripFormat,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is to f32 that are borrowed exclusively for 'a; who writes through it promises
// steps that no other thread uses.
unsafe impl Send for SharedStrips<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for SharedStrips<'_> {}

impl SharedStrips<'_> {
    /// Returns the address of the step that begins with column `column` of the strip of row `row`, the
    /// first of its strip.
    #[inline(always)]
    pub(super) fn step(&self, row: usize, column: usize) -> *mut f32 {
        assert!(row < self.rows && column < self.width);
        self.data.wrapping_add(self.format.step(self.width, row, column))
    }
}

/// Packs elements `cols` of rows `rows`, at most `LANES`, as a strip of f32, zeros where there is no
/// row.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `strip` is writable for `LANES` floats of each element.
#[inline(always)]
pub(super) unsafe fn pack_floats<V: Vector>(
    x: &Rows,
    rows: Range<usize>,
    cols: Range<usize>,
    strip: *mut f32,
) {
    let row = |r: usize| x.row(rows.start + r)[cols.clone()].as_ptr().cast();
    // SAFETY: the caller's promises; a row has these elements.
    unsafe { pack_panel::<V>(row, rows.len(), 4 * cols.len(), 0, V::LANES, strip) }
}

/// Packs elements `cols` of rows `rows`, at most `LANES`, as a strip of pairs, zeros where there is no
/// row. `rounded` is scratch.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `strip` and `rounded` are writable for `LANES` floats of each
/// pair.
#[inline(always)]
pub(super) unsafe fn pack_rounded<V: Bf16Vector>(
    x: &Rows,
    rows: Range<usize>,
    cols: Range<usize>,
    strip: *mut f32,
    rounded: *mut f32,
) {
    let row = |r: usize| x.row(rows.start + r)[cols.clone()].as_ptr().cast();
    let (count, stride) = (rows.len(), cols.len().div_ceil(2));
    // SAFETY: the caller's promises; a row has these elements, and takes `stride` floats rounded.
    unsafe {
        pack_pairs::<V>(Dtype::F32, row, count, cols.len(), 0, V::LANES, strip, rounded, stride);
    }
}
