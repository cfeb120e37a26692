//! What passes ask of the driver and what runs beside what, by the software GPU's counts and its logical times.

use std::path::Path;

use kudos::{Device, Engine, Options, Residency};

use crate::common::{Sizes, ids, random_model};
use crate::gpu::{Entry, Gpu};

const SIZES: Sizes = Sizes { hidden: 512, ffn: 2048, layers: 8, vocab: 64 };
const TOKENS: usize = 16;
const PASSES: usize = 5;

fn open(model: &Path, residency: Residency, ranks: usize) -> Engine {
    let options = Options {
        device: Device::Cuda,
        ranks: Some(ranks),
        residency,
        batch_tokens: TOKENS,
        max_tokens: Some(TOKENS),
        ..Options::default()
    };
    Engine::open(model, options).unwrap()
}

/// One pass for each of some sequences; the rewards' bits.
fn score(engine: &Engine) -> Vec<u32> {
    let one =
        |seed: usize| engine.score_tokens(&[ids(seed as u64 + 1, TOKENS, SIZES.vocab as u32)]).remove(0);
    (0..PASSES).map(|seed| one(seed).unwrap().reward.to_bits()).collect()
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_pass_allocates_and_makes_nothing_and_waits_once() {
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
    assert_eq!(gpu.calls("cuStreamSynchronize"), PASSES as u64);
    assert_eq!(gpu.calls("cuCtxSynchronize"), 0);
    // Its tokens' rows of the embeddings, and no weights.
    assert_eq!(gpu.copied_in_pinned(), (PASSES * TOKENS * SIZES.hidden * 2) as u64);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn streamed_layers_are_copied_once_a_pass_under_the_computation_of_those_before() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    let layer_bytes = (random_model(dir.path(), SIZES) / SIZES.layers) as u64;
    for resident in [0, 3] {
        let engine = open(dir.path(), Residency::Streamed { resident_layers: Some(resident) }, 1);
        score(&engine);
        gpu.reset_trace();
        score(&engine);
        // The copies for the passes to come may have been asked for, or not yet: two slots' worth.
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
        let beside: u64 = compute.iter().map(|entry| overlap(entry, &copies)).sum();
        // Copies take longer here than what is computed: nearly all of that can lie beside them. Seen: 0.96 to 1.
        assert!(
            beside * 10 >= total * 9,
            "{resident} resident: {beside} of {total} ns of computation beside copies"
        );
    }
}

/// How much of an entry's time some copy runs. Copies of one stream follow one another.
fn overlap(entry: &Entry, copies: &[Entry]) -> u64 {
    let part = |copy: &Entry| copy.end.min(entry.end).saturating_sub(copy.start.max(entry.start));
    copies.iter().map(part).sum::<u64>().min(entry.end - entry.start)
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
