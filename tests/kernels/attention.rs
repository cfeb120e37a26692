//! Attention with its tile tables and seam tiles: tests that every attention kernel passes.

use std::slice;

use kudos::Sharing;
use kudos::internals::backend::cuda::format::ActivationFormat;
use kudos::internals::backend::cuda::gemm::Share;
use kudos::internals::backend::cuda::kernels::AttentionKernel;
use kudos::internals::backend::cuda::ops::{Attention, Heads, Ops, SeamTiles};
use kudos::internals::backend::cuda::tiles::Tiles;
use kudos::internals::batch::{Batch, Budget, Packed};

use crate::numbers::{Random, bits, half_ulp, tables, try_download, upload_raw, value};
use crate::{AttentionTest, Gpu};

pub(crate) const TESTS: &[AttentionTest] = &[
    ("matches_naive_on_shared_prefixes", matches_naive_on_shared_prefixes),
    ("matches_naive_at_lengths_around_whole_tiles", matches_naive_at_lengths_around_whole_tiles),
    ("matches_naive_where_one_logit_is_huge", matches_naive_where_one_logit_is_huge),
    ("averages_values_where_keys_are_equal", averages_values_where_keys_are_equal),
    ("does_not_depend_on_neighbours_or_sharing", does_not_depend_on_neighbours_or_sharing),
    ("of_last_rows_has_the_bits_of_all_rows", of_last_rows_has_the_bits_of_all_rows),
    ("reads_nothing_of_other_conversations", reads_nothing_of_other_conversations),
];

pub(crate) const fn heads(q_heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    Heads { q_heads, kv_heads, head_dim }
}

/// Groups of every kind, at the kernel's own width and at narrower ones: 1:1, 3:1, 7:1, 8:1, 20:1.
fn shapes(kernel: &AttentionKernel) -> Vec<Heads> {
    let widest = kernel.head_dim;
    let all = [
        heads(3, 1, widest),
        heads(6, 2, widest - 8),
        heads(20, 1, 8),
        heads(2, 2, widest),
        heads(8, 1, widest),
        heads(7, 1, widest / 2 + 8),
    ];
    // Without tensor cores, half of them take as long on the software GPU as all of them with.
    all[..if kernel.is_plain() { 3 } else { 6 }].to_vec()
}

pub(crate) fn width(heads: Heads) -> usize {
    (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim
}

pub(crate) fn pack(sequences: &[Vec<u32>], sharing: Sharing) -> Packed {
    let mut batch = Batch::new(Budget { tokens: 100_000, sequences: 1_000 }, sharing);
    assert!(sequences.iter().all(|ids| batch.try_add(ids)));
    batch.pack()
}

/// The q, k and v of a token, which depend on its id and position alone.
fn qkv_row(format: ActivationFormat, heads: Heads, id: u32, position: u32) -> Vec<u16> {
    let mut random = Random::new(u64::from(id) * 100_003 + u64::from(position) + 1);
    random.rows(format, width(heads), 1.0).into_iter().map(|number| bits(format, number)).collect()
}

pub(crate) fn qkv_rows(format: ActivationFormat, heads: Heads, packed: &Packed) -> Vec<u16> {
    let tokens = packed.tokens.iter().zip(&packed.positions);
    tokens.flat_map(|(&id, &position)| qkv_row(format, heads, id, position)).collect()
}

/// Limits of what queries see, and of their scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    pub(crate) window: Option<usize>,
    pub(crate) cap: Option<f32>,
}

impl Limits {
    pub(crate) const NONE: Self = Self { window: None, cap: None };
}

/// The limits of attention, and the part of the GPU that it is planned for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) limits: Limits,
    pub(crate) share: Share,
}

impl Setting {
    pub(crate) const DEFAULT: Self = Self { limits: Limits::NONE, share: Share::Whole };
}

impl From<Limits> for Setting {
    fn from(limits: Limits) -> Self {
        Self { limits, ..Self::DEFAULT }
    }
}

/// Attention of every packed row, `[tokens, q_width]`, or of the last ones.
pub(crate) fn run(ops: &Ops, heads: Heads, packed: &Packed, rows: &[u16], queries: Queries) -> Vec<f64> {
    try_run(ops, heads, packed, rows, queries, |_| {}).unwrap()
}

/// Like `run`, but returns errors; `edit` may spoil the tables.
pub(crate) fn try_run(
    ops: &Ops,
    heads: Heads,
    packed: &Packed,
    rows: &[u16],
    queries: Queries,
    edit: impl Fn(&mut Tiles),
) -> kudos::Result<Vec<f64>> {
    try_run_within(Setting::DEFAULT, ops, heads, packed, rows, queries, edit)
}

