//! Attention against a naive f64 one, and independence of every bit from how it ran.

use super::*;
use crate::backend::cpu::testing::{Random, Worst, all_math, all_threads, assert_same_bits, name, not_run};
use crate::backend::cpu::view::Rows;
use crate::batch::Span;
use crate::config::Scores;

/// Largest error relative to the largest |v| that the row sees: measured 1.82e-5 by vector
/// instructions and 6.6e-6 by tiles (scores of some thousands, whose own rounding the exponential
/// magnifies); a fifth more.
const ERROR: f64 = 2.2e-5;

/// Largest error with everything rounded to bfloat16, against rounded operands: measured 1.05e-3,
/// probabilities' rounding; a fifth more.
const BF16_ERROR: f64 = 1.3e-3;

/// q heads, kv heads, head_dim: groups of 3, 8 and 1, one kv head, odd and large widths, a 70B
/// rank's share.
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

/// Every arithmetic of attention. The emulated unit, which is slow, gives the same bits beside all
/// vectors.
fn arithmetics() -> Vec<(Isa, Math)> {
    let fused = Isa::fused_for_tests();
    let is_another = |(isa, math): &(Isa, Math)| !is_emulated(*math) || fused.contains(isa);
    all_math().into_iter().filter(is_another).collect()
}

/// Returns whether the matmuls are those of the emulated unit.
fn is_emulated(math: Math) -> bool {
    matches!(math, Math::F32Tiles(unit) | Math::Bf16Tiles(unit) if unit.name() != "amx")
}

/// Returns whether operands are rounded to bfloat16.
fn rounds(math: Math) -> bool {
    matches!(math, Math::Bf16(_) | Math::Bf16Tiles(_))
}

fn heads((q_heads, kv_heads, head_dim): (usize, usize, usize)) -> Heads {
    Heads { q_heads, kv_heads, head_dim }
}

/// Rows of `q | k | v` and a gap.
#[derive(Clone)]
struct Batch {
    heads: Heads,
    rows: usize,
    qkv: Vec<f32>,
    scoring: Scoring,
}

