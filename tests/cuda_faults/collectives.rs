//! All-reduces of several ranks: the bytes that they move, what they start on the host, and the
//! multiprocessors that they leave to matmuls.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use kudos::internals::backend::cuda::all_reduce::AllReducer;
use kudos::internals::backend::cuda::context::Context;
use kudos::internals::backend::cuda::format::ActivationFormat;
use kudos::internals::backend::cuda::nccl::Group;
use kudos::internals::backend::cuda::ops::{AddRmsNorm, Delta, Norm, Ops};
use kudos::internals::backend::cuda::probe::devices;
use kudos::internals::backend::{Capacity, Geometry};
use kudos::internals::config::ModelConfig;
use kudos::internals::shard::Shard;
use kudos::{CudaOptions, CudaTier, Engine, Overlap};

use crate::common::{ModelSizes, batches_of, ids, random_model};
use crate::gpu::{Entry, Gpu};

const SIZES: ModelSizes = ModelSizes { hidden: 1024, ffn: 512, layers: 2, vocab: 64 };
const SEQUENCES: usize = 4;
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

/// Width of the rows that are all-reduced alone: 4 KiB.
const HIDDEN: usize = 2048;
/// Two pieces, for each of which slices save more than 16 MiB from 4 ranks on.
const ROWS: usize = 5_632;