/// Like `try_run`, in a setting.
pub(crate) fn try_run_within(
    setting: impl Into<Setting>,
    ops: &Ops,
    heads: Heads,
    packed: &Packed,
    rows: &[u16],
    queries: Queries,
    edit: impl Fn(&mut Tiles),
) -> kudos::Result<Vec<f64>> {
    let Setting { limits: Limits { window, cap }, share } = setting.into();
    let tokens = packed.tokens.len();
    let group = heads.q_heads / heads.kv_heads;
    let needs = ops.attention_kernel().tile_needs(group);
    let mut tiles = Tiles::new(packed, slice::from_ref(&(0..tokens)), group, needs, tokens);
    edit(&mut tiles);
    let seam_rows = tiles.seam_sources.len();
    let mut all = rows.to_vec();
    // NaN where seam tiles will be: they must be written before they are read.
    all.resize((tokens + seam_rows) * width(heads), bits(ops.format(), f64::NAN));
    let mut qkv = upload_raw(ops, &all);
    let (seam_tables, sources) = tables(ops, |tables| tables.seam_sources(&tiles.seam_sources));
    ops.seam_tiles(SeamTiles {
        qkv: &mut qkv,
        tables: &seam_tables,
        sources: &sources,
        first_row: tokens,
        heads,
    })?;
    let (work, out_rows) = match queries {
        Queries::All => (&tiles.all, tokens),
        Queries::Last => {
            // The last rows' queries replace those of the first rows.
            let mut places: Vec<u16> = qkv.all().download(ops.context().compute()).unwrap();
            let q_width = heads.q_heads * heads.head_dim;
            for (i, last) in packed.last.iter().enumerate() {
                places[i * width(heads)..][..q_width]
                    .copy_from_slice(&rows[last.row * width(heads)..][..q_width]);
            }
            qkv.upload(0, &places, ops.context().compute()).unwrap();
            (&tiles.last, packed.last.len())
        }
    };
    let mut out = ops.context().allocate(out_rows * heads.q_heads * heads.head_dim * ops.format().bytes())?;
    let (tables, work) = tables(ops, |tables| {
        let tile_rows = tables.tile_rows(&tiles.tile_rows);
        tables.work_list(work, &tile_rows, group)
    });
    ops.attention(Attention {
        qkv: qkv.all(),
        out: &mut out,
        tables: &tables,
        work: &work?,
        share,
        heads,
        scale: 1.0 / (heads.head_dim as f32).sqrt(),
        window,
        cap,
    })?;
    try_download(ops, &out)
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Queries {
    All,
    Last,
}

/// Attention of one row over its path, and `sum(p * |v|)`, which bounds the effect of rounding P on
/// each element.
pub(crate) fn naive(
    format: ActivationFormat,
    heads: Heads,
    rows: &[u16],
    path: &[usize],
    row: usize,
    head: usize,
) -> Vec<(f64, f64)> {
    naive_capped(None, format, heads, rows, path, row, head)
}

/// Like `naive`, with a cap on the scores.
pub(crate) fn naive_capped(
    cap: Option<f32>,
    format: ActivationFormat,
    heads: Heads,
    rows: &[u16],
    path: &[usize],
    row: usize,
    head: usize,
) -> Vec<(f64, f64)> {
    let Heads { q_heads, kv_heads, head_dim } = heads;
    let number = |row: usize, column: usize| value(format, rows[row * width(heads) + column]);
    let kv_head = head / (q_heads / kv_heads);
    let (key, values) = ((q_heads + kv_head) * head_dim, (q_heads + kv_heads + kv_head) * head_dim);
    let scores: Vec<f64> = path
        .iter()
        .map(|&k| (0..head_dim).map(|i| number(row, head * head_dim + i) * number(k, key + i)).sum::<f64>())
        .map(|dot| dot / (head_dim as f64).sqrt())
        .map(|score| cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()))
        .collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..head_dim)
        .map(|i| {
            let terms = path.iter().zip(&weights).map(|(&k, weight)| weight / total * number(k, values + i));
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        })
        .collect()
}

/// Conversations that share prefixes of many lengths: paths of one to five spans with odd
/// boundaries, a prefix of another, one token.
pub(crate) fn family() -> Vec<Vec<u32>> {
    let prompt: Vec<u32> = (0..70).collect();
    let with = |from: u32, len: u32| [prompt.clone(), (from..from + len).collect()].concat();
    // Each leaves the longest one at another position.
    let long: Vec<u32> = (1_000..1_203).collect();
    let leaving = |at: usize, from: u32| [&long[..at], &[from, from + 1, from + 2]].concat();
    vec![
        with(200, 13),
        (300..429).collect(),
        with(400, 64),
        prompt.clone(),
        vec![5],
        with(200, 6),
        (7..9).collect(),
        leaving(37, 2_000),
        leaving(65, 2_100),
        long.clone(),
        leaving(66, 2_200),
        leaving(191, 2_300),
    ]
}

