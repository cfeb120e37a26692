//! Row operations against naive f64 ones, and independence of every bit from how they ran.

use super::*;
use crate::backend::cpu::testing::{Random, Worst, all_threads, assert_same_bits};

/// tokens, width: one of each, tails of every vector, more than one chunk.
const SHAPES: [(usize, usize); 7] = [(1, 1), (1, 64), (3, 17), (2, 576), (5, 1001), (40, 4096), (300, 100)];

const GAP: usize = 3;

/// Largest errors relative to the exact value: measured 2.9e-7, 1.8e-7, 1.3e-7, 3.3e-7; twice that.
const NORM_ERROR: f64 = 6e-7;
const SILU_ERROR: f64 = 3.6e-7;
const GELU_ERROR: f64 = 4e-7;
const ROPE_ERROR: f64 = 2.6e-7;
const NORMED_ROPE_ERROR: f64 = 6.6e-7;

fn rows_of(random: &mut Random, tokens: usize, width: usize) -> Vec<f32> {
    random.values(tokens * (width + GAP))
}

fn view(values: &mut [f32], tokens: usize, width: usize) -> RowsMut<'_> {
    RowsMut::new(values, tokens, width, width + GAP)
}

#[test]
fn add_rms_norm_matches_naive_f64_on_any_threads() {
    let (all_threads, eps) = (all_threads(), 1e-5f32);
    for (tokens, width) in SHAPES {
        let mut random = Random::new(width as u64);
        let (residual, delta) = (rows_of(&mut random, tokens, width), rows_of(&mut random, tokens, width));
        let (weight, mut worst, mut fused_bits) = (random.values(width), Worst::default(), None);
        for isa in Isa::for_tests() {
            let mut bits = None;
            for threads in &all_threads {
                let (mut sum, mut out) = (residual.clone(), vec![7.0; residual.len()]);
                let rows = Some(Delta { rows: Rows::new(&delta, tokens, width, width + GAP), norm: None });
                let (s, o) = (view(&mut sum, tokens, width), view(&mut out, tokens, width));
                add_rms_norm(isa, threads, s, rows, &weight, eps, o);
                for token in 0..tokens {
                    let start = token * (width + GAP);
                    let (row, gap) = (start..start + width, start + width..start + width + GAP);
                    assert!(out[gap.clone()].iter().all(|x| *x == 7.0) && sum[gap.clone()] == residual[gap]);
                    let exact: Vec<f64> = row.clone().map(|i| f64::from(residual[i] + delta[i])).collect();
                    let mean = exact.iter().map(|x| x * x).sum::<f64>() / width as f64;
                    for (i, x) in exact.iter().enumerate() {
                        let expected = x / (mean + f64::from(eps)).sqrt() * f64::from(weight[i]);
                        worst.record(out[start + i], expected, expected.abs(), || format!("[{token}, {i}]"));
                    }
                }
                let bits = bits.get_or_insert_with(|| out.clone());
                assert_same_bits(&out, bits, width + GAP, &format!("{} threads", threads.count()));
            }
            if Isa::fused_for_tests().contains(&isa) {
                let bits = bits.unwrap();
                assert_same_bits(
                    &bits,
                    fused_bits.get_or_insert_with(|| bits.clone()),
                    width + GAP,
                    isa.name(),
                );
            }
        }
        worst.assert_within(NORM_ERROR, &format!("add_rms_norm [{tokens}, {width}]"));
    }
}

