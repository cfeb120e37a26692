//! The engine on CUDA: rewards against Hugging Face's, and their bits under changes that must not
//! affect them.
//!
//! Ignored unless asked for, because they need a GPU: `make test` runs them on the software GPU,
//! one compute capability after the other, and `KUDOS_TEST_GPU=real make test` on a real one.
//! `KUDOS_TEST_FIXTURES` limits the models to those whose names are in it, separated by commas;
//! `KUDOS_TEST_TIER` (`sm75`, `sm80`) asks for another tier than the GPU's own, `KUDOS_TEST_ATTENTION` for
//! another attention kernel than the best one that fits, by its name or its file's.

mod common;
mod oracle;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{family, kudos};
use kudos::internals::config::ModelConfig;
use kudos::{
    AllReduce, Batching, CudaOptions, CudaTier, Engine, EngineBuilder, GemmTuning, Loading, Overlap,
    Replicas, Residency, Sharing,
};
use oracle::{Fixture, families, fixtures};
use serde_json::{Value, json};

/// The bound of equal quality: our mean error in units of that of Transformers in bf16, both
/// against float32, pooled over all cases; measured on the software GPU over 108 cases: 0.89 at
/// compute capability 8.0, 0.07 at 7.5 (f16).
const POOLED_RATIO_MAX: f64 = 1.15;

/// The bound over more than two ranks with NCCL's all-reduce, which rounds at every hop. Measured:
/// 1.21, where adding in order gives 0.91 (and 1.03 over two ranks).
const POOLED_RATIO_REDUCED_MAX: f64 = 1.5;

/// The fewest cases whose mean is held to a bound of equal quality: means over fewer scatter too
/// much.
const POOLED_CASES_MIN: usize = 90;

/// The bound for each model by itself, where few cases scatter more. Measured: at most 1.25.
const MODEL_RATIO_MAX: f64 = 2.0;

fn options() -> CudaOptions {
    let tier = |name: &str| {
        let tier = CudaTier::ALL.into_iter().find(|tier| tier.name() == name);
        tier.unwrap_or_else(|| panic!("KUDOS_TEST_TIER is `{name}`, which is no tier"))
    };
    let (tier, attention) = (tier_name().as_deref().map(tier), attention_name());
    CudaOptions { tier, attention, ..CudaOptions::default() }
}

fn on_gpus(dir: impl AsRef<Path>) -> EngineBuilder {
    Engine::builder(dir).device(options())
}

/// The name of the tier that the variable asks for.
fn tier_name() -> Option<String> {
    std::env::var("KUDOS_TEST_TIER").ok().filter(|name| !name.is_empty())
}

/// The name of the attention kernel that the variable asks for.
fn attention_name() -> Option<String> {
    std::env::var("KUDOS_TEST_ATTENTION").ok().filter(|name| !name.is_empty())
}

/// Runs `kudos score` on the GPU, with that tier and, unless the arguments name one, that attention kernel.
fn score(arguments: &[&str], input: &str) -> common::Run {
    let (tier, attention) = (tier_name(), attention_name());
    let attention = attention.filter(|_| !arguments.contains(&"--cuda-attention"));
    let tier = tier.iter().flat_map(|name| ["--cuda-tier", name]);
    let attention = attention.iter().flat_map(|name| ["--cuda-attention", name]);
    let chosen = ["score", "--device", "cuda"].into_iter().chain(tier).chain(attention);
    let all: Vec<&str> = chosen.chain(arguments.iter().copied()).collect();
    kudos(&all, input)
}

/// The checkpoints of other families than Llama that are among all models: those with the most of
/// what Llama does not have.
const OTHERS: [&str; 2] = ["gemma2_seqcls_hd128_bf16", "qwen3_seqcls_hd64_bf16"];

/// The models to test with: all, or those that the variable names.
fn chosen() -> Vec<Fixture> {
    let wanted = std::env::var("KUDOS_TEST_FIXTURES").unwrap_or_default();
    let names: Vec<&str> = wanted.split(',').filter(|name| !name.is_empty()).collect();
    let others = families().into_iter().filter(|fixture| OTHERS.contains(&fixture.name.as_str()));
    let chosen: Vec<Fixture> = fixtures()
        .into_iter()
        .chain(others)
        .filter(|fixture| names.is_empty() || names.contains(&fixture.name.as_str()))
        .collect();
    assert_eq!(
        chosen.len(),
        if names.is_empty() { 14 } else { names.len() },
        "no such model among {names:?}"
    );
    chosen
}