/// Holds attention of the rows that `chosen` picks to the naive computation. The bound: one
/// rounding of each P and one of O; f32 sums and ex2 are far below either. Seen on the software
/// GPU: at most 0.78 of it with tensor cores, 0.91 without.
fn assert_matches(ops: &Ops, heads: Heads, packed: &Packed, rows: &[u16], chosen: impl Fn(usize) -> bool) {
    let got = run(ops, heads, packed, rows, Queries::All);
    let differs = difference(Limits::NONE, ops.format(), heads, packed, rows, &got, chosen);
    assert_eq!(differs, None);
}

/// The first element of the rows that `chosen` picks, of the attention within these limits, that is
/// out of bounds.
pub(crate) fn difference(
    Limits { window, cap }: Limits,
    format: ActivationFormat,
    heads: Heads,
    packed: &Packed,
    rows: &[u16],
    got: &[f64],
    chosen: impl Fn(usize) -> bool,
) -> Option<String> {
    // An error of the capped score is relative in its weight, and stays below one of P.
    let slack = if cap.is_some() { 1.05 } else { 1.01 };
    for segment in &packed.segments {
        let path: Vec<usize> =
            segment.spans.iter().flat_map(|span| span.start..span.start + span.len).collect();
        for row in segment.rows.clone().filter(|&row| chosen(packed.positions[row] as usize)) {
            let position = packed.positions[row] as usize;
            let path = &path[(position + 1).saturating_sub(window.unwrap_or(usize::MAX))..=position];
            for head in 0..heads.q_heads {
                let start = (row * heads.q_heads + head) * heads.head_dim;
                let want = naive_capped(cap, format, heads, rows, path, row, head);
                for (i, (&got, (want, size))) in got[start..].iter().zip(want).enumerate() {
                    let bound = half_ulp(format) * slack * (size + want.abs()) + 1e-6;
                    // A NaN is not within it.
                    let is_within = (got - want).abs() <= bound;
                    if !is_within {
                        return Some(format!(
                            "{heads:?}: row {row}, head {head}, dim {i}: {got:e}, expected {want:e} within {bound:e}"
                        ));
                    }
                }
            }
        }
    }
    None
}

fn matches_naive_on_shared_prefixes(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let packed = pack(&family(), Sharing::Prefixes);
    assert!(packed.segments.iter().any(|segment| segment.spans.len() == 5), "paths of up to five spans");
    for heads in shapes(kernel) {
        let rows = qkv_rows(gpu.format, heads, &packed);
        assert_matches(&ops, heads, &packed, &rows, |_| true);
    }
}

fn matches_naive_at_lengths_around_whole_tiles(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let lengths = [1, 2, 63, 64, 65, 127, 128, 129, 1_023, 1_024, 1_025, 4_097];
    // Without tensor cores the long ones would take a minute on the software GPU.
    let longest = if kernel.is_plain() { 129 } else { 4_097 };
    let sequences: Vec<Vec<u32>> = lengths
        .into_iter()
        .filter(|&len| len <= longest)
        .map(|len| (0..len).map(|at| 10_000 * len + at).collect())
        .collect();
    let packed = pack(&sequences, Sharing::Prefixes);
    let heads = heads(1, 1, kernel.head_dim.min(128));
    let rows = qkv_rows(gpu.format, heads, &packed);
    // Each path's rows around the ends of tiles, and of blocks of queries.
    let around = |position: usize| position < 2 || (position + 2) % 128 < 3 || position.is_multiple_of(509);
    assert_matches(&ops, heads, &packed, &rows, around);
}

/// Changes elements of the rows: `edit` gets position, column and the element's value.
pub(crate) fn edited(
    format: ActivationFormat,
    heads: Heads,
    packed: &Packed,
    edit: impl Fn(usize, usize, f64) -> f64,
) -> Vec<u16> {
    let mut rows = qkv_rows(format, heads, packed);
    for (at, number) in rows.iter_mut().enumerate() {
        let (row, column) = (at / width(heads), at % width(heads));
        *number = bits(format, edit(packed.positions[row] as usize, column, value(format, *number)));
    }
    rows
}

fn matches_naive_where_one_logit_is_huge(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let heads = heads(3, 1, kernel.head_dim.min(128));
    let packed = pack(&family(), Sharing::Prefixes);
    let keys = heads.q_heads * heads.head_dim..(heads.q_heads + 1) * heads.head_dim;
    for hot in [0, 64, 69] {
        let rows = edited(gpu.format, heads, &packed, |position, column, number| {
            // The first dim of each q is 60; that of the keys 0, and -60 or 60 for the hot ones:
            // logits of +-300 to 450.
            match column % heads.head_dim {
                0 if column < keys.start => 60.0,
                0 if keys.contains(&column) && position == hot => 60.0,
                0 if keys.contains(&column) && position == hot + 1 => -60.0,
                0 if keys.contains(&column) => 0.0,
                _ => number,
            }
        });
        assert_matches(&ops, heads, &packed, &rows, |_| true);
    }
}

