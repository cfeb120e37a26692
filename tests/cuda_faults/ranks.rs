//! Failures of one of several ranks: every caller gets its error, with the rank's number, no rank
//! hangs, memory is freed, and another engine can be opened.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kudos::internals::backend::cuda::context::Context;
use kudos::internals::backend::cuda::gemm::algorithm::Config;
use kudos::internals::backend::cuda::gemm::cache::Cache;
use kudos::internals::backend::cuda::gemm::tuning::{Stopwatch, Tuner};
use kudos::internals::backend::cuda::gemm::{Lt, MatmulShape, Out};
use kudos::internals::backend::cuda::nccl::Group;
use kudos::internals::backend::cuda::ops::Ops;
use kudos::internals::backend::cuda::probe::devices;
use kudos::internals::backend::cuda::{Cuda, Setup, format::ActivationFormat};
use kudos::internals::backend::{Backend, Capacity, Footprint, Geometry};
use kudos::internals::config::ModelConfig;
use kudos::internals::model::rope::frequencies;
use kudos::internals::shard::Shard;
use kudos::internals::weights::{Checkpoint, ModelTensors};
use kudos::{AllReduce, CudaOptions, CudaTier, Engine, Error, ErrorKind, GemmTuning, Replicas};

use crate::common::{batches_of, kudos_in, root};
use crate::gpu::{Gpu, in_own_processes};
use crate::{LINE, MODEL, failure_of_all, rewards};

/// Far more than any of these tests takes, and far less than a hang.
const SOON: Duration = Duration::from_secs(30);

fn options(all_reduce: AllReduce) -> CudaOptions {
    let peer_timeout = Duration::from_secs(2);
    CudaOptions { ranks: Some(2), all_reduce, peer_timeout, ..CudaOptions::default() }
}

fn open_with(options: CudaOptions) -> kudos::Result<Engine> {
    let builder = Engine::builder(root().join(MODEL)).device(options);
    builder.max_tokens(64).batching(batches_of(16)).open()
}

fn open(all_reduce: AllReduce) -> kudos::Result<Engine> {
    open_with(options(all_reduce))
}

/// Both algorithms of the all-reduce, which use different collectives.
const ALGORITHMS: [AllReduce; 2] = [AllReduce::Ordered, AllReduce::Nccl];

/// Asserts after a failure that nothing is allocated, and that the next engine gives the same
/// rewards.
fn assert_recovered(gpu: &Gpu, all_reduce: AllReduce, expected: &[u32]) {
    gpu.plan("");
    gpu.assert_free();
    assert_eq!(rewards(&open(all_reduce).unwrap()), expected);
    gpu.assert_free();
}

fn expected(gpu: &Gpu, all_reduce: AllReduce) -> Vec<u32> {
    let rewards = rewards(&open(all_reduce).unwrap());
    gpu.assert_free();
    rewards
}

