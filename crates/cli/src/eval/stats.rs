//! Statistics of items, bootstrap intervals, and McNemar's test. Pure functions.
//!
//! A [`Statistic`] is a function of the items' weights. With a weight of 1 for each item it is the
//! result; with the counts of a bootstrap resample it is one draw of its distribution. All
//! statistics of a report share their resamples.

use std::collections::BTreeMap;
use std::rc::Rc;

use kudos::internals::random::Random;

/// Limit on resamples.
const RESAMPLES_MAX: usize = 10_000;

/// Least number of resamples.
const RESAMPLES_MIN: usize = 1_000;

/// Limit on drawn units over all resamples, above the least number of these. The slowest report,
/// HelpSteer3's with its correlations, needed 0.6 us for each on two busy cores.
const DRAWS_MAX: usize = 50_000_000;

/// The part of a distribution that an interval covers.
pub(crate) const LEVEL: f64 = 0.95;

/// Quantile of the normal distribution that leaves (1 - `LEVEL`) / 2 above it.
const NORMAL_QUANTILE: f64 = 1.959_963_984_540_054;

/// Seed of the resamples: the same in every run.
const SEED: u64 = 0;

/// A number computed from items' weights; NaN where it is not defined.
#[derive(Clone)]
pub(crate) struct Statistic(Rc<OfWeights>);

/// A function of the items' weights.
type OfWeights = dyn Fn(&[f64]) -> f64;

impl Statistic {
    pub(crate) fn new(value: impl Fn(&[f64]) -> f64 + 'static) -> Self {
        Self(Rc::new(value))
    }

    /// The mean of some items' values. Each is the index of an item and its value.
    pub(crate) fn mean(values: Vec<(usize, f64)>) -> Self {
        Self::new(move |weights| {
            let (mut sum, mut total) = (0.0, 0.0);
            for &(item, value) in &values {
                sum += weights[item] * value;
                total += weights[item];
            }
            sum / total
        })
    }

    /// The average of statistics, each with its own weight. One that is not defined makes it
    /// undefined.
    pub(crate) fn average(parts: Vec<(f64, Self)>) -> Self {
        Self::new(move |weights| {
            let total: f64 = parts.iter().map(|(weight, _)| weight).sum();
            parts.iter().map(|(weight, part)| weight * part.value(weights)).sum::<f64>() / total
        })
    }

    /// This statistic less another.
    pub(crate) fn less(&self, other: &Self) -> Self {
        let (this, other) = (self.clone(), other.clone());
        Self::new(move |weights| this.value(weights) - other.value(weights))
    }

    /// Pearson's correlation of two values of each item.
    pub(crate) fn pearson(pairs: Vec<(usize, f64, f64)>) -> Self {
        Self::new(move |weights| {
            correlation(pairs.iter().map(|&(item, left, right)| (weights[item], left, right)))
        })
    }

    /// Spearman's correlation: Pearson's of the ranks, where equal values share their mean rank.
    pub(crate) fn spearman(pairs: Vec<(usize, f64, f64)>) -> Self {
        let order = |value: fn(&(usize, f64, f64)) -> f64| {
            let mut order: Vec<usize> = (0..pairs.len()).collect();
            order.sort_by(|&a, &b| value(&pairs[a]).total_cmp(&value(&pairs[b])));
            order
        };
        let (by_left, by_right) = (order(|pair| pair.1), order(|pair| pair.2));
        Self::new(move |weights| {
            let weight = |pair: usize| weights[pairs[pair].0];
            let left = ranks(&by_left, |pair| pairs[pair].1, weight);
            let right = ranks(&by_right, |pair| pairs[pair].2, weight);
            correlation((0..pairs.len()).map(|pair| (weight(pair), left[pair], right[pair])))
        })
    }

    /// Returns its value for the items' weights.
    pub(crate) fn value(&self, weights: &[f64]) -> f64 {
        (self.0)(weights)
    }
}

/// Returns the correlation of weighted pairs: weight, left, right.
fn correlation(pairs: impl Iterator<Item = (f64, f64, f64)> + Clone) -> f64 {
    let mut total = [0.0; 3];
    for (weight, left, right) in pairs.clone() {
        total = [total[0] + weight, total[1] + weight * left, total[2] + weight * right];
    }
    let (left_mean, right_mean) = (total[1] / total[0], total[2] / total[0]);
    let (mut both, mut left_square, mut right_square) = (0.0, 0.0, 0.0);
    for (weight, left, right) in pairs {
        let (left, right) = (left - left_mean, right - right_mean);
        both += weight * left * right;
        left_square += weight * left * left;
        right_square += weight * right * right;
    }
    both / (left_square * right_square).sqrt()
}

/// Returns the rank of each value, from 1, as if it were there as often as its weight is. `order`
/// sorts the values.
fn ranks(order: &[usize], value: impl Fn(usize) -> f64, weight: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut ranks = vec![0.0; order.len()];
    let mut before = 0.0;
    for equal in order.chunk_by(|&a, &b| value(a) == value(b)) {
        let total: f64 = equal.iter().map(|&index| weight(index)).sum();
        for &index in equal {
            ranks[index] = before + (total + 1.0) / 2.0;
        }
        before += total;
    }
    ranks
}

