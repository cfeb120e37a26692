//! AVX-512: 16 lanes, 32 registers, so a tile of 8 rows by 3 vectors; and its bfloat16
//! instructions.
//!
//! Every method is one or two instructions. The kernels run in tests on sixteen portable lanes, so
//! that a machine without AVX-512 leaves only these wrappers untested.

use std::arch::x86_64::*;

use super::vector::{Bf16Kernel, Bf16Vector, Kernel, LANES_MAX, Vector};

/// Sixteen f32 lanes.
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

/// Returns whether this CPU has the instructions.
pub(super) fn is_available() -> bool {
    super::avx2::is_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Returns whether this CPU has AVX512-BF16 beside them.
pub(super) fn is_bf16_available() -> bool {
    is_available() && is_x86_feature_detected!("avx512bf16")
}

/// Returns whether AMD made this CPU.
pub(super) fn is_amd() -> bool {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// Runs `kernel` compiled for AVX-512.
///
/// # Safety
///
/// [`is_available`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn run(kernel: impl Kernel) {
    // SAFETY: the caller vouches for the instructions.
    unsafe { kernel.run::<Avx512>() }
}

/// Runs `kernel` compiled for AVX-512 with its bfloat16 instructions.
///
/// # Safety
///
/// [`is_bf16_available`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run_bf16(kernel: impl Bf16Kernel) {
    // SAFETY: the caller vouches for the instructions.
    unsafe { kernel.run::<Avx512>() }
}

/// Runs `kernel` in a function of its own.
///
/// # Safety
///
/// [`is_available`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn run_apart(kernel: impl Kernel) {
    // SAFETY: the caller vouches for the instructions.
    unsafe { kernel.run::<Avx512>() }
}

/// Runs `kernel`, which needs the bfloat16 instructions too, in a function of its own.
///
/// # Safety
///
/// [`is_bf16_available`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn run_bf16_apart(kernel: impl Bf16Kernel) {
    // SAFETY: the caller vouches for the instructions.
    unsafe { kernel.run::<Avx512>() }
}

/// Returns ones for the first `count <= 16` lanes.
#[inline(always)]
fn mask(count: usize) -> __mmask16 {
    debug_assert!(count <= 16);
    ((1u32 << count) - 1) as __mmask16
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

impl Vector for Avx512 {
    const LANES: usize = 16;

    lanewise! {
        add(self, b) = _mm512_add_ps(self.0, b.0);
        sub(self, b) = _mm512_sub_ps(self.0, b.0);
        mul(self, b) = _mm512_mul_ps(self.0, b.0);
        div(self, b) = _mm512_div_ps(self.0, b.0);
        max(self, b) = _mm512_max_ps(self.0, b.0);
        min(self, b) = _mm512_min_ps(self.0, b.0);
        mul_add(self, b, c) = _mm512_fmadd_ps(self.0, b.0, c.0);
        bits_shl_23(self) = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0)));
    }

    #[inline(always)]
    unsafe fn run_apart(kernel: impl Kernel) {
        // SAFETY: the caller vouches for the instructions.
        unsafe { run_apart(kernel) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller vouches for the instructions.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for sixteen floats.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for sixteen floats.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller vouches for `count` floats; masked lanes are not read.
        Self(unsafe { _mm512_maskz_loadu_ps(mask(count), from) })
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: the caller vouches for `count` floats; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, mask(count), self.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for thirty-two bytes.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for thirty-two bytes.
        unsafe {
            let lanes = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(lanes)))
        }
    }

    // Quarters of rows are loaded into their positions by masked loads, which leaves half of the
    // shuffles: those run on one port, and packing waits for it.
    #[inline(always)]
    unsafe fn load_square(rows: &[*const u8; LANES_MAX], offset: usize) -> [Self; LANES_MAX] {
        // SAFETY: the caller vouches for the instructions and for sixteen lanes of each row.
        unsafe {
            let mut square = [Self::splat(0.0); LANES_MAX];
            for quarter in 0..4 {
                // Rows i, 4 + i, 8 + i and 12 + i side by side.
                let four = |i: usize| {
                    let at = |r: usize| {
                        let from = rows[r].wrapping_add(offset).wrapping_add(16 * quarter);
                        _mm_loadu_ps(from.cast())
                    };
                    let mut four = _mm512_castps128_ps512(at(i));
                    four = _mm512_mask_broadcast_f32x4(four, 0x00f0, at(4 + i));
                    four = _mm512_mask_broadcast_f32x4(four, 0x0f00, at(8 + i));
                    _mm512_castps_pd(_mm512_mask_broadcast_f32x4(four, 0xf000, at(12 + i)))
                };
                let (a, b, c, d) = (four(0), four(1), four(2), four(3));
                let low =
                    |a, b| _mm512_castps_pd(_mm512_unpacklo_ps(_mm512_castpd_ps(a), _mm512_castpd_ps(b)));
                let high =
                    |a, b| _mm512_castps_pd(_mm512_unpackhi_ps(_mm512_castpd_ps(a), _mm512_castpd_ps(b)));
                let (ab, cd) = (low(a, b), low(c, d));
                square[4 * quarter] = Self(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)));
                square[4 * quarter + 1] = Self(_mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
                let (ab, cd) = (high(a, b), high(c, d));
                square[4 * quarter + 2] = Self(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)));
                square[4 * quarter + 3] = Self(_mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
            }
            square
        }
    }

    #[inline(always)]
    unsafe fn widen_bf16_pairs(self) -> (Self, Self) {
        // SAFETY: the caller vouches for the instructions; no memory is touched.
        unsafe {
            let pairs = _mm512_castps_si512(self.0);
            let upper = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            let lower = _mm512_slli_epi32::<16>(pairs);
            (Self(_mm512_castsi512_ps(lower)), Self(_mm512_castsi512_ps(upper)))
        }
    }

    #[inline(always)]
    unsafe fn zip(self, b: Self) -> (Self, Self) {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            // Lane i of the first operand is index i, of the second 16 + i.
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            (Self(_mm512_permutex2var_ps(self.0, low, b.0)), Self(_mm512_permutex2var_ps(self.0, high, b.0)))
        }
    }
}

