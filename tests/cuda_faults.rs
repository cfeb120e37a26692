//! What happens when the GPU fails: the cause reaches everybody, memory goes back, and the process lives on.
//!
//! These run on the software GPU, which fails as planned and counts what is allocated. Its state is the process's, so
//! the tests that share this process take turns; those that need other settings run the command.

#![cfg(feature = "cuda")]

mod common;

use std::ffi::{CString, c_char};
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::{Library, Symbol};
use serde_json::Value;

use common::{Run, ids, kudos_in, overwrite_tensor};
use kudos::{Device, Engine, Error, ErrorKind, Options, Pending};

const MODEL: &str = "tests/fixtures/models/mha_hd16_bf16";

/// `{"input_ids":[1,2,3]}`
const LINE: &str = "{\"input_ids\":[1,2,3]}\n";

/// The software GPU of this process, for one test at a time.
struct Gpu {
    library: &'static Library,
    _turn: MutexGuard<'static, ()>,
}

/// What is allocated, as the software GPU counts it.
#[derive(Debug)]
struct Held {
    live_bytes: u64,
    peak_bytes: u64,
    /// What was freed by the context's end instead of by the program.
    reclaimed_bytes: u64,
    context_references: u64,
    pinned_bytes: u64,
}

impl Gpu {
    fn take() -> Self {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        let library = LIBRARY.get_or_init(|| {
            // SAFETY: the software GPU's initialisers are the Rust runtime's own.
            let library = unsafe { Library::new("libcuda.so") };
            library.expect("libcuda.so is not on LD_LIBRARY_PATH: `make test` sets it")
        });
        // A test that failed has dropped its engines on the way.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let gpu = Self { library, _turn: turn };
        gpu.plan("");
        gpu.assert_free();
        gpu
    }

    /// Plans faults, counted from here.
    fn plan(&self, plan: &str) {
        let plan = CString::new(plan).unwrap();
        // SAFETY: the function has this type in softgpu, which alone has one of this name; the string ends in zero.
        unsafe {
            let function: Symbol<'_, unsafe extern "C" fn(*const c_char)> =
                self.library.get(b"softgpu_plan_faults").expect("libcuda.so is the software GPU");
            function(plan.as_ptr());
        }
    }

    fn json(&self, function: &str) -> Value {
        // SAFETY: the functions named here have this type in softgpu.
        let function: Symbol<'_, unsafe extern "C" fn(*mut c_char, usize) -> usize> =
            unsafe { self.library.get(function) }.expect("libcuda.so is the software GPU");
        // SAFETY: with a null pointer nothing is written, and the length is returned.
        let length = unsafe { function(std::ptr::null_mut(), 0) };
        let mut text = vec![0_u8; length + 1];
        // SAFETY: the buffer has that length.
        unsafe { function(text.as_mut_ptr().cast(), text.len()) };
        serde_json::from_slice(&text[..length]).unwrap()
    }

    fn held(&self) -> Held {
        let memory = self.json("softgpu_memory_json");
        let device = |name: &str| memory["devices"][0][name].as_u64().unwrap_or(0);
        Held {
            live_bytes: device("live_bytes"),
            peak_bytes: device("peak_bytes"),
            reclaimed_bytes: device("reclaimed_bytes"),
            context_references: device("context_references"),
            pinned_bytes: memory["pinned_bytes"].as_u64().unwrap(),
        }
    }

    /// That nothing is held, and that it was freed by whoever allocated it.
    fn assert_free(&self) {
        let held = self.held();
        let sum = held.live_bytes + held.reclaimed_bytes + held.context_references + held.pinned_bytes;
        assert_eq!(sum, 0, "{held:?}");
    }

    /// Kernels launched so far.
    fn launches(&self) -> usize {
        self.json("softgpu_counters_json").as_array().unwrap().len()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.plan("");
    }
}

fn open(model: &str) -> kudos::Result<Engine> {
    // A small batch: some of what is submitted waits while a pass runs.
    let options =
        Options { device: Device::Cuda, batch_tokens: 16, max_tokens: Some(64), ..Options::default() };
    Engine::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(model), options)
}

fn sequences() -> Vec<Vec<u32>> {
    (0..6).map(|seed| ids(seed + 1, 5 + seed as usize, 512)).collect()
}

fn rewards(engine: &Engine) -> Vec<u32> {
    engine.score_tokens(&sequences()).into_iter().map(|score| score.unwrap().reward.to_bits()).collect()
}