fn bits(engine: &Engine, sequences: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let bits =
        |score: kudos::Result<kudos::Score>| score.unwrap().logits.iter().map(|x| x.to_bits()).collect();
    engine.score(sequences).into_iter().map(bits).collect()
}

/// Through the command, as a user would: one line per case.
fn rewards(fixture: &Fixture) -> Vec<f64> {
    let lines: Vec<String> =
        fixture.cases.iter().map(|case| json!({"input_ids": case.ids}).to_string()).collect();
    let run = score(&["--model", fixture.folder.to_str().unwrap(), "-"], &lines.join("\n"));
    assert_eq!(run.status, Some(0), "{}: {}", fixture.name, run.stderr);
    run.stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["reward"].as_f64().unwrap())
        .collect()
}

#[test]
#[ignore = "needs a GPU, real or software: make test"]
fn rewards_are_as_accurate_as_those_of_transformers_in_bf16() {
    let (mut ours, mut theirs, mut scored) = (Vec::new(), Vec::new(), Vec::new());
    let others = families().into_iter().filter(|fixture| !OTHERS.contains(&fixture.name.as_str()));
    let others = others.filter(|_| chosen().len() == 14);
    for fixture in chosen().into_iter().chain(others) {
        let rewards = rewards(&fixture);
        assert_eq!(rewards.len(), fixture.cases.len());
        let errors = |other: &dyn Fn(usize) -> f64| -> Vec<f64> {
            fixture
                .cases
                .iter()
                .enumerate()
                .map(|(index, case)| (other(index) - case.logits_f32[0]).abs())
                .collect()
        };
        let (our, their) =
            (errors(&|index| rewards[index]), errors(&|index| fixture.cases[index].reward_bf16));
        let ratio = our.iter().sum::<f64>() / their.iter().sum::<f64>();
        println!("{:32} {ratio:.2} of the error of Transformers in bf16", fixture.name);
        assert!(ratio <= MODEL_RATIO_MAX, "{}: {ratio}", fixture.name);
        let margin = 4.0 * their.iter().sum::<f64>() / their.len() as f64;
        ours.extend(our);
        theirs.extend(their);
        scored.push((fixture, rewards, margin));
    }
    let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len() as f64;
    let ratio = mean(&ours) / mean(&theirs);
    println!(
        "{} cases: mean error {:.4}, of Transformers {:.4}, {ratio:.2}",
        ours.len(),
        mean(&ours),
        mean(&theirs)
    );
    assert!(ratio <= POOLED_RATIO_MAX, "{ratio}");
    winners_agree(&scored, 4.0 * mean(&ours));
}

