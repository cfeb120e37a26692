//! All-reduces of several ranks: the bytes that they move, what they start on the host, and the
//! multiprocessors that they leave to matmuls.

use std::path::Path;

use kudos::{CudaOptions, Engine, Overlap};

use crate::common::{ModelSizes, batches_of, ids, random_model};
use crate::gpu::{Entry, Gpu};

/// Rows of 2 KiB: those of a full pass are added by slices among 4 ranks or more.
const SIZES: ModelSizes = ModelSizes { hidden: 1024, ffn: 512, layers: 2, vocab: 64 };
const ROW_BYTES: usize = 2 * SIZES.hidden;
const SEQUENCES: usize = 20;
const SEQUENCE_TOKENS: usize = 64;
const TOKENS: usize = SEQUENCES * SEQUENCE_TOKENS;

fn open(model: &Path, ranks: usize, overlap: Overlap) -> Engine {
    let options = CudaOptions { ranks: Some(ranks), overlap, ..CudaOptions::default() };
    let builder = Engine::builder(model).device(options);
    builder.max_tokens(TOKENS).batching(batches_of(TOKENS)).open().unwrap()
}

fn sequences() -> Vec<Vec<u32>> {
    (0..SEQUENCES as u64).map(|seed| ids(seed + 1, SEQUENCE_TOKENS, SIZES.vocab as u32)).collect()
}

fn score(engine: &Engine, sequences: &[Vec<u32>]) -> Vec<u32> {
    engine.score(sequences).into_iter().map(|score| score.unwrap().reward.to_bits()).collect()
}

/// Work of the first device since the last reset.
fn of_first(gpu: &Gpu) -> Vec<Entry> {
    gpu.trace().into_iter().filter(|entry| entry.device == 0).collect()
}

/// Bytes that one rank sends over its link in a ring: all-gathers pass on what the other ranks
/// bring, an exchange sends to each its own.
fn sent(entries: &[Entry], ranks: usize) -> usize {
    let collectives = entries.iter().filter(|entry| entry.kind == "collective");
    let bytes = |entry: &Entry| match &*entry.name {
        "ncclAllGather" => (ranks - 1) * entry.bytes,
        "ncclSend" => entry.bytes,
        other => panic!("{other}"),
    };
    collectives.map(bytes).sum()
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn ordered_all_reduces_move_what_nccl_s_own_would() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    let sequences = sequences();
    for ranks in [2, 4, 8] {
        let engine = open(dir.path(), ranks, Overlap::Never);
        gpu.reset_trace();
        let together = score(&engine, &sequences);
        let (entries, jobs) = (of_first(&gpu), gpu.nccl_jobs());
        // All rows of the first layer's two projections; of the last layer's, those in which
        // sequences end, which all ranks gather.
        let (rows, last_rows) = (2 * (SIZES.layers - 1) * TOKENS, 2 * SEQUENCES);
        let gathered = (ranks - 1) * ROW_BYTES;
        let by_slices = 2 * (ranks - 1) * ROW_BYTES / ranks;
        let expected = rows * by_slices + last_rows * gathered;
        let before = (rows + last_rows) * gathered;
        println!(
            "{ranks} ranks: {} bytes sent by a rank in a pass, {before} by gathering",
            sent(&entries, ranks)
        );
        assert_eq!(sent(&entries, ranks), expected, "{ranks} ranks");
        // Each call that does not block starts a thread of NCCL's: an exchange and a gather of each
        // sliced all-reduce, one gather of others.
        // All rows are two pieces.
        let pieces = 2 * 2 * (SIZES.layers - 1);
        let calls = if ranks > 2 { 2 * pieces } else { pieces } + 2;
        assert_eq!(jobs as usize, ranks * calls, "{ranks} ranks");
        // Alone, a sequence has so few rows that all parts are gathered: the bits are the same.
        gpu.reset_trace();
        let alone: Vec<u32> =
            sequences.iter().flat_map(|ids| score(&engine, std::slice::from_ref(ids))).collect();
        assert!(of_first(&gpu).iter().all(|entry| entry.name != "ncclSend"), "{ranks} ranks");
        assert_eq!(together, alone, "{ranks} ranks");
    }
    gpu.assert_free();
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn slices_keep_their_bits_beside_other_parts() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    // Two parts of 640 rows, or two pieces of as many.
    let [never, always] = [Overlap::Never, Overlap::Always].map(|overlap| {
        let engine = open(dir.path(), 8, overlap);
        gpu.reset_trace();
        let rewards = score(&engine, &sequences());
        let exchanges = of_first(&gpu).iter().filter(|entry| entry.name == "ncclSend").count();
        assert_eq!(exchanges, 2 * 2 * (SIZES.layers - 1), "{overlap:?}");
        rewards
    });
    assert_eq!(never, always);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn matmuls_leave_multiprocessors_to_all_reduces() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    let planned = |ranks, overlap| {
        let engine = open(dir.path(), ranks, overlap);
        gpu.reset_trace();
        score(&engine, &sequences());
        let mut counts: Vec<usize> =
            of_first(&gpu).iter().filter(|e| e.kind == "library").map(|e| e.multiprocessors).collect();
        counts.sort_unstable();
        counts.dedup();
        counts
    };
    // Of the 108 of an A100, NCCL may take 8.
    assert_eq!(planned(2, Overlap::Always), [100]);
    assert_eq!(planned(2, Overlap::Never), [108]);
    // A pass of fewer than 2,048 rows is not cut into parts.
    assert_eq!(planned(2, Overlap::Auto), [108]);
    assert_eq!(planned(1, Overlap::Always), [108]);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn opening_copies_digests_of_trials_out_and_no_rows() {
    let gpu = Gpu::take();
    let copied = |sizes| {
        let dir = tempfile::tempdir().unwrap();
        random_model(dir.path(), sizes);
        gpu.reset_trace();
        drop(open(dir.path(), 1, Overlap::Auto));
        gpu.copied_out_pageable()
    };
    let narrow = copied(ModelSizes { hidden: 128, ffn: 256, layers: 1, vocab: 64 });
    let wide = copied(ModelSizes { hidden: 256, ffn: 1024, layers: 1, vocab: 64 });
    println!("{narrow} bytes are copied out at open");
    // 8 bytes for each of 403 rows of each algorithm, and for some more: whatever the widths.
    assert_eq!(narrow, wide);
    assert!(narrow < 1 << 20, "{narrow}");
}
