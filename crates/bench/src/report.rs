//! The form of all reports: one JSON object, which `-o json` prints, and a Markdown view of it, for
//! which this has helpers.
//!
//! `benches/schema.md` and `benches/kernels.md` describe the objects. A Markdown view reads nothing
//! but the object.

use std::iter;

use serde_json::Value;

use crate::args::Format;
use crate::summary::Summary;

/// The report in that format, without a line break at its end.
pub(super) fn text(report: &Value, format: Format, markdown: fn(&Value) -> String) -> String {
    match format {
        Format::Md => markdown(report),
        Format::Json => report.to_string(),
    }
}

/// The elements of an array.
pub(super) fn elements(array: &Value) -> impl Iterator<Item = &Value> {
    array.as_array().into_iter().flatten()
}

/// A Markdown table: its heading (a line of names and one of alignments), then a line per row.
pub(super) fn table<const N: usize>(heading: &str, rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line = |cells: [String; N]| format!("| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    iter::once(heading.to_owned()).chain(rows.into_iter().map(line)).collect::<Vec<_>>().join("\n")
}

/// `kudos 1.2.3 (commit) on DEVICE`
pub(super) fn origin(report: &Value) -> String {
    let field = |name, before, after| {
        report[name].as_str().map_or_else(String::new, |value| format!("{before}{value}{after}"))
    };
    [field("version", "kudos ", ""), field("commit", " (", ")"), field("device", " on ", "")].concat()
}

/// A string as it is, and everything else as JSON.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A number as `show` writes it; `-` for null.
pub(super) fn number(value: &Value, show: impl FnOnce(f64) -> String) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), show)
}

/// Rounds to what a clock can tell apart.
pub(super) fn rate(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.2}") } else { format!("{rate:.0}") }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The mean and the standard deviation of a [`Summary`].
pub(super) fn spread(summary: &Value) -> String {
    format!("{} ± {}", number(&summary["mean"], rate), number(&summary["sd"], rate))
}

/// The median of a field over an array of objects.
pub(super) fn median(objects: &Value, field: &str) -> f64 {
    let values: Vec<f64> = elements(objects).filter_map(|object| object[field].as_f64()).collect();
    Summary::new(&values).median
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_escape_bars_and_show_null_as_a_dash() {
        let cells = |name: &str, value: Value| [plain(&json!(name)), number(&value, percent)];
        let text = table("| a | b |\n|---|---:|", [cells("x|y", json!(0.125)), cells("z", Value::Null)]);
        assert_eq!(text, "| a | b |\n|---|---:|\n| x\\|y | 12.5 % |\n| z | - |");
    }

    #[test]
    fn an_origin_leaves_out_unknown_fields() {
        let all = json!({"version": "1.2.3", "commit": "abc", "device": "CPU"});
        assert_eq!(origin(&all), "kudos 1.2.3 (abc) on CPU");
        assert_eq!(origin(&json!({"version": "1.2.3", "commit": null})), "kudos 1.2.3");
    }
}
