//! The memory-bound kernels.

use kudos::ErrorKind;
use kudos::internals::backend::cuda::format::ActivationFormat;
use kudos::internals::backend::cuda::gemm::Share;
use kudos::internals::backend::cuda::ops::{
    AddParts, AddRmsNorm, Attention, Delta, DigestRows, GateMul, GatherRows, HeadNorms, Heads, Norm, Ops,
    Rope, RopeTables, Score, SeamTiles,
};
use kudos::internals::backend::cuda::staging::Staging;
use kudos::internals::backend::cuda::tables::{DeviceTables, HostTables};
use kudos::internals::backend::cuda::tiles::{NO_ROW, WorkItem};
use kudos::internals::config::Gate;

use crate::numbers::{Random, assert_close, download, half_ulp, round, tables, upload, upload_raw, value};
use crate::{Gpu, Test};

pub(crate) const TESTS: &[Test] = &[
    ("add_rms_norm_matches_naive", add_rms_norm_matches_naive),
    (
        "add_rms_norm_adds_parts_in_order_with_one_rounding",
        add_rms_norm_adds_parts_in_order_with_one_rounding,
    ),
    ("add_parts_has_the_bits_of_add_rms_norm", add_parts_has_the_bits_of_add_rms_norm),
    ("add_parts_refuses_what_it_cannot_do", add_parts_refuses_what_it_cannot_do),
    ("digests_are_those_of_the_rows_and_tell_bits_apart", digests_are_those_of_the_rows_and_tell_bits_apart),
    ("add_rms_norm_of_some_rows_leaves_the_others_alone", add_rms_norm_of_some_rows_leaves_the_others_alone),
    ("add_rms_norm_refuses_widths_that_it_cannot_do", add_rms_norm_refuses_widths_that_it_cannot_do),
    ("add_branch_rms_norm_matches_naive", add_branch_rms_norm_matches_naive),
    (
        "add_branch_rms_norm_of_a_row_does_not_depend_on_others",
        add_branch_rms_norm_of_a_row_does_not_depend_on_others,
    ),
    ("rope_has_the_bits_of_three_roundings", rope_has_the_bits_of_three_roundings),
    ("rope_norms_heads_and_then_rotates_them", rope_norms_heads_and_then_rotates_them),
    ("gate_mul_matches_naive", gate_mul_matches_naive),
    ("gate_mul_is_exact_at_the_ends_of_the_format", gate_mul_is_exact_at_the_ends_of_the_format),
    ("gather_rows_copies_rows", gather_rows_copies_rows),
    ("score_matches_naive", score_matches_naive),
    ("seam_tiles_copy_keys_and_values_and_nothing_else", seam_tiles_copy_keys_and_values_and_nothing_else),
    ("fill_normal_has_the_bits_of_philox", fill_normal_has_the_bits_of_philox),
    ("indices_that_leave_a_buffer_are_refused", indices_that_leave_a_buffer_are_refused),
    ("tables_that_were_replaced_are_refused", tables_that_were_replaced_are_refused),
];

/// Rows and widths: one row, odd counts, one thread's work, a part of a step, several steps, the
/// largest.
const SHAPES: [(usize, usize); 7] = [(1, 64), (3, 8), (5, 136), (2, 1000), (3, 2048), (1, 2056), (2, 8192)];

/// Downloads the residual stream.
fn residual(ops: &Ops, raw: &kudos::internals::backend::cuda::buffer::DeviceBuffer) -> Vec<f64> {
    match ops.format() {
        ActivationFormat::Bf16 => download(ops, raw),
        ActivationFormat::F16 => {
            let raw: Vec<f32> = raw.all().download(ops.context().compute()).unwrap();
            raw.into_iter().map(f64::from).collect()
        }
    }
}

fn upload_residual(ops: &Ops, numbers: &[f64]) -> kudos::internals::backend::cuda::buffer::DeviceBuffer {
    match ops.format() {
        ActivationFormat::Bf16 => upload(ops, numbers),
        ActivationFormat::F16 => {
            upload_raw(ops, &numbers.iter().map(|&number| number as f32).collect::<Vec<_>>())
        }
    }
}

/// `norm(x) * weight` of one row, rounded where Hugging Face rounds.
fn naive_norm(format: ActivationFormat, x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| round(format, round(format, x * scale) * weight)).collect()
}

