//! Weights are used where they are mapped: opening and scoring makes no copy of them.
//!
//! One test in a binary of its own, because it measures the whole process.

mod common;

use std::fs;

use common::{Sizes, cpu, ids, random_model};
use kudos::Engine;

/// Anonymous memory of this process that is in RAM, in bytes; `None` where the system does not say.
fn anonymous_bytes() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<usize>().ok()? * 1024)
}

#[test]
fn anonymous_memory_stays_within_the_plan_and_32_mib() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = Sizes { hidden: 1024, ffn: 4096, layers: 6, vocab: 16_384 };
    let weight_bytes = random_model(dir.path(), sizes);
    assert!(weight_bytes > 200 << 20);
    let Some(before) = anonymous_bytes() else {
        eprintln!("not run: this system does not tell how much anonymous memory a process has");
        return;
    };
    let engine = Engine::open(dir.path(), cpu()).unwrap();
    let scores = engine.score_tokens(&[ids(1, 400, 16_384), ids(2, 33, 16_384)]);
    assert!(scores.iter().all(Result::is_ok), "{scores:?}");
    let grown = anonymous_bytes().unwrap().saturating_sub(before);
    let workspace = engine.plan().footprint.workspace;
    assert!(
        grown <= workspace + (32 << 20),
        "{grown} bytes grown, {workspace} planned, {weight_bytes} of weights"
    );
    // With a workspace of this size the bound above would hide a copy of the weights if it were not far below them.
    assert!(
        workspace + (32 << 20) < weight_bytes,
        "{workspace} planned: too much for this test to tell anything"
    );
}
