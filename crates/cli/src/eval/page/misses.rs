//! The worst misses: of the items that have a comparison wrong, those with the most negative
//! margin, with their texts. All others are counted alone, so that memory does not grow with the
//! file.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use serde::Serialize;

use super::texts::{Texts, Turn};
use crate::eval::entry::Entry;

/// Limit on the items that are kept.
const ITEMS_MAX: usize = 50;

/// Limits on the characters of a response and of a turn, and on the turns of a prompt, the last of
/// which are kept.
const RESPONSE_CHARS_MAX: usize = 8_000;
const TURN_CHARS_MAX: usize = 4_000;
const TURNS_MAX: usize = 8;

/// The worst misses so far.
#[derive(Default)]
pub(super) struct Misses {
    /// Items with a comparison that is wrong or tied.
    items: usize,
    /// The greatest is the one to drop.
    worst: BinaryHeap<Miss>,
}

/// An item and the worst of its comparisons.
#[derive(Debug, Serialize)]
struct Miss {
    #[serde(skip)]
    row: usize,
    /// The item's place in the file, from 0.
    index: usize,
    /// The item's id: its text, or other JSON as it was spelled, which a browser may not read
    /// exactly.
    id: Option<String>,
    margin: f64,
    /// Earlier turns that are left out.
    turns_left_out: usize,
    prompt: Vec<Excerpt>,
    better: Judged,
    worse: Judged,
}

/// A response and its reward.
#[derive(Debug, Serialize)]
struct Judged {
    /// The response's place among those of the item, from 0.
    response: usize,
    reward: f64,
    /// `None` where the conversation cannot be read.
    text: Option<Excerpt>,
}

/// The beginning of a text.
#[derive(Debug, PartialEq, Serialize)]
struct Excerpt {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    text: String,
    /// Characters of the whole text.
    chars: usize,
    /// Characters that are left out.
    cut: usize,
}

/// The worst misses of all items.
#[derive(Debug, Serialize)]
pub(super) struct Worst {
    /// Items with a comparison that is wrong or tied.
    items: usize,
    rows: Vec<Categorized>,
}

#[derive(Debug, Serialize)]
struct Categorized {
    category: Option<String>,
    #[serde(flatten)]
    miss: Miss,
}

impl Misses {
    /// Adds an item, if one of its comparisons is wrong or tied.
    pub(super) fn add<L>(
        &mut self,
        row: usize,
        entry: &Entry<L>,
        comparisons: Vec<(usize, usize)>,
        scores: &[f64],
        texts: Option<&Texts>,
    ) {
        let margin = |&(better, worse): &(usize, usize)| scores[better] - scores[worse];
        let worst = comparisons.into_iter().min_by(|a, b| margin(a).total_cmp(&margin(b)));
        let Some((better, worse)) = worst.filter(|worst| margin(worst) <= 0.0) else { return };
        self.items += 1;
        let margin = margin(&(better, worse));
        let is_full = self.worst.len() == ITEMS_MAX;
        if is_full && self.worst.peek().is_some_and(|least| margin >= least.margin) {
            return;
        }
        let judged = |response: usize| Judged {
            response,
            reward: scores[response],
            text: texts.map(|texts| Excerpt::of(None, &texts.responses[response], RESPONSE_CHARS_MAX)),
        };
        let turns = texts.map_or(&[][..], |texts| &texts.prompt);
        let turns_left_out = turns.len().saturating_sub(TURNS_MAX);
        let turn = |turn: &Turn| Excerpt::of(Some(turn.role.clone()), &turn.text, TURN_CHARS_MAX);
        self.worst.push(Miss {
            row,
            index: entry.index,
            id: entry.id.as_deref().map(|id| serde_json::from_str(id).unwrap_or_else(|_| id.to_owned())),
            margin,
            turns_left_out,
            prompt: turns[turns_left_out..].iter().map(turn).collect(),
            better: judged(better),
            worse: judged(worse),
        });
        if is_full {
            self.worst.pop();
        }
    }

