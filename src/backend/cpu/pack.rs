//! Packing: rows that are contiguous along k become panels that are contiguous along the output
//! columns.
//!
//! A panel is `[steps, width]`: the elements of one step of k lie side by side. Squares of 32-bit
//! lanes, f32 or pairs of bfloat16, are transposed in registers. Rows in another format are rounded,
//! or widened, first.

use super::simd::{Bf16Vector, LANES_MAX, Vector, prefetch};
use crate::weights::Dtype;

/// A storage format of rows: how a vector is loaded.
pub(super) trait Source {
    /// Bytes of one lane in memory.
    const LANE_BYTES: usize;

    /// Loads `LANES` lanes from `from`.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`, and `LANES * LANE_BYTES` bytes are readable at `from`.
    unsafe fn load<V: Vector>(from: *const u8) -> V;
}

/// Rows stored as f32, or as any 32-bit lanes to be moved as they are (pairs of bfloat16).
pub(super) struct Lanes32;
/// Rows stored as IEEE halves.
pub(super) struct Halves;
/// Rows stored as bfloat16, to be widened.
pub(super) struct Bfloats;

impl Source for Lanes32 {
    const LANE_BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from.cast()) }
    }
}

impl Source for Halves {
    const LANE_BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from) }
    }
}

impl Source for Bfloats {
    const LANE_BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from) }
    }
}

/// Loads `bytes` bytes as lanes, zeros behind them; reads nothing beyond.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `bytes <= LANES * LANE_BYTES` bytes are readable at `from`.
#[inline(always)]
pub(super) unsafe fn load_bytes<V: Vector, S: Source>(from: *const u8, bytes: usize) -> V {
    let mut buffer = [0u8; 4 * LANES_MAX];
    debug_assert!(bytes <= V::LANES * S::LANE_BYTES);
    // SAFETY: at most 64 bytes, which the caller vouches for, into a buffer of 64.
    unsafe {
        std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), bytes);
        S::load(buffer.as_ptr())
    }
}

/// Packs `rows <= width` rows of `row_bytes` bytes as one panel `[steps, width]`: a step for every
/// 32-bit lane, of which the last may lack bytes and has zeros for them. Columns from `rows` on are
/// zero. Unless `prefetch_bytes` is 0, the bytes so far behind each row are
/// prefetched: a row's part is too short for the hardware to do it in time.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `width` is a multiple of `LANES`; `row(r)` has `row_bytes`
/// readable bytes for r < `rows`; `panel` is writable for `steps * width` floats.
#[inline(always)]
pub(super) unsafe fn pack_panel<V: Vector>(
    row: impl Fn(usize) -> *const u8,
    rows: usize,
    row_bytes: usize,
    prefetch_bytes: usize,
    width: usize,
    panel: *mut f32,
) {
    let square_bytes = V::LANES * Lanes32::LANE_BYTES;
    let whole_bytes = row_bytes - row_bytes % square_bytes;
    for first_row in (0..width).step_by(V::LANES) {
        let square_rows = rows.saturating_sub(first_row).min(V::LANES);
        let mut from = [std::ptr::null(); LANES_MAX];
        for i in 0..square_rows {
            from[i] = row(first_row + i);
        }
        // SAFETY: squares below `whole_bytes` read whole loads inside a row's bytes, the last one
        // the bytes that are left; step `k` of this group of columns is written at k * width +
        // first_row, LANES floats, inside the panel.
        unsafe {
            let mut to = panel.add(first_row);
            if square_rows == V::LANES {
                for offset in (0..whole_bytes).step_by(square_bytes) {
                    if prefetch_bytes > 0 && offset.is_multiple_of(64) {
                        for from in &from[..V::LANES] {
                            prefetch(from.wrapping_add(offset).wrapping_add(prefetch_bytes));
                        }
                    }
                    to = store_square(&V::load_square(&from, offset), V::LANES, to, width);
                }
            }
            // The rest, which is not a whole square: the last steps, or every step where rows are
            // missing.
            let mut offset = if square_rows == V::LANES { whole_bytes } else { 0 };
            while offset < row_bytes {
                let bytes = (row_bytes - offset).min(square_bytes);
                let mut square = [V::splat(0.0); LANES_MAX];
                for i in 0..square_rows {
                    square[i] = load_bytes::<V, Lanes32>(from[i].add(offset), bytes);
                }
                V::transpose(&mut square);
                to = store_square(&square, bytes.div_ceil(Lanes32::LANE_BYTES), to, width);
                offset += square_bytes;
            }
        }
    }
}

