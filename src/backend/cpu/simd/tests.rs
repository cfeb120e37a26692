//! Every method of every vector type against one scalar line, and the accuracy of `exp` and `exp2`.

use super::math::{exp, tanh};
use super::*;
use crate::backend::cpu::testing::{Random, not_run};

/// Computes sixteen elements of each operation, in as many vectors as that takes.
struct Probe<'a> {
    a: &'a [f32; 16],
    b: &'a [f32; 16],
    c: &'a [f32; 16],
    count: usize,
    results: &'a mut Vec<(&'static str, [f32; 16])>,
}

impl Kernel for Probe<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { a, b, c, count, results } = self;
        let halves: Vec<u8> = a.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
        let bfloats: Vec<u8> = a.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        let mut all = |name, op: &dyn Fn(usize) -> V| {
            let mut out = [0.0f32; 16];
            for i in (0..16).step_by(V::LANES) {
                // SAFETY: the caller vouches for the instructions; i + LANES <= 16.
                unsafe { op(i).store(out.as_mut_ptr().add(i)) };
            }
            results.push((name, out));
        };
        // SAFETY: the caller vouches for the instructions; every load begins at i with i + LANES <=
        // 16.
        unsafe {
            let at = |x: &[f32; 16], i: usize| V::load(x.as_ptr().add(i));
            all("splat", &|_| V::splat(a[3]));
            all("add", &|i| at(a, i).add(at(b, i)));
            all("sub", &|i| at(a, i).sub(at(b, i)));
            all("mul", &|i| at(a, i).mul(at(b, i)));
            all("div", &|i| at(a, i).div(at(b, i)));
            all("max", &|i| at(a, i).max(at(b, i)));
            all("min", &|i| at(a, i).min(at(b, i)));
            all("mul_add", &|i| at(a, i).mul_add(at(b, i), at(c, i)));
            all("bits_shl_23", &|i| at(a, i).bits_shl_23());
            all("load_f16", &|i| V::load_f16(halves.as_ptr().add(2 * i)));
            all("load_bf16", &|i| V::load_bf16(bfloats.as_ptr().add(2 * i)));
            let first = count.min(V::LANES);
            all("load_first", &|i| V::load_first(a.as_ptr().add(i), first));
            if V::LANES == 16 {
                let (low, high) = at(a, 0).zip(at(b, 0));
                all("zip low", &|_| low);
                all("zip high", &|_| high);
            }
            let mut stored = *b;
            at(a, 0).store_first(stored.as_mut_ptr(), first);
            results.push(("store_first", stored));
        }
    }
}

/// Computes sixteen lanes of each operation on bfloat16 values, in bits.
struct Bf16Probe<'a> {
    a: &'a [f32; 16],
    b: &'a [f32; 16],
    c: &'a [f32; 16],
    results: &'a mut Vec<(&'static str, Vec<u32>)>,
}

impl Bf16Kernel for Bf16Probe<'_> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        const { assert!(V::LANES == 16) };
        let mut lanes = |name, vector: V| {
            let mut out = [0.0f32; 16];
            // SAFETY: the caller vouches for the instructions; sixteen floats.
            unsafe { vector.store(out.as_mut_ptr()) };
            self.results.push((name, out.map(f32::to_bits).to_vec()));
        };
        let (mut rounded, mut halves) = ([0u16; 16], [0u16; 32]);
        // SAFETY: the caller vouches for the instructions; sixteen floats and values, or twice as
        // many.
        unsafe {
            let [a, b, c] = [self.a, self.b, self.c].map(|x| V::load(x.as_ptr()));
            lanes("dot_pairs", a.dot_pairs(b, c));
            lanes("nearest_bf16", a.nearest_bf16());
            lanes("upper_half", a.upper_half());
            lanes("pair_upper_halves", a.pair_upper_halves(b));
            a.store_bf16(rounded.as_mut_ptr());
            a.store_upper_halves(b, halves.as_mut_ptr());
        }
        self.results.push(("store_bf16", rounded.map(u32::from).to_vec()));
        self.results.push(("store_upper_halves", halves.map(u32::from).to_vec()));
    }
}

