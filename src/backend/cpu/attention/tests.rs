//! Attention against a naive f64 one, and what must not show in any bit.

use super::*;
use crate::backend::cpu::testing::{Random, Worst, all_threads, assert_same_bits};
use crate::batch::Span;

/// Largest error relative to the largest |v| that the row sees: measured 5.8e-6 (scores of some hundreds, whose own
/// rounding the exponential magnifies); a fifth more.
const ERROR: f64 = 7e-6;

/// q heads, kv heads, head_dim: groups of 3, 8 and 1, one kv head, odd and large widths, a 70B rank's share.
const HEADS: [(usize, usize, usize); 9] = [
    (9, 3, 64),
    (8, 1, 128),
    (4, 4, 20),
    (2, 1, 1),
    (6, 2, 36),
    (5, 5, 7),
    (4, 2, 80),
    (2, 2, 256),
    (3, 1, 300),
];

fn heads((q_heads, kv_heads, head_dim): (usize, usize, usize)) -> Heads {
    Heads { q_heads, kv_heads, head_dim }
}

/// Rows of `q | k | v` and a gap.
struct Batch {
    heads: Heads,
    rows: usize,
    qkv: Vec<f32>,
}

impl Batch {
    fn new(heads: Heads, rows: usize, seed: u64) -> Self {
        let mut batch = Self { heads, rows, qkv: Vec::new() };
        batch.qkv = Random::new(seed).values(rows * batch.stride());
        // Equal keys, and queries and keys with a large norm.
        let (q_width, head_dim) = (heads.q_heads * heads.head_dim, heads.head_dim);
        for row in 0..rows {
            if row % 7 == 3 {
                let (from, to) = ((row - 1) * batch.stride() + q_width, row * batch.stride() + q_width);
                batch.qkv.copy_within(from..from + head_dim, to);
            }
            if row % 11 == 5 {
                let start = row * batch.stride();
                batch.qkv[start..start + head_dim].iter_mut().for_each(|x| *x *= 10.0);
            }
        }
        batch
    }

    fn kv_width(&self) -> usize {
        self.heads.kv_heads * self.heads.head_dim
    }

    fn q_width(&self) -> usize {
        self.heads.q_heads * self.heads.head_dim
    }

    fn stride(&self) -> usize {
        self.q_width() + 2 * self.kv_width() + 3
    }

    fn run(&self, isa: Isa, threads: &Threads, segments: &[Queries]) -> Vec<f32> {
        let (stride, q_width, kv_width) = (self.stride(), self.q_width(), self.kv_width());
        let input = AttentionInput {
            q: Rows::new(&self.qkv, self.rows, q_width, stride),
            k: Rows::new(&self.qkv[q_width..], self.rows, kv_width, stride),
            v: Rows::new(&self.qkv[q_width + kv_width..], self.rows, kv_width, stride),
        };
        let plan = AttentionPlan::new(self.heads, segments.iter().cloned());
        let mut out = vec![0.0; self.rows * q_width];
        attention(isa, threads, &plan, &input, RowsMut::new(&mut out, self.rows, q_width, q_width));
        out
    }

    /// The naive attention of query row `row` under `head` to the keys in `key_rows`, in f64, with the largest |v|.
    fn naive(&self, row: usize, head: usize, key_rows: &[usize]) -> (Vec<f64>, f64) {
        let (d, stride) = (self.heads.head_dim, self.stride());
        let kv_head = head / (self.heads.q_heads / self.heads.kv_heads);
        let q = &self.qkv[row * stride + head * d..][..d];
        let k = |row: usize| &self.qkv[row * stride + self.q_width() + kv_head * d..][..d];
        let v = |row: usize| &self.qkv[row * stride + self.q_width() + self.kv_width() + kv_head * d..][..d];
        let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
        let scores: Vec<f64> = key_rows.iter().map(|row| dot(k(*row)) / (d as f64).sqrt()).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut out = vec![0.0; d];
        let mut v_max = 0.0f64;
        for (weight, row) in weights.iter().zip(key_rows) {
            for (out, v) in out.iter_mut().zip(v(*row)) {
                *out += weight / sum * f64::from(*v);
                v_max = v_max.max(f64::from(v.abs()));
            }
        }
        (out, v_max)
    }
}

fn span(start: usize, len: usize) -> Span {
    Span { start, len }
}

/// The rows of a path.
fn path_rows(spans: &[Span]) -> Vec<usize> {
    spans.iter().flat_map(|span| span.start..span.start + span.len).collect()
}