#[test]
fn a_delta_is_normed_before_it_is_added() {
    let (threads, eps) = (Threads::new(2).unwrap(), 1e-5f32);
    for (tokens, width) in SHAPES {
        let mut random = Random::new(width as u64 + 2);
        let (residual, delta) = (rows_of(&mut random, tokens, width), rows_of(&mut random, tokens, width));
        let (norm, weight) = (random.values(width), random.values(width));
        let (mut worst_sum, mut worst) = (Worst::default(), Worst::default());
        let normed = |row: &[f64], weight: &[f32]| -> Vec<f64> {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
            let root = (mean + f64::from(eps)).sqrt();
            row.iter().zip(weight).map(|(x, weight)| x / root * f64::from(*weight)).collect()
        };
        for isa in Isa::for_tests() {
            let (mut sum, mut out) = (residual.clone(), vec![7.0; residual.len()]);
            let rows = Rows::new(&delta, tokens, width, width + GAP);
            let (s, o) = (view(&mut sum, tokens, width), view(&mut out, tokens, width));
            add_rms_norm(isa, &threads, s, Some(Delta { rows, norm: Some(&norm) }), &weight, eps, o);
            for token in 0..tokens {
                let row = token * (width + GAP)..token * (width + GAP) + width;
                let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
                let delta = normed(&wide(&delta[row.clone()]), &norm);
                let stored = wide(&sum[row.clone()]);
                for (i, x) in stored.iter().enumerate() {
                    let (before, added) = (f64::from(residual[row.start + i]), delta[i]);
                    worst_sum.record(*x as f32, before + added, before.abs() + added.abs(), || {
                        format!("sum [{token}, {i}]")
                    });
                }
                for (i, expected) in normed(&stored, &weight).into_iter().enumerate() {
                    let got = out[row.start + i];
                    worst.record(got, expected, expected.abs(), || format!("[{token}, {i}]"));
                }
            }
        }
        worst_sum.assert_within(NORM_ERROR, &format!("the sum [{tokens}, {width}]"));
        worst.assert_within(NORM_ERROR, &format!("add_rms_norm [{tokens}, {width}]"));
    }
}

#[test]
fn add_rms_norm_without_a_delta_leaves_the_residual() {
    let threads = Threads::new(2).unwrap();
    for isa in Isa::for_tests() {
        let mut random = Random::new(5);
        let (residual, weight) = (rows_of(&mut random, 9, 50), random.values(50));
        let zero = vec![0.0; residual.len()];
        let (mut sum, mut out) = (residual.clone(), zero.clone());
        add_rms_norm(isa, &threads, view(&mut sum, 9, 50), None, &weight, 1e-6, view(&mut out, 9, 50));
        assert_same_bits(&sum, &residual, 53, "residual");
        let (mut sum, mut out_zero) = (residual.clone(), zero.clone());
        let delta = Some(Delta { rows: Rows::new(&zero, 9, 50, 53), norm: None });
        add_rms_norm(isa, &threads, view(&mut sum, 9, 50), delta, &weight, 1e-6, view(&mut out_zero, 9, 50));
        assert_same_bits(&out, &out_zero, 53, "a delta of zero");
    }
}

#[test]
fn add_rms_norm_keeps_large_rows_finite_and_a_nan_in_its_row() {
    let threads = Threads::new(3).unwrap();
    for isa in Isa::for_tests() {
        let mut rows = vec![1e15f32; 3 * 103];
        rows[103 + 4] = f32::NAN;
        let (weight, mut out) = (vec![1.0; 100], vec![0.0; 3 * 103]);
        add_rms_norm(isa, &threads, view(&mut rows, 3, 100), None, &weight, 1e-5, view(&mut out, 3, 100));
        assert!(out[..100].iter().chain(&out[206..306]).all(|x| (x - 1.0).abs() < 1e-6), "{}", isa.name());
        assert!(out[103..203].iter().all(|x| x.is_nan()), "{}", isa.name());
    }
}

#[test]
fn gate_mul_matches_naive_f64_and_leaves_up() {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    assert_gate_mul(Gate::Silu, SILU_ERROR, silu, |_, expected| expected.abs());
    let gelu = |x: f64| {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        x / 2.0 * (1.0 + u.tanh())
    };
    // The error is relative to x * up: far below 0, that of the exponent grows with x^3.
    assert_gate_mul(Gate::GeluTanh, GELU_ERROR, gelu, |product, _| product.abs());
}

