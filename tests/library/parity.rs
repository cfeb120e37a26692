//! Rewards against Hugging Face's float32 ones, on every checkpoint of tests/fixtures/models and
//! every case, with one rank and with several tensor-parallel ones.

use crate::oracle;

use std::collections::BTreeMap;
use std::path::Path;

use kudos::internals::shard::allowed_ranks;
use kudos::{Conversation, CpuOptions, Engine, Score};
use oracle::{Fixture, families, fixtures, relative_error};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

/// |ours - HF float32| / max(1, |reward|). Measured floor over all cases: 8.4e-6 at any rank count; HF's own
/// distance from float64 is up to 1.4e-5 (tests/fixtures/models/README.md).
const BOUND: f64 = 1e-4;

fn open(dir: impl AsRef<Path>, ranks: usize) -> Engine {
    let options = CpuOptions { ranks: Some(ranks), ..CpuOptions::default() };
    Engine::builder(dir).device(options).open().unwrap()
}

fn scores(fixture: &Fixture, ranks: usize) -> Vec<Score> {
    let engine = open(&fixture.folder, ranks);
    let sequences: Vec<Vec<u32>> = fixture.cases.iter().map(|case| case.ids.clone()).collect();
    engine.score(&sequences).into_iter().map(Result::unwrap).collect()
}

/// Returns the mean and the maximum of `errors`.
fn summary(errors: &[f64]) -> (f64, f64) {
    (errors.iter().sum::<f64>() / errors.len() as f64, errors.iter().copied().fold(0.0, f64::max))
}

/// Returns the error of every case, after checking what must be exact.
fn errors(fixture: &Fixture, ranks: usize) -> Vec<f64> {
    let scores = scores(fixture, ranks);
    assert_eq!(scores.len(), fixture.cases.len());
    let mut errors = vec![];
    for (score, case) in scores.iter().zip(&fixture.cases) {
        let place = format!("{}, {} tokens, {ranks} ranks", fixture.name, case.ids.len());
        assert_eq!((score.tokens, score.scored_token), (case.ids.len(), case.scored_token), "{place}");
        assert_eq!(score.reward, score.logits[0], "{place}");
        // One entry per label; a causal model has one.
        assert_eq!(score.logits.len(), case.logits_f32.len(), "{place}");
        for (found, expected) in score.logits.iter().zip(&case.logits_f32) {
            let error = relative_error(f64::from(*found), *expected);
            assert!(error <= BOUND, "{place}: {found}, Hugging Face has {expected}");
            errors.push(error);
        }
    }
    let (mean, max) = summary(&errors);
    println!("{:32} ranks {ranks}: mean {mean:.1e}, max {max:.1e}", fixture.name);
    errors
}

#[test]
fn rewards_equal_hugging_face_in_float32() {
    let errors: Vec<f64> = fixtures().iter().flat_map(|fixture| errors(fixture, 1)).collect();
    let (mean, max) = summary(&errors);
    println!("all {} cases: mean {mean:.1e}, max {max:.1e}", errors.len());
    // 12 checkpoints of 9 cases, one of them with 3 labels.
    assert_eq!(errors.len(), 126);
}

#[test]
fn rewards_over_all_allowed_ranks_equal_hugging_face() {
    let mut divided = 0;
    for fixture in fixtures() {
        let engine = open(&fixture.folder, 1);
        for ranks in allowed_ranks(engine.config()).into_iter().filter(|&ranks| ranks > 1) {
            errors(&fixture, ranks);
            divided += 1;
        }
    }
    // The ranks column of tests/fixtures/models/README.md, without its ones.
    assert_eq!(divided, 26);
}

#[test]
fn other_families_equal_hugging_face_over_all_ranks() {
    let mut divided = 0;
    for fixture in families() {
        let engine = open(&fixture.folder, 1);
        for ranks in allowed_ranks(engine.config()) {
            errors(&fixture, ranks);
            divided += 1;
        }
    }
    // Their sizes allow one rank, all but one two, and five of them four.
    assert_eq!(divided, 22);
}