/// Transposes a square of `LANES` rows of sixteen counted elements: of vectors, and from memory at
/// odd addresses.
struct Transpose<'a>(&'a mut [Vec<Vec<f32>>; 2]);

impl Kernel for Transpose<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let value = |row: usize, lane: usize| (row * 100 + lane) as f32;
        // SAFETY: the caller vouches for the instructions; every array has at least LANES floats.
        unsafe {
            let mut square = [V::splat(0.0); LANES_MAX];
            let mut bytes = [[0u8; 3 + 4 * LANES_MAX]; LANES_MAX];
            for row in 0..V::LANES {
                let values: [f32; LANES_MAX] = std::array::from_fn(|lane| value(row, lane));
                square[row] = V::load(values.as_ptr());
                bytes[row][3..].copy_from_slice(bytemuck::cast_slice(&values));
            }
            V::transpose(&mut square);
            let loaded = V::load_square(&std::array::from_fn(|row| bytes[row].as_ptr()), 3);
            for (square, rows) in [square, loaded].iter().zip(self.0) {
                for row in 0..V::LANES {
                    let mut values = vec![0.0f32; V::LANES];
                    square[row].store(values.as_mut_ptr());
                    rows.push(values);
                }
            }
        }
    }
}

fn scalar(name: &str, i: usize, (a, b, c): (&[f32; 16], &[f32; 16], &[f32; 16]), fused: bool) -> f32 {
    match name {
        "splat" => a[3],
        "add" => a[i] + b[i],
        "sub" => a[i] - b[i],
        "mul" => a[i] * b[i],
        "div" => a[i] / b[i],
        "max" => {
            if a[i] > b[i] {
                a[i]
            } else {
                b[i]
            }
        }
        "min" => {
            if a[i] < b[i] {
                a[i]
            } else {
                b[i]
            }
        }
        "mul_add" if fused => a[i].mul_add(b[i], c[i]),
        "mul_add" => a[i] * b[i] + c[i],
        "bits_shl_23" => f32::from_bits(a[i].to_bits() << 23),
        "load_f16" => half::f16::from_f32(a[i]).to_f32(),
        "load_bf16" => half::bf16::from_f32(a[i]).to_f32(),
        "zip low" => [a, b][i % 2][i / 2],
        "zip high" => [a, b][i % 2][8 + i / 2],
        name => panic!("no scalar line for {name}"),
    }
}

#[test]
fn every_vector_method_matches_its_scalar_line() {
    let mut random = Random::new(1);
    for isa in Isa::for_tests() {
        let (lanes, fused) = (isa.lanes(), Isa::fused_for_tests().contains(&isa));
        for round in 0..50 {
            let mut values = || -> [f32; 16] { std::array::from_fn(|_| random.value()) };
            let (mut a, mut b, c) = (values(), values(), values());
            // The documented NaN rule of max and min, infinities and zeros.
            (a[1], b[2], a[5], b[6], a[7]) = (f32::NAN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0);
            let count = round % (lanes + 1);
            let mut results = Vec::new();
            isa.run(Probe { a: &a, b: &b, c: &c, count, results: &mut results });
            for (name, got) in results {
                for i in 0..16 {
                    let expected = match name {
                        "load_first" => {
                            if i % lanes < count {
                                a[i]
                            } else {
                                0.0
                            }
                        }
                        "store_first" => {
                            if i < count {
                                a[i]
                            } else {
                                b[i]
                            }
                        }
                        name => scalar(name, i, (&a, &b, &c), fused),
                    };
                    let same =
                        got[i].to_bits() == expected.to_bits() || (got[i].is_nan() && expected.is_nan());
                    assert!(
                        same,
                        "{} {name}[{i}] = {}, expected {expected} (count {count})",
                        isa.name(),
                        got[i]
                    );
                }
            }
        }
    }
}