fn assert_gate_mul(gate: Gate, error: f64, function: fn(f64) -> f64, size: fn(f64, f64) -> f64) {
    let all_threads = all_threads();
    for (tokens, ffn) in SHAPES {
        let mut random = Random::new(ffn as u64 + 1);
        let before = rows_of(&mut random, tokens, 2 * ffn);
        let (mut worst, mut fused_bits) = (Worst::default(), None);
        for isa in Isa::for_tests() {
            for threads in &all_threads {
                let mut rows = before.clone();
                gate_mul(isa, threads, gate, view(&mut rows, tokens, 2 * ffn));
                for token in 0..tokens {
                    let start = token * (2 * ffn + GAP);
                    for i in start..start + ffn {
                        let (gate, up) = (f64::from(before[i]), f64::from(before[i + ffn]));
                        let expected = function(gate) * up;
                        worst.record(rows[i], expected, size(gate * up, expected), || {
                            format!("[{token}, {}]: {gate}", i - start)
                        });
                    }
                    let rest = start + ffn..start + 2 * ffn + GAP;
                    assert_same_bits(&rows[rest.clone()], &before[rest], ffn, "up and the gap");
                }
                if Isa::fused_for_tests().contains(&isa) {
                    let bits = fused_bits.get_or_insert_with(|| rows.clone());
                    assert_same_bits(&rows, bits, 2 * ffn + GAP, isa.name());
                }
            }
        }
        worst.assert_within(error, &format!("gate_mul of {gate:?} [{tokens}, {ffn}]"));
    }
}

#[test]
fn gate_mul_of_far_values_is_zero_or_the_product() {
    let threads = Threads::new(1).unwrap();
    for (isa, gate) in Isa::for_tests().into_iter().flat_map(|isa| [(isa, Gate::Silu), (isa, Gate::GeluTanh)])
    {
        let mut row = [-200.0, 200.0, -1e30, 1e30, 0.0, f32::NAN, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0];
        gate_mul(isa, &threads, gate, RowsMut::new(&mut row, 1, 12, 12));
        assert_eq!(row[..5], [0.0, 400.0, 0.0, 2e30, 0.0], "{}", isa.name());
        assert!(row[5].is_nan(), "{}", isa.name());
    }
}

/// Queries have one weight and keys another; `v` at the end of a row has none.
#[test]
fn heads_are_normed_before_they_are_rotated() {
    let eps = 1e-3;
    for (tokens, queries, keys, head_dim) in [(1, 1, 1, 2), (5, 2, 1, 20), (9, 4, 2, 128), (3, 0, 2, 64)] {
        let (half, heads, mut random) = (head_dim / 2, queries + keys, Random::new(head_dim as u64));
        let width = (heads + 1) * head_dim;
        let before = rows_of(&mut random, tokens, width);
        let mut values = |count: usize| -> Vec<f32> { (0..count).map(|_| random.value()).collect() };
        let (angles, weights) = (values(half), [values(head_dim), values(head_dim)]);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let table = RopeTable { cos: Rows::new(&cos, 1, half, half), sin: Rows::new(&sin, 1, half, half) };
        let norms = HeadNorms { weights: [&weights[0], &weights[1]], queries, eps };
        let (mut worst, mut fused_bits) = (Worst::default(), None);
        for isa in Isa::for_tests() {
            for threads in &all_threads() {
                let mut rows = before.clone();
                let positions = vec![0; tokens];
                rope(isa, threads, view(&mut rows, tokens, width), heads, Some(norms), table, &positions);
                for (token, head) in (0..tokens).flat_map(|token| (0..heads).map(move |head| (token, head))) {
                    let start = token * (width + GAP) + head * head_dim;
                    let row: Vec<f64> = before[start..start + head_dim].iter().map(|&x| x.into()).collect();
                    let mean = row.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
                    let weight = &weights[usize::from(head >= queries)];
                    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                    let normed: Vec<f64> =
                        row.iter().zip(weight).map(|(x, &w)| x * scale * f64::from(w)).collect();
                    for i in 0..half {
                        let (a, b) = (normed[i], normed[half + i]);
                        let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
                        let size = a.abs().max(b.abs());
                        worst.record(rows[start + i], a * cos - b * sin, size, || {
                            format!("a [{token}, {head}]")
                        });
                        worst.record(rows[start + half + i], b * cos + a * sin, size, || {
                            format!("b [{token}, {head}]")
                        });
                    }
                }
                let rest = heads * head_dim..width;
                assert_same_bits(&rows[rest.clone()], &before[rest], head_dim, "v");
                if Isa::fused_for_tests().contains(&isa) {
                    let bits = fused_bits.get_or_insert_with(|| rows.clone());
                    assert_same_bits(&rows, bits, width + GAP, isa.name());
                }
            }
        }
        worst.assert_within(NORMED_ROPE_ERROR, &format!("rope with norms {heads} x {head_dim}"));
    }
}