fn averages_values_where_keys_are_equal(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let heads = heads(3, 1, kernel.head_dim.min(128));
    let packed = pack(&family(), Sharing::Prefixes);
    let keys = heads.q_heads * heads.head_dim..(heads.q_heads + 1) * heads.head_dim;
    let rows = edited(
        gpu.format,
        heads,
        &packed,
        |_, column, number| {
            if keys.contains(&column) { 0.5 } else { number }
        },
    );
    assert_matches(&ops, heads, &packed, &rows, |_| true);
    // And to the bit where the values are equal, too: their own average.
    let rows = edited(
        gpu.format,
        heads,
        &packed,
        |_, column, number| {
            if column >= keys.start { 0.5 } else { number }
        },
    );
    let got = run(&ops, heads, &packed, &rows, Queries::All);
    assert!(got.iter().all(|&number| number == 0.5), "{:?}", got.iter().find(|&&number| number != 0.5));
}

/// The results of each sequence's last row, in the order of the sequences.
pub(crate) fn of_last_rows(heads: Heads, packed: &Packed, all: &[f64]) -> Vec<Vec<u64>> {
    let q_width = heads.q_heads * heads.head_dim;
    let row = |&last: &usize| {
        all[packed.last[last].row * q_width..][..q_width].iter().map(|x| x.to_bits()).collect()
    };
    packed.sequences.iter().map(row).collect()
}

fn does_not_depend_on_neighbours_or_sharing(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    for heads in [heads(3, 1, kernel.head_dim), heads(7, 1, 16)] {
        let bits = |sequences: &[Vec<u32>], sharing| {
            let packed = pack(sequences, sharing);
            let rows = qkv_rows(gpu.format, heads, &packed);
            of_last_rows(heads, &packed, &run(&ops, heads, &packed, &rows, Queries::All))
        };
        let sequences = family();
        let shared = bits(&sequences, Sharing::Prefixes);
        assert_eq!(bits(&sequences, Sharing::Nothing), shared, "{heads:?}: sharing");
        let alone: Vec<_> = sequences
            .iter()
            .map(|ids| bits(std::slice::from_ref(ids), Sharing::Prefixes).remove(0))
            .collect();
        assert_eq!(alone, shared, "{heads:?}: alone");
        assert_eq!(bits(&sequences, Sharing::Prefixes), shared, "{heads:?}: again");
    }
}

fn of_last_rows_has_the_bits_of_all_rows(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    for heads in [heads(8, 1, kernel.head_dim), heads(20, 1, 8)] {
        let packed = pack(&family(), Sharing::Prefixes);
        let rows = qkv_rows(gpu.format, heads, &packed);
        let all = run(&ops, heads, &packed, &rows, Queries::All);
        let last = run(&ops, heads, &packed, &rows, Queries::Last);
        let q_width = heads.q_heads * heads.head_dim;
        for (i, row) in packed.last.iter().enumerate() {
            assert_eq!(
                last[i * q_width..][..q_width],
                all[row.row * q_width..][..q_width],
                "{heads:?}: last row {i}"
            );
        }
    }
}

fn reads_nothing_of_other_conversations(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    for lonely in LONELY {
        assert_eq!(changed_by_nan(lonely, &ops, heads(3, 1, kernel.head_dim), |_| {}), [lonely]);
    }
}

/// The sequences of the family that share nothing: no other reads their rows. The rows of the last
/// one follow those of another's only tile, which is not whole.
const LONELY: [usize; 3] = [1, 4, NEIGHBOUR];
pub(crate) const NEIGHBOUR: usize = 6;

/// The sequences of the family whose results change when all rows of `lonely` are NaN; `edit` may
/// spoil the tables.
pub(crate) fn changed_by_nan(
    lonely: usize,
    ops: &Ops,
    heads: Heads,
    edit: impl Fn(&mut Tiles),
) -> Vec<usize> {
    let sequences = family();
    let packed = pack(&sequences, Sharing::Prefixes);
    let mut rows = qkv_rows(ops.format(), heads, &packed);
    let run = |rows: &[u16]| try_run(ops, heads, &packed, rows, Queries::All, &edit).unwrap();
    let clean = of_last_rows(heads, &packed, &run(&rows));
    let last = packed.last[packed.sequences[lonely]].row;
    let first = last + 1 - sequences[lonely].len();
    rows[first * width(heads)..(last + 1) * width(heads)].fill(bits(ops.format(), f64::NAN));
    let got = of_last_rows(heads, &packed, &run(&rows));
    (0..got.len()).filter(|&i| got[i] != clean[i]).collect()
}
