//! A page as HTML: one file with its style, its scripts and its data, which loads nothing. A policy
//! allows the style and the scripts by their hashes, and no other.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Figures, Run};
use crate::eval::print::json;
use crate::eval::report::{Estimate, Report, Row, Table, Unit};

const TEMPLATE: &str = include_str!("../../../page/report.html");
const STYLE: &str = include_str!("../../../page/report.css");
const PLOTS: &str = include_str!("../../../page/plots.js");
const SCRIPT: &str = include_str!("../../../page/report.js");

/// Limit on errors of items in a page; the results have all.
const ERRORS_MAX: usize = 100;

/// Returns the page of a report.
pub(crate) fn html(run: &Run, report: &Report, figures: &Figures) -> serde_json::Result<String> {
    let data = escaped(&data(run, report, figures)?.to_string());
    let policy = format!(
        "default-src 'none'; script-src {} {}; style-src {}; base-uri 'none'; form-action 'none'",
        hash(PLOTS),
        hash(SCRIPT),
        hash(STYLE)
    );
    // The data come last: they may have any text.
    let parts = [
        ("policy", policy.as_str()),
        ("style", STYLE),
        ("plots", PLOTS),
        ("script", SCRIPT),
        ("data", &data),
    ];
    let fill = |page: String, (name, text): (&str, &str)| page.replacen(&format!("{{{{{name}}}}}"), text, 1);
    Ok(parts.into_iter().fold(TEMPLATE.to_owned(), fill))
}

/// Returns the data of a page: the report as `--json` has it, with its tables as lists, which keep
/// their order in a browser, the run, and the figures.
fn data(run: &Run, report: &Report, figures: &Figures) -> serde_json::Result<Value> {
    let mut data = json(report);
    data["tables"] = report.tables.iter().map(table).collect();
    if let Some(errors) = data["errors"].as_array_mut() {
        errors.truncate(ERRORS_MAX);
    }
    if let Some(baseline) = &report.baseline {
        data["baseline"]["unit"] = json!(unit(baseline.unit));
    }
    data["run"] = serde_json::to_value(run)?;
    data["figures"] = serde_json::to_value(figures)?;
    Ok(data)
}

fn table(table: &Table<Estimate>) -> Value {
    let columns = table.columns.iter().map(|column| json!({"name": column.name, "unit": unit(column.unit)}));
    let cell = |cell: &Estimate| json!({"value": cell.value, "interval": cell.interval});
    let row = |row: &Row<Estimate>| {
        let cells: Value = row.cells.iter().map(cell).collect();
        json!({"name": row.name, "items": row.items, "ties": row.ties, "cells": cells})
    };
    json!({
        "name": table.name,
        "columns": columns.collect::<Value>(),
        "rows": table.rows.iter().map(row).collect::<Value>(),
    })
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Percent => "percent",
        Unit::Plain => "plain",
    }
}

/// Returns JSON without the characters that could end the element that holds it.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped += &format!("\\u{:04x}", u32::from(c)),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Returns the source of a policy that allows an element with this text.
fn hash(text: &str) -> String {
    format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_data_can_end_its_element() {
        let data = json!({"text": "</script><!-- & \u{2028}\u{2029} \"é\""}).to_string();
        let found = escaped(&data);
        assert_eq!(found, r#"{"text":"\u003c/script\u003e\u003c!-- \u0026 \u2028\u2029 \"é\""}"#);
        assert_eq!(
            serde_json::from_str::<Value>(&found).unwrap(),
            serde_json::from_str::<Value>(&data).unwrap()
        );
    }

    #[test]
    fn the_hash_is_that_of_the_standard() {
        // FIPS 180-2: `abc`.
        assert_eq!(hash("abc"), "'sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0='");
    }

    #[test]
    fn the_template_has_each_part_once_and_in_its_element() {
        for part in ["policy", "style", "plots", "script", "data"] {
            assert_eq!(TEMPLATE.matches(&format!("{{{{{part}}}}}")).count(), 1, "{part}");
        }
        for text in [STYLE, PLOTS, SCRIPT] {
            assert!(!text.contains("</") && !text.contains("<!--") && !text.contains("{{"), "{text}");
        }
    }
}
