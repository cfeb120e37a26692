//! GEMM against naive ones: f64 for accuracy, one scalar chain in the order of k for the bits.

use std::ops::Range;

use super::*;
use crate::backend::cpu::elementwise::gate_mul;
use crate::backend::cpu::matrix_unit::TILE_K;
use crate::backend::cpu::simd::flush;
use crate::backend::cpu::strips::{Strips, StripsMut};
use crate::backend::cpu::testing::{
    Random, Worst, all_math, all_threads, assert_same_bits, bf16_math, f32_math, name, not_run,
};
use crate::backend::cpu::view::{Rows, RowsMut, WeightView};
use crate::config::Gate;

/// Largest error relative to the sum of |x * w|, |bias| and |out|: measured 1.15e-6 (k = 1,537 with
/// outliers, products rounded first); twice that.
const ERROR: f64 = 2.3e-6;

/// m, n, k: one of each, odd ones, tails of every tile, several k blocks, a cut-down 70B row.
const SHAPES: [(usize, usize, usize); 16] = [
    (1, 1, 1),
    (1, 7, 3),
    (2, 17, 8),
    (3, 48, 16),
    (5, 47, 31),
    (7, 49, 257),
    (8, 96, 384),
    (9, 97, 385),
    (13, 1, 100),
    (65, 33, 130),
    (70, 200, 64),
    (97, 50, 1537),
    (4, 640, 1024),
    (530, 20, 40),
    (11, 35, 2100),
    (6, 33, 1027),
];

/// A problem that is awkward in memory: weight bytes at an odd address, strides wider than rows.
struct Problem {
    m: usize,
    n: usize,
    k: usize,
    x: Vec<f32>,
    bytes: Vec<u8>,
    /// Values of the bytes, `[n, k]`.
    weight: Vec<f32>,
    dtype: Dtype,
    bias: Vec<f32>,
    out: Vec<f32>,
}

const X_GAP: usize = 3;
const W_GAP: usize = 5;
const OUT_GAP: usize = 2;

impl Problem {
    fn new((m, n, k): (usize, usize, usize), dtype: Dtype) -> Self {
        let mut random = Random::new((m * 1_000_003 + n * 1009 + k) as u64);
        let (mut bytes, mut weight) = (vec![0xffu8], Vec::new());
        for _ in 0..n {
            for col in 0..k + W_GAP {
                let value = if col < k { random.value() } else { f32::NAN };
                let stored = match dtype {
                    Dtype::F32 => value,
                    Dtype::F16 => half::f16::from_f32(value).to_f32(),
                    Dtype::BF16 => half::bf16::from_f32(value).to_f32(),
                };
                match dtype {
                    Dtype::F32 => bytes.extend(value.to_le_bytes()),
                    Dtype::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                    Dtype::BF16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
                }
                if col < k {
                    weight.push(stored);
                }
            }
        }
        let x = random.values(m * (k + X_GAP));
        Self {
            m,
            n,
            k,
            x,
            bytes,
            weight,
            dtype,
            bias: random.values(n),
            out: random.values(m * (n + OUT_GAP)),
        }
    }

    fn run(&self, isa: Isa, threads: &Threads, math: Math, store: Store, bias: bool) -> Vec<f32> {
        let mut out = self.out.clone();
        if let Store::Gated(_) = store
            && let Some(Layout::Strips(format)) = math.gated(isa, self.dtype)
        {
            let operands = self.operands(0..self.m, 0..self.n, math, store, bias);
            self.unpack(format, &self.gated_strips(isa, threads, &operands, format), &mut out);
            return out;
        }
        self.run_part(isa, threads, math, store, bias, 0..self.m, 0..self.n, &mut out);
        out
    }