#[test]
fn every_method_on_bf16_values_matches_its_scalar_line() {
    let flush = |x: f32| if x.is_subnormal() { 0.0f32.copysign(x) } else { x };
    let nearest = |x: f32| u32::from(half::bf16::from_f32(flush(x)).to_bits());
    let upper = |bits: u32| f32::from_bits(bits & 0xffff_0000);
    let lower = |bits: u32| f32::from_bits(bits << 16);
    let mut random = Random::new(4);
    for bf16 in Isa::for_tests().into_iter().filter_map(Isa::bf16) {
        for _ in 0..50 {
            let mut a: [f32; 16] = std::array::from_fn(|_| random.value());
            (a[1], a[2], a[3], a[4], a[5]) = (f32::INFINITY, f32::MAX, 1e-39, -0.0, f32::NAN);
            let mut pair = || f32::from_bits(nearest(random.value()) | nearest(random.value()) << 16);
            let [b, c]: [[f32; 16]; 2] = std::array::from_fn(|_| std::array::from_fn(|_| pair()));
            let mut results = Vec::new();
            bf16.run(Bf16Probe { a: &a, b: &b, c: &c, results: &mut results });
            for (name, got) in results {
                for (i, got) in got.into_iter().enumerate() {
                    let [a, next, x, w] = [a[i % 16], b[i % 16], b[i % 16], c[i % 16]].map(f32::to_bits);
                    let sum = || {
                        let sum = flush(upper(x).mul_add(upper(w), flush(f32::from_bits(a))));
                        flush(lower(x).mul_add(lower(w), sum))
                    };
                    let expected = match name {
                        "dot_pairs" => sum().to_bits(),
                        "nearest_bf16" => nearest(f32::from_bits(a)) << 16,
                        "upper_half" => a & 0xffff_0000,
                        "pair_upper_halves" => a >> 16 | next & 0xffff_0000,
                        "store_bf16" => nearest(f32::from_bits(a)),
                        "store_upper_halves" => [a, next][i / 16] >> 16,
                        name => panic!("no scalar line for {name}"),
                    };
                    assert_eq!(got, expected, "{} {name} [{i}] of {:e}", bf16.name(), f32::from_bits(a));
                }
            }
        }
    }
}

#[test]
fn transposing_swaps_row_and_lane() {
    for isa in Isa::for_tests() {
        let mut squares = Default::default();
        isa.run(Transpose(&mut squares));
        for rows in squares {
            assert_eq!(rows.len(), isa.lanes());
            for (row, values) in rows.iter().enumerate() {
                for (lane, got) in values.iter().enumerate() {
                    assert_eq!(*got, (lane * 100 + row) as f32, "{} [{row}, {lane}]", isa.name());
                }
            }
        }
    }
}

struct Exp<'a>(&'a mut [f32]);

impl Kernel for Exp<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for chunk in self.0.chunks_exact_mut(V::LANES) {
            // SAFETY: the caller vouches for the instructions; a chunk has LANES floats.
            unsafe { exp(V::load(chunk.as_ptr())).store(chunk.as_mut_ptr()) };
        }
    }
}

#[test]
fn exp_stays_within_its_stated_error() {
    let mut inputs: Vec<f32> = (0..u32::MAX / 97)
        .map(|i| f32::from_bits(i * 97))
        .filter(|x| (-87.3..=88.3).contains(x) && x.abs() > 1e-9)
        .collect();
    inputs.truncate(inputs.len() / 16 * 16);
    for isa in Isa::available() {
        let mut outputs = inputs.clone();
        isa.run(Exp(&mut outputs));
        let (mut worst, mut worst_x) = (0.0, 0.0);
        for (x, y) in inputs.iter().zip(&outputs) {
            let exact = f64::from(*x).exp();
            let error = ((f64::from(*y) - exact) / exact).abs();
            if error > worst || error.is_nan() {
                (worst, worst_x) = (error, *x);
            }
        }
        println!("{}: {worst:.3e} at {worst_x} over {} inputs", isa.name(), inputs.len());
        assert!(worst <= 1.0e-7, "{}: {worst:.3e} at {worst_x}", isa.name());
    }
}

