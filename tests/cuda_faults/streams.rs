//! Calls of the driver by passes, and overlap of their work, by the software GPU's counts and
//! logical times.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Waker};

use kudos::internals::backend::profile::{Class, Profile, Spent};
use kudos::{AllReduce, Batching, CudaOptions, Engine, Overlap, Residency, Score};

use crate::common::{ModelSizes, batches_of, ids, random_model};
use crate::gpu::{Entry, Gpu};

const SIZES: ModelSizes = ModelSizes { hidden: 512, ffn: 2048, layers: 8, vocab: 64 };
const TOKENS: usize = 16;
const PASSES: usize = 5;

fn open(model: &Path, residency: Residency, ranks: usize) -> Engine {
    open_with(model, residency, ranks, None)
}

fn open_with(model: &Path, residency: Residency, ranks: usize, profile: Option<Profile>) -> Engine {
    let options = CudaOptions { ranks: Some(ranks), ..CudaOptions::default() };
    let builder = Engine::builder(model).device(options).residency(residency).profile(profile);
    builder.max_tokens(TOKENS).batching(batches_of(TOKENS)).open().unwrap()
}

/// Scores sequences in a pass each, and returns the bits of the rewards.
fn score(engine: &Engine) -> Vec<u32> {
    let one = |seed: usize| engine.score(&[ids(seed as u64 + 1, TOKENS, SIZES.vocab as u32)]).remove(0);
    (0..PASSES).map(|seed| one(seed).unwrap().reward.to_bits()).collect()
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_pass_creates_nothing_and_waits_once() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    let engine = open(dir.path(), Residency::Resident, 1);
    score(&engine);
    gpu.reset_trace();
    score(&engine);
    for name in [
        "cuMemAlloc_v2",
        "cuMemFree_v2",
        "cuMemHostAlloc",
        "cuModuleLoadData",
        "cuStreamCreate",
        "cuEventCreate",
    ] {
        assert_eq!(gpu.calls(name), 0, "{name}");
    }
    // It waits for the event behind its logits, which are copied to pinned memory.
    assert_eq!(gpu.calls("cuStreamSynchronize"), 0);
    assert_eq!(gpu.calls("cuCtxSynchronize"), 0);
    assert_eq!((gpu.copied_in_pageable(), gpu.copied_out_pageable()), (0, 0));
    // Rows of the embeddings, and at most 64 bytes of tables per row; no weights.
    let (embeddings, tables_max) = (PASSES * TOKENS * SIZES.hidden * 2, PASSES * TOKENS * 64);
    let copied = gpu.copied_in_pinned() as usize;
    assert!((embeddings..embeddings + tables_max).contains(&copied), "{copied}");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn opening_makes_each_context_once() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    for ranks in [1, 2] {
        gpu.reset_trace();
        // Free bytes are asked for, and decide what stays on the GPUs.
        let engine = open(dir.path(), Residency::Auto, ranks);
        assert_eq!(gpu.contexts(), ranks as u64);
        drop(engine);
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_pass_makes_no_more_calls_than_its_layers_need() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    let engine = open(dir.path(), Residency::Resident, 1);
    score(&engine);
    gpu.reset_trace();
    score(&engine);
    let (layers, passes) = (SIZES.layers as u64, PASSES as u64);
    // A layer: two norms, rope, attention, silu; four matmuls. The last layer has rope and the
    // matmul of q, k and v in two, and gathers the last rows of two activations. Then a norm and
    // the head.
    let launches = 5 * layers + 5;
    let matmuls = 4 * layers + 1;
    let expected = [
        ("cuLaunchKernel", launches),
        ("cublasLtMatmul", matmuls),
        // The rows of x and of out.
        ("cublasLtMatrixLayoutSetAttribute", 2 * matmuls),
        // Tables, and rows of embeddings. Each waits for its staging slot, which is free by then.
        ("cuMemcpyHtoDAsync_v2", 2),
        // Logits, and the event behind them.
        ("cuMemcpyDtoHAsync_v2", 1),
        ("cuEventRecord", 3),
        ("cuEventSynchronize", 3),
    ];
    // The thread's context is read and set with each of them, in the host's memory alone.
    let mut calls = gpu.all_calls();
    calls.retain(|name, _| !matches!(&**name, "cuCtxGetCurrent" | "cuCtxSetCurrent"));
    let expected = expected.into_iter().map(|(name, count)| (name.to_owned(), count * passes)).collect();
    assert_eq!(calls, expected);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn only_a_profiled_pass_has_marks_and_one_after_every_op() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    let calls_of = |engine: &Engine| {
        gpu.reset_trace();
        let rewards = score(engine);
        (gpu.all_calls(), rewards)
    };
    let plain = open(dir.path(), Residency::Resident, 1);
    score(&plain);
    let expected = calls_of(&plain);
    drop(plain);
    let profile = Profile::default();
    let engine = open_with(dir.path(), Residency::Resident, 1, Some(profile.clone()));
    score(&engine);
    assert_eq!(calls_of(&engine), expected, "a profile that is off adds no calls");

    profile.start();
    let (calls, rewards) = calls_of(&engine);
    let spent = profile.stop();
    assert_eq!(rewards, expected.1);
    let ops: Vec<(&str, usize)> =
        spent.iter().map(|spent| (spent.class.name(), spent.ops / PASSES)).collect();
    let layers = SIZES.layers;
    let classes = [
        ("tables", 1),
        ("embeddings", 1),
        ("add_rms_norm", 2 * layers + 1),
        ("product_qkv", layers + 1),
        ("rope", layers + 1),
        ("attention", layers),
        ("product_o", layers),
        ("product_gate_up", layers),
        ("gate_mul", layers),
        ("product_down", layers),
        ("gather_rows", 2),
        ("score", 1),
    ];
    assert_eq!(ops, classes);
    // They cover the pass: every launch, matmul and copy to the GPU belongs to one op.
    let of = |name: &str| calls[name] as usize / PASSES;
    let count =
        |kind: &str| classes.iter().filter(|(class, _)| class.starts_with(kind)).map(|(_, ops)| ops).sum();
    let (all, matmuls): (usize, usize) = (count(""), count("product"));
    assert_eq!((of("cublasLtMatmul"), of("cuLaunchKernel")), (matmuls, all - matmuls - 2));
    assert_eq!(of("cuMemcpyHtoDAsync_v2"), 2);
    // One at the beginning, one after each op, and the three of any pass; created in the first pass,
    // then reused.
    assert_eq!(of("cuEventRecord"), all + 1 + 3);
    assert_eq!(calls["cuEventCreate"] as usize, all + 1);
    // An older driver has the first version alone.
    let elapsed = ["cuEventElapsedTime", "cuEventElapsedTime_v2"].map(|name| calls.get(name).unwrap_or(&0));
    assert_eq!(elapsed.into_iter().sum::<u64>() as usize / PASSES, all);
    assert!(spent.iter().all(|spent| spent.seconds >= 0.0));

    assert_eq!(calls_of(&engine), expected, "a profile that was stopped adds no calls");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn profiled_all_reduces_and_streamed_layers_keep_the_bits() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    let ops_of = |spent: &[Spent], class: Class| {
        spent.iter().find(|spent| spent.class == class).map(|spent| spent.ops)
    };
    for (ranks, residency, streamed) in
        [(2, Residency::Resident, 0), (2, Residency::Streamed { resident_layers: Some(5) }, 3)]
    {
        let profile = Profile::default();
        let engine = open_with(dir.path(), residency, ranks, Some(profile.clone()));
        let expected = score(&engine);
        profile.start();
        let rewards = score(&engine);
        let spent = profile.stop();
        assert_eq!(rewards, expected, "{residency:?}");
        assert_eq!(ops_of(&spent, Class::AllReduce), Some(PASSES * 2 * SIZES.layers), "{residency:?}");
        let waits = ops_of(&spent, Class::StreamedLayers).unwrap_or(0);
        assert_eq!(waits, PASSES * streamed, "{residency:?}");
    }
    gpu.assert_free();
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn streamed_layers_are_copied_once_a_pass_during_computation() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    let layer_bytes = (random_model(dir.path(), SIZES) / SIZES.layers) as u64;
    for resident in [0, 3] {
        let engine = open(dir.path(), Residency::Streamed { resident_layers: Some(resident) }, 1);
        score(&engine);
        gpu.reset_trace();
        score(&engine);
        // The copies for the next pass, of up to two slots, may be queued or not.
        let (copied, streamed) = (gpu.copied_in_pinned() / layer_bytes, SIZES.layers - resident);
        let expected = (PASSES * streamed) as u64;
        assert!(
            (expected - 2..=expected + 2).contains(&copied),
            "{copied} layers were copied, not {expected}"
        );
        let trace = gpu.trace();
        let of = |kinds: &[&str]| {
            trace.iter().filter(|entry| kinds.contains(&&*entry.kind)).cloned().collect::<Vec<_>>()
        };
        let (copies, compute) = (of(&["copy_in"]), of(&["kernel", "library"]));
        let total: u64 = compute.iter().map(|entry| entry.end - entry.start).sum();
        let overlapped: u64 = compute.iter().map(|entry| overlap_of(entry, &copies)).sum();
        // Copies take longer here than computation, nearly all of which can overlap with them.
        // Seen: 0.96 to 1.
        assert!(
            overlapped * 10 >= total * 9,
            "{resident} resident: {overlapped} of {total} ns of computation overlap with copies"
        );
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn all_reduces_overlap_with_computation_where_they_may() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    let share = |overlap, all_reduce| {
        let tokens = 256;
        let options = CudaOptions { ranks: Some(2), overlap, all_reduce, ..CudaOptions::default() };
        let builder = Engine::builder(dir.path()).device(options);
        let engine = builder.max_tokens(tokens).batching(batches_of(tokens)).open().unwrap();
        gpu.reset_trace();
        let sequence = [ids(1, tokens, SIZES.vocab as u32)];
        let reward = engine.score(&sequence).remove(0).unwrap().reward.to_bits();
        let trace: Vec<Entry> = gpu.trace().into_iter().filter(|entry| entry.device == 0).collect();
        let of = |kinds: &[&str]| {
            trace.iter().filter(|entry| kinds.contains(&&*entry.kind)).cloned().collect::<Vec<_>>()
        };
        let (all_reduces, compute) = (of(&["collective"]), of(&["kernel", "library"]));
        let time = |entry: &Entry| entry.end - entry.start;
        assert!(all_reduces.len() >= 2 * SIZES.layers, "{all_reduces:?}");
        // They come before the blocks of a kernel that fills the card.
        assert!(all_reduces.iter().all(|entry| entry.priority < 0), "{all_reduces:?}");
        assert!(compute.iter().all(|entry| entry.priority == 0), "{compute:?}");
        let overlapped: u64 = all_reduces.iter().map(|entry| overlap_of(entry, &compute)).sum();
        (overlapped as f64 / all_reduces.iter().map(time).sum::<u64>() as f64, reward)
    };
    for all_reduce in [AllReduce::Ordered, AllReduce::Nccl] {
        let ((overlapped, reward), (alone, expected)) =
            (share(Overlap::Always, all_reduce), share(Overlap::Never, all_reduce));
        println!(
            "{all_reduce:?}: {overlapped:.3} of the all-reduces' time overlaps, {alone:.3} without parts"
        );
        assert_eq!(reward, expected, "{all_reduce:?}");
        // All except those of the last layer, which has one row. Seen: 0.98, and 0.14 without
        // parts.
        assert!(overlapped >= 0.8 && alone <= 0.3, "{all_reduce:?}: {overlapped}, {alone}");
    }
}

/// Returns the part of an entry's time in which one of the others runs; those are of one stream, in
/// order.
fn overlap_of(entry: &Entry, others: &[Entry]) -> u64 {
    let part = |other: &Entry| other.end.min(entry.end).saturating_sub(other.start.max(entry.start));
    others.iter().map(part).sum::<u64>().min(entry.end - entry.start)
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn the_next_full_batch_leaves_the_queue_while_a_pass_runs() {
    let (_gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    for ranks in [1, 2] {
        // The probe enters the queue once two of three batches are taken, and not before.
        let (tokens, probe_tokens) = (256, 512);
        let options = CudaOptions { ranks: Some(ranks), ..CudaOptions::default() };
        let batching = Batching { queue_tokens: tokens + probe_tokens, ..batches_of(tokens) };
        let builder = Engine::builder(dir.path()).device(options).batching(batching);
        let engine = builder.max_tokens(probe_tokens).open().unwrap();
        let sequence = |seed, length| ids(seed, length, SIZES.vocab as u32);
        // If the second batch were taken after the first pass, the first score would be complete by
        // then, however slow this thread is. Otherwise this thread has the time of a pass to poll,
        // which may be too short once.
        let taken_meanwhile = (0..5).any(|_| {
            let mut pending = engine.submit_all((1..4).map(|seed| sequence(seed, tokens)));
            let probe = engine.submit(sequence(4, probe_tokens)).wait().unwrap();
            let first = pending[0].as_mut().unwrap();
            let runs = Pin::new(first).poll(&mut Context::from_waker(Waker::noop())).is_pending();
            probe.wait().unwrap();
            runs
        });
        assert!(taken_meanwhile, "{ranks} ranks");
    }
}

/// The idle times of the compute stream between passes, in logical nanoseconds, and the launches
/// that were queued behind a pass's logits: of batches of one sequence each, all but the last of
/// which are full.
fn between_passes(
    gpu: &Gpu,
    tokens: usize,
    score: impl FnOnce(&[Vec<u32>]) -> Vec<kudos::Result<Score>>,
) -> (Vec<u64>, u64, Vec<u32>) {
    let sequences: Vec<Vec<u32>> = (1..5).map(|seed| ids(seed, tokens, SIZES.vocab as u32)).collect();
    gpu.reset_trace();
    let scores = score(&sequences);
    let trace = gpu.trace();
    let results = trace.iter().find(|entry| entry.kind == "copy_out").unwrap();
    let compute: Vec<&Entry> = trace.iter().filter(|entry| entry.stream == results.stream).collect();
    let is_work = |entry: &Entry| matches!(&*entry.kind, "kernel" | "library");
    let gaps =
        compute.iter().enumerate().filter(|(_, entry)| entry.kind == "copy_out").filter_map(|(at, _)| {
            let before = compute[..at].iter().rfind(|entry| is_work(entry))?;
            let after = compute[at..].iter().find(|entry| is_work(entry))?;
            Some(after.start - before.end)
        });
    let rewards = scores.into_iter().map(|score| score.unwrap().reward.to_bits()).collect();
    (gaps.collect(), gpu.launches_behind_results(), rewards)
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn the_next_pass_begins_before_logits_are_waited_for() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    let tokens = 128;
    let open = |residency, ranks, profile| {
        let options = CudaOptions { ranks: Some(ranks), ..CudaOptions::default() };
        let builder = Engine::builder(dir.path()).device(options).residency(residency).profile(profile);
        builder.max_tokens(tokens).batching(batches_of(tokens)).open().unwrap()
    };
    let engine = open(Residency::Resident, 1, None);
    // One after the other: each pass waits for its embeddings.
    let (alone, behind, expected) = between_passes(&gpu, tokens, |sequences| {
        sequences.iter().flat_map(|ids| engine.score(std::slice::from_ref(ids))).collect()
    });
    assert_eq!(behind, 0);
    let (gaps, behind, rewards) = between_passes(&gpu, tokens, |sequences| engine.score(sequences));
    println!(
        "{gaps:?} ns between passes, {alone:?} where each waits for its embeddings, {behind} launches begun"
    );
    assert_eq!(rewards, expected);
    // Two layers of five kernels and four matmuls, but for the last pass.
    assert_eq!(behind, 2 * 9);
    // The logits and the tables are copied, and the embeddings within the device. The last batch is
    // taken when the pass before has ended: others may share its prefixes.
    assert_eq!((gaps.len(), alone.len()), (3, 3));
    let short = |(gap, alone): (&u64, &u64)| 10 * gap < *alone;
    assert!(gaps[..2].iter().zip(&alone).all(short), "{gaps:?}, {alone:?}");
    drop(engine);
    // A pass that is profiled has no ops of the next one.
    let profile = Profile::default();
    profile.start();
    let engine = open(Residency::Resident, 1, Some(profile));
    let (_, behind, rewards) = between_passes(&gpu, tokens, |sequences| engine.score(sequences));
    assert_eq!((behind, rewards), (0, expected.clone()));
    drop(engine);
    // Ranks begin the same collectives; a streamed first layer is not waited for.
    for (residency, ranks, begun) in [
        (Residency::Resident, 2, true),
        (Residency::Streamed { resident_layers: Some(4) }, 1, true),
        (Residency::Streamed { resident_layers: Some(0) }, 1, false),
    ] {
        let engine = open(residency, ranks, None);
        let (_, behind, rewards) = between_passes(&gpu, tokens, |sequences| engine.score(sequences));
        assert_eq!(behind > 0, begun, "{residency:?}, {ranks} ranks");
        if ranks == 1 {
            assert_eq!(rewards, expected, "{residency:?}");
        }
    }
    gpu.assert_free();
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn an_engine_ends_well_while_the_next_pass_is_begun() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    for ranks in [1, 2] {
        let engine = open(dir.path(), Residency::Resident, ranks);
        let pending = engine.submit_all((1..6).map(|seed| ids(seed, TOKENS, SIZES.vocab as u32)));
        let mut pending = pending.into_iter().map(Result::unwrap);
        pending.next().unwrap().wait().unwrap();
        engine.abort();
        // Each is scored, or gets the error of an engine that has ended; and the GPUs can be used
        // again.
        let ended = pending.filter_map(|pending| pending.wait().err()).collect::<Vec<_>>();
        assert!(ended.iter().all(|error| error.kind() == kudos::ErrorKind::Stopped), "{ended:?}");
        gpu.assert_free();
        score(&open(dir.path(), Residency::Resident, ranks));
    }
    gpu.assert_free();
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn streamed_ranks_give_the_bits_of_resident_ones() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    random_model(dir.path(), SIZES);
    let expected = score(&open(dir.path(), Residency::Resident, 2));
    for resident in [0, 5] {
        let engine = open(dir.path(), Residency::Streamed { resident_layers: Some(resident) }, 2);
        assert_eq!(score(&engine), expected, "{resident} resident layers");
        let planned = engine.plan().ranks * engine.plan().footprint.total();
        assert!(gpu.held().live_bytes <= planned as u64, "{planned} bytes planned, {:?}", gpu.held());
    }
    gpu.assert_free();
}
