//! Attention with a sliding window and a cap on the scores: tests of the attention kernels that
//! have them. Those of the kernels without, which these are variants of, follow: without a window
//! and a cap, both have the same bits.

use kudos::internals::backend::cuda::kernels::{ATTENTION, AttentionFeatures, AttentionKernel};
use kudos::internals::backend::cuda::ops::{Heads, Ops};
use kudos::internals::backend::cuda::tiles::{Tiles, WorkItem};
use kudos::internals::batch::Packed;
use kudos::{ErrorKind, Sharing};

use crate::attention::{
    Limits, Queries, difference, edited, family, heads, of_last_rows, pack, qkv_rows, try_run,
    try_run_within, width,
};
use crate::numbers::bits;
use crate::{AttentionTest, Gpu};

pub(crate) const TESTS: &[AttentionTest] = &[
    ("without_limits_has_the_bits_of_the_kernel_without", without_limits_has_the_bits_of_the_kernel_without),
    ("sees_the_last_keys_alone", sees_the_last_keys_alone),
    ("caps_scores_however_large_they_are", caps_scores_however_large_they_are),
    ("of_a_row_does_not_depend_on_its_block_or_sharing", of_a_row_does_not_depend_on_its_block_or_sharing),
    ("reads_no_tile_before_the_window", reads_no_tile_before_the_window),
    ("with_wrong_limits_is_caught", with_wrong_limits_is_caught),
];

const CAP: Option<f32> = Some(50.0);

fn window(keys: usize) -> Limits {
    Limits { window: Some(keys), cap: None }
}

fn run(limits: Limits, ops: &Ops, heads: Heads, packed: &Packed, rows: &[u16], queries: Queries) -> Vec<f64> {
    try_run_within(limits, ops, heads, packed, rows, queries, |_| {}).unwrap()
}

