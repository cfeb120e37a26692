//! Margins: their histogram, and the accuracy of comparisons by the size of their margin.

use serde::Serialize;

use super::parts::{Pair, Share, groups, mean};
use crate::eval::stats::percentile;

/// Limits on the bins of a histogram that are aimed at.
const BINS_MIN: f64 = 8.0;
const BINS_MAX: f64 = 32.0;

/// The distribution of margins.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Margins {
    comparisons: usize,
    right: Side,
    wrong: Side,
    /// Margins of 0, which no bin counts.
    ties: usize,
    /// Bins of one width, with an edge at 0.
    bins: Vec<Bin>,
    /// Margins below the first bin and above the last one.
    outside: [usize; 2],
}

/// Margins of one sign.
#[derive(Debug, PartialEq, Serialize)]
struct Side {
    count: usize,
    mean: f64,
    median: f64,
}

/// Margins from `from` to `to`; the edge nearer to 0 is not counted.
#[derive(Debug, PartialEq, Serialize)]
struct Bin {
    from: f64,
    to: f64,
    count: usize,
}

impl Margins {
    /// Returns the distribution of the margins of comparisons.
    pub(super) fn of(pairs: &[Pair]) -> Self {
        let mut margins: Vec<f64> = pairs.iter().map(|pair| pair.margin).collect();
        margins.sort_by(f64::total_cmp);
        let (wrong, rest) = margins.split_at(margins.partition_point(|margin| *margin < 0.0));
        let (ties, right) = rest.split_at(rest.partition_point(|margin| *margin <= 0.0));
        let (bins, outside) = histogram(&margins);
        Self {
            comparisons: margins.len(),
            right: Side::of(right),
            wrong: Side::of(wrong),
            ties: ties.len(),
            bins,
            outside,
        }
    }
}

impl Side {
    fn of(sorted: &[f64]) -> Self {
        let median = if sorted.is_empty() { f64::NAN } else { percentile(sorted, 0.5) };
        Self { count: sorted.len(), mean: mean(sorted.iter().copied()), median }
    }
}

/// Returns bins of sorted values, and the number of values below and above them. Values that are
/// farther beyond the first and the last percentile than half the distance of these have no bin.
fn histogram(sorted: &[f64]) -> (Vec<Bin>, [usize; 2]) {
    let (Some(&least), Some(&greatest)) = (sorted.first(), sorted.last()) else { return (vec![], [0, 0]) };
    let (low, high) = (percentile(sorted, 0.01), percentile(sorted, 0.99));
    let beyond = (high - low) / 2.0;
    let (low, high) = (least.max(low - beyond).min(0.0), greatest.min(high + beyond).max(0.0));
    if low == high {
        return (vec![], [0, 0]);
    }
    let bins = (2.0 * (sorted.len() as f64).sqrt()).clamp(BINS_MIN, BINS_MAX);
    let width = step((high - low) / bins);
    // Whole widths, also where a quotient is a little more than its whole number.
    let whole = |quotient: f64| (quotient - 1e-9).ceil().max(0.0) as usize;
    let (negative, positive) = (whole(-low / width), whole(high / width));
    let mut counts = vec![0; negative + positive];
    let mut outside = [0, 0];
    for &value in sorted.iter().filter(|value| **value != 0.0) {
        let bin = whole(value.abs() / width).max(1);
        match (value < 0.0, bin) {
            (true, bin) if bin > negative => outside[0] += 1,
            (true, bin) => counts[negative - bin] += 1,
            (false, bin) if bin > positive => outside[1] += 1,
            (false, bin) => counts[negative + bin - 1] += 1,
        }
    }
    let edge = |index: usize| (index as f64 - negative as f64) * width;
    let bin = |(index, count)| Bin { from: edge(index), to: edge(index + 1), count };
    (counts.into_iter().enumerate().map(bin).collect(), outside)
}

/// Returns the least of 1, 2, 5 and 10 times a power of ten that is not below a width.
fn step(width: f64) -> f64 {
    let power = 10_f64.powf(width.log10().floor());
    let is_enough = |factor: &f64| factor * power >= width * (1.0 - 1e-9);
    [1.0, 2.0, 5.0].into_iter().find(is_enough).unwrap_or(10.0) * power
}

/// Accuracy by the size of the margin, beside the probability that the Bradley-Terry model gives to
/// the response with the higher reward.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Reliability {
    bins: Vec<ReliabilityBin>,
    /// Comparisons without a margin, which no bin counts.
    ties: usize,
}

/// Comparisons with margins from `from` to `to`, of either sign.
#[derive(Debug, PartialEq, Serialize)]
struct ReliabilityBin {
    from: f64,
    to: f64,
    /// Mean size of the margin.
    margin: f64,
    /// Mean sigmoid of that size.
    expected: f64,
    accuracy: Share,
}

