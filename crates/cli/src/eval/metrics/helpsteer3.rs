//! HelpSteer3-Preference: two responses to a conversation, and which one annotators prefer, from -3
//! (the first) to 3 (the second). No official accuracy is published: this definition is our own.

use serde_json::{Map, Value, json};

use super::fields::{integer, list, number, text, wrong};
use super::{Benchmark, Content, Evaluation, Headline, Scored, TieCredit, groups};
use crate::eval::report::{Column, Row, Table, Ties, Unit};
use crate::eval::stats::{Design, Statistic};
use kudos::Result;

const DOMAINS: [&str; 4] = ["general", "stem", "code", "multilingual"];

/// HelpSteer3-Preference with its option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HelpSteer3 {
    pub(crate) ties: TieCredit,
}

/// The groups of an item, and its preference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    domain: String,
    language: String,
    preference: i64,
}

impl Benchmark for HelpSteer3 {
    type Labels = Labels;

    const NAME: &'static str = "helpsteer3";
    const ADDED: &'static [&'static str] = &["reward1", "reward2"];

    fn read(&self, item: &Map<String, Value>) -> Result<Content<Labels>> {
        let preference = integer(item, "overall_preference")?;
        if !(-3..=3).contains(&preference) {
            return Err(wrong(format!("`overall_preference` is {preference}, expected -3 to 3")));
        }
        let labels = Labels {
            domain: text(item, "domain")?.to_owned(),
            language: text(item, "language")?.to_owned(),
            preference,
        };
        let context = list(item, "context", "a list of messages")?;
        let responses = [text(item, "response1")?, text(item, "response2")?];
        let request = json!({"messages": context, "responses": responses}).to_string();
        Ok(Content { labels, requests: vec![request] })
    }

    fn export(&self, _: &Labels, scores: &[f64]) -> Vec<(&'static str, Value)> {
        Self::ADDED.iter().zip(scores).map(|(key, score)| (*key, json!(score))).collect()
    }

    fn scores(&self, _: &Labels, result: &Map<String, Value>) -> Result<Vec<f64>> {
        Self::ADDED.iter().map(|key| number(result, key)).collect()
    }

    fn evaluate(&self, rows: &[Scored<Labels>]) -> Evaluation {
        let is_counted = |&item: &usize| rows[item].labels.preference != 0;
        let strengths: Vec<String> =
            rows.iter().map(|row| row.labels.preference.unsigned_abs().to_string()).collect();
        let row = |name: &str, items: &[usize]| {
            let items: Vec<usize> = items.iter().copied().filter(is_counted).collect();
            let credit = |item: usize| {
                let Scored { labels, scores } = &rows[item];
                let credit = move |(better, worse)| (item, self.ties.of(scores[better], scores[worse]));
                self.comparisons(labels).into_iter().map(credit)
            };
            Row {
                name: name.to_owned(),
                items: items.len(),
                ties: Some(items.iter().filter(|&&item| is_tie(&rows[item])).count()),
                cells: vec![Statistic::mean(items.iter().copied().flat_map(credit).collect())],
            }
        };
        let accuracy = |groups: Vec<(&str, Vec<usize>)>| -> Vec<Row<Statistic>> {
            groups.iter().map(|(name, items)| row(name, items)).filter(|row| row.items > 0).collect()
        };
        let all: Vec<usize> = (0..rows.len()).collect();
        let overall = row("overall", &all);
        let (counted, ties, headline) = (overall.items, overall.ties.unwrap_or(0), overall.cells[0].clone());
        let mut domains = accuracy(groups(&DOMAINS, rows.iter().map(|row| row.labels.domain.as_str())));
        domains.push(overall);
        let languages = accuracy(groups(&[], rows.iter().map(|row| row.labels.language.as_str())));
        let strengths = accuracy(groups(&["1", "2", "3"], strengths.iter().map(String::as_str)));
        let table = |name, rows| Table {
            name,
            columns: vec![Column { name: "accuracy", unit: Unit::Percent }],
            rows,
        };
        let correlation = |name: &str, items: Vec<usize>| {
            let pair = |&item: &usize| {
                let Scored { labels, scores } = &rows[item];
                (item, scores[1] - scores[0], labels.preference as f64)
            };
            let pairs: Vec<(usize, f64, f64)> = items.iter().map(pair).collect();
            let cells = vec![Statistic::pearson(pairs.clone()), Statistic::spearman(pairs)];
            Row { name: name.to_owned(), items: items.len(), ties: None, cells }
        };
        let columns = ["pearson", "spearman"].map(|name| Column { name, unit: Unit::Plain }).to_vec();
        let correlations = vec![
            correlation("preferences but 0", all.iter().copied().filter(is_counted).collect()),
            correlation("all", all),
        ];
        Evaluation {
            tables: vec![
                table("domain", domains),
                table("language", languages),
                table("|preference|", strengths),
                Table { name: "correlation", columns, rows: correlations },
            ],
            headline: Headline {
                name: "domain overall accuracy".to_owned(),
                unit: Unit::Percent,
                statistic: headline,
            },
            design: Design::of_items(rows.iter().map(|row| row.labels.domain.clone())),
            ties: Ties { count: ties, of: counted },
            notes: vec![format!(
                "accuracies leave out {} items with the preference 0; the definition is our own, no official one is \
                 published",
                rows.len() - counted
            )],
        }
    }

    fn comparisons(&self, labels: &Labels) -> Vec<(usize, usize)> {
        match labels.preference.signum() {
            0 => vec![],
            1 => vec![(1, 0)],
            _ => vec![(0, 1)],
        }
    }

    fn categories<'a>(&self, rows: &'a [Scored<Labels>]) -> Vec<Option<&'a str>> {
        rows.iter().map(|row| Some(row.labels.domain.as_str())).collect()
    }
}