fn add_rms_norm_matches_naive(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let format = gpu.format;
    let add = |x: f64, d: f64| match format {
        ActivationFormat::Bf16 => round(format, x + d),
        ActivationFormat::F16 => f64::from((x + d) as f32),
    };
    for (tokens, hidden) in SHAPES {
        // The last: a norm far above the range of an fp16 stream.
        for (scale, with_delta) in [(1.0, true), (1.0, false), (1e-3, true), (3e3, true)] {
            let what = format!("{tokens} x {hidden}, scale {scale}, delta {with_delta}");
            let mut random = Random::new(hidden as u64);
            let x = random.residual_rows(format, tokens * hidden, scale);
            let delta = random.residual_rows(format, tokens * hidden, scale);
            let weight = random.rows(format, hidden, 1.0);
            let mut stream = upload_residual(&ops, &x);
            let delta_rows = upload_residual(&ops, &delta);
            let mut out = ops.context().allocate(tokens * hidden * gpu.format.bytes()).unwrap();
            let weights = upload(&ops, &weight);
            ops.add_rms_norm(AddRmsNorm {
                residual: &mut stream,
                delta: if with_delta { Delta::In(delta_rows.all()) } else { Delta::None },
                norm: Norm::Scale,
                weight: weights.all(),
                out: &mut out,
                first_row: 0,
                tokens,
                hidden,
                eps: 1e-5,
            })
            .unwrap();
            let sum: Vec<f64> =
                x.iter().zip(&delta).map(|(&x, &d)| if with_delta { add(x, d) } else { x }).collect();
            assert_eq!(residual(&ops, &stream), sum, "{what}: the residual stream");
            let want: Vec<f64> = sum
                .chunks(hidden)
                .flat_map(|row| naive_norm(format, row, &weight, f64::from(1e-5_f32)))
                .collect();
            // The quotient is rounded in f32 first, as a multiple of the reciprocal: where that
            // decides how it is rounded to the format, the result moves by that and by its own
            // rounding. Seen: 5 elements of 10,000, 2.2 half ulps.
            let bound = |i: usize| 3.0 * half_ulp(format) * want[i].abs() + 1e-7;
            assert_close(&what, hidden, &download(&ops, &out), &want, 1e-3, bound);
        }
    }
}

fn add_rms_norm_adds_parts_in_order_with_one_rounding(gpu: &Gpu) {
    let ops = gpu.ops(64);
    for (tokens, hidden, parts) in [(3, 264, 2), (2, 1000, 3), (1, 64, 8), (2, 8, 1)] {
        let mut random = Random::new(parts as u64);
        let numbers = tokens * hidden;
        let x = random.residual_rows(gpu.format, numbers, 1.0);
        let delta = random.residual_rows(gpu.format, parts * numbers, 1.0);
        let mut stream = upload_residual(&ops, &x);
        let delta_parts = upload_residual(&ops, &delta);
        let weight = upload(&ops, &random.rows(gpu.format, hidden, 1.0));
        let mut out = ops.context().allocate(numbers * gpu.format.bytes()).unwrap();
        ops.add_rms_norm(AddRmsNorm {
            residual: &mut stream,
            delta: Delta::Parts(delta_parts.all(), parts),
            norm: Norm::Scale,
            weight: weight.all(),
            out: &mut out,
            first_row: 0,
            tokens,
            hidden,
            eps: 1e-5,
        })
        .unwrap();
        let sum_of =
            |i: usize| (0..parts).fold(x[i] as f32, |sum, part| sum + delta[part * numbers + i] as f32);
        let want: Vec<f64> = (0..numbers)
            .map(|i| match gpu.format {
                ActivationFormat::Bf16 => round(gpu.format, f64::from(sum_of(i))),
                ActivationFormat::F16 => f64::from(sum_of(i)),
            })
            .collect();
        assert_eq!(residual(&ops, &stream), want, "{tokens} x {hidden}, {parts} parts");
    }
}

fn add_rms_norm_of_some_rows_leaves_the_others_alone(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let (tokens, hidden) = (7, 136);
    let mut random = Random::new(9);
    let x = random.residual_rows(gpu.format, tokens * hidden, 1.0);
    let delta = upload_residual(&ops, &random.residual_rows(gpu.format, tokens * hidden, 1.0));
    let weight = upload(&ops, &random.rows(gpu.format, hidden, 1.0));
    // Runs of rows, one after the other.
    let run = |runs: &[std::ops::Range<usize>]| {
        let (mut stream, mut out) = (upload_residual(&ops, &x), upload(&ops, &vec![7.0; tokens * hidden]));
        for rows in runs {
            ops.add_rms_norm(AddRmsNorm {
                residual: &mut stream,
                delta: Delta::In(delta.all()),
                norm: Norm::Scale,
                weight: weight.all(),
                out: &mut out,
                first_row: rows.start,
                tokens: rows.len(),
                hidden,
                eps: 1e-5,
            })
            .unwrap();
        }
        (residual(&ops, &stream), download(&ops, &out))
    };
    let whole = run(std::slice::from_ref(&(0..tokens)));
    assert_eq!(run(&[0..2, 2..3, 3..tokens]), whole);
    let (stream, out) = run(std::slice::from_ref(&(2..5)));
    let part = 2 * hidden..5 * hidden;
    assert_eq!((&stream[part.clone()], &out[part.clone()]), (&whole.0[part.clone()], &whole.1[part]));
    assert_eq!((&stream[..2 * hidden], &stream[5 * hidden..]), (&x[..2 * hidden], &x[5 * hidden..]));
    assert!(out[..2 * hidden].iter().chain(&out[5 * hidden..]).all(|&number| number == 7.0));
}