    /// Returns the misses, the worst first, with the categories of their rows.
    pub(super) fn worst(self, categories: &[Option<&str>]) -> Worst {
        let categorized =
            |miss: Miss| Categorized { category: categories[miss.row].map(str::to_owned), miss };
        let rows = self.worst.into_sorted_vec().into_iter().map(categorized).collect();
        Worst { items: self.items, rows }
    }
}

impl Excerpt {
    fn of(role: Option<String>, text: &str, chars_max: usize) -> Self {
        let chars = text.chars().count();
        let kept: String = text.chars().take(chars_max).collect();
        Self { role, text: kept, chars, cut: chars.saturating_sub(chars_max) }
    }
}

/// By margin, then by place.
impl Ord for Miss {
    fn cmp(&self, other: &Self) -> Ordering {
        self.margin.total_cmp(&other.margin).then(self.row.cmp(&other.row))
    }
}

impl PartialOrd for Miss {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Miss {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Miss {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::items::ItemText;
    use crate::eval::metrics::rewardbench::RewardBench;
    use serde_json::json;

    fn entry(index: usize) -> Entry<&'static str> {
        let item = json!({"id": index, "subset": "hep-go", "prompt": "p", "chosen": "a", "rejected": "b"});
        let text = ItemText { text: Ok(item.to_string().into_bytes()), end: 0 };
        Entry::read(&RewardBench { ties: Default::default() }, index, text, "a test")
    }

    fn texts(prompt: usize, response: &str) -> Texts {
        let turn = |at: usize| Turn { role: "user".to_owned(), text: format!("turn {at}") };
        Texts { prompt: (0..prompt).map(turn).collect(), responses: vec![response.to_owned(); 3] }
    }

    #[test]
    fn the_worst_are_kept_and_all_are_counted() {
        let mut misses = Misses::default();
        // Margins of -0 to -9, again and again; every tenth item is right.
        for row in 0..1000 {
            let margin = if row % 10 == 9 { 1.0 } else { -f64::from(u8::try_from(row % 10).unwrap()) };
            misses.add(row, &entry(row), vec![(0, 1)], &[margin, 0.0], None);
        }
        let worst = misses.worst(&vec![Some("hep-go"); 1000]);
        assert_eq!((worst.items, worst.rows.len()), (900, ITEMS_MAX));
        // The first 50 of those with -8.
        let indices: Vec<usize> = worst.rows.iter().map(|row| row.miss.index).collect();
        assert_eq!(indices, (0..50).map(|at| 10 * at + 8).collect::<Vec<_>>());
    }

    #[test]
    fn an_item_has_its_worst_comparison() {
        let mut misses = Misses::default();
        let scores = [1.0, 0.5, 3.0];
        misses.add(0, &entry(7), vec![(0, 1), (0, 2), (1, 2)], &scores, Some(&texts(1, "r")));
        let found = serde_json::to_value(misses.worst(&[Some("hep-go")])).unwrap();
        let text = json!({"text": "r", "chars": 1, "cut": 0});
        let expected = json!({"items": 1, "rows": [{
            "category": "hep-go", "index": 7, "id": "7", "margin": -2.5, "turns_left_out": 0,
            "prompt": [{"role": "user", "text": "turn 0", "chars": 6, "cut": 0}],
            "better": {"response": 1, "reward": 0.5, "text": text},
            "worse": {"response": 2, "reward": 3.0, "text": text},
        }]});
        assert_eq!(found, expected);
    }

    #[test]
    fn long_texts_are_cut_and_the_cut_is_counted() {
        let excerpt = Excerpt::of(None, "äöü", 2);
        assert_eq!(excerpt, Excerpt { role: None, text: "äö".to_owned(), chars: 3, cut: 1 });
        let mut misses = Misses::default();
        let long = "x".repeat(RESPONSE_CHARS_MAX + 5);
        misses.add(0, &entry(0), vec![(0, 1)], &[0.0, 1.0], Some(&texts(TURNS_MAX + 3, &long)));
        let miss = &misses.worst(&[None]).rows[0].miss;
        assert_eq!(miss.better.text.as_ref().unwrap().cut, 5);
        assert_eq!((miss.turns_left_out, miss.prompt.len()), (3, TURNS_MAX));
        assert_eq!(miss.prompt[0].text, "turn 3");
    }
}
