//! RM-Bench: three right and three wrong responses to a prompt, each in three styles (concise,
//! detailed, detailed with Markdown), compared in all nine ways.

use serde_json::{Map, Value, json};

use super::fields::{numbers, optional, request, text, texts, wrong};
use super::{Benchmark, Content, Evaluation, Headline, Scored, TieCredit, groups, missing};
use crate::eval::report::{Column, Row, Table, Ties, Unit};
use crate::eval::stats::{Design, Statistic};
use kudos::Result;

const DOMAINS: [&str; 4] = ["chat", "math", "code", "safety"];

/// Number of styles.
const STYLES: usize = 3;

/// Comparisons (style of the right response, style of the wrong one) by difficulty: a wrong
/// response in a plainer style, in the same one, in a fancier one.
const EASY: [(usize, usize); 3] = [(1, 0), (2, 0), (2, 1)];
const NORMAL: [(usize, usize); 3] = [(0, 0), (1, 1), (2, 2)];
const HARD: [(usize, usize); 3] = [(0, 1), (0, 2), (1, 2)];

/// RM-Bench with its option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RmBench {
    pub(crate) ties: TieCredit,
}

impl Benchmark for RmBench {
    /// The domain.
    type Labels = &'static str;

    const NAME: &'static str = "rm-bench";
    const ADDED: &'static [&'static str] = &["score_chosen", "score_rejected"];

    fn read(&self, item: &Map<String, Value>) -> Result<Content<&'static str>> {
        // Files of one domain have it in their ids alone.
        let label =
            if optional(item, "domain").is_some() { text(item, "domain")? } else { text(item, "id")? };
        let labels = DOMAINS.into_iter().find(|domain| label.starts_with(domain)).ok_or_else(|| {
            wrong(format!("the domain is `{label}`, expected one that begins with {}", DOMAINS.join(", ")))
        })?;
        let prompt = Value::from(text(item, "prompt")?);
        let (chosen, rejected) = (texts(item, "chosen")?, texts(item, "rejected")?);
        for (key, responses) in [("chosen", &chosen), ("rejected", &rejected)] {
            if responses.len() != STYLES {
                return Err(wrong(format!("`{key}` has {} responses, expected {STYLES}", responses.len()))
                    .with_hint("RM-Bench has each response in three styles"));
            }
        }
        Ok(Content { labels, requests: vec![request(&prompt, chosen.into_iter().chain(rejected))] })
    }

    fn export(&self, _: &&'static str, scores: &[f64]) -> Vec<(&'static str, Value)> {
        let (chosen, rejected) = scores.split_at(STYLES);
        vec![("score_chosen", json!(chosen)), ("score_rejected", json!(rejected))]
    }

    fn scores(&self, _: &&'static str, result: &Map<String, Value>) -> Result<Vec<f64>> {
        let [chosen, rejected] = [Self::ADDED[0], Self::ADDED[1]].map(|key| numbers(result, key, STYLES));
        Ok([chosen?, rejected?].concat())
    }

    fn evaluate(&self, rows: &[Scored<&'static str>]) -> Evaluation {
        let domains = groups(&DOMAINS, rows.iter().map(|row| row.labels));
        let all: Vec<usize> = (0..rows.len()).collect();
        let micro = self.cells(rows, &all);
        let by_domain: Vec<Vec<Statistic>> =
            domains.iter().map(|(_, items)| self.cells(rows, items)).collect();
        let macro_average = |column: usize| {
            Statistic::average(by_domain.iter().map(|cells| (1.0, cells[column].clone())).collect())
        };
        let macros: Vec<Statistic> = (0..micro.len()).map(macro_average).collect();
        let headline = Headline {
            name: "domain macro overall".to_owned(),
            unit: Unit::Percent,
            statistic: macros[3].clone(),
        };
        let row = |name: &str, items: &[usize], cells| {
            let ties = items.iter().map(|&item| ties(&rows[item])).sum();
            Row { name: name.to_owned(), items: items.len(), ties: Some(ties), cells }
        };
        let mut table_rows: Vec<Row<Statistic>> =
            domains.iter().zip(by_domain).map(|((name, items), cells)| row(name, items, cells)).collect();
        table_rows.extend([row("macro", &all, macros), row("micro", &all, micro)]);
        let columns = ["easy", "normal", "hard", "overall"];
        let columns = columns.map(|name| Column { name, unit: Unit::Percent }).to_vec();
        let mut notes = vec![
            "macro, the average of the domains, is official; some model cards print easy, normal and hard as in micro, \
             the average of the items, beside the overall of macro"
                .to_owned(),
        ];
        notes.extend(missing("domains", &DOMAINS, &domains));
        Evaluation {
            tables: vec![Table { name: "domain", columns, rows: table_rows }],
            headline,
            design: Design::of_items(rows.iter().map(|row| row.labels)),
            ties: Ties { count: rows.iter().map(ties).sum(), of: rows.len() * STYLES * STYLES },
            notes,
        }
    }

    fn comparisons(&self, _: &&'static str) -> Vec<(usize, usize)> {
        pairs().collect()
    }

    fn categories<'a>(&self, rows: &'a [Scored<&'static str>]) -> Vec<Option<&'a str>> {
        rows.iter().map(|row| Some(row.labels)).collect()
    }
}

impl RmBench {
    /// Returns easy, normal, hard and overall of some items.
    fn cells(&self, rows: &[Scored<&'static str>], items: &[usize]) -> Vec<Statistic> {
        let mean = |styles: &[(usize, usize)]| {
            let credit = |&item: &usize| {
                let scores = &rows[item].scores;
                let credits =
                    styles.iter().map(|&(right, wrong)| self.ties.of(scores[right], scores[STYLES + wrong]));
                (item, credits.sum::<f64>() / styles.len() as f64)
            };
            Statistic::mean(items.iter().map(credit).collect())
        };
        vec![mean(&EASY), mean(&NORMAL), mean(&HARD), mean(&[EASY, NORMAL, HARD].concat())]
    }
}

/// The indices of each right response's score and each wrong one's.
fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..STYLES).flat_map(|right| (STYLES..2 * STYLES).map(move |wrong| (right, wrong)))
}