fn without_limits_has_the_bits_of_the_kernel_without(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let name = kernel.name.strip_suffix("_wc").unwrap();
    let without = ATTENTION.iter().find(|kernel| kernel.name == name).unwrap();
    assert_eq!(without.features, AttentionFeatures::NONE);
    let (ops, ops_without) = (gpu.ops_with(kernel), gpu.ops_with(without));
    let packed = pack(&family(), Sharing::Prefixes);
    let heads = heads(3, 1, kernel.head_dim / 2 + 8);
    let rows = qkv_rows(gpu.format, heads, &packed);
    let got = run(Limits::NONE, &ops, heads, &packed, &rows, Queries::All);
    let want = try_run(&ops_without, heads, &packed, &rows, Queries::All, |_| {}).unwrap();
    assert!(got.iter().zip(&want).all(|(got, want)| got.to_bits() == want.to_bits()));
    // A window that is longer than every path hides nothing either.
    let wide = run(window(204), &ops, heads, &packed, &rows, Queries::All);
    assert!(wide.iter().zip(&want).all(|(got, want)| got.to_bits() == want.to_bits()));
    // They are refused where the kernel has none.
    for (limits, word) in
        [(window(5), "no sliding window"), (Limits { window: None, cap: CAP }, "no soft cap")]
    {
        let error =
            try_run_within(limits, &ops_without, heads, &packed, &rows, Queries::All, |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains(name) && error.message().contains(word), "{error}");
    }
    let caps = [0.0, -1.0, f32::NAN, f32::INFINITY].map(|cap| Limits { window: None, cap: Some(cap) });
    for limits in [window(0)].into_iter().chain(caps) {
        let error = try_run_within(limits, &ops, heads, &packed, &rows, Queries::All, |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{limits:?}");
    }
}

/// The seams of the family's paths, at 37, 65, 66, 70 and 191, lie within, at and before windows.
fn sees_the_last_keys_alone(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let packed = pack(&family(), Sharing::Prefixes);
    let heads = heads(3, 1, kernel.head_dim.min(128));
    let rows = qkv_rows(gpu.format, heads, &packed);
    let all = [1, 3, 63, 64, 65, 100, 1_000, usize::MAX].map(window);
    // Without tensor cores they take too long on the software GPU.
    let some = [1, 64, 100].map(window);
    for limits in if kernel.is_plain() { &some[..] } else { &all } {
        let got = run(*limits, &ops, heads, &packed, &rows, Queries::All);
        let differs = difference(*limits, gpu.format, heads, &packed, &rows, &got, |_| true);
        assert_eq!(differs, None, "{limits:?}");
    }
}

fn caps_scores_however_large_they_are(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let packed = pack(&family(), Sharing::Prefixes);
    let heads = heads(3, 1, kernel.head_dim.min(128));
    let keys = heads.q_heads * heads.head_dim..(heads.q_heads + 1) * heads.head_dim;
    // Scores of +-300 to 450 among those of a few units; some of 1e7 and more, whose power of two is
    // infinite or 0; a few units alone.
    let all = [
        (60.0, Limits { window: Some(70), cap: CAP }),
        (2e4, Limits { window: None, cap: Some(5.0) }),
        (0.0, Limits { window: None, cap: CAP }),
    ];
    for &(hot, limits) in if kernel.is_plain() { &all[..2] } else { &all } {
        let rows =
            edited(gpu.format, heads, &packed, |position, column, number| match column % heads.head_dim {
                0 if column < keys.start => hot,
                0 if keys.contains(&column) && position % 50 == 7 => hot,
                0 if keys.contains(&column) && position % 50 == 8 => -hot,
                0 if keys.contains(&column) => 0.0,
                _ => number,
            });
        let got = run(limits, &ops, heads, &packed, &rows, Queries::All);
        let differs = difference(limits, gpu.format, heads, &packed, &rows, &got, |_| true);
        assert_eq!(differs, None, "{limits:?}, {hot}");
    }
}

/// One work item for each pair: each row of a block by itself.
fn split(tiles: &mut Tiles, group: u32) {
    let pairs = |work: &WorkItem| {
        let work = *work;
        (work.first_head..work.first_head + work.pairs).map(move |pair| {
            let token = pair / group;
            WorkItem {
                query_row: work.query_row + token,
                out_row: work.out_row + token,
                position: work.position + token,
                first_head: pair % group,
                pairs: 1,
                ..work
            }
        })
    };
    tiles.all = tiles.all.iter().flat_map(pairs).collect();
}

fn of_a_row_does_not_depend_on_its_block_or_sharing(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let heads = heads(2, 1, kernel.head_dim.min(64));
    let long: Vec<u32> = (1_000..1_203).collect();
    let sequences = [long.clone(), [&long[..66], &[5, 6, 7]].concat(), [&long[..150], &[8; 70]].concat()];
    let packed = pack(&sequences, Sharing::Prefixes);
    let rows = qkv_rows(gpu.format, heads, &packed);
    // One takes as long without tensor cores as all of them with.
    let all = [Limits { window: Some(100), cap: CAP }, window(3), window(65)];
    for &limits in if kernel.is_plain() { &all[..1] } else { &all } {
        let together = run(limits, &ops, heads, &packed, &rows, Queries::All);
        let alone = try_run_within(limits, &ops, heads, &packed, &rows, Queries::All, |tiles| {
            split(tiles, (heads.q_heads / heads.kv_heads) as u32);
        });
        let differs = alone.unwrap().iter().zip(&together).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(differs, None, "{limits:?}: alone");
        let unshared = pack(&sequences, Sharing::Nothing);
        let unshared_rows = qkv_rows(gpu.format, heads, &unshared);
        let apart = run(limits, &ops, heads, &unshared, &unshared_rows, Queries::All);
        let shared = of_last_rows(heads, &packed, &together);
        assert_eq!(of_last_rows(heads, &unshared, &apart), shared, "{limits:?}: not shared");
    }
}

fn reads_no_tile_before_the_window(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let heads = heads(2, 1, kernel.head_dim);
    let packed = pack(&[(0..203).collect(), (300..329).collect()], Sharing::Prefixes);
    let rows = qkv_rows(gpu.format, heads, &packed);
    let keys = heads.q_heads * heads.head_dim;
    // The last query, at 202, sees the keys from 153 on: those of the third and the fourth tile.
    let limits = window(50);
    let clean = run(limits, &ops, heads, &packed, &rows, Queries::Last);
    let last = packed.last.iter().find(|last| packed.positions[last.row] == 202).unwrap();
    let first_row = last.row - 202;
    let spoiled = |positions: std::ops::Range<usize>| {
        let mut rows = rows.clone();
        for position in positions {
            let row = (first_row + position) * width(heads);
            rows[row + keys..row + width(heads)].fill(bits(gpu.format, f64::NAN));
        }
        run(limits, &ops, heads, &packed, &rows, Queries::Last)
    };
    assert_eq!(spoiled(0..128), clean);
    assert!(spoiled(0..154).iter().any(|number| number.is_nan()), "the window's first key is read");
}

/// Tests of the tests: limits that are a little wrong show.
fn with_wrong_limits_is_caught(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let packed = pack(&family(), Sharing::Prefixes);
    let heads = heads(2, 1, 16);
    let rows = qkv_rows(gpu.format, heads, &packed);
    let right = Limits { window: Some(65), cap: CAP };
    for wrong in [
        Limits { window: Some(64), ..right },
        Limits { window: Some(66), ..right },
        Limits { window: None, ..right },
        Limits { cap: None, ..right },
        Limits { cap: Some(40.0), ..right },
    ] {
        let got = run(wrong, &ops, heads, &packed, &rows, Queries::All);
        let differs = difference(right, gpu.format, heads, &packed, &rows, &got, |_| true);
        assert!(differs.is_some(), "{wrong:?} instead of {right:?}: not caught");
    }
    let got = run(right, &ops, heads, &packed, &rows, Queries::All);
    assert_eq!(difference(right, gpu.format, heads, &packed, &rows, &got, |_| true), None);
}
