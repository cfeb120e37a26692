//! One small PTX file per instruction: 32 lanes read a, b, c and store one word, compared with a
//! formula in Rust.

mod common;

use common::{Gpu, ptx};
use half::{bf16, f16};

/// Hard values: roundings, signs, subnormals, ties, infinities and NaN.
const HARD: [f32; 32] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    3.125,
    -1e-3,
    1e-8,
    65504.0,
    65519.9,
    65520.0,
    1e30,
    -1e30,
    3.4e38,
    1.17e-38,
    1e-40,
    -1e-45,
    6e-8,
    5.9604645e-8,
    2.98e-8,
    1.003_906_3,
    1.011_718_8,
    1.0048828,
    1.0014648,
    100.25,
    -7.75,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

/// Words for integer instructions.
fn words() -> Vec<u32> {
    let mut out = vec![
        0,
        1,
        u32::MAX,
        0x8000_0000,
        0x7FFF_FFFF,
        31,
        32,
        33,
        64,
        255,
        256,
        0xFFFF,
        0x10000,
        5,
        7,
        0x00FF_00FF,
    ];
    let mut x = 0x9E37_79B9u32;
    while out.len() < 32 {
        x = x.wrapping_mul(0x85EB_CA6B).rotate_left(13) ^ 0xC2B2_AE35;
        out.push(x);
    }
    out
}

/// a, b, c of each lane, in many combinations.
fn inputs(values: &[u32]) -> [Vec<u32>; 3] {
    [(1, 0), (7, 3), (5, 1)].map(|(step, first)| (0..32).map(|i| values[(i * step + first) % 32]).collect())
}

fn run(gpu: &Gpu, name: &str, values: &[u32]) -> ([Vec<u32>; 3], Vec<u32>) {
    let abc = inputs(values);
    let input = gpu.upload(&abc.concat());
    let output = gpu.allocate(128);
    let function = gpu.function(&ptx(name), "test");
    assert_eq!(gpu.launch(function, 1, 32, &[output, input]), 0, "{name}");
    let out = gpu
        .download(output, 32)
        .unwrap_or_else(|status| panic!("{name}: status {status}: {}", gpu.message()));
    (abc, out)
}

type Formula = fn(u32, u32, u32) -> u32;

