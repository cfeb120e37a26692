//! The epilogue of a GEMM: from finished accumulators to the output.

use super::gate;
use super::simd::{LANES_MAX, Vector};
use crate::config::Gate;

/// Floats of a cache line.
const LINE_FLOATS: usize = 16;

/// The kind of epilogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The output is overwritten.
    Replace,
    /// The matmul is added to the output.
    Add,
    /// `gate(..) * up` overwrites the output. The weight is gate and, behind it, up, with equally many rows
    /// each; the output has half as many columns.
    Gated(Gate),
}

/// Writes `out = (out or 0) + (acc + bias)`, or `out = gate(acc + bias) * (up's acc + up's bias)`.
#[derive(Clone, Copy)]
pub(super) struct Epilogue {
    /// `[rows, columns]`.
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Columns that exist: in the last panel fewer than it has.
    pub(super) columns: usize,
    /// `[columns]`, or none.
    pub(super) bias: Option<*const f32>,
    /// `[columns]`, where a gate has a bias.
    pub(super) up_bias: Option<*const f32>,
    pub(super) store: Store,
}

impl Epilogue {
    /// Calls `prefetch` for the lines of a tile of the output, which will be written, or read and
    /// written, many steps later.
    #[inline(always)]
    pub(super) fn prefetch(&self, rows: usize, columns: usize, prefetch: impl Fn(*const u8)) {
        for r in 0..rows {
            let row = self.out.wrapping_add(r.wrapping_mul(self.out_stride));
            for column in (0..columns).step_by(LINE_FLOATS) {
                prefetch(row.wrapping_add(column).cast());
            }
        }
    }

    /// Writes the vector of accumulators at `[row, column]` of the tile. Not for gates, which take
    /// two.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; the columns of the vector that exist lie inside `out`
    /// and `bias`.
    #[inline(always)]
    pub(super) unsafe fn store_vector<V: Vector>(&self, row: usize, column: usize, mut acc: V) {
        let count = V::LANES.min(self.columns.saturating_sub(column));
        // SAFETY: `count` columns from `column` on exist; where none do, nothing is read or
        // written.
        unsafe {
            if let Some(bias) = self.bias {
                acc = acc.add(V::load_first(bias.wrapping_add(column), count));
            }
            let out = self.out.wrapping_add(row.wrapping_mul(self.out_stride).wrapping_add(column));
            if self.store == Store::Add {
                acc = V::load_first(out, count).add(acc);
            }
            acc.store_first(out, count);
        }
    }

    /// Writes `rows` rows of accumulators from memory, `acc_stride` floats apart, in whole vectors.
    /// A gate's are two vectors, of gate and of up, which make at most `LANES` columns.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; these accumulators are readable, and the columns of
    /// them that exist lie inside `out`, `bias` and `up_bias`.
    #[inline(always)]
    pub(super) unsafe fn store_rows<V: Vector>(&self, acc: *const f32, acc_stride: usize, rows: usize) {
        // SAFETY: the caller's promises.
        unsafe {
            if let Store::Gated(gate) = self.store {
                return self.store_gated::<V>(gate, acc, acc_stride, rows);
            }
            for row in 0..rows {
                for column in (0..self.columns).step_by(V::LANES) {
                    self.store_vector(row, column, V::load(acc.add(row * acc_stride + column)));
                }
            }
        }
    }

    /// Writes accumulators that lie transposed, of up to `rows` rows side by side, `acc_stride` floats
    /// from one column to the next, in whole vectors of both.
    ///
    /// # Safety
    ///
    /// As [`store_rows`](Self::store_rows).
    #[inline(always)]
    pub(super) unsafe fn store_columns<V: Vector>(&self, acc: *const f32, acc_stride: usize, rows: usize) {
        for row in (0..rows).step_by(V::LANES) {
            let square_rows = V::LANES.min(rows - row);
            for column in (0..self.columns).step_by(V::LANES) {
                let first = acc.wrapping_add(column.wrapping_mul(acc_stride)).wrapping_add(row);
                let mut from = [std::ptr::null(); LANES_MAX];
                for i in 0..V::LANES {
                    from[i] = first.wrapping_add(i.wrapping_mul(acc_stride)).cast();
                }
                let count = V::LANES.min(self.columns - column);
                // SAFETY: the caller's promises; whole vectors of accumulators are readable.
                unsafe {
                    let square = V::load_square(&from, 0);
                    let part = self.skip(row, column);
                    if square_rows == V::LANES && count == V::LANES {
                        part.store_square(square);
                    } else {
                        for r in 0..square_rows {
                            part.store_vector(r, 0, square[r]);
                        }
                    }
                }
            }
        }
    }

    /// Writes `LANES` rows of as many columns, all of which exist.
    ///
    /// # Safety
    ///
    /// As [`store_vector`](Self::store_vector).
    #[inline(always)]
    unsafe fn store_square<V: Vector>(&self, mut square: [V; LANES_MAX]) {
        let out = |r: usize| self.out.wrapping_add(r.wrapping_mul(self.out_stride));
        // SAFETY: the caller's promises.
        unsafe {
            if let Some(bias) = self.bias {
                let bias = V::load(bias);
                for r in 0..V::LANES {
                    square[r] = square[r].add(bias);
                }
            }
            if self.store == Store::Add {
                for r in 0..V::LANES {
                    square[r] = V::load(out(r)).add(square[r]);
                }
            }
            for r in 0..V::LANES {
                square[r].store(out(r));
            }
        }
    }

    /// Writes gated rows.
    ///
    /// # Safety
    ///
    /// As [`store_rows`](Self::store_rows).
    #[inline(always)]
    unsafe fn store_gated<V: Vector>(&self, function: Gate, acc: *const f32, acc_stride: usize, rows: usize) {
        debug_assert!(self.columns <= V::LANES);
        // SAFETY: the caller's promises; a row of accumulators has two vectors.
        unsafe {
            let bias = |bias: Option<*const f32>| bias.map(|bias| V::load_first(bias, self.columns));
            let (gate_bias, up_bias) = (bias(self.bias), bias(self.up_bias));
            for row in 0..rows {
                let acc = acc.add(row * acc_stride);
                let (mut x, mut up) = (V::load(acc), V::load(acc.add(V::LANES)));
                if let (Some(gate_bias), Some(up_bias)) = (gate_bias, up_bias) {
                    (x, up) = (x.add(gate_bias), up.add(up_bias));
                }
                let out = self.out.wrapping_add(row * self.out_stride);
                gate::apply(function, x, up).store_first(out, self.columns);
            }
        }
    }

    /// Returns the epilogue of what begins `rows` rows and `columns` columns further on.
    #[inline(always)]
    pub(super) fn skip(mut self, rows: usize, columns: usize) -> Self {
        self.out = self.out.wrapping_add(rows.wrapping_mul(self.out_stride).wrapping_add(columns));
        self.bias = self.bias.map(|bias| bias.wrapping_add(columns));
        self.up_bias = self.up_bias.map(|bias| bias.wrapping_add(columns));
        self.columns = self.columns.saturating_sub(columns);
        self
    }
}