fn add_rms_norm_refuses_widths_that_it_cannot_do(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let scale = [0, 4, 65, 16_392].map(|hidden| (hidden, Norm::Scale, "`add_rms_norm`"));
    let one_plus = Norm::OnePlus { branch: None };
    let one_plus = [4, 8_200].map(|hidden| (hidden, one_plus, "`add_branch_rms_norm`"));
    for (hidden, norm, kernel) in scale.into_iter().chain(one_plus) {
        let mut stream = ops.context().allocate(1 << 17).unwrap();
        let mut out = ops.context().allocate(1 << 17).unwrap();
        let weight = ops.context().allocate(1 << 17).unwrap();
        let args = AddRmsNorm {
            residual: &mut stream,
            delta: Delta::None,
            norm,
            weight: weight.all(),
            out: &mut out,
            first_row: 0,
            tokens: 1,
            hidden,
            eps: 1e-5,
        };
        let error = ops.add_rms_norm(args).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains(kernel) && error.message().contains("hidden"), "{error}");
    }
    // The weight of a branch must be as wide as the rows.
    let [mut stream, mut out, weight] = [0, 1, 2].map(|_| ops.context().allocate(1 << 10).unwrap());
    let args = AddRmsNorm {
        residual: &mut stream,
        delta: Delta::None,
        norm: Norm::OnePlus { branch: Some(weight.slice(0..126)) },
        weight: weight.all(),
        out: &mut out,
        first_row: 0,
        tokens: 1,
        hidden: 64,
        eps: 1e-6,
    };
    assert_refused(ops.add_rms_norm(args), "add_branch_rms_norm", "the branch's weight");
}

/// `norm(x) * (1 + weight)` of one row, not rounded.
fn naive_one_plus(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x * scale * (1.0 + weight)).collect()
}

fn add_branch_rms_norm_matches_naive(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let format = gpu.format;
    // A row of the residual stream as it is stored.
    let stored = |x: f64| match format {
        ActivationFormat::Bf16 => round(format, x),
        ActivationFormat::F16 => f64::from(x as f32),
    };
    let stored_half_ulp = match format {
        ActivationFormat::Bf16 => half_ulp(format),
        ActivationFormat::F16 => 2f64.powi(-24),
    };
    let cases = [(3, 8), (2, 64), (1, 2304), (2, 3584), (1, 8192)]
        .into_iter()
        .flat_map(|shape| [0, 1, 3].map(|parts| (shape, parts)))
        .flat_map(|(shape, parts)| [false, true].map(|has_branch| (shape, parts, has_branch)));
    for ((tokens, hidden), parts, has_branch) in cases {
        let what = format!("{tokens} x {hidden}, {parts} parts, branch norm {has_branch}");
        let (numbers, eps) = (tokens * hidden, 1e-6_f32);
        let mut random = Random::new((hidden + parts) as u64);
        // Sums of a branch are of another size than the stream.
        let x = random.residual_rows(format, numbers, 4.0);
        let delta = random.residual_rows(format, parts.max(1) * numbers, 30.0);
        let [branch_weight, weight] = [0, 1].map(|_| random.rows(format, hidden, 0.3));
        let (mut stream, delta_parts) = (upload_residual(&ops, &x), upload_residual(&ops, &delta));
        let [branch_weights, weights] = [&branch_weight, &weight].map(|weight| upload(&ops, weight));
        let mut out = ops.context().allocate(numbers * format.bytes()).unwrap();
        ops.add_rms_norm(AddRmsNorm {
            residual: &mut stream,
            delta: match parts {
                0 => Delta::None,
                1 => Delta::In(delta_parts.all()),
                _ => Delta::Parts(delta_parts.all(), parts),
            },
            norm: Norm::OnePlus { branch: has_branch.then(|| branch_weights.all()) },
            weight: weights.all(),
            out: &mut out,
            first_row: 0,
            tokens,
            hidden,
            eps,
        })
        .unwrap();

        let eps = f64::from(eps);
        let part_sum =
            |i: usize| (1..parts).fold(delta[i] as f32, |sum, part| sum + delta[part * numbers + i] as f32);
        let mut added: Vec<f64> = (0..numbers).map(|i| stored(f64::from(part_sum(i)))).collect();
        if has_branch {
            let normed = added.chunks(hidden).flat_map(|row| naive_one_plus(row, &branch_weight, eps));
            added = normed.map(stored).collect();
        }
        let got = residual(&ops, &stream);
        if parts == 0 {
            assert_eq!(got, x, "{what}: the residual stream");
        } else {
            let want: Vec<f64> = x.iter().zip(&added).map(|(x, added)| stored(x + added)).collect();
            // The branch's norm is f32, of a sum of up to 8,192 squares: seldom it rounds to the
            // neighbour of what it should, or, in f32 itself, to one a few units away.
            let (unequal, slack) = match (has_branch, format) {
                (false, _) => (0.0, 0.0),
                (true, ActivationFormat::Bf16) => (2e-3, 2.0),
                (true, ActivationFormat::F16) => (1.0, 16.0),
            };
            let bound = |i: usize| slack * 1.01 * stored_half_ulp * (added[i].abs() + want[i].abs());
            assert_close(&format!("{what}: the residual stream"), hidden, &got, &want, unequal, bound);
        }
        // The last norm is that of the stream as it was stored.
        let want: Vec<f64> = got
            .chunks(hidden)
            .flat_map(|row| naive_one_plus(row, &weight, eps))
            .map(|x| round(format, x))
            .collect();
        let bound = |i: usize| 2.02 * half_ulp(format) * want[i].abs() + 1e-7;
        assert_close(&what, hidden, &download(&ops, &out), &want, 2e-3, bound);
    }
}