fn is_tie(row: &Scored<Labels>) -> bool {
    row.scores[0] == row.scores[1]
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: HelpSteer3 = HelpSteer3 { ties: TieCredit::None };

    fn row(domain: &str, language: &str, preference: i64, scores: [f64; 2]) -> Scored<Labels> {
        let labels = Labels { domain: domain.to_owned(), language: language.to_owned(), preference };
        Scored { labels, scores: scores.to_vec() }
    }

    fn rows() -> [Scored<Labels>; 5] {
        [
            row("code", "python", 3, [1.0, 2.0]),
            row("code", "rust", -2, [1.0, 2.0]),
            row("general", "english", -1, [2.0, 2.0]),
            row("general", "english", 0, [9.0, 2.0]),
            row("multilingual", "korean", -1, [3.0, 1.0]),
        ]
    }

    #[test]
    fn the_sign_of_the_difference_decides_and_zeros_are_left_out() {
        let evaluation = OURS.evaluate(&rows());
        let found = |table: usize| -> Vec<(String, usize, f64)> {
            let rows = evaluation.tables[table].rows.iter();
            rows.map(|row| (row.name.clone(), row.items, evaluation.design.values(&row.cells)[0])).collect()
        };
        let expected = |rows: &[(&str, usize, f64)]| -> Vec<(String, usize, f64)> {
            rows.iter().map(|(name, items, value)| ((*name).to_owned(), *items, *value)).collect()
        };
        let domains = [("general", 1, 0.0), ("code", 2, 0.5), ("multilingual", 1, 1.0), ("overall", 4, 0.5)];
        assert_eq!(found(0), expected(&domains));
        let languages = [("python", 1, 1.0), ("rust", 1, 0.0), ("english", 1, 0.0), ("korean", 1, 1.0)];
        assert_eq!(found(1), expected(&languages));
        assert_eq!(found(2), expected(&[("1", 2, 0.5), ("2", 1, 0.0), ("3", 1, 1.0)]));
        assert_eq!(evaluation.ties, Ties { count: 1, of: 4 });
        let half = HelpSteer3 { ties: TieCredit::Half }.evaluate(&rows());
        assert_eq!(half.design.values(&half.tables[0].rows[3].cells), [2.5 / 4.0]);
    }

    #[test]
    fn correlations_are_over_differences_and_preferences() {
        let rows = [
            row("code", "c", 1, [0.0, 1.0]),
            row("code", "c", -1, [1.0, 0.0]),
            row("code", "c", 0, [0.0, 3.0]),
        ];
        let evaluation = OURS.evaluate(&rows);
        let cells = |row: usize| evaluation.design.values(&evaluation.tables[3].rows[row].cells);
        assert_eq!(cells(0), [1.0, 1.0]);
        // Differences (1, -1, 3), of mean 1, and preferences (1, -1, 0): 2 / sqrt(8 * 2). Ranks (2,
        // 1, 3) and (3, 1, 2): 1 / 2.
        assert!((cells(1)[0] - 0.5).abs() < 1e-15 && (cells(1)[1] - 0.5).abs() < 1e-15, "{:?}", cells(1));
    }

    #[test]
    fn an_item_becomes_responses_to_its_context() {
        let item = json!({"domain": "general", "language": "english", "overall_preference": -3, "response1": "a",
            "response2": "b", "context": [{"role": "user", "content": "q"}]});
        let content = OURS.read(item.as_object().unwrap()).unwrap();
        assert_eq!(
            content.requests,
            [r#"{"messages":[{"role":"user","content":"q"}],"responses":["a","b"]}"#]
        );
        assert_eq!(content.labels.preference, -3);
        let mut item = item;
        item["overall_preference"] = json!(4);
        let error = OURS.read(item.as_object().unwrap()).unwrap_err();
        assert_eq!(error.message(), "`overall_preference` is 4, expected -3 to 3");
    }
}
