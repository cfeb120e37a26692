//! Real weights: SmolLM2-135M with a trained reward head, in both layouts, against Hugging Face's
//! ids and float32 rewards. `make test-real` builds the models (tests/real/smollm2.py) in the
//! folder KUDOS_REAL_DIR and runs this. KUDOS_TEST_DATA is a folder with a longer list of such
//! rows, which we may not redistribute.

#[path = "../common/mod.rs"]
mod common;
#[path = "../oracle/mod.rs"]
mod oracle;
mod prompts;

use std::path::{Path, PathBuf};

use kudos::{Conversation, CpuOptions, Engine};
use oracle::{ids, read_json, relative_error};
use serde_json::Value;

/// Bound on |ours - HF float32| / max(1, |reward|). Measured floor: 1.4e-5 on 30 conversations; a
/// second run of transformers moved its own rewards by up to 7.6e-6.
const BOUND: f64 = 1e-4;

fn model(name: &str) -> PathBuf {
    let folder = std::env::var_os("KUDOS_REAL_DIR").expect("KUDOS_REAL_DIR is not set; run `make test-real`");
    PathBuf::from(folder).join(name)
}

fn shipped_rows() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/expected.json");
    read_json(&path)["rows"].as_array().unwrap().clone()
}

/// Scores the conversation of every row, and requires equal ids and a reward within the bound.
fn check(model_name: &str, rows: &[Value]) {
    let engine = Engine::builder(model(model_name)).device(CpuOptions::default()).open().unwrap();
    let prompt = engine.prompt().unwrap();
    let conversations: Vec<Conversation> =
        rows.iter().map(|row| Conversation::from_json(row["messages"].clone()).unwrap()).collect();
    for (row, conversation) in rows.iter().zip(&conversations) {
        let tokens = prompt.tokens(conversation, engine.config().max_tokens).unwrap();
        assert_eq!(tokens.ids, ids(&row["input_ids"]), "ids of {}", row["name"]);
    }
    let mut errors = vec![];
    for (row, score) in rows.iter().zip(engine.score(&conversations)) {
        let (reward, expected) = (score.unwrap().reward, row["reward_f32"].as_f64().unwrap());
        let error = relative_error(f64::from(reward), expected);
        assert!(error <= BOUND, "{}: {reward}, Hugging Face has {expected}", row["name"]);
        errors.push(error);
    }
    let (mean, max) =
        (errors.iter().sum::<f64>() / errors.len() as f64, errors.iter().fold(0.0f64, |a, &b| a.max(b)));
    println!("{model_name}, {} conversations: mean {mean:.1e}, max {max:.1e}", rows.len());
}

#[test]
#[ignore = "needs real weights: make test-real"]
fn smollm2_as_a_causal_model_equals_hugging_face() {
    let rows = shipped_rows();
    assert_eq!(rows.len(), 10);
    check("smollm2-causal", &rows);
}

#[test]
#[ignore = "needs real weights: make test-real"]
fn smollm2_as_a_classifier_equals_hugging_face() {
    check("smollm2-seqcls", &shipped_rows());
}

#[test]
#[ignore = "needs real weights and KUDOS_TEST_DATA: make test-real"]
fn smollm2_equals_hugging_face_on_the_longer_list() {
    let data = std::env::var_os("KUDOS_TEST_DATA").expect("KUDOS_TEST_DATA is not set");
    let rows = read_json(&PathBuf::from(data).join("smollm2_reward/expected.json"));
    let rows = rows.as_array().unwrap();
    assert!(rows.len() > 10, "{} rows", rows.len());
    check("smollm2-causal", rows);
}
