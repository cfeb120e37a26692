//! The matmuls of attention by vector instructions: the GEMM's microkernel over panels of Kᵀ and of
//! V.

use super::super::accumulators::Start;
use super::super::blocking::Blocked;
use super::super::microkernel::{Bf16, Dot, F32, Operands, Strided, macrokernel};
use super::super::pack::pack_panel;
use super::super::simd::{Bf16Kernel, Bf16Vector, Kernel, Vector};
use super::super::threads::Scratch;
use super::matmuls::Matmuls;
use super::plan::Heads;
use super::softmax::Running;
use super::task::{KEYS, ROWS_MAX, Run, Task, Tile};

/// Vectors of a panel of V: head widths are multiples of 32 more often than of 48.
pub(super) const VALUE_VECTORS: usize = 2;

/// Floats of scratch that a worker needs for `rows` rows.
pub(super) fn scratch_floats(heads: Heads, rows: usize, lanes: usize, mr: usize) -> usize {
    ScratchSizes::new(heads.head_dim, rows, lanes, mr).total()
        + Running::floats(rows, heads.head_dim.next_multiple_of(lanes))
}

/// Floats of each buffer in a worker's scratch.
struct ScratchSizes {
    k: usize,
    v: usize,
    scores: usize,
    q: usize,
}

impl ScratchSizes {
    fn new(head_dim: usize, rows: usize, lanes: usize, mr: usize) -> Self {
        Self {
            k: KEYS * head_dim,
            v: KEYS * head_dim.next_multiple_of(VALUE_VECTORS * lanes),
            scores: mr * KEYS,
            q: rows * head_dim,
        }
    }

    fn total(&self) -> usize {
        self.k + self.v + self.scores + self.q
    }
}

/// A worker's scratch in use, with panels of `VECTORS` vectors of keys.
pub(super) struct Panels<'b, const VECTORS: usize> {
    head_dim: usize,
    /// Panels `[head_dim, keys of a panel]`.
    k: &'b mut [f32],
    /// Panels `[KEYS, dims of a panel]`.
    v: &'b mut [f32],
    /// `[mr, KEYS]`: scores, then probabilities.
    scores: &'b mut [f32],
    /// `[rows, head_dim]`.
    q: &'b mut [f32],
}

impl<'b, const VECTORS: usize> Panels<'b, VECTORS> {
    /// Divides `scratch` for `task`.
    #[inline(always)]
    pub(super) fn new<V: Blocked>(task: &Task, scratch: &'b mut Scratch) -> (Self, Running<'b>) {
        let (head_dim, rows) = (task.head_dim(), task.rows());
        let o_stride = head_dim.next_multiple_of(V::LANES);
        let sizes = ScratchSizes::new(head_dim, rows, V::LANES, V::BLOCKING.mr);
        // The tiles of K and V first: they begin at a cache line.
        let scratch = scratch.floats(sizes.total() + Running::floats(rows, o_stride));
        let (k, rest) = scratch.split_at_mut(sizes.k);
        let (v, rest) = rest.split_at_mut(sizes.v);
        let (scores, rest) = rest.split_at_mut(sizes.scores);
        let (q, rest) = rest.split_at_mut(sizes.q);
        (Self { head_dim, k, v, scores, q }, Running::new(task, rows, o_stride, rest))
    }
}

