//! Causal attention with grouped queries over paths of key spans, online softmax, f32.
//!
//! ```text
//! S = q · Kᵀ     m' = max(m, rowmax S)     P = exp(scale * (S - m'))     c = exp(scale * (m - m'))
//! l = l * c + rowsum P     O = O * c + P · V     out = O / l
//! ```
//!
//! Both matmuls run on the GEMM's microkernel, in f32 (`vector`) or on pairs of bfloat16 values
//! (`pairs`), or on a matrix unit's (`matrix`), over
//! packed panels of Kᵀ and of V that all query heads of a kv head share; the softmax between them
//! (`softmax`) is common to both.
//!
//! Keys are taken in tiles of 192 that are aligned to the absolute position in the sequence, first
//! to last. A tile's keys are gathered from their spans before anything is computed, the row
//! maximum does not depend on an order, and all sums run in the order of the keys. So a row's bits
//! depend on its own path alone: not on where the path is cut into spans, which query block the row
//! falls into, what else is in the batch, or the number of threads.
//!
//! With a sliding window a row sees the last keys of its path alone: tiles start with the first one
//! that any row of an item sees, and rows begin with a maximum below every score. A tile of which a
//! row sees nothing leaves it unchanged, so its bits depend on its own window alone.
//!
//! A key that a row does not see does not affect it: its score is masked before the exponential and
//! its value is not multiplied, or, in bfloat16 and by a matrix unit, multiplied by zero only where it
//! is finite, for zero times NaN is NaN.

mod matmuls;
mod matrix;
mod non_finite;
mod pairs;
mod plan;
mod softmax;
mod task;
#[cfg(test)]
mod tests;
mod vector;

use super::arithmetic::Math;
use super::blocking::{Blocked, Blocking};
use super::simd::{Bf16Isa, Bf16Kernel, Bf16Vector, Isa, Kernel, MatrixUnit, Vector};
use super::threads::{Scratch, Threads};
use super::view::{RowsMut, SharedRows};
use matmuls::Matmuls;
use matrix::Tiles;
use pairs::Pairs;
use plan::KeyRows;
use softmax::Running;
use task::{KEYS, ROWS_MAX, Task, Tile};
use vector::Panels;

pub use plan::{AttentionPlan, Heads, Queries};
pub use task::{AttentionInput, Scoring};

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
    scoring: Scoring,
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
    let first = |worker| plan.first_item(worker, threads.count()) * heads.kv_heads;
    threads.for_each_item_of(first, |index, scratch| {
        let (item, kv_head) = (&plan.items()[index / heads.kv_heads], index % heads.kv_heads);
        let task = Task { plan, input, item, kv_head, scoring: &scoring };
        match algorithm {
            Algorithm::Vectors => isa.run(ByVectors { task, out, scratch }),
            Algorithm::Pairs(bf16) => bf16.run(ByVectors { task, out, scratch }),
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
        Algorithm::Pairs(_) => pairs::scratch_floats(heads, rows, isa.lanes(), Blocking::of(isa).mr),
        Algorithm::Tiles { terms, .. } => matrix::scratch_floats(heads, rows, terms),
    }
}

/// The algorithm of attention in some [`Math`].
#[derive(Clone, Copy)]
enum Algorithm {
    /// In f32.
    Vectors,
    /// All operands rounded to bfloat16.
    Pairs(Bf16Isa),
    /// All operands in `terms` bfloat16 terms.
    Tiles { unit: MatrixUnit, terms: usize },
}

impl Algorithm {
    fn of(math: Math) -> Self {
        match math {
            Math::F32 => Self::Vectors,
            Math::Bf16(bf16) => Self::Pairs(bf16),
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
    // SAFETY: the caller's promises; tiles are attended in order, each gathered as far as the last
    // row sees.
    unsafe {
        matmuls.gather_queries(task);
        let first_tile = task.first_key() / KEYS * KEYS;
        let mut path = KeyRows::new(task.plan.spans(task.item));
        path.skip(first_tile);
        if task.scoring.window.is_some() {
            running.begin();
        }
        for first_key in (first_tile..task.keys()).step_by(KEYS) {
            let mut key_rows = [0; KEYS];
            let key_rows = &mut key_rows[..KEYS.min(task.keys() - first_key)];
            path.next_rows(key_rows);
            matmuls.gather_keys(task, first_key, key_rows);
            let rows = task.rows_that_see(first_key);
            for row in (rows.start / P::ALIGNMENT * P::ALIGNMENT..rows.end).step_by(P::ROWS) {
                let in_tile = |key: usize| KEYS.min(key.saturating_sub(first_key));
                let hidden: [usize; ROWS_MAX] = std::array::from_fn(|r| in_tile(task.first_key_of(row + r)));
                let seen: [usize; ROWS_MAX] = std::array::from_fn(|r| in_tile(task.keys_of(row + r)));
                let count = P::ROWS.min(task.rows() - row);
                let is_first = task.scoring.window.is_none() && first_key == 0;
                let tile = Tile { row, is_first, hidden: &hidden[..count], seen: &seen[..count] };
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

impl Bf16Kernel for ByVectors<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        let (pairs, running) = Pairs::new::<V>(&self.task, self.scratch);
        // SAFETY: as for f32.
        unsafe { attend::<V, _>(&self.task, pairs, running, self.out) };
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
