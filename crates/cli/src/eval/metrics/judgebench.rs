//! JudgeBench: two responses to a question, of which one is right. A judge plays each pair twice,
//! in both orders; a reward model's decision is the response with the higher reward.

use serde_json::{Map, Value, json};

use super::fields::{list, numbers, request, text, wrong};
use super::{Benchmark, Content, Evaluation, Headline, Scored, groups};
use crate::eval::report::{Column, Row, Table, Ties, Unit};
use crate::eval::stats::{Design, Statistic};
use kudos::Result;

/// Categories by the beginning of an item's `source`.
const CATEGORIES: [(&str, &str); 4] = [
    ("mmlu-pro", "knowledge"),
    ("livebench-reasoning", "reasoning"),
    ("livebench-math", "math"),
    ("livecodebench", "coding"),
];

const LABELS: [&str; 2] = ["A>B", "B>A"];

/// JudgeBench with its option.
#[derive(Clone, Debug)]
pub(crate) struct JudgeBench {
    pub(crate) games: Games,
    /// The model's name in results.
    pub(crate) judge_model: String,
}

/// The games that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Games {
    /// Both orders: right if one game is right and the other no contradiction. A tie is wrong.
    Two,
    /// The first order alone, where a tie is a decision for B.
    Single,
}

/// The category, and which response is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    category: &'static str,
    is_a: bool,
}

/// The decision of a game over its first and second response.
fn is_first(scores: [f64; 2]) -> bool {
    scores[0] > scores[1]
}

impl JudgeBench {
    /// Returns the games that are right less those that are wrong. Scores are those of A and B in
    /// the first game, then in the second, which may differ where a harness computed them twice.
    fn balance(&self, row: &Scored<Labels>) -> i32 {
        let is_a = row.labels.is_a;
        let sign = |is_right: bool| if is_right { 1 } else { -1 };
        let first = sign(is_first([row.scores[0], row.scores[1]]) == is_a);
        // In the second game B comes first.
        let second = sign(is_first([row.scores[3], row.scores[2]]) != is_a);
        match self.games {
            Games::Two => first + second,
            Games::Single => first,
        }
    }

    fn is_tie(&self, row: &Scored<Labels>) -> bool {
        match self.games {
            Games::Two => self.balance(row) == 0,
            Games::Single => row.scores[0] == row.scores[1],
        }
    }
}

impl Benchmark for JudgeBench {
    type Labels = Labels;

