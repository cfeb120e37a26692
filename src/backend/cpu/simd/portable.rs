//! Vectors in plain Rust.
//!
//! `Portable` has four lanes, which x86-64's baseline and every 64-bit ARM have in a register, and
//! rounds a product before it is added. The sixteen-lane types exist in tests: they drive the
//! AVX-512 shapes of every kernel on any machine, and with the fused `mul_add` of a mathematics
//! library they give AVX-512's very bits.

use super::vector::{Kernel, Vector};

/// The rounding of `mul_add`.
pub(super) trait MulAdd: Copy {
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// Two roundings: product, then sum.
#[derive(Clone, Copy)]
pub(super) struct Separate;

impl MulAdd for Separate {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// `N` lanes in an array.
#[derive(Clone, Copy)]
pub(super) struct Lanes<const N: usize, M>([f32; N], std::marker::PhantomData<M>);

/// The instantiation that production uses.
pub(super) type Portable = Lanes<4, Separate>;

impl<const N: usize, M: MulAdd> Lanes<N, M> {
    #[inline(always)]
    fn from_fn(lane: impl FnMut(usize) -> f32) -> Self {
        Self(std::array::from_fn(lane), std::marker::PhantomData)
    }

    #[inline(always)]
    fn pairwise(self, b: Self, op: impl Fn(f32, f32) -> f32) -> Self {
        Self::from_fn(|i| op(self.0[i], b.0[i]))
    }

    /// Widens `N` 16-bit values from memory.
    ///
    /// # Safety
    ///
    /// `from` is valid for `2 * N` bytes.
    #[inline(always)]
    unsafe fn widen(from: *const u8, wide: impl Fn(u16) -> f32) -> Self {
        // SAFETY: lane i < N reads bytes 2i and 2i + 1, which the caller vouches for.
        Self::from_fn(|i| wide(unsafe { from.cast::<u16>().add(i).read_unaligned() }))
    }
}

impl<const N: usize, M: MulAdd> Vector for Lanes<N, M> {
    const LANES: usize = N;

    // Inline: kernels on these lanes in tests are compiled with the caller's instructions.
    #[inline(always)]
    unsafe fn run_apart(kernel: impl Kernel) {
        // SAFETY: plain Rust; the kernel's maker vouches for its memory.
        unsafe { kernel.run::<Self>() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self::from_fn(|_| x)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for N floats.
        Self(unsafe { from.cast::<[f32; N]>().read_unaligned() }, std::marker::PhantomData)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for N floats.
        unsafe { to.cast::<[f32; N]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller vouches for `count` floats; no other is read.
        Self::from_fn(|i| if i < count { unsafe { from.add(i).read_unaligned() } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        for i in 0..count {
            // SAFETY: the caller vouches for `count` floats.
            unsafe { to.add(i).write_unaligned(self.0[i]) };
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for N halves.
        unsafe { Self::widen(from, |bits| half::f16::from_bits(bits).to_f32()) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for N values.
        unsafe { Self::widen(from, |bits| f32::from_bits(u32::from(bits) << 16)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self::from_fn(|i| M::mul_add(self.0[i], b.0[i], c.0[i]))
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.pairwise(b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.pairwise(b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.pairwise(b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.pairwise(b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        self.pairwise(b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        self.pairwise(b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn bits_shl_23(self) -> Self {
        Self::from_fn(|i| f32::from_bits(self.0[i].to_bits() << 23))
    }

    #[inline(always)]
    unsafe fn widen_bf16_pairs(self) -> (Self, Self) {
        let bits = |i: usize| self.0[i].to_bits();
        (
            Self::from_fn(|i| f32::from_bits(bits(i) << 16)),
            Self::from_fn(|i| f32::from_bits(bits(i) & 0xffff_0000)),
        )
    }

    #[inline(always)]
    unsafe fn zip(self, b: Self) -> (Self, Self) {
        let lane = |i: usize| if i.is_multiple_of(2) { self.0[i / 2] } else { b.0[i / 2] };
        (Self::from_fn(lane), Self::from_fn(|i| lane(N + i)))
    }
}

#[cfg(test)]
pub(super) use sixteen::{Lanes16, Lanes16Fused};
#[cfg(test)]
pub(in crate::backend::cpu) use sixteen::{flush, fused};

#[cfg(test)]
mod sixteen {
    use super::super::vector::{Bf16Kernel, Bf16Vector};
    use super::{Lanes, MulAdd, Separate};

    /// One rounding, by the mathematics library.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Fused;

    impl MulAdd for Fused {
        #[inline(always)]
        fn mul_add(a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }
    }

    pub(in super::super) type Lanes16 = Lanes<16, Separate>;
    pub(in super::super) type Lanes16Fused = Lanes<16, Fused>;

    /// Returns `a * b + c` of bfloat16 values and an f32, rounded once; zero where it is below the
    /// smallest normal value when rounded to 24 bits, as VDPBF16PS and AMX were measured to do: f32
    /// has fewer bits there, and rounds up to that value sooner.
    #[inline(always)]
    pub(in crate::backend::cpu) fn fused(a: f32, b: f32, c: f32) -> f32 {
        const TINY: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1 << 25) as f64);
        let (sum, exact) = (a.mul_add(b, c), f64::from(a) * f64::from(b) + f64::from(c));
        if exact.abs() < TINY { 0.0f32.copysign(sum) } else { sum }
    }

    /// Returns zero for a subnormal, and any other value as it is.
    #[inline(always)]
    pub(in crate::backend::cpu) fn flush(x: f32) -> f32 {
        if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
    }

    impl<M: MulAdd> Bf16Vector for Lanes<16, M> {
        #[inline(always)]
        unsafe fn run_bf16_apart(kernel: impl Bf16Kernel) {
            // SAFETY: plain Rust; the kernel's maker vouches for its memory.
            unsafe { kernel.run::<Self>() }
        }

        unsafe fn dot_pairs(self, x: Self, w: Self) -> Self {
            Self::from_fn(|i| {
                let (x, w) = (x.0[i].to_bits(), w.0[i].to_bits());
                let upper = |bits: u32| flush(f32::from_bits(bits & 0xffff_0000));
                let lower = |bits: u32| flush(f32::from_bits(bits << 16));
                let sum = fused(upper(x), upper(w), flush(self.0[i]));
                fused(lower(x), lower(w), sum)
            })
        }

        unsafe fn store_bf16(self, to: *mut u16) {
            for i in 0..16 {
                // SAFETY: the caller vouches for sixteen values.
                unsafe { to.add(i).write_unaligned(half::bf16::from_f32(flush(self.0[i])).to_bits()) };
            }
        }

        unsafe fn nearest_bf16(self) -> Self {
            Self::from_fn(|i| half::bf16::from_f32(flush(self.0[i])).to_f32())
        }

        unsafe fn upper_half(self) -> Self {
            Self::from_fn(|i| f32::from_bits(self.0[i].to_bits() & 0xffff_0000))
        }

        unsafe fn store_upper_halves(self, next: Self, to: *mut u16) {
            for (i, lane) in self.0.into_iter().chain(next.0).enumerate() {
                // SAFETY: the caller vouches for thirty-two values.
                unsafe { to.add(i).write_unaligned((lane.to_bits() >> 16) as u16) };
            }
        }

        unsafe fn pair_upper_halves(self, next: Self) -> Self {
            let bits = |i: usize| self.0[i].to_bits() >> 16 | next.0[i].to_bits() & 0xffff_0000;
            Self::from_fn(|i| f32::from_bits(bits(i)))
        }
    }
}
