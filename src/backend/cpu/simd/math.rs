//! Functions that several kernels share: exponentials, the largest lanes, and sums over a row.

use super::vector::{LANES_MAX, Vector};

/// Returns exp(x) in every lane: at most 8.2e-8 relative error over [-87.3, 88.3] (measured against
/// f64 on every 97th float, test `exp_stays_within_its_stated_error`), 0 below -87.7, infinity
/// above 88.38, NaN for NaN.
///
/// exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2 in two parts (Cody and Waite), and on
/// |r| <= ln 2 / 2 a polynomial of degree 6 fitted for least relative error (3.8e-9).
///
/// # Safety
///
/// The CPU has the instructions of `V`.
#[inline(always)]
pub(in super::super) unsafe fn exp<V: Vector>(x: V) -> V {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits; 127 more is
    // the exponent's bias.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    // The high part has few bits, so that its product with n is exact without a fused multiply-add
    // too.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 5] = [1.381_459_9e-3, 8.368_717e-3, 4.166_839e-2, 1.666_652_1e-1, 4.999_999_4e-1];
    // SAFETY: the caller vouches for the instructions; nothing here touches memory.
    unsafe {
        // NaN passes both: each returns its second operand then.
        let x = V::splat(-88.0).max(V::splat(89.0).min(x));
        let shifted = x.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
        let n = shifted.sub(V::splat(ROUND));
        let r = n.mul_add(V::splat(-LN_2_HIGH), x);
        let r = n.mul_add(V::splat(-LN_2_LOW), r);
        let mut p = V::splat(POLYNOMIAL[0]);
        for c in &POLYNOMIAL[1..] {
            p = p.mul_add(r, V::splat(*c));
        }
        let p = p.mul_add(r.mul(r), r).add(V::splat(1.0));
        p.mul(shifted.bits_shl_23())
    }
}

/// Returns x / (1 + exp(-x)) in every lane.
///
/// # Safety
///
/// The CPU has the instructions of `V`.
#[inline(always)]
pub(in super::super) unsafe fn silu<V: Vector>(x: V) -> V {
    // SAFETY: the caller vouches for the instructions.
    unsafe { x.div(exp(V::splat(0.0).sub(x)).add(V::splat(1.0))) }
}

/// Returns GELU's approximation by tanh in every lane: `x / (1 + exp(-2u))` with
/// `u = sqrt(2 / pi) * (x + 0.044715 * x^3)`, which is `x / 2 * (1 + tanh(u))`.
///
/// # Safety
///
/// The CPU has the instructions of `V`.
#[inline(always)]
pub(in super::super) unsafe fn gelu_tanh<V: Vector>(x: V) -> V {
    const LINEAR: f32 = -1.595_769;
    const CUBIC: f32 = -0.071_354_814;
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let factor = x.mul(x).mul_add(V::splat(CUBIC), V::splat(LINEAR));
        x.div(exp(x.mul(factor)).add(V::splat(1.0)))
    }
}

/// Returns tanh(x) in every lane, with an absolute error of 1.9e-7 at most (measured against f64 on
/// every 997th float, test `tanh_stays_within_its_stated_error`), NaN for NaN.
///
/// # Safety
///
/// The CPU has the instructions of `V`.
#[inline(always)]
pub(in super::super) unsafe fn tanh<V: Vector>(x: V) -> V {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        // Beyond 2^64, the quotient is 0 to the last place of 1. NaN passes as in `exp`.
        let exponent = V::splat(64.0).min(x.mul(V::splat(2.0 * std::f32::consts::LOG2_E)));
        V::splat(1.0).sub(V::splat(2.0).div(exp2(exponent).add(V::splat(1.0))))
    }
}