/// Between any two cases of one model, the higher reward is the one that is higher in float32,
/// wherever float32 tells them apart by more than `margin` and the model's own.
fn winners_agree(scored: &[(Fixture, Vec<f64>, f64)], margin: f64) {
    for (fixture, rewards, own_margin) in scored {
        let margin = margin.max(*own_margin);
        for (a, case_a) in fixture.cases.iter().enumerate() {
            for (b, case_b) in fixture.cases.iter().enumerate() {
                if case_a.logits_f32[0] - case_b.logits_f32[0] > margin {
                    assert!(rewards[a] > rewards[b], "{}, cases {a} and {b}", fixture.name);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU, real or software: make test"]
fn a_reward_depends_on_its_own_tokens_alone() {
    for fixture in chosen() {
        let engine = on_gpus(&fixture.folder).open().unwrap();
        let sequences = family(engine.config().vocab as u32);
        let alone: Vec<Vec<u32>> =
            sequences.iter().map(|ids| bits(&engine, std::slice::from_ref(ids)).remove(0)).collect();
        assert_eq!(bits(&engine, &sequences), alone, "{}: alone = in a batch, order kept", fixture.name);
        assert_eq!(bits(&engine, &sequences), alone, "{}: run again", fixture.name);
        let unshared = Batching { sharing: Sharing::Nothing, ..Batching::default() };
        let engine = on_gpus(&fixture.folder).batching(unshared).open().unwrap();
        assert_eq!(bits(&engine, &sequences), alone, "{}: prefixes not shared", fixture.name);
        let engine = on_gpus(&fixture.folder).batching(common::batches_of(100)).open().unwrap();
        assert_eq!(bits(&engine, &sequences), alone, "{}: small batches", fixture.name);
    }
}

/// Engines with several ranks take turns: collectives of two of them on the same GPUs could wait
/// for each other for ever.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The counts of ranks over 1 that a model allows on GPUs, and that this machine has as many of;
/// none with one GPU.
fn rank_counts(fixture: &Fixture) -> Vec<usize> {
    let gpus = kudos::internals::backend::cuda::probe::devices().unwrap().len();
    let config = kudos::internals::config::ModelConfig::read(&fixture.folder).unwrap();
    let allowed = kudos::internals::shard::allowed_ranks(&config);
    allowed
        .into_iter()
        .filter(|&ranks| ranks > 1 && ranks <= gpus && (config.ffn / ranks).is_multiple_of(8))
        .collect()
}

#[test]
#[ignore = "needs several GPUs, real or software: make test"]
fn rewards_over_ranks_are_as_accurate_as_those_of_transformers() {
    let _turn = turn();
    let mut pooled = BTreeMap::new();
    for fixture in chosen() {
        let sequences: Vec<Vec<u32>> = fixture.cases.iter().map(|case| case.ids.clone()).collect();
        for ranks in rank_counts(&fixture) {
            // Over two ranks NCCL's all-reduce adds in order, too.
            let algorithms = if ranks > 2 { &["ordered", "reduced"][..] } else { &["ordered"] };
            for &algorithm in algorithms {
                let all_reduce = if algorithm == "ordered" { AllReduce::Ordered } else { AllReduce::Nccl };
                let options = CudaOptions { ranks: Some(ranks), all_reduce, ..options() };
                let engine = on_gpus(&fixture.folder).device(options).open();
                let (mut ours, mut theirs) = (0.0, 0.0);
                for (case, logits) in fixture.cases.iter().zip(bits(&engine.unwrap(), &sequences)) {
                    ours += (f64::from(f32::from_bits(logits[0])) - case.logits_f32[0]).abs();
                    theirs += (case.reward_bf16 - case.logits_f32[0]).abs();
                }
                let ratio = ours / theirs;
                println!(
                    "{:32} {ranks} ranks, {algorithm}: {ratio:.2} of the error of Transformers",
                    fixture.name
                );
                assert!(ratio <= MODEL_RATIO_MAX, "{}, {ranks} ranks, {algorithm}: {ratio}", fixture.name);
                let (our, their, cases) = pooled.entry(algorithm).or_insert((0.0, 0.0, 0));
                (*our, *their, *cases) = (*our + ours, *their + theirs, *cases + sequences.len());
            }
        }
    }
    if pooled.is_empty() {
        println!("not run: there is one GPU");
    }
    for (algorithm, (ours, theirs, cases)) in pooled {
        println!("{algorithm}, {cases} cases: {:.2} of the error of Transformers in bf16", ours / theirs);
        let bound = if algorithm == "ordered" { POOLED_RATIO_MAX } else { POOLED_RATIO_REDUCED_MAX };
        assert!(cases < POOLED_CASES_MIN || ours <= bound * theirs, "{algorithm}: {}", ours / theirs);
    }
}

#[test]
#[ignore = "needs several GPUs, real or software: make test"]
fn a_reward_over_ranks_depends_on_its_own_tokens_alone() {
    let _turn = turn();
    let mut tried = 0;
    for fixture in chosen() {
        let Some(ranks) = rank_counts(&fixture).pop() else { continue };
        let engine =
            on_gpus(&fixture.folder).device(CudaOptions { ranks: Some(ranks), ..options() }).open().unwrap();
        let sequences = family(engine.config().vocab as u32);
        let alone: Vec<Vec<u32>> =
            sequences.iter().map(|ids| bits(&engine, std::slice::from_ref(ids)).remove(0)).collect();
        assert_eq!(bits(&engine, &sequences), alone, "{}, {ranks} ranks: alone = in a batch", fixture.name);
        drop(engine);
        // In two parts, of which the first ends within a sequence.
        let in_parts = CudaOptions { ranks: Some(ranks), overlap: Overlap::Always, ..options() };
        let engine = on_gpus(&fixture.folder).device(in_parts).open().unwrap();
        assert_eq!(
            bits(&engine, &sequences),
            alone,
            "{}, {ranks} ranks: all-reduces beside computation",
            fixture.name
        );
        tried += 1;
    }
    println!("{tried} models over ranks{}", if tried == 0 { ": not run, there is one GPU" } else { "" });
}

#[test]
#[ignore = "needs several GPUs, real or software: make test"]
fn replicas_change_no_bit_and_share_the_work() {
    let _turn = turn();
    let gpus = kudos::internals::backend::cuda::probe::devices().unwrap().len();
    let Some(fixture) = chosen().into_iter().find(|fixture| fixture.name == "gqa8_hd128_llama3_bf16") else {
        return;
    };
    if gpus < 2 {
        return println!("not run: there is one GPU");
    }
    let vocab = ModelConfig::read(&fixture.folder).unwrap().vocab as u32;
    let sequences: Vec<Vec<u32>> = (0..6).flat_map(|_| family(vocab)).collect();
    let open = |ranks, replicas, residency| {
        let options = CudaOptions { ranks: Some(ranks), replicas, ..options() };
        on_gpus(&fixture.folder).device(options).residency(residency).batching(common::batches_of(64)).open()
    };
    for ranks in [1, 2] {
        let expected = bits(&open(ranks, Replicas::Count(1), Residency::Auto).unwrap(), &sequences);
        for (count, residency) in [
            (2, Residency::Auto),
            (4, Residency::Auto),
            (2, Residency::Streamed { resident_layers: Some(1) }),
        ] {
            if count * ranks > gpus {
                let error = open(ranks, Replicas::Count(count), residency).unwrap_err();
                assert_eq!(error.kind(), kudos::ErrorKind::Options, "{error}");
                assert!(error.message().starts_with(&format!("{count} replicas")), "{error}");
                continue;
            }
            let engine = open(ranks, Replicas::Count(count), residency).unwrap();
            assert_eq!(bits(&engine, &sequences), expected, "{count} replicas of {ranks} ranks");
            let passes: Vec<u64> = engine.stats_of_replicas().iter().map(|stats| stats.passes).collect();
            println!("{count} replicas of {ranks} ranks, {residency:?}: passes {passes:?}");
            assert_eq!(passes.iter().sum::<u64>(), engine.stats().passes);
            assert!(passes.iter().filter(|&&passes| passes > 0).count() > 1, "{passes:?}");
        }
        let auto = open(ranks, Replicas::Auto, Residency::Auto).unwrap();
        assert_eq!((auto.plan().replicas, auto.device().count), (gpus / ranks, gpus / ranks * ranks));
    }
}

#[test]
#[ignore = "needs several GPUs, real or software: make test"]
fn a_pass_of_more_parts_than_buffers_gives_the_same_rewards() {
    let _turn = turn();
    let Some(fixture) = chosen().into_iter().find(|fixture| fixture.name == "mha_hd16_bf16") else { return };
    if !rank_counts(&fixture).contains(&2) {
        return println!("not run: there is one GPU");
    }
    // 8,800 tokens in one pass: three parts, or three pieces of one part's all-reduces; pieces are
    // gathered in two buffers.
    let sequences: Vec<Vec<u32>> = (0..200).map(|seed| common::ids(seed + 1, 44, 512)).collect();
    let rewards = |batch_tokens, overlap| {
        let options = CudaOptions { ranks: Some(2), overlap, ..options() };
        let builder = on_gpus(&fixture.folder).device(options).batching(common::batches_of(batch_tokens));
        bits(&builder.open().unwrap(), &sequences)
    };
    let expected = rewards(1_000, Overlap::Never);
    for overlap in [Overlap::Never, Overlap::Auto] {
        assert!(rewards(9_000, overlap) == expected, "{overlap:?}");
    }
}

#[test]
#[ignore = "needs a GPU, real or software: make test"]
fn streamed_layers_give_the_bits_of_resident_ones() {
    // bf16 and f16 weights, a head width that is padded, biases; two layers and three; and the
    // demo, which has four, so that resident layers can lie between streamed ones.
    let llamas = ["gqa3_hd20_bias_f16", "mha_hd16_bf16", "kv8_hd32_attention_bias_bf16"];
    let wanted = [&llamas[..], &OTHERS].concat();
    let folders = chosen().into_iter().filter(|fixture| wanted.contains(&fixture.name.as_str()));
    for folder in folders.map(|fixture| fixture.folder).chain([common::demo_model()]) {
        let engine = on_gpus(&folder).open().unwrap();
        let (layers, sequences) = (engine.config().layers, family(engine.config().vocab as u32));
        let expected = bits(&engine, &sequences);
        assert_eq!((engine.plan().placement.resident, engine.plan().placement.streamed), (layers, 0));
        for resident in 0..layers {
            let residency = Residency::Streamed { resident_layers: Some(resident) };
            // Many passes, so that a slot is used again and again.
            let builder = on_gpus(&folder).residency(residency).batching(common::batches_of(64));
            let engine = builder.open().unwrap();
            assert_eq!(engine.plan().placement.streamed, layers - resident);
            let what = format!("{}, {resident} of {layers} layers resident", folder.display());
            assert_eq!(bits(&engine, &sequences), expected, "{what}");
            assert_eq!(bits(&engine, &sequences), expected, "{what}: run again");
        }
    }
}

#[test]
#[ignore = "needs a GPU, real or software: make test"]
fn resident_weights_are_counted_and_streamed_ones_are_not() {
    let demo = common::demo_model();
    for (residency, resident) in
        [(Residency::Resident, 4), (Residency::Streamed { resident_layers: Some(1) }, 1)]
    {
        let loading = Loading::default();
        let builder = on_gpus(&demo).residency(residency).loading(loading.clone());
        let engine = builder.open().unwrap();
        let bytes = engine.plan().weight_bytes;
        let expected = (bytes.layers / 4 * resident + bytes.head) as u64;
        assert_eq!((loading.brought_bytes(), loading.total_bytes()), (expected, expected));
        engine.score(&[vec![1, 2, 3]]).remove(0).unwrap();
        assert_eq!(loading.brought_bytes(), expected);
    }
}

#[test]
#[ignore = "needs a GPU, real or software: make test"]
fn the_demo_wins_on_cuda_as_on_the_cpu() {
    let model = common::demo_model();
    let inline = ["--prompt", "What is 1+1?", "--response", "1+1=2", "--response", "1+1=3"];
    let arguments = [&["--model", model.to_str().unwrap()][..], &inline].concat();
    let on_cpu = [&["score", "--device", "cpu"][..], &arguments].concat();
    let [cpu, cuda] = [kudos(&on_cpu, ""), score(&arguments, "")].map(|run| {
        assert_eq!(run.status, Some(0), "{run:?}");
        serde_json::from_str::<Value>(&run.stdout).unwrap()
    });
    assert_eq!((&cpu["best"], &cuda["best"]), (&json!(0), &json!(0)));
    for index in 0..2 {
        let difference = cpu["rewards"][index].as_f64().unwrap() - cuda["rewards"][index].as_f64().unwrap();
        // bf16 moves the demo's rewards by 0.029 on average in Transformers (demo/README.md); here,
        // measured: 0.009.
        assert!(difference.abs() < 0.1, "{cpu} {cuda}");
    }
}

#[test]
#[ignore = "needs a GPU, real or software: make test"]
fn the_engine_chooses_the_gpu_and_reports_why() {
    let fixture = &fixtures()[0];
    let run = kudos(&["score", "--model", fixture.folder.to_str().unwrap(), "-"], "{\"input_ids\": [1]}");
    assert_eq!(run.status, Some(0), "{run:?}");
    assert!(run.stderr.contains("running on CUDA") && run.stderr.contains("compute capability"), "{run:?}");
}

#[test]
#[ignore = "needs a GPU: make test"]
fn random_weights_take_the_memory_of_a_checkpoint() {
    let _turn = turn();
    // Padded heads and biases are made on the host; other matrices on the GPU.
    let names = ["gqa8_hd64_tied_bf16", "gqa3_hd20_bias_f16", "gemma2_seqcls_hd128_bf16"];
    for fixture in chosen().into_iter().filter(|fixture| names.contains(&&*fixture.name)) {
        let config = ModelConfig::read(&fixture.folder).unwrap();
        let stored = on_gpus(&fixture.folder).open().unwrap();
        for residency in [Residency::Resident, Residency::Streamed { resident_layers: Some(1) }] {
            let open = |seed| {
                let builder = Engine::builder_random(config.clone(), seed).device(options());
                builder.residency(residency).open().unwrap()
            };
            let rewards = |engine: &Engine| -> Vec<f32> {
                let scores = engine.score(family(config.vocab as u32));
                scores.into_iter().map(|score| score.unwrap().reward).collect()
            };
            let engine = open(1);
            assert_eq!(rewards(&engine), rewards(&open(1)), "the same seed");
            assert_ne!(rewards(&engine), rewards(&open(2)), "another seed");
            if residency == Residency::Resident {
                let plan = |engine: &Engine| (engine.plan().sequences, engine.plan().placement);
                assert_eq!(plan(&engine), plan(&stored));
                assert_eq!(engine.plan().footprint.workspace, stored.plan().footprint.workspace);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU, real or software: make test"]
fn an_attention_kernel_runs_by_name_or_those_that_fit_are_named() {
    // The plain kernels round in other places than those with tensor cores. Measured on the software GPU: 0.0016. Those
    // with tiles of 128 keys round all weights of a tile by another maximum: 0.0202, where the first kernel's rewards
    // and theirs are both 0.018 from the CPU's in f32, on average over the demo's pairs.
    let apart_max = |name: &str| if name.contains("sm90a") { 0.04 } else { 0.01 };
    let demo = common::demo_model();
    let sequences = family(ModelConfig::read(&demo).unwrap().vocab as u32);
    let rewards = |attention: Option<&str>| -> kudos::Result<Vec<f32>> {
        let (attention, gemm_tuning) = (attention.map(str::to_owned), GemmTuning::Off);
        let engine = on_gpus(&demo).device(CudaOptions { attention, gemm_tuning, ..options() }).open()?;
        engine.score(&sequences).into_iter().map(|score| Ok(score?.reward)).collect()
    };
    let error = rewards(Some("no_such_kernel")).unwrap_err();
    assert_eq!(error.kind(), kudos::ErrorKind::Options);
    let names: Vec<String> = {
        let (_, names) = error.hint().unwrap().split_once("kernels that fit: ").unwrap();
        names.split(", ").map(str::to_owned).collect()
    };
    assert!(names.len() >= 2, "{names:?}");
    let expected = rewards(None).unwrap();
    assert_eq!(rewards(Some(&names[0])).unwrap(), expected, "the first one that fits is the default");
    let file = names[0].split('_').nth(1).unwrap();
    assert_eq!(
        rewards(Some(file)).unwrap(),
        expected,
        "the first one that fits is the best of its file, {file}"
    );
    let mut of_hopper: Vec<Vec<f32>> = Vec::new();
    for name in &names[1..] {
        let found = rewards(Some(name)).unwrap();
        if name.contains("sm90a") && name.ends_with("d64") {
            of_hopper.push(found.clone());
        }
        let apart = found.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        println!("{name}: at most {apart} from {}", names[0]);
        assert!(apart <= apart_max(name), "{name}: {apart}");
    }
    // Both of Hopper's files give the same bits.
    assert!(of_hopper.windows(2).all(|both| both[0] == both[1]), "{of_hopper:?}");
    let model = demo.to_str().unwrap();
    let run = score(&["--cuda-attention", "no_such_kernel", "--model", model, "-"], "{\"input_ids\": [1]}");
    assert_eq!(run.status, Some(2), "{run:?}");
    assert!(run.stderr.contains(&format!("kernels that fit: {}", names.join(", "))), "{run:?}");
    let run = score(&["--cuda-attention", &names[1], "--model", model, "-"], "{\"input_ids\": [1]}");
    assert_eq!(run.status, Some(0), "{run:?}");
}
