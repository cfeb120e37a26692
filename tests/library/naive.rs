//! The f64 oracle, which other tests compare the backends with, against Hugging Face, on every
//! checkpoint of tests/fixtures.

use crate::oracle;

use oracle::model::Oracle;
use oracle::{Fixture, families, fixtures, naive, relative_error};

/// Tokens of the longest case: longer ones take the oracle seconds each and cover nothing more.
const TOKENS_MAX: usize = 400;

/// Oracle against HF with everything in float64. Measured floor over all cases: 8.1e-15.
const BOUND_F64: f64 = 1e-12;

/// Oracle against HF in float32: the error is HF's. Measured floor over all cases: 7.7e-6.
const BOUND_F32: f64 = 3e-5;

/// Returns the largest errors of the oracle's logits against HF's in float64 and in float32.
fn errors(fixture: &Fixture) -> (f64, f64) {
    let oracle = Oracle::open(&fixture.folder);
    let mut worst = (0.0f64, 0.0f64);
    for case in fixture.cases.iter().filter(|case| case.ids.len() <= TOKENS_MAX) {
        assert_eq!(oracle.scored_token(&case.ids), case.scored_token, "{}", fixture.name);
        let logits = oracle.logits(&case.ids);
        let expected = case.logits_f64.iter().zip(&case.logits_f32);
        for (logit, (logit_f64, logit_f32)) in logits.iter().zip(expected) {
            worst.0 = worst.0.max(relative_error(*logit, *logit_f64));
            worst.1 = worst.1.max(relative_error(*logit, *logit_f32));
        }
    }
    println!("{:32} max error against HF f64 {:.1e}, f32 {:.1e}", fixture.name, worst.0, worst.1);
    worst
}

#[test]
fn oracle_agrees_with_hugging_face_on_every_checkpoint() {
    let fixtures: Vec<Fixture> = fixtures().into_iter().chain(families()).collect();
    std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            let fixtures = &fixtures;
            scope.spawn(move || fixtures.iter().skip(half).step_by(2).map(errors).collect::<Vec<_>>())
        });
        let found: Vec<_> = halves.into_iter().flat_map(|half| half.join().unwrap()).collect();
        assert_eq!(found.len(), fixtures.len());
        assert!(found.iter().all(|error| error.0 <= BOUND_F64), "float64: {found:?}");
        assert!(found.iter().all(|error| error.1 <= BOUND_F32), "float32: {found:?}");
    });
}

#[test]
fn naive_attention_of_equal_scores_is_the_mean_of_the_values() {
    let (zero, one, five) = ([0.0, 0.0], [1.0, -1.0], [5.0, 7.0]);
    assert_eq!(
        naive::attention(&zero, &[&one, &five], &[&one, &five], 2, naive::Scores::plain(2)),
        [3.0, 3.0]
    );
}

#[test]
fn naive_rope_rotates_pairs_by_their_angle() {
    let mut row = [1.0, 0.0, 0.0, 0.0];
    let frequencies = naive::rope_frequencies(4, 100.0, None);
    assert_eq!(frequencies, [1.0, 0.1]);
    naive::rope(&mut row, 0, &frequencies);
    assert_eq!(row, [1.0, 0.0, 0.0, 0.0]);
    naive::rope(&mut row, 2, &frequencies);
    assert_eq!(row, [2f64.cos(), 0.0, 2f64.sin(), 0.0]);
}