/// Submits, waits, and returns the one error that everybody got.
fn failure_of_all(engine: &Engine) -> Error {
    let pending: Vec<kudos::Result<Pending>> =
        sequences().into_iter().map(|ids| engine.submit_tokens(ids)).collect();
    let errors: Vec<Error> =
        pending.into_iter().map(|pending| pending.and_then(Pending::wait).unwrap_err()).collect();
    let first = errors[0].clone();
    let known = engine.failure().expect("the engine knows why it stopped");
    let late = engine.submit_tokens(vec![1]).map(drop).unwrap_err();
    for error in errors.iter().chain([&known, &late]) {
        assert_eq!(error.to_string(), first.to_string());
        assert_eq!(error.kind(), first.kind());
    }
    first
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn every_allocation_that_fails_at_load_is_named_and_leaves_nothing_behind() {
    let gpu = Gpu::take();
    let expected = rewards(&open(MODEL).unwrap());
    let mut failed = 0;
    let engine = loop {
        gpu.plan(&format!("alloc:{}", failed + 1));
        let error = match open(MODEL) {
            Ok(engine) => break engine,
            Err(error) => error,
        };
        failed += 1;
        assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
        let text = error.message();
        assert!(text.starts_with("allocating ") && text.contains(" bytes on GPU 0 failed"), "{text}");
        assert!(text.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{text}");
        assert!(error.hint().is_some_and(|hint| hint.contains("are needed in all")), "{error}");
        gpu.assert_free();
    };
    // Seven matrices and vectors in each of three layers at the least.
    assert!(failed > 15, "{failed} allocations");
    assert_eq!(rewards(&engine), expected);
    drop(engine);
    gpu.assert_free();
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn passes_allocate_nothing_so_that_no_batch_can_run_out_of_memory() {
    let gpu = Gpu::take();
    let engine = open(MODEL).unwrap();
    let before = gpu.held();
    gpu.plan("alloc:1");
    rewards(&engine);
    engine.score_tokens(&[ids(9, 64, 512)]).pop().unwrap().unwrap();
    let after = gpu.held();
    assert_eq!((before.live_bytes, before.pinned_bytes), (after.live_bytes, after.pinned_bytes));
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn the_plan_covers_what_is_allocated() {
    let gpu = Gpu::take();
    // Padded heads, f32 files, biases, heads that need no padding: none may take more than its plan says.
    let models = ["mha_hd16_bf16", "gqa3_hd64_f32", "kv8_hd32_attention_bias_bf16", "gqa8_hd128_llama3_bf16"];
    for model in models {
        let engine = open(&format!("tests/fixtures/models/{model}")).unwrap();
        engine.score_tokens(&[vec![1, 2, 3]]).pop().unwrap().unwrap();
        let (footprint, held) = (engine.plan().footprint, gpu.held());
        let planned = (footprint.weights + footprint.workspace) as u64;
        assert!(held.live_bytes <= planned, "{model}: {planned} bytes planned, {held:?}");
        assert!(held.peak_bytes >= held.live_bytes, "{held:?}");
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn memory_that_runs_out_at_the_first_launch_names_the_kernel_and_spares_the_next_engine() {
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

/// Fails the first, a middle and the last kernel of a first pass.
fn a_failed_pass(fault: &str, code: &str) {
    let gpu = Gpu::take();
    let healthy = open(MODEL).unwrap();
    let before = gpu.launches();
    healthy.score_tokens(&[vec![1, 2, 3]]).pop().unwrap().unwrap();
    let launches = gpu.launches() - before;
    assert!(launches > 10, "{launches}");
    let expected = rewards(&healthy);
    drop(healthy);
    for at in [1, launches / 2, launches] {
        let failed = open(MODEL).unwrap();
        gpu.plan(&format!("{fault}:{at}"));
        let error = failure_of_all(&failed);
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert!(error.message().ends_with(&format!("failed: {code}")), "{error}");
        assert!(error.place().is_some_and(|place| place.contains("GPU 0 (softgpu")), "{error}");
        assert!(error.place().is_some_and(|place| place.contains("in a pass of ")), "{error}");
        // Callers are told after the memory is back, and the failed engine need not be dropped before the next opens.
        gpu.assert_free();
        let next = open(MODEL).unwrap();
        assert_eq!(rewards(&next), expected, "after {fault}:{at}");
        assert!(failed.failure().is_some() && next.failure().is_none());
        drop((failed, next));
        gpu.assert_free();
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_launch_that_fails_in_the_middle_of_a_batch_answers_everybody_and_spares_the_next_engine() {
    a_failed_pass("launch", "CUDA_ERROR_LAUNCH_FAILED");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_lost_device_answers_everybody_and_spares_the_next_engine() {
    a_failed_pass("lost", "CUDA_ERROR_UNKNOWN");
}

/// The command on one line of token ids.
fn score(device: &str, variables: &[(&str, Option<&str>)]) -> Run {
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(MODEL);
    kudos_in(variables, &["score", "--device", device, "--model", model.to_str().unwrap(), "-"], LINE)
}

fn assert_error(run: &Run, words: &[&str]) {
    assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{run:?}");
    for word in words {
        assert!(run.stderr.contains(word), "`{word}` is not in: {}", run.stderr);
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_failed_kernel_is_named_where_launches_block_and_hinted_at_where_not() {
    let run = score("cuda", &[("SOFTGPU_FAIL", Some("launch:4"))]);
    assert_error(&run, &["CUDA_ERROR_LAUNCH_FAILED", "in a pass of 3 tokens", "CUDA_LAUNCH_BLOCKING=1"]);
    // A layer begins with its norm; then, after a product, rope.
    let run = score("cuda", &[("SOFTGPU_FAIL", Some("launch:2")), ("CUDA_LAUNCH_BLOCKING", Some("1"))]);
    assert_error(&run, &["launching `rope` failed: CUDA_ERROR_LAUNCH_FAILED"]);
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_model_that_does_not_fit_is_refused_with_the_sum_before_anything_is_allocated() {
    // The first allocation would fail with another error.
    let run = score("cuda", &[("SOFTGPU_MEMORY_GIB", Some("0.02")), ("SOFTGPU_FAIL", Some("alloc:1"))]);
    assert_error(
        &run,
        &["the model needs 0.0", "of weights", "of workspace", "the GPU has 0.02 free", "hint: "],
    );
    assert!(!run.stderr.contains("planned fault"), "{}", run.stderr);
}

/// Both answers to a device that is not there: asked for by name, and left to the engine.
fn assert_missing(variables: &[(&str, Option<&str>)], what: &str) {
    assert_error(&score("cuda", variables), &[what, "hint: "]);
    let run = score("auto", variables);
    assert_eq!(run.status, Some(0), "{run:?}");
    assert!(run.stdout.contains("\"reward\""), "{run:?}");
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert!(
        matches!(lines[..], [line] if line.starts_with("running on CPU, ") && line.contains(what)),
        "{run:?}"
    );
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_machine_without_a_gpu_gets_an_error_or_the_cpu_with_one_line() {
    assert_missing(&[("SOFTGPU_DEVICES", Some("0"))], "the CUDA driver finds no GPU");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_machine_without_a_driver_or_cublaslt_gets_an_error_or_the_cpu_with_one_line() {
    // SAFETY: the libraries' initialisers are the vendor's own.
    let system_has = |name: &str| unsafe { Library::new(name) }.is_ok();
    // The software GPU has no names with a version.
    if !system_has("libcuda.so.1") {
        assert_missing(&[("LD_LIBRARY_PATH", None)], "no CUDA driver on this machine");
    }
    if !["libcublasLt.so.13", "libcublasLt.so.12"].into_iter().any(system_has) {
        let software = std::env::split_paths(&std::env::var_os("LD_LIBRARY_PATH").unwrap())
            .map(|folder| folder.join("libcuda.so"))
            .find_map(|path| path.canonicalize().ok())
            .expect("libcuda.so is on LD_LIBRARY_PATH");
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(software, folder.path().join("libcuda.so")).unwrap();
        assert_missing(&[("LD_LIBRARY_PATH", folder.path().to_str())], "cublasLt is not on this machine");
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn on_turing_a_weight_beyond_f16_is_refused_by_name_and_subnormal_ones_are_counted() {
    const TENSOR: &str = "model.layers.0.mlp.up_proj.weight";
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(format!("tests/fixtures/models/gqa3_hd64_f32/{name}"), dir.path().join(name)).unwrap();
    }
    let run_with = |weight: f32| {
        let weights = dir.path().join("model.safetensors");
        overwrite_tensor(&weights, TENSOR, "F32", &weight.to_le_bytes());
        let model = dir.path().to_str().unwrap();
        kudos_in(&[("SOFTGPU_CC", Some("75"))], &["score", "--device", "cuda", "--model", model, "-"], LINE)
    };
    let beyond = run_with(70_000.0);
    assert_eq!(beyond.status, Some(2), "{beyond:?}");
    for word in [TENSOR, "70000", "f16", "model.safetensors", "hint: "] {
        assert!(beyond.stderr.contains(word), "`{word}` is not in: {}", beyond.stderr);
    }
    // Between two subnormal numbers of f16, and a normal number of f32.
    let subnormal = run_with(1.00001e-6);
    assert_eq!(subnormal.status, Some(0), "{subnormal:?}");
    assert!(
        subnormal.stderr.contains("warning: ") && subnormal.stderr.contains("subnormal"),
        "{subnormal:?}"
    );
}
