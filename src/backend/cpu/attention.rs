//! Causal attention with grouped queries over paths of key spans, online softmax, f32.
//!
//! ```text
//! S = scale * q · Kᵀ     m' = max(m, rowmax S)     P = exp(S - m')
//! l = l * exp(m - m') + rowsum P     O = O * exp(m - m') + P · V     out = O / l
//! ```
//!
//! Both products are made of the register tile of matrix products (`tile`), over packed panels of Kᵀ and of V
//! that all query heads of a kv head share.
//!
//! Keys are taken in tiles of 192 that are aligned to the absolute position in the sequence, first to last. A tile's
//! keys are gathered from their spans before anything is computed, the row maximum does not depend on an order, and all
//! sums run in the order of the keys. So a row's bits depend on its own path alone: not on where the path is cut into
//! spans, which query block the row falls into, what else is in the batch, or the number of threads.
//!
//! A key behind a row's own position never touches it: its score is cut off before the exponential and its value is not
//! multiplied, not even by zero, for zero times NaN is NaN.

use super::simd::{Isa, Kernel, Vector};
use super::threads::{Scratch, Threads};
use super::view::{Rows, RowsMut, SharedRows};

mod plan;
#[cfg(test)]
mod tests;
mod work;

pub use plan::{AttentionPlan, Heads, Queries};
use plan::{Item, KeyRows};
use work::{Sizes, Work};

/// Keys of a tile: a multiple of every panel's width. What is done once for a tile (maxima across lanes, sums put down
/// and taken up, O carried over to new maxima) is little beside the products then, and K and V of a tile fit into the
/// second-level cache with head_dim 128 even where that has 256 KiB.
const KEYS: usize = 192;

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

/// Attends as `plan` says; `out`, `[query rows, q_heads * head_dim]`, is written in the rows of the plan's segments.
///
/// # Panics
///
/// When the views are narrower than the plan's heads or have fewer rows than the plan names.
pub fn attention(
    isa: Isa,
    threads: &Threads,
    plan: &AttentionPlan,
    input: &AttentionInput,
    mut out: RowsMut,
) {
    let heads = plan.heads();
    let (q_width, kv_width) = (heads.q_heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    assert!(input.q.width() >= q_width && out.width() >= q_width, "fewer columns than {heads:?}");
    assert!(input.k.width() >= kv_width && input.v.width() >= kv_width, "fewer columns than {heads:?}");
    assert!(
        plan.query_rows_end() <= input.q.rows().min(out.rows()),
        "the plan names query rows that are not there"
    );
    assert!(
        plan.key_rows_end() <= input.k.rows().min(input.v.rows()),
        "the plan names key rows that are not there"
    );
    let out = out.share();
    // Within an item of the plan the heads are neighbours: they read the same rows.
    threads.for_each_item(plan.items().len() * heads.kv_heads, |index, scratch| {
        let (item, kv_head) = (plan.items()[index / heads.kv_heads], index % heads.kv_heads);
        isa.run(Block { plan, input, out, item, kv_head, scratch });
    });
}

/// Floats of scratch that each worker needs at most.
pub fn scratch_floats(isa: Isa, heads: Heads) -> usize {
    Sizes::new(heads, heads.rows_max(), isa.shape()).total()
}

/// One worker's piece: some neighbouring queries of a segment, all query heads of one kv head.
struct Block<'a, 'b> {
    plan: &'a AttentionPlan,
    input: &'a AttentionInput<'a>,
    out: SharedRows<'a>,
    item: Item,
    kv_head: usize,
    scratch: &'b mut Scratch,
}

impl Kernel for Block<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            if V::PANEL_VECTORS == 3 {
                self.attend::<V, 3>();
            } else {
                self.attend::<V, 2>();
            }
        }
    }
}

impl Block<'_, '_> {
    /// All of the piece, with panels of `VECTORS` vectors of keys.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn attend<V: Vector, const VECTORS: usize>(self) {
        let (rows, first_position) = (self.item.rows, self.item.first_position);
        let mut work = Work::new::<V>(self.plan.heads(), rows.len(), first_position, self.scratch);
        // SAFETY: the caller vouches for the instructions. Items have disjoint query rows (`AttentionPlan::new` checks
        // the segments) or different heads, so no other worker writes these parts of `out`. Tiles are attended in order,
        // each gathered as far as the last row sees.
        unsafe {
            work.gather_queries::<V>(&self.input.q, rows.start, self.kv_head);
            let keys = first_position + rows.len();
            let mut path = KeyRows::new(self.plan.spans(&self.item));
            for first_key in (0..keys).step_by(KEYS) {
                let mut key_rows = [0; KEYS];
                let key_rows = &mut key_rows[..KEYS.min(keys - first_key)];
                path.next_rows(key_rows);
                work.gather_keys::<V, VECTORS>(self.input, key_rows, self.kv_head);
                work.attend_tile::<V, VECTORS>(first_key);
            }
            work.store::<V>(self.out, rows.start, self.kv_head);
        }
    }
}