    /// Computes a gate in strips, between which nothing is written.
    fn gated_strips(&self, isa: Isa, threads: &Threads, operands: &Gemm, format: StripFormat) -> Vec<f32> {
        const GAP: f32 = 12_345.0;
        let (ffn, stride) = (self.n / 2, format.stride(self.n / 2));
        let mut strips = vec![GAP; format.floats(self.m, ffn) + 1];
        let floats = strips.len() - 1;
        gemm(isa, threads, operands, StripsMut::new(&mut strips[..floats], self.m, ffn, format));
        let steps = ffn.div_ceil(format.elements) * format.lanes();
        for strip in strips[..floats].chunks(stride) {
            assert!(strip[steps..].iter().all(|x| *x == GAP), "written between strips");
        }
        strips
    }

    /// Unpacks a gate's strips into rows.
    fn unpack(&self, format: StripFormat, strips: &[f32], out: &mut [f32]) {
        let (ffn, lanes) = (self.n / 2, format.lanes());
        for (row, out) in out.chunks_mut(self.n + OUT_GAP).enumerate() {
            for (column, out) in out[..ffn].iter_mut().enumerate() {
                let strip = row / lanes * format.stride(ffn);
                let bits = strips[strip + column / format.elements * lanes + row % lanes].to_bits();
                *out = match (format.elements, column % 2) {
                    (1, _) => f32::from_bits(bits),
                    (_, 0) => f32::from_bits(bits << 16),
                    _ => f32::from_bits(bits & 0xffff_0000),
                };
            }
        }
    }

    fn operands(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        math: Math,
        store: Store,
        bias: bool,
    ) -> Gemm<'_> {
        let (x_stride, w_stride) = (self.k + X_GAP, self.k + W_GAP);
        let bytes = &self.bytes[1 + columns.start * w_stride * self.dtype.size()..];
        Gemm {
            x: Rows::new(&self.x[rows.start * x_stride..], rows.len(), self.k, x_stride).into(),
            weight: WeightView::new(bytes, self.dtype, columns.len(), self.k, w_stride),
            bias: bias.then_some(&self.bias[columns]),
            store,
            math,
        }
    }

    /// Computes rows `rows` and columns `columns` of the matmul.
    #[allow(clippy::too_many_arguments)]
    fn run_part(
        &self,
        isa: Isa,
        threads: &Threads,
        math: Math,
        store: Store,
        bias: bool,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) {
        let out_stride = self.n + OUT_GAP;
        let operands = self.operands(rows.clone(), columns.clone(), math, store, bias);
        let out = &mut out[rows.start * out_stride + columns.start..];
        let width = if matches!(store, Store::Gated(_)) { columns.len() / 2 } else { columns.len() };
        gemm(isa, threads, &operands, RowsMut::new(out, rows.len(), width, out_stride));
    }

    /// Returns the expected `out` of a gate: that of the matmul, then of `gate_mul`, rounded where
    /// strips hold pairs.
    fn expected_of_gate(&self, isa: Isa, threads: &Threads, math: Math, bias: bool) -> Vec<f32> {
        let (ffn, stride) = (self.n / 2, self.n + OUT_GAP);
        let mut gate_up = self.run(isa, threads, math, Store::Replace, bias);
        gate_mul(isa, threads, Gate::Silu, RowsMut::new(&mut gate_up, self.m, self.n, stride));
        let mut out = self.out.clone();
        for (out, gated) in out.chunks_mut(stride).zip(gate_up.chunks(stride)) {
            out[..ffn].copy_from_slice(&gated[..ffn]);
            if let Some(Layout::Strips(StripFormat { elements: 2, .. })) = math.gated(isa, self.dtype) {
                out[..ffn].iter_mut().for_each(|x| *x = round(*x));
            }
        }
        out
    }

    /// Returns the expected `out` when `dot` gives an element of the matmul.
    fn expected(&self, store: Store, bias: bool, dot: impl Fn(&[f32], &[f32]) -> f32) -> Vec<f32> {
        let mut out = self.out.clone();
        for m in 0..self.m {
            for n in 0..self.n {
                let x = &self.x[m * (self.k + X_GAP)..][..self.k];
                let mut value = dot(x, &self.weight[n * self.k..][..self.k]);
                if bias {
                    value += self.bias[n];
                }
                let out = &mut out[m * (self.n + OUT_GAP) + n];
                *out = if store == Store::Add { *out + value } else { value };
            }
        }
        out
    }
}

