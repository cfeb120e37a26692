//! Whether a baseline computes the same: its rewards beside the engine's in f32.

use super::name::Peer;
use crate::summary::Summary;
use kudos::{Error, ErrorKind, Result};

/// A baseline is rejected when one of its rewards is farther than this from the engine's in f32.
/// SmolLM2's rewards move by up to 0.11 in bfloat16 by transformers; another computation moves them
/// by whole units.
const APART_MAX: f64 = 0.2;

/// The mean and the largest distance of rewards from others.
pub(super) fn distances(rewards: &[f32], reference: &[f32]) -> (f64, f64) {
    let apart: Vec<f64> =
        rewards.iter().zip(reference).map(|(reward, other)| f64::from(reward - other).abs()).collect();
    (Summary::new(&apart).mean, apart.iter().copied().fold(0.0, f64::max))
}

/// Refuses a baseline that computes something else.
pub(super) fn check_rewards(peer: Peer, rewards: &[f32], reference: &[f32]) -> Result<()> {
    let rejected = |message: String| {
        let hint = "an engine that computes something else is no baseline: its settings, its conversion of the \
                    model or its version are at fault";
        let message = format!("the baseline `{peer}` is rejected: {message}");
        Err(Error::new(ErrorKind::Unsupported, message).with_hint(hint))
    };
    if rewards.len() != reference.len() {
        return rejected(format!("it has {} rewards of {} sequences", rewards.len(), reference.len()));
    }
    for (index, (&reward, &expected)) in rewards.iter().zip(reference).enumerate() {
        let apart = f64::from(reward - expected).abs();
        if apart.is_nan() || apart > APART_MAX {
            return rejected(format!(
                "its reward of sequence {index} is {reward}, and in f32 it is {expected}: {apart:.3} apart, where \
                 {APART_MAX} is the most"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_may_move_by_a_fifth_and_are_numbers() {
        let check = |rewards: &[f32]| check_rewards(Peer::Vllm, rewards, &[1.0, -2.0]);
        assert!(check(&[1.19, -2.19]).is_ok());
        for rewards in [&[1.0, -1.75][..], &[1.0, f32::NAN], &[1.0]] {
            let error = check(rewards).unwrap_err();
            assert!(error.message().contains("`vllm` is rejected") && error.hint().is_some(), "{error:?}");
        }
        assert_eq!(distances(&[1.5, -2.0], &[1.0, -2.0]), (0.25, 0.5));
    }
}
