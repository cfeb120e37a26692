//! Products against naive ones: f64 for closeness, one scalar chain in the order of k for the bits.

use super::*;
use crate::backend::cpu::testing::{Random, Worst, all_threads, assert_same_bits, not_run};

/// Largest error relative to the sum of |x * w|, |bias| and |out|: measured 1.15e-6 (k = 1,537 with outliers, products
/// rounded first); twice that.
const ERROR: f64 = 2.3e-6;

/// m, n, k: one of each, odd ones, tails of every tile, several blocks of k, a cut-down 70B row.
const SHAPES: [(usize, usize, usize); 14] = [
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
];

/// A problem in memory as awkward as it comes: weight bytes at an odd address, strides wider than rows.
struct Problem {
    m: usize,
    n: usize,
    k: usize,
    x: Vec<f32>,
    bytes: Vec<u8>,
    /// What the bytes say, `[n, k]`.
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
        self.run_part(isa, threads, math, store, bias, 0..self.m, 0..self.n, &mut out);
        out
    }

    /// Rows `rows` and columns `columns` of the product.
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
        let (x_stride, w_stride, out_stride) = (self.k + X_GAP, self.k + W_GAP, self.n + OUT_GAP);
        let bytes = &self.bytes[1 + columns.start * w_stride * self.dtype.size()..];
        let operands = Gemm {
            x: Rows::new(&self.x[rows.start * x_stride..], rows.len(), self.k, x_stride),
            weight: WeightView::new(bytes, self.dtype, columns.len(), self.k, w_stride),
            bias: bias.then_some(&self.bias[columns.clone()]),
            store,
            math,
        };
        let out = &mut out[rows.start * out_stride + columns.start..];
        gemm(isa, threads, &operands, RowsMut::new(out, rows.len(), columns.len(), out_stride));
    }

    /// `out` as it must be when `sum(m, n)` is the product.
    fn expected(&self, store: Store, bias: bool, sum: impl Fn(&[f32], &[f32]) -> f32) -> Vec<f32> {
        let mut out = self.out.clone();
        for m in 0..self.m {
            for n in 0..self.n {
                let x = &self.x[m * (self.k + X_GAP)..][..self.k];
                let mut value = sum(x, &self.weight[n * self.k..][..self.k]);
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

/// VDPBF16PS as its manual describes it, on inputs rounded to bfloat16: the upper of a pair first, subnormals as zero.
fn pair_chain(x: &[f32], w: &[f32]) -> f32 {
    let flush = |x: f32| if x.is_subnormal() { 0.0 } else { x };
    let round = |x: f32| flush(half::bf16::from_f32(flush(x)).to_f32());
    x.chunks(2).zip(w.chunks(2)).fold(0.0, |sum, (x, w)| {
        let upper = if x.len() == 2 { flush(round(x[1]).mul_add(round(w[1]), sum)) } else { sum };
        flush(round(x[0]).mul_add(round(w[0]), upper))
    })
}

#[test]
fn gemm_matches_naive_f64_for_every_dtype_and_instruction_set() {
    let threads = Threads::new(2).unwrap();
    for isa in Isa::for_tests() {
        let mut worst = Worst::default();
        for shape in SHAPES {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let problem = Problem::new(shape, dtype);
                let got = problem.run(isa, &threads, Math::F32, Store::Add, true);
                for m in 0..problem.m {
                    for n in 0..problem.n {
                        let x = &problem.x[m * (problem.k + X_GAP)..][..problem.k];
                        let w = &problem.weight[n * problem.k..][..problem.k];
                        let products = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                        let at = m * (problem.n + OUT_GAP) + n;
                        let rest = [f64::from(problem.bias[n]), f64::from(problem.out[at])];
                        let expected = products().sum::<f64>() + rest[0] + rest[1];
                        let scale = products().map(f64::abs).sum::<f64>() + rest[0].abs() + rest[1].abs();
                        worst.see(got[at], expected, scale, || format!("{shape:?} {dtype:?} [{m}, {n}]"));
                    }
                }
            }
        }
        worst.assert_within(ERROR, isa.name());
    }
}

/// The strongest statement: no tile, tail, block, thread or instruction set shows in any bit, and nothing is written
/// between the rows.
#[test]
fn gemm_has_the_bits_of_one_chain_in_the_order_of_k() {
    let all_threads = all_threads();
    let fused = Isa::fused_for_tests();
    for isa in Isa::for_tests() {
        let chain = if fused.contains(&isa) { fused_chain } else { separate_chain };
        for (i, shape) in SHAPES.into_iter().enumerate() {
            let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][i % 3];
            let problem = Problem::new(shape, dtype);
            for (store, bias) in [(Store::Replace, false), (Store::Add, true)] {
                let expected = problem.expected(store, bias, chain);
                for threads in &all_threads {
                    let got = problem.run(isa, threads, Math::F32, store, bias);
                    let what = format!("{} {shape:?} {dtype:?} {} threads", isa.name(), threads.count());
                    assert_same_bits(&got, &expected, problem.n + OUT_GAP, &what);
                }
            }
        }
    }
}

#[test]
fn gemm_gives_the_same_bits_for_any_cut_of_rows_and_columns() {
    let threads = Threads::new(2).unwrap();
    for isa in Isa::for_tests() {
        let problem = Problem::new((29, 131, 300), Dtype::BF16);
        let whole = problem.run(isa, &threads, Math::F32, Store::Replace, true);
        for (m_cut, n_cut) in [(1, 1), (7, 64), (28, 130), (13, 47)] {
            let mut pieces = problem.out.clone();
            for rows in [0..m_cut, m_cut..problem.m] {
                for columns in [0..n_cut, n_cut..problem.n] {
                    let (rows, store) = (rows.clone(), Store::Replace);
                    problem.run_part(isa, &threads, Math::F32, store, true, rows, columns, &mut pieces);
                }
            }
            assert_same_bits(&pieces, &whole, problem.n + OUT_GAP, isa.name());
        }
    }
}

#[test]
fn gemm_keeps_a_nan_in_its_row_and_its_column() {
    let threads = Threads::new(2).unwrap();
    for isa in Isa::for_tests() {
        let mut problem = Problem::new((11, 53, 70), Dtype::F32);
        let clean = problem.run(isa, &threads, Math::F32, Store::Replace, false);
        problem.x[4 * (problem.k + X_GAP) + 69] = f32::NAN;
        let column_at = 1 + (52 * (problem.k + W_GAP) + 3) * 4;
        problem.bytes[column_at..column_at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
        let got = problem.run(isa, &threads, Math::F32, Store::Replace, false);
        for m in 0..problem.m {
            for n in 0..problem.n {
                let at = m * (problem.n + OUT_GAP) + n;
                let (touched, what) = (m == 4 || n == 52, format!("{} [{m}, {n}]", isa.name()));
                assert_eq!(got[at].is_finite(), !touched, "{what}");
                assert!(touched || got[at] == clean[at], "{what}");
            }
        }
    }
}

#[test]
fn bf16_gemm_has_the_bits_of_the_instruction_s_documented_arithmetic() {
    let all_threads = all_threads();
    for isa in Isa::for_tests() {
        let Some(bf16) = isa.bf16() else { continue };
        for (i, shape) in SHAPES.into_iter().enumerate() {
            let dtype = [Dtype::BF16, Dtype::F16, Dtype::F32][i % 3];
            let problem = Problem::new(shape, dtype);
            let expected = problem.expected(Store::Add, true, pair_chain);
            for threads in &all_threads {
                let got = problem.run(isa, threads, Math::Bf16(bf16), Store::Add, true);
                let what = format!("{} {shape:?} {dtype:?} {} threads", bf16.name(), threads.count());
                assert_same_bits(&got, &expected, problem.n + OUT_GAP, &what);
            }
        }
    }
    if !Isa::available().into_iter().any(|isa| isa.bf16().is_some()) {
        not_run("bf16 products by VDPBF16PS (their emulation was run)", "avx512-bf16");
    }
}

#[test]
fn gemm_of_an_empty_sum_is_the_bias() {
    let threads = Threads::new(1).unwrap();
    for isa in Isa::for_tests() {
        let problem = Problem::new((3, 20, 0), Dtype::F32);
        let got = problem.run(isa, &threads, Math::F32, Store::Replace, true);
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
    for isa in Isa::for_tests() {
        let maths = std::iter::once(Math::F32).chain(isa.bf16().map(Math::Bf16));
        for math in maths {
            let threads = Threads::new(1).unwrap();
            threads.reserve(scratch_floats(isa, math));
            let before = threads.scratch_bytes();
            for shape in [(530, 200, 20), (3, 100, 800)] {
                Problem::new(shape, Dtype::F16).run(isa, &threads, math, Store::Replace, false);
            }
            assert_eq!(threads.scratch_bytes(), before, "{} {math:?}", isa.name());
        }
    }
}
