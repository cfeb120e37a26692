//! Length: rewards by the characters of a response, and comparisons by which response is longer.

use serde::Serialize;

use super::parts::{Pair, Share, groups, mean};
use crate::eval::stats::{Design, Statistic, percentile};

/// The parts of a bin's rewards below which its quantiles are.
const QUANTILES: [f64; 5] = [0.1, 0.25, 0.5, 0.75, 0.9];

/// A response and its reward.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response {
    /// The row of its item.
    pub(super) item: usize,
    pub(super) chars: usize,
    pub(super) reward: f64,
}

/// Rewards and comparisons by length.
#[derive(Debug, Serialize)]
pub(super) struct Length {
    responses: usize,
    /// Items whose conversations cannot be read, which are not counted.
    unread: usize,
    bins: Vec<Bin>,
    pearson: Correlation,
    spearman: Correlation,
    comparisons: Comparisons,
}

/// Responses with lengths from `from` to `to`.
#[derive(Debug, PartialEq, Serialize)]
struct Bin {
    from: usize,
    to: usize,
    /// The median length.
    chars: f64,
    count: usize,
    mean: f64,
    quantiles: [f64; 5],
}

/// A correlation of length and reward, over all responses, with its bootstrap interval.
#[derive(Debug, Serialize)]
struct Correlation {
    value: f64,
    interval: Option<[f64; 2]>,
}

/// Comparisons by the lengths of their responses.
#[derive(Debug, PartialEq, Serialize)]
struct Comparisons {
    /// Accuracy where the better response is the longer one.
    better_longer: Share,
    better_shorter: Share,
    equally_long: Share,
    /// The part in which the longer response has the higher reward; ties are left out.
    longer_wins: Share,
    /// The part in which the longer response is the better one.
    longer_is_better: Share,
}

impl Length {
    /// Returns the numbers of all responses and comparisons; intervals of correlations are by the
    /// design.
    pub(super) fn of(responses: &[Response], pairs: &[Pair], unread: usize, design: &Design) -> Self {
        let points = responses.iter().map(|response| (response.item, response.chars as f64, response.reward));
        let points: Vec<(usize, f64, f64)> = points.collect();
        let statistics = [Statistic::pearson(points.clone()), Statistic::spearman(points)];
        let values = design.values(&statistics);
        let mut intervals = design.intervals(&statistics).into_iter().flatten();
        let [pearson, spearman] =
            [values[0], values[1]].map(|value| Correlation { value, interval: intervals.next() });
        Self {
            responses: responses.len(),
            unread,
            bins: bins(responses),
            pearson,
            spearman,
            comparisons: Comparisons::of(pairs),
        }
    }
}

/// Returns bins of equal counts, with the mean and the quantiles of their rewards.
fn bins(responses: &[Response]) -> Vec<Bin> {
    let mut sorted = responses.to_vec();
    sorted.sort_by_key(|response| response.chars);
    let lengths: Vec<f64> = sorted.iter().map(|response| response.chars as f64).collect();
    let bin = |range: std::ops::Range<usize>| {
        let responses = &sorted[range.clone()];
        let mut rewards: Vec<f64> = responses.iter().map(|response| response.reward).collect();
        rewards.sort_by(f64::total_cmp);
        Bin {
            from: responses[0].chars,
            to: responses[responses.len() - 1].chars,
            chars: percentile(&lengths[range], 0.5),
            count: responses.len(),
            mean: mean(rewards.iter().copied()),
            quantiles: QUANTILES.map(|part| percentile(&rewards, part)),
        }
    };
    groups(&lengths).into_iter().map(bin).collect()
}

impl Comparisons {
    fn of(pairs: &[Pair]) -> Self {
        let known: Vec<(&Pair, usize, usize)> =
            pairs.iter().filter_map(|pair| pair.chars.map(|(better, worse)| (pair, better, worse))).collect();
        let accuracy = |is_counted: fn(usize, usize) -> bool| {
            let counted = known.iter().filter(|(_, better, worse)| is_counted(*better, *worse));
            Share::of(counted.map(|(pair, ..)| (pair.item, pair.margin > 0.0)))
        };
        let unequal = || known.iter().filter(|(_, better, worse)| better != worse);
        let decided = unequal().filter(|(pair, ..)| pair.margin != 0.0);
        Self {
            better_longer: accuracy(|better, worse| better > worse),
            better_shorter: accuracy(|better, worse| better < worse),
            equally_long: accuracy(|better, worse| better == worse),
            longer_wins: Share::of(
                decided.map(|(pair, better, worse)| (pair.item, (pair.margin > 0.0) == (better > worse))),
            ),
            longer_is_better: Share::of(unequal().map(|(pair, better, worse)| (pair.item, better > worse))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_have_the_mean_and_quantiles_of_their_rewards() {
        // Lengths 1 to 20 in any order; rewards of the longer half are 10 more.
        let response = |at: usize| {
            let chars = (at * 7) % 20 + 1;
            Response { item: at, chars, reward: chars as f64 % 10.0 + if chars > 10 { 10.0 } else { 0.0 } }
        };
        let found = bins(&(0..20).map(response).collect::<Vec<_>>());
        let shown: Vec<(usize, usize, f64, usize, f64)> =
            found.iter().map(|bin| (bin.from, bin.to, bin.chars, bin.count, bin.mean)).collect();
        // Rewards 0 to 9, then 10 to 19.
        assert_eq!(shown, [(1, 10, 5.5, 10, 4.5), (11, 20, 15.5, 10, 14.5)]);
        assert_eq!(found[0].quantiles, [0.9, 2.25, 4.5, 6.75, 8.1]);
    }

    #[test]
    fn comparisons_are_split_by_the_longer_response() {
        let pair = |item, margin, chars| Pair { item, margin, chars: Some(chars) };
        let found = Comparisons::of(&[
            pair(0, 1.0, (9, 5)),
            pair(1, 1.0, (9, 5)),
            pair(2, -1.0, (9, 5)),
            pair(3, 2.0, (4, 5)),
            pair(4, -2.0, (4, 5)),
            pair(5, 0.0, (4, 5)),
            pair(6, 1.0, (5, 5)),
            Pair { item: 7, margin: 1.0, chars: None },
        ]);
        let counted = |share: Share| (share.comparisons, share.value);
        assert_eq!(counted(found.better_longer), (3, 2.0 / 3.0));
        assert_eq!(counted(found.better_shorter), (3, 1.0 / 3.0));
        assert_eq!(counted(found.equally_long), (1, 1.0));
        // The longer one wins in 0, 1 and 4 of the five that are no tie.
        assert_eq!(counted(found.longer_wins), (5, 0.6));
        assert_eq!(counted(found.longer_is_better), (6, 0.5));
    }

    #[test]
    fn correlations_are_of_characters_and_rewards() {
        let response = |(item, (chars, reward))| Response { item, chars, reward };
        let responses: Vec<Response> =
            [(1, 2.0), (2, 2.0), (3, 5.0)].into_iter().enumerate().map(response).collect();
        let found = Length::of(&responses, &[], 2, &Design::of_items([(); 3]));
        assert!((found.pearson.value - 3.0 / 12.0_f64.sqrt()).abs() < 1e-12, "{found:?}");
        assert!((found.spearman.value - 1.5 / 3.0_f64.sqrt()).abs() < 1e-12, "{found:?}");
        assert_eq!((found.responses, found.unread), (3, 2));
        let none = Length::of(&[], &[], 0, &Design::of_items([(); 0]));
        assert!(none.bins.is_empty() && none.pearson.value.is_nan() && none.pearson.interval.is_none());
    }
}