fn fused_chain(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(0.0, |sum, (x, w)| x.mul_add(*w, sum))
}

fn separate_chain(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(0.0, |sum, (x, w)| x * w + sum)
}

/// Rounds to bfloat16 as the instructions do: subnormals to zero.
fn round(x: f32) -> f32 {
    flush(half::bf16::from_f32(flush(x)).to_f32())
}

/// VDPBF16PS as its manual describes it, on inputs rounded to bfloat16: the upper of a pair first,
/// subnormals as zero.
fn pair_chain(x: &[f32], w: &[f32]) -> f32 {
    x.chunks(2).zip(w.chunks(2)).fold(0.0, |sum, (x, w)| {
        let upper = if x.len() == 2 { flush(round(x[1]).mul_add(round(w[1]), sum)) } else { sum };
        flush(round(x[0]).mul_add(round(w[0]), upper))
    })
}

/// TDPBF16PS as its manual describes it, on the terms of x in turn: of 32 elements of k the even
/// and the odd ones apart.
fn tile_chain(x: &[f32], w: &[f32], terms: impl Fn(f32) -> Vec<f32>) -> f32 {
    let mut sum = 0.0;
    for (x, w) in x.chunks(TILE_K).zip(w.chunks(TILE_K)) {
        let x: Vec<Vec<f32>> = x.iter().map(|x| terms(*x)).collect();
        for term in 0..x[0].len() {
            let half = |first: usize| {
                let values = x.iter().zip(w).skip(first).step_by(2);
                values.fold(0.0, |sum, (x, w)| flush(flush(x[term]).mul_add(flush(*w), sum)))
            };
            sum = flush(sum + flush(half(0) + half(1)));
        }
    }
    sum
}

/// Splits x into three bfloat16 terms, whose exact sum it is.
fn three_terms(x: f32) -> Vec<f32> {
    let upper = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
    let (first, rest) = (upper(x), x - upper(x));
    let (second, third) = (upper(rest), rest - upper(rest));
    assert_eq!(upper(third), third, "{x:e} has more than three terms");
    vec![first, second, third]
}

/// Returns the chain that an element of an f32 matmul has in `math`, for a weight that is stored as
/// `dtype`.
fn f32_chain(isa: Isa, math: Math, dtype: Dtype) -> impl Fn(&[f32], &[f32]) -> f32 {
    let fused = Isa::fused_for_tests().contains(&isa);
    move |x, w| match (math, dtype) {
        (Math::F32Tiles(_), Dtype::BF16) => tile_chain(x, w, three_terms),
        _ if fused => fused_chain(x, w),
        _ => separate_chain(x, w),
    }
}

#[test]
fn gemm_matches_naive_f64_for_every_dtype_and_instruction_set() {
    let threads = Threads::new(2).unwrap();
    for (isa, math) in f32_math() {
        let mut worst = Worst::default();
        for shape in SHAPES {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let problem = Problem::new(shape, dtype);
                let got = problem.run(isa, &threads, math, Store::Add, true);
                for m in 0..problem.m {
                    for n in 0..problem.n {
                        let x = &problem.x[m * (problem.k + X_GAP)..][..problem.k];
                        let w = &problem.weight[n * problem.k..][..problem.k];
                        let products = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                        let at = m * (problem.n + OUT_GAP) + n;
                        let rest = [f64::from(problem.bias[n]), f64::from(problem.out[at])];
                        let expected = products().sum::<f64>() + rest[0] + rest[1];
                        let scale = products().map(f64::abs).sum::<f64>() + rest[0].abs() + rest[1].abs();
                        worst.record(got[at], expected, scale, || format!("{shape:?} {dtype:?} [{m}, {n}]"));
                    }
                }
            }
        }
        worst.assert_within(ERROR, &name(isa, math));
    }
}