    const NAME: &'static str = "judgebench";
    const ID: &'static str = "pair_id";
    const ADDED: &'static [&'static str] = &["judge_name", "judgments"];

    fn read(&self, item: &Map<String, Value>) -> Result<Content<Labels>> {
        let source = text(item, "source")?;
        let category = CATEGORIES.iter().find(|(start, _)| source.starts_with(start));
        let category = category.map(|(_, category)| *category).ok_or_else(|| {
            let starts = CATEGORIES.map(|(start, _)| start).join(", ");
            wrong(format!("`source` is `{source}`, expected one that begins with {starts}"))
        })?;
        let label = text(item, "label")?;
        if !LABELS.contains(&label) {
            return Err(wrong(format!("`label` is `{label}`, expected `A>B` or `B>A`")));
        }
        let question = Value::from(text(item, "question")?);
        let responses = [text(item, "response_A")?, text(item, "response_B")?];
        let labels = Labels { category, is_a: label == LABELS[0] };
        Ok(Content { labels, requests: vec![request(&question, responses)] })
    }

    fn export(&self, _: &Labels, scores: &[f64]) -> Vec<(&'static str, Value)> {
        let game = |scores: [f64; 2]| {
            let judgment =
                json!({"judge_model": self.judge_model, "prompt": "", "response": "", "scores": scores});
            json!({"judgment": judgment, "decision": LABELS[usize::from(!is_first(scores))]})
        };
        let games = [game([scores[0], scores[1]]), game([scores[1], scores[0]])];
        vec![("judge_name", json!("reward_model")), ("judgments", json!(games))]
    }

    /// Results of one game have no second one, whose scores are then those of the first.
    fn scores(&self, _: &Labels, result: &Map<String, Value>) -> Result<Vec<f64>> {
        let judgments = list(result, "judgments", "a list of two games")?;
        let game = |(index, game): (usize, &Value)| {
            let judgment = game.get("judgment").and_then(Value::as_object).ok_or_else(|| {
                wrong(format!("`judgments[{index}]` has no `judgment`, expected one with `scores`"))
                    .with_hint("results of judges that write text have no scores")
            })?;
            numbers(judgment, "scores", 2)
        };
        let games: Vec<Vec<f64>> = judgments.iter().enumerate().map(game).collect::<Result<_>>()?;
        match &games[..] {
            [first] => Ok([first.as_slice(), first].concat()),
            [first, second] => Ok(vec![first[0], first[1], second[1], second[0]]),
            _ => Err(wrong(format!("`judgments` has {} games, expected 1 or 2", games.len()))),
        }
    }

    fn evaluate(&self, rows: &[Scored<Labels>]) -> Evaluation {
        let known = CATEGORIES.map(|(_, category)| category);
        let categories = groups(&known, rows.iter().map(|row| row.labels.category));
        let row = |name: &str, items: &[usize]| {
            let credit = |&item: &usize| (item, f64::from(u8::from(self.balance(&rows[item]) > 0)));
            Row {
                name: name.to_owned(),
                items: items.len(),
                ties: Some(items.iter().filter(|&&item| self.is_tie(&rows[item])).count()),
                cells: vec![Statistic::mean(items.iter().map(credit).collect())],
            }
        };
        let mut table_rows: Vec<Row<Statistic>> =
            categories.iter().map(|(name, items)| row(name, items)).collect();
        let overall = row("overall", &(0..rows.len()).collect::<Vec<_>>());
        let statistic = overall.cells[0].clone();
        table_rows.push(overall);
        let columns = vec![Column { name: "accuracy", unit: Unit::Percent }];
        let note = match self.games {
            Games::Two => "two games: a tie is wrong",
            Games::Single => "single game: a tie is a decision for B>A",
        };
        Evaluation {
            tables: vec![Table { name: "category", columns, rows: table_rows }],
            headline: Headline {
                name: "category overall accuracy".to_owned(),
                unit: Unit::Percent,
                statistic,
            },
            design: Design::of_items(rows.iter().map(|row| row.labels.category)),
            ties: Ties { count: rows.iter().filter(|row| self.is_tie(row)).count(), of: rows.len() },
            notes: vec![note.to_owned()],
        }
    }

    /// Those of the first game.
    fn comparisons(&self, labels: &Labels) -> Vec<(usize, usize)> {
        vec![if labels.is_a { (0, 1) } else { (1, 0) }]
    }

    fn verdicts(&self, row: &Scored<Labels>) -> Vec<bool> {
        vec![self.balance(row) > 0]
    }

    fn categories<'a>(&self, rows: &'a [Scored<Labels>]) -> Vec<Option<&'a str>> {
        rows.iter().map(|row| Some(row.labels.category)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn benchmark(games: Games) -> JudgeBench {
        JudgeBench { games, judge_model: "rm".to_owned() }
    }

    fn row(is_a: bool, first: [f64; 2], second: [f64; 2]) -> Scored<Labels> {
        Scored { labels: Labels { category: "math", is_a }, scores: [first, second].concat() }
    }

    #[test]
    fn a_tie_is_wrong_in_two_games_and_b_in_a_single_one() {
        let tied = |is_a| row(is_a, [1.0, 1.0], [1.0, 1.0]);
        for is_a in [true, false] {
            assert_eq!(benchmark(Games::Two).verdicts(&tied(is_a)), [false]);
            assert_eq!(benchmark(Games::Single).verdicts(&tied(is_a)), [!is_a]);
        }
        let evaluation = benchmark(Games::Two).evaluate(&[tied(true), row(true, [2.0, 1.0], [2.0, 1.0])]);
        assert_eq!(evaluation.ties, Ties { count: 1, of: 2 });
        assert_eq!(evaluation.design.values(&evaluation.tables[0].rows[1].cells), [0.5]);
    }

    #[test]
    fn both_games_have_the_winner_of_unequal_scores() {
        for games in [Games::Two, Games::Single] {
            assert_eq!(benchmark(games).verdicts(&row(true, [2.0, 1.0], [2.0, 1.0])), [true]);
            assert_eq!(benchmark(games).verdicts(&row(false, [2.0, 1.0], [2.0, 1.0])), [false]);
            assert_eq!(benchmark(games).verdicts(&row(false, [1.0, 2.0], [1.0, 2.0])), [true]);
        }
    }

    #[test]
    fn a_second_game_with_scores_of_its_own_may_be_a_tie() {
        // A>B, then a tie in the order (B, A): the decision for the second response is A.
        let won_then_tied = row(true, [2.0, 1.0], [1.0, 1.0]);
        assert_eq!(benchmark(Games::Two).verdicts(&won_then_tied), [true]);
        // A tie in the order (A, B) is a decision for B, then A>B: one right, one wrong.
        let tied_then_won = row(true, [1.0, 1.0], [2.0, 1.0]);
        assert_eq!(benchmark(Games::Two).verdicts(&tied_then_won), [false]);
        assert!(benchmark(Games::Two).is_tie(&tied_then_won));
    }

    #[test]
    fn results_are_those_of_the_benchmark_s_own_outputs() {
        let benchmark = benchmark(Games::Two);
        let labels = Labels { category: "math", is_a: true };
        let fields = benchmark.export(&labels, &[5.5, 4.0]);
        assert_eq!(
            fields[1].1.to_string(),
            r#"[{"judgment":{"judge_model":"rm","prompt":"","response":"","scores":[5.5,4.0]},"decision":"A>B"},"#
                .to_owned()
                + r#"{"judgment":{"judge_model":"rm","prompt":"","response":"","scores":[4.0,5.5]},"decision":"B>A"}]"#
        );
        let mut result = Map::from_iter(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
        assert_eq!(benchmark.scores(&labels, &result).unwrap(), [5.5, 4.0, 5.5, 4.0]);
        result["judgments"].as_array_mut().unwrap().pop();
        assert_eq!(benchmark.scores(&labels, &result).unwrap(), [5.5, 4.0, 5.5, 4.0]);
    }

    #[test]
    fn the_category_follows_from_the_source() {
        let read = |source: &str, label: &str| {
            let item = json!({"source": source, "question": "q", "response_A": "a", "response_B": "b", "label": label});
            benchmark(Games::Two).read(item.as_object().unwrap()).map(|content| content.labels)
        };
        let labels = |category, is_a| Labels { category, is_a };
        assert_eq!(read("mmlu-pro-law", "A>B").unwrap(), labels("knowledge", true));
        assert_eq!(read("livecodebench", "B>A").unwrap(), labels("coding", false));
        assert!(read("other", "A>B").is_err());
        assert_eq!(
            read("livebench-math", "A=B").unwrap_err().message(),
            "`label` is `A=B`, expected `A>B` or `B>A`"
        );
    }
}
