//! How fast the engine scores token ids on the CPU, from queue to rewards, as a program that links it sees it.
//!
//! `cargo bench --profile release --bench cpu_engine -- MODEL WORKLOAD.json [f32|bf16] [RUNS] [THREADS]`. The workload is
//! `{"sequences": [[id, ..], ..]}`; one JSON object comes out on stdout, with the seconds of every run. The first run,
//! which faults the weights in, is not among them. `benches/baseline/compare.py` runs this and its counterpart in turn.

use std::path::{Path, PathBuf};
use std::time::Instant;

use kudos::{CpuMath, Device, Engine, Options};
use serde_json::{Value, json};

fn main() {
    // `cargo bench` passes --bench, which is not ours; `cargo test --benches` passes nothing at all.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if std::env::args().len() == 1 {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/model");
        return println!("{}", measure(&demo, vec![vec![1, 2, 3], vec![1, 2, 4, 5]], CpuMath::F32, 1, None));
    }
    let [model, workload, rest @ ..] = &args[..] else {
        panic!("expected MODEL WORKLOAD.json, got {args:?}")
    };
    let math = match rest.first().map_or("f32", String::as_str) {
        "f32" => CpuMath::F32,
        "bf16" => CpuMath::Bf16,
        other => panic!("the arithmetic is f32 or bf16, not {other}"),
    };
    let number = |index: usize| rest.get(index).map(|text| text.parse().expect("a number"));
    let workload: Value = serde_json::from_slice(&std::fs::read(workload).unwrap()).unwrap();
    let sequences: Vec<Vec<u32>> = serde_json::from_value(workload["sequences"].clone()).unwrap();
    println!("{}", measure(&PathBuf::from(model), sequences, math, number(1).unwrap_or(5), number(2)));
}

/// Scores all `sequences` in one call, `runs` times.
fn measure(
    model: &Path,
    sequences: Vec<Vec<u32>>,
    cpu_math: CpuMath,
    runs: usize,
    threads: Option<usize>,
) -> Value {
    let options = Options { device: Device::Cpu, cpu_math, threads, ..Options::default() };
    let engine = Engine::open(model, options).unwrap();
    let score = || -> Vec<f32> {
        engine.score_tokens(&sequences).into_iter().map(|score| score.unwrap().reward).collect()
    };
    let rewards = score();
    let (seconds, cpu_seconds): (Vec<f64>, Vec<f64>) = (0..runs)
        .map(|_| {
            let (start, cpu_start) = (Instant::now(), process_cpu_seconds());
            assert_eq!(score(), rewards, "a run gave other rewards than the one before");
            (start.elapsed().as_secs_f64(), process_cpu_seconds() - cpu_start)
        })
        .unzip();
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    json!({
        "engine": format!("kudos {}", env!("CARGO_PKG_VERSION")),
        "device": engine.device(),
        "math": format!("{cpu_math:?}").to_lowercase(),
        "tokens": tokens,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "best_tokens_per_second": tokens as f64 / best,
        "peak_rss_bytes": peak_rss_bytes(),
        "rewards": rewards,
    })
}

/// Seconds that all threads of this process have run: on a shared machine the steadier measure.
fn process_cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "the system has no clock of a process's time");
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// The most memory that this process has had in RAM, mapped weights included; nothing where Linux does not say.
fn peak_rss_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}
