//! Any file of preferences: a chosen and a rejected response to a prompt, or two whole
//! conversations.

use serde_json::{Map, Value, json};

use super::fields::{number, optional, value};
use super::{Benchmark, Content, Evaluation, Headline, Scored, TieCredit, credits, equal, groups};
use crate::eval::report::{Column, Row, Table, Ties, Unit};
use crate::eval::stats::{Design, Statistic};
use kudos::Result;
use kudos::internals::request::{Columns, Reading, Rows};

/// Columns that group items, the first that all items have.
const COLUMNS: [&str; 3] = ["subset", "source", "domain"];

/// Preferences with the options.
#[derive(Clone, Debug)]
pub(crate) struct Preferences {
    pub(crate) ties: TieCredit,
    /// The column that groups items.
    pub(crate) by: Option<String>,
}

/// Values of the columns that may group an item: of [`COLUMNS`], or of the one that was asked for.
pub(crate) type Labels = Vec<Option<String>>;

impl Benchmark for Preferences {
    type Labels = Labels;

    const NAME: &'static str = "preferences";
    const ADDED: &'static [&'static str] = &["reward_chosen", "reward_rejected", "margin"];

    fn read(&self, item: &Map<String, Value>) -> Result<Content<Labels>> {
        let labels = match &self.by {
            Some(column) => vec![Some(label(value(item, column, "the group of the item")?))],
            None => COLUMNS.iter().map(|column| optional(item, column).map(label)).collect(),
        };
        let requests = vec![pair(item)?];
        Ok(Content { labels, requests })
    }

    fn export(&self, _: &Labels, scores: &[f64]) -> Vec<(&'static str, Value)> {
        let values = [scores[0], scores[1], scores[0] - scores[1]];
        Self::ADDED.iter().zip(values).map(|(key, value)| (*key, json!(value))).collect()
    }

    fn scores(&self, _: &Labels, result: &Map<String, Value>) -> Result<Vec<f64>> {
        Self::ADDED[..2].iter().map(|key| number(result, key)).collect()
    }

    fn evaluate(&self, rows: &[Scored<Labels>]) -> Evaluation {
        let row = |name: &str, items: &[usize]| {
            let margin = |&item: &usize| (item, rows[item].scores[0] - rows[item].scores[1]);
            let margins = Statistic::mean(items.iter().map(margin).collect());
            Row {
                name: name.to_owned(),
                items: items.len(),
                ties: Some(equal(rows, items)),
                cells: vec![Statistic::mean(credits(rows, items, self.ties)), margins],
            }
        };
        let categories = self.categories(rows);
        let name = column(rows).map(|column| self.by.as_deref().unwrap_or(COLUMNS[column]));
        let groups = groups(&[], categories.iter().copied().flatten());
        let mut table_rows: Vec<Row<Statistic>> =
            groups.iter().map(|(name, items)| row(name, items)).collect();
        let overall = row("overall", &(0..rows.len()).collect::<Vec<_>>());
        let (statistic, ties) = (overall.cells[0].clone(), overall.ties.unwrap_or(0));
        table_rows.push(overall);
        let columns = vec![
            Column { name: "accuracy", unit: Unit::Percent },
            Column { name: "mean margin", unit: Unit::Plain },
        ];
        Evaluation {
            tables: vec![Table { name: "group", columns, rows: table_rows }],
            headline: Headline { name: "group overall accuracy".to_owned(), unit: Unit::Percent, statistic },
            design: Design::of_items(categories),
            ties: Ties { count: ties, of: rows.len() },
            notes: name.map(|name| format!("groups are the values of `{name}`")).into_iter().collect(),
        }
    }

    fn comparisons(&self, _: &Labels) -> Vec<(usize, usize)> {
        vec![(0, 1)]
    }

    fn categories<'a>(&self, rows: &'a [Scored<Labels>]) -> Vec<Option<&'a str>> {
        let column = column(rows);
        rows.iter().map(|row| column.and_then(|column| row.labels[column].as_deref())).collect()
    }
}

/// Returns the first column that all rows have.
fn column(rows: &[Scored<Labels>]) -> Option<usize> {
    let has = |&column: &usize| rows.iter().all(|row| row.labels[column].is_some());
    (0..rows.first().map_or(0, |row| row.labels.len())).find(has)
}

/// Returns a value as the name of a group.
fn label(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns the request of an item's pair, in whichever way it has its prompt. Other keys are left
/// out: an item may also be read as something else.
fn pair(item: &Map<String, Value>) -> Result<String> {
    let reading = Reading::new(Columns::default(), Some(Rows::Pairs));
    let read = item.iter().filter(|(key, _)| reading.reads(key));
    let pair: Map<String, Value> = read.map(|(key, value)| (key.clone(), value.clone())).collect();
    let text = Value::Object(pair).to_string();
    reading.parse(text.as_bytes()).request?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preferences(by: Option<&str>) -> Preferences {
        Preferences { ties: TieCredit::None, by: by.map(str::to_owned) }
    }

    fn requests(item: Value) -> Result<Vec<Value>> {
        let content = preferences(None).read(item.as_object().unwrap())?;
        Ok(content.requests.iter().map(|text| serde_json::from_str(text).unwrap()).collect())
    }

    #[test]
    fn an_item_is_the_pair_of_its_row() {
        let pair = json!({"prompt": "q", "chosen": "a", "rejected": "b"});
        let mut item = pair.clone();
        item["response"] = json!("c");
        item["source"] = json!("x");
        assert_eq!(requests(item).unwrap(), [pair]);
        let error = requests(json!({"chosen": "a", "rejected": "b"})).unwrap_err();
        assert_eq!(error.message(), "`chosen` is a response, but the row has no `prompt` before it");
    }

    #[test]
    fn groups_have_their_accuracy_and_mean_margin() {
        let row = |source: &str, scores: [f64; 2]| Scored {
            labels: vec![None, Some(source.to_owned()), None],
            scores: scores.to_vec(),
        };
        let rows = [row("x", [2.0, 1.0]), row("y", [1.0, 1.0]), row("x", [0.0, 4.0])];
        let evaluation = preferences(None).evaluate(&rows);
        let found: Vec<(&str, Vec<f64>)> = evaluation.tables[0]
            .rows
            .iter()
            .map(|row| (row.name.as_str(), evaluation.design.values(&row.cells)))
            .collect();
        assert_eq!(
            found,
            [("x", vec![0.5, -1.5]), ("y", vec![0.0, 0.0]), ("overall", vec![1.0 / 3.0, -1.0])]
        );
        assert_eq!(evaluation.ties, Ties { count: 1, of: 3 });
        assert_eq!(evaluation.notes, ["groups are the values of `source`"]);
    }

    #[test]
    fn the_column_that_is_asked_for_must_be_there() {
        let item = json!({"prompt": "q", "chosen": "a", "rejected": "b", "level": 3});
        let read = |by| preferences(Some(by)).read(item.as_object().unwrap());
        assert_eq!(read("level").unwrap().labels, [Some("3".to_owned())]);
        assert_eq!(
            read("kind").unwrap_err().message(),
            "the item has no `kind`, expected the group of the item"
        );
    }
}
