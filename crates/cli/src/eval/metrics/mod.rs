//! The benchmarks: how each reads an item, which fields its results add, and its numbers as pure
//! functions of labels and scores.

pub(crate) mod fields;
pub(crate) mod helpsteer3;
pub(crate) mod judgebench;
pub(crate) mod preferences;
pub(crate) mod rewardbench;
pub(crate) mod rewardbench2;
pub(crate) mod rm_bench;

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::eval::report::{Table, Ties, Unit};
use crate::eval::stats::{Design, Statistic};
use kudos::Result;

/// A benchmark.
pub(crate) trait Benchmark: Clone + Send + 'static {
    /// The labels of an item: all that its numbers need besides the scores.
    type Labels: Clone + Send + 'static;

    /// Its name on the command line.
    const NAME: &'static str;
    /// The key of an item's id, where items have one.
    const ID: &'static str = "id";
    /// Keys that its results add to an item.
    const ADDED: &'static [&'static str];

    /// Reads an item as it was published.
    fn read(&self, item: &Map<String, Value>) -> Result<Content<Self::Labels>>;

    /// Returns the fields that results add to an item, by the names in [`ADDED`](Self::ADDED).
    fn export(&self, labels: &Self::Labels, scores: &[f64]) -> Vec<(&'static str, Value)>;

    /// Returns the scores in a line of results, in the order of the item's responses.
    fn scores(&self, labels: &Self::Labels, result: &Map<String, Value>) -> Result<Vec<f64>>;

    /// Returns the numbers of all items.
    fn evaluate(&self, rows: &[Scored<Self::Labels>]) -> Evaluation;

    /// Returns the item's comparisons: the indices of the scores of a better response and of a
    /// worse one. None for an item that the numbers leave out.
    fn comparisons(&self, labels: &Self::Labels) -> Vec<(usize, usize)>;

    /// Returns for each verdict on an item whether its scores have it right: those of every model
    /// in the same order. Each comparison is one, unless the benchmark judges the item as a whole.
    fn verdicts(&self, row: &Scored<Self::Labels>) -> Vec<bool> {
        let is_right = |(better, worse): (usize, usize)| row.scores[better] > row.scores[worse];
        self.comparisons(&row.labels).into_iter().map(is_right).collect()
    }

    /// Returns the category of each row, by which resamples are stratified; `None` where rows have
    /// none.
    fn categories<'a>(&self, rows: &'a [Scored<Self::Labels>]) -> Vec<Option<&'a str>>;
}

/// An item as its benchmark reads it.
#[derive(Clone, Debug)]
pub(crate) struct Content<L> {
    pub(crate) labels: L,
    /// Requests as JSON text, whose rewards in order are the item's scores.
    pub(crate) requests: Vec<String>,
}

/// An item with its scores.
#[derive(Clone, Debug)]
pub(crate) struct Scored<L> {
    pub(crate) labels: L,
    pub(crate) scores: Vec<f64>,
}

/// The numbers of a benchmark, as functions of the items' weights.
pub(crate) struct Evaluation {
    pub(crate) tables: Vec<Table<Statistic>>,
    /// The number that another model's is compared with.
    pub(crate) headline: Headline,
    pub(crate) design: Design,
    pub(crate) ties: Ties,
    pub(crate) notes: Vec<String>,
}

/// One number among the tables.
pub(crate) struct Headline {
    /// Its table's, row's and column's names.
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) statistic: Statistic,
}

/// The credit for equal scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TieCredit {
    /// None: a tie is wrong
    #[default]
    None,
    /// Half of a right comparison's
    Half,
}

impl TieCredit {
    /// Returns the credit of a comparison: 1 if the better response has the higher score.
    pub(crate) fn of(self, better: f64, worse: f64) -> f64 {
        match self {
            Self::Half if better == worse => 0.5,
            _ => f64::from(u8::from(better > worse)),
        }
    }
}

/// Items by a label, in the order of `known`, then of their first appearance.
pub(crate) fn groups<'a>(
    known: &[&'a str],
    labels: impl IntoIterator<Item = &'a str>,
) -> Vec<(&'a str, Vec<usize>)> {
    let mut groups: Vec<(&str, Vec<usize>)> = known.iter().map(|name| (*name, vec![])).collect();
    for (item, label) in labels.into_iter().enumerate() {
        match groups.iter_mut().find(|(name, _)| *name == label) {
            Some((_, items)) => items.push(item),
            None => groups.push((label, vec![item])),
        }
    }
    groups.retain(|(_, items)| !items.is_empty());
    groups
}

/// Returns a note on groups that a macro average lacks, if it lacks any.
pub(crate) fn missing(what: &str, known: &[&str], present: &[(&str, Vec<usize>)]) -> Option<String> {
    let is_missing = |name: &&&str| !present.iter().any(|(found, _)| *found == **name);
    let missing: Vec<&str> = known.iter().filter(is_missing).copied().collect();
    let (names, count) = (missing.join(", "), known.len() - missing.len());
    (!missing.is_empty())
        .then(|| format!("averages are over {count} of {} {what}: no item of {names}", known.len()))
}

/// Returns the credits of two-response items, better first, as a statistic's values.
pub(crate) fn credits<L>(rows: &[Scored<L>], items: &[usize], ties: TieCredit) -> Vec<(usize, f64)> {
    let credit = |&item: &usize| {
        let scores = &rows[item].scores;
        (item, ties.of(scores[0], scores[1]))
    };
    items.iter().map(credit).collect()
}

/// Returns the number of two-response items with equal scores.
pub(crate) fn equal<L>(rows: &[Scored<L>], items: &[usize]) -> usize {
    items.iter().filter(|&&item| rows[item].scores[0] == rows[item].scores[1]).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_has_no_credit_unless_half_is_asked_for() {
        for (better, worse, none, half) in [(2.0, 1.0, 1.0, 1.0), (1.0, 1.0, 0.0, 0.5), (1.0, 2.0, 0.0, 0.0)]
        {
            assert_eq!(TieCredit::None.of(better, worse), none);
            assert_eq!(TieCredit::Half.of(better, worse), half);
        }
    }

    #[test]
    fn groups_keep_the_known_order_and_note_what_is_missing() {
        let found = groups(&["a", "b", "c"], ["x", "c", "a", "c"]);
        assert_eq!(found, [("a", vec![2]), ("c", vec![1, 3]), ("x", vec![0])]);
        let note = missing("sections", &["a", "b", "c"], &found).unwrap();
        assert_eq!(note, "averages are over 2 of 3 sections: no item of b");
        assert_eq!(missing("sections", &["a", "c"], &found), None);
    }
}
