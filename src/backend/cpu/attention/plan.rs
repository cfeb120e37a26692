//! The plan of attention: which queries attend to which keys, checked and cut into items once per
//! pass, used by every layer.

use std::ops::Range;

use crate::batch::Span;

/// Target rows of an item: enough to amortise the gathering of its keys, few enough for the
/// second-level cache and for many threads. With half as many, attention over 2,048 tokens took
/// 20 % longer in bfloat16 on a matrix unit, and 10 with AVX-512.
const ITEM_ROWS: usize = 384;

/// The heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Heads {
    /// Queries of an item at most; each makes a row for every query head of the group.
    fn queries_max(self) -> usize {
        (ITEM_ROWS * self.kv_heads / self.q_heads).max(1)
    }

    /// Rows of an item at most.
    pub(super) fn rows_max(self) -> usize {
        self.queries_max() * (self.q_heads / self.kv_heads)
    }
}

/// Queries at consecutive positions of one path.
#[derive(Clone, Debug)]
pub struct Queries<'a> {
    /// Query rows (and rows of the output).
    pub rows: Range<usize>,
    /// The position of the first row in its sequence: it sees the path's keys `0..=first_position`,
    /// the next row one more.
    pub first_position: usize,
    /// The path's key rows from position 0 on, at least as far as the last row sees.
    pub spans: &'a [Span],
}

/// The attention of a pass, over the same rows in every layer.
pub struct AttentionPlan {
    heads: Heads,
    /// All paths, one after the other.
    spans: Vec<Span>,
    items: Vec<Item>,
    query_rows_end: usize,
    key_rows_end: usize,
}

/// Neighbouring queries of one segment.
#[derive(Clone, Copy)]
pub(super) struct Item {
    pub(super) rows: ItemRows,
    pub(super) first_position: usize,
    /// Its path in the plan's spans.
    path: (usize, usize),
    /// The cost of the items before it.
    cost_before: usize,
}

impl Item {
    /// Rows times the keys that the last one sees.
    fn cost(&self) -> usize {
        self.rows.len * (self.first_position + self.rows.len)
    }
}

/// A range of query rows that is `Copy`.
#[derive(Clone, Copy)]
pub(super) struct ItemRows {
    pub(super) start: usize,
    len: usize,
}

impl ItemRows {
    pub(super) fn len(self) -> usize {
        self.len
    }
}

impl AttentionPlan {
    /// Cuts `segments` into items, in order of their rows.
    ///
    /// # Panics
    ///
    /// When `q_heads` is not a multiple of `kv_heads` or a size is 0, when a path is shorter than
    /// its last query sees, or when two segments share a query row.
    pub fn new<'a>(heads: Heads, segments: impl IntoIterator<Item = Queries<'a>>) -> Self {
        assert!(heads.kv_heads > 0 && heads.head_dim > 0 && heads.q_heads > 0, "{heads:?} has a size of 0");
        assert_eq!(
            heads.q_heads % heads.kv_heads,
            0,
            "query heads cannot share {} kv heads evenly",
            heads.kv_heads
        );
        let mut plan =
            Self { heads, spans: Vec::new(), items: Vec::new(), query_rows_end: 0, key_rows_end: 0 };
        let mut query_rows = Vec::new();
        for segment in segments {
            plan.push(&segment);
            query_rows.push(segment.rows);
        }
        query_rows.retain(|rows| !rows.is_empty());
        query_rows.sort_by_key(|rows| rows.start);
        assert!(
            query_rows.windows(2).all(|pair| pair[0].end <= pair[1].start),
            "two segments share a query row"
        );
        plan.items.sort_by_key(|item| item.rows.start);
        let mut cost = 0;
        for item in &mut plan.items {
            item.cost_before = cost;
            cost += item.cost();
        }
        plan
    }

    fn push(&mut self, segment: &Queries) {
        let keys: usize = segment.spans.iter().map(|span| span.len).sum();
        let wanted = segment.first_position + segment.rows.len();
        assert!(segment.rows.is_empty() || wanted <= keys, "a path of {keys} keys for {wanted} positions");
        let path = (self.spans.len(), segment.spans.len());
        self.spans.extend_from_slice(segment.spans);
        let key_rows = segment.spans.iter().map(|span| span.start + span.len).max();
        self.key_rows_end = self.key_rows_end.max(key_rows.unwrap_or(0));
        self.query_rows_end = self.query_rows_end.max(segment.rows.end);
        let queries = self.heads.queries_max();
        for start in segment.rows.clone().step_by(queries) {
            let rows = ItemRows { start, len: queries.min(segment.rows.end - start) };
            let first_position = segment.first_position + (start - segment.rows.start);
            self.items.push(Item { rows, first_position, path, cost_before: 0 });
        }
    }

    /// The heads that it is for.
    pub fn heads(&self) -> Heads {
        self.heads
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    /// Returns the first item of `worker` where each of `workers` has neighbouring ones of about the same
    /// cost.
    pub(super) fn first_item(&self, worker: usize, workers: usize) -> usize {
        let cost = self.items.last().map_or(0, |last| last.cost_before + last.cost());
        self.items.partition_point(|item| item.cost_before * workers < cost * worker)
    }

    pub(super) fn spans(&self, item: &Item) -> &[Span] {
        &self.spans[item.path.0..][..item.path.1]
    }

    /// End of the query rows.
    pub(super) fn query_rows_end(&self) -> usize {
        self.query_rows_end
    }

    /// End of the key rows.
    pub(super) fn key_rows_end(&self) -> usize {
        self.key_rows_end
    }
}

/// Iterates over a path's key rows from position 0.
pub(super) struct KeyRows<'a> {
    spans: &'a [Span],
    /// Rows of the first span that have been returned.
    done: usize,
}

impl<'a> KeyRows<'a> {
    pub(super) fn new(spans: &'a [Span]) -> Self {
        Self { spans, done: 0 }
    }

    /// Leaves out the next `positions` positions, which the path must have.
    pub(super) fn skip(&mut self, positions: usize) {
        self.done += positions;
        while let [first, rest @ ..] = self.spans
            && self.done >= first.len
            && !rest.is_empty()
        {
            self.done -= first.len;
            self.spans = rest;
        }
    }

    /// Writes the rows of the next `rows.len()` positions, which the path must have.
    pub(super) fn next_rows(&mut self, rows: &mut [usize]) {
        for row in rows {
            while self.done == self.spans[0].len {
                self.spans = &self.spans[1..];
                self.done = 0;
            }
            *row = self.spans[0].start + self.done;
            self.done += 1;
        }
    }
}