/// Bits in bf16 of element `index` of the residual stream, which is rank 0, or of a rank's part, from
/// 1: of very different sizes, so that the order of additions shows.
fn element(rank: usize, index: usize) -> u16 {
    let mut state = (rank as u64 + 1) << 40 | index as u64;
    state = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state = (state ^ state >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    // Exponents of 2^-8 to 2^7.
    (state as u16 & 0x807F) | (119 + (state >> 20 & 15) as u16) << 7
}

fn widened(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds a finite number to the nearest, ties to even.
fn rounded(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

fn elements(rank: usize) -> Vec<u16> {
    (0..ROWS * HIDDEN).map(|index| element(rank, index)).collect()
}

/// The sums of the residual stream and of all ranks' parts in their order, with one rounding.
fn sums(ranks: usize) -> Vec<u16> {
    let sum = |index: usize| {
        let parts = (1..=ranks).map(|rank| widened(element(rank, index)));
        rounded(parts.fold(widened(element(0, index)), |sum, part| sum + part))
    };
    (0..ROWS * HIDDEN).map(sum).collect()
}

/// All-reduces rows of as many ranks, each on a thread, and returns what rank 0's norm adds, and its
/// residual stream.
fn all_reduce(gpu: &Gpu, model: &Path, ranks: usize, rows: usize) -> (&'static str, Vec<u16>) {
    let config = ModelConfig::read(model).unwrap();
    let group = Arc::new(Group::new(ranks, Duration::from_secs(60)).unwrap());
    let infos = devices().unwrap();
    let done = Barrier::new(ranks);
    let work = |rank: usize| {
        let ops = Ops::new(Context::open(&infos[rank]).unwrap(), CudaTier::Sm80, 64).unwrap();
        let (context, shard) = (ops.context(), Shard::new(&config, rank, ranks).unwrap());
        let geometry = Geometry::new(&config, shard, Vec::new(), 1);
        let capacity = Capacity { tokens: ROWS, sequences: 1, mlp_tokens: ROWS };
        let (group, format) = (Arc::clone(&group), ActivationFormat::Bf16);
        let mut reducer = AllReducer::new(context, group, &geometry, &capacity, format).unwrap();
        reducer.connect(&ops).unwrap();
        let mut residual = context.allocate(ROWS * HIDDEN * 2).unwrap();
        residual.upload(0, &elements(0), context.compute()).unwrap();
        reducer.partial().upload(0, &elements(rank + 1), context.compute()).unwrap();
        done.wait();
        // The first collectives are those of the connection.
        if rank == 0 {
            gpu.reset_trace();
        }
        done.wait();
        let mut taken = "";
        reducer.begin(&ops, 0..rows, &mut residual).unwrap();
        let norm = |piece: Range<usize>, delta: Delta<'_>, residual: &mut _| {
            taken = match delta {
                Delta::None => "sums",
                Delta::Parts(..) => "parts",
                Delta::In(_) => "sums of NCCL",
            };
            if matches!(delta, Delta::None) {
                return Ok(());
            }
            let (mut weight, mut out) = (context.allocate(HIDDEN * 2)?, context.allocate(ROWS * HIDDEN * 2)?);
            weight.fill(0, context.compute())?;
            ops.add_rms_norm(AddRmsNorm {
                residual,
                delta,
                norm: Norm::Scale,
                weight: weight.all(),
                out: &mut out,
                first_row: piece.start,
                tokens: piece.len(),
                hidden: HIDDEN,
                eps: 1e-5,
            })
        };
        reducer.take(&ops, 0..rows, &mut residual, norm).unwrap();
        let residual: Vec<u16> = residual.all().download(context.compute()).unwrap();
        // A rank that ends aborts the collectives of the others.
        done.wait();
        (taken, residual)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || work(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).next().unwrap()
    })
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn ordered_all_reduces_move_what_nccl_s_own_would() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), ModelSizes { hidden: HIDDEN, ffn: 64, layers: 1, vocab: 64 });
    for ranks in [2, 4, 8] {
        let expected = sums(ranks);
        // Few rows are gathered, with the same bits.
        for rows in [ROWS, 3] {
            let (taken, residual) = all_reduce(&gpu, dir.path(), ranks, rows);
            let is_sliced = ranks > 2 && rows == ROWS;
            assert_eq!(taken, if is_sliced { "sums" } else { "parts" }, "{rows} rows of {ranks} ranks");
            let (changed, kept) = residual.split_at(rows * HIDDEN);
            assert!(changed == &expected[..changed.len()], "{rows} rows of {ranks} ranks");
            assert!(kept == &elements(0)[changed.len()..], "{rows} rows of {ranks} ranks");
            let factor = if is_sliced { 2.0 / ranks as f64 } else { 1.0 };
            let moved = ((ranks - 1) as f64 * factor * (rows * HIDDEN * 2) as f64) as usize;
            println!("{rows} rows of {ranks} ranks: {moved} bytes sent by a rank");
            assert_eq!(sent(&of_first(&gpu), ranks), moved, "{rows} rows of {ranks} ranks");
            // NCCL starts a thread of the host for each call that does not block.
            let pieces = if rows == ROWS { 2 } else { 1 };
            let collectives = if is_sliced { 2 * pieces } else { pieces };
            assert_eq!(gpu.nccl_jobs() as usize, ranks * collectives, "{rows} of {ranks}");
        }
    }
    gpu.assert_free();
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_pass_that_adds_by_slices_keeps_its_bits() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), ModelSizes { ffn: 64, ..SIZES });
    // With a residual stream in f32, slices among 8 ranks save enough from some 800 rows on: the
    // first of two pieces, or parts, of these is added by slices, the second gathered.
    let tokens = 26 * SEQUENCE_TOKENS;
    let sequences: Vec<Vec<u32>> =
        (1..27).map(|seed| ids(seed, SEQUENCE_TOKENS, SIZES.vocab as u32)).collect();
    let open = |overlap| {
        let options =
            CudaOptions { tier: Some(CudaTier::Sm75), ranks: Some(8), overlap, ..CudaOptions::default() };
        let builder = Engine::builder(dir.path()).device(options);
        builder.max_tokens(tokens).batching(batches_of(tokens)).open().unwrap()
    };
    let exchanges = |gpu: &Gpu| of_first(gpu).iter().filter(|entry| entry.name == "ncclSend").count();
    let mut together = Vec::new();
    for overlap in [Overlap::Never, Overlap::Always] {
        let engine = open(overlap);
        gpu.reset_trace();
        together.push(score(&engine, &sequences));
        assert_eq!(exchanges(&gpu), 2 * (SIZES.layers - 1), "{overlap:?}");
        if overlap == Overlap::Always {
            gpu.reset_trace();
            let alone: Vec<u32> =
                sequences[..4].iter().flat_map(|ids| score(&engine, std::slice::from_ref(ids))).collect();
            assert_eq!(exchanges(&gpu), 0);
            assert_eq!(alone, together[0][..4]);
        }
    }
    assert_eq!(together[0], together[1]);
    gpu.assert_free();
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
