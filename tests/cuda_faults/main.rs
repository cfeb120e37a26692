//! Failures of the GPU: every caller gets the cause, and memory is freed. The process continues,
//! without CUDA where a driver does not recover.
//!
//! These tests run on the software GPU, which fails as planned and counts allocations. Its state is
//! one per process: tests in this process run one at a time, and tests that need other settings run
//! the command.

mod collectives;
#[path = "../common/mod.rs"]
mod common;
mod drivers;
mod gpu;
#[cfg(feature = "serve")]
#[path = "../server/http.rs"]
mod http;
mod loading;
#[cfg(feature = "serve")]
#[path = "../server/process.rs"]
mod process;
mod processes;
mod ranks;
#[cfg(feature = "serve")]
mod server;
mod streams;

use std::fs;

use common::{
    ModelSizes, Run, batches_of, ids, kudos_in, overwrite_tensor, random_model, root, widen_to_f32,
};
use gpu::{Gpu, in_own_processes};
use kudos::{CudaOptions, Engine, Error, ErrorKind, Pending, Residency};

const MODEL: &str = "tests/fixtures/models/mha_hd16_bf16";

/// `{"input_ids":[1,2,3]}`
const LINE: &str = "{\"input_ids\":[1,2,3]}\n";

fn open(model: &str) -> kudos::Result<Engine> {
    open_with(model, Residency::Auto)
}

fn open_with(model: &str, residency: Residency) -> kudos::Result<Engine> {
    // A small batch: some sequences stay queued while a pass runs.
    let builder = Engine::builder(root().join(model)).device(CudaOptions::default());
    builder.residency(residency).max_tokens(64).batching(batches_of(16)).open()
}

fn sequences() -> Vec<Vec<u32>> {
    (0..6).map(|seed| ids(seed + 1, 5 + seed as usize, 512)).collect()
}

fn rewards(engine: &Engine) -> Vec<u32> {
    engine.score(sequences()).into_iter().map(|score| score.unwrap().reward.to_bits()).collect()
}