/// Returns 2^x in every lane, for x <= 127: at most 9.2e-8 relative error (6.8e-8 where multiply
/// and add are fused) down to -126 (measured against f64 on every 97th float, test
/// `exp2_stays_within_its_stated_error`), 0 below -126.5, NaN for NaN.
///
/// 2^x = 2^n 2^r, n = round(x), r = x - n exactly, and on |r| <= 1/2 a polynomial of degree 6, 1 at
/// 0, fitted for least relative error (7.0e-9). Attention takes 2^(x log2 e) rather than [`exp`],
/// which costs more to be as exact for large |x|, where a score has next to no weight.
///
/// # Safety
///
/// The CPU has the instructions of `V`.
#[inline(always)]
pub(in super::super) unsafe fn exp2<V: Vector>(x: V) -> V {
    // As in `exp`.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const POLYNOMIAL: [f32; 7] =
        [1.583_443_7e-4, 1.341_814_3e-3, 9.617_064e-3, 5.550_272_8e-2, 2.402_265_5e-1, 6.931_472_4e-1, 1.0];
    // SAFETY: the caller vouches for the instructions; nothing here touches memory.
    unsafe {
        // NaN passes: the second operand is returned then. The exponent of -127 is that of zero.
        let x = V::splat(-127.0).max(x);
        let shifted = x.add(V::splat(ROUND));
        let r = x.sub(shifted.sub(V::splat(ROUND)));
        let mut p = V::splat(POLYNOMIAL[0]);
        for c in &POLYNOMIAL[1..] {
            p = p.mul_add(r, V::splat(*c));
        }
        p.mul(shifted.bits_shl_23())
    }
}

/// Returns the largest lane of each of the first `LANES` rows, row `i`'s in lane `i`. A NaN may be
/// ignored.
///
/// # Safety
///
/// The CPU has the instructions of `V`.
#[inline(always)]
pub(in super::super) unsafe fn max_of_rows<V: Vector>(mut rows: [V; LANES_MAX]) -> V {
    // As in `Vector::transpose`, but halves of rows are folded as they come together.
    let mut half = V::LANES / 2;
    while half > 0 {
        for i in 0..half {
            // SAFETY: the caller vouches for the instructions.
            let (low, high) = unsafe { rows[i].zip(rows[i + half]) };
            // SAFETY: as for the zip.
            rows[i] = unsafe { low.max(high) };
        }
        half /= 2;
    }
    rows[0]
}

/// Sixteen partial sums of a row, whatever the width of a vector: element `i` of a row goes to
/// partial sum `i % 16`, and the sixteen are added as a tree, so every instruction set adds in the
/// same order.
#[derive(Clone, Copy)]
pub(in super::super) struct PartialSums<V>([V; 4]);

impl<V: Vector> PartialSums<V> {
    /// Vectors that make up sixteen lanes.
    pub(in super::super) const VECTORS: usize = LANES_MAX / V::LANES;

    /// Returns sums of zero.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    pub(in super::super) unsafe fn zero() -> Self {
        const { assert!(Self::VECTORS <= 4) };
        // SAFETY: the caller vouches for the instructions.
        Self([unsafe { V::splat(0.0) }; 4])
    }

    /// Returns the partial sums that vector `vector_index` of a row is added to.
    #[inline(always)]
    pub(in super::super) fn of(&mut self, vector_index: usize) -> &mut V {
        &mut self.0[vector_index % Self::VECTORS]
    }

    /// Loads the sixteen partial sums.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; `from` is valid for [`LANES_MAX`] floats.
    #[inline(always)]
    pub(in super::super) unsafe fn load(from: *const f32) -> Self {
        // SAFETY: VECTORS * LANES = LANES_MAX floats.
        unsafe {
            let mut sums = Self::zero();
            for i in 0..Self::VECTORS {
                sums.0[i] = V::load(from.add(i * V::LANES));
            }
            sums
        }
    }

    /// Stores the sixteen partial sums.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`; `to` is valid for [`LANES_MAX`] floats.
    #[inline(always)]
    pub(in super::super) unsafe fn store(&self, to: *mut f32) {
        for i in 0..Self::VECTORS {
            // SAFETY: VECTORS * LANES = LANES_MAX floats.
            unsafe { self.0[i].store(to.add(i * V::LANES)) };
        }
    }

    /// Multiplies each partial sum by `factor`.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    pub(in super::super) unsafe fn scale(mut self, factor: V) -> Self {
        for i in 0..Self::VECTORS {
            // SAFETY: the caller vouches for the instructions.
            self.0[i] = unsafe { self.0[i].mul(factor) };
        }
        self
    }

    /// Returns the sum of all.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    pub(in super::super) unsafe fn total(&self) -> f32 {
        let mut lanes = [0.0f32; LANES_MAX];
        // SAFETY: the caller vouches for the instructions; `lanes` has LANES_MAX floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut width = LANES_MAX / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}