/// A row's results are the same alone, in the middle of a buffer and among others.
fn add_branch_rms_norm_of_a_row_does_not_depend_on_others(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let (tokens, hidden) = (5, 264);
    let mut random = Random::new(3);
    let x = random.residual_rows(gpu.format, tokens * hidden, 1.0);
    let delta = upload_residual(&ops, &random.residual_rows(gpu.format, tokens * hidden, 1.0));
    let [branch, weight] = [0, 1].map(|_| upload(&ops, &random.rows(gpu.format, hidden, 1.0)));
    let run = |runs: &[std::ops::Range<usize>]| {
        let (mut stream, mut out) = (upload_residual(&ops, &x), upload(&ops, &vec![7.0; tokens * hidden]));
        for rows in runs {
            ops.add_rms_norm(AddRmsNorm {
                residual: &mut stream,
                delta: Delta::In(delta.all()),
                norm: Norm::OnePlus { branch: Some(branch.all()) },
                weight: weight.all(),
                out: &mut out,
                first_row: rows.start,
                tokens: rows.len(),
                hidden,
                eps: 1e-6,
            })
            .unwrap();
        }
        (residual(&ops, &stream), download(&ops, &out))
    };
    let whole = run(std::slice::from_ref(&(0..tokens)));
    assert_eq!(run(&[0..1, 1..4, 4..tokens]), whole);
    let (stream, out) = run(std::slice::from_ref(&(1..3)));
    assert_eq!(stream[3 * hidden..], x[3 * hidden..]);
    assert!(out[..hidden].iter().chain(&out[3 * hidden..]).all(|&number| number == 7.0));
}

fn rope_has_the_bits_of_three_roundings(gpu: &Gpu) {
    let format = gpu.format;
    let r = |x| round(format, x);
    // Widths of a head; heads in a row, the first to rotate and how many; positions.
    for (head_dim, (in_row, first_head, heads), positions) in [
        (64, (3, 0, 2), vec![0, 1, 2, 129]),
        (128, (72, 0, 72), vec![7]),
        (80, (5, 3, 1), vec![99, 0, 5]),
        (16, (4, 1, 2), vec![511; 5]),
        (256, (3, 0, 3), vec![300, 1]),
    ] {
        let ops = gpu.ops(head_dim);
        let half = head_dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| 500_000f32.powf(-(i as f32) / half as f32)).collect();
        let rope_tables = RopeTables::new(&ops, &frequencies, 512).unwrap();
        let (rows, row_stride) = (positions.len(), in_row * head_dim);
        let before = Random::new(head_dim as u64).rows(format, rows * row_stride, 2.0);
        let mut qkv = upload(&ops, &before);
        let (tables, indices) = tables(&ops, |tables| tables.row_indices(&positions));
        ops.rope(Rope {
            first_row: 0,
            qkv: &mut qkv,
            tables: &tables,
            positions: &indices,
            rope_tables: &rope_tables,
            row_stride,
            first_head,
            heads,
            norms: None,
        })
        .unwrap();
        let mut want = before;
        for (row, &position) in want.chunks_mut(row_stride).zip(&positions) {
            for head in row.chunks_mut(head_dim).skip(first_head).take(heads) {
                for i in 0..half {
                    let angle: u32 = position;
                    let angle = f64::from(angle as f32 * frequencies[i]);
                    let (cos, sin) = (r(f64::from(angle.cos() as f32)), r(f64::from(angle.sin() as f32)));
                    let (low, high) = (head[i], head[half + i]);
                    head[i] = r(r(low * cos) - r(high * sin));
                    head[half + i] = r(r(high * cos) + r(low * sin));
                }
            }
        }
        assert_close(&format!("head_dim {head_dim}"), row_stride, &download(&ops, &qkv), &want, 0.0, |_| 0.0);
    }
}