/// No tile, tail, block, thread or instruction set affects any bit, and nothing is written between
/// the rows.
#[test]
fn gemm_has_the_bits_of_one_chain_in_the_order_of_k() {
    let all_threads = all_threads();
    for (isa, math) in f32_math() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            let dtype = match math {
                Math::F32Tiles(_) => Dtype::BF16,
                _ => [Dtype::F32, Dtype::F16, Dtype::BF16][i % 3],
            };
            let problem = Problem::new(shape, dtype);
            for (store, bias) in [(Store::Replace, false), (Store::Add, true)] {
                let expected = problem.expected(store, bias, f32_chain(isa, math, dtype));
                for threads in &all_threads {
                    let got = problem.run(isa, threads, math, store, bias);
                    let what = format!("{} {shape:?} {dtype:?} {} threads", name(isa, math), threads.count());
                    assert_same_bits(&got, &expected, problem.n + OUT_GAP, &what);
                }
            }
        }
    }
    if !Isa::available().into_iter().any(|isa| isa.matrix_unit().is_some()) {
        not_run("matmuls by AMX's tiles (their emulation was run)", "amx");
    }
}

#[test]
fn a_matrix_unit_leaves_other_weights_to_vector_instructions() {
    let threads = Threads::new(2).unwrap();
    for (isa, math) in f32_math() {
        for dtype in [Dtype::F32, Dtype::F16] {
            let problem = Problem::new((33, 50, 70), dtype);
            let got = problem.run(isa, &threads, math, Store::Replace, true);
            let expected = problem.run(isa, &threads, Math::F32, Store::Replace, true);
            assert_same_bits(&got, &expected, problem.n + OUT_GAP, &name(isa, math));
        }
    }
}

#[test]
fn gemm_gives_the_same_bits_for_any_cut_of_rows_and_columns() {
    let threads = Threads::new(2).unwrap();
    for (isa, math) in all_math() {
        let problem = Problem::new((69, 131, 300), Dtype::BF16);
        let whole = problem.run(isa, &threads, math, Store::Replace, true);
        for (m_cut, n_cut) in [(1, 1), (7, 64), (68, 130), (33, 47)] {
            let mut pieces = problem.out.clone();
            for rows in [0..m_cut, m_cut..problem.m] {
                for columns in [0..n_cut, n_cut..problem.n] {
                    let (rows, store) = (rows.clone(), Store::Replace);
                    problem.run_part(isa, &threads, math, store, true, rows, columns, &mut pieces);
                }
            }
            assert_same_bits(&pieces, &whole, problem.n + OUT_GAP, &name(isa, math));
        }
    }
}

#[test]
fn a_weight_in_several_segments_is_multiplied_as_one() {
    let threads = Threads::new(2).unwrap();
    for (isa, math) in all_math() {
        let problem = Problem::new((69, 131, 300), Dtype::BF16);
        let whole = problem.run(isa, &threads, math, Store::Add, true);
        let stride = problem.k + W_GAP;
        let segment = |rows: Range<usize>| {
            let bytes = &problem.bytes[1 + 2 * rows.start * stride..];
            WeightView::new(bytes, problem.dtype, rows.len(), problem.k, stride)
        };
        // In the middle of a panel, of a vector, and of neither.
        for (first, second) in [(50, 81), (16, 17), (48, 96)] {
            let both = segment(0..first).followed_by(segment(first..second)).unwrap();
            let weight = both.followed_by(segment(second..problem.n)).unwrap();
            assert!(weight.followed_by(segment(0..1)).is_none());
            let mut out = problem.out.clone();
            let operands = Gemm {
                x: Rows::new(&problem.x, problem.m, problem.k, problem.k + X_GAP).into(),
                weight,
                bias: Some(&problem.bias),
                store: Store::Add,
                math,
            };
            gemm(isa, &threads, &operands, RowsMut::new(&mut out, problem.m, problem.n, problem.n + OUT_GAP));
            assert_same_bits(&out, &whole, problem.n + OUT_GAP, &name(isa, math));
        }
    }
}