#[test]
fn exp_is_right_at_the_ends_of_its_range() {
    let inputs = [
        (0.0, 1.0),
        (-0.0, 1.0),
        (f32::NEG_INFINITY, 0.0),
        (-1e30, 0.0),
        (-87.8, 0.0),
        (f32::INFINITY, f32::INFINITY),
        (1e30, f32::INFINITY),
        (88.4, f32::INFINITY),
        (f32::NAN, f32::NAN),
    ];
    for isa in Isa::for_tests() {
        for (x, expected) in inputs {
            let mut values = [x; 16];
            isa.run(Exp(&mut values));
            for y in values {
                assert!(y == expected || (y.is_nan() && expected.is_nan()), "{} exp({x}) = {y}", isa.name());
            }
        }
    }
}

struct Exp2<'a>(&'a mut [f32]);

impl Kernel for Exp2<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for chunk in self.0.chunks_exact_mut(V::LANES) {
            // SAFETY: the caller vouches for the instructions; a chunk has LANES floats.
            unsafe { exp2(V::load(chunk.as_ptr())).store(chunk.as_mut_ptr()) };
        }
    }
}

#[test]
fn exp2_stays_within_its_stated_error() {
    let mut inputs: Vec<f32> = (0..u32::MAX / 97)
        .map(|i| f32::from_bits(i * 97))
        .filter(|x| (-126.0..=127.0).contains(x) && x.abs() > 1e-9)
        .collect();
    inputs.truncate(inputs.len() / 16 * 16);
    for isa in Isa::available() {
        let mut outputs = inputs.clone();
        isa.run(Exp2(&mut outputs));
        let (mut worst, mut worst_x) = (0.0, 0.0);
        for (x, y) in inputs.iter().zip(&outputs) {
            let exact = f64::from(*x).exp2();
            let error = ((f64::from(*y) - exact) / exact).abs();
            if error > worst || error.is_nan() {
                (worst, worst_x) = (error, *x);
            }
        }
        println!("{}: {worst:.3e} at {worst_x} over {} inputs", isa.name(), inputs.len());
        assert!(worst <= 1.0e-7, "{}: {worst:.3e} at {worst_x}", isa.name());
    }
}

#[test]
fn exp2_is_right_at_the_ends_of_its_range() {
    let inputs = [
        (0.0, 1.0),
        (-0.0, 1.0),
        (f32::NEG_INFINITY, 0.0),
        (-1e30, 0.0),
        (-126.6, 0.0),
        (f32::NAN, f32::NAN),
    ];
    for isa in Isa::for_tests() {
        for (x, expected) in inputs {
            let mut values = [x; 16];
            isa.run(Exp2(&mut values));
            for y in values {
                assert!(y == expected || (y.is_nan() && expected.is_nan()), "{} exp2({x}) = {y}", isa.name());
            }
        }
    }
}

struct Tanh<'a>(&'a mut [f32]);

impl Kernel for Tanh<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for x in self.0.chunks_exact_mut(V::LANES) {
            // SAFETY: a chunk has LANES floats.
            unsafe { tanh(V::load(x.as_ptr())).store(x.as_mut_ptr()) };
        }
    }
}