#[test]
fn rope_matches_naive_f64_and_rotates_nothing_else() {
    let all_threads = all_threads();
    for (tokens, heads, head_dim) in
        [(1, 1, 2), (3, 12, 64), (5, 2, 20), (40, 10, 128), (7, 3, 36), (130, 4, 6)]
    {
        let (half, mut random) = (head_dim / 2, Random::new(head_dim as u64));
        let (before, positions_max) = (rows_of(&mut random, tokens, heads * head_dim), 50);
        let angles: Vec<f32> = (0..positions_max * half).map(|_| random.value()).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let positions: Vec<u32> = (0..tokens).map(|_| random.below(positions_max) as u32).collect();
        let table = RopeTable {
            cos: Rows::new(&cos, positions_max, half, half),
            sin: Rows::new(&sin, positions_max, half, half),
        };
        // One head less than a row has: the last, as v in q | k | v, stays.
        let rotated = heads - usize::from(heads > 1);
        let (mut worst, mut fused_bits) = (Worst::default(), None);
        for isa in Isa::for_tests() {
            for threads in &all_threads {
                let mut rows = before.clone();
                rope(
                    isa,
                    threads,
                    view(&mut rows, tokens, heads * head_dim),
                    rotated,
                    None,
                    table,
                    &positions,
                );
                for token in 0..tokens {
                    let start = token * (heads * head_dim + GAP);
                    for (head, i) in (0..rotated).flat_map(|head| (0..half).map(move |i| (head, i))) {
                        let (a_at, b_at) = (start + head * head_dim + i, start + head * head_dim + half + i);
                        let (a, b) = (f64::from(before[a_at]), f64::from(before[b_at]));
                        let at = positions[token] as usize * half + i;
                        let (cos, sin) = (f64::from(cos[at]), f64::from(sin[at]));
                        let scale = a.abs().max(b.abs());
                        worst.record(rows[a_at], a * cos - b * sin, scale, || {
                            format!("a [{token}, {head}, {i}]")
                        });
                        worst.record(rows[b_at], b * cos + a * sin, scale, || {
                            format!("b [{token}, {head}, {i}]")
                        });
                    }
                    let rest = start + rotated * head_dim..start + heads * head_dim + GAP;
                    assert_same_bits(&rows[rest.clone()], &before[rest], head_dim, "v and the gap");
                }
                if Isa::fused_for_tests().contains(&isa) {
                    let bits = fused_bits.get_or_insert_with(|| rows.clone());
                    assert_same_bits(&rows, bits, heads * head_dim + GAP, isa.name());
                }
            }
        }
        worst.assert_within(ROPE_ERROR, &format!("rope {heads} x {head_dim}"));
    }
}