impl Bf16Vector for Avx512 {
    #[inline(always)]
    unsafe fn run_bf16_apart(kernel: impl Bf16Kernel) {
        // SAFETY: the caller vouches for AVX512-BF16.
        unsafe { run_bf16_apart(kernel) }
    }

    #[inline(always)]
    unsafe fn dot_pairs(self, x: Self, w: Self) -> Self {
        // SAFETY: the caller vouches for AVX512-BF16. The two types are 64 bytes of plain bits.
        unsafe {
            let (x, w) =
                (std::mem::transmute::<__m512, __m512bh>(x.0), std::mem::transmute::<__m512, __m512bh>(w.0));
            Self(_mm512_dpbf16_ps(self.0, x, w))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: the caller vouches for AVX512-BF16 and sixteen values.
        unsafe { to.cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(self.0)) }
    }

    #[inline(always)]
    unsafe fn nearest_bf16(self) -> Self {
        // SAFETY: the caller vouches for AVX512-BF16; no memory is touched. The cast is of plain
        // bits.
        unsafe {
            let halves: __m256i = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(self.0));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))))
        }
    }

    #[inline(always)]
    unsafe fn upper_half(self) -> Self {
        // SAFETY: the caller vouches for the instructions; no memory is touched.
        unsafe {
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            Self(_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(self.0), upper)))
        }
    }

    #[inline(always)]
    unsafe fn store_upper_halves(self, next: Self, to: *mut u16) {
        /// Word 2i + 1 of both operands, the second one's behind the first one's.
        const ODD: [u16; 32] = {
            let mut odd = [0; 32];
            let mut i = 0;
            while i < 32 {
                odd[i] = 2 * i as u16 + 1;
                i += 1;
            }
            odd
        };
        // SAFETY: the caller vouches for the instructions and thirty-two values; ODD is sixty-four
        // bytes.
        unsafe {
            let odd = _mm512_loadu_si512(ODD.as_ptr().cast());
            let words =
                _mm512_permutex2var_epi16(_mm512_castps_si512(self.0), odd, _mm512_castps_si512(next.0));
            _mm512_storeu_si512(to.cast(), words);
        }
    }

    #[inline(always)]
    unsafe fn pair_upper_halves(self, next: Self) -> Self {
        // SAFETY: the caller vouches for the instructions; no memory is touched.
        unsafe {
            let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(self.0));
            // Words 1, 3, .. are the upper halves.
            let pairs = _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_castps_si512(next.0));
            Self(_mm512_castsi512_ps(pairs))
        }
    }
}