/// Writes the first `lanes` vectors of a transposed square from `to` on, and returns the address for
/// the next square.
///
/// A function, not a closure: a closure that the compiler leaves out of line has no vector
/// instructions to be inlined.
///
/// # Safety
///
/// The CPU has the instructions of `V`, and `to` is writable for `LANES` floats of each of `lanes`
/// steps.
#[inline(always)]
unsafe fn store_square<V: Vector>(
    square: &[V; LANES_MAX],
    lanes: usize,
    mut to: *mut f32,
    width: usize,
) -> *mut f32 {
    for i in 0..lanes {
        // SAFETY: the caller's promise.
        unsafe { square[i].store(to) };
        to = to.wrapping_add(width);
    }
    to
}

/// Widens `elements` elements to f32, in whole vectors.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `elements` elements of `S` are readable at `from`; `to` is
/// writable for `elements` rounded up to a multiple of `LANES`.
#[inline(always)]
pub(super) unsafe fn widen_row<V: Vector, S: Source>(from: *const u8, elements: usize, to: *mut f32) {
    let whole = elements - elements % V::LANES;
    // SAFETY: `whole` elements in whole vectors, the rest through a buffer.
    unsafe {
        for i in (0..whole).step_by(V::LANES) {
            S::load::<V>(from.wrapping_add(i.wrapping_mul(S::LANE_BYTES))).store(to.wrapping_add(i));
        }
        if whole < elements {
            let from = from.wrapping_add(whole.wrapping_mul(S::LANE_BYTES));
            load_bytes::<V, S>(from, (elements - whole) * S::LANE_BYTES).store(to.wrapping_add(whole));
        }
    }
}

/// Packs rows of stored weights as pairs of bfloat16 elements, rounded where they have another
/// format: one step of the panel for every two elements. `rounded` is scratch, `rounded_stride`
/// floats for each row.
///
/// # Safety
///
/// As [`pack_panel`], for `elements` elements a row; `rounded` is writable for `rows` rows of at
/// least half as many floats.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn pack_pairs<V: Bf16Vector>(
    dtype: Dtype,
    stored: impl Fn(usize) -> *const u8,
    rows: usize,
    elements: usize,
    row_stride: usize,
    width: usize,
    panel: *mut f32,
    rounded: *mut f32,
    rounded_stride: usize,
) {
    // SAFETY: the caller's promises.
    unsafe {
        if dtype == Dtype::BF16 {
            let prefetch_bytes = 2 * V::LANES * row_stride;
            return pack_panel::<V>(stored, rows, 2 * elements, prefetch_bytes, width, panel);
        }
        for r in 0..rows {
            let to = rounded.wrapping_add(r * rounded_stride).cast();
            match dtype {
                Dtype::F16 => round_row::<V, Halves>(stored(r), elements, to),
                _ => round_row::<V, Lanes32>(stored(r), elements, to),
            }
        }
        let row = |r: usize| rounded.wrapping_add(r * rounded_stride).cast_const().cast();
        pack_panel::<V>(row, rows, 4 * elements.div_ceil(2), 0, width, panel);
    }
}

/// Rounds `elements` elements to bfloat16, side by side, with one zero behind an odd number of
/// them.
///
/// # Safety
///
/// The CPU has the instructions of `V`; `elements` elements of `S` are readable at `from`; `to` is
/// writable for `elements` rounded up to a multiple of two.
#[inline(always)]
pub(super) unsafe fn round_row<V: Bf16Vector, S: Source>(from: *const u8, elements: usize, to: *mut u16) {
    let whole = elements - elements % V::LANES;
    // SAFETY: `whole` elements in whole vectors, the rest through a buffer; all inside the rows
    // that the caller vouches for.
    unsafe {
        for i in (0..whole).step_by(V::LANES) {
            S::load::<V>(from.wrapping_add(i.wrapping_mul(S::LANE_BYTES))).store_bf16(to.wrapping_add(i));
        }
        if whole < elements {
            let rest = elements - whole;
            let mut buffer = [0u16; LANES_MAX];
            load_bytes::<V, S>(from.add(whole * S::LANE_BYTES), rest * S::LANE_BYTES)
                .store_bf16(buffer.as_mut_ptr());
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), to.add(whole), rest.next_multiple_of(2));
        }
    }
}
