//! One worker's task of attention, and its tiles.

use std::ops::Range;

use super::super::view::Rows;
use super::plan::{AttentionPlan, Item};
use crate::config::Scores;

/// Keys of a tile: a multiple of every panel's width. The work per tile (maxima across lanes,
/// accumulators spilled and reloaded, O rescaled to new maxima) is then little beside the matmuls,
/// and K and V of a tile fit into the second-level cache with head_dim 128 even where that has 256
/// KiB.
pub(super) const KEYS: usize = 192;

/// Rows of a tile at most.
pub(super) const ROWS_MAX: usize = 32;

/// Views of queries, keys and values. With the usual fused rows `q | k | v`, all three are views of
/// one buffer.
#[derive(Clone, Copy)]
pub struct AttentionInput<'a> {
    /// `[query rows, q_heads * head_dim]`.
    pub q: Rows<'a>,
    /// `[key rows, kv_heads * head_dim]`.
    pub k: Rows<'a>,
    /// `[key rows, kv_heads * head_dim]`.
    pub v: Rows<'a>,
}

/// How a layer scores keys, and which a query sees.
#[derive(Clone, Copy, Debug)]
pub struct Scoring {
    /// Divisor and cap.
    pub scores: Scores,
    /// The number of keys that a query sees, its own included, at least 1; `None` for all up to its
    /// own.
    pub window: Option<usize>,
}

/// One worker's task: neighbouring queries of a segment under all query heads of one kv head.
///
/// Row `r` is query `r / group` under query head `kv_head * group + r % group`, so that rows that
/// see equally many keys are neighbours.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) plan: &'a AttentionPlan,
    pub(super) input: &'a AttentionInput<'a>,
    pub(super) item: &'a Item,
    pub(super) kv_head: usize,
    pub(super) scoring: &'a Scoring,
}

impl<'a> Task<'a> {
    pub(super) fn head_dim(&self) -> usize {
        self.plan.heads().head_dim
    }

    /// Query heads of a kv head.
    pub(super) fn group(&self) -> usize {
        self.plan.heads().q_heads / self.plan.heads().kv_heads
    }

    pub(super) fn rows(&self) -> usize {
        self.item.rows.len() * self.group()
    }

    /// End of the keys that row `r` sees.
    #[inline(always)]
    pub(super) fn keys_of(&self, r: usize) -> usize {
        self.item.first_position + r / self.group() + 1
    }

    /// The first key that row `r` sees.
    #[inline(always)]
    pub(super) fn first_key_of(&self, r: usize) -> usize {
        self.scoring.window.map_or(0, |window| self.keys_of(r).saturating_sub(window))
    }

    /// The first key that any row sees: that of the first one.
    pub(super) fn first_key(&self) -> usize {
        self.first_key_of(0)
    }

    /// The rows that see keys of the tile that begins at `first_key`.
    #[inline(always)]
    pub(super) fn rows_that_see(&self, first_key: usize) -> Range<usize> {
        let first_position = self.item.first_position;
        // Row r sees none before first_position + r / group >= first_key, ...
        let start = first_key.saturating_sub(first_position) * self.group();
        // ... and none any more when first_position + r / group + 1 - window >= first_key + KEYS.
        let end = self.scoring.window.map_or(usize::MAX, |window| {
            let queries = (first_key + KEYS + window - 1).saturating_sub(first_position);
            queries.saturating_mul(self.group())
        });
        start..end.min(self.rows())
    }

    /// End of the keys that any row sees: that of the last one.
    pub(super) fn keys(&self) -> usize {
        self.item.first_position + self.item.rows.len()
    }

    /// Returns the query row of row `r`, and its head's first column.
    #[inline(always)]
    pub(super) fn position(&self, r: usize) -> (usize, usize) {
        let (query, head) = (r / self.group(), self.kv_head * self.group() + r % self.group());
        (self.item.rows.start + query, head * self.head_dim())
    }

    /// The query of row `r`.
    #[inline(always)]
    pub(super) fn query(&self, r: usize) -> &'a [f32] {
        let (row, column) = self.position(r);
        &self.input.q.row(row)[column..][..self.head_dim()]
    }

    /// The key in key row `row`.
    #[inline(always)]
    pub(super) fn key(&self, row: usize) -> &'a [f32] {
        &self.input.k.row(row)[self.kv_head * self.head_dim()..][..self.head_dim()]
    }

    /// The value in key row `row`.
    #[inline(always)]
    pub(super) fn value(&self, row: usize) -> &'a [f32] {
        &self.input.v.row(row)[self.kv_head * self.head_dim()..][..self.head_dim()]
    }
}

/// Neighbouring rows of a task and one tile of keys.
pub(super) struct Tile<'a> {
    /// The first row.
    pub(super) row: usize,
    /// Whether it is the first tile of keys for all rows, whose states it then begins.
    pub(super) is_first: bool,
    /// Number of keys of the tile before those that each row sees, in ascending order.
    pub(super) hidden: &'a [usize],
    /// End of the keys of the tile that each row sees, in ascending order. A row for which this is
    /// not above `hidden` sees none.
    pub(super) seen: &'a [usize],
}

impl Tile<'_> {
    /// End of the keys that any of the rows sees.
    #[inline(always)]
    pub(super) fn keys(&self) -> usize {
        self.seen[self.seen.len() - 1]
    }

    /// Cuts the tile into runs. Keys are taken in groups of `multiple`: of the first and the last one
    /// that a row sees it may not see all.
    #[inline(always)]
    pub(super) fn runs(&self, multiple: usize) -> Runs<'_> {
        Runs { tile: self, multiple, key: self.hidden[0] / multiple * multiple, rows: 0..0 }
    }
}

/// Neighbouring rows of a tile, and keys that all of these see.
pub(super) struct Run {
    /// Rows of the tile.
    pub(super) rows: Range<usize>,
    /// Keys of the tile.
    pub(super) keys: Range<usize>,
}

/// The runs of a tile, in the order of keys, of which a row's own are in no other order.
pub(super) struct Runs<'a> {
    tile: &'a Tile<'a>,
    multiple: usize,
    /// The next key.
    key: usize,
    /// The rows of the last run.
    rows: Range<usize>,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Run> {
        let &Tile { hidden, seen, .. } = self.tile;
        let begin = |r: usize| hidden[r] / self.multiple * self.multiple;
        let end = |r: usize| {
            if hidden[r] < seen[r] { seen[r].next_multiple_of(self.multiple) } else { begin(r) }
        };
        loop {
            // The rows that see `key` are neighbours: those before have seen all of theirs, those
            // after see none yet.
            let (key, rows) = (self.key, &mut self.rows);
            while rows.start < seen.len() && end(rows.start) <= key {
                rows.start += 1;
            }
            if rows.start == seen.len() {
                return None;
            }
            while rows.end < seen.len() && begin(rows.end) <= key {
                rows.end += 1;
            }
            let first_end = end(rows.start);
            self.key = if rows.end < seen.len() { first_end.min(begin(rows.end)) } else { first_end };
            if rows.start < rows.end {
                return Some(Run { rows: rows.clone(), keys: key..self.key });
            }
        }
    }
}
