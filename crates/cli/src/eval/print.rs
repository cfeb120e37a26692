//! Views of a report: tables for people, and one JSON object.

use serde_json::{Map, Value, json};

use crate::eval::report::{Comparison, Estimate, Failure, Report, Row, Table, Unit};
use crate::eval::stats::{LEVEL, mcnemar_exact};
use kudos::internals::results::error_object;

/// Returns the report as text.
pub(crate) fn text(report: &Report) -> String {
    let Report { benchmark, items, evaluated, ties, resamples, .. } = report;
    let mut lines = vec![format!(
        "{benchmark}: {evaluated} of {items} items, {} of {} comparisons tied",
        ties.count, ties.of
    )];
    for table in &report.tables {
        lines.push(String::new());
        lines.extend(table_lines(table));
    }
    lines.push(String::new());
    lines.push(format!("[..]: {:.0}% interval, {resamples} bootstrap resamples of the items", 100.0 * LEVEL));
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    if let Some(baseline) = &report.baseline {
        lines.push(String::new());
        lines.extend(baseline_lines(baseline));
    }
    lines.join("\n")
}

/// Returns a table's lines, with columns as wide as their widest cell.
fn table_lines(table: &Table<Estimate>) -> Vec<String> {
    let head =
        [table.name, "items", "ties"].into_iter().chain(table.columns.iter().map(|column| column.name));
    let mut cells: Vec<Vec<String>> = vec![head.map(str::to_owned).collect()];
    for row in &table.rows {
        let numbers = row.cells.iter().zip(&table.columns).map(|(cell, column)| estimate(cell, column.unit));
        let ties = row.ties.map_or_else(String::new, |ties| ties.to_string());
        cells.push([row.name.clone(), row.items.to_string(), ties].into_iter().chain(numbers).collect());
    }
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let mut line = format!("{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            line += &format!("  {cell:>width$}");
        }
        line.trim_end().to_owned()
    };
    cells.iter().map(line).collect()
}

/// Returns a number with its interval: `62.29 [57.14, 67.14]`.
fn estimate(estimate: &Estimate, unit: Unit) -> String {
    let value = number(estimate.value, unit);
    match estimate.interval {
        Some([low, high]) => format!("{value} [{}, {}]", number(low, unit), number(high, unit)),
        None => value,
    }
}

fn number(value: f64, unit: Unit) -> String {
    match unit {
        _ if value.is_nan() => "-".to_owned(),
        Unit::Percent => format!("{:.2}", 100.0 * value),
        Unit::Plain => format!("{value:.4}"),
    }
}

fn baseline_lines(baseline: &Comparison) -> Vec<String> {
    let Comparison { file, items, only_here, verdicts, number: name, unit, .. } = baseline;
    let mut lines = vec![
        format!("compared with {file} on {items} items"),
        format!(
            "{name}: {} here, {} there, difference {}",
            number(baseline.ours, *unit),
            number(baseline.theirs, *unit),
            estimate(&baseline.difference, *unit)
        ),
        format!(
            "right: both {}, only here {}, only there {}, neither {}; agreement {}%",
            verdicts.both_right,
            verdicts.only_ours,
            verdicts.only_theirs,
            verdicts.both_wrong,
            number(verdicts.agreement(), Unit::Percent)
        ),
        format!(
            "McNemar, exact binomial: p = {:.4}",
            mcnemar_exact(verdicts.only_ours, verdicts.only_theirs)
        ),
    ];
    if baseline.is_clustered {
        lines.push(format!("note: {CLUSTERED}"));
    }
    if *only_here > 0 {
        lines.push(format!("note: {only_here} items have no scores there and are not compared"));
    }
    lines
}

const CLUSTERED: &str = "an item has several comparisons, which are not independent, as McNemar's test has them: prefer \
                         the interval of the difference, whose resamples are of items";

/// Returns the report as JSON. Numbers in percent are fractions here.
pub(crate) fn json(report: &Report) -> Value {
    let tables: Map<String, Value> =
        report.tables.iter().map(|table| (table.name.to_owned(), json_table(table))).collect();
    let mut object = json!({
        "benchmark": report.benchmark,
        "items": report.items,
        "evaluated": report.evaluated,
        "failed": report.failures.len(),
        "ties": {"count": report.ties.count, "of": report.ties.of},
        "tables": tables,
        "intervals": {"level": LEVEL, "method": "percentile bootstrap over items", "resamples": report.resamples},
        "notes": report.notes,
        "errors": report.failures.iter().map(json_failure).collect::<Vec<_>>(),
    });
    if let Some(baseline) = &report.baseline {
        object["baseline"] = json_baseline(baseline);
    }
    object
}