/// Queries have one weight and keys another; a head's bits depend on its own row and position alone.
fn rope_norms_heads_and_then_rotates_them(gpu: &Gpu) {
    let format = gpu.format;
    let r = |x| round(format, x);
    // Widths of a head; query and key heads; the first to rotate and how many.
    for (head_dim, (q_heads, kv_heads), (first_head, heads)) in [
        (16, (3, 2), (0, 5)),
        (64, (4, 2), (0, 6)),
        (128, (40, 8), (0, 48)),
        (128, (2, 2), (2, 2)),
        (256, (3, 1), (0, 3)),
        (512, (2, 1), (1, 2)),
    ] {
        let ops = gpu.ops(head_dim.min(256));
        let (half, eps, positions) = (head_dim / 2, 1e-5_f32, [0_u32, 3, 511]);
        let frequencies: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        let rope_tables = RopeTables::new(&ops, &frequencies, 512).unwrap();
        let row_stride = (q_heads + 2 * kv_heads) * head_dim;
        let mut random = Random::new(head_dim as u64);
        let before = random.rows(format, positions.len() * row_stride, 2.0);
        let weights = [0, 1].map(|_| random.rows(format, head_dim, 1.0));
        let [q_weight, k_weight] = [0, 1].map(|which: usize| upload(&ops, &weights[which]));
        let mut qkv = upload(&ops, &before);
        let (tables, indices) = tables(&ops, |tables| tables.row_indices(&positions));
        let norms = HeadNorms { q_weight: q_weight.all(), k_weight: k_weight.all(), q_heads, eps };
        ops.rope(Rope {
            first_row: 0,
            qkv: &mut qkv,
            tables: &tables,
            positions: &indices,
            rope_tables: &rope_tables,
            row_stride,
            first_head,
            heads,
            norms: Some(norms),
        })
        .unwrap();
        let (mut want, mut normed) = (before.clone(), before);
        for ((row, normed), &position) in
            want.chunks_mut(row_stride).zip(normed.chunks_mut(row_stride)).zip(&positions)
        {
            for head in first_head..first_head + heads {
                let columns = head * head_dim..(head + 1) * head_dim;
                let (row, normed) = (&mut row[columns.clone()], &mut normed[columns]);
                let mean = row.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                let weight = &weights[usize::from(head >= q_heads)];
                row.iter_mut().zip(weight).for_each(|(x, w)| *x = r(r(*x * scale) * w));
                normed.copy_from_slice(row);
                for i in 0..half {
                    let angle = f64::from(position as f32 * frequencies[i]);
                    let (cos, sin) = (r(f64::from(angle.cos() as f32)), r(f64::from(angle.sin() as f32)));
                    let (low, high) = (row[i], row[half + i]);
                    row[i] = r(r(low * cos) - r(high * sin));
                    row[half + i] = r(r(high * cos) + r(low * sin));
                }
            }
        }
        // A value near the middle of two may round to the other one after the norm, and that one
        // step goes through two more roundings.
        let size = normed.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        let bound = 3.0 * half_ulp(format) * size;
        let what = format!("head_dim {head_dim}");
        assert_close(&what, row_stride, &download(&ops, &qkv), &want, 0.01, |_| bound);
    }
    let ops = gpu.ops(80);
    let (tables, indices) = tables(&ops, |tables| tables.row_indices(&[0]));
    let rope_tables = RopeTables::new(&ops, &[1.0; 40], 1).unwrap();
    let weight = upload(&ops, &[1.0; 80]);
    let mut qkv = upload(&ops, &[1.0; 240]);
    let norms = HeadNorms { q_weight: weight.all(), k_weight: weight.all(), q_heads: 1, eps: 1e-5 };
    let refused = ops.rope(Rope {
        first_row: 0,
        qkv: &mut qkv,
        tables: &tables,
        positions: &indices,
        rope_tables: &rope_tables,
        row_stride: 240,
        first_head: 0,
        heads: 2,
        norms: Some(norms),
    });
    assert_refused(refused, "rope_norm", "a power of two, not 80");
}

/// The function of a gate in f64. `(1 + tanh(u)) / 2` is `1 / (1 + exp(-2 u))`, which keeps its
/// digits where it is near to 0.
fn naive_gate(gate: Gate, x: f64) -> f64 {
    let logistic = |u: f64| 1.0 / (1.0 + (-u).exp());
    match gate {
        Gate::Silu => x * logistic(x),
        Gate::GeluTanh => {
            x * logistic(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3)))
        }
    }
}

fn gate_mul_matches_naive(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let format = gpu.format;
    for (gate, (tokens, ffn)) in
        [Gate::Silu, Gate::GeluTanh].into_iter().flat_map(|gate| SHAPES.map(|shape| (gate, shape)))
    {
        let scale = if format == ActivationFormat::F16 { 2f64.powi(-4) } else { 1.0 };
        let mut before = Random::new(ffn as u64).rows(format, tokens * 2 * ffn, 3.0);
        // Where the power of two is 0 or infinite, and zeros of both signs.
        before[..6].copy_from_slice(&[0.0, -0.0, 100.0, -100.0, -87.0, 65.0]);
        let mut gate_up = upload(&ops, &before);
        ops.gate_mul(GateMul { gate_up: &mut gate_up, tokens, ffn, gate, scale: scale as f32 }).unwrap();
        let mut want = before;
        for row in want.chunks_mut(2 * ffn) {
            let (gates, up) = row.split_at_mut(ffn);
            for (x, up) in gates.iter_mut().zip(up) {
                let activated = round(format, naive_gate(gate, *x));
                *x = round(format, activated * *up * scale);
            }
        }
        // The power of two and the quotient are approximate to about 2^-22: few elements lie so near
        // to a tie. Seen: 3 of 10,000, 1.5 half ulps.
        let bound = |i: usize| 3.0 * half_ulp(format) * want[i].abs() + 1e-7;
        let what = format!("{gate:?}, {tokens} x {ffn}");
        assert_close(&what, 2 * ffn, &download(&ops, &gate_up), &want, 1e-3, bound);
    }
}

/// Far from 0, where the square of an element leaves f32, a gate's function is its element, or 0.
fn gate_mul_is_exact_at_the_ends_of_the_format(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let most = match gpu.format {
        ActivationFormat::Bf16 => 1e30,
        ActivationFormat::F16 => 65_504.0,
    };
    let far = [most, -most, most / 8.0, -most / 8.0, 128.0, -128.0, 0.0, -0.0].map(|x| round(gpu.format, x));
    for gate in [Gate::Silu, Gate::GeluTanh] {
        let mut gate_up = upload(&ops, &[&far[..], &[1.0; 8]].concat());
        ops.gate_mul(GateMul { gate_up: &mut gate_up, tokens: 1, ffn: 8, gate, scale: 1.0 }).unwrap();
        assert_eq!(download(&ops, &gate_up)[..8], far.map(|x| x.max(0.0)), "{gate:?}");
    }
}

