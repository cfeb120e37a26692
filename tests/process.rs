//! Allocations and memory of a whole process: one test in a binary of its own, because those of
//! other tests would be counted.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{ModelSizes, ids, on_cpu, random_model};
use kudos::internals::config::ModelConfig;
use kudos::{CpuMath, CpuOptions, Engine};
use serde_json::json;

/// The system's allocator, with a count of allocations.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Opens an engine with random weights in `layers` layers.
fn engine(layers: usize, ranks: usize) -> Engine {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 16, "vocab_size": 100, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "max_position_embeddings": 1024, "tie_word_embeddings": true, "dtype": "bfloat16",
    });
    let config = ModelConfig::parse(&config.to_string(), Path::new("a test")).unwrap();
    let options = CpuOptions {
        ranks: Some(ranks),
        threads: Some(2 * ranks),
        math: CpuMath::F32,
        ..CpuOptions::default()
    };
    Engine::builder_random(config, 1).device(options).open().unwrap()
}

/// Returns the fewest allocations of several equal calls: other threads of the harness allocate
/// too.
fn allocations_of_a_call(engine: &Engine, sequences: &[Vec<u32>]) -> usize {
    let call = |_| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        engine.score(sequences).into_iter().for_each(|score| drop(score.unwrap()));
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    (0..8).map(call).min().unwrap()
}

#[test]
fn weights_are_not_copied_and_passes_do_not_allocate() {
    anonymous_memory_stays_within_the_plan_and_32_mib();
    a_pass_allocates_as_much_with_many_layers_as_with_few();
}

fn a_pass_allocates_as_much_with_many_layers_as_with_few() {
    // Several segments, with rows of more than one tile.
    let prefix: Vec<u32> = (0..300).map(|index| index % 100).collect();
    let sequences: Vec<Vec<u32>> =
        (0..4).map(|last| prefix.iter().copied().chain([last, 7, last]).collect()).collect();
    for ranks in [1, 2] {
        let few = allocations_of_a_call(&engine(2, ranks), &sequences);
        let many = allocations_of_a_call(&engine(12, ranks), &sequences);
        println!("{ranks} ranks: {few} allocations a call with 2 layers, {many} with 12");
        // An allocation per layer would add at least ten; the channels between ranks allocate now
        // and then.
        assert!(many < few + 5, "{ranks} ranks: {few} allocations with 2 layers, {many} with 12");
    }
}

/// Returns the anonymous memory of this process in RAM, in bytes; `None` where the system does not
/// report it.
fn anonymous_bytes() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<usize>().ok()? * 1024)
}

/// Asserts that opening and scoring make no copy of the weights, which are used where they are
/// mapped.
fn anonymous_memory_stays_within_the_plan_and_32_mib() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = ModelSizes { hidden: 1024, ffn: 4096, layers: 6, vocab: 16_384 };
    let weight_bytes = random_model(dir.path(), sizes);
    assert!(weight_bytes > 200 << 20);
    let Some(before) = anonymous_bytes() else {
        eprintln!("not run: this system does not report the anonymous memory of a process");
        return;
    };
    let engine = on_cpu(dir.path()).open().unwrap();
    let scores = engine.score(&[ids(1, 400, 16_384), ids(2, 33, 16_384)]);
    assert!(scores.iter().all(Result::is_ok), "{scores:?}");
    let grown = anonymous_bytes().unwrap().saturating_sub(before);
    let workspace = engine.plan().footprint.workspace;
    assert!(
        grown <= workspace + (32 << 20),
        "{grown} bytes grown, {workspace} planned, {weight_bytes} of weights"
    );
    // The bound above would hide a copy of the weights if it were not below their size.
    assert!(
        workspace + (32 << 20) < weight_bytes,
        "{workspace} planned: too much for this test to detect a copy"
    );
}
