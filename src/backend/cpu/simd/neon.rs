//! NEON: pairs of registers of 4 lanes, 16 of them, so a tile of 6 rows by 2 vectors.
//!
//! Every 64-bit ARM has it, and Rust's target has it enabled.

use std::arch::aarch64::*;
use std::arch::asm;

use super::vector::{Kernel, Vector};

/// Eight f32 lanes.
#[derive(Clone, Copy)]
pub(super) struct Neon(float32x4_t, float32x4_t);

/// Runs `kernel` in a function of its own.
///
/// # Safety
///
/// As the kernel.
#[inline(never)]
unsafe fn run_apart(kernel: impl Kernel) {
    // SAFETY: the caller's promises.
    unsafe { kernel.run::<Neon>() }
}

macro_rules! lanewise {
    ($($name:ident($self:ident $(, $operand:ident)*) = $function:ident($($argument:ident),*);)*) => {$(
        #[inline(always)]
        unsafe fn $name($self $(, $operand: Self)*) -> Self {
            // SAFETY: the target has the instructions; no memory is touched.
            unsafe { Self($function($($argument.0),*), $function($($argument.1),*)) }
        }
    )*};
}

impl Vector for Neon {
    const LANES: usize = 8;

    lanewise! {
        add(self, b) = vaddq_f32(self, b);
        sub(self, b) = vsubq_f32(self, b);
        mul(self, b) = vmulq_f32(self, b);
        div(self, b) = vdivq_f32(self, b);
        // `self * b` is added to the first argument.
        mul_add(self, b, c) = vfmaq_f32(c, self, b);
        max(self, b) = larger(self, b);
        min(self, b) = smaller(self, b);
        bits_shl_23(self) = shl_23(self);
    }

    #[inline(always)]
    unsafe fn run_apart(kernel: impl Kernel) {
        // SAFETY: the caller's promises.
        unsafe { run_apart(kernel) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the target has the instruction; no memory is touched.
        unsafe { Self(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for eight floats.
        unsafe { Self(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for eight floats.
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        if count == 8 {
            // SAFETY: the caller vouches for eight floats.
            return unsafe { Self::load(from) };
        }
        let mut lanes = [0.0; 8];
        for (i, lane) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` floats.
            *lane = unsafe { from.add(i).read_unaligned() };
        }
        // SAFETY: eight floats.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        if count == 8 {
            // SAFETY: the caller vouches for eight floats.
            return unsafe { self.store(to) };
        }
        let mut lanes = [0.0; 8];
        // SAFETY: eight floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        for (i, lane) in lanes.into_iter().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` floats.
            unsafe { to.add(i).write_unaligned(lane) };
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for sixteen bytes. The instructions read and write registers.
        unsafe {
            let halves = vld1q_u8(from);
            let (low, high): (float32x4_t, float32x4_t);
            asm!(
                "fcvtl {low:v}.4s, {halves:v}.4h",
                "fcvtl2 {high:v}.4s, {halves:v}.8h",
                low = out(vreg) low,
                high = lateout(vreg) high,
                halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags),
            );
            Self(low, high)
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for sixteen bytes.
        unsafe {
            let (zeros, values) = (vdupq_n_u16(0), vreinterpretq_u16_u8(vld1q_u8(from)));
            // A zero below each value.
            let widened = |half: uint16x8_t| vreinterpretq_f32_u16(half);
            Self(widened(vzip1q_u16(zeros, values)), widened(vzip2q_u16(zeros, values)))
        }
    }

    #[inline(always)]
    unsafe fn widen_bf16_pairs(self) -> (Self, Self) {
        // SAFETY: the target has the instructions; no memory is touched.
        unsafe {
            let lower =
                |pairs: float32x4_t| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(pairs)));
            let upper = |pairs: float32x4_t| {
                let mask = vdupq_n_u32(0xffff_0000);
                vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pairs), mask))
            };
            (Self(lower(self.0), lower(self.1)), Self(upper(self.0), upper(self.1)))
        }
    }

    #[inline(always)]
    unsafe fn zip(self, b: Self) -> (Self, Self) {
        // SAFETY: the target has the instructions; no memory is touched.
        unsafe {
            (
                Self(vzip1q_f32(self.0, b.0), vzip2q_f32(self.0, b.0)),
                Self(vzip1q_f32(self.1, b.1), vzip2q_f32(self.1, b.1)),
            )
        }
    }
}

/// The larger lanes; `b` where either is NaN, and of zeros, unlike FMAX.
#[inline(always)]
unsafe fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the target has the instructions; no memory is touched.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// The smaller lanes; `b` where either is NaN, and of zeros, unlike FMIN.
#[inline(always)]
unsafe fn smaller(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the target has the instructions; no memory is touched.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

#[inline(always)]
unsafe fn shl_23(a: float32x4_t) -> float32x4_t {
    // SAFETY: the target has the instructions; no memory is touched.
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(a))) }
}