/// Submits sequences, and returns the error with which all of them are completed.
fn failure_of_all(engine: &Engine) -> Error {
    let pending: Vec<kudos::Result<Pending>> =
        sequences().into_iter().map(|ids| engine.submit(ids).wait()).collect();
    let errors: Vec<Error> =
        pending.into_iter().map(|pending| pending.and_then(Pending::wait).unwrap_err()).collect();
    let first = errors[0].clone();
    let known = engine.failure().expect("the engine reports why it stopped");
    let late = engine.submit(vec![1]).wait().map(drop).unwrap_err();
    for error in errors.iter().chain([&known, &late]) {
        assert_eq!(error.report(), first.report());
        assert_eq!(error.kind(), first.kind());
    }
    first
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_failed_allocation_at_load_is_named_and_leaks_nothing() {
    let gpu = Gpu::take();
    every_allocation_fails_once(&gpu, Residency::Resident);
    // With streaming, a copy into a slot may be in progress at the failure.
    every_allocation_fails_once(&gpu, Residency::Streamed { resident_layers: Some(1) });
}

fn every_allocation_fails_once(gpu: &Gpu, residency: Residency) {
    gpu.plan("");
    let expected = rewards(&open(MODEL).unwrap());
    let mut failed = 0;
    let engine = loop {
        gpu.plan(&format!("alloc:{}", failed + 1));
        let error = match open_with(MODEL, residency) {
            Ok(engine) => break engine,
            Err(error) => error,
        };
        failed += 1;
        assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
        let message = error.message();
        let names_allocation =
            message.starts_with("allocating ") && message.contains(" bytes on GPU 0 failed");
        assert!(names_allocation, "{message}");
        assert!(message.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{message}");
        assert!(error.hint().is_some_and(|hint| hint.contains("are needed in all")), "{error}");
        gpu.assert_free();
    };
    // At least seven matrices and vectors in each of three layers.
    assert!(failed > 15, "{failed} allocations");
    assert_eq!(rewards(&engine), expected);
    drop(engine);
    gpu.assert_free();
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn passes_allocate_nothing() {
    let gpu = Gpu::take();
    for residency in [Residency::Resident, Residency::Streamed { resident_layers: Some(1) }] {
        let engine = open_with(MODEL, residency).unwrap();
        let before = gpu.held();
        gpu.plan("alloc:1");
        rewards(&engine);
        engine.score(&[ids(9, 64, 512)]).pop().unwrap().unwrap();
        let after = gpu.held();
        assert_eq!((before.live_bytes, before.pinned_bytes), (after.live_bytes, after.pinned_bytes));
        gpu.plan("");
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn the_plan_covers_all_allocations() {
    let gpu = Gpu::take();
    // Padded heads, f32 files, biases, heads without padding: none may take more than planned.
    let models = ["mha_hd16_bf16", "gqa3_hd64_f32", "kv8_hd32_attention_bias_bf16", "gqa8_hd128_llama3_bf16"];
    let streamed = |count| Residency::Streamed { resident_layers: Some(count) };
    let residencies = [Residency::Resident, streamed(0), streamed(1)];
    for (model, residency) in
        models.into_iter().flat_map(|model| residencies.map(|residency| (model, residency)))
    {
        let engine = open_with(&format!("tests/fixtures/models/{model}"), residency).unwrap();
        engine.score(&[vec![1, 2, 3]]).pop().unwrap().unwrap();
        let (footprint, held) = (engine.plan().footprint, gpu.held());
        let planned = (footprint.weights + footprint.workspace) as u64;
        assert!(held.live_bytes <= planned, "{model}, {residency:?}: {planned} bytes planned, {held:?}");
        assert!(held.peak_bytes >= held.live_bytes, "{held:?}");
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn the_plan_counts_weights_in_the_format_of_the_gpu() {
    let (gpu, dir) = (Gpu::take(), tempfile::tempdir().unwrap());
    for name in ["config.json", "model.safetensors"] {
        fs::copy(root().join(MODEL).join(name), dir.path().join(name)).unwrap();
    }
    let held = |residency| {
        let engine = open_with(dir.path().to_str().unwrap(), residency).unwrap();
        let plan = engine.plan();
        (plan.footprint, plan.placement, plan.streamed_bytes(), gpu.held().live_bytes)
    };
    let mut plans = Vec::new();
    for dtype in ["BF16", "F32"] {
        if dtype == "F32" {
            widen_to_f32(&dir.path().join("model.safetensors"));
        }
        let (resident, all, _, resident_bytes) = held(Residency::Resident);
        let (streamed, some, copied_bytes, streamed_bytes) =
            held(Residency::Streamed { resident_layers: Some(0) });
        // Both have one workspace; the difference is in layers, which are one more than the slots.
        assert_eq!((resident.workspace, all.resident), (streamed.workspace, some.slots + 1), "{dtype}");
        let layer_bytes = resident_bytes - streamed_bytes;
        assert_eq!((resident.weights - streamed.weights) as u64, layer_bytes, "{dtype}");
        assert_eq!(copied_bytes as u64, some.streamed as u64 * layer_bytes, "{dtype}");
        plans.push((resident, resident_bytes));
    }
    assert_eq!(plans[0], plans[1]);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn memory_that_runs_out_at_the_first_launch_names_the_kernel() {
    let gpu = Gpu::take();
    let expected = rewards(&open(MODEL).unwrap());
    let engine = open(MODEL).unwrap();
    gpu.plan("lazy:1");
    let error = failure_of_all(&engine);
    assert_eq!(error.kind(), ErrorKind::Memory);
    assert_eq!(error.message(), "launching `add_rms_norm` failed: CUDA_ERROR_OUT_OF_MEMORY");
    assert!(error.place().is_some_and(|place| place.starts_with("GPU 0 (softgpu")), "{error}");
    gpu.assert_free();
    assert_eq!(rewards(&open(MODEL).unwrap()), expected);
}

/// Asserts that the failure of GPU 0 ended the use of CUDA in this process: a later engine says so
/// at once, with the cause, and does not run on the CPU instead.
fn assert_lost(gpu: &Gpu, cause: &Error) {
    gpu.assert_free();
    let builder = || Engine::builder(root().join(MODEL)).max_tokens(64);
    for error in [builder().device(CudaOptions::default()).open(), builder().open()].map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert!(error.message().contains("CUDA cannot be used in this process any more"), "{error}");
        // Another call may have failed first, on the thread of copies.
        let code = cause.message().rsplit(' ').next().unwrap();
        assert!(error.message().ends_with(&format!(" failed: {code}")), "{error}, caused by {cause}");
        assert_eq!(error.place(), cause.place());
        assert_eq!(error.hint(), Some("start the process again"));
    }
    gpu.assert_free();
}

/// Fails the first, a middle and the last kernel of an engine's first pass.
fn a_failed_pass(test: &str, fault: &str, code: &str) {
    in_own_processes(test, &["first", "middle", "last"], |case| {
        let gpu = Gpu::take();
        let healthy = open(MODEL).unwrap();
        let before = gpu.launches();
        healthy.score(&[vec![1, 2, 3]]).pop().unwrap().unwrap();
        let launches = gpu.launches() - before;
        assert!(launches > 10, "{launches}");
        drop(healthy);
        let failed = open(MODEL).unwrap();
        let at = [("first", 1), ("middle", launches / 2), ("last", launches)];
        let (_, at) = at.into_iter().find(|(name, _)| *name == case).unwrap();
        gpu.plan(&format!("{fault}:{at}"));
        let error = failure_of_all(&failed);
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert!(error.message().ends_with(&format!("failed: {code}")), "{error}");
        assert!(error.place().is_some_and(|place| place.contains("GPU 0 (softgpu")), "{error}");
        assert!(error.place().is_some_and(|place| place.contains("in a pass of ")), "{error}");
        // Callers are notified after the memory is freed.
        assert_lost(&gpu, &error);
        assert!(failed.failure().is_some());
    });
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_lost_device_ends_an_engine_that_streams() {
    in_own_processes("a_lost_device_ends_an_engine_that_streams", &["streamed"], |_| {
        let gpu = Gpu::take();
        let residency = Residency::Streamed { resident_layers: None };
        let expected = rewards(&open(MODEL).unwrap());
        // An engine without a pass ends although layers are staged for one.
        drop(open_with(MODEL, residency).unwrap());
        gpu.assert_free();
        let engine = open_with(MODEL, residency).unwrap();
        assert_eq!(rewards(&engine), expected);
        gpu.plan("lost:9");
        let error = failure_of_all(&engine);
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert!(error.message().ends_with("failed: CUDA_ERROR_UNKNOWN"), "{error}");
        assert_lost(&gpu, &error);
    });
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_failed_launch_ends_cuda_and_completes_all_callers() {
    let test = "a_failed_launch_ends_cuda_and_completes_all_callers";
    a_failed_pass(test, "launch", "CUDA_ERROR_LAUNCH_FAILED");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_lost_device_ends_cuda_and_completes_all_callers() {
    a_failed_pass("a_lost_device_ends_cuda_and_completes_all_callers", "lost", "CUDA_ERROR_UNKNOWN");
}

/// Runs the command on one line of token ids, on a machine with one GPU.
fn score(device: &str, variables: &[(&str, Option<&str>)]) -> Run {
    let model = root().join(MODEL);
    let variables = [&[("SOFTGPU_DEVICES", Some("1"))], variables].concat();
    kudos_in(&variables, &["score", "--device", device, "--model", model.to_str().unwrap(), "-"], LINE)
}

fn assert_error(run: &Run, parts: &[&str]) {
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    for part in parts {
        assert!(run.stderr.contains(part), "`{part}` is not in: {}", run.stderr);
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_failed_kernel_is_named_where_launches_block() {
    let run = score("cuda", &[("SOFTGPU_FAIL", Some("launch@add_rms_norm_bf16:2"))]);
    assert_error(&run, &["CUDA_ERROR_LAUNCH_FAILED", "in a pass of 3 tokens", "CUDA_LAUNCH_BLOCKING=1"]);
    let fault = ("SOFTGPU_FAIL", Some("launch@rope_bf16:1"));
    let run = score("cuda", &[fault, ("CUDA_LAUNCH_BLOCKING", Some("1"))]);
    assert_error(&run, &["launching `rope` failed: CUDA_ERROR_LAUNCH_FAILED"]);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_model_that_does_not_fit_is_refused_before_any_allocation() {
    // An allocation would fail with another error.
    let run = score("cuda", &[("SOFTGPU_MEMORY_GIB", Some("0.02")), ("SOFTGPU_FAIL", Some("alloc:1"))]);
    assert_error(
        &run,
        &[
            "the model needs 0.3",
            "of weights",
            "of workspace",
            "for libraries",
            "the GPU has 0.02 free",
            "hint: ",
        ],
    );
    assert!(!run.stderr.contains("planned fault"), "{}", run.stderr);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_model_too_large_for_the_gpu_is_streamed_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    // Layers of 8 MiB: 64 MiB in all, besides 32 of workspace for matmuls, 2 for tuning them, and a
    // little more.
    let weight_bytes = random_model(dir.path(), ModelSizes { hidden: 512, ffn: 2048, layers: 8, vocab: 64 });
    assert!(weight_bytes > 64 << 20);
    fn memory(gib: &str) -> [(&str, Option<&str>); 3] {
        let libraries = ("SOFTGPU_LIBRARY_MIB", Some("0,0,0"));
        [("SOFTGPU_MEMORY_GIB", Some(gib)), libraries, ("SOFTGPU_DEVICES", Some("1"))]
    }
    let run = |gib: &str, residency: &str| {
        let model = ["--model", dir.path().to_str().unwrap(), "-", "--residency", residency];
        let small = ["--batch-tokens", "16", "--max-tokens", "16"];
        // The memory here is about that of the layers, and libraries take none of it.
        let reserve = ["--gpu-reserve-gib", "0"];
        let arguments = [&["score", "--device", "cuda"][..], &model, &small, &reserve].concat();
        // On one GPU: with more, the model would be divided among them instead of streamed.
        kudos_in(&memory(gib), &arguments, LINE)
    };
    let expected = run("8", "auto");
    assert_eq!(expected.status, Some(0), "{expected:?}");
    assert!(!expected.stderr.contains("streamed"), "{expected:?}");
    for (gib, resident) in [("0.092", 5), ("0.072", 2), ("0.055", 0)] {
        let streamed = run(gib, "auto");
        assert_eq!((streamed.status, &streamed.stdout), (Some(0), &expected.stdout), "{streamed:?}");
        let warning = format!("{resident} of 8 layers stay on it, the other {} are streamed", 8 - resident);
        assert!(streamed.stderr.contains(&warning), "{gib} GiB: {streamed:?}");
        assert_error(&run(gib, "resident"), &["the model needs 0.10", "`--residency auto`"]);
    }
    let arguments = ["plan", "--json", "--model", dir.path().to_str().unwrap(), "--max-tokens", "16"];
    let planned = kudos_in(
        &memory("0.092"),
        &[&arguments[..], &["--batch-tokens", "16", "--gpu-reserve-gib", "0"]].concat(),
        "",
    );
    let here = planned.stdout.lines().last().unwrap();
    assert!(
        here.contains("\"gpu\":\"here: softgpu") && here.contains("\"layers_resident\":5"),
        "{planned:?}"
    );
    // Everything fits, but streaming is requested.
    let streamed = run("8", "streamed");
    assert_eq!((streamed.status, &streamed.stdout), (Some(0), &expected.stdout), "{streamed:?}");
    assert_error(&run("0.04", "auto"), &["the model needs 0.0", "the GPU has 0.04 free"]);
}

/// Asserts both outcomes for a missing device: an error where it is named, the CPU where it is not.
fn assert_missing(variables: &[(&str, Option<&str>)], reason: &str) {
    assert_error(&score("cuda", variables), &[reason, "hint: "]);
    let run = score("auto", variables);
    assert_eq!(run.status, Some(0), "{run:?}");
    assert!(run.stdout.contains("\"reward\""), "{run:?}");
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert!(
        matches!(lines[..], [line] if line.starts_with("running on CPU, ") && line.contains(reason)),
        "{run:?}"
    );
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_machine_without_a_gpu_is_an_error_or_uses_the_cpu() {
    assert_missing(&[("SOFTGPU_DEVICES", Some("0"))], "the CUDA driver finds no GPU");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn turing_refuses_weights_beyond_f16_and_counts_subnormal_ones() {
    const TENSOR: &str = "model.layers.0.mlp.up_proj.weight";
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        let fixture = root().join("tests/fixtures/models/gqa3_hd64_f32");
        fs::copy(fixture.join(name), dir.path().join(name)).unwrap();
    }
    let run_with = |weight: f32, residency: &str| {
        let weights = dir.path().join("model.safetensors");
        overwrite_tensor(&weights, TENSOR, "F32", &weight.to_le_bytes());
        let model = ["--model", dir.path().to_str().unwrap(), "--residency", residency, "-"];
        kudos_in(&[("SOFTGPU_CC", Some("75"))], &[&["score", "--device", "cuda"][..], &model].concat(), LINE)
    };
    // A streamed layer is checked before the first pass, and counted once however often it is
    // copied.
    for residency in ["resident", "streamed"] {
        let beyond = run_with(70_000.0, residency);
        assert_eq!(beyond.status, Some(2), "{beyond:?}");
        for part in [TENSOR, "70000", "f16", "model.safetensors", "hint: "] {
            assert!(beyond.stderr.contains(part), "`{part}` is not in: {}", beyond.stderr);
        }
    }
    // Between two subnormal values of f16, and a normal value of f32.
    let [resident, streamed] = ["resident", "streamed"].map(|residency| run_with(1.00001e-6, residency));
    assert_eq!(resident.status, Some(0), "{resident:?}");
    assert!(resident.stderr.contains("warning: ") && resident.stderr.contains("subnormal"), "{resident:?}");
    assert_eq!((streamed.stdout, streamed.stderr), (resident.stdout, resident.stderr));
}