fn gather_rows_copies_rows(gpu: &Gpu) {
    let ops = gpu.ops(64);
    for (count, width) in SHAPES {
        let x_rows = 9;
        let words: Vec<u16> = (0..x_rows * width).map(|i| (i * 31) as u16).collect();
        let rows: Vec<u32> = (0..count as u32).map(|i| (i * 5 + 8) % 9).collect();
        let x = upload_raw(&ops, &words);
        let (tables, indices) = tables(&ops, |tables| tables.row_indices(&rows));
        let mut out = ops.context().allocate(count * width * 2).unwrap();
        ops.gather_rows(GatherRows {
            x: x.all(),
            tables: &tables,
            rows: &indices,
            out: &mut out,
            row_bytes: width * 2,
        })
        .unwrap();
        let got: Vec<u16> = out.all().download(ops.context().compute()).unwrap();
        let want: Vec<u16> =
            rows.iter().flat_map(|&row| &words[row as usize * width..][..width]).copied().collect();
        assert_eq!(got, want, "{count} x {width}");
    }
}

fn score_matches_naive(gpu: &Gpu) {
    let ops = gpu.ops(64);
    for (tokens, hidden) in SHAPES {
        for labels in [1, 3] {
            let mut random = Random::new(hidden as u64);
            let x = random.rows(gpu.format, tokens * hidden, 1.0);
            let head = random.rows(gpu.format, labels * hidden, 0.02);
            let (x_rows, head_rows) = (upload(&ops, &x), upload(&ops, &head));
            let mut out = ops.context().allocate(tokens * labels * 4).unwrap();
            ops.score(Score {
                x: x_rows.all(),
                head: head_rows.all(),
                out: &mut out,
                tokens,
                labels,
                hidden,
            })
            .unwrap();
            let got: Vec<f32> = out.all().download(ops.context().compute()).unwrap();
            for (i, &got) in got.iter().enumerate() {
                let (row, label) =
                    (&x[i / labels * hidden..][..hidden], &head[i % labels * hidden..][..hidden]);
                let products = row.iter().zip(label).map(|(x, w)| x * w);
                let (want, size) = products.fold((0.0, 0.0), |(sum, size), p: f64| (sum + p, size + p.abs()));
                // 40 f32 additions in a row at most, each off by 2^-24 of what is summed so far.
                let bound = 40.0 * 2f64.powi(-24) * size;
                assert!(
                    (f64::from(got) - want).abs() <= bound,
                    "{tokens} x {hidden}, {i}: {got}, expected {want}"
                );
            }
        }
    }
}

