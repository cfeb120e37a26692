//! `cvt`, `setp`, packing and unpacking.

use super::float::{bf16_from, directed, f16_from, f16_to, half_from};
use super::lanes::{W32, W64, one32, put, two32};
use crate::decode::{Combine, Compare, FloatMods, Half, Round, Type};

fn is_wide(kind: Type) -> bool {
    matches!(kind, Type::U64 | Type::S64 | Type::F64)
}

/// Rounding and clamping of a `cvt`.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub(super) to: Type,
    pub(super) from: Type,
    pub(super) round: Round,
    pub(super) integral: bool,
    pub(super) mods: FloatMods,
}

#[inline(always)]
pub(super) fn cvt(rule: Rule, file: &mut [W32], wide: &mut [W64], r: &[u16; 5], mask: u32) {
    let plain = !rule.mods.ftz && !rule.mods.sat;
    match (rule.from, rule.to, rule.round) {
        (Type::F32, Type::Bf16, Round::Near) if plain => {
            return one32(file, r, mask, |a| bf16_from(f32::from_bits(a)));
        }
        (Type::F32, Type::F16, Round::Near) if plain => {
            return one32(file, r, mask, |a| f16_from(f32::from_bits(a)));
        }
        (Type::Bf16, Type::F32, _) if plain => return one32(file, r, mask, |a| a << 16),
        (Type::F16, Type::F32, _) if plain => return one32(file, r, mask, |a| f16_to(a & 0xFFFF).to_bits()),
        (Type::S32, Type::F32, Round::Near) if plain => {
            return one32(file, r, mask, |a| (a as i32 as f32).to_bits());
        }
        (Type::U32, Type::F32, Round::Near) if plain => {
            return one32(file, r, mask, |a| (a as f32).to_bits());
        }
        (Type::S32, Type::S64, _) => return widen(file, wide, r, mask, |a| a as i32 as i64 as u64),
        (Type::U32, Type::U64 | Type::S64, _) => return widen(file, wide, r, mask, |a| a as u64),
        _ => {}
    }
    let mut values = [0u64; 32];
    for i in 0..32 {
        let raw = if is_wide(rule.from) { wide[r[1] as usize].0[i] } else { file[r[1] as usize].0[i] as u64 };
        values[i] = convert(rule, raw);
    }
    if is_wide(rule.to) {
        put(&mut wide[r[0] as usize].0, &values, mask);
    } else {
        put(&mut file[r[0] as usize].0, &values.map(|v| v as u32), mask);
    }
}

#[inline(always)]
fn widen(file: &mut [W32], wide: &mut [W64], r: &[u16; 5], mask: u32, f: impl Fn(u32) -> u64) {
    let a = &file[r[1] as usize].0;
    let mut out = [0; 32];
    for i in 0..32 {
        out[i] = f(a[i]);
    }
    put(&mut wide[r[0] as usize].0, &out, mask);
}

/// `cvt.rn.{bf16x2,f16x2}.f32 d, high, low`.
#[inline(always)]
pub(super) fn cvt_pair(to: Half, relu: bool, file: &mut [W32], r: &[u16; 5], mask: u32) {
    two32(file, r, mask, |high, low| {
        let clip = |x: u32| {
            let x = f32::from_bits(x);
            if relu && x < 0.0 { 0.0 } else { x }
        };
        half_from(to, clip(high)) << 16 | half_from(to, clip(low))
    });
}

/// A value between two types.
#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

fn read(kind: Type, raw: u64) -> Number {
    match kind {
        Type::U8 => Number::Int(raw as u8 as i128),
        Type::U16 => Number::Int(raw as u16 as i128),
        Type::U32 => Number::Int(raw as u32 as i128),
        Type::U64 => Number::Int(raw as i128),
        Type::S8 => Number::Int(raw as i8 as i128),
        Type::S16 => Number::Int(raw as i16 as i128),
        Type::S32 => Number::Int(raw as i32 as i128),
        Type::S64 => Number::Int(raw as i64 as i128),
        Type::F16 => Number::Float(f16_to(raw as u32 & 0xFFFF) as f64),
        Type::Bf16 => Number::Float(f32::from_bits((raw as u32) << 16) as f64),
        Type::F32 => Number::Float(f32::from_bits(raw as u32) as f64),
        Type::F64 => Number::Float(f64::from_bits(raw)),
    }
}