impl Reliability {
    /// Returns the accuracy of comparisons in groups of equal counts.
    pub(super) fn of(pairs: &[Pair]) -> Self {
        let mut decided: Vec<&Pair> = pairs.iter().filter(|pair| pair.margin != 0.0).collect();
        decided.sort_by(|a, b| a.margin.abs().total_cmp(&b.margin.abs()));
        let sizes: Vec<f64> = decided.iter().map(|pair| pair.margin.abs()).collect();
        let bin = |range: std::ops::Range<usize>| {
            let (pairs, sizes) = (&decided[range.clone()], &sizes[range]);
            ReliabilityBin {
                from: sizes[0],
                to: sizes[sizes.len() - 1],
                margin: mean(sizes.iter().copied()),
                expected: mean(sizes.iter().map(|size| 1.0 / (1.0 + (-size).exp()))),
                accuracy: Share::of(pairs.iter().map(|pair| (pair.item, pair.margin > 0.0))),
            }
        };
        Self { bins: groups(&sizes).into_iter().map(bin).collect(), ties: pairs.len() - decided.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(margins: &[f64]) -> Vec<Pair> {
        let pair = |(item, &margin)| Pair { item, margin, chars: None };
        margins.iter().enumerate().map(pair).collect()
    }

    fn counts(margins: &Margins) -> Vec<(f64, f64, usize)> {
        margins.bins.iter().map(|bin| (bin.from, bin.to, bin.count)).collect()
    }

    #[test]
    fn margins_are_counted_by_sign_and_bin() {
        let found = Margins::of(&pairs(&[-1.0, 3.0, 0.0, 0.5, 1.0, 2.5, -0.5]));
        assert_eq!(found.right, Side { count: 4, mean: 1.75, median: 1.75 });
        assert_eq!(found.wrong, Side { count: 2, mean: -0.75, median: -0.75 });
        assert_eq!((found.comparisons, found.ties, found.outside), (7, 1, [0, 0]));
        // Eight bins of 0.5 from -1 to 3; an upper edge belongs to its bin.
        let expected = [
            (-1.0, -0.5, 1),
            (-0.5, 0.0, 1),
            (0.0, 0.5, 1),
            (0.5, 1.0, 1),
            (1.0, 1.5, 0),
            (1.5, 2.0, 0),
            (2.0, 2.5, 1),
            (2.5, 3.0, 1),
        ];
        assert_eq!(counts(&found), expected);
    }

    #[test]
    fn an_outlier_is_counted_outside_the_bins() {
        let mut margins: Vec<f64> = (0..1000).map(|at| f64::from(at) / 100.0 + 0.01).collect();
        margins[0] = -1e6;
        let found = Margins::of(&pairs(&margins));
        assert_eq!(found.outside, [1, 0]);
        assert!(found.bins.len() <= 50, "{} bins", found.bins.len());
        assert_eq!(found.bins.iter().map(|bin| bin.count).sum::<usize>(), 999);
    }

    #[test]
    fn margins_of_one_sign_none_or_any_size_have_a_histogram() {
        assert_eq!(Margins::of(&[]).bins, []);
        assert_eq!(Margins::of(&pairs(&[0.0, 0.0])).ties, 2);
        assert_eq!(counts(&Margins::of(&pairs(&[-2.0])))[0], (-2.0, -1.5, 1));
        for margins in [[1e100, -1e100], [1e-300, 2e-300], [5.0, 5.0]] {
            let found = Margins::of(&pairs(&margins));
            assert_eq!(found.bins.iter().map(|bin| bin.count).sum::<usize>(), 2, "{found:?}");
        }
    }

    #[test]
    fn steps_are_round_numbers() {
        for (width, expected) in [(0.013, 0.02), (0.2, 0.2), (0.21, 0.5), (3.0, 5.0), (70.0, 100.0)] {
            assert!((step(width) - expected).abs() < 1e-12 * expected, "{width}: {}", step(width));
        }
    }

    #[test]
    fn reliability_is_the_accuracy_of_margins_of_one_size() {
        // Ten small margins of which 6 are right, ten large ones of which 9 are, and a tie.
        let small = (0..10).map(|at| if at < 6 { 1.0 } else { -1.0 });
        let large = (0..10).map(|at| if at < 9 { 3.0 } else { -3.0 });
        let found = Reliability::of(&pairs(&small.chain(large).chain([0.0]).collect::<Vec<_>>()));
        assert_eq!(found.ties, 1);
        let shown: Vec<(f64, f64, usize, f64)> = found
            .bins
            .iter()
            .map(|bin| (bin.from, bin.margin, bin.accuracy.comparisons, bin.accuracy.value))
            .collect();
        assert_eq!(shown, [(1.0, 1.0, 10, 0.6), (3.0, 3.0, 10, 0.9)]);
        // 1 / (1 + e^-1) and 1 / (1 + e^-3).
        assert!((found.bins[0].expected - 0.731_058_578_630_004_9).abs() < 1e-15);
        assert!((found.bins[1].expected - 0.952_574_126_822_433_3).abs() < 1e-15);
    }
}
