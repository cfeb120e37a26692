//! Attention by kernels that take boxes: tests that they pass beside those of every attention kernel.

use kudos::internals::backend::cuda::gemm::Share;
use kudos::internals::backend::cuda::kernels::{ATTENTION, AttentionKernel};
use kudos::internals::backend::cuda::tiles::Tiles;
use kudos::{ErrorKind, Sharing};

use crate::attention::{
    Limits, Queries, Setting, family, heads, pack, qkv_rows, run, try_run, try_run_within,
};
use crate::launches::Counters;
use crate::{AttentionTest, Gpu};

pub(crate) const TESTS: &[AttentionTest] = &[
    ("has_the_bits_of_the_simple_one", has_the_bits_of_the_simple_one),
    ("refuses_work_that_it_cannot_do", refuses_work_that_it_cannot_do),
];

/// Conversations of one token, each of which is a work item: so many that one block has `count` of them, the
/// last block where `count` is 2, the first where it is 3.
pub(crate) fn rounds(count: u32, gpu: &Gpu) -> Vec<Vec<u32>> {
    (0..(count - 1) * gpu.info().multiprocessors as u32 + 1).map(|id| vec![20_000 + id]).collect()
}

/// Both do the same matmuls and sums in the same order: what differs is how boxes come, in any number of
/// blocks.
fn has_the_bits_of_the_simple_one(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let of_file = |other: &&AttentionKernel| other.stem == "attention_sm90a_simple";
    let simple = ATTENTION.iter().filter(of_file).find(|other| other.head_dim == kernel.head_dim).unwrap();
    let (simple, ops) = (gpu.ops_with(simple), gpu.ops_with(kernel));
    let long = vec![(5_000..5_400).collect()];
    let many = pack(&[long, family(), rounds(2, gpu)].concat(), Sharing::Prefixes);
    let few = pack(&family(), Sharing::Prefixes);
    let one = pack(&[(0..130).collect()], Sharing::Prefixes);
    let widest = kernel.head_dim;
    for (heads, packed) in
        [(heads(3, 1, widest), &many), (heads(4, 2, widest - 8), &few), (heads(128, 1, 8), &one)]
    {
        let rows = qkv_rows(gpu.format, heads, packed);
        for queries in [Queries::All, Queries::Last] {
            let expected = run(&simple, heads, packed, &rows, queries);
            for share in [Share::Whole, Share::BesideCollectives] {
                let setting = Setting { limits: Limits::NONE, share };
                let got = try_run_within(setting, &ops, heads, packed, &rows, queries, |_| {}).unwrap();
                let differ =
                    got.iter().zip(&expected).position(|(got, want)| got.to_bits() != want.to_bits());
                assert_eq!(differ, None, "{heads:?}, {queries:?}, {share:?}");
            }
        }
    }
}

/// The software GPU runs warps, and completes copies of boxes, in the random order of each seed, and finds no
/// race in it.
pub(crate) fn order_of_warps_changes_nothing(gpu: &Gpu, kernel: &'static AttentionKernel, softgpu: Counters) {
    let ops = gpu.ops_with(kernel);
    let long = vec![(5_000..5_400).collect()];
    let packed = pack(&[long, rounds(2, gpu)].concat(), Sharing::Prefixes);
    let heads = heads(3, 1, kernel.head_dim);
    let rows = qkv_rows(gpu.format, heads, &packed);
    let in_order = |seed| {
        softgpu.order(seed);
        let got = try_run(&ops, heads, &packed, &rows, Queries::All, |_| {});
        softgpu.order(0);
        got.unwrap_or_else(|error| panic!("seed {seed}: {error}: {}", softgpu.message()))
    };
    let by_index = in_order(0);
    for seed in 1..=3 {
        assert!(in_order(seed) == by_index, "{}, seed {seed}", kernel.name);
    }
}

fn refuses_work_that_it_cannot_do(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let packed = pack(&family(), Sharing::Prefixes);
    let refusal = |group: usize, first_head: u32| {
        let heads = heads(group, 1, 8);
        let rows = qkv_rows(gpu.format, heads, &packed);
        let edit = |tiles: &mut Tiles| {
            tiles.all.iter_mut().for_each(|work| (work.first_head, work.pairs) = (first_head, 1));
        };
        let error = try_run(&ops, heads, &packed, &rows, Queries::All, edit).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        error.message().to_owned()
    };
    assert!(refusal(2, 1).contains("work that begins with a token's first head"));
    assert!(refusal(129, 0).contains("up to 128 query heads per kv head, not 129"));
}