/// Runs a table and lists every lane that differs.
fn check(gpu: &Gpu, values: &[u32], table: &[(&str, Formula)], same: fn(&str, u32, u32) -> bool) {
    let mut wrong = Vec::new();
    for (name, formula) in table {
        let ([a, b, c], out) = run(gpu, name, values);
        for i in 0..32 {
            let want = formula(a[i], b[i], c[i]);
            if !same(name, out[i], want) {
                wrong.push(format!(
                    "{name} lane {i}: a {:#x} b {:#x} c {:#x}: {:#x}, expected {want:#x}",
                    a[i], b[i], c[i], out[i]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn s(x: u32) -> i32 {
    x as i32
}

#[test]
fn integer_instructions_give_the_words_that_ptx_defines() {
    let table: &[(&str, Formula)] = &[
        ("add_s32", |a, b, _| a.wrapping_add(b)),
        ("sub_s32", |a, b, _| a.wrapping_sub(b)),
        ("mul_lo_s32", |a, b, _| a.wrapping_mul(b)),
        ("mul_hi_s32", |a, b, _| ((s(a) as i64 * s(b) as i64) >> 32) as u32),
        ("mul_hi_u32", |a, b, _| ((a as u64 * b as u64) >> 32) as u32),
        ("div_s32", |a, b, _| if b == 0 { u32::MAX } else { s(a).wrapping_div(s(b)) as u32 }),
        ("div_u32", |a, b, _| a.checked_div(b).unwrap_or(u32::MAX)),
        ("rem_s32", |a, b, _| if b == 0 { a } else { s(a).wrapping_rem(s(b)) as u32 }),
        ("rem_u32", |a, b, _| if b == 0 { a } else { a % b }),
        ("min_s32", |a, b, _| s(a).min(s(b)) as u32),
        ("min_u32", |a, b, _| a.min(b)),
        ("max_s32", |a, b, _| s(a).max(s(b)) as u32),
        ("max_u32", |a, b, _| a.max(b)),
        ("and_b32", |a, b, _| a & b),
        ("or_b32", |a, b, _| a | b),
        ("xor_b32", |a, b, _| a ^ b),
        ("shl_b32", |a, b, _| a.checked_shl(b).unwrap_or(0)),
        ("shr_u32", |a, b, _| a.checked_shr(b).unwrap_or(0)),
        ("shr_s32", |a, b, _| (s(a) >> b.min(31)) as u32),
        ("not_b32", |a, _, _| !a),
        ("neg_s32", |a, _, _| a.wrapping_neg()),
        ("abs_s32", |a, _, _| s(a).wrapping_abs() as u32),
        ("popc_b32", |a, _, _| a.count_ones()),
        ("clz_b32", |a, _, _| a.leading_zeros()),
        ("brev_b32", |a, _, _| a.reverse_bits()),
        ("mad_lo_s32", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mul_wide_s32", |a, b, _| ((s(a) as i64 * s(b) as i64) >> 32) as u32),
        ("mad_wide_u32", |a, b, c| ((a as u64 * b as u64).wrapping_add(c as u64) >> 32) as u32),
        ("bfi_b32", |a, b, _| b & !(0xFF << 5) | (a & 0xFF) << 5),
        ("bfe_u32", |a, b, c| bit_field(a, b, c, false)),
        ("bfe_s32", |a, b, c| bit_field(a, b, c, true)),
        ("prmt_b32", |a, b, c| {
            let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
            let pick = |i: u32| {
                let byte = bytes[(c >> (4 * i) & 7) as usize];
                if c >> (4 * i) & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 }
            };
            u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)])
        }),
        ("shf_l_wrap_b32", |a, b, c| ((((b as u64) << 32 | a as u64) << (c & 31)) >> 32) as u32),
        ("shf_r_clamp_b32", |a, b, c| (((b as u64) << 32 | a as u64) >> c.min(32)) as u32),
        ("lop3_b32", |a, b, c| a & b | b & c | a & c),
        ("setp_and_selp", |a, b, c| if s(a) > 0 && b < c { a } else { b }),
        ("guards", |a, b, _| if s(a) < s(b) { 8 } else { 9 }),
        ("mov_pack", |a, _, _| a.rotate_left(16)),
        ("cvt_sat_u8_s32", |a, _, _| s(a).clamp(0, 255) as u32),
        ("cvt_s32_s8", |a, _, _| a as i8 as i32 as u32),
        ("cvt_s64_s32", |a, _, _| (s(a) >> 31) as u32),
        ("cvt_rn_f32_s32", |a, _, _| (s(a) as f32).to_bits()),
        ("cvt_rn_f32_u32", |a, _, _| (a as f32).to_bits()),
        ("cvt_rz_f32_s32", |a, _, _| {
            let near = s(a) as f32;
            let over = (near as f64).abs() > (s(a) as f64).abs();
            if over { near.to_bits() - 1 } else { near.to_bits() }
        }),
        ("generic_shared", |a, _, _| a.wrapping_add(a)),
    ];
    check(&Gpu::new(), &words(), table, |_, got, want| got == want);
}

/// The PTX manual's own loop for `bfe`.
fn bit_field(a: u32, b: u32, c: u32, signed: bool) -> u32 {
    let (position, length) = (b & 0xFF, c & 0xFF);
    let sign = signed && length > 0 && a >> (position + length - 1).min(31) & 1 == 1;
    (0..32).fold(0, |out, i| {
        let inside = i < length && position + i <= 31;
        out | u32::from(if inside { a >> (position + i) & 1 == 1 } else { sign }) << i
    })
}

fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

fn same_float(_: &str, got: u32, want: u32) -> bool {
    got == want || f(got).is_nan() && f(want).is_nan()
}

/// a * b + c in a direction: from the exact value in integers of 2^-298 (multiplications of f32
/// need no finer).
fn fma_toward(a: u32, b: u32, c: u32, direction: i32) -> u32 {
    let near = f(a).mul_add(f(b), f(c));
    if !near.is_finite() || !f(a).is_finite() || !f(b).is_finite() || !f(c).is_finite() {
        // Overflow stops at the largest finite value where the direction points back.
        let overflow = near.is_infinite() && [a, b, c].iter().all(|&x| f(x).is_finite());
        let back = match direction {
            0 => true,
            d => (d > 0) != (near > 0.0),
        };
        return if overflow && back { f32::MAX.copysign(near).to_bits() } else { near.to_bits() };
    }
    // Compare near with the exact sum: both as f64 pairs (a * b of f32 is exact in f64).
    let product = f(a) as f64 * f(b) as f64;
    let (big, small) =
        if product.abs() > (f(c) as f64).abs() { (product, f(c) as f64) } else { (f(c) as f64, product) };
    let rest = (big - near as f64) + small;
    let up = rest > 0.0;
    let down = rest < 0.0;
    let stepped = match direction {
        1 if up => near.next_up(),
        -1 if down => near.next_down(),
        0 if near > 0.0 && down => near.next_down(),
        0 if near < 0.0 && up => near.next_up(),
        _ => near,
    };
    stepped.to_bits()
}

#[test]
fn f32_instructions_round_as_ptx_defines() {
    let table: &[(&str, Formula)] = &[
        ("add_rn_f32", |a, b, _| (f(a) + f(b)).to_bits()),
        ("sub_rn_f32", |a, b, _| (f(a) - f(b)).to_bits()),
        ("mul_rn_f32", |a, b, _| (f(a) * f(b)).to_bits()),
        ("div_rn_f32", |a, b, _| (f(a) / f(b)).to_bits()),
        ("fma_rn_f32", |a, b, c| f(a).mul_add(f(b), f(c)).to_bits()),
        ("fma_rm_f32", |a, b, c| fma_toward(a, b, c, -1)),
        ("fma_rp_f32", |a, b, c| fma_toward(a, b, c, 1)),
        ("fma_rz_f32", |a, b, c| fma_toward(a, b, c, 0)),
        ("neg_f32", |a, _, _| a ^ 0x8000_0000),
        ("abs_f32", |a, _, _| a & 0x7FFF_FFFF),
        ("sqrt_rn_f32", |a, _, _| f(a).sqrt().to_bits()),
        ("rcp_rn_f32", |a, _, _| (1.0 / f(a)).to_bits()),
        ("cvt_sat_f32_f32", |a, _, _| if f(a) > 0.0 { f(a).min(1.0).to_bits() } else { 0 }),
        ("cvt_rni_f32_f32", |a, _, _| f(a).round_ties_even().to_bits()),
        ("cvt_rni_s32_f32", |a, _, _| f(a).round_ties_even() as i32 as u32),
        ("cvt_rzi_s32_f32", |a, _, _| f(a) as i32 as u32),
        ("cvt_rmi_s32_f32", |a, _, _| f(a).floor() as i32 as u32),
        ("cvt_rpi_s32_f32", |a, _, _| f(a).ceil() as i32 as u32),
        ("cvt_rzi_u32_f32", |a, _, _| f(a) as u32),
        ("setp_f32_nan", |a, b, _| {
            u32::from(f(a) < f(b)) | u32::from(f(a) < f(b) || f(a).is_nan() || f(b).is_nan()) << 1
        }),
        ("min_f32", |a, b, _| if f(a) == f(b) { a | b } else { f(a).min(f(b)).to_bits() }),
        ("max_f32", |a, b, _| if f(a) == f(b) { a & b } else { f(a).max(f(b)).to_bits() }),
    ];
    check(&Gpu::new(), &HARD.map(f32::to_bits), table, same_float);
}

/// Both halves of a pair by a formula that returns an f64 and its error, which one rounding takes
/// to the format.
fn pair_bf16(a: u32, b: u32, c: u32, op: fn(f64, f64, f64) -> (f64, f64)) -> u32 {
    let half = |shift: u32| {
        let x = |w: u32| bf16::from_bits((w >> shift) as u16).to_f64();
        let (out, lost) = op(x(a), x(b), x(c));
        if out.is_nan() { 0x7FFF } else { nearest_bf16(out, lost) as u32 }
    };
    half(0) | half(16) << 16
}

/// a + b and the part of the exact sum that f64 could not hold.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let other = sum - a;
    (sum, (a - (sum - other)) + (b - other))
}

/// `x + lost` to bf16 by search among neighbours: no double rounding.
fn nearest_bf16(x: f64, lost: f64) -> u16 {
    let guess = bf16::from_f64(x).to_bits();
    let value = |bits: u16| bf16::from_bits(bits).to_f64();
    if guess & 0x7FFF >= 0x7F80 {
        return guess;
    }
    let mut best = guess;
    for near in [guess.wrapping_sub(1), guess.wrapping_add(1)].into_iter().filter(|n| n & 0x7FFF < 0x7F80) {
        let (new, old) = ((value(near) - x).abs(), (value(best) - x).abs());
        let tie_goes_here = if lost == 0.0 { near & 1 == 0 } else { (value(near) > x) == (lost > 0.0) };
        if new < old || new == old && tie_goes_here {
            best = near;
        }
    }
    best
}

fn pair_f16(a: u32, b: u32, c: u32, op: fn(f64, f64, f64) -> f64) -> u32 {
    let half = |shift: u32| {
        let x = |w: u32| f16::from_bits((w >> shift) as u16).to_f64();
        let out = op(x(a), x(b), x(c));
        if out.is_nan() { 0x7FFF } else { f16::from_f64(out).to_bits() as u32 }
    };
    half(0) | half(16) << 16
}

#[test]
fn sixteen_bit_floats_round_once() {
    let gpu = Gpu::new();
    let halves = |to: fn(f32) -> u16| -> Vec<u32> {
        (0..32).map(|i| to(HARD[i]) as u32 | (to(HARD[(i + 9) % 32]) as u32) << 16).collect()
    };
    let table: &[(&str, Formula)] = &[
        ("fma_rn_bf16x2", |a, b, c| pair_bf16(a, b, c, |a, b, c| two_sum(a * b, c))),
        ("add_rn_bf16x2", |a, b, _| pair_bf16(a, b, 0, |a, b, _| two_sum(a, b))),
        ("mul_rn_bf16x2", |a, b, _| pair_bf16(a, b, 0, |a, b, _| (a * b, 0.0))),
        ("cvt_f32_bf16", |a, _, _| a << 16),
    ];
    let same = |name: &str, got: u32, want: u32| {
        if name.starts_with("cvt") { same_float(name, got, want) } else { got == want }
    };
    check(&gpu, &halves(|x| bf16::from_f32(x).to_bits()), table, same);
    let table: &[(&str, Formula)] = &[
        ("fma_rn_f16x2", |a, b, c| pair_f16(a, b, c, |a, b, c| a * b + c)),
        ("add_rn_f16x2", |a, b, _| pair_f16(a, b, 0, |a, b, _| a + b)),
        ("mul_rn_f16x2", |a, b, _| pair_f16(a, b, 0, |a, b, _| a * b)),
        ("cvt_f32_f16", |a, _, _| f16::from_bits(a as u16).to_f32().to_bits()),
    ];
    check(&gpu, &halves(|x| f16::from_f32(x).to_bits()), table, same);
    let b16 = |x: u32| if f(x).is_nan() { 0x7FFF } else { bf16::from_f32(f(x)).to_bits() as u32 };
    let h16 = |x: u32| if f(x).is_nan() { 0x7FFF } else { f16::from_f32(f(x)).to_bits() as u32 };
    let values = HARD.map(f32::to_bits);
    for name in ["cvt_rn_bf16_f32", "cvt_rn_f16_f32", "cvt_rn_bf16x2_f32"] {
        let ([a, b, _], out) = run(&gpu, name, &values);
        for i in 0..32 {
            let want = match name {
                "cvt_rn_bf16_f32" => b16(a[i]),
                "cvt_rn_f16_f32" => h16(a[i]),
                _ => b16(a[i]) << 16 | b16(b[i]),
            };
            assert_eq!(out[i], want, "{name} lane {i}: {} {}", f(a[i]), f(b[i]));
        }
    }
}

/// Bounds of the PTX manual: relative 2^-22 for ex2 (2 ulp), 2^-22.9 for rsqrt, 2^-11 for tanh;
/// absolute 2^-20.5 for sin and cos within [-pi, pi], 2^-22 for lg2 near 1.
#[test]
fn approximations_stay_within_their_documented_error() {
    let gpu = Gpu::new();
    let values: Vec<u32> = (0..32).map(|i| (-3.1f32 + 0.2 * i as f32).to_bits()).collect();
    type FloatCase = (&'static str, fn(f64) -> f64, f64, bool);
    let rows: [FloatCase; 7] = [
        ("ex2_approx_f32", f64::exp2, 2f64.powi(-22), true),
        ("ex2_approx_ftz_f32", f64::exp2, 2f64.powi(-22), true),
        ("rsqrt_approx_f32", |x| 1.0 / x.sqrt(), 2f64.powf(-22.9), true),
        ("lg2_approx_f32", f64::log2, 2f64.powi(-21), false),
        ("sin_approx_f32", f64::sin, 2f64.powf(-20.5), false),
        ("cos_approx_f32", f64::cos, 2f64.powf(-20.5), false),
        ("tanh_approx_f32", f64::tanh, 2f64.powi(-11), true),
    ];
    for (name, exact, bound, relative) in rows {
        let ([a, ..], out) = run(&gpu, name, &values);
        for i in 0..32 {
            let (want, got) = (exact(f(a[i]) as f64), f(out[i]) as f64);
            if want.is_nan() {
                assert!(got.is_nan(), "{name} of {}", f(a[i]));
                continue;
            }
            let error = (got - want).abs() / if relative { want.abs() } else { 1.0 };
            assert!(error <= bound, "{name} of {}: {got}, exactly {want}", f(a[i]));
        }
    }
    // The far ends of 2^x: exact powers, subnormals, flushed, infinite, zero.
    let ends = [
        -126.0,
        -127.0,
        -149.0,
        -150.5,
        127.0,
        128.0,
        -1000.0,
        1000.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        0.0,
    ];
    let values: Vec<u32> = (0..32).map(|i| ends[i % ends.len()].to_bits()).collect();
    for name in ["ex2_approx_f32", "ex2_approx_ftz_f32"] {
        let ([a, ..], out) = run(&gpu, name, &values);
        for i in 0..32 {
            let exact = (f(a[i]) as f64).exp2() as f32;
            let want = if name.contains("ftz") && exact.is_subnormal() { 0.0 } else { exact };
            assert!(
                same_float(name, out[i], want.to_bits()),
                "{name} of {}: {} for {want}",
                f(a[i]),
                f(out[i])
            );
        }
    }
}

#[test]
fn lanes_of_a_warp_exchange_values() {
    let gpu = Gpu::new();
    let values = words();
    type LaneCase = (&'static str, fn(usize, &[u32]) -> u32);
    let lane_table: [LaneCase; 17] = [
        ("shfl_bfly", |i, a| a[i ^ 5] ^ 1),
        ("shfl_up", |i, a| if i >= 3 { a[i - 3] ^ 1 } else { a[i] }),
        ("shfl_down", |i, a| if i + 3 <= 31 { a[i + 3] ^ 1 } else { a[i] }),
        ("shfl_idx", |_, a| a[9] ^ 1),
        ("shfl_bfly_segment", |i, a| a[i ^ 3]),
        ("vote_any_all", |_, _| 1),
        ("redux_add_s32", |_, a| a.iter().fold(0, |x, &y| x.wrapping_add(y))),
        ("redux_min_s32", |_, a| a.iter().map(|&x| x as i32).min().unwrap_or(0) as u32),
        ("redux_max_u32", |_, a| a.iter().copied().max().unwrap_or(0)),
        ("redux_xor_b32", |_, a| a.iter().fold(0, |x, y| x ^ y)),
        ("divergence", |i, _| {
            32_000
                + if i % 2 == 0 {
                    1
                } else if i & 2 == 0 {
                    210
                } else {
                    110
                }
        }),
        ("loop_by_lane", |i, _| ((i + 1) * (i + 2) / 2) as u32),
        ("early_return", |i, _| if i < 10 { 5 } else { !0x3FF }),
        ("scoped_blocks", |i, _| {
            if i < 8 {
                50
            } else if i < 16 {
                0
            } else {
                3
            }
        }),
        ("mma_m16n8k16_bf16", |i, _| (16.0 + i as f32).to_bits()),
        ("mma_m16n8k8_f16", |i, _| (8.0 * (i / 4 + 8) as f32 * (2 * (i % 4) + 1) as f32).to_bits()),
        ("ldmatrix_x1_trans", |i, _| {
            let (row, column) = (i / 4, 2 * (i % 4));
            (8 * column + row) as u32 | ((8 * (column + 1) + row) as u32) << 16
        }),
    ];
    for (name, want) in lane_table {
        let ([a, ..], out) = run(&gpu, name, &values);
        for i in 0..32 {
            assert_eq!(out[i], want(i, &a), "{name} lane {i}");
        }
    }
}

#[test]
fn memory_instructions_move_the_right_bytes() {
    let gpu = Gpu::new();
    let values = words();
    let ([a, b, _], out) = run(&gpu, "ld_narrow", &values);
    for i in 0..32 {
        assert_eq!(out[i], (a[i] as i8 as i32 as u32).wrapping_add(a[i] >> 16), "ld_narrow lane {i}");
    }
    let _ = b;
    let ([a, ..], out) = run(&gpu, "ld_v4", &values);
    for i in 0..32 {
        let v = &a[4 * (i % 8)..][..4];
        assert_eq!(out[i], v[0] ^ v[1] ^ v[2] ^ v[3], "ld_v4 lane {i}");
    }
    let ([_, b, _], out) = run(&gpu, "cp_async", &values);
    for i in 0..32 {
        assert_eq!(out[i], if i < 20 { b[i] } else { 0 }, "cp_async lane {i}");
    }
    let (_, mut out) = run(&gpu, "atom_shared_add", &values);
    out.sort_unstable();
    assert_eq!(out, (0..32).map(|i| 2 * i).collect::<Vec<_>>());
}