fn seam_tiles_copy_keys_and_values_and_nothing_else(gpu: &Gpu) {
    for heads in [
        Heads { q_heads: 3, kv_heads: 1, head_dim: 64 },
        Heads { q_heads: 8, kv_heads: 4, head_dim: 128 },
        Heads { q_heads: 2, kv_heads: 2, head_dim: 8 },
    ] {
        let ops = gpu.ops(heads.head_dim);
        let width = (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim;
        let q_width = heads.q_heads * heads.head_dim;
        let first_row = 7;
        let mut sources = vec![NO_ROW; 64];
        sources[..5].copy_from_slice(&[6, 0, 3, 3, 1]);
        let mut want: Vec<u16> = (0..(first_row + 64) * width).map(|i| (i * 7 + 1) as u16).collect();
        let mut qkv = upload_raw(&ops, &want);
        let (tables, rows) = tables(&ops, |tables| tables.seam_sources(&sources));
        ops.seam_tiles(SeamTiles { qkv: &mut qkv, tables: &tables, sources: &rows, first_row, heads })
            .unwrap();
        for (i, &source) in sources.iter().enumerate() {
            for column in q_width..width {
                let copied = if source == NO_ROW { 0 } else { want[source as usize * width + column] };
                want[(first_row + i) * width + column] = copied;
            }
        }
        assert_eq!(qkv.all().download::<u16>(ops.context().compute()).unwrap(), want, "{heads:?}");
    }
}

/// Philox 4x32-10.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = 0xD251_1F53 * u64::from(counter[0]);
        let second = 0xCD9E_8D57 * u64::from(counter[2]);
        let high = |product: u64| (product >> 32) as u32;
        counter = [
            high(second) ^ counter[1] ^ key[0],
            second as u32,
            high(first) ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

fn add_parts_has_the_bits_of_add_rms_norm(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let hidden = 264;
    for (tokens, parts) in [(4, 2), (3, 3), (10, 5), (8, 8), (1, 9)] {
        let mut random = Random::new(parts as u64);
        let numbers = tokens * hidden;
        let x = random.residual_rows(gpu.format, numbers, 1.0);
        let all = random.residual_rows(gpu.format, parts * numbers, 1.0);
        let (mut normed, received) = (upload_residual(&ops, &x), upload_residual(&ops, &all));
        let weight = upload(&ops, &random.rows(gpu.format, hidden, 1.0));
        let mut out = ops.context().allocate(numbers * gpu.format.bytes()).unwrap();
        ops.add_rms_norm(AddRmsNorm {
            residual: &mut normed,
            delta: Delta::Parts(received.all(), parts),
            norm: Norm::Scale,
            weight: weight.all(),
            out: &mut out,
            first_row: 0,
            tokens,
            hidden,
            eps: 1e-5,
        })
        .unwrap();
        let expected = residual(&ops, &normed);
        // All elements but the first 16, as every rank: its own part lies elsewhere, and is nothing
        // among those that were received.
        for rank in 0..parts {
            let (first, count) = (16, numbers - 16);
            let slice = |part: usize| &all[part * numbers + first..(part + 1) * numbers];
            let others: Vec<f64> = (0..parts)
                .flat_map(|part| if part == rank { vec![1e3; count] } else { slice(part).to_vec() })
                .collect();
            let (own, others) = (upload_residual(&ops, slice(rank)), upload_residual(&ops, &others));
            let mut stream = upload_residual(&ops, &x);
            let (own, received) = (own.all(), others.all());
            let args = AddParts { residual: &mut stream, first, own, received, parts, rank, count };
            ops.add_parts(args, ops.context().compute()).unwrap();
            let added = residual(&ops, &stream);
            assert_eq!(added[..first], x[..first], "{tokens} x {hidden} of {parts}, as rank {rank}");
            assert_eq!(added[first..], expected[first..], "{tokens} x {hidden} of {parts}, as rank {rank}");
        }
    }
}

fn add_parts_refuses_what_it_cannot_do(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let zeros = |count: usize| upload_residual(&ops, &vec![0.0; count]);
    let (mut stream, own, received) = (zeros(32), zeros(16), zeros(48));
    let mut add = |first, parts, rank, count| {
        let (own, received) = (own.all(), received.all());
        let args = AddParts { residual: &mut stream, first, own, received, parts, rank, count };
        ops.add_parts(args, ops.context().compute())
    };
    add(16, 3, 2, 16).unwrap();
    assert_refused(add(16, 3, 3, 16), "add_parts", "rank");
    assert_refused(add(16, 3, 0, 12), "add_parts", "count");
    assert_refused(add(12, 3, 0, 16), "add_parts", "first");
    assert_refused(add(24, 3, 0, 16), "add_parts", "residual");
    assert_refused(add(8, 2, 0, 24), "add_parts", "own");
    assert_refused(add(16, 4, 0, 16), "add_parts", "received");
}

/// The sum of splitmix64's finaliser over the words of a row, with their indices.
fn digest(row: &[u16]) -> u64 {
    let words = row
        .chunks_exact(4)
        .map(|word| word.iter().rev().fold(0, |value, &bits| value << 16 | u64::from(bits)));
    let mixed = words.enumerate().map(|(index, word)| {
        let value = word ^ (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ value >> 31
    });
    mixed.fold(0, u64::wrapping_add)
}

fn digests_are_those_of_the_rows_and_tell_bits_apart(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let context = ops.context();
    // The first output of splitmix64 with seed 0, as published.
    assert_eq!(digest(&[0; 4]), 0xE220_A839_7B1D_CDAF);
    for (rows, stride, width) in [(1, 8, 8), (5, 64, 56), (3, 4096, 4096), (2, 5000, 4104)] {
        let mut random = Random::new(width as u64);
        let mut bits: Vec<u16> = (0..rows * stride).map(|_| (random.uniform() * 65_536.0) as u16).collect();
        let digested = |bits: &[u16]| -> Vec<u64> {
            let x = upload_raw(&ops, bits);
            let mut digests = context.allocate(rows * size_of::<u64>()).unwrap();
            let (stride, row_bytes) = (2 * stride, 2 * width);
            ops.digest_rows(DigestRows { x: x.all(), digests: &mut digests, rows, stride, row_bytes })
                .unwrap();
            digests.all().download(context.compute()).unwrap()
        };
        let expected: Vec<u64> = bits.chunks(stride).map(|row| digest(&row[..width])).collect();
        assert_eq!(digested(&bits), expected, "{rows} x {width} of {stride}");
        // One bit of the last element, and two elements that change places.
        let last = (rows - 1) * stride + width - 1;
        bits[last] ^= 1;
        assert_ne!(digested(&bits)[rows - 1], expected[rows - 1]);
        bits[last] ^= 1;
        bits.swap(last, last - 3);
        assert_ne!(digested(&bits)[rows - 1], expected[rows - 1]);
    }
    let (x, mut digests) = (upload_raw(&ops, &[0_u16; 24]), context.allocate(8).unwrap());
    let mut refused = |rows, stride, row_bytes, operand| {
        let args = DigestRows { x: x.all(), digests: &mut digests, rows, stride, row_bytes };
        assert_refused(ops.digest_rows(args), "digest_rows", operand);
    };
    refused(1, 24, 16, "multiples");
    refused(1, 16, 32, "multiples");
    refused(2, 48, 16, "bytes of x");
    refused(2, 16, 16, "digests");
}

fn fill_normal_has_the_bits_of_philox(gpu: &Gpu) {
    // The known answers of its authors.
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]);
    assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]);
    let ops = gpu.ops(64);
    let (count, seed, deviation) = (4104, 0x1234_5678_9ABC_DEF0_u64, 0.02_f32);
    let mut out = ops.context().allocate(count * gpu.format.bytes()).unwrap();
    ops.fill_normal(&mut out, count, seed, deviation).unwrap();
    let got: Vec<u16> = out.all().download(ops.context().compute()).unwrap();
    let unit = deviation / 53_509.92;
    let want: Vec<u16> = (0..count as u32)
        .map(|i| {
            let words = philox([i, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
            let sum: i32 = words.iter().map(|word| ((word & 0xFFFF) + (word >> 16)) as i32).sum();
            crate::numbers::bits(gpu.format, f64::from((sum - 4 * 65_535) as f32 * unit))
        })
        .collect();
    assert_eq!(got, want);
    let numbers: Vec<f64> = got.iter().map(|&bits| value(gpu.format, bits) / f64::from(deviation)).collect();
    let mean = numbers.iter().sum::<f64>() / count as f64;
    let variance = numbers.iter().map(|x| x * x).sum::<f64>() / count as f64;
    assert!(mean.abs() < 0.06 && (variance - 1.0).abs() < 0.08, "mean {mean}, variance {variance}");
}

/// Asserts that the op refused, and that its message names the kernel and the operand.
fn assert_refused(result: kudos::Result<()>, kernel: &str, operand: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains(kernel) && error.message().contains(operand), "{error}");
}