impl Batch {
    fn new(heads: Heads, rows: usize, seed: u64) -> Self {
        let mut batch = Self { heads, rows, qkv: Vec::new(), scoring: plain(heads) };
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

    fn scale_values(&mut self, scale: f32) {
        let (stride, v_at) = (self.stride(), self.q_width() + self.kv_width());
        self.qkv.chunks_mut(stride).for_each(|row| row[v_at..].iter_mut().for_each(|x| *x *= scale));
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

    /// Returns the batch rounded to bfloat16.
    fn rounded(&self) -> Self {
        Self { qkv: self.qkv.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect(), ..*self }
    }

    fn run(&self, isa: Isa, math: Math, threads: &Threads, segments: &[Queries]) -> Vec<f32> {
        let (stride, q_width, kv_width) = (self.stride(), self.q_width(), self.kv_width());
        let input = AttentionInput {
            q: Rows::new(&self.qkv, self.rows, q_width, stride),
            k: Rows::new(&self.qkv[q_width..], self.rows, kv_width, stride),
            v: Rows::new(&self.qkv[q_width + kv_width..], self.rows, kv_width, stride),
        };
        let plan = AttentionPlan::new(self.heads, segments.iter().cloned());
        let mut out = vec![0.0; self.rows * q_width];
        let view = RowsMut::new(&mut out, self.rows, q_width, q_width);
        attention(isa, threads, &plan, &input, self.scoring, math, view);
        out
    }

    /// Computes the naive attention of `segments`: for each element its index in the output, its
    /// value, and the largest |v| that it depends on.
    fn naive_of(&self, segments: &[Queries]) -> Vec<(usize, f64, f64)> {
        let mut all = Vec::new();
        for segment in segments {
            let path = path_rows(segment.spans);
            for (i, row) in segment.rows.clone().enumerate() {
                let end = segment.first_position + i + 1;
                let first = self.scoring.window.map_or(0, |window| end.saturating_sub(window));
                for head in 0..self.heads.q_heads {
                    let (out, v_max) = self.naive(row, head, &path[first..end]);
                    let at = row * self.q_width() + head * self.heads.head_dim;
                    all.extend(out.into_iter().enumerate().map(|(dim, x)| (at + dim, x, v_max)));
                }
            }
        }
        all
    }

    /// Computes the naive attention of query row `row` under `head` to the keys in `key_rows`, in
    /// f64, with the largest |v|.
    fn naive(&self, row: usize, head: usize, key_rows: &[usize]) -> (Vec<f64>, f64) {
        let (d, stride) = (self.heads.head_dim, self.stride());
        let kv_head = head / (self.heads.q_heads / self.heads.kv_heads);
        let q = &self.qkv[row * stride + head * d..][..d];
        let k = |row: usize| &self.qkv[row * stride + self.q_width() + kv_head * d..][..d];
        let v = |row: usize| &self.qkv[row * stride + self.q_width() + self.kv_width() + kv_head * d..][..d];
        let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
        let Scores { query_scalar, cap } = self.scoring.scores;
        let capped = |score: f64| match cap.map(f64::from) {
            Some(cap) => cap * (score / cap).tanh(),
            None => score,
        };
        let scores: Vec<f64> =
            key_rows.iter().map(|row| capped(dot(k(*row)) / query_scalar.sqrt())).collect();
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

/// Scores of most models.
fn plain(heads: Heads) -> Scoring {
    Scoring { scores: Scores { query_scalar: heads.head_dim as f64, cap: None }, window: None }
}

fn span(start: usize, len: usize) -> Span {
    Span { start, len }
}

/// Returns the rows of a path.
fn path_rows(spans: &[Span]) -> Vec<usize> {
    spans.iter().flat_map(|span| span.start..span.start + span.len).collect()
}

#[test]
fn attention_matches_naive_f64_for_every_head_shape() {
    assert_matches_naive(&HEADS.map(|shape| (shape, plain(heads(shape)))));
}

/// Windows that end within a block of 32 keys and at its ends, within a tile and at its ends; caps
/// that scores stay below, reach and exceed by far.
#[test]
fn attention_with_windows_and_caps_matches_naive_f64() {
    let scores = |query_scalar: f64, cap| Scores { query_scalar, cap };
    let cases = [
        ((9, 3, 64), scores(64.0, None), Some(1)),
        ((8, 1, 20), scores(20.0, None), Some(31)),
        ((6, 2, 36), scores(50.0, Some(50.0)), Some(64)),
        ((4, 4, 20), scores(20.0, Some(0.5)), Some(100)),
        ((3, 1, 64), scores(33.0, Some(5.0)), Some(191)),
        ((2, 1, 40), scores(40.0, None), Some(193)),
        ((3, 1, 128), scores(144.0, Some(50.0)), None),
        ((5, 5, 7), scores(7.0, None), Some(1000)),
    ];
    assert_matches_naive(&cases.map(|(shape, scores, window)| (shape, Scoring { scores, window })));
}

fn assert_matches_naive(cases: &[((usize, usize, usize), Scoring)]) {
    let threads = Threads::new(2).unwrap();
    let arithmetics = arithmetics();
    let mut worst: Vec<Worst> = arithmetics.iter().map(|_| Worst::default()).collect();
    for &(shape, scoring) in cases {
        let batch = Batch { scoring, ..Batch::new(heads(shape), 270, 7) };
        // A shared prefix of 170, a child of 53 on it over the end of a tile, an unrelated 47.
        let spans = [vec![span(0, 170)], vec![span(0, 170), span(170, 53)], vec![span(223, 47)]];
        let segments = [
            Queries { rows: 0..170, first_position: 0, spans: &spans[0] },
            Queries { rows: 170..223, first_position: 170, spans: &spans[1] },
            Queries { rows: 223..270, first_position: 0, spans: &spans[2] },
        ];
        let (exact, rounded) = (batch.naive_of(&segments), batch.rounded().naive_of(&segments));
        for ((isa, math), worst) in arithmetics.iter().zip(&mut worst) {
            let got = batch.run(*isa, *math, &threads, &segments);
            for (at, expected, v_max) in if rounds(*math) { &rounded } else { &exact } {
                let (row, column) = (at / batch.q_width(), at % batch.q_width());
                worst.record(got[*at], *expected, *v_max, || format!("{shape:?} [{row}, {column}]"));
            }
        }
    }
    for ((isa, math), worst) in arithmetics.into_iter().zip(worst) {
        worst.assert_within(if rounds(math) { BF16_ERROR } else { ERROR }, &name(isa, math));
    }
}

/// One conversation over several tiles, as one segment; then cut at several places, its rows
/// scattered over a larger batch. One has values so small that terms, products and sums fall below
/// the smallest normal value.
#[test]
fn attention_bits_are_independent_of_how_a_path_is_cut() {
    let all_threads = all_threads();
    for (isa, math) in arithmetics() {
        for (shape, scale, window) in [
            ((9, 3, 64), 1.0, None),
            ((8, 1, 36), 1.0, Some(150)),
            ((3, 1, 20), 1.0, Some(5)),
            ((2, 2, 80), 1e-38, None),
        ] {
            // Fewer rows and threads where it is slow.
            let (rows, all_threads) =
                if is_emulated(math) { (230, &all_threads[1..2]) } else { (420, &all_threads[..]) };
            let mut whole = Batch::new(heads(shape), rows, 3);
            whole.scale_values(scale);
            whole.scoring.window = window;
            let spans = [span(0, rows)];
            let alone = Queries { rows: 0..rows, first_position: 0, spans: &spans };
            let expected = whole.run(isa, math, &all_threads[0], &[alone]);
            for cuts in [
                &[0, rows][..],
                &[0, 1, 2, 191, 192, 193, rows - 36, rows],
                &[0, 100, rows - 1, rows],
                &[0, 70, 210, rows],
            ] {
                // The pieces are in reverse order, with rows of another conversation between them.
                let mut scattered = Batch { scoring: whole.scoring, ..Batch::new(whole.heads, 2 * rows, 4) };
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
                for threads in all_threads {
                    let got = scattered.run(isa, math, threads, &segments);
                    let rows: Vec<f32> = path_rows(&path)
                        .iter()
                        .flat_map(|r| row(&got, *r, whole.q_width()))
                        .copied()
                        .collect();
                    let what = format!("{} {shape:?} {cuts:?} {} threads", name(isa, math), threads.count());
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
    for (isa, math) in arithmetics() {
        let mut batch = Batch::new(heads((9, 3, 64)), 290, 9);
        batch.scoring.window = (!is_emulated(math)).then_some(70);
        let paths = [vec![span(0, 190), span(190, 61)], vec![span(0, 190), span(251, 39)], vec![span(0, 1)]];
        let all = batch.run(
            isa,
            math,
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
        let view = RowsMut::new(&mut out, 3, q_width, q_width);
        attention(isa, &threads, &plan, &input, batch.scoring, math, view);
        let expected: Vec<f32> = last_rows.iter().flat_map(|r| row(&all, *r, q_width)).copied().collect();
        assert_same_bits(&out, &expected, q_width, &name(isa, math));
    }
}

#[test]
fn a_window_that_no_row_exceeds_changes_no_bits() {
    let threads = Threads::new(2).unwrap();
    for (isa, math) in arithmetics().into_iter().filter(|(_, math)| !is_emulated(*math)) {
        let mut batch = Batch::new(heads((6, 2, 40)), 230, 9);
        let spans = [span(0, 230)];
        let segments = [Queries { rows: 0..230, first_position: 0, spans: &spans }];
        let without = batch.run(isa, math, &threads, &segments);
        batch.scoring.window = Some(230);
        let with = batch.run(isa, math, &threads, &segments);
        assert_same_bits(&with, &without, batch.q_width(), &name(isa, math));
        batch.scoring.window = Some(229);
        let shorter = batch.run(isa, math, &threads, &segments);
        let last = 229 * batch.q_width();
        assert_same_bits(&shorter[..last], &without[..last], batch.q_width(), &name(isa, math));
        assert_ne!(shorter[last..], without[last..], "the last row no longer sees key 0");
    }
}

/// So do matrix units: the emulated one has the bits of the CPU's.
#[test]
fn instruction_sets_that_fuse_give_the_same_bits() {
    let threads = Threads::new(2).unwrap();
    let fused = Isa::fused_for_tests();
    let arithmetics: Vec<_> = arithmetics().into_iter().filter(|(isa, _)| fused.contains(isa)).collect();
    for (shape, scale) in HEADS.into_iter().zip([1.0, 1e-38].into_iter().cycle()) {
        let mut batch = Batch::new(heads(shape), 230, 5);
        batch.scale_values(scale);
        let spans = [span(0, 230)];
        let segments = [Queries { rows: 0..230, first_position: 0, spans: &spans }];
        let results: Vec<_> =
            arithmetics.iter().map(|(isa, math)| batch.run(*isa, *math, &threads, &segments)).collect();
        for ((isa, math), result) in arithmetics.iter().zip(&results) {
            let is_same =
                |(_, other): &(Isa, Math)| std::mem::discriminant(other) == std::mem::discriminant(math);
            let first = arithmetics.iter().position(is_same).unwrap();
            let what = format!("{} {shape:?}", name(*isa, *math));
            assert_same_bits(result, &results[first], batch.q_width(), &what);
        }
    }
    if !Isa::available().into_iter().any(|isa| isa.matrix_unit().is_some()) {
        not_run("attention by AMX's tiles (their emulation was run)", "amx");
    }
}

/// A value that is not finite, in each query, key and value in turn: rows before it, other
/// conversations and other kv heads must keep their bits; its own row and, for keys and values,
/// those after it must show it. For a value, no other dimension may.
#[test]
fn a_nan_reaches_the_rows_that_see_it_and_no_other() {
    for (isa, math) in arithmetics() {
        assert_nan_stays(isa, math, None);
        assert_nan_stays(isa, math, Some(40));
    }
}

fn assert_nan_stays(isa: Isa, math: Math, window: Option<usize>) {
    let threads = Threads::new(2).unwrap();
    let heads = heads((6, 2, 40));
    let mut batch = Batch::new(heads, 280, 12);
    batch.scoring.window = window;
    let (q_width, kv_width) = (batch.q_width(), batch.kv_width());
    let paths = [[span(0, 210)], [span(210, 70)]];
    let segments = [
        Queries { rows: 0..210, first_position: 0, spans: &paths[0] },
        Queries { rows: 210..280, first_position: 0, spans: &paths[1] },
    ];
    let clean = batch.run(isa, math, &threads, &segments);
    // The largest f32 is infinite in bfloat16. Rows in a block of 32 keys, and on either side
    // of a tile's end.
    for (bad_row, bad) in [
        (0, f32::NAN),
        (191, f32::INFINITY),
        (192, f32::NAN),
        (70, f32::NAN),
        (75, f32::MAX),
        (209, f32::NEG_INFINITY),
    ] {
        // A dimension in a whole block of 32 and one in the rest of a head.
        let columns = [0, q_width, q_width + kv_width];
        for (column, dim) in columns.into_iter().flat_map(|column| [(column, 5), (column, 37)]) {
            let is_value = column == q_width + kv_width;
            let seen_by = if column == 0 {
                bad_row..bad_row + 1
            } else {
                bad_row..210.min(window.map_or(210, |window| bad_row + window))
            };
            let heads_that_see = if column == 0 { 1 } else { 3 };
            // An infinite key may rightly have a weight of zero.
            let must_show = bad.is_nan() || is_value && (bad.is_infinite() || rounds(math));
            let mut damaged = batch.clone();
            damaged.qkv[bad_row * batch.stride() + column + dim] = bad;
            let got = damaged.run(isa, math, &threads, &segments);
            for row in 0..280 {
                for head in 0..heads.q_heads {
                    let at = row * q_width + head * heads.head_dim;
                    let range = at..at + heads.head_dim;
                    let mut clean = clean[range.clone()].to_vec();
                    let what = format!(
                        "{} {bad} at [{bad_row}, {}], [{row}, {head}]",
                        name(isa, math),
                        column + dim
                    );
                    if seen_by.contains(&row) && head < heads_that_see {
                        let shows = got[range.clone()].iter().any(|x| !x.is_finite());
                        assert!(shows || !must_show, "{what}");
                        if !is_value {
                            continue;
                        }
                        clean[dim] = got[at + dim];
                    }
                    assert_same_bits(&got[range], &clean, heads.head_dim, &what);
                }
            }
        }
    }
}

#[test]
fn attention_stays_within_the_scratch_it_states() {
    for (isa, math) in arithmetics() {
        for shape in HEADS {
            let threads = Threads::new(1).unwrap();
            threads.reserve(scratch_floats(isa, math, heads(shape)));
            let before = threads.scratch_bytes();
            // Over the rows of one item, and the keys of one tile.
            let spans = [span(0, 200)];
            let segments = [Queries { rows: 0..200, first_position: 0, spans: &spans }];
            Batch::new(heads(shape), 200, 1).run(isa, math, &threads, &segments);
            assert_eq!(threads.scratch_bytes(), before, "{} {shape:?}", name(isa, math));
        }
    }
}

#[test]
fn workers_have_neighbouring_items_of_about_equal_cost() {
    let spans = [[span(512, 512)], [span(1024, 30)], [span(0, 512)]];
    let queries = spans.iter().map(|spans| {
        let Span { start, len } = spans[0];
        Queries { rows: start..start + len, first_position: 0, spans }
    });
    let plan = AttentionPlan::new(heads((3, 1, 8)), queries);
    let starts: Vec<usize> = plan.items().iter().map(|item| item.rows.start).collect();
    assert!(starts.is_sorted(), "{starts:?}");
    let cost = |item: &plan::Item| item.rows.len() * (item.first_position + item.rows.len());
    let costs: Vec<usize> = plan.items().iter().map(cost).collect();
    let (all, most) = (costs.iter().sum::<usize>(), *costs.iter().max().unwrap());
    for workers in [1, 2, 3, 7, 100] {
        let firsts: Vec<usize> = (0..=workers).map(|worker| plan.first_item(worker, workers)).collect();
        assert_eq!((firsts[0], firsts[workers]), (0, costs.len()));
        for range in firsts.windows(2) {
            let own: usize = costs[range[0]..range[1]].iter().sum();
            assert!(own <= all / workers + most, "{own} of {all} for one of {workers} workers");
        }
    }
    // Of two workers each has one conversation, up to an item.
    assert!(plan.items()[plan.first_item(1, 2)].rows.start.abs_diff(512) <= 128, "{starts:?}");
    assert_eq!(AttentionPlan::new(heads((3, 1, 8)), []).first_item(2, 2), 0);
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
