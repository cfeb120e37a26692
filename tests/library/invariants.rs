//! Invariants of rewards, bit for bit, on every model of `tests/fixtures`: they do not
//! depend on the other sequences of the batch, shared prefixes, the number of threads, the size of
//! batches, streamed layers, or earlier runs.

use crate::common;

use std::path::PathBuf;

use common::{batches_of, cpu_ranks, families, family, fixtures, ids, on_cpu};
use kudos::{Batching, CpuMath, CpuOptions, Engine, EngineBuilder, Replicas, Residency, Sharing};

fn bits(engine: &Engine, sequences: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let bits =
        |score: kudos::Result<kudos::Score>| score.unwrap().logits.iter().map(|x| x.to_bits()).collect();
    engine.score(sequences).into_iter().map(bits).collect()
}

#[test]
fn a_reward_depends_on_its_own_tokens_alone() {
    for dir in fixtures().into_iter().chain(families()) {
        let engine = on_cpu(&dir).device(cpu_ranks(1)).open().unwrap();
        let sequences = family(engine.config().vocab as u32);
        let alone: Vec<Vec<u32>> =
            sequences.iter().map(|ids| bits(&engine, std::slice::from_ref(ids)).remove(0)).collect();
        let mut backwards = sequences.clone();
        backwards.reverse();
        let mut expected = alone.clone();
        assert_eq!(bits(&engine, &sequences), expected, "{dir:?}: alone = in a batch, order kept");
        expected.reverse();
        assert_eq!(bits(&engine, &backwards), expected, "{dir:?}: in another order, run again");
    }
}

/// Returns sequences, some sharing 900 tokens or more, that make several parts of a pass on the
/// CPU, which have at most 1,024 rows.
fn sequences_of_several_parts(vocab: u32) -> Vec<Vec<u32>> {
    let prompt = ids(11, 900, vocab);
    let longer = [&prompt[..], &ids(12, 40, vocab)].concat();
    vec![
        ids(13, 700, vocab),
        [&prompt[..], &ids(14, 81, vocab)].concat(),
        [&longer[..], &ids(15, 17, vocab)].concat(),
        ids(16, 1001, vocab),
        [&longer[..], &ids(17, 66, vocab)].concat(),
        longer,
        ids(18, 333, vocab),
    ]
}

#[test]
fn a_pass_of_several_parts_changes_no_bit() {
    let mut tried = 0;
    // Of the families, those with windows, which cross the ends of parts.
    let has_windows = |dir: &PathBuf| {
        let config = kudos::internals::config::ModelConfig::read(dir).unwrap();
        config.windows.iter().any(Option::is_some)
    };
    for dir in fixtures().into_iter().chain(families().into_iter().filter(has_windows)) {
        let config = kudos::internals::config::ModelConfig::read(&dir).unwrap();
        let sequences = sequences_of_several_parts(config.vocab as u32);
        for ranks in kudos::internals::shard::allowed_ranks(&config).into_iter().filter(|&ranks| ranks <= 2) {
            for math in [CpuMath::F32, CpuMath::F32Vector, CpuMath::Bf16] {
                let options = CpuOptions { math, ..cpu_ranks(ranks) };
                let engine = on_cpu(&dir).device(options).open().unwrap();
                let alone: Vec<Vec<u32>> =
                    sequences.iter().map(|ids| bits(&engine, std::slice::from_ref(ids)).remove(0)).collect();
                let before = engine.stats();
                assert_eq!(bits(&engine, &sequences), alone, "{dir:?}, {ranks} ranks, {math:?}");
                let after = engine.stats();
                assert_eq!(after.passes - before.passes, 1, "one pass has all sequences");
                assert_eq!(
                    after.unique_tokens - before.unique_tokens,
                    700 + 900 + 81 + 40 + 17 + 1001 + 66 + 333
                );
                tried += ranks - 1;
            }
        }
    }
    assert!(tried >= 3, "only {tried} models and arithmetics on two ranks");
}

fn streamed(resident_layers: Option<usize>) -> Residency {
    Residency::Streamed { resident_layers }
}

/// A change of an engine's options.
type Variant = fn(EngineBuilder) -> EngineBuilder;

fn threads(threads: usize) -> CpuOptions {
    CpuOptions { threads: Some(threads), ..CpuOptions::default() }
}

