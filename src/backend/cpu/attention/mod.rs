//! Causal attention with grouped queries over paths of key spans, online softmax, f32.
//!
//! ```text
//! S = q · Kᵀ     m' = max(m, rowmax S)     P = exp(scale * (S - m'))     c = exp(scale * (m - m'))
//! l = l * c + rowsum P     O = O * c + P · V     out = O / l
//! ```
//!
//! Both matmuls run on the GEMM's microkernel (`vector`) or on a matrix unit's (`matrix`), over
//! packed panels of Kᵀ and of V that all query heads of a kv head share; the softmax between them
//! (`softmax`) is common to both.
//!
//! Keys are taken in tiles of 192 that are aligned to the absolute position in the sequence, first
//! to last. A tile's keys are gathered from their spans before anything is computed, the row
//! maximum does not depend on an order, and all sums run in the order of the keys. So a row's bits
//! depend on its own path alone: not on where the path is cut into spans, which query block the row
//! falls into, what else is in the batch, or the number of threads.
//!
//! A key behind a row's own position does not affect it: its score is masked before the exponential
//! and its value is not multiplied, or, by a matrix unit, multiplied by zero only where it is
//! finite, for zero times NaN is NaN.

mod matmuls;
mod matrix;
mod plan;
mod softmax;
mod task;
#[cfg(test)]
mod tests;
mod vector;

use super::arithmetic::Math;
use super::blocking::{Blocked, Blocking};
use super::simd::{Bf16Kernel, Bf16Vector, Isa, Kernel, MatrixUnit, Vector};
use super::threads::{Scratch, Threads};
use super::view::{RowsMut, SharedRows};
use matmuls::Matmuls;
use matrix::Tiles;
use plan::KeyRows;
use softmax::Running;
use task::{KEYS, ROWS_MAX, Task, Tile};
use vector::Panels;

pub use plan::{AttentionPlan, Heads, Queries};
pub use task::AttentionInput;

