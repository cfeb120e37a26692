//! Views of matrices in memory: activations (f32 rows with a stride) and stored weights (bytes of
//! any alignment).
//!
//! The constructors check that every element lies inside the slice; the kernels' pointer arithmetic
//! rests on that. They panic where one does not: that is a bug of the caller, never a mistake of a
//! user.

use std::marker::PhantomData;
use std::ops::Range;

use crate::weights::Dtype;

/// Returns the elements from the first of `rows` rows of `width`, `stride` apart, to the end of the
/// last.
///
/// # Panics
///
/// When rows overlap or the extent does not fit into memory.
fn extent(rows: usize, width: usize, stride: usize) -> usize {
    assert!(width <= stride || rows <= 1, "rows of {width} overlap at a stride of {stride}");
    match rows {
        0 => 0,
        _ => (rows - 1)
            .checked_mul(stride)
            .and_then(|n| n.checked_add(width))
            .expect("the matrix is larger than memory"),
    }
}

/// f32 rows to read: `[rows, width]`, `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Views `rows` rows of `width` elements, `stride` apart, from the start of `data`.
    ///
    /// # Panics
    ///
    /// When the rows overlap or end after `data` does.
    pub fn new(data: &'a [f32], rows: usize, width: usize, stride: usize) -> Self {
        assert!(
            extent(rows, width, stride) <= data.len(),
            "[{rows}, {width}] rows {stride} apart in {}",
            data.len()
        );
        Self { data, rows, width, stride }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    pub(super) fn as_ptr(&self) -> *const f32 {
        self.data.as_ptr()
    }

    /// Row `row`.
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows);
        &self.data[row * self.stride..][..self.width]
    }
}

/// f32 rows to write: `[rows, width]`, `stride` elements apart. Elements between the rows are not
/// touched.
pub struct RowsMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a> RowsMut<'a> {
    /// Views `rows` rows of `width` elements, `stride` apart, from the start of `data`. To write
    /// columns `c..c + width` of a wider matrix, pass its slice from element `c` on.
    ///
    /// # Panics
    ///
    /// When the rows overlap or end after `data` does.
    pub fn new(data: &'a mut [f32], rows: usize, width: usize, stride: usize) -> Self {
        assert!(
            extent(rows, width, stride) <= data.len(),
            "[{rows}, {width}] rows {stride} apart in {}",
            data.len()
        );
        Self { data, rows, width, stride }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Shares the rows among several workers.
    pub(super) fn share(&mut self) -> SharedRows<'_> {
        SharedRows {
            data: self.data.as_mut_ptr(),
            rows: self.rows,
            width: self.width,
            stride: self.stride,
            life: PhantomData,
        }
    }
}

/// [`RowsMut`] that several workers write at once, each its own elements.
#[derive(Clone, Copy)]
pub(super) struct SharedRows<'a> {
    data: *mut f32,
    rows: usize,
    width: usize,
    stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is to f32 that are borrowed exclusively for 'a; access goes through `part`,
// whose callers promise disjoint parts.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for SharedRows<'_> {}

impl SharedRows<'_> {
    /// Columns `columns` of row `row`.
    ///
    /// # Safety
    ///
    /// No two parts that live at the same time, on any thread, share an element.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the caller promises disjoint parts")]
    pub(super) unsafe fn part(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.width);
        // SAFETY: row and columns lie inside the view, which `RowsMut::new` checked against the
        // slice; the caller promises that no other part overlaps.
        unsafe {
            let start = self.data.add(row * self.stride + columns.start);
            std::slice::from_raw_parts_mut(start, columns.end - columns.start)
        }
    }
}

impl SharedRows<'_> {
    /// Returns the address of element `[row, column]`.
    pub(super) fn element(&self, row: usize, column: usize) -> *mut f32 {
        assert!(row < self.rows && column < self.width);
        self.data.wrapping_add(row * self.stride + column)
    }

    /// Elements from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }
}

