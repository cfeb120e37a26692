//! Floating-point arithmetic. `.rn` operations are Rust's own; `fma` is fused (one instruction in
//! the AVX2 + FMA build).

use super::lanes::{W32, W64, one32, one64, three32, three64, two32, two64};
use crate::decode::{Float1, Float2, FloatMods, Half, HalfOp, Round};

const PLAIN: FloatMods = FloatMods { ftz: false, sat: false };

#[inline(always)]
fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

#[inline(always)]
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// NaN results of arithmetic are NVIDIA's canonical one.
#[inline(always)]
fn bits_of(x: f32) -> u32 {
    if x.is_nan() { 0x7FFF_FFFF } else { x.to_bits() }
}

#[inline(always)]
fn finish(x: f32, mods: FloatMods) -> u32 {
    let x = if mods.ftz { flush(x) } else { x };
    // NaN and -0 become +0.
    let x = if !mods.sat {
        x
    } else if x > 0.0 {
        x.min(1.0)
    } else {
        0.0
    };
    bits_of(x)
}

#[inline(always)]
fn minimum(a: f32, b: f32, nan: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return if nan || a.is_nan() && b.is_nan() {
            f32::NAN
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    // -0 is less than +0.
    if a < b || a == b && a.is_sign_negative() { a } else { b }
}

#[inline(always)]
fn maximum(a: f32, b: f32, nan: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return if nan || a.is_nan() && b.is_nan() {
            f32::NAN
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    if a > b || a == b && a.is_sign_positive() { a } else { b }
}

#[inline(always)]
fn apply2(op: Float2, a: f32, b: f32) -> f32 {
    match op {
        Float2::Add => a + b,
        Float2::Sub => a - b,
        Float2::Mul => a * b,
        Float2::Div => a / b,
        Float2::Min => minimum(a, b, false),
        Float2::Max => maximum(a, b, false),
        Float2::MinNan => minimum(a, b, true),
        Float2::MaxNan => maximum(a, b, true),
    }
}

#[inline(always)]
pub(super) fn two_f32(op: Float2, mods: FloatMods, file: &mut [W32], r: &[u16; 5], mask: u32) {
    if mods != PLAIN {
        return two32(file, r, mask, |a, b| {
            let (a, b) = if mods.ftz { (flush(f(a)), flush(f(b))) } else { (f(a), f(b)) };
            finish(apply2(op, a, b), mods)
        });
    }
    match op {
        Float2::Add => two32(file, r, mask, |a, b| bits_of(f(a) + f(b))),
        Float2::Sub => two32(file, r, mask, |a, b| bits_of(f(a) - f(b))),
        Float2::Mul => two32(file, r, mask, |a, b| bits_of(f(a) * f(b))),
        Float2::Div => two32(file, r, mask, |a, b| bits_of(f(a) / f(b))),
        _ => two32(file, r, mask, |a, b| bits_of(apply2(op, f(a), f(b)))),
    }
}

#[inline(always)]
pub(super) fn fma_f32(mods: FloatMods, file: &mut [W32], r: &[u16; 5], mask: u32) {
    if mods == PLAIN {
        return three32(file, r, mask, |a, b, c| bits_of(f(a).mul_add(f(b), f(c))));
    }
    three32(file, r, mask, |a, b, c| {
        let [a, b, c] = [a, b, c].map(|x| if mods.ftz { flush(f(x)) } else { f(x) });
        finish(a.mul_add(b, c), mods)
    });
}

/// Fused multiply-add in a directed rounding: exact in f64 pairs, then stepped to the neighbour
/// where needed.
#[inline(always)]
pub(super) fn fma_directed(round: Round, mods: FloatMods, file: &mut [W32], r: &[u16; 5], mask: u32) {
    three32(file, r, mask, |a, b, c| {
        let [a, b, c] = [a, b, c].map(|x| if mods.ftz { flush(f(x)) } else { f(x) });
        let product = a as f64 * b as f64;
        let sum = product + c as f64;
        let error = two_sum_error(product, c as f64, sum);
        finish(directed(sum, error, round), mods)
    });
}

/// `sum + error` to f32 in a rounding mode.
#[inline(always)]
pub(super) fn directed(sum: f64, error: f64, round: Round) -> f32 {
    let near = sum as f32;
    if !sum.is_finite() {
        return near;
    }
    // The sign of (exact - near).
    let rest = if near.is_infinite() { -(near as f64) } else { (sum - near as f64) + error };
    let rest = if rest == 0.0 { error } else { rest };
    let up = rest > 0.0;
    let down = rest < 0.0;
    match round {
        Round::Near => near,
        Round::Down if down => near.next_down(),
        Round::Up if up => near.next_up(),
        Round::Zero if near > 0.0 && down => near.next_down(),
        Round::Zero if near < 0.0 && up => near.next_up(),
        _ => near,
    }
}

#[inline(always)]
fn two_sum_error(a: f64, b: f64, sum: f64) -> f64 {
    let bb = sum - a;
    (a - (sum - bb)) + (b - bb)
}

#[inline(always)]
pub(super) fn one_f32(op: Float1, mods: FloatMods, file: &mut [W32], r: &[u16; 5], mask: u32) {
    match op {
        Float1::Neg if !mods.ftz => return one32(file, r, mask, |a| a ^ 0x8000_0000),
        Float1::Abs if !mods.ftz => return one32(file, r, mask, |a| a & 0x7FFF_FFFF),
        Float1::Ex2 => {
            return one32(file, r, mask, |a| finish(ex2(if mods.ftz { flush(f(a)) } else { f(a) }), mods));
        }
        _ => {}
    }
    one32(file, r, mask, |a| {
        let a = if mods.ftz { flush(f(a)) } else { f(a) };
        let out = match op {
            Float1::Neg => -a,
            Float1::Abs => a.abs(),
            Float1::Sqrt => a.sqrt(),
            Float1::Rcp => 1.0 / a,
            // Documented errors: rsqrt 2^-22.9 relative, lg2 2^-22.6 absolute near 1, sin and cos
            // 2^-20.5, tanh 2^-11: rounded f64 is within all.
            Float1::Rsqrt => (1.0 / (a as f64).sqrt()) as f32,
            Float1::Ex2 => ex2(a),
            Float1::Lg2 => (a as f64).log2() as f32,
            Float1::Sin => (a as f64).sin() as f32,
            Float1::Cos => (a as f64).cos() as f32,
            Float1::Tanh => (a as f64).tanh() as f32,
        };
        finish(out, mods)
    });
}

/// 2^x: a degree-7 Taylor polynomial of 2^r on [-0.5, 0.5] in f32 and an exact scaling. PTX
/// documents 2 ulp for `ex2.approx`; tests hold this to that.
#[inline(always)]
pub(super) fn ex2(x: f32) -> f32 {
    // Beyond these 2^x is infinite or zero; NaN goes through.
    let clamped = x.clamp(-160.0, 130.0);
    // Adding 1.5 * 2^23 rounds to an integer without a call to libm.
    const MAGIC: f32 = 12_582_912.0;
    let shifted = clamped + MAGIC;
    let whole = shifted - MAGIC;
    let r = clamped - whole;
    let mut p = 1.525_273_4e-5_f32;
    p = p * r + 1.540_353e-4;
    p = p * r + 1.333_355_8e-3;
    p = p * r + 9.618_129e-3;
    p = p * r + 5.550_411e-2;
    p = p * r + 2.402_265e-1;
    p = p * r + 6.931_472e-1;
    p = p * r + 1.0;
    // 2^whole as two normal factors, so that subnormal results come out of one rounding.
    let n = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let half = n >> 1;
    let scale = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    let out = p * scale(half) * scale(n.wrapping_sub(half));
    if x.is_nan() { x } else { out }
}

#[inline(always)]
pub(super) fn two_f64(op: Float2, file: &mut [W64], r: &[u16; 5], mask: u32) {
    two64(file, r, mask, |a, b| {
        let (a, b) = (f64::from_bits(a), f64::from_bits(b));
        let out = match op {
            Float2::Add => a + b,
            Float2::Sub => a - b,
            Float2::Mul => a * b,
            Float2::Div => a / b,
            Float2::Min | Float2::MinNan => a.min(b),
            Float2::Max | Float2::MaxNan => a.max(b),
        };
        out.to_bits()
    });
}

#[inline(always)]
pub(super) fn fma_f64(file: &mut [W64], r: &[u16; 5], mask: u32) {
    three64(file, r, mask, |a, b, c| {
        f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
    });
}

#[inline(always)]
pub(super) fn one_f64(op: Float1, file: &mut [W64], r: &[u16; 5], mask: u32) {
    one64(file, r, mask, |a| {
        let a = f64::from_bits(a);
        let out = match op {
            Float1::Neg => -a,
            Float1::Abs => a.abs(),
            Float1::Sqrt => a.sqrt(),
            _ => 1.0 / a,
        };
        out.to_bits()
    });
}

/// f32 to bf16, to the nearest, ties to even; NaN becomes 0x7FFF.
#[inline(always)]
pub(super) fn bf16_from(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7FFF } else { rounded }
}

/// f32 to f16, to the nearest, ties to even; NaN becomes 0x7FFF.
#[inline(always)]
pub(super) fn f16_from(x: f32) -> u32 {
    let bits = x.to_bits();
    let sign = bits >> 16 & 0x8000;
    let magnitude = bits & 0x7FFF_FFFF;
    // Subnormal halves: adding 0.5 puts the value's last place (2^-24) at the last place of the
    // sum.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = magnitude.wrapping_add(0xC800_0FFF).wrapping_add(magnitude >> 13 & 1) >> 13;
    let out = if magnitude >= 0x477F_F000 {
        0x7C00
    } else if magnitude < 0x3880_0000 {
        small
    } else {
        normal
    };
    if x.is_nan() { 0x7FFF } else { sign | out }
}

/// f16 to f32, exact.
#[inline(always)]
pub(super) fn f16_to(h: u32) -> f32 {
    let sign = (h & 0x8000) << 16;
    let magnitude = h & 0x7FFF;
    // Scaling by 2^112 rebases the exponent and normalises subnormals, exactly.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let special = 0x7F80_0000 | (magnitude & 0x3FF) << 13;
    f32::from_bits(sign | if magnitude >= 0x7C00 { special } else { scaled.to_bits() })
}

#[inline(always)]
pub(super) fn half_to(of: Half, h: u32) -> f32 {
    match of {
        Half::Bf16 => f32::from_bits(h << 16),
        Half::F16 => f16_to(h & 0xFFFF),
    }
}

#[inline(always)]
pub(super) fn half_from(of: Half, x: f32) -> u32 {
    match of {
        Half::Bf16 => bf16_from(x),
        Half::F16 => f16_from(x),
    }
}

/// a * b + c with one rounding to the half format: f64 (a * b is exact), rounded to odd on the way
/// down.
#[inline(always)]
fn half_fma(of: Half, a: f32, b: f32, c: f32) -> u32 {
    let product = a as f64 * b as f64;
    let sum = product + c as f64;
    let error = two_sum_error(product, c as f64, sum);
    let near = sum as f32;
    let rest = (sum - near as f64) + error;
    // Round to odd: where bits were lost and the last one is even, step towards what was lost.
    let even = near.to_bits() & 1 == 0;
    let away = (rest > 0.0) == (near > 0.0);
    let bits = near.to_bits();
    let lost = rest != 0.0 && sum.is_finite() && near.is_finite() && bits << 1 != 0;
    let odd =
        if lost && even { if away { bits.wrapping_add(1) } else { bits.wrapping_sub(1) } } else { bits };
    half_from(of, f32::from_bits(odd))
}

/// Additions, multiplications and the like: f32 holds more than twice a half's digits plus two, so
/// rounding twice is rounding once.
#[inline(always)]
fn half_apply(op: HalfOp, of: Half, a: u32, b: u32, c: u32) -> u32 {
    let (x, y) = (half_to(of, a), half_to(of, b));
    match op {
        HalfOp::Add => half_from(of, x + y),
        HalfOp::Sub => half_from(of, x - y),
        HalfOp::Mul => half_from(of, x * y),
        HalfOp::Fma => half_fma(of, x, y, half_to(of, c)),
        HalfOp::Min => half_from(of, minimum(x, y, false)),
        HalfOp::Max => half_from(of, maximum(x, y, false)),
        HalfOp::Neg => a ^ 0x8000,
        HalfOp::Abs => a & 0x7FFF,
    }
}

#[inline(always)]
fn half_pair(op: HalfOp, of: Half, a: u32, b: u32, c: u32) -> u32 {
    let low = half_apply(op, of, a & 0xFFFF, b & 0xFFFF, c & 0xFFFF);
    low | half_apply(op, of, a >> 16, b >> 16, c >> 16) << 16
}

#[inline(always)]
pub(super) fn half(op: HalfOp, of: Half, file: &mut [W32], r: &[u16; 5], mask: u32) {
    match (op, of) {
        (HalfOp::Fma, Half::Bf16) => {
            three32(file, r, mask, |a, b, c| half_pair(HalfOp::Fma, Half::Bf16, a, b, c))
        }
        (HalfOp::Fma, Half::F16) => {
            three32(file, r, mask, |a, b, c| half_pair(HalfOp::Fma, Half::F16, a, b, c))
        }
        (HalfOp::Mul, Half::Bf16) => two32(file, r, mask, |a, b| half_pair(HalfOp::Mul, Half::Bf16, a, b, 0)),
        (HalfOp::Add, Half::Bf16) => two32(file, r, mask, |a, b| half_pair(HalfOp::Add, Half::Bf16, a, b, 0)),
        (HalfOp::Neg | HalfOp::Abs, _) => one32(file, r, mask, |a| half_pair(op, of, a, 0, 0)),
        _ => two32(file, r, mask, |a, b| half_pair(op, of, a, b, 0)),
    }
}