#[test]
fn gemm_keeps_a_nan_in_its_row_and_its_column() {
    let threads = Threads::new(2).unwrap();
    for (isa, math) in f32_math() {
        for (x, w) in [(f32::NAN, f32::INFINITY), (f32::INFINITY, f32::NAN)] {
            let mut problem = Problem::new((11, 53, 70), Dtype::BF16);
            let clean = problem.run(isa, &threads, math, Store::Replace, false);
            problem.x[4 * (problem.k + X_GAP) + 69] = x;
            let column_at = 1 + (52 * (problem.k + W_GAP) + 3) * 2;
            problem.bytes[column_at..column_at + 2].copy_from_slice(&half::bf16::from_f32(w).to_le_bytes());
            let got = problem.run(isa, &threads, math, Store::Replace, false);
            for m in 0..problem.m {
                for n in 0..problem.n {
                    let at = m * (problem.n + OUT_GAP) + n;
                    let (touched, what) = (m == 4 || n == 52, format!("{} [{m}, {n}]", name(isa, math)));
                    assert_eq!(got[at].is_finite(), !touched, "{what}");
                    assert!(touched || got[at] == clean[at], "{what}");
                }
            }
        }
    }
}

#[test]
fn bf16_gemm_has_the_bits_that_the_manual_documents() {
    let all_threads = all_threads();
    for (isa, math) in bf16_math() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            let dtype = [Dtype::BF16, Dtype::F16, Dtype::F32][i % 3];
            let problem = Problem::new(shape, dtype);
            let expected = problem.expected(Store::Add, true, |x, w| match math {
                Math::Bf16Tiles(_) => {
                    let w: Vec<f32> = w.iter().map(|w| round(*w)).collect();
                    tile_chain(x, &w, |x| vec![round(x)])
                }
                _ => pair_chain(x, w),
            });
            for threads in &all_threads {
                let got = problem.run(isa, threads, math, Store::Add, true);
                let what = format!("{} {shape:?} {dtype:?} {} threads", name(isa, math), threads.count());
                assert_same_bits(&got, &expected, problem.n + OUT_GAP, &what);
            }
        }
    }
    if !Isa::available().into_iter().any(|isa| isa.bf16().is_some()) {
        not_run("bf16 matmuls by VDPBF16PS (their emulation was run)", "avx512-bf16");
    }
}

/// m, ffn, k of gates: below 16, odd, none a multiple of 16 or of 32 and both, several k blocks,
/// several blocks of rows (256 or 512 with one thread) and of columns (768 where there are several
/// k blocks).
const GATE_SHAPES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (3, 5, 33),
    (2, 15, 7),
    (5, 16, 64),
    (33, 17, 100),
    (40, 31, 31),
    (31, 48, 640),
    (70, 47, 641),
    (270, 33, 1300),
    (530, 40, 20),
    (4, 425, 700),
];

/// Every arithmetic, with the formats of weights that it gates.
fn gating() -> Vec<(Isa, Math, Vec<Dtype>)> {
    let gated = |isa: Isa, math: Math| {
        let dtypes = [Dtype::BF16, Dtype::F16, Dtype::F32].into_iter();
        dtypes.filter(|&dtype| math.gated(isa, dtype).is_some()).collect::<Vec<_>>()
    };
    let all = all_math().into_iter().map(|(isa, math)| (isa, math, gated(isa, math)));
    all.inspect(|(isa, math, dtypes)| assert!(!dtypes.is_empty(), "{}", name(*isa, *math))).collect()
}

#[test]
fn a_gate_has_the_bits_of_the_matmul_and_gate_mul() {
    let all_threads = all_threads();
    for (isa, math, dtypes) in gating() {
        for (i, (m, ffn, k)) in GATE_SHAPES.into_iter().enumerate() {
            let dtype = dtypes[i % dtypes.len()];
            let problem = Problem::new((m, 2 * ffn, k), dtype);
            for bias in [false, true] {
                let expected = problem.expected_of_gate(isa, &all_threads[0], math, bias);
                for threads in &all_threads {
                    let got = problem.run(isa, threads, math, Store::Gated(Gate::Silu), bias);
                    let what = format!(
                        "{} {m} x {ffn} x {k} {dtype:?} bias {bias} {} threads",
                        name(isa, math),
                        threads.count()
                    );
                    assert_same_bits(&got, &expected, problem.n + OUT_GAP, &what);
                }
            }
        }
    }
    if !Isa::available().into_iter().any(|isa| isa.matrix_unit().is_some()) {
        not_run("gates by AMX's tiles (their emulation was run)", "amx");
    }
}

