//! Tests of the tests: attention with one bug, planted as it is loaded, must be caught, and named.
//! Otherwise checks that find nothing would look like kernels without bugs.

use kudos::Sharing;
use kudos::internals::backend::cuda::context::Context;
use kudos::internals::backend::cuda::kernels::AttentionKernel;
use kudos::internals::backend::cuda::ops::Ops;
use kudos::internals::backend::cuda::tiles::{TILE_KEYS, WorkItem};

use crate::attention::{NEIGHBOUR, Queries, changed_by_nan, family, heads, pack, qkv_rows, try_run};
use crate::boxes::rounds;
use crate::launches::Counters;
use crate::work::is_of_warpgroups;
use crate::{AttentionTest, Gpu};

/// Tests that need no software GPU.
pub(crate) const TESTS: &[AttentionTest] =
    &[("of_a_path_too_long_shows", keys_of_another_conversation_are_seen)];

/// The software GPU's names for the effects of a missing barrier, wait or arrival.
const UNORDERED: [&str; 6] = [
    "shared memory race",
    "asynchronous copy in flight",
    "operand of a matmul in flight",
    "missing fence",
    "uninitialised read",
    "barrier error",
];

/// The kernel with a bug, or `None` where it has no such instruction.
fn with(plant: &str, gpu: &Gpu, kernel: &'static AttentionKernel, softgpu: Counters) -> Option<Ops> {
    let context = Context::open(gpu.info()).unwrap();
    softgpu.plant(&format!("{}: {plant}", kernel.name));
    let ops = Ops::with_attention(context, kernel).ok();
    assert_eq!(ops.is_some(), softgpu.planted() > 0, "{plant}: planted where it loads, and only there");
    softgpu.plant("");
    ops
}

/// Runs a kernel that has a bug; the software GPU must stop it and report the cause. The context
/// ends here, and with it its error.
fn assert_caught(plant: &str, gpu: &Gpu, ops: Ops, softgpu: Counters) {
    let kernel = ops.attention_kernel();
    let heads = heads(3, 1, kernel.head_dim);
    // The first one has tiles of 128 keys before those in which some are masked.
    let sequences = [vec![(5_000..5_400).collect()], family()].concat();
    let sequences = if kernel.boxes { [sequences, rounds(3, gpu)].concat() } else { sequences };
    let packed = pack(&sequences, Sharing::Prefixes);
    let rows = qkv_rows(ops.format(), heads, &packed);
    let outcome = try_run(&ops, heads, &packed, &rows, Queries::All, |_| {});
    assert!(outcome.is_err(), "{}, {plant}: not caught", kernel.name);
    let message = softgpu.message();
    assert!(message.contains(kernel.name), "{plant}: {message}");
    assert!(UNORDERED.iter().any(|name| message.contains(name)), "{plant}: {message}");
}

pub(crate) fn bugs_are_caught(gpu: &Gpu, kernel: &'static AttentionKernel, softgpu: Counters) {
    // Every barrier and every wait by itself. Barriers: two for each key tile's K and V, before and
    // after; a ring that is filled behind what is read has one each. Waits: one before each of a
    // ring's barriers.
    let (barriers, waits) = match kernel.stem {
        "attention_plain" => (4, 0),
        "attention_sm75" => (2, 0),
        // One before each matmul of scores, and the last one of values; masked tiles have a loop.
        "attention_sm90a_simple" => (4, 4),
        // Behind the initialisation of barriers, which order the rest.
        "attention_sm90a" => (1, 0),
        _ => (2, 2),
    };
    // A wait for a barrier in shared memory goes back to the question until the answer is yes. The thread
    // that brings boxes waits for places of queries, keys and values; warps wait for queries, for keys and
    // for values of the first tile, in each of two loops, and of the last, and arrive when done with them.
    let (boxes, arrivals) = if kernel.boxes { (10, 7) } else { (0, 0) };
    for (instruction, expected) in [
        ("bar.sync", barriers),
        ("cp.async.wait_group", waits),
        ("bra.uni WAIT", boxes),
        ("mbarrier.arrive.shared", arrivals),
    ] {
        let mut count = 0;
        let plant = |n: usize| format!("drop {n} {instruction}");
        while let Some(ops) = with(&plant(count + 1), gpu, kernel, softgpu) {
            count += 1;
            assert_caught(&plant(count), gpu, ops, softgpu);
        }
        assert_eq!(count, expected, "{}: {instruction}", kernel.name);
    }
    if kernel.is_plain() {
        return;
    }
    if is_of_warpgroups(kernel) {
        for instruction in ["wgmma.fence", "wgmma.wait_group", "wgmma.commit_group", "fence.proxy.async"] {
            let plant = format!("drop every {instruction}");
            let ops = with(&plant, gpu, kernel, softgpu).expect("matmuls are ordered");
            assert_caught(&plant, gpu, ops, softgpu);
        }
    }

    // The store through the queries' slot, without waiting for the other lanes.
    let plant = "drop every bar.warp.sync";
    let ops = with(plant, gpu, kernel, softgpu).expect("a warp waits for its lanes");
    assert_caught(plant, gpu, ops, softgpu);

    // Zeros past the end of a path, lost: those rows are another conversation's, and 0 times its
    // NaN is NaN.
    let plant = "set every cp.async.cg 3 16";
    if let Some(ops) = with(plant, gpu, kernel, softgpu) {
        let changed = changed_by_nan(NEIGHBOUR, &ops, heads(3, 1, kernel.head_dim), |_| {});
        assert!(changed.len() > 1, "{}, {plant}: not caught", kernel.name);
    }
}

/// A path that goes one key too far reads keys and values of the conversation in the next rows, as does one
/// whose last tile is not whole where all of its rows are read: results show it.
fn keys_of_another_conversation_are_seen(gpu: &Gpu, kernel: &'static AttentionKernel) {
    let ops = gpu.ops_with(kernel);
    let rows = pack(&family(), Sharing::Prefixes).tokens.len();
    let changed = changed_by_nan(NEIGHBOUR, &ops, heads(3, 1, kernel.head_dim), |tiles| {
        if kernel.boxes {
            // The last tiles as they are where they need not be whole.
            for row in tiles.tile_rows.iter_mut().filter(|row| **row as usize >= rows) {
                *row = tiles.seam_sources[*row as usize - rows];
            }
            return;
        }
        // Where that key is in a tile that the path has.
        let whole =
            |work: &WorkItem| (work.position + work.pairs.div_ceil(3)).is_multiple_of(TILE_KEYS as u32);
        tiles.all.iter_mut().filter(|work| !whole(work)).for_each(|work| work.position += 1);
    });
    assert!(changed.len() > 1, "{}: not caught", kernel.name);
}