/// Range of an integer type and its bits.
fn integer(kind: Type) -> Option<(i128, i128)> {
    Some(match kind {
        Type::U8 => (0, u8::MAX as i128),
        Type::U16 => (0, u16::MAX as i128),
        Type::U32 => (0, u32::MAX as i128),
        Type::U64 => (0, u64::MAX as i128),
        Type::S8 => (i8::MIN as i128, i8::MAX as i128),
        Type::S16 => (i16::MIN as i128, i16::MAX as i128),
        Type::S32 => (i32::MIN as i128, i32::MAX as i128),
        Type::S64 => (i64::MIN as i128, i64::MAX as i128),
        _ => return None,
    })
}

fn rounded(x: f64, round: Round) -> f64 {
    match round {
        Round::Near => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

fn convert(rule: Rule, raw: u64) -> u64 {
    let Rule { to, from, round, integral, mods } = rule;
    let number = read(from, raw);
    if let Some((low, high)) = integer(to) {
        let value = match number {
            // Integers wrap unless `.sat`; floats always clamp, NaN to 0.
            Number::Int(v) if mods.sat => v.clamp(low, high),
            Number::Int(v) => v,
            Number::Float(x) if x.is_nan() => 0,
            Number::Float(x) => {
                let x = if mods.ftz && x.abs() < f32::MIN_POSITIVE as f64 { 0.0 } else { x };
                (rounded(x, round) as i128).clamp(low, high)
            }
        };
        let bits = value as u64;
        // A narrow result is extended to the register by its sign.
        return match to {
            Type::U8 => bits as u8 as u64,
            Type::U16 => bits as u16 as u64,
            Type::S8 => bits as i8 as i32 as u32 as u64,
            Type::S16 => bits as i16 as u16 as u64,
            Type::U32 | Type::S32 => bits as u32 as u64,
            _ => bits,
        };
    }
    let (x, rest) = match number {
        Number::Int(v) => (v as f64, (v - v as f64 as i128) as f64),
        Number::Float(x) if integral => (rounded(x, round), 0.0),
        Number::Float(x) => (x, 0.0),
    };
    let small = mods.ftz && x.abs() < f32::MIN_POSITIVE as f64;
    let x = if small { 0f64.copysign(x) } else { x };
    let x = if !mods.sat {
        x
    } else if x > 0.0 {
        x.min(1.0)
    } else {
        0.0
    };
    match to {
        Type::F64 => x.to_bits(),
        Type::F32 => {
            let y = directed(x, rest, round);
            if y.is_nan() { 0x7FFF_FFFF } else { y.to_bits() as u64 }
        }
        half => narrow(half, x, round) as u64,
    }
}

fn narrow(half: Type, x: f64, round: Round) -> u32 {
    let single = directed(x, 0.0, Round::Near);
    let near = if half == Type::F16 { f16_from(single) } else { bf16_from(single) };
    if round == Round::Near {
        return near;
    }
    // `.rz`: one step back where the nearest lies beyond.
    let back = if half == Type::F16 { f16_to(near) } else { f32::from_bits(near << 16) };
    if back.abs() as f64 > x.abs() { near - 1 } else { near }
}

/// Lanes in which the comparison holds. The negations are what makes unordered operands count.
#[allow(clippy::neg_cmp_op_on_partial_ord, clippy::double_comparisons)]
#[inline(always)]
pub(super) fn compare(how: Compare, of: Type, file: &[W32], wide: &[W64], a: u16, b: u16) -> u32 {
    let mut out = 0u32;
    macro_rules! lanes {
        ($file:expr, $read:expr) => {{
            let (x, y) = (&$file[a as usize].0, &$file[b as usize].0);
            let read = $read;
            match how {
                Compare::Eq => {
                    for i in 0..32 {
                        out |= ((read(x[i]) == read(y[i])) as u32) << i
                    }
                }
                Compare::Ne => {
                    for i in 0..32 {
                        out |= ((read(x[i]) < read(y[i]) || read(x[i]) > read(y[i])) as u32) << i
                    }
                }
                Compare::Lt => {
                    for i in 0..32 {
                        out |= ((read(x[i]) < read(y[i])) as u32) << i
                    }
                }
                Compare::Le => {
                    for i in 0..32 {
                        out |= ((read(x[i]) <= read(y[i])) as u32) << i
                    }
                }
                Compare::Gt => {
                    for i in 0..32 {
                        out |= ((read(x[i]) > read(y[i])) as u32) << i
                    }
                }
                Compare::Ge => {
                    for i in 0..32 {
                        out |= ((read(x[i]) >= read(y[i])) as u32) << i
                    }
                }
                _ => {
                    for i in 0..32 {
                        let (x, y) = (read(x[i]), read(y[i]));
                        let holds = match how {
                            Compare::EqU => !(x < y || x > y),
                            Compare::NeU => !(x == y),
                            Compare::LtU => !(x >= y),
                            Compare::LeU => !(x > y),
                            Compare::GtU => !(x <= y),
                            Compare::GeU => !(x < y),
                            Compare::Num => x.partial_cmp(&y).is_some(),
                            _ => x.partial_cmp(&y).is_none(),
                        };
                        out |= (holds as u32) << i;
                    }
                }
            }
        }};
    }
    match of {
        Type::U32 => lanes!(file, |v: u32| v),
        Type::S32 => lanes!(file, |v: u32| v as i32),
        Type::U64 => lanes!(wide, |v: u64| v),
        Type::S64 => lanes!(wide, |v: u64| v as i64),
        Type::F32 => lanes!(file, f32::from_bits),
        Type::F64 => lanes!(wide, f64::from_bits),
        Type::U16 | Type::U8 => lanes!(file, |v: u32| v as u16),
        Type::S16 | Type::S8 => lanes!(file, |v: u32| v as i16),
        Type::Bf16 => lanes!(file, |v: u32| f32::from_bits(v << 16)),
        Type::F16 => lanes!(file, |v: u32| f16_to(v & 0xFFFF)),
    }
    out
}

/// `setp`'s second step.
#[inline(always)]
pub(super) fn combine(how: Combine, holds: u32, with: u32) -> (u32, u32) {
    let join = |x: u32| match how {
        Combine::None => x,
        Combine::And => x & with,
        Combine::Or => x | with,
        Combine::Xor => x ^ with,
    };
    (join(holds), join(!holds))
}

/// `mov.b32 d, {a, b}` and wider forms.
#[inline(always)]
pub(super) fn pack(
    part_bits: u8,
    is_wide: bool,
    file: &mut [W32],
    wide: &mut [W64],
    to: u16,
    parts: &[u16],
    mask: u32,
) {
    let ones = if part_bits >= 32 { u32::MAX as u64 } else { (1u64 << part_bits) - 1 };
    let mut out = [0u64; 32];
    for (at, &part) in parts.iter().enumerate() {
        let from = &file[part as usize].0;
        for i in 0..32 {
            out[i] |= (from[i] as u64 & ones) << (at * part_bits as usize);
        }
    }
    if is_wide {
        put(&mut wide[to as usize].0, &out, mask);
    } else {
        put(&mut file[to as usize].0, &out.map(|v| v as u32), mask);
    }
}

/// `mov.b32 {a, b}, d` and wider forms.
#[inline(always)]
pub(super) fn unpack(
    part_bits: u8,
    is_wide: bool,
    file: &mut [W32],
    wide: &[W64],
    from: u16,
    parts: &[u16],
    mask: u32,
) {
    let ones = if part_bits >= 32 { u32::MAX as u64 } else { (1u64 << part_bits) - 1 };
    let source = if is_wide { wide[from as usize].0 } else { file[from as usize].0.map(u64::from) };
    for (at, &part) in parts.iter().enumerate() {
        let values = source.map(|v| (v >> (at * part_bits as usize) & ones) as u32);
        put(&mut file[part as usize].0, &values, mask);
    }
}