/// Computes the attention of `plan`; `out`, `[query rows, q_heads * head_dim]`, is written in the
/// rows of the plan's segments.
///
/// # Panics
///
/// When the views are narrower than the plan's heads or have fewer rows than the plan names.
pub fn attention(
    isa: Isa,
    threads: &Threads,
    plan: &AttentionPlan,
    input: &AttentionInput,
    math: Math,
    mut out: RowsMut,
) {
    let heads = plan.heads();
    let (q_width, kv_width) = (heads.q_heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    assert!(input.q.width() >= q_width && out.width() >= q_width, "fewer columns than {heads:?}");
    assert!(input.k.width() >= kv_width && input.v.width() >= kv_width, "fewer columns than {heads:?}");
    assert!(
        plan.query_rows_end() <= input.q.rows().min(out.rows()),
        "the plan names query rows after the last one"
    );
    assert!(
        plan.key_rows_end() <= input.k.rows().min(input.v.rows()),
        "the plan names key rows after the last one"
    );
    let (out, algorithm) = (out.share(), Algorithm::of(math));
    // Within an item of the plan the heads are neighbours: they read the same rows.
    threads.for_each_item(plan.items().len() * heads.kv_heads, |index, scratch| {
        let (item, kv_head) = (&plan.items()[index / heads.kv_heads], index % heads.kv_heads);
        let task = Task { plan, input, item, kv_head };
        match algorithm {
            Algorithm::Vectors => isa.run(ByVectors { task, out, scratch }),
            Algorithm::Tiles { unit, terms: 1 } => {
                unit.vectors().run(ByTiles::<1> { task, out, scratch, unit })
            }
            Algorithm::Tiles { unit, .. } => unit.vectors().run(ByTiles::<3> { task, out, scratch, unit }),
        }
    });
}

/// Floats of scratch that each worker needs at most.
pub fn scratch_floats(isa: Isa, math: Math, heads: Heads) -> usize {
    let rows = heads.rows_max();
    match Algorithm::of(math) {
        Algorithm::Vectors => vector::scratch_floats(heads, rows, isa.lanes(), Blocking::of(isa).mr),
        Algorithm::Tiles { terms, .. } => matrix::scratch_floats(heads, rows, terms),
    }
}

/// The algorithm of attention in some [`Math`].
#[derive(Clone, Copy)]
enum Algorithm {
    Vectors,
    /// All operands in `terms` bfloat16 terms.
    Tiles {
        unit: MatrixUnit,
        terms: usize,
    },
}

impl Algorithm {
    fn of(math: Math) -> Self {
        match math {
            // Pairs of bfloat16 values are for weights: rounding here would take longer than it
            // saves.
            Math::F32 | Math::Bf16(_) => Self::Vectors,
            Math::F32Tiles(unit) => Self::Tiles { unit, terms: 3 },
            Math::Bf16Tiles(unit) => Self::Tiles { unit, terms: 1 },
        }
    }
}

/// Computes the attention of a task with `matmuls` and writes its rows.
///
/// # Safety
///
/// The CPU has the instructions of `V`, and no other thread writes the task's rows and heads of
/// `out`.
#[inline(always)]
unsafe fn attend<V: Vector, P: Matmuls<V>>(
    task: &Task,
    mut matmuls: P,
    mut running: Running,
    out: SharedRows,
) {
    let first_position = task.item.first_position;
    // SAFETY: the caller's promises; tiles are attended in order, each gathered as far as the last
    // row sees.
    unsafe {
        matmuls.gather_queries(task);
        let mut path = KeyRows::new(task.plan.spans(task.item));
        for first_key in (0..task.keys()).step_by(KEYS) {
            let mut key_rows = [0; KEYS];
            let key_rows = &mut key_rows[..KEYS.min(task.keys() - first_key)];
            path.next_rows(key_rows);
            matmuls.gather_keys(task, first_key, key_rows);
            // Row r sees a key of this tile when first_position + r / group >= first_key.
            let first_row = first_key.saturating_sub(first_position) * task.group();
            for row in (first_row / P::ALIGNMENT * P::ALIGNMENT..task.rows()).step_by(P::ROWS) {
                let seen: [usize; ROWS_MAX] =
                    std::array::from_fn(|r| KEYS.min(task.keys_of(row + r).saturating_sub(first_key)));
                let tile = Tile { row, first_key, seen: &seen[..P::ROWS.min(task.rows() - row)] };
                matmuls.score(&tile);
                running.softmax::<V, P>(&mut matmuls, &tile);
                matmuls.add_values(&tile, running.o, running.o_stride);
            }
        }
        matmuls.finish(task, running.o, running.o_stride);
        running.store::<V>(task, out);
    }
}

/// A task, by vector instructions.
struct ByVectors<'a, 'b> {
    task: Task<'a>,
    out: SharedRows<'a>,
    scratch: &'b mut Scratch,
}

impl Kernel for ByVectors<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller vouches for the instructions. Items have disjoint query rows
        // (`AttentionPlan::new` checks the segments) or different heads, so no other worker writes
        // these parts of `out`.
        unsafe {
            if V::NR_VECTORS == 3 {
                let (panels, running) = Panels::<3>::new::<V>(&self.task, self.scratch);
                attend::<V, _>(&self.task, panels, running, self.out);
            } else {
                let (panels, running) = Panels::<2>::new::<V>(&self.task, self.scratch);
                attend::<V, _>(&self.task, panels, running, self.out);
            }
        }
    }
}

/// A task, by a matrix unit, all operands in `TERMS` bfloat16 terms.
struct ByTiles<'a, 'b, const TERMS: usize> {
    task: Task<'a>,
    out: SharedRows<'a>,
    scratch: &'b mut Scratch,
    unit: MatrixUnit,
}

impl<const TERMS: usize> Bf16Kernel for ByTiles<'_, '_, TERMS> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        self.unit.begin();
        let (tiles, running) = Tiles::<TERMS>::new(self.unit, &self.task, self.scratch);
        // SAFETY: as for vectors; the unit has begun.
        unsafe { attend::<V, _>(&self.task, tiles, running, self.out) };
        self.unit.end();
    }
}