/// Copies a model into `files` files, with each tensor, in the order of their names, renamed by
/// `spelled`.
fn respelled(model: &Path, files: usize, spelled: impl Fn(usize, &str) -> String) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut stored = Vec::new();
    for path in std::fs::read_dir(model).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".safetensors") {
            stored.push(std::fs::read(path).unwrap());
        } else if !name.ends_with(".index.json") {
            std::fs::copy(&path, dir.path().join(name)).unwrap();
        }
    }
    let tensors = stored.iter().flat_map(|bytes| SafeTensors::deserialize(bytes).unwrap().tensors());
    let tensors: BTreeMap<_, _> = tensors.collect();
    let mut parts = vec![BTreeMap::new(); files];
    for (index, (name, tensor)) in tensors.into_iter().enumerate() {
        parts[index % files].insert(spelled(index, &name), tensor);
    }
    let mut weight_map = serde_json::Map::new();
    for (index, part) in parts.iter().enumerate() {
        let file = if files == 1 { "model.safetensors".to_owned() } else { format!("{index}.safetensors") };
        safetensors::serialize_to_file(part, None, &dir.path().join(&file)).unwrap();
        weight_map.extend(part.keys().map(|name| (name.clone(), file.clone().into())));
    }
    if files > 1 {
        let index = json!({"metadata": {}, "weight_map": weight_map}).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    }
    dir
}

/// Returns a tensor's name in a checkpoint of the inner model.
fn bare(name: &str) -> String {
    name.strip_prefix("model.").unwrap_or(name).to_owned()
}

/// Uses three spellings in turn, each of which transformers 5.24.0 loads whole (no missing keys)
/// and with these rewards.
#[test]
fn rewards_do_not_depend_on_the_spelling_of_tensor_names() {
    for (index, fixture) in fixtures().into_iter().enumerate() {
        let (model, every_other) = (&fixture.folder, |index: usize| index.is_multiple_of(2));
        let dir = match index % 3 {
            0 => respelled(model, 1, |_, name| bare(name)),
            1 => respelled(model, 3, |_, name| format!("model.{name}")),
            _ => respelled(model, 2, |at, name| if every_other(at) { bare(name) } else { name.to_owned() }),
        };
        errors(&Fixture { folder: dir.path().to_owned(), ..fixture }, 1);
    }
}

/// Compares with the reward of transformers 5.24.0 in float32 for the demo, which is equal without
/// `model.` in its names.
#[test]
fn the_demo_without_a_prefix_has_its_reward_from_text() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/model");
    for files in [1, 3] {
        let dir = respelled(demo.as_ref(), files, |_, name| bare(name));
        let engine = open(dir.path(), 1);
        let score = engine.score(&[Conversation::exchange("What is 1+1?", "1+1=2")]).remove(0).unwrap();
        let error = relative_error(f64::from(score.reward), 4.225342);
        assert!(error <= BOUND, "{score:?}, in {files} files");
    }
}

/// Compares the repository's model from text to reward: ids equal, rewards within the bound.
#[test]
fn the_demo_equals_hugging_face_from_text_to_reward() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
    let engine = open(format!("{folder}/model"), 1);
    let expected = oracle::read_json(format!("{folder}/expected.json").as_ref());
    let rows = expected["rows"].as_array().unwrap();
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let conversations: Vec<Conversation> =
        rows.iter().map(|row| Conversation::exchange(text(row, "prompt"), text(row, "response"))).collect();
    let mut errors = vec![];
    for ((row, conversation), score) in rows.iter().zip(&conversations).zip(engine.score(&conversations)) {
        let ids = engine.prompt().unwrap().tokens(conversation, usize::MAX).unwrap().ids;
        assert_eq!(ids, oracle::ids(&row["input_ids"]), "{row}");
        let error = relative_error(f64::from(score.unwrap().reward), row["reward_f32"].as_f64().unwrap());
        assert!(error <= BOUND, "{row}: {error}");
        errors.push(error);
    }
    let (mean, max) = summary(&errors);
    println!("the demo, {} conversations: mean {mean:.1e}, max {max:.1e}", errors.len());
    assert_eq!(errors.len(), 102);
}
