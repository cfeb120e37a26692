//! The responses to a prompt with their rewards, and the selections among them.

use serde_json::{Map, Value, json};

use crate::args::PairRule;
use kudos::internals::results::{Key, number, result_line};
use kudos::{Conversation, Message};

/// The responses to a prompt.
#[derive(Debug)]
pub(super) struct Candidates {
    /// The key of the row that they come from, or of the first of several.
    pub(super) key: Key,
    pub(super) prompt: Conversation,
    pub(super) responses: Vec<Candidate>,
}

/// The turns of a response, and its reward.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Its place among all responses to the prompt, from 0, with those that have no reward.
    pub(super) index: usize,
    pub(super) turns: Vec<Message>,
    pub(super) reward: f32,
}

impl Candidates {
    /// Returns the line of the response with the highest reward, the first of equal ones, with its
    /// place and the number of those with a reward, unless it is better than the second by less
    /// than `min_margin`. One response alone has no margin.
    pub(super) fn best(&self, min_margin: f32) -> Option<String> {
        let order = self.order();
        let (&best, second) = (order.first()?, order.get(1));
        let margin = second.map(|&second| self.margin(best, second));
        if margin.is_some_and(|margin| margin < min_margin) {
            return None;
        }
        let messages: Vec<&Message> =
            self.prompt.messages().iter().chain(&self.responses[best].turns).collect();
        let mut fields = Map::new();
        fields.insert("messages".to_owned(), turns(messages));
        self.add_extras(&mut fields);
        fields.insert("reward".to_owned(), number(self.responses[best].reward));
        fields.insert("margin".to_owned(), margin.map_or(Value::Null, number));
        fields.insert("best".to_owned(), json!(self.responses[best].index));
        fields.insert("candidates".to_owned(), json!(self.responses.len()));
        Some(result_line(Some(&self.key), fields))
    }

    /// Returns the lines of pairs by a rule, the one with the largest margin first: those that
    /// differ, and by `min_margin` at least.
    pub(super) fn pairs(&self, rule: PairRule, min_margin: f32) -> Vec<String> {
        let order = self.order();
        let mut pairs: Vec<(usize, usize)> = match (rule, &order[..]) {
            (PairRule::Extremes, [best, .., worst]) => vec![(*best, *worst)],
            (PairRule::Extremes, _) => vec![],
            (PairRule::All, order) => {
                let pair = |(place, better): (usize, &usize)| {
                    order[place + 1..].iter().map(|worse| (*better, *worse)).collect::<Vec<_>>()
                };
                order.iter().enumerate().flat_map(pair).collect()
            }
        };
        pairs.retain(|&(better, worse)| {
            let margin = self.margin(better, worse);
            margin > 0.0 && margin >= min_margin
        });
        pairs.sort_by(|a, b| self.margin(b.0, b.1).total_cmp(&self.margin(a.0, a.1)));
        pairs.into_iter().map(|(better, worse)| self.pair(better, worse)).collect()
    }

    fn pair(&self, better: usize, worse: usize) -> String {
        let [chosen, rejected] = [better, worse].map(|index| &self.responses[index]);
        let mut fields = Map::new();
        fields.insert("prompt".to_owned(), turns(self.prompt.messages()));
        fields.insert("chosen".to_owned(), turns(&chosen.turns));
        fields.insert("rejected".to_owned(), turns(&rejected.turns));
        self.add_extras(&mut fields);
        fields.insert("reward_chosen".to_owned(), number(chosen.reward));
        fields.insert("reward_rejected".to_owned(), number(rejected.reward));
        fields.insert("margin".to_owned(), number(self.margin(better, worse)));
        result_line(Some(&self.key), fields)
    }

    /// Adds what else the prompt's template reads.
    fn add_extras(&self, fields: &mut Map<String, Value>) {
        for (key, list) in [("tools", self.prompt.tools()), ("documents", self.prompt.documents())] {
            if let Some(list) = list {
                fields.insert(key.to_owned(), json!(list));
            }
        }
        if !self.prompt.template_vars().is_empty() {
            fields.insert("template_vars".to_owned(), json!(self.prompt.template_vars()));
        }
    }

    /// Returns the responses by their rewards, the highest first, equal ones in their order.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.responses.len()).collect();
        order.sort_by(|&a, &b| self.responses[b].reward.total_cmp(&self.responses[a].reward));
        order
    }

    fn margin(&self, better: usize, worse: usize) -> f32 {
        self.responses[better].reward - self.responses[worse].reward
    }
}

fn turns<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Value {
    messages.into_iter().map(|message| Value::Object(message.fields().clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(rewards: &[f32]) -> Candidates {
        // The first response has no reward.
        let candidate = |(index, &reward): (usize, &f32)| Candidate {
            index: index + 1,
            turns: vec![Message::assistant(format!("r{index}"))],
            reward,
        };
        Candidates {
            key: Key::Index(3),
            prompt: Conversation::new(vec![Message::user("q")]).unwrap(),
            responses: rewards.iter().enumerate().map(candidate).collect(),
        }
    }

    fn value(line: &str) -> Value {
        serde_json::from_str(line).unwrap()
    }

    /// The responses of pairs, chosen and rejected, and their margins.
    fn pairs(rewards: &[f32], rule: PairRule, min_margin: f32) -> Vec<(String, String, f64)> {
        let pair = |line: String| {
            let pair = value(&line);
            let text = |side: &str| pair[side][0]["content"].as_str().unwrap().to_owned();
            (text("chosen"), text("rejected"), pair["margin"].as_f64().unwrap())
        };
        candidates(rewards).pairs(rule, min_margin).into_iter().map(pair).collect()
    }

    #[test]
    fn the_best_has_its_margin_to_the_second() {
        let line = candidates(&[0.5, 2.25, -1.0, 1.0]).best(0.0).unwrap();
        let expected = json!({
            "index": 3,
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r1"}],
            "reward": 2.25,
            "margin": 1.25,
            "best": 2,
            "candidates": 4,
        });
        assert_eq!(value(&line), expected);
        assert_eq!(candidates(&[0.5, 2.25, 1.0]).best(1.5), None);
        // The first of equal ones, and one alone.
        let equal = value(&candidates(&[1.0, 3.0, 3.0]).best(0.0).unwrap());
        assert_eq!([&equal["best"], &equal["margin"]], [&json!(2), &json!(0.0)]);
        assert_eq!(value(&candidates(&[1.0]).best(9.0).unwrap())["margin"], Value::Null);
        assert_eq!(candidates(&[]).best(0.0), None);
    }

    #[test]
    fn pairs_follow_their_rule_and_the_margin() {
        let name = |a: &str, b: &str, margin: f64| (a.to_owned(), b.to_owned(), margin);
        let rewards = [1.0, 3.0, 0.5, 3.0];
        assert_eq!(pairs(&rewards, PairRule::Extremes, 0.0), [name("r1", "r2", 2.5)]);
        assert_eq!(pairs(&rewards, PairRule::Extremes, 2.75), []);
        let all = pairs(&rewards, PairRule::All, 0.0);
        assert_eq!(
            all,
            [
                name("r1", "r2", 2.5),
                name("r3", "r2", 2.5),
                name("r1", "r0", 2.0),
                name("r3", "r0", 2.0),
                name("r0", "r2", 0.5)
            ]
        );
        assert_eq!(pairs(&rewards, PairRule::All, 2.0), all[..4]);
        assert_eq!(pairs(&[2.0, 2.0], PairRule::Extremes, 0.0), []);
        assert_eq!(pairs(&[2.0], PairRule::All, 0.0), []);
    }
}