#[test]
fn tanh_stays_within_its_stated_error() {
    let mut inputs: Vec<f32> =
        (0..u32::MAX / 997).map(|i| f32::from_bits(i * 997)).filter(|x| x.is_finite()).collect();
    inputs.truncate(inputs.len() / 16 * 16);
    for isa in Isa::available() {
        let mut outputs = inputs.clone();
        isa.run(Tanh(&mut outputs));
        let error = |(x, y): (&f32, &f32)| (f64::from(*y) - f64::from(*x).tanh()).abs();
        let worst = inputs.iter().zip(&outputs).map(error).fold(0.0, f64::max);
        println!("{}: {worst:.3e} over {} inputs", isa.name(), inputs.len());
        assert!(worst <= 2.0e-7, "{}: {worst:.3e}", isa.name());
        assert!(!outputs.iter().any(|y| y.is_nan()), "{}", isa.name());
        let mut ends = [f32::INFINITY, f32::NEG_INFINITY, 0.0, f32::NAN].repeat(4);
        isa.run(Tanh(&mut ends));
        assert!(ends[..3] == [1.0, -1.0, 0.0] && ends[3].is_nan(), "{}: {ends:?}", isa.name());
    }
}

struct MaxOfRows<'a>(&'a mut Vec<f32>);

impl Kernel for MaxOfRows<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // Row i has its largest lane, 100 + i, at an index of its own.
        let value = |row: usize, lane: usize| {
            if lane == row * 5 % V::LANES { (100 + row) as f32 } else { -(lane as f32) }
        };
        let rows = std::array::from_fn(|row| {
            let lanes: [f32; LANES_MAX] = std::array::from_fn(|lane| value(row, lane));
            // SAFETY: the caller vouches for the instructions; LANES <= LANES_MAX.
            unsafe { V::load(lanes.as_ptr()) }
        });
        self.0.resize(V::LANES, 0.0);
        // SAFETY: the caller vouches for the instructions; the vector has LANES floats.
        unsafe { max_of_rows::<V>(rows).store(self.0.as_mut_ptr()) };
    }
}

#[test]
fn the_largest_lane_of_each_row_is_in_the_row_s_lane() {
    for isa in Isa::for_tests() {
        let mut max = Vec::new();
        isa.run(MaxOfRows(&mut max));
        let expected: Vec<f32> = (0..isa.lanes()).map(|row| (100 + row) as f32).collect();
        assert_eq!(max, expected, "{}", isa.name());
    }
}

struct Total<'a>(&'a [f32], &'a mut f32);

impl Kernel for Total<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller vouches for the instructions; loads stop at the slice's end.
        unsafe {
            let mut sums = PartialSums::<V>::zero();
            for i in (0..self.0.len()).step_by(V::LANES) {
                let sum = sums.of(i / V::LANES);
                *sum = sum.add(V::load_first(self.0.as_ptr().add(i), V::LANES.min(self.0.len() - i)));
            }
            *self.1 = sums.total();
        }
    }
}

#[test]
fn sums_have_the_same_bits_on_every_instruction_set() {
    let mut random = Random::new(2);
    for len in [0, 1, 3, 4, 15, 16, 17, 100, 577] {
        let values = random.values(len);
        let totals: Vec<f32> = Isa::for_tests()
            .into_iter()
            .map(|isa| {
                let mut total = f32::NAN;
                isa.run(Total(&values, &mut total));
                total
            })
            .collect();
        assert!(totals.iter().all(|t| t.to_bits() == totals[0].to_bits()), "{len}: {totals:?}");
    }
}

#[test]
fn missing_instruction_sets_are_reported() {
    let available = Isa::available();
    assert_eq!(available[0], Isa::portable());
    assert_eq!(available.last(), Some(&Isa::detect()));
    if !available.iter().any(|isa| isa.name() == "avx512") {
        not_run(
            "the AVX-512 instructions in every test of the CPU kernels (their shapes were run)",
            "avx512",
        );
    }
    if !available.iter().any(|isa| isa.name() == "avx2+fma") {
        not_run("the AVX2 instructions in every test of the CPU kernels", "avx2+fma");
    }
}
