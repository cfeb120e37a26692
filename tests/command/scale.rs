//! Long inputs are scored in bounded memory.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{demo_model, kudos_path};
use serde_json::json;

/// Scores a file into another one, and returns the command's peak resident memory in bytes.
fn peak_bytes(input: &Path, output: &Path) -> u64 {
    let mut child = Command::new(kudos_path())
        .args(["score", "--device", "cpu", "--model", demo_model().to_str().unwrap()])
        .arg(input)
        .arg("-o")
        .arg(output)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = kib.map_or(peak, |kib| kib * 1024);
        thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    peak
}

#[test]
fn memory_does_not_grow_with_the_input() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    // A note that is not scored: lines are read far faster than they are computed.
    let note = "n".repeat(4000);
    let mut peaks = Vec::new();
    for lines in [8_000, 32_000] {
        let mut file = BufWriter::new(File::create(&input).unwrap());
        for id in 0..lines {
            let response = format!("{id}");
            writeln!(file, "{}", json!({"id": id, "prompt": "1+1", "response": response, "note": note}))
                .unwrap();
        }
        file.into_inner().unwrap();
        peaks.push(peak_bytes(&input, &output));
        let results = fs::read_to_string(&output).unwrap();
        let ids = results.lines().map(|line| {
            line.strip_prefix("{\"id\":").unwrap().split(',').next().unwrap().parse::<usize>().unwrap()
        });
        assert!(ids.eq(0..lines), "results are out of order");
    }
    println!("{peaks:?}");
    let [few, many] = peaks[..] else { panic!() };
    // The second input has 96 MiB more.
    assert!(many < few + (32 << 20), "{few} bytes for 8,000 lines, {many} for 32,000");
}

#[test]
fn memory_does_not_grow_with_the_responses_to_a_long_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let prompt = "What is 1+1? ".repeat(150);
    let mut peaks = Vec::new();
    for count in [100, 8_000] {
        let responses: Vec<String> = (0..count).map(|index| index.to_string()).collect();
        fs::write(&input, json!({"prompt": prompt, "responses": responses}).to_string()).unwrap();
        peaks.push(peak_bytes(&input, &output));
        let result: serde_json::Value = serde_json::from_str(&fs::read_to_string(&output).unwrap()).unwrap();
        assert_eq!(result["rewards"].as_array().unwrap().len(), count);
    }
    println!("{peaks:?}");
    let [few, many] = peaks[..] else { panic!() };
    // All conversations at once would be 16 MB of text and 26 MB of tokens.
    assert!(many < few + (28 << 20), "{few} bytes for 100 responses, {many} for 8,000");
}