fn indices_that_leave_a_buffer_are_refused(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let heads = Heads { q_heads: 2, kv_heads: 1, head_dim: 64 };
    let (row_stride, q_width) = (4 * 64, 2 * 64);
    // 10 rows of q, k and v, and 10 positions.
    let zeros = |rows: usize| upload(&ops, &vec![0.0; rows * row_stride]);
    let (x, mut qkv, mut out) = (zeros(10), zeros(10), zeros(10));
    let rope_tables = RopeTables::new(&ops, &[1.0; 32], 10).unwrap();
    let (tables, [inside, outside]) =
        tables(&ops, |tables| [[9, 0], [10, 0]].map(|rows| tables.row_indices(&rows)));
    let mut gather = |rows| {
        let row_bytes = row_stride * gpu.format.bytes();
        ops.gather_rows(GatherRows { x: x.all(), tables: &tables, rows, out: &mut out, row_bytes })
    };
    gather(&inside).unwrap();
    assert_refused(gather(&outside), "gather_rows", "bytes of x");
    let mut rope = |positions, first_row| {
        let (tables, rope_tables, qkv) = (&tables, &rope_tables, &mut qkv);
        ops.rope(Rope {
            qkv,
            first_row,
            tables,
            positions,
            rope_tables,
            row_stride,
            first_head: 0,
            heads: 3,
            norms: None,
        })
    };
    rope(&inside, 8).unwrap();
    assert_refused(rope(&outside, 8), "rope", "positions below 10");
    assert_refused(rope(&inside, 9), "rope", "bytes of qkv");
    assert_refused(rope(&inside, usize::MAX), "rope", "bytes of qkv");

    let (tables, [inside, outside]) =
        crate::numbers::tables(&ops, |tables| [[7, NO_ROW], [8, 0]].map(|rows| tables.seam_sources(&rows)));
    let mut seams = |sources, first_row| {
        ops.seam_tiles(SeamTiles { qkv: &mut qkv, tables: &tables, sources, first_row, heads })
    };
    seams(&inside, 8).unwrap();
    assert_refused(seams(&outside, 8), "seam_tiles", "sources below row 8");
    assert_refused(seams(&inside, 9), "seam_tiles", "bytes of qkv");

    // Work on two tokens of two heads: queries in row 0 and on, keys in one tile.
    let piece = WorkItem { query_row: 0, out_row: 0, position: 8, first_head: 0, pairs: 4, first_tile: 0 };
    let attend = |rows: &[u32], piece: WorkItem, group, out_rows: usize| {
        let (tables, work) = crate::numbers::tables(&ops, |tables| {
            let tile_rows = tables.tile_rows(rows);
            tables.work_list(&[piece], &tile_rows, group).unwrap()
        });
        let mut out = upload(&ops, &vec![0.0; out_rows * q_width]);
        ops.attention(Attention {
            qkv: qkv.all(),
            out: &mut out,
            tables: &tables,
            work: &work,
            share: Share::Whole,
            heads,
            scale: 1.0,
            window: None,
            cap: None,
        })
    };
    attend(&[0], piece, 2, 2).unwrap();
    assert_refused(attend(&[1], piece, 2, 2), "attention", "bytes of qkv");
    assert_refused(attend(&[0], WorkItem { query_row: 9, ..piece }, 2, 2), "attention", "bytes of qkv");
    assert_refused(attend(&[0], WorkItem { out_row: 1, ..piece }, 2, 2), "attention", "bytes of out");
    assert_refused(attend(&[0], piece, 1, 4), "attention", "2 query heads per kv head");
    let long = WorkItem { position: 0, pairs: 2048, ..piece };
    assert_refused(attend(&[0; 16], long, 2, 1024), "attention", "pairs");
}

fn tables_that_were_replaced_are_refused(gpu: &Gpu) {
    let ops = gpu.ops(64);
    let x = upload_raw(&ops, &[1_u32, 2, 3, 4]);
    let mut out = ops.context().allocate(16).unwrap();
    let mut staging = Staging::new(ops.context(), 1, 16, 64).unwrap();
    let mut on_device = DeviceTables::allocate(ops.context(), 64).unwrap();
    let mut upload = || {
        let mut tables = HostTables::new();
        let rows = tables.row_indices(&[0]);
        on_device.replace(ops.context(), &mut staging, tables).unwrap();
        rows
    };
    let (first, second) = (upload(), upload());
    let mut gather = |rows| {
        let (x, out) = (x.all(), &mut out);
        ops.gather_rows(GatherRows { x, tables: &on_device, rows, out, row_bytes: 16 })
    };
    assert_refused(gather(&first), "gather_rows", "rows");
    gather(&second).unwrap();
    assert_eq!(out.all().download::<u32>(ops.context().compute()).unwrap(), [1, 2, 3, 4]);
}