impl<V: Blocked, const VECTORS: usize> Matmuls<V> for Panels<'_, VECTORS> {
    const ROWS: usize = V::BLOCKING.mr;
    const ALIGNMENT: usize = 1;

    #[inline(always)]
    unsafe fn gather_queries(&mut self, task: &Task) {
        for (r, to) in self.q.chunks_exact_mut(self.head_dim).enumerate() {
            to.copy_from_slice(task.query(r));
        }
    }

    #[inline(always)]
    unsafe fn gather_keys(&mut self, task: &Task, _first_key: usize, key_rows: &[usize]) {
        let (width, head_dim) = (VECTORS * V::LANES, self.head_dim);
        for start in (0..key_rows.len()).step_by(width) {
            let row = |r: usize| task.key(key_rows[start + r]).as_ptr().cast();
            let panel = self.k[start * head_dim..][..width * head_dim].as_mut_ptr();
            let rows = width.min(key_rows.len() - start);
            // SAFETY: a key has head_dim floats; the panel has width * head_dim.
            unsafe { pack_panel::<V>(row, rows, 4 * head_dim, 0, width, panel) };
        }
        let width = VALUE_VECTORS * V::LANES;
        for (key, row) in key_rows.iter().enumerate() {
            let from = task.value(*row);
            for start in (0..head_dim).step_by(V::LANES) {
                let at = start / width * width * KEYS + key * width + start % width;
                let to = self.v[at..][..V::LANES].as_mut_ptr();
                // SAFETY: what is left of head_dim from `start` on is read; `to` has LANES floats.
                unsafe {
                    V::load_first(from.as_ptr().add(start), V::LANES.min(head_dim - start)).store(to);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn score(&mut self, tile: &Tile) {
        const { assert!(V::BLOCKING.mr <= ROWS_MAX) };
        let columns = Columns::<VECTORS>::of_scores::<V>(tile, self.q, self.k, self.head_dim, self.scores);
        // SAFETY: `q` has these rows, `k` the panels of KEYS keys, `scores` `mr` rows of KEYS.
        unsafe { V::run_apart(columns) };
    }

    #[inline(always)]
    fn scores(&mut self) -> &mut [f32] {
        self.scores
    }

    #[inline(always)]
    unsafe fn store_probabilities(&mut self, r: usize, key: usize, p: [V; 2]) -> [V; 2] {
        let to = self.scores[r * KEYS + key..][..2 * V::LANES].as_mut_ptr();
        // SAFETY: two vectors.
        unsafe {
            p[0].store(to);
            p[1].store(to.add(V::LANES));
        }
        p
    }

    #[inline(always)]
    unsafe fn add_values(&mut self, tile: &Tile, o: &mut [f32], o_stride: usize) {
        for run in tile.runs(1) {
            let columns = Columns::of_values::<V>(tile, run, 1, self.scores, self.v, o, o_stride);
            // SAFETY: `scores` has these rows and keys; `v` the panels of all dims with KEYS keys,
            // gathered as far as the last row sees; `o` rows of padded width, which are written: in
            // their first tile, where each sees key 0, or before all tiles.
            unsafe { V::run_apart(columns) };
        }
    }
}

/// The first `columns` columns, rounded up to whole vectors, of a matmul with panels of `VECTORS`
/// vectors.
///
/// Its maker vouches for what [`macrokernel`] asks, for the panels that have any of these columns.
pub(super) struct Columns<const VECTORS: usize> {
    x: Strided,
    operands: Operands,
    rows: usize,
    columns: usize,
}

impl<const VECTORS: usize> Columns<VECTORS> {
    /// S of a tile: queries `[rows, steps]` times panels of keys `[steps, keys of a panel]`, into
    /// `[rows of the tile, KEYS]`.
    #[inline(always)]
    pub(super) fn of_scores<V: Vector>(
        tile: &Tile,
        q: &[f32],
        k: &[f32],
        steps: usize,
        scores: &mut [f32],
    ) -> Self {
        let (width, rows) = (VECTORS * V::LANES, tile.seen.len());
        let x = Strided { first: q[tile.row * steps..][..rows * steps].as_ptr(), stride: steps };
        let operands = Operands {
            steps,
            panel: k.as_ptr(),
            panel_width: width,
            panel_stride: width * steps,
            acc: scores.as_mut_ptr(),
            acc_stride: KEYS,
            start: Start::Zero,
        };
        Self { x, operands, rows, columns: tile.keys() }
    }
}

impl Columns<VALUE_VECTORS> {
    /// P · V of a run: probabilities `[rows of the tile, KEYS]` times panels of values `[KEYS, dims of a
    /// panel]`, both in steps of `elements` keys, added to the outputs `[rows of the task, o_stride]`.
    #[inline(always)]
    pub(super) fn of_values<V: Vector>(
        tile: &Tile,
        Run { rows, keys }: Run,
        elements: usize,
        p: &[f32],
        v: &[f32],
        o: &mut [f32],
        o_stride: usize,
    ) -> Self {
        let width = VALUE_VECTORS * V::LANES;
        let (first_step, steps) = (keys.start / elements, KEYS / elements);
        let x = Strided { first: p[rows.start * steps + first_step..].as_ptr(), stride: steps };
        let operands = Operands {
            steps: keys.len() / elements,
            panel: v[first_step * width..].as_ptr(),
            panel_width: width,
            panel_stride: steps * width,
            acc: o[(tile.row + rows.start) * o_stride..][..rows.len() * o_stride].as_mut_ptr(),
            acc_stride: o_stride,
            start: if tile.is_first && keys.start == 0 { Start::Zero } else { Start::Reload },
        };
        Self { x, operands, rows: rows.len(), columns: o_stride }
    }
}

impl<const VECTORS: usize> Kernel for Columns<VECTORS> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the maker's promises.
        unsafe { self.multiply::<V, F32>() }
    }
}

impl<const VECTORS: usize> Bf16Kernel for Columns<VECTORS> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        // SAFETY: the maker's promises.
        unsafe { self.multiply::<V, Bf16>() }
    }
}

impl<const VECTORS: usize> Columns<VECTORS> {
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn multiply<V: Blocked, D: Dot<V>>(self) {
        let Self { x, operands, rows, columns } = self;
        let width = VECTORS * V::LANES;
        let panels = columns / width;
        let last = operands.skip_panels(panels, width);
        // SAFETY: the maker's promises; of the last panel only vectors that have a column are
        // multiplied.
        unsafe {
            macrokernel::<V, D, VECTORS>(x, operands, rows, panels);
            match (columns % width).div_ceil(V::LANES) {
                0 => {}
                1 => macrokernel::<V, D, 1>(x, last, rows, 1),
                2 => macrokernel::<V, D, 2>(x, last, rows, 1),
                _ => macrokernel::<V, D, VECTORS>(x, last, rows, 1),
            }
        }
    }
}