fn assert_names_rank_1(error: &Error) {
    assert!(error.message().starts_with("rank 1 of 2: "), "{error}");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_rank_out_of_memory_is_named_and_delays_no_other() {
    let gpu = Gpu::take();
    for all_reduce in ALGORITHMS {
        let expected = expected(&gpu, all_reduce);
        let begun = Instant::now();
        for at in [1, 5, 12] {
            gpu.plan(&format!("1/alloc:{at}"));
            let error = open(all_reduce).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
            assert_names_rank_1(&error);
            assert!(error.message().contains("bytes on GPU 1 failed"), "{error}");
            gpu.assert_free();
        }
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        assert_recovered(&gpu, all_reduce, &expected);
    }
}

/// Faults of rank 1 in a pass, with a part of their message, and whether the GPU recovers.
const FAULTS: [(&str, &str, bool); 5] = [
    ("1/launch:1", "CUDA_ERROR_LAUNCH_FAILED", false),
    ("1/launch:9", "CUDA_ERROR_LAUNCH_FAILED", false),
    ("1/lost:4", "CUDA_ERROR_UNKNOWN", false),
    ("1/nccl:1", "(softgpu printed the details on stderr)", true),
    ("1/nccl:3", "NCCL says", true),
];

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_rank_that_fails_in_a_pass_is_named_and_ends_the_others() {
    let test = "ranks::a_rank_that_fails_in_a_pass_is_named_and_ends_the_others";
    in_own_processes(test, &FAULTS.map(|(fault, ..)| fault), |fault| {
        let gpu = Gpu::take();
        let (_, code, recovers) = FAULTS.into_iter().find(|(name, ..)| *name == fault).unwrap();
        for all_reduce in if recovers { &ALGORITHMS[..] } else { &ALGORITHMS[..1] } {
            let expected = expected(&gpu, *all_reduce);
            let engine = open(*all_reduce).unwrap();
            gpu.plan(fault);
            let begun = Instant::now();
            let error = failure_of_all(&engine);
            assert!(begun.elapsed() < SOON, "{fault}: {:?}", begun.elapsed());
            assert_eq!(error.kind(), ErrorKind::Device, "{fault}: {error}");
            assert_names_rank_1(&error);
            assert!(error.message().contains(code), "{fault}: {error}");
            assert!(error.place().is_some_and(|place| place.starts_with("GPU 1 (softgpu")), "{error}");
            drop(engine);
            if recovers {
                assert_recovered(&gpu, *all_reduce, &expected);
            } else {
                gpu.plan("");
                gpu.assert_free();
                let later = open(*all_reduce).unwrap_err();
                assert!(later.message().contains("CUDA cannot be used in this process any more"), "{later}");
                assert!(later.place().is_some_and(|place| place.starts_with("GPU 1 (softgpu")), "{later}");
            }
        }
    });
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_rank_that_hangs_ends_the_engine_within_the_time_limit() {
    let gpu = Gpu::take();
    for all_reduce in ALGORITHMS {
        let expected = expected(&gpu, all_reduce);
        let engine = open(all_reduce).unwrap();
        gpu.plan("1/hang:2");
        let begun = Instant::now();
        let error = failure_of_all(&engine);
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        assert_eq!(error.kind(), ErrorKind::Device, "{error}");
        assert!(error.message().contains("of 2: waiting for the other ranks"), "{error}");
        drop(engine);
        assert_recovered(&gpu, all_reduce, &expected);
    }
}

/// Every sequence has its reward or the cause, which names the replica; nothing stays allocated.
#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_replica_that_fails_ends_the_engine_with_its_cause() {
    // The GPU is lost for the process.
    let test = "ranks::a_replica_that_fails_ends_the_engine_with_its_cause";
    in_own_processes(test, &["1/launch:9"], assert_replica_fails);
}

fn assert_replica_fails(fault: &str) {
    let gpu = Gpu::take();
    let replicas =
        CudaOptions { ranks: Some(1), replicas: Replicas::Count(2), ..options(AllReduce::Ordered) };
    let alone = CudaOptions { replicas: Replicas::Count(1), ..replicas.clone() };
    let expected = rewards(&open_with(alone).unwrap());
    assert_eq!(rewards(&open_with(replicas.clone()).unwrap()), expected);
    let engine = open_with(replicas).unwrap();
    gpu.plan(fault);
    let begun = Instant::now();
    let (mut scored, mut failed) = (0, 0);
    let error = loop {
        let pending: Vec<_> = crate::sequences().into_iter().map(|ids| engine.submit(ids).wait()).collect();
        for (pending, expected) in pending.into_iter().zip(&expected) {
            match pending.and_then(kudos::Pending::wait) {
                Ok(score) => {
                    assert_eq!(score.reward.to_bits(), *expected);
                    scored += 1;
                }
                Err(_) => failed += 1,
            }
        }
        if let Some(error) = engine.failure() {
            break error;
        }
        assert!(begun.elapsed() < SOON, "replica 1 had no work: {scored} were scored");
    };
    println!("{scored} scored, {failed} not");
    assert!(error.message().starts_with("replica 1 of 2: "), "{error}");
    assert!(error.place().is_some_and(|place| place.starts_with("GPU 1 (softgpu")), "{error}");
    let late = engine.submit(vec![1]).wait().map(drop).unwrap_err();
    assert_eq!(late.report(), error.report());
    drop(engine);
    gpu.plan("");
    gpu.assert_free();
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn devices_are_chosen_by_number_and_refused_by_name() {
    let _gpu = Gpu::take();
    let open = |devices: &[usize], ranks| {
        open_with(CudaOptions { devices: devices.to_vec(), ranks, ..options(AllReduce::Ordered) })
    };
    assert!(open(&[2, 0], Some(2)).unwrap().device().to_string().contains("GPUs 2, 0 (softgpu"));
    // The fewest GPUs that the model fits on.
    assert!(open(&[2, 0], None).unwrap().device().to_string().contains("GPU 2 (softgpu"));
    for (devices, ranks, expected) in [
        (&[0, 9][..], None, "there is no GPU 9"),
        (&[1, 1], Some(2), "GPU 1 is named twice"),
        (&[1], Some(2), "2 ranks need as many GPUs, and there are 1"),
    ] {
        let error = open(devices, ranks).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Options, "{error}");
        assert!(error.message().contains(expected), "{error}");
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_model_too_large_for_one_gpu_gets_the_fewest_it_fits_on() {
    fn memory(gib: &str) -> [(&str, Option<&str>); 3] {
        let libraries = ("SOFTGPU_LIBRARY_MIB", Some("0,0,0"));
        [("SOFTGPU_MEMORY_GIB", Some(gib)), libraries, ("SOFTGPU_DEVICES", Some("5"))]
    }
    // 0.143 GiB on one GPU, 0.088 on each of two, 0.061 on each of four.
    let model = root().join("tests/fixtures/models/kv4_hd128_tied_f16");
    let arguments = ["score", "--device", "cuda", "--max-tokens", "512", "--gpu-reserve-gib", "0", "--model"];
    let arguments = [&arguments[..], &[model.to_str().unwrap(), "-"]].concat();
    for (memory_gib, gpus) in [("0.15", "GPU 0 ("), ("0.1", "GPUs 0, 1 ("), ("0.07", "GPUs 0, 1, 2, 3 (")] {
        let run = kudos_in(&memory(memory_gib), &arguments, LINE);
        assert_eq!(run.status, Some(0), "{run:?}");
        assert!(run.stderr.contains(gpus), "{memory_gib} GiB: {run:?}");
    }
    let run = kudos_in(&memory("0.1"), &[&arguments[..], &["--ranks", "1"]].concat(), LINE);
    assert_eq!(run.status, Some(2), "{run:?}");
    assert!(run.stderr.contains("the model needs 0.14 GiB"), "{run:?}");
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn gpus_of_another_kind_are_left_out_unless_they_are_named() {
    let model = root().join(MODEL);
    let model = model.to_str().unwrap();
    let run = |capabilities: &str, options: &[&str]| {
        let variables = [("SOFTGPU_CC", Some(capabilities)), ("SOFTGPU_DEVICES", Some("2"))];
        kudos_in(&variables, &[&["score", "--device", "cuda", "--model", model, "-"], options].concat(), LINE)
    };
    for (capabilities, used, left_out) in [("80,75", 0, 1), ("75,80", 1, 0)] {
        let found = run(capabilities, &[]);
        assert_eq!(found.status, Some(0), "{found:?}");
        let device = format!("GPU {used} (softgpu sm_80, compute capability 8.0, sm80 kernels)");
        assert!(found.stderr.contains(&device), "{found:?}");
        let warning = format!("so that these are not used: GPU {left_out} (softgpu sm_75)");
        assert!(found.stderr.contains(&warning), "{found:?}");
    }
    let found = run("80,75", &["--ranks", "2"]);
    assert_eq!(found.status, Some(2), "{found:?}");
    assert!(
        found.stderr.contains("there are 1 of one kind; GPU 1 (softgpu sm_75) is of another"),
        "{found:?}"
    );
    // Named ones share the kernels that both run, and one of them has its own.
    let found = run("80,75", &["--ranks", "2", "--devices", "0,1"]);
    assert_eq!(found.status, Some(0), "{found:?}");
    assert!(
        found.stderr.contains("GPUs 0, 1 (softgpu sm_80, compute capability 8.0, sm75 kernels)"),
        "{found:?}"
    );
    let found = run("80,75", &["--ranks", "1", "--devices", "0,1"]);
    assert!(
        found.stderr.contains("GPU 0 (softgpu sm_80, compute capability 8.0, sm80 kernels)"),
        "{found:?}"
    );
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn the_plan_covers_what_each_rank_allocates() {
    let gpu = Gpu::take();
    for all_reduce in ALGORITHMS {
        let engine = open(all_reduce).unwrap();
        rewards(&engine);
        let planned = engine.plan().ranks * engine.plan().footprint.total();
        assert!(gpu.held().live_bytes <= planned as u64, "{planned} bytes planned, {:?}", gpu.held());
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn an_aborted_all_reduce_gives_no_reward() {
    // Without the software GPU's checks an aborted all-reduce leaves no error on its stream, as
    // with NCCL, and its result is undefined.
    let model = root().join(MODEL);
    let arguments = ["score", "--device", "cuda", "--ranks", "2", "--model", model.to_str().unwrap(), "-"];
    for fault in ["1/launch@rope_bf16:1", "1/nccl:3"] {
        let variables = [("SOFTGPU_CHECK", Some("0")), ("SOFTGPU_FAIL", Some(fault))];
        let run = kudos_in(&variables, &arguments, LINE);
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{fault}: {run:?}");
        assert!(run.stderr.contains("error: rank 1 of 2: "), "{fault}: {run:?}");
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_rank_stops_loading_when_its_group_has_failed() {
    let _gpu = Gpu::take();
    let folder = root().join(MODEL);
    let config = ModelConfig::read(&folder).unwrap();
    let shard = Shard::new(&config, 0, 2).unwrap();
    let tensors = ModelTensors::open(&Checkpoint::open(&folder).unwrap(), &config, &shard).unwrap();
    let geometry = Geometry::new(&config, shard, frequencies(&config.rope, config.head_dim), 1);
    let capacity = Capacity { tokens: 16, sequences: 1, mlp_tokens: 16 };
    let group = Arc::new(Group::new(2, Duration::from_secs(20)).unwrap());
    let info = devices().unwrap().remove(0);
    let open = || {
        let setup = Setup {
            info: &info,
            tier: CudaTier::Sm80,
            group: Some(Arc::clone(&group)),
            tuning: GemmTuning::Off,
            cache: None,
            layer: &tensors.layers[0],
            planned: &Footprint::default(),
            attention: None,
            in_one_process: true,
        };
        Cuda::new(setup, geometry.clone(), capacity)
    };
    let mut cuda = open().unwrap();
    cuda.load_layer(&tensors.layers[0]).map(drop).unwrap();
    group.abort();
    assert_aborted(cuda.load_layer(&tensors.layers[1]));
    drop(cuda);
    // It prepares no matmuls either.
    assert_aborted(open());
}

fn assert_aborted<T>(result: kudos::Result<T>) {
    let error = result.map(drop).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Stopped, "another rank of this engine failed"));
}

/// A stopwatch during whose first measurement another rank fails.
struct Fails<'a> {
    group: &'a Group,
    calls: &'a Cell<usize>,
}

impl Stopwatch for Fails<'_> {
    fn time(
        &mut self,
        _: usize,
        _: &Config,
        run: &mut dyn FnMut() -> kudos::Result<()>,
    ) -> kudos::Result<f32> {
        self.calls.set(self.calls.get() + 1);
        self.group.abort();
        run().map(|()| 1.0)
    }
}

#[test]
#[ignore = "needs the software GPU: `make test` runs them"]
fn a_rank_stops_tuning_when_its_group_has_failed() {
    let _gpu = Gpu::take();
    let (info, format) = (devices().unwrap().remove(0), ActivationFormat::Bf16);
    let ops = Ops::new(Context::open(&info).unwrap(), CudaTier::Sm80, 64).unwrap();
    let lt = Lt::new(ops.context(), format).unwrap();
    let group = Arc::new(Group::new(2, Duration::from_secs(20)).unwrap());
    let calls = Cell::new(0);
    let cache = Cache::new(None, &info, format).unwrap();
    let tuner = Tuner::new(&ops, &lt, GemmTuning::Auto, cache).unwrap().with_group(Some(Arc::clone(&group)));
    let mut tuner = tuner.with_stopwatch(Fails { group: &group, calls: &calls });
    let shape = MatmulShape {
        features: 96,
        width: 64,
        x_stride: 64,
        out_stride: 96,
        out: Out::Activation,
        bias: false,
    };
    assert_aborted(tuner.matmul(shape, 256));
    assert_eq!(calls.get(), 1);
}
