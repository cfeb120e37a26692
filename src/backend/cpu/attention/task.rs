//! What one worker attends to, and how that is cut into tiles.

use super::super::view::Rows;
use super::plan::{AttentionPlan, Item};

/// Keys of a tile: a multiple of every panel's width. What is done once for a tile (maxima across lanes, sums put down
/// and taken up, O carried over to new maxima) is little beside the products then, and K and V of a tile fit into the
/// second-level cache with head_dim 128 even where that has 256 KiB.
pub(super) const KEYS: usize = 192;

/// Rows that are taken through a tile of keys at a time, at most.
pub(super) const ROWS_MAX: usize = 32;

/// Where queries, keys and values lie. With the usual fused rows `q | k | v`, all three are views of one buffer.
#[derive(Clone, Copy)]
pub struct AttentionInput<'a> {
    /// `[query rows, q_heads * head_dim]`.
    pub q: Rows<'a>,
    /// `[key rows, kv_heads * head_dim]`.
    pub k: Rows<'a>,
    /// `[key rows, kv_heads * head_dim]`.
    pub v: Rows<'a>,
}

/// One worker's piece: some neighbouring queries of a segment under all query heads of one kv head.
///
/// Row `r` is query `r / group` under query head `kv_head * group + r % group`, so that rows that see equally many keys are
/// neighbours.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) plan: &'a AttentionPlan,
    pub(super) input: &'a AttentionInput<'a>,
    pub(super) item: &'a Item,
    pub(super) kv_head: usize,
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

    /// Keys that row `r` sees.
    #[inline(always)]
    pub(super) fn keys_of(&self, r: usize) -> usize {
        self.item.first_position + r / self.group() + 1
    }

    /// Keys that any row sees: the last one.
    pub(super) fn keys(&self) -> usize {
        self.item.first_position + self.item.rows.len()
    }

    /// Where row `r` lies among query rows, and its head's first column.
    #[inline(always)]
    pub(super) fn place(&self, r: usize) -> (usize, usize) {
        let (query, head) = (r / self.group(), self.kv_head * self.group() + r % self.group());
        (self.item.rows.start + query, head * self.head_dim())
    }

    /// The query of row `r`.
    #[inline(always)]
    pub(super) fn query(&self, r: usize) -> &'a [f32] {
        let (row, column) = self.place(r);
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

/// Some neighbouring rows and one tile of keys.
pub(super) struct Tile<'a> {
    /// The first row.
    pub(super) row: usize,
    pub(super) first_key: usize,
    /// How many keys of the tile each row sees: none of them more than the next.
    pub(super) seen: &'a [usize],
}

impl Tile<'_> {
    /// Keys that any of the rows sees.
    #[inline(always)]
    pub(super) fn keys(&self) -> usize {
        self.seen[self.seen.len() - 1]
    }
}
