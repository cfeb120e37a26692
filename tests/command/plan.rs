//! `kudos plan --conversations`: how long scoring takes, calculated.

use crate::common;

use std::fs;
use std::process::Command;

use common::{Run, kudos, kudos_path, root};
use serde_json::Value;

fn plan(arguments: &[&str]) -> Run {
    kudos(&[&["plan", "--shape", "llama-3.3-70b"], arguments].concat(), "")
}

#[test]
fn hours_follow_from_the_shape_and_the_data_sheets() {
    let sized = ["--conversations", "1_000_000", "--tokens-mean", "1000", "--responses", "4"];
    let on_cpus = ["--prompt-tokens", "600", "--cpu-nodes", "64", "--cpu-gflops", "2e3"];
    let run = plan(&[&["--json"], &sized[..], &on_cpus[..]].concat());
    assert_eq!(run.status, Some(0), "{run:?}");
    let rows: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |gpu: &str| rows.iter().find(|row| row["gpu"] == gpu).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    let close = |found: &Value, expected: f64| {
        let found = number(found);
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} {expected}");
    };

    // Passes of 4096 tokens that begin within a prompt's responses compute three quarters of it
    // again.
    let passes = (1e6 / ((4096.0 - 450.0) / 550.0_f64)).ceil();
    let unique = 1e6 * 400.0 + (250_000.0 + 0.75 * (passes - 1.0)) * 600.0;
    // Matrices: 8192 x (10,240 + 8192) and 3 x 8192 x 28,672. Keys: 1 to 600, then 601 to 1000.
    let prefixes = (unique - 4e8) / 600.0;
    let keys = prefixes * 180_300.0 + 1e6 * (500_500.0 - 180_300.0);
    let matrices = 8192.0 * 18_432.0 + 3.0 * 8192.0 * 28_672.0;
    let keys_and_values = 8192.0 * 2048.0;
    let flop = 79.0 * (2.0 * matrices * unique + 4.0 * 8192.0 * keys)
        + 2.0 * keys_and_values * unique
        + 1e6 * (2.0 * (matrices - keys_and_values) + 4.0 * 8192.0 * 1000.0);
    // About 137 GFLOP of matmuls a token.
    assert!((1.35e11..1.40e11).contains(&(flop / unique)), "{}", flop / unique);

    // Eight replicas.
    let time = &of("H200")["time"];
    assert_eq!((&time["devices"], &time["longest"]), (&8.into(), &"compute".into()));
    close(&time["passes"], passes);
    close(&time["unique_tokens"], unique);
    close(&time["flop"], flop);
    close(&time["compute_seconds"], flop / 8.0 / (0.75 * 989e12));
    close(&time["seconds"], flop / 8.0 / (0.75 * 989e12));
    close(&time["device_seconds"], flop / (0.75 * 989e12));
    close(&time["memory_seconds"], passes / 8.0 * number(&of("H200")["weight_bytes"]) / 4800e9);
    close(&time["host_seconds"], 1e9 / 819_000.0 / 8.0);
    assert_eq!((number(&time["link_seconds"]), number(&time["all_reduce_seconds"])), (0.0, 0.0));
    close(&time["input_bytes"], 4.5 * (250_000.0 * 600.0 + 1e6 * 400.0));

    // Four replicas of two ranks, each of which receives the other's rows in bf16, twice a layer.
    let time = &of("H100")["time"];
    let received = 2.0 * (79.0 * unique + 1e6) / 4.0 * 8192.0 * 2.0;
    close(&time["all_reduce_bytes_per_device"], received);
    close(&time["all_reduce_seconds"], received / (0.8 * 450e9));
    close(&time["compute_seconds"], flop / 8.0 / (0.75 * 989e12));

    // Streamed layers, in passes of more tokens.
    let row = of("T4");
    let copied = number(&row["time"]["passes"]) * number(&row["streamed_bytes_per_pass"]);
    assert!(copied > 0.0 && number(&row["time"]["unique_tokens"]) < unique, "{row}");
    close(&row["time"]["link_bytes_per_device"], copied);
    close(&row["time"]["link_seconds"], copied / (0.8 * 15.75e9));

    let cpus = rows.last().unwrap();
    assert_eq!(cpus["cpu_nodes"], 64);
    close(&cpus["time"]["seconds"], flop / (64.0 * 2000e9));

    // Without conversations there is no time, and without a GPU's memory for them neither.
    assert!(!plan(&["--json"]).stdout.contains("\"time\""));
    let long = plan(&["--json", "--conversations", "9", "--tokens-mean", "100e3"]);
    let rows: Vec<Value> = long.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.iter().any(|row| row["gpu"] == "T4" && row["time"].is_null()), "{long:?}");
    assert!(rows.iter().any(|row| row["gpu"] == "H200" && row["time"].is_object()), "{long:?}");
}

