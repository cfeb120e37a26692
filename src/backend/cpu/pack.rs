//! Packing: rows that are contiguous along k become panels that are contiguous along the output columns.
//!
//! A panel is `[steps, width]`: what one step of k multiplies lies side by side. Stored weights are widened to f32 on the
//! way, straight from the mapping, in squares that are transposed in registers.

use super::simd::{LANES_MAX, Vector};
use crate::weights::Dtype;

/// Loads `LANES` 32-bit steps of a row, whatever the row is stored as.
pub(super) trait Source {
    /// Bytes of one step in memory.
    const STEP_BYTES: usize;

    /// `LANES` steps from `from`.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`, and `LANES * STEP_BYTES` bytes are readable at `from`.
    unsafe fn load<V: Vector>(from: *const u8) -> V;
}

/// Rows stored as f32, or as any 32-bit lanes to be moved as they are (pairs of bfloat16).
pub(super) struct Lanes32;
/// Rows stored as IEEE halves.
pub(super) struct Halves;
/// Rows stored as bfloat16.
pub(super) struct Bfloats;

impl Source for Lanes32 {
    const STEP_BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from.cast()) }
    }
}

impl Source for Halves {
    const STEP_BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from) }
    }
}

impl Source for Bfloats {
    const STEP_BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from) }
    }
}

/// Loads `bytes` bytes as steps, zeros behind them; reads nothing beyond.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `bytes <= LANES * STEP_BYTES` bytes are readable at `from`.
#[inline(always)]
pub(super) unsafe fn load_bytes<V: Vector, S: Source>(from: *const u8, bytes: usize) -> V {
    let mut buffer = [0u8; 4 * LANES_MAX];
    debug_assert!(bytes <= V::LANES * S::STEP_BYTES);
    // SAFETY: at most 64 bytes, which the caller vouches for, into a buffer of 64.
    unsafe {
        std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), bytes);
        S::load(buffer.as_ptr())
    }
}

/// Packs `rows <= width` rows of `row_bytes` bytes as one panel `[steps, width]`, `steps = row_bytes / STEP_BYTES`
/// rounded up (a last pair may lack its second half). Columns from `rows` on are zero. Unless `ahead_bytes` is 0, what
/// lies so far behind each row is fetched into the cache: a row's part is too short for the hardware to do it in time.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `width` is a multiple of `LANES`; `row(r)` has `row_bytes` readable bytes for r <
/// `rows`; `panel` is writable for `steps * width` floats.
#[inline(always)]
pub(super) unsafe fn pack_panel<V: Vector, S: Source>(
    row: impl Fn(usize) -> *const u8,
    rows: usize,
    row_bytes: usize,
    ahead_bytes: usize,
    width: usize,
    panel: *mut f32,
) {
    let steps = row_bytes.div_ceil(S::STEP_BYTES);
    let whole = row_bytes / (V::LANES * S::STEP_BYTES) * V::LANES;
    for first_row in (0..width).step_by(V::LANES) {
        let square_rows = rows.saturating_sub(first_row).min(V::LANES);
        let mut from = [std::ptr::null(); LANES_MAX];
        for i in 0..square_rows {
            from[i] = row(first_row + i);
        }
        // SAFETY: squares below `whole` read whole loads inside a row's bytes, the last one what is left of them; step
        // `k` of this group of columns is written at k * width + first_row, LANES floats, inside the panel.
        unsafe {
            let mut to = panel.add(first_row);
            if square_rows == V::LANES {
                for step in (0..whole).step_by(V::LANES) {
                    let offset = step.wrapping_mul(S::STEP_BYTES);
                    if ahead_bytes > 0 && offset.is_multiple_of(64) {
                        for from in &from[..V::LANES] {
                            prefetch(from.wrapping_add(offset).wrapping_add(ahead_bytes));
                        }
                    }
                    let mut square = [V::splat(0.0); LANES_MAX];
                    for i in 0..V::LANES {
                        square[i] = S::load(from[i].wrapping_add(offset));
                    }
                    V::transpose(&mut square);
                    for i in 0..V::LANES {
                        square[i].store(to);
                        to = to.wrapping_add(width);
                    }
                }
            }
            // What is not a whole square: the last steps, or every step where rows are missing.
            let mut step = if square_rows == V::LANES { whole } else { 0 };
            while step < steps {
                let mut square = [V::splat(0.0); LANES_MAX];
                let bytes = (row_bytes - step * S::STEP_BYTES).min(V::LANES * S::STEP_BYTES);
                for i in 0..square_rows {
                    square[i] = load_bytes::<V, S>(from[i].add(step * S::STEP_BYTES), bytes);
                }
                V::transpose(&mut square);
                for i in 0..V::LANES.min(steps - step) {
                    square[i].store(to);
                    to = to.wrapping_add(width);
                }
                step += V::LANES;
            }
        }
    }
}

/// Asks for the cache line at `address`, which need not be valid.
#[inline(always)]
fn prefetch(address: *const u8) {
    // SAFETY: a prefetch of any address has no effect but on the caches; x86-64 always has the instruction.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Packs rows of stored weights, `row_stride` values apart, widened to f32: [`pack_panel`] for a [`Dtype`].
///
/// # Safety
///
/// As [`pack_panel`], for `values` values a row.
#[inline(always)]
pub(super) unsafe fn pack_stored<V: Vector>(
    dtype: Dtype,
    row: impl Fn(usize) -> *const u8,
    rows: usize,
    values: usize,
    row_stride: usize,
    width: usize,
    panel: *mut f32,
) {
    let bytes = values * dtype.size();
    // The rows of the next squares.
    let ahead = row_stride.wrapping_mul(V::LANES).wrapping_mul(dtype.size());
    // SAFETY: the caller's promises.
    unsafe {
        match dtype {
            Dtype::F32 => pack_panel::<V, Lanes32>(row, rows, bytes, ahead, width, panel),
            Dtype::F16 => pack_panel::<V, Halves>(row, rows, bytes, ahead, width, panel),
            Dtype::BF16 => pack_panel::<V, Bfloats>(row, rows, bytes, ahead, width, panel),
        }
    }
}
