//! One worker's task of attention, and its tiles.

use super::super::view::Rows;
use super::plan::{AttentionPlan, Item};

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

    /// Number of keys that row `r` sees.
    #[inline(always)]
    pub(super) fn keys_of(&self, r: usize) -> usize {
        self.item.first_position + r / self.group() + 1
    }

    /// Number of keys that any row sees: as many as the last one.
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
    pub(super) first_key: usize,
    /// Number of keys of the tile that each row sees, in ascending order.
    pub(super) seen: &'a [usize],
}

impl Tile<'_> {
    /// Number of keys that any of the rows sees.
    #[inline(always)]
    pub(super) fn keys(&self) -> usize {
        self.seen[self.seen.len() - 1]
    }
}