#[test]
fn gate_and_up_may_be_in_two_segments() {
    let threads = Threads::new(2).unwrap();
    for (isa, math, _) in gating() {
        // Cut between gate and up, and in the middle of either.
        for (ffn, first) in [(47, 47), (64, 64), (47, 20), (47, 70)] {
            let problem = Problem::new((37, 2 * ffn, 300), Dtype::BF16);
            let expected = problem.expected_of_gate(isa, &threads, math, true);
            let stride = problem.k + W_GAP;
            let elsewhere = [&[0; 3], &problem.bytes[1 + 2 * first * stride..]].concat();
            let segment = |bytes, rows| WeightView::new(bytes, problem.dtype, rows, problem.k, stride);
            let weight =
                segment(&problem.bytes[1..], first).followed_by(segment(&elsewhere[3..], 2 * ffn - first));
            let mut out = problem.out.clone();
            let operands = Gemm {
                x: Rows::new(&problem.x, problem.m, problem.k, problem.k + X_GAP).into(),
                weight: weight.unwrap(),
                bias: Some(&problem.bias),
                store: Store::Gated(Gate::Silu),
                math,
            };
            match math.gated(isa, problem.dtype).unwrap() {
                Layout::Rows => {
                    let rows = RowsMut::new(&mut out, problem.m, ffn, problem.n + OUT_GAP);
                    gemm(isa, &threads, &operands, rows);
                }
                Layout::Strips(format) => {
                    let strips = problem.gated_strips(isa, &threads, &operands, format);
                    problem.unpack(format, &strips, &mut out);
                }
            }
            let what = format!("{} {ffn} cut at {first}", name(isa, math));
            assert_same_bits(&out, &expected, problem.n + OUT_GAP, &what);
        }
    }
}

