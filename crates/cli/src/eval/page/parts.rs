//! Comparisons, and parts of them: shares with intervals, and groups of equal sizes.

use std::collections::HashSet;
use std::ops::Range;

use serde::Serialize;

use crate::eval::stats::wilson;

/// Limit on groups.
const GROUPS_MAX: usize = 10;

/// Least number of values in a group, where there are as many.
const GROUP_MIN: usize = 10;

/// A comparison of a better response with a worse one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// The row of its item.
    pub(super) item: usize,
    /// The better response's reward less the worse one's.
    pub(super) margin: f64,
    /// Characters of the better response and of the worse one, where known.
    pub(super) chars: Option<(usize, usize)>,
}

/// A part of some comparisons. Its interval is Wilson's over their items, since a bootstrap
/// interval has no width where all or none are in the part; where an item has several comparisons,
/// which agree more than independent ones, it is the wider for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Share {
    pub(super) comparisons: usize,
    pub(super) items: usize,
    /// NaN, which JSON has as null, of no comparisons.
    pub(super) value: f64,
    pub(super) interval: Option<[f64; 2]>,
}

impl Share {
    /// Returns the part of comparisons that are counted: the item of each, and whether it is.
    pub(super) fn of(counted: impl IntoIterator<Item = (usize, bool)>) -> Self {
        let (mut all, mut comparisons, mut count) = (HashSet::new(), 0, 0);
        for (item, is_counted) in counted {
            all.insert(item);
            comparisons += 1;
            count += usize::from(is_counted);
        }
        let (items, value) = (all.len(), count as f64 / comparisons as f64);
        Self { comparisons, items, value, interval: (items > 0).then(|| wilson(value, items)) }
    }
}

/// Returns ranges of sorted values, about equally many in each. Equal values are in one range.
pub(super) fn groups(sorted: &[f64]) -> Vec<Range<usize>> {
    let count = (sorted.len() / GROUP_MIN).clamp(1, GROUPS_MAX);
    let (mut groups, mut start) = (Vec::new(), 0);
    for group in 1..=count {
        let mut end = sorted.len() * group / count;
        while 0 < end && end < sorted.len() && sorted[end] == sorted[end - 1] {
            end += 1;
        }
        if end > start {
            groups.push(start..end);
            start = end;
        }
    }
    groups
}

/// Returns the mean; NaN of no values.
pub(super) fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_the_interval_of_its_items() {
        let share = Share::of([(0, true), (0, true), (1, false), (2, true)]);
        assert_eq!((share.comparisons, share.items, share.value), (4, 3, 0.75));
        assert_eq!(share.interval, Some(wilson(0.75, 3)));
        let none = Share::of([]);
        assert!(none.value.is_nan() && none.interval.is_none(), "{none:?}");
    }

    #[test]
    fn groups_are_of_equal_size_and_keep_equal_values_together() {
        let values: Vec<f64> = (0..40).map(f64::from).collect();
        assert_eq!(groups(&values), [0..10, 10..20, 20..30, 30..40]);
        // Values 5 to 24 are equal: they fill two groups, and more than their half of the first.
        let tied: Vec<f64> =
            (0..40).map(|at| if (5..25).contains(&at) { 5.0 } else { f64::from(at) }).collect();
        assert_eq!(groups(&tied), [0..25, 25..30, 30..40]);
        assert_eq!(groups(&[1.0, 2.0, 3.0]).first(), Some(&(0..3)), "too few for two groups");
        assert_eq!(groups(&values.repeat(50)).len(), GROUPS_MAX);
        assert!(groups(&[]).is_empty());
    }

    #[test]
    fn a_mean_of_nothing_is_not_defined() {
        assert_eq!(mean([1.0, 2.0, 6.0]), 3.0);
        assert!(mean([]).is_nan());
    }
}