/// The order in which resamples draw: units, each of one item or of several that belong together,
/// within strata, whose sizes stay.
pub(crate) struct Design {
    items: usize,
    strata: Vec<Vec<Vec<usize>>>,
}

impl Design {
    /// Each item is a unit of its stratum.
    pub(crate) fn of_items<S: Ord>(strata: impl IntoIterator<Item = S>) -> Self {
        Self::of_units(strata.into_iter().enumerate().map(|(item, stratum)| (stratum, item)))
    }

    /// Items of equal strata and units are one unit.
    pub(crate) fn of_units<S: Ord, U: Ord>(labels: impl IntoIterator<Item = (S, U)>) -> Self {
        let (mut items, mut strata) = (0, BTreeMap::<S, BTreeMap<U, Vec<usize>>>::new());
        for (stratum, unit) in labels {
            strata.entry(stratum).or_default().entry(unit).or_default().push(items);
            items += 1;
        }
        Self { items, strata: strata.into_values().map(|units| units.into_values().collect()).collect() }
    }

    /// Number of resamples.
    pub(crate) fn resamples(&self) -> usize {
        let units: usize = self.strata.iter().map(Vec::len).sum();
        (DRAWS_MAX / units.max(1)).clamp(RESAMPLES_MIN, RESAMPLES_MAX)
    }

    /// Returns each statistic's value.
    pub(crate) fn values(&self, statistics: &[Statistic]) -> Vec<f64> {
        let ones = vec![1.0; self.items];
        statistics.iter().map(|statistic| statistic.value(&ones)).collect()
    }

    /// Returns each statistic's percentile interval; `None` where no resample defines it.
    pub(crate) fn intervals(&self, statistics: &[Statistic]) -> Vec<Option<[f64; 2]>> {
        let mut random = Random::new(SEED);
        let mut weights = vec![0.0; self.items];
        let mut draws = vec![Vec::with_capacity(self.resamples()); statistics.len()];
        for _ in 0..self.resamples() {
            weights.fill(0.0);
            for units in &self.strata {
                for _ in units {
                    for &item in &units[below(&mut random, units.len())] {
                        weights[item] += 1.0;
                    }
                }
            }
            for (draws, statistic) in draws.iter_mut().zip(statistics) {
                draws.push(statistic.value(&weights));
            }
        }
        draws.into_iter().map(interval).collect()
    }
}

/// Returns a random index below `count`, from the upper bits.
fn below(random: &mut Random, count: usize) -> usize {
    (((random.next_bits() >> 32) * count as u64) >> 32) as usize
}

/// Returns the middle part of a distribution; draws that are not defined do not count.
fn interval(mut draws: Vec<f64>) -> Option<[f64; 2]> {
    draws.retain(|draw| !draw.is_nan());
    draws.sort_by(f64::total_cmp);
    let outside = (1.0 - LEVEL) / 2.0;
    let at = |part| percentile(&draws, part);
    (!draws.is_empty()).then(|| [at(outside), at(1.0 - outside)])
}

/// Returns the value below which a part of sorted values lies, interpolated between neighbours.
pub(crate) fn percentile(sorted: &[f64], part: f64) -> f64 {
    let position = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    below + position.fract() * (above - below)
}

/// Returns Wilson's score interval of a share of `count` independent trials.
pub(crate) fn wilson(share: f64, count: usize) -> [f64; 2] {
    let (count, square) = (count as f64, NORMAL_QUANTILE * NORMAL_QUANTILE);
    let center = share + square / (2.0 * count);
    let half = NORMAL_QUANTILE * (share * (1.0 - share) / count + square / (4.0 * count * count)).sqrt();
    [center - half, center + half].map(|end| (end / (1.0 + square / count)).clamp(0.0, 1.0))
}