#[test]
fn a_gate_keeps_a_nan_in_its_row_and_its_column() {
    let threads = Threads::new(2).unwrap();
    for (isa, math, _) in gating() {
        let ffn = 37;
        // A row of gate or of up, the last ones too, beside which a panel has repeated rows.
        for row in [3, ffn - 1, ffn, ffn + 20, 2 * ffn - 1] {
            let mut problem = Problem::new((11, 2 * ffn, 70), Dtype::BF16);
            let clean = problem.run(isa, &threads, math, Store::Gated(Gate::Silu), false);
            problem.x[4 * (problem.k + X_GAP) + 69] = f32::NAN;
            let at = 1 + (row * (problem.k + W_GAP) + 3) * 2;
            problem.bytes[at..at + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
            let got = problem.run(isa, &threads, math, Store::Gated(Gate::Silu), false);
            for m in 0..problem.m {
                for n in 0..ffn {
                    let at = m * (problem.n + OUT_GAP) + n;
                    let (touched, what) =
                        (m == 4 || n == row % ffn, format!("{} [{m}, {n}]", name(isa, math)));
                    assert_eq!(got[at].is_nan(), touched, "{what}, row {row}");
                    assert!(touched || got[at].to_bits() == clean[at].to_bits(), "{what}, row {row}");
                }
            }
        }
    }
}

/// The next GEMM reads a gate's strips, in any cut into blocks, as it reads rows.
#[test]
fn strips_are_multiplied_as_the_rows_that_they_hold() {
    let all_threads = all_threads();
    for (isa, math) in all_math() {
        let Some(Layout::Strips(format)) = math.gated(isa, Dtype::BF16) else { continue };
        for (m, width, n, k) in [(1, 5, 9, 3), (70, 33, 50, 40), (33, 1301, 70, 20), (210, 96, 31, 12)] {
            let gate = Problem::new((m, 2 * width, k), Dtype::BF16);
            let operands = gate.operands(0..m, 0..2 * width, math, Store::Gated(Gate::Silu), true);
            let strips = gate.gated_strips(isa, &all_threads[0], &operands, format);
            let mut rows = vec![0.0; m * (2 * width + OUT_GAP)];
            gate.unpack(format, &strips, &mut rows);
            let mut next = Problem::new((m, n, width), [Dtype::BF16, Dtype::F32][m % 2]);
            for (x, row) in next.x.chunks_mut(width + X_GAP).zip(rows.chunks(2 * width + OUT_GAP)) {
                x[..width].copy_from_slice(&row[..width]);
            }
            let expected = next.run(isa, &all_threads[0], math, Store::Add, true);
            for threads in &all_threads {
                let mut out = next.out.clone();
                let operands = Gemm {
                    x: Input::Strips(Strips::new(&strips, m, width, format)),
                    ..next.operands(0..m, 0..n, math, Store::Add, true)
                };
                gemm(isa, threads, &operands, RowsMut::new(&mut out, m, n, n + OUT_GAP));
                let what = format!("{} {m} x {n} x {width}, {} threads", name(isa, math), threads.count());
                assert_same_bits(&out, &expected, n + OUT_GAP, &what);
            }
        }
    }
}

#[test]
#[should_panic(expected = "another layout")]
fn a_matrix_unit_does_not_gate_other_weights_in_f32() {
    let threads = Threads::new(1).unwrap();
    let (isa, math, _) = gating().into_iter().find(|found| found.2 == [Dtype::BF16]).unwrap();
    Problem::new((2, 8, 4), Dtype::F16).run(isa, &threads, math, Store::Gated(Gate::Silu), false);
}

#[test]
#[should_panic(expected = "another format")]
fn strips_of_another_format_are_refused() {
    let (threads, isa) = (Threads::new(1).unwrap(), Isa::portable());
    let (problem, format) = (Problem::new((2, 8, 4), Dtype::BF16), StripFormat::of(isa, 2));
    let strips = vec![0.0; format.floats(2, 4)];
    let operands = Gemm {
        x: Input::Strips(Strips::new(&strips, 2, 4, format)),
        ..problem.operands(0..2, 0..8, Math::F32, Store::Replace, false)
    };
    gemm(isa, &threads, &operands, RowsMut::new(&mut problem.out.clone(), 2, 8, 8 + OUT_GAP));
}

#[test]
#[should_panic(expected = "not as many of gate as of up")]
fn a_gate_without_as_many_rows_of_up_is_refused() {
    let threads = Threads::new(1).unwrap();
    let (isa, math, _) = gating().remove(0);
    Problem::new((2, 7, 4), Dtype::BF16).run(isa, &threads, math, Store::Gated(Gate::Silu), false);
}

#[test]
fn gemm_of_an_empty_sum_is_the_bias() {
    let threads = Threads::new(1).unwrap();
    for (isa, math) in f32_math() {
        let problem = Problem::new((3, 20, 0), Dtype::BF16);
        let got = problem.run(isa, &threads, math, Store::Replace, true);
        assert_same_bits(
            &got,
            &problem.expected(Store::Replace, true, |_, _| 0.0),
            problem.n + OUT_GAP,
            "k = 0",
        );
    }
}

#[test]
fn gemm_stays_within_the_scratch_it_states() {
    for (isa, math) in all_math() {
        let threads = Threads::new(1).unwrap();
        threads.reserve(scratch_floats(isa, math));
        let before = threads.scratch_bytes();
        for (shape, dtype) in
            [((530, 200, 20), Dtype::F16), ((3, 100, 800), Dtype::F16), ((300, 800, 800), Dtype::BF16)]
        {
            let problem = Problem::new(shape, dtype);
            problem.run(isa, &threads, math, Store::Replace, false);
            if math.gated(isa, dtype).is_some() {
                problem.run(isa, &threads, math, Store::Gated(Gate::Silu), false);
            }
        }
        assert_eq!(threads.scratch_bytes(), before, "{}", name(isa, math));
    }
}