fn ties(row: &Scored<&'static str>) -> usize {
    pairs().filter(|&(right, wrong)| row.scores[right] == row.scores[wrong]).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFICIAL: RmBench = RmBench { ties: TieCredit::None };

    fn row(labels: &'static str, chosen: [f64; 3], rejected: [f64; 3]) -> Scored<&'static str> {
        Scored { labels, scores: [chosen, rejected].concat() }
    }

    /// Easy, normal, hard, overall of each row of the table, in ninths or thirds.
    fn values(benchmark: RmBench, rows: &[Scored<&'static str>]) -> Vec<(String, Vec<f64>)> {
        let evaluation = benchmark.evaluate(rows);
        let table = &evaluation.tables[0];
        table.rows.iter().map(|row| (row.name.clone(), evaluation.design.values(&row.cells))).collect()
    }

    #[test]
    fn each_comparison_counts_in_its_own_column() {
        // The right response of one style wins against the wrong one of one style only.
        for right in 0..3 {
            for wrong in 0..3 {
                let mut chosen = [0.0; 3];
                let mut rejected = [2.0; 3];
                (chosen[right], rejected[wrong]) = (1.0, 0.5);
                let found = &values(OFFICIAL, &[row("chat", chosen, rejected)])[0].1;
                let expected =
                    [wrong < right, wrong == right, wrong > right].map(|is| if is { 1.0 / 3.0 } else { 0.0 });
                assert_eq!(found[..3], expected, "{right} {wrong}");
                assert!((found[3] - 1.0 / 9.0).abs() < 1e-15);
            }
        }
    }

    #[test]
    fn macro_averages_domains_and_micro_averages_items() {
        let (won, lost) = ([1.0; 3], [0.0; 3]);
        let rows =
            [row("chat", won, lost), row("chat", won, lost), row("chat", lost, won), row("math", lost, won)];
        let found = values(OFFICIAL, &rows);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["chat", "math", "macro", "micro"]);
        for column in 0..4 {
            let column: Vec<f64> = found.iter().map(|(_, values)| values[column]).collect();
            assert!((column[0] - 2.0 / 3.0).abs() < 1e-15 && column[1] == 0.0);
            assert!((column[2] - 1.0 / 3.0).abs() < 1e-15 && column[3] == 0.5);
        }
        let notes = OFFICIAL.evaluate(&rows).notes;
        assert_eq!(notes[1], "averages are over 2 of 4 domains: no item of code, safety");
    }

    #[test]
    fn a_tie_is_wrong_unless_half_is_asked_for() {
        let rows = [row("code", [1.0, 2.0, 2.0], [1.0, 1.0, 3.0])];
        // Equal: (0, 0) normal and (0, 1) hard. Right: (1, 0), (2, 0), (2, 1) easy and (1, 1)
        // normal.
        let official = &values(OFFICIAL, &rows)[0].1;
        assert_eq!(official[..3], [1.0, 1.0 / 3.0, 0.0]);
        let half = &values(RmBench { ties: TieCredit::Half }, &rows)[0].1;
        assert_eq!(half[..3], [1.0, 0.5, 0.5 / 3.0]);
        assert_eq!(OFFICIAL.evaluate(&rows).ties, Ties { count: 2, of: 9 });
        let right = OFFICIAL.verdicts(&rows[0]).iter().filter(|right| **right).count();
        assert_eq!(right, 4);
    }

    #[test]
    fn the_domain_comes_from_its_field_or_from_the_id() {
        let read = |domain: Value, id: &str, chosen: &[&str]| {
            let item = json!({"id": id, "domain": domain, "prompt": "p", "chosen": chosen, "rejected": ["d", "e", "f"]});
            OFFICIAL.read(item.as_object().unwrap())
        };
        let content = read(json!("safety-refuse"), "7", &["a", "b", "c"]).unwrap();
        assert_eq!(content.labels, "safety");
        assert_eq!(content.requests, [r#"{"prompt":"p","responses":["a","b","c","d","e","f"]}"#]);
        assert_eq!(read(Value::Null, "code/129", &["a", "b", "c"]).unwrap().labels, "code");
        let error = read(json!("law"), "1", &["a", "b", "c"]).unwrap_err();
        assert!(error.message().starts_with("the domain is `law`, expected"), "{error}");
        let error = read(json!("chat"), "1", &["a"]).unwrap_err();
        assert_eq!(error.message(), "`chosen` has 1 responses, expected 3");
    }

    #[test]
    fn results_hold_the_scores_that_they_were_made_of() {
        let scores = [1.0, 2.0, 3.0, 4.0, 5.0, 6.5];
        let fields = OFFICIAL.export(&"chat", &scores);
        let result = Map::from_iter(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
        assert_eq!(result["score_rejected"], json!([4.0, 5.0, 6.5]));
        assert_eq!(OFFICIAL.scores(&"chat", &result).unwrap(), scores);
    }
}