#[test]
fn attention_matches_naive_f64_for_every_head_shape() {
    let threads = Threads::new(2).unwrap();
    for isa in Isa::for_tests() {
        let mut worst = Worst::default();
        for shape in HEADS {
            let batch = Batch::new(heads(shape), 270, 7);
            // A shared prefix of 170, a child of 53 on it over the end of a tile, an unrelated 47.
            let spans = [vec![span(0, 170)], vec![span(0, 170), span(170, 53)], vec![span(223, 47)]];
            let segments = [
                Queries { rows: 0..170, first_position: 0, spans: &spans[0] },
                Queries { rows: 170..223, first_position: 170, spans: &spans[1] },
                Queries { rows: 223..270, first_position: 0, spans: &spans[2] },
            ];
            let got = batch.run(isa, &threads, &segments);
            for segment in segments {
                let path = path_rows(segment.spans);
                for (i, row) in segment.rows.enumerate() {
                    for head in 0..batch.heads.q_heads {
                        let (expected, v_max) =
                            batch.naive(row, head, &path[..segment.first_position + i + 1]);
                        for (dim, expected) in expected.into_iter().enumerate() {
                            let at = row * batch.q_width() + head * batch.heads.head_dim + dim;
                            worst.see(got[at], expected, v_max, || {
                                format!("{shape:?} [{row}, {head}, {dim}]")
                            });
                        }
                    }
                }
            }
        }
        worst.assert_within(ERROR, isa.name());
    }
}

/// One conversation of 420 tokens, as one segment; then cut in every way, its rows scattered over a larger batch.
#[test]
fn attention_gives_the_same_bits_however_a_path_is_cut_and_wherever_it_lies() {
    let all_threads = all_threads();
    for isa in Isa::for_tests() {
        for shape in [(9, 3, 64), (8, 1, 36), (2, 2, 80)] {
            let rows = 420;
            let whole = Batch::new(heads(shape), rows, 3);
            let spans = [span(0, rows)];
            let alone = Queries { rows: 0..rows, first_position: 0, spans: &spans };
            let expected = whole.run(isa, &all_threads[0], &[alone]);
            for cuts in
                [&[0, 420][..], &[0, 1, 2, 191, 192, 193, 384, 420], &[0, 100, 419, 420], &[0, 70, 250, 420]]
            {
                // The pieces lie in reverse order, with rows of another conversation between them.
                let mut scattered = Batch::new(whole.heads, 2 * rows, 4);
                let (mut starts, mut end) = (Vec::new(), 2 * rows);
                for piece in cuts.windows(2) {
                    end -= piece[1] - piece[0] + 1;
                    starts.push(end);
                    let (from, to) = (piece[0] * whole.stride(), end * whole.stride());
                    let len = (piece[1] - piece[0]) * whole.stride();
                    scattered.qkv[to..to + len].copy_from_slice(&whole.qkv[from..from + len]);
                }
                let path: Vec<_> = cuts.windows(2).zip(&starts).map(|(c, s)| span(*s, c[1] - c[0])).collect();
                let other = [span(0, end)];
                let mut segments = vec![Queries { rows: 0..end, first_position: 0, spans: &other }];
                for (i, piece) in cuts.windows(2).enumerate() {
                    let rows = starts[i]..starts[i] + path[i].len;
                    segments.push(Queries { rows, first_position: piece[0], spans: &path[..=i] });
                }
                for threads in &all_threads {
                    let got = scattered.run(isa, threads, &segments);
                    let rows: Vec<f32> = path_rows(&path)
                        .iter()
                        .flat_map(|r| row(&got, *r, whole.q_width()))
                        .copied()
                        .collect();
                    let what = format!("{} {shape:?} {cuts:?} {} threads", isa.name(), threads.count());
                    assert_same_bits(&rows, &expected, whole.q_width(), &what);
                }
            }
        }
    }
}

fn row(values: &[f32], row: usize, width: usize) -> &[f32] {
    &values[row * width..][..width]
}

#[test]
fn last_rows_from_their_own_buffer_have_the_bits_of_all_rows() {
    let threads = Threads::new(2).unwrap();
    for isa in Isa::for_tests() {
        let batch = Batch::new(heads((9, 3, 64)), 290, 9);
        let paths = [vec![span(0, 190), span(190, 61)], vec![span(0, 190), span(251, 39)], vec![span(0, 1)]];
        let all = batch.run(
            isa,
            &threads,
            &[
                Queries { rows: 0..190, first_position: 0, spans: &[span(0, 190)] },
                Queries { rows: 190..251, first_position: 190, spans: &paths[0] },
                Queries { rows: 251..290, first_position: 190, spans: &paths[1] },
            ],
        );
        let (stride, q_width, kv_width) = (batch.stride(), batch.q_width(), batch.kv_width());
        let last_rows = [250, 289, 0];
        let q: Vec<f32> =
            last_rows.iter().flat_map(|r| row(&batch.qkv, *r, stride)[..q_width].to_vec()).collect();
        let input = AttentionInput {
            q: Rows::new(&q, 3, q_width, q_width),
            k: Rows::new(&batch.qkv[q_width..], 290, kv_width, stride),
            v: Rows::new(&batch.qkv[q_width + kv_width..], 290, kv_width, stride),
        };
        let segments = paths.iter().enumerate().map(|(i, path)| {
            let keys: usize = path.iter().map(|span| span.len).sum();
            Queries { rows: i..i + 1, first_position: keys - 1, spans: path }
        });
        let plan = AttentionPlan::new(batch.heads, segments);
        let mut out = vec![0.0; 3 * q_width];
        attention(isa, &threads, &plan, &input, RowsMut::new(&mut out, 3, q_width, q_width));
        let expected: Vec<f32> = last_rows.iter().flat_map(|r| row(&all, *r, q_width)).copied().collect();
        assert_same_bits(&out, &expected, q_width, isa.name());
    }
}