#[test]
fn impossible_conversations_are_refused_by_their_option() {
    let sized = ["--conversations", "1000", "--tokens-mean", "100"];
    for (wrong, message) in [
        (&["--conversations", "0", "--tokens-mean", "100"][..], "--conversations"),
        (&["--conversations", "-5", "--tokens-mean", "100"], "-5"),
        (&["--conversations", "1.5", "--tokens-mean", "100"], "expected a whole number"),
        (&["--conversations", "1e30", "--tokens-mean", "100"], "expected a whole number"),
        (&["--conversations", "9", "--tokens-mean", "nan"], "--tokens-mean"),
        (&["--conversations", "9", "--tokens-mean", "0.5"], "expected a number of tokens from 1 on"),
        (&["--conversations", "9", "--tokens-mean", "inf"], "--tokens-mean"),
        (&["--conversations", "9"], "--tokens-mean"),
        (&["--tokens-mean", "9"], "--conversations"),
        (&["--responses", "8"], "--conversations"),
        (&["--conversations", "9", "--tokens-mean", "200e3"], "are beyond the limit of 131072"),
        (&[&sized[..], &["--max-tokens", "99"]].concat(), "are beyond the limit of 99"),
        (&[&sized[..], &["--responses", "0"]].concat(), "--responses"),
        (&[&sized[..], &["--responses", "1001"]].concat(), "more than the 1000 conversations"),
        (&[&sized[..], &["--prompt-tokens", "50"]].concat(), "--responses"),
        (&[&sized[..], &["--responses", "2", "--prompt-tokens", "100"]].concat(), "leaves none of"),
        (&[&sized[..], &["--gpu-memory-gib", "80"]].concat(), "--gpu-memory-gib"),
        (&[&sized[..], &["--cpu-nodes", "4"]].concat(), "--cpu-gflops"),
        (&[&sized[..], &["--cpu-nodes", "4", "--cpu-gflops", "0"]].concat(), "GFLOP/s above 0"),
        (&["--cpu-nodes", "4", "--cpu-gflops", "9"], "--conversations"),
    ] {
        let run = plan(wrong);
        assert!(run.status == Some(2) && run.stdout.is_empty() && run.stderr.contains(message), "{run:?}");
    }
    // Shares nothing, and says so.
    let run = plan(&[&sized[..], &["--responses", "8"]].concat());
    assert!(run.stdout.contains("8 to a prompt, which shares nothing without `--prompt-tokens`"), "{run:?}");
}

#[test]
fn the_plans_of_the_clusters_page_are_true() {
    let page = fs::read_to_string(root().join("docs/clusters/README.md")).unwrap();
    let blocks: Vec<&str> =
        page.split("```console\n$ ").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 2, "8 GPUs and 64 CPU nodes, and 32 GPUs");
    let path = format!("{}:{}", kudos_path().parent().unwrap().display(), std::env::var("PATH").unwrap());
    for block in blocks {
        let (command, shown) = block.split_once("\n\n").unwrap();
        let run = Command::new("sh").args(["-ec", command]).env("PATH", &path).output().unwrap();
        assert!(run.status.success(), "{command}: {run:?}");
        // Lines of this machine's own GPUs.
        let found = String::from_utf8(run.stdout).unwrap();
        let found: Vec<&str> = found.lines().filter(|line| !line.starts_with("here: ")).collect();
        assert_eq!(found, shown.lines().collect::<Vec<_>>(), "{command}");
    }
}
