//! Windows of rows, in which those with the same prompt stand together while they are scored.
//!
//! A prompt is computed once for neighbours. [`Grouped`] has the rows of an input in an order in
//! which those of one prompt are neighbours, as far as a window reaches; [`InOrder`] has their
//! results in the order of the input again.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::vec;

use crate::input::RawLine;

/// Limit on the text of a window.
const BYTES_MAX: usize = 256 << 20;

/// The rows of an input, window after window, those of a window with the same prompt together: in
/// the order of the first of each prompt, and of one prompt in that of the input.
pub(super) struct Grouped<I> {
    rows: I,
    rows_max: usize,
    bytes_max: usize,
    window: vec::IntoIter<RawLine>,
    /// The error after the rows of the window.
    error: Option<anyhow::Error>,
}

impl<I: Iterator<Item = anyhow::Result<RawLine>>> Grouped<I> {
    /// Returns the rows in windows of so many at most, and of 256 MiB of text.
    pub(super) fn new(rows: I, rows_max: NonZeroUsize) -> Self {
        let window = Vec::new().into_iter();
        Self { rows, rows_max: rows_max.get(), bytes_max: BYTES_MAX, window, error: None }
    }

    fn fill(&mut self) {
        let mut groups = HashMap::new();
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while rows.len() < self.rows_max && bytes < self.bytes_max {
            match self.rows.next() {
                None => break,
                Some(Err(error)) => {
                    self.error = Some(error);
                    break;
                }
                Some(Ok(row)) => {
                    let alone = rows.len();
                    let group =
                        row.prompt_hash().map_or(alone, |prompt| *groups.entry(prompt).or_insert(alone));
                    bytes += row.bytes();
                    rows.push((group, row));
                }
            }
        }
        rows.sort_by_key(|(group, _)| *group);
        self.window = rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>().into_iter();
    }
}

impl<I: Iterator<Item = anyhow::Result<RawLine>>> Iterator for Grouped<I> {
    type Item = anyhow::Result<RawLine>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.window.len() == 0 && self.error.is_none() {
            self.fill();
        }
        self.window.next().map(Ok).or_else(|| self.error.take().map(Err))
    }
}

/// Items by their number, given back in its order.
pub(super) struct InOrder<T> {
    next: usize,
    waiting: BTreeMap<usize, T>,
}

impl<T> InOrder<T> {
    /// Returns an empty one, whose first item has the number `first`.
    pub(super) fn new(first: usize) -> Self {
        Self { next: first, waiting: BTreeMap::new() }
    }

    /// Adds an item.
    pub(super) fn add(&mut self, number: usize, item: T) {
        self.waiting.insert(number, item);
    }

    /// Takes the item with the next number, if it is there.
    pub(super) fn take(&mut self) -> Option<T> {
        let item = self.waiting.remove(&self.next)?;
        self.next += 1;
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: usize, prompt: &str) -> anyhow::Result<RawLine> {
        let text = match prompt {
            "" => "{}".to_owned(),
            prompt => format!("{{\"prompt\": {prompt:?}, \"response\": \"x\"}}"),
        };
        Ok(RawLine::new(index, 0, text.into_bytes()))
    }

    fn order(prompts: &[&str], rows_max: usize, bytes_max: usize) -> Vec<usize> {
        let rows = prompts.iter().enumerate().map(|(index, prompt)| row(index, prompt));
        let mut grouped = Grouped::new(rows, NonZeroUsize::new(rows_max).unwrap());
        grouped.bytes_max = bytes_max;
        grouped.map(|row| row.unwrap().index).collect()
    }

    #[test]
    fn rows_of_a_prompt_stand_together_within_a_window() {
        let prompts = ["a", "b", "", "a", "", "b", "a"];
        assert_eq!(order(&prompts, 9, 1 << 20), [0, 3, 6, 1, 5, 2, 4]);
        assert_eq!(order(&prompts, 4, 1 << 20), [0, 3, 1, 2, 4, 5, 6]);
        assert_eq!(order(&prompts, 1, 1 << 20), [0, 1, 2, 3, 4, 5, 6]);
        // A window ends with the row that reaches the bytes.
        assert_eq!(order(&prompts, 9, 101), [0, 3, 1, 5, 2, 4, 6]);
    }

    #[test]
    fn an_error_of_the_input_comes_after_the_rows_before_it() {
        let rows = [row(0, "a"), row(1, "b"), row(2, "a"), Err(anyhow::anyhow!("broken"))].into_iter();
        let found: Vec<Result<usize, String>> = Grouped::new(rows, NonZeroUsize::new(9).unwrap())
            .map(|row| row.map(|row| row.index).map_err(|error| error.to_string()))
            .collect();
        assert_eq!(found, [Ok(0), Ok(2), Ok(1), Err("broken".to_owned())]);
    }

    #[test]
    fn items_come_in_the_order_of_their_numbers() {
        let mut items = InOrder::new(3);
        let mut taken = Vec::new();
        for number in [5, 3, 4, 7, 6] {
            items.add(number, number);
            taken.push(std::iter::from_fn(|| items.take()).collect::<Vec<_>>());
        }
        assert_eq!(taken, [vec![], vec![3], vec![4, 5], vec![], vec![6, 7]]);
    }
}