#[test]
fn instruction_sets_that_fuse_give_the_same_bits() {
    let threads = Threads::new(2).unwrap();
    for shape in HEADS {
        let batch = Batch::new(heads(shape), 230, 5);
        let spans = [span(0, 230)];
        let segments = [Queries { rows: 0..230, first_position: 0, spans: &spans }];
        let isas = Isa::fused_for_tests();
        let results: Vec<_> = isas.iter().map(|isa| batch.run(*isa, &threads, &segments)).collect();
        for (isa, result) in isas.iter().zip(&results) {
            assert_same_bits(result, &results[0], batch.q_width(), &format!("{} {shape:?}", isa.name()));
        }
    }
}

/// NaN in each key and value in turn: rows before it, other conversations and other kv heads must not notice; its own row
/// and those after it must.
#[test]
fn a_nan_reaches_the_rows_that_see_it_and_no_other() {
    let threads = Threads::new(2).unwrap();
    for isa in Isa::for_tests() {
        let heads = heads((6, 2, 40));
        let batch = Batch::new(heads, 280, 12);
        let paths = [[span(0, 210)], [span(210, 70)]];
        let segments = [
            Queries { rows: 0..210, first_position: 0, spans: &paths[0] },
            Queries { rows: 210..280, first_position: 0, spans: &paths[1] },
        ];
        let clean = batch.run(isa, &threads, &segments);
        for (bad_row, bad) in
            [(0, f32::NAN), (191, f32::INFINITY), (192, f32::NAN), (70, f32::NAN), (209, f32::NAN)]
        {
            for column in [batch.q_width() + 5, batch.q_width() + batch.kv_width() + 5] {
                let mut spoilt = Batch { qkv: batch.qkv.clone(), ..batch };
                spoilt.qkv[bad_row * batch.stride() + column] = bad;
                let got = spoilt.run(isa, &threads, &segments);
                for row in 0..280 {
                    for head in 0..heads.q_heads {
                        let at = row * batch.q_width() + head * heads.head_dim;
                        let range = at..at + heads.head_dim;
                        let what = format!("{} bad row {bad_row}, [{row}, {head}]", isa.name());
                        if (bad_row..210).contains(&row) && head < 3 {
                            // An infinite key may also be scored at minus infinity: then it rightly weighs nothing.
                            let noticed = got[range].iter().any(|x| !x.is_finite());
                            assert!(noticed || bad.is_infinite(), "{what}");
                        } else {
                            assert_same_bits(&got[range.clone()], &clean[range], heads.head_dim, &what);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn attention_stays_within_the_scratch_it_states() {
    for isa in Isa::for_tests() {
        for shape in HEADS {
            let threads = Threads::new(1).unwrap();
            threads.reserve(scratch_floats(isa, heads(shape)));
            let before = threads.scratch_bytes();
            let spans = [span(0, 300)];
            let segments = [Queries { rows: 0..300, first_position: 0, spans: &spans }];
            Batch::new(heads(shape), 300, 1).run(isa, &threads, &segments);
            assert_eq!(threads.scratch_bytes(), before, "{} {shape:?}", isa.name());
        }
    }
}

#[test]
#[should_panic(expected = "two segments share a query row")]
fn segments_that_share_a_query_row_are_refused() {
    let spans = [span(0, 10)];
    let segment = |rows| Queries { rows, first_position: 0, spans: &spans };
    AttentionPlan::new(heads((1, 1, 8)), [segment(0..5), segment(4..8)]);
}

#[test]
#[should_panic(expected = "a path of 10 keys for 11 positions")]
fn a_path_that_ends_before_its_queries_is_refused() {
    let spans = [span(0, 10)];
    AttentionPlan::new(heads((1, 1, 8)), [Queries { rows: 0..5, first_position: 6, spans: &spans }]);
}