fn json_table(table: &Table<Estimate>) -> Value {
    let row = |row: &Row<Estimate>| {
        let mut object = Map::from_iter([("items".to_owned(), json!(row.items))]);
        object.extend(row.ties.map(|ties| ("ties".to_owned(), json!(ties))));
        let cells = row.cells.iter().zip(&table.columns);
        object.extend(cells.map(|(cell, column)| (column.name.to_owned(), json_estimate(cell))));
        (row.name.clone(), Value::Object(object))
    };
    Value::Object(table.rows.iter().map(row).collect())
}

/// A number that is not defined is null.
fn json_estimate(estimate: &Estimate) -> Value {
    json!({"value": estimate.value, "interval": estimate.interval})
}

fn json_failure(failure: &Failure) -> Value {
    let mut object = Map::from_iter([("index".to_owned(), json!(failure.index))]);
    if let Some(id) = &failure.id {
        object.insert("id".to_owned(), serde_json::from_str(id).unwrap_or_else(|_| json!(id)));
    }
    object.extend(error_object(&failure.error));
    Value::Object(object)
}

fn json_baseline(baseline: &Comparison) -> Value {
    let verdicts = baseline.verdicts;
    let mut object = json!({
        "file": baseline.file,
        "items": baseline.items,
        "only_here": baseline.only_here,
        "number": baseline.number,
        "ours": baseline.ours,
        "theirs": baseline.theirs,
        "difference": json_estimate(&baseline.difference),
        "agreement": verdicts.agreement(),
        "both_right": verdicts.both_right,
        "only_ours": verdicts.only_ours,
        "only_theirs": verdicts.only_theirs,
        "both_wrong": verdicts.both_wrong,
        "mcnemar": {"p": mcnemar_exact(verdicts.only_ours, verdicts.only_theirs), "test": "exact binomial"},
    });
    if baseline.is_clustered {
        object["note"] = json!(CLUSTERED);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::report::{Column, Ties};

    fn report() -> Report {
        let cell = |value, interval| Estimate { value, interval };
        let row = |name: &str, ties, cells| Row { name: name.to_owned(), items: 12, ties, cells };
        let columns = vec![
            Column { name: "accuracy", unit: Unit::Percent },
            Column { name: "margin", unit: Unit::Plain },
        ];
        let rows = vec![
            row("a", Some(1), vec![cell(0.5, Some([0.25, 0.75])), cell(-1.5, None)]),
            row("longer", None, vec![cell(f64::NAN, None), cell(0.25, None)]),
        ];
        Report {
            benchmark: "preferences",
            items: 13,
            evaluated: 12,
            failures: vec![Failure {
                index: 3,
                id: Some("\"x\"".to_owned()),
                error: kudos::Error::new(kudos::ErrorKind::InvalidInput, "no"),
            }],
            ties: Ties { count: 1, of: 12 },
            tables: vec![Table { name: "group", columns, rows }],
            resamples: 10_000,
            notes: vec!["a note".to_owned()],
            baseline: None,
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let expected = "\
preferences: 12 of 13 items, 1 of 12 comparisons tied

group   items  ties              accuracy   margin
a          12     1  50.00 [25.00, 75.00]  -1.5000
longer     12                           -   0.2500

[..]: 95% interval, 10000 bootstrap resamples of the items
note: a note";
        assert_eq!(text(&report()), expected);
    }

    #[test]
    fn json_has_fractions_under_the_names_of_the_table() {
        let object = json(&report());
        assert_eq!(
            object["tables"]["group"]["a"]["accuracy"],
            json!({"value": 0.5, "interval": [0.25, 0.75]})
        );
        assert_eq!(object["tables"]["group"]["longer"]["accuracy"]["value"], Value::Null);
        assert_eq!(
            object["errors"][0],
            json!({"index": 3, "id": "x", "kind": "invalid_input", "message": "no"})
        );
    }
}
