//! The page of `kudos eval --report`: one HTML file with the report, and figures of the comparisons
//! behind its numbers.
//!
//! ```text
//! texts (an item's responses) -> Details (what stays of them)
//!     -> margins, length, misses (numbers) -> html (the page) -> file
//! ```
//!
//! Figures are numbers here; the page's script draws them.

mod file;
mod html;
mod length;
mod margins;
mod misses;
mod parts;
mod run;
mod texts;

use serde::Serialize;

use crate::eval::entry::Entry;
use crate::eval::metrics::{Benchmark, Content, Scored};
pub(crate) use file::PageFile;
pub(crate) use html::html;
use length::{Length, Response};
use margins::{Margins, Reliability};
use misses::{Misses, Worst};
use parts::Pair;
pub(crate) use run::Run;
use texts::Texts;

/// Limit on the size of a margin in figures. Rewards are far below; results may have any number,
/// and sums of these stay finite.
const MARGIN_MAX: f64 = 1e100;

/// Lengths of all items, and the texts of the worst misses: all that figures need besides the
/// rewards.
#[derive(Default)]
pub(crate) struct Details {
    /// One per row: characters of each response; `None` where the conversations cannot be read.
    lengths: Vec<Option<Vec<usize>>>,
    misses: Misses,
}

/// The figures of a page.
#[derive(Serialize)]
pub(crate) struct Figures {
    margins: Margins,
    reliability: Reliability,
    length: Length,
    misses: Worst,
}

impl Details {
    /// Adds the next row: an item with its scores.
    pub(crate) fn add<B: Benchmark>(
        &mut self,
        benchmark: &B,
        entry: &Entry<B::Labels>,
        content: &Content<B::Labels>,
        scores: &[f64],
    ) {
        let texts = Texts::read(&content.requests);
        let row = self.lengths.len();
        self.misses.add(row, entry, benchmark.comparisons(&content.labels), scores, texts.as_ref());
        self.lengths.push(texts.map(|texts| texts.lengths()));
    }

    /// Returns the figures of all rows.
    pub(crate) fn figures<B: Benchmark>(self, benchmark: &B, rows: &[Scored<B::Labels>]) -> Figures {
        let (mut pairs, mut responses) = (Vec::new(), Vec::new());
        for (item, (row, lengths)) in rows.iter().zip(&self.lengths).enumerate() {
            let pair = |(better, worse): (usize, usize)| Pair {
                item,
                margin: (row.scores[better] - row.scores[worse]).clamp(-MARGIN_MAX, MARGIN_MAX),
                chars: lengths.as_ref().map(|lengths| (lengths[better], lengths[worse])),
            };
            pairs.extend(benchmark.comparisons(&row.labels).into_iter().map(pair));
            let lengths = lengths.iter().flatten().zip(&row.scores);
            responses.extend(lengths.map(|(&chars, &reward)| Response { item, chars, reward }));
        }
        let unread = self.lengths.iter().filter(|lengths| lengths.is_none()).count();
        Figures {
            margins: Margins::of(&pairs),
            reliability: Reliability::of(&pairs),
            length: Length::of(&responses, &pairs, unread, &benchmark.evaluate(rows).design),
            misses: self.misses.worst(&benchmark.categories(rows)),
        }
    }
}
