//! A report: tables of numbers with their intervals. The table on a terminal and JSON are views of
//! it, in [`print`](super::print).

use crate::eval::stats::{Design, Statistic};
use kudos::Error;

/// The result of a benchmark.
pub(crate) struct Report {
    /// The benchmark's name on the command line.
    pub(crate) benchmark: &'static str,
    /// Items in the file.
    pub(crate) items: usize,
    /// Items that the numbers are computed over, besides those that the benchmark leaves out.
    pub(crate) evaluated: usize,
    /// Items that are not in the numbers, and why.
    pub(crate) failures: Vec<Failure>,
    pub(crate) ties: Ties,
    pub(crate) tables: Vec<Table<Estimate>>,
    /// Number of resamples behind each interval.
    pub(crate) resamples: usize,
    pub(crate) notes: Vec<String>,
    pub(crate) baseline: Option<Comparison>,
}

/// An item that has no scores.
pub(crate) struct Failure {
    /// The item's place in the file, from 0.
    pub(crate) index: usize,
    /// The item's id as JSON, if it has one.
    pub(crate) id: Option<String>,
    pub(crate) error: Error,
}

/// Equal scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ties {
    pub(crate) count: usize,
    /// Number of comparisons.
    pub(crate) of: usize,
}

/// A table; `C` is a cell.
pub(crate) struct Table<C> {
    /// Its key in JSON, and the head of its first column.
    pub(crate) name: &'static str,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Row<C>>,
}

/// A column of numbers.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
}

/// The unit in which a table shows a number; JSON has fractions.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Percent,
    Plain,
}

/// A row: one group of items.
pub(crate) struct Row<C> {
    pub(crate) name: String,
    pub(crate) items: usize,
    /// Equal scores among its comparisons, where its numbers depend on them.
    pub(crate) ties: Option<usize>,
    /// One per column.
    pub(crate) cells: Vec<C>,
}

/// A number, NaN where it is not defined, and its interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) interval: Option<[f64; 2]>,
}

/// Two models on the same items.
pub(crate) struct Comparison {
    /// The other model's results.
    pub(crate) file: String,
    /// Items that both have scores for.
    pub(crate) items: usize,
    /// Items that only this run has scores for.
    pub(crate) only_here: usize,
    pub(crate) verdicts: Verdicts,
    /// Whether an item has several comparisons, which are not independent.
    pub(crate) is_clustered: bool,
    /// The number that is compared: its table's, row's and column's names.
    pub(crate) number: String,
    pub(crate) unit: Unit,
    pub(crate) ours: f64,
    pub(crate) theirs: f64,
    pub(crate) difference: Estimate,
}

/// Comparisons by which of two models has them right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdicts {
    pub(crate) both_right: usize,
    pub(crate) only_ours: usize,
    pub(crate) only_theirs: usize,
    pub(crate) both_wrong: usize,
}

impl Verdicts {
    /// Counts pairs of verdicts: ours, theirs.
    pub(crate) fn count(pairs: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut verdicts = Self::default();
        for pair in pairs {
            *match pair {
                (true, true) => &mut verdicts.both_right,
                (true, false) => &mut verdicts.only_ours,
                (false, true) => &mut verdicts.only_theirs,
                (false, false) => &mut verdicts.both_wrong,
            } += 1;
        }
        verdicts
    }

    pub(crate) fn total(self) -> usize {
        self.both_right + self.only_ours + self.only_theirs + self.both_wrong
    }

    /// Returns the part of comparisons on which both are right or both wrong.
    pub(crate) fn agreement(self) -> f64 {
        (self.both_right + self.both_wrong) as f64 / self.total() as f64
    }
}

/// Returns the tables with the values of their statistics, and intervals by the design.
pub(crate) fn estimate(tables: Vec<Table<Statistic>>, design: &Design) -> Vec<Table<Estimate>> {
    let cells = tables.iter().flat_map(|table| &table.rows).flat_map(|row| &row.cells);
    let statistics: Vec<Statistic> = cells.cloned().collect();
    let mut estimates = estimates(&statistics, design).into_iter();
    let mut row = |row: Row<Statistic>| Row {
        name: row.name,
        items: row.items,
        ties: row.ties,
        cells: estimates.by_ref().take(row.cells.len()).collect(),
    };
    let table = |table: Table<Statistic>| Table {
        name: table.name,
        columns: table.columns,
        rows: table.rows.into_iter().map(&mut row).collect(),
    };
    tables.into_iter().map(table).collect()
}

/// Returns the value and the interval of each statistic.
pub(crate) fn estimates(statistics: &[Statistic], design: &Design) -> Vec<Estimate> {
    let values = design.values(statistics).into_iter();
    values.zip(design.intervals(statistics)).map(|(value, interval)| Estimate { value, interval }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_by_the_model_that_is_right() {
        let pairs = [(true, true), (true, false), (true, false), (false, true), (false, false)];
        let verdicts = Verdicts::count(pairs);
        assert_eq!(verdicts, Verdicts { both_right: 1, only_ours: 2, only_theirs: 1, both_wrong: 1 });
        assert_eq!((verdicts.total(), verdicts.agreement()), (5, 0.4));
    }

    #[test]
    fn estimates_return_to_the_cells_of_their_statistics() {
        let cell = |value: f64| Statistic::mean(vec![(0, value)]);
        let row = |name: &str, values: [f64; 2]| Row {
            name: name.to_owned(),
            items: 1,
            ties: None,
            cells: values.map(cell).to_vec(),
        };
        let columns = vec![Column { name: "a", unit: Unit::Plain }, Column { name: "b", unit: Unit::Plain }];
        let tables = vec![
            Table { name: "one", columns: columns.clone(), rows: vec![row("x", [1.0, 2.0])] },
            Table { name: "two", columns, rows: vec![row("y", [3.0, 4.0]), row("z", [5.0, 6.0])] },
        ];
        let tables = estimate(tables, &Design::of_items([()]));
        let values: Vec<f64> = tables
            .iter()
            .flat_map(|table| &table.rows)
            .flat_map(|row| &row.cells)
            .map(|cell| cell.value)
            .collect();
        assert_eq!(values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }
}
