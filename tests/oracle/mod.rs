//! The reference of every backend: an f64 oracle, and the checkpoints of tests/fixtures/models with
//! Hugging Face's rewards.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]

pub mod model;
pub mod naive;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::root;

/// One checkpoint under tests/fixtures/models with Hugging Face's rewards.
pub struct Fixture {
    pub name: String,
    pub folder: PathBuf,
    pub cases: Vec<Case>,
}

/// One token sequence and its results in Hugging Face transformers, computed as
/// tests/fixtures/models/README.md describes.
pub struct Case {
    pub ids: Vec<u32>,
    pub scored_token: usize,
    pub reward_f32: f64,
    pub reward_f64: f64,
    /// With the roundings of flash attention, where attention of Transformers has others.
    pub reward_bf16: f64,
    /// One entry per label, the reward first.
    pub logits_f32: Vec<f64>,
    pub logits_f64: Vec<f64>,
}

/// Every checkpoint of Llama, by name.
pub fn fixtures() -> Vec<Fixture> {
    let fixtures = Fixture::all_of("models", 12);
    assert!(fixtures.iter().all(|fixture| fixture.cases.len() == 9));
    fixtures
}

/// The checkpoints of several families, by name.
pub fn families() -> Vec<Fixture> {
    let families = Fixture::all_of("families", 9);
    assert!(families.iter().all(|fixture| fixture.cases.len() >= 15));
    families
}

impl Fixture {
    /// The `count` checkpoints of a folder of fixtures.
    fn all_of(folder: &str, count: usize) -> Vec<Self> {
        let models = root().join("tests/fixtures").join(folder);
        let mut fixtures: Vec<Self> = std::fs::read_dir(&models)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.join("cases.json").exists())
            .map(|folder| Self::read(&folder))
            .collect();
        fixtures.sort_by(|a, b| a.name.cmp(&b.name));
        // The tests must not pass because a fixture is missing.
        assert_eq!(fixtures.len(), count, "checkpoints in {}", models.display());
        fixtures
    }

    fn read(folder: &Path) -> Self {
        let cases = read_json(&folder.join("cases.json"));
        let cases: Vec<Case> = cases["cases"].as_array().unwrap().iter().map(Case::read).collect();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        Self { name, folder: folder.to_owned(), cases }
    }

    /// `config.json`.
    pub fn config(&self) -> Value {
        read_json(&self.folder.join("config.json"))
    }
}

impl Case {
    fn read(case: &Value) -> Self {
        let number = |key: &str| case[key].as_f64().unwrap_or_else(|| panic!("cases.json: {key}"));
        let logits = |key: &str, single: &str| match case[key].as_array() {
            Some(all) => all.iter().map(|value| value.as_f64().unwrap()).collect(),
            None => vec![number(single)],
        };
        Self {
            ids: ids(&case["input_ids"]),
            scored_token: number("scored_token") as usize,
            reward_f32: number("reward_f32"),
            reward_f64: number("reward_f64"),
            reward_bf16: case["reward_bf16_flash"].as_f64().unwrap_or_else(|| number("reward_bf16")),
            logits_f32: logits("logits_f32", "reward_f32"),
            logits_f64: logits("logits_f64", "reward_f64"),
        }
    }
}

/// A JSON array of token ids.
pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Reads a JSON file, which must exist.
pub fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The error of a reward over max(1, |expected|): the measure of all parity bounds.
pub fn relative_error(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs().max(1.0)
}
