//! Integer arithmetic of 16, 32 and 64 bits. 16-bit registers are zero-extended in 32-bit slots.

use super::lanes::{W32, W64, one32, one64, two32, two64};
use crate::decode::{Int1, Int2};

macro_rules! int2 {
    ($name:ident, $map:ident, $register:ident, $u:ty, $s:ty, $wide_u:ty, $wide_s:ty, $bits:expr) => {
        #[inline(always)]
        pub(super) fn $name(op: Int2, file: &mut [$register], r: &[u16; 5], mask: u32) {
            match op {
                Int2::Add => $map(file, r, mask, |a, b| a.wrapping_add(b)),
                Int2::Sub => $map(file, r, mask, |a, b| a.wrapping_sub(b)),
                Int2::MulLo => $map(file, r, mask, |a, b| a.wrapping_mul(b)),
                Int2::MulHiU => {
                    $map(file, r, mask, |a, b| ((a as $wide_u).wrapping_mul(b as $wide_u) >> $bits) as $u)
                }
                Int2::MulHiS => $map(file, r, mask, |a, b| {
                    ((a as $s as $wide_s).wrapping_mul(b as $s as $wide_s) >> $bits) as $u
                }),
                // Division by zero gives all ones, its remainder the dividend, as NVIDIA GPUs do.
                Int2::DivU => $map(file, r, mask, |a, b| if b == 0 { <$u>::MAX } else { a / b }),
                Int2::DivS => $map(file, r, mask, |a, b| {
                    if b == 0 { <$u>::MAX } else { (a as $s).wrapping_div(b as $s) as $u }
                }),
                Int2::RemU => $map(file, r, mask, |a, b| if b == 0 { a } else { a % b }),
                Int2::RemS => {
                    $map(file, r, mask, |a, b| if b == 0 { a } else { (a as $s).wrapping_rem(b as $s) as $u })
                }
                Int2::MinU => $map(file, r, mask, |a, b| if a < b { a } else { b }),
                Int2::MinS => $map(file, r, mask, |a, b| if (a as $s) < (b as $s) { a } else { b }),
                Int2::MaxU => $map(file, r, mask, |a, b| if a > b { a } else { b }),
                Int2::MaxS => $map(file, r, mask, |a, b| if (a as $s) > (b as $s) { a } else { b }),
                Int2::And => $map(file, r, mask, |a, b| a & b),
                Int2::Or => $map(file, r, mask, |a, b| a | b),
                Int2::Xor => $map(file, r, mask, |a, b| a ^ b),
                // Shifts are of 32-bit amounts; those of 64-bit values are `shift64`.
                Int2::Shl => {
                    $map(
                        file,
                        r,
                        mask,
                        |a, b| if b as u64 >= $bits { 0 } else { a << (b as u32 & ($bits - 1)) },
                    )
                }
                Int2::ShrU => {
                    $map(
                        file,
                        r,
                        mask,
                        |a, b| if b as u64 >= $bits { 0 } else { a >> (b as u32 & ($bits - 1)) },
                    )
                }
                Int2::ShrS => $map(file, r, mask, |a, b| {
                    let by = if b as u64 >= $bits { $bits - 1 } else { b as u32 & ($bits - 1) };
                    ((a as $s) >> by) as $u
                }),
            }
        }
    };
}

int2!(int32, two32, W32, u32, i32, u64, i64, 32);
int2!(int64_plain, two64, W64, u64, i64, u128, i128, 64);

/// 64-bit operations; the amount of a shift is a 32-bit register.
#[inline(always)]
pub(super) fn int64(op: Int2, file: &mut [W64], narrow: &[W32], r: &[u16; 5], mask: u32) {
    if !matches!(op, Int2::Shl | Int2::ShrS | Int2::ShrU) {
        return int64_plain(op, file, r, mask);
    }
    let (a, by) = (&file[r[1] as usize].0, &narrow[r[2] as usize].0);
    let mut out = [0; 32];
    for i in 0..32 {
        let n = by[i];
        out[i] = match op {
            Int2::Shl => {
                if n > 63 {
                    0
                } else {
                    a[i] << n
                }
            }
            Int2::ShrU => {
                if n > 63 {
                    0
                } else {
                    a[i] >> n
                }
            }
            _ => ((a[i] as i64) >> n.min(63)) as u64,
        };
    }
    super::lanes::put(&mut file[r[0] as usize].0, &out, mask);
}

