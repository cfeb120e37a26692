//! AVX2 with FMA and F16C: 8 lanes, 16 registers, so a tile of 6 rows by 2 vectors.

use std::arch::x86_64::*;

use super::vector::{Kernel, LANES_MAX, Vector};

/// Eight f32 lanes.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

/// Returns whether this CPU has the instructions.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Runs `kernel` compiled for AVX2, with vectors of type `V`: production takes [`Avx2`].
///
/// # Safety
///
/// [`is_available`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<V: Vector, K: Kernel>(kernel: K) {
    // SAFETY: the caller vouches for the instructions.
    unsafe { kernel.run::<V>() }
}

/// Runs `kernel` in a function of its own.
///
/// # Safety
///
/// [`is_available`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_apart(kernel: impl Kernel) {
    // SAFETY: the caller vouches for the instructions.
    unsafe { kernel.run::<Avx2>() }
}

/// Returns all ones in the first `count` lanes.
#[inline(always)]
unsafe fn mask(count: usize) -> __m256i {
    static ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(count <= 8);
    // SAFETY: count <= 8, so eight integers from 8 - count on lie in the table.
    unsafe { _mm256_loadu_si256(ONES_THEN_ZEROS.as_ptr().add(8 - count).cast()) }
}

macro_rules! lanewise {
    ($($name:ident($self:ident $(, $operand:ident)*) = $value:expr;)*) => {$(
        #[inline(always)]
        unsafe fn $name($self $(, $operand: Self)*) -> Self {
            // SAFETY: the caller vouches for the instructions; no memory is touched.
            Self(unsafe { $value })
        }
    )*};
}

impl Vector for Avx2 {
    const LANES: usize = 8;

    lanewise! {
        add(self, b) = _mm256_add_ps(self.0, b.0);
        sub(self, b) = _mm256_sub_ps(self.0, b.0);
        mul(self, b) = _mm256_mul_ps(self.0, b.0);
        div(self, b) = _mm256_div_ps(self.0, b.0);
        max(self, b) = _mm256_max_ps(self.0, b.0);
        min(self, b) = _mm256_min_ps(self.0, b.0);
        mul_add(self, b, c) = _mm256_fmadd_ps(self.0, b.0, c.0);
        bits_shl_23(self) = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(self.0)));
    }

    #[inline(always)]
    unsafe fn run_apart(kernel: impl Kernel) {
        // SAFETY: the caller vouches for the instructions.
        unsafe { run_apart(kernel) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller vouches for the instructions.
        Self(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for eight floats.
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for eight floats.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // A whole vector without the mask: AMD's masked stores are microcode, and the branch is
        // predicted.
        if count == 8 {
            // SAFETY: the caller vouches for eight floats.
            return unsafe { Self::load(from) };
        }
        // SAFETY: the caller vouches for `count` floats; masked lanes are not read.
        Self(unsafe { _mm256_maskload_ps(from, mask(count)) })
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        if count == 8 {
            // SAFETY: the caller vouches for eight floats.
            return unsafe { self.store(to) };
        }
        // SAFETY: the caller vouches for `count` floats; masked lanes are not written.
        unsafe { _mm256_maskstore_ps(to, mask(count), self.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for sixteen bytes.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for sixteen bytes.
        unsafe {
            let lanes = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(lanes)))
        }
    }

    #[inline(always)]
    unsafe fn widen_bf16_pairs(self) -> (Self, Self) {
        // SAFETY: the caller vouches for the instructions; no memory is touched.
        unsafe {
            let pairs = _mm256_castps_si256(self.0);
            let upper = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            let lower = _mm256_slli_epi32::<16>(pairs);
            (Self(_mm256_castsi256_ps(lower)), Self(_mm256_castsi256_ps(upper)))
        }
    }

    #[inline(always)]
    unsafe fn zip(self, b: Self) -> (Self, Self) {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(self.0, b.0), _mm256_unpackhi_ps(self.0, b.0));
            (Self(_mm256_permute2f128_ps::<0x20>(low, high)), Self(_mm256_permute2f128_ps::<0x31>(low, high)))
        }
    }

    // Half as many shuffles as zips take, because a zip crosses the register's halves every time.
    #[inline(always)]
    unsafe fn transpose(square: &mut [Self; LANES_MAX]) {
        // SAFETY: the caller vouches for the instructions; no memory is touched.
        unsafe {
            let r = *square;
            let pair = |i: usize| {
                let (a, b) = (_mm256_castps_pd(_mm256_unpacklo_ps(r[i].0, r[i + 1].0)), r[i + 1].0);
                (a, _mm256_castps_pd(_mm256_unpackhi_ps(r[i].0, b)))
            };
            let (a0, a2) = pair(0);
            let (b0, b2) = pair(2);
            let (c0, c2) = pair(4);
            let (d0, d2) = pair(6);
            // Columns k (lower half) and k + 4 (upper half) of rows 0..4, and of rows 4..8.
            let top = [
                _mm256_unpacklo_pd(a0, b0),
                _mm256_unpackhi_pd(a0, b0),
                _mm256_unpacklo_pd(a2, b2),
                _mm256_unpackhi_pd(a2, b2),
            ];
            let bottom = [
                _mm256_unpacklo_pd(c0, d0),
                _mm256_unpackhi_pd(c0, d0),
                _mm256_unpacklo_pd(c2, d2),
                _mm256_unpackhi_pd(c2, d2),
            ];
            for k in 0..4 {
                let (t, b) = (_mm256_castpd_ps(top[k]), _mm256_castpd_ps(bottom[k]));
                square[k] = Self(_mm256_permute2f128_ps::<0x20>(t, b));
                square[k + 4] = Self(_mm256_permute2f128_ps::<0x31>(t, b));
            }
        }
    }
}
