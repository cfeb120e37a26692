//! Rewards against Hugging Face's float32 ones, on every checkpoint of tests/fixtures/models and every case, and the
//! same over tensor-parallel ranks.

use crate::oracle;

use kudos::internals::shard::allowed_ranks;
use kudos::{Conversation, Device, Engine, Options, Score};
use oracle::{Fixture, fixtures, relative_error};
use serde_json::Value;

/// |ours - HF float32| / max(1, |reward|). Measured floor over all cases: 8.4e-6 at any rank count; HF's own
/// distance from float64 is up to 1.4e-5 (tests/fixtures/models/README.md).
const BOUND: f64 = 1e-4;

fn options(ranks: usize) -> Options {
    Options { device: Device::Cpu, ranks: Some(ranks), ..Options::default() }
}

fn scores(fixture: &Fixture, ranks: usize) -> Vec<Score> {
    let engine = Engine::open(&fixture.folder, options(ranks)).unwrap();
    let sequences: Vec<Vec<u32>> = fixture.cases.iter().map(|case| case.ids.clone()).collect();
    engine.score_tokens(&sequences).into_iter().map(Result::unwrap).collect()
}

/// Mean and maximum of `errors`.
fn summary(errors: &[f64]) -> (f64, f64) {
    (errors.iter().sum::<f64>() / errors.len() as f64, errors.iter().copied().fold(0.0, f64::max))
}

/// The error of every case, after checking what has to be exact.
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
fn rewards_over_ranks_equal_hugging_face_wherever_the_model_can_be_divided() {
    let mut divided = 0;
    for fixture in fixtures() {
        let engine = Engine::open(&fixture.folder, options(1)).unwrap();
        for ranks in allowed_ranks(engine.config()).into_iter().filter(|&ranks| ranks > 1) {
            errors(&fixture, ranks);
            divided += 1;
        }
    }
    // The ranks column of tests/fixtures/models/README.md, without its ones.
    assert_eq!(divided, 26);
}

/// The model that the repository ships, from text to reward: ids equal, rewards within the same bound.
#[test]
fn the_demo_equals_hugging_face_from_text_to_reward() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");
    let engine = Engine::open(format!("{folder}/model"), options(1)).unwrap();
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