/// 16-bit operations on zero-extended values.
#[inline(always)]
pub(super) fn int16(op: Int2, file: &mut [W32], r: &[u16; 5], mask: u32) {
    two32(file, r, mask, |a, b| {
        let (ua, ub) = (a as u16, b as u16);
        let (sa, sb) = (ua as i16, ub as i16);
        let out: u16 = match op {
            Int2::Add => ua.wrapping_add(ub),
            Int2::Sub => ua.wrapping_sub(ub),
            Int2::MulLo => ua.wrapping_mul(ub),
            Int2::MulHiU => ((ua as u32 * ub as u32) >> 16) as u16,
            Int2::MulHiS => ((sa as i32 * sb as i32) >> 16) as u16,
            Int2::DivU => ua.checked_div(ub).unwrap_or(u16::MAX),
            Int2::DivS => {
                if sb == 0 {
                    u16::MAX
                } else {
                    sa.wrapping_div(sb) as u16
                }
            }
            Int2::RemU => {
                if ub == 0 {
                    ua
                } else {
                    ua % ub
                }
            }
            Int2::RemS => {
                if sb == 0 {
                    ua
                } else {
                    sa.wrapping_rem(sb) as u16
                }
            }
            Int2::MinU => ua.min(ub),
            Int2::MinS => sa.min(sb) as u16,
            Int2::MaxU => ua.max(ub),
            Int2::MaxS => sa.max(sb) as u16,
            Int2::And => ua & ub,
            Int2::Or => ua | ub,
            Int2::Xor => ua ^ ub,
            Int2::Shl => {
                if b > 15 {
                    0
                } else {
                    ua << b
                }
            }
            Int2::ShrU => {
                if b > 15 {
                    0
                } else {
                    ua >> b
                }
            }
            Int2::ShrS => (sa >> b.min(15)) as u16,
        };
        out as u32
    });
}

/// 32-bit operations on one value.
#[inline(always)]
pub(super) fn one_of_32(op: Int1, file: &mut [W32], r: &[u16; 5], mask: u32) {
    match op {
        Int1::Mov => one32(file, r, mask, |a| a),
        Int1::Not => one32(file, r, mask, |a| !a),
        Int1::Neg => one32(file, r, mask, |a| a.wrapping_neg()),
        Int1::Abs => one32(file, r, mask, |a| (a as i32).wrapping_abs() as u32),
        Int1::Popc => one32(file, r, mask, |a| a.count_ones()),
        Int1::Clz => one32(file, r, mask, |a| a.leading_zeros()),
        Int1::Brev => one32(file, r, mask, |a| a.reverse_bits()),
    }
}

/// 64-bit operations on one value.
#[inline(always)]
pub(super) fn one_of_64(op: Int1, file: &mut [W64], r: &[u16; 5], mask: u32) {
    match op {
        Int1::Mov => one64(file, r, mask, |a| a),
        Int1::Not => one64(file, r, mask, |a| !a),
        Int1::Neg => one64(file, r, mask, |a| a.wrapping_neg()),
        Int1::Abs => one64(file, r, mask, |a| (a as i64).wrapping_abs() as u64),
        Int1::Popc => one64(file, r, mask, |a| a.count_ones() as u64),
        Int1::Clz => one64(file, r, mask, |a| a.leading_zeros() as u64),
        Int1::Brev => one64(file, r, mask, |a| a.reverse_bits()),
    }
}

/// 16-bit operations on one value.
#[inline(always)]
pub(super) fn one_of_16(op: Int1, file: &mut [W32], r: &[u16; 5], mask: u32) {
    one32(file, r, mask, |a| {
        let a = a as u16;
        let out = match op {
            Int1::Mov => a,
            Int1::Not => !a,
            Int1::Neg => a.wrapping_neg(),
            Int1::Abs => (a as i16).wrapping_abs() as u16,
            Int1::Popc => a.count_ones() as u16,
            Int1::Clz => a.leading_zeros() as u16,
            Int1::Brev => a.reverse_bits(),
        };
        out as u32
    });
}

/// `bfi`: `insert`'s low bits into `into`.
#[inline(always)]
pub(super) fn bit_insert(insert: u32, into: u32, position: u32, length: u32) -> u32 {
    let (position, length) = (position & 0xFF, length & 0xFF);
    if position > 31 || length == 0 {
        return into;
    }
    let ones = if length > 31 { u32::MAX } else { (1 << length) - 1 };
    let mask = ones << position;
    (into & !mask) | (insert << position & mask)
}

/// `bfe`, signed or not.
#[inline(always)]
pub(super) fn bit_extract(a: u32, position: u32, length: u32, signed: bool) -> u32 {
    let (position, length) = (position & 0xFF, length & 0xFF);
    let sign_at = (position + length).saturating_sub(1).min(31);
    let sign = signed && length > 0 && a >> sign_at & 1 == 1;
    let shifted = if position > 31 { 0 } else { a >> position };
    let kept = length.min(32u32.saturating_sub(position));
    let ones = if kept > 31 { u32::MAX } else { (1u32 << kept) - 1 };
    let fill = if sign && length > 0 { !ones } else { 0 };
    let fill = if length > 31 && !sign { 0 } else { fill };
    shifted & ones | fill
}

/// `prmt` in its default mode.
#[inline(always)]
pub(super) fn permute_bytes(a: u32, b: u32, selector: u32) -> u32 {
    let source = (b as u64) << 32 | a as u64;
    let mut out = 0;
    for i in 0..4 {
        let pick = selector >> (4 * i);
        let byte = (source >> (8 * (pick & 7))) as u32 & 0xFF;
        let byte = if pick & 8 == 0 {
            byte
        } else if byte & 0x80 == 0 {
            0
        } else {
            0xFF
        };
        out |= byte << (8 * i);
    }
    out
}

/// `lop3`: `table` bit (4a + 2b + c) for every bit position.
#[inline(always)]
pub(super) fn logic3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut out = 0;
    for row in 0..8 {
        if table >> row & 1 == 1 {
            let x = if row & 4 != 0 { a } else { !a };
            let y = if row & 2 != 0 { b } else { !b };
            let z = if row & 1 != 0 { c } else { !c };
            out |= x & y & z;
        }
    }
    out
}