/// Returns the two-sided p of McNemar's exact test: that of a fair coin, thrown once for each
/// comparison that only one of two models has right, to be as uneven as this or more.
pub(crate) fn mcnemar_exact(only_ours: usize, only_theirs: usize) -> f64 {
    let (throws, fewer) = (only_ours + only_theirs, only_ours.min(only_theirs));
    // The logarithm of each binomial probability follows from the one before it.
    let mut log_probability = throws as f64 * 0.5_f64.ln();
    let mut tail = log_probability.exp();
    for k in 1..=fewer {
        log_probability += ((throws - k + 1) as f64 / k as f64).ln();
        tail += log_probability.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-12
    }

    #[test]
    fn means_and_averages_follow_the_weights() {
        let mean = Statistic::mean(vec![(0, 1.0), (2, 4.0)]);
        assert_eq!(mean.value(&[1.0, 1.0, 1.0]), 2.5);
        assert_eq!(mean.value(&[2.0, 7.0, 1.0]), 2.0);
        assert!(mean.value(&[0.0, 7.0, 0.0]).is_nan());
        let other = Statistic::mean(vec![(1, 10.0)]);
        assert_eq!(
            Statistic::average(vec![(3.0, mean.clone()), (1.0, other.clone())]).value(&[1.0; 3]),
            4.375
        );
        assert_eq!(other.less(&mean).value(&[1.0; 3]), 7.5);
    }

    #[test]
    fn correlations_equal_those_computed_by_hand() {
        let pairs = vec![(0, 1.0, 2.0), (1, 2.0, 2.0), (2, 3.0, 5.0)];
        // Deviations (-1, 0, 1) and (-1, -1, 2): 3 / sqrt(2 * 6).
        assert!(close(Statistic::pearson(pairs.clone()).value(&[1.0; 3]), 3.0 / 12.0_f64.sqrt()));
        // Ranks (1, 2, 3) and (1.5, 1.5, 3): deviations (-1, 0, 1) and (-0.5, -0.5, 1).
        assert!(close(Statistic::spearman(pairs.clone()).value(&[1.0; 3]), 1.5 / 3.0_f64.sqrt()));
        // A weight of 2 is the same as the item twice.
        let twice = vec![(0, 1.0, 2.0), (1, 2.0, 2.0), (2, 3.0, 5.0), (3, 1.0, 2.0)];
        for statistic in [Statistic::pearson, Statistic::spearman] {
            let (weighted, repeated) = (statistic(pairs.clone()), statistic(twice.clone()));
            assert!(close(weighted.value(&[2.0, 1.0, 1.0]), repeated.value(&[1.0; 4])));
        }
        assert!(Statistic::pearson(vec![(0, 1.0, 2.0), (1, 1.0, 3.0)]).value(&[1.0; 2]).is_nan());
    }

    #[test]
    fn percentiles_are_interpolated() {
        assert_eq!(percentile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(percentile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(interval(vec![f64::NAN]), None);
    }

    #[test]
    fn an_interval_has_the_width_of_the_standard_error() {
        // 400 values, half of them 1: the standard error is 0.5 / 20, its normal interval +- 0.049.
        let mean = Statistic::mean((0..400).map(|item| (item, (item % 2) as f64)).collect());
        let design = Design::of_items([(); 400]);
        let found = design.intervals(std::slice::from_ref(&mean))[0].unwrap();
        assert!((found[0] - 0.451).abs() < 0.003 && (found[1] - 0.549).abs() < 0.003, "{found:?}");
        assert_eq!(design.intervals(&[mean])[0].unwrap(), found, "the same in every run");
    }

    #[test]
    fn strata_keep_their_sizes_and_units_stay_together() {
        // Within each stratum all values are equal: no resample differs.
        let mean = Statistic::mean(vec![(0, 1.0), (1, 1.0), (2, 5.0)]);
        let design = Design::of_items(["a", "a", "b"]);
        assert_eq!(design.intervals(&[mean])[0], Some([7.0 / 3.0; 2]));
        // Items 0 and 1 are drawn together or not at all.
        let apart = Statistic::new(|weights| (weights[0] - weights[1]).abs());
        let design = Design::of_units([((), 7), ((), 7), ((), 8)]);
        assert_eq!(design.intervals(&[apart])[0], Some([0.0, 0.0]));
    }

    #[test]
    fn many_items_have_fewer_resamples() {
        assert_eq!(Design::of_items([(); 5_000]).resamples(), 10_000);
        assert_eq!(Design::of_items([(); 10_000]).resamples(), 5_000);
        assert_eq!(Design::of_items([(); 0]).resamples(), 10_000);
    }

    #[test]
    fn wilson_equals_the_interval_computed_by_hand() {
        // z^2 = 3.841459: (0.8 + 0.1920729 -+ 1.959964 sqrt(0.016 + 0.00960365)) / 1.3841459.
        let found = wilson(0.8, 10);
        assert!((found[0] - 0.490_162_5).abs() < 1e-6 && (found[1] - 0.943_317_8).abs() < 1e-6, "{found:?}");
        // All of 4: 4 / (4 + z^2) to 1.
        let found = wilson(1.0, 4);
        assert!((found[0] - 4.0 / 7.841_458_820_694).abs() < 1e-9, "{found:?}");
        assert_eq!(found[1], 1.0);
    }

    #[test]
    fn mcnemar_equals_the_binomial_computed_by_hand() {
        // 2 * (1 + 6 + 15) / 64.
        assert!(close(mcnemar_exact(2, 4), 44.0 / 64.0));
        assert!(close(mcnemar_exact(5, 0), 2.0 / 32.0));
        assert_eq!(mcnemar_exact(0, 0), 1.0);
        assert_eq!(mcnemar_exact(3, 3), 1.0);
        // Many: 2 * P(X <= 4900) of 10,000 throws, by the normal approximation with correction
        // 0.0466.
        assert!((mcnemar_exact(4900, 5100) - 0.0466).abs() < 5e-4);
    }
}