#[test]
fn options_of_speed_change_no_bit() {
    let variants: [(&str, Variant); 10] = [
        ("prefixes not shared", |builder| {
            builder.batching(Batching { sharing: Sharing::Nothing, ..Batching::default() })
        }),
        ("2 threads", |builder| builder.device(threads(2))),
        ("3 threads", |builder| builder.device(threads(3))),
        ("5 threads", |builder| builder.device(threads(5))),
        ("small batches", |builder| builder.batching(batches_of(100))),
        ("batches of one", |builder| builder.batching(batches_of(1))),
        ("a short queue", |builder| builder.batching(Batching { queue_tokens: 1, ..Batching::default() })),
        ("all layers streamed", |builder| builder.residency(streamed(None))),
        ("one layer resident", |builder| builder.residency(streamed(Some(1)))),
        ("one layer resident, small batches", |builder| {
            builder.residency(streamed(Some(1))).batching(batches_of(100))
        }),
    ];
    for dir in fixtures().into_iter().chain(families()) {
        let engine = on_cpu(&dir).device(cpu_ranks(1)).open().unwrap();
        let sequences = family(engine.config().vocab as u32);
        let expected = bits(&engine, &sequences);
        for (name, variant) in variants {
            let engine = variant(on_cpu(&dir)).open().unwrap();
            assert_eq!(bits(&engine, &sequences), expected, "{dir:?}: {name}");
        }
    }
}

#[test]
fn streamed_layers_change_no_bit_on_any_number_of_ranks() {
    let mut tried = 0;
    for dir in fixtures().into_iter().chain(families()) {
        let config = kudos::internals::config::ModelConfig::read(&dir).unwrap();
        let sequences = family(config.vocab as u32);
        for ranks in kudos::internals::shard::allowed_ranks(&config).into_iter().filter(|&ranks| ranks > 1) {
            let builder = on_cpu(&dir).device(cpu_ranks(ranks));
            let resident = builder.clone().open().unwrap();
            let engine = builder.residency(streamed(Some(1))).open().unwrap();
            let placement = engine.plan().placement;
            assert_eq!((placement.resident, placement.streamed), (1, config.layers - 1));
            assert_eq!(bits(&engine, &sequences), bits(&resident, &sequences), "{dir:?}, {ranks} ranks");
            tried += 1;
        }
    }
    assert!(tried >= 20, "only {tried} combinations of model and ranks");
}

#[test]
fn replicas_change_no_bit_and_share_the_work() {
    let mut worked = 0;
    let dirs = fixtures().into_iter().step_by(4).chain(families().into_iter().step_by(3));
    for dir in dirs {
        let config = kudos::internals::config::ModelConfig::read(&dir).unwrap();
        let sequences: Vec<Vec<u32>> = (0..6).flat_map(|_| family(config.vocab as u32)).collect();
        let alone = on_cpu(&dir).device(cpu_ranks(1)).open().unwrap();
        for ranks in kudos::internals::shard::allowed_ranks(&config).into_iter().filter(|&ranks| ranks <= 2) {
            let of_ranks = on_cpu(&dir).device(cpu_ranks(ranks)).open().unwrap();
            let expected = bits(if ranks == 1 { &alone } else { &of_ranks }, &sequences);
            for (replicas, residency) in [(2, Residency::Auto), (3, streamed(Some(1)))] {
                let options = CpuOptions {
                    replicas: Replicas::Count(replicas),
                    threads: Some(replicas * ranks),
                    ..cpu_ranks(ranks)
                };
                let builder = on_cpu(&dir).device(options).residency(residency).batching(batches_of(100));
                let engine = builder.open().unwrap();
                assert_eq!(engine.plan().replicas, replicas);
                assert_eq!(bits(&engine, &sequences), expected, "{dir:?}, {replicas} replicas of {ranks}");
                let passes: Vec<u64> =
                    engine.stats_of_replicas().iter().map(|replica| replica.passes).collect();
                assert_eq!(passes.iter().sum::<u64>(), engine.stats().passes);
                worked += passes.iter().filter(|&&passes| passes > 0).count();
                engine.close();
            }
        }
    }
    assert!(worked > 20, "{worked} replicas had work");
}

#[test]
fn a_number_of_replicas_is_checked() {
    let dir = &fixtures()[0];
    let open = |replicas| {
        on_cpu(dir).device(CpuOptions { replicas, threads: Some(2), ..CpuOptions::default() }).open()
    };
    let error = open(Replicas::Count(0)).unwrap_err();
    assert_eq!(error.kind(), kudos::ErrorKind::Options);
    assert!(error.message().contains("at least one replica"), "{error}");
    let error = open(Replicas::Count(3)).unwrap_err();
    assert_eq!(error.kind(), kudos::ErrorKind::Options);
    assert!(error.message().contains("3 replicas need a thread each, and there are 2"), "{error}");
    assert_eq!(open(Replicas::Count(2)).unwrap().plan().replicas, 2);
    // One per NUMA node, while there are threads.
    let auto = open(Replicas::Auto).unwrap().plan().replicas;
    assert!((1..=2).contains(&auto), "{auto}");
    for (text, expected) in [("auto", Some(Replicas::Auto)), ("3", Some(Replicas::Count(3))), ("0", None)] {
        assert_eq!(text.parse::<Replicas>().ok(), expected, "{text}");
    }
}