/// A weight as stored: `[rows, cols]` of one format, in one segment of memory or in a few, one
/// behind another.
#[derive(Clone, Copy)]
pub struct WeightView<'a> {
    /// The first `count` are in use.
    segments: [Segment<'a>; SEGMENTS_MAX],
    count: usize,
    dtype: Dtype,
    cols: usize,
}

/// One for each of q, k and v, which are multiplied as one matrix.
const SEGMENTS_MAX: usize = 3;

/// Rows `row_stride` elements apart, at any byte address.
#[derive(Clone, Copy)]
struct Segment<'a> {
    bytes: &'a [u8],
    rows: usize,
    row_stride: usize,
}

impl<'a> WeightView<'a> {
    /// Views `rows` rows (output columns of the matmul) of `cols` elements (its inner dimension),
    /// `row_stride` elements apart, from the start of `bytes`. A column shard of a wider weight is
    /// its slice from the first column on.
    ///
    /// # Panics
    ///
    /// When the rows overlap or end after `bytes` does.
    pub fn new(bytes: &'a [u8], dtype: Dtype, rows: usize, cols: usize, row_stride: usize) -> Self {
        let fits = extent(rows, cols, row_stride).checked_mul(dtype.size()).is_some_and(|n| n <= bytes.len());
        assert!(fits, "[{rows}, {cols}] {dtype:?} rows {row_stride} apart in {} bytes", bytes.len());
        Self { segments: [Segment { bytes, rows, row_stride }; SEGMENTS_MAX], count: 1, dtype, cols }
    }

    /// Returns the rows of both, one behind the other; none where their formats or widths differ,
    /// or they have too many segments.
    pub fn followed_by(mut self, other: Self) -> Option<Self> {
        let fits = self.dtype == other.dtype && self.cols == other.cols;
        let count = self.count + other.count;
        if !fits || count > SEGMENTS_MAX {
            return None;
        }
        self.segments[self.count..count].copy_from_slice(&other.segments[..other.count]);
        self.count = count;
        Some(self)
    }

    /// Rows: output columns of the matmul.
    pub fn rows(&self) -> usize {
        self.segments[..self.count].iter().map(|segment| segment.rows).sum()
    }

    /// Elements of a row: the inner dimension of the matmul.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Elements from one row to the next in the first segment: enough to estimate which lines to
    /// prefetch.
    pub(super) fn row_stride(&self) -> usize {
        self.segments[0].row_stride
    }

    /// Returns the addresses of column `col` of the rows from `row` on; behind the last row before
    /// `end` that row again.
    #[inline(always)]
    pub(super) fn elements<const ROWS: usize>(
        &self,
        row: usize,
        end: usize,
        col: usize,
    ) -> [*const u8; ROWS] {
        let (segment, first) = self.segment_of(row);
        let mut elements = [segment.element(first, col, self.dtype); ROWS];
        if first + ROWS <= segment.rows && row + ROWS <= end {
            for r in 1..ROWS {
                elements[r] = segment.element(first + r, col, self.dtype);
            }
        } else {
            for r in 1..ROWS {
                elements[r] = self.element((row + r).min(end - 1), col);
            }
        }
        elements
    }

    /// Returns the segment of row `row`, and the row's index in it.
    #[inline(always)]
    fn segment_of(&self, row: usize) -> (&Segment<'a>, usize) {
        let (mut index, mut row) = (0, row);
        while index + 1 < self.count && row >= self.segments[index].rows {
            row -= self.segments[index].rows;
            index += 1;
        }
        (&self.segments[index], row)
    }

    /// Returns the address of element `[row, col]`.
    #[inline(always)]
    pub(super) fn element(&self, row: usize, col: usize) -> *const u8 {
        debug_assert!(row < self.rows() && col <= self.cols);
        let (segment, row) = self.segment_of(row);
        segment.element(row, col, self.dtype)
    }
}

impl Segment<'_> {
    /// Returns the address of element `[row, col]`.
    #[inline(always)]
    fn element(&self, row: usize, col: usize, dtype: Dtype) -> *const u8 {
        let element = row.wrapping_mul(self.row_stride).wrapping_add(col);
        self.bytes.as_ptr().wrapping_add(element.wrapping_mul(dtype.size()))
    }
}
