//! Causal attention with grouped queries over paths of key spans, online softmax, f32.
//!
//! ```text
//! S = q · Kᵀ     m' = max(m, rowmax S)     P = exp(scale * (S - m'))     c = exp(scale * (m - m'))
//! l = l * c + rowsum P     O = O * c + P · V     out = O / l
//! ```
//!
//! Both products are made of the register tile of matrix products (`vector`) or of a matrix unit's tiles (`matrix`), over
//! packed panels of Kᵀ and of V that all query heads of a kv head share; what lies between them (`softmax`) is the same.
//!
//! Keys are taken in tiles of 192 that are aligned to the absolute position in the sequence, first to last. A tile's
//! keys are gathered from their spans before anything is computed, the row maximum does not depend on an order, and all
//! sums run in the order of the keys. So a row's bits depend on its own path alone: not on where the path is cut into
//! spans, which query block the row falls into, what else is in the batch, or the number of threads.
//!
//! A key behind a row's own position never touches it: its score is cut off before the exponential and its value is not
//! multiplied, or, by a matrix unit, multiplied by zero only where it is finite, for zero times NaN is NaN.

use super::gemm::Math;
use super::matrix_unit::MatrixUnit;
use super::simd::{Bf16Kernel, Bf16Vector, Isa, Kernel, Vector};
use super::threads::{Scratch, Threads};
use super::view::{Rows, RowsMut, SharedRows};

mod matrix;
mod plan;
mod softmax;
#[cfg(test)]
mod tests;
mod vector;

use matrix::Tiles;
pub use plan::{AttentionPlan, Heads, Queries};
use plan::{Item, KeyRows};
use softmax::Running;
use vector::Panels;

/// Keys of a tile: a multiple of every panel's width. What is done once for a tile (maxima across lanes, sums put down
/// and taken up, O carried over to new maxima) is little beside the products then, and K and V of a tile fit into the
/// second-level cache with head_dim 128 even where that has 256 KiB.
const KEYS: usize = 192;

/// Rows that are taken through a tile of keys at a time, at most.
const ROWS_MAX: usize = 32;

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
    math: Math,
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
    let (out, way) = (out.share(), Way::of(math));
    // Within an item of the plan the heads are neighbours: they read the same rows.
    threads.for_each_item(plan.items().len() * heads.kv_heads, |index, scratch| {
        let (item, kv_head) = (&plan.items()[index / heads.kv_heads], index % heads.kv_heads);
        let piece = Piece { plan, input, item, kv_head };
        match way {
            Way::Vectors => isa.run(ByVectors { piece, out, scratch }),
            Way::Tiles { unit, parts: 1 } => unit.vectors().run(ByTiles::<1> { piece, out, scratch, unit }),
            Way::Tiles { unit, .. } => unit.vectors().run(ByTiles::<3> { piece, out, scratch, unit }),
        }
    });
}

/// Floats of scratch that each worker needs at most.
pub fn scratch_floats(isa: Isa, math: Math, heads: Heads) -> usize {
    let rows = heads.rows_max();
    match Way::of(math) {
        Way::Vectors => vector::scratch_floats(heads, rows, isa.shape()),
        Way::Tiles { parts, .. } => matrix::scratch_floats(heads, rows, parts),
    }
}

/// What [`Math`] comes to for attention.
#[derive(Clone, Copy)]
enum Way {
    Vectors,
    /// All operands in so many bfloat16 parts.
    Tiles {
        unit: MatrixUnit,
        parts: usize,
    },
}

impl Way {
    fn of(math: Math) -> Self {
        match math {
            // Pairs of bfloat16 values are for weights: rounding here would take longer than it saves.
            Math::F32 | Math::Bf16(_) => Self::Vectors,
            Math::F32Tiles(unit) => Self::Tiles { unit, parts: 3 },
            Math::Bf16Tiles(unit) => Self::Tiles { unit, parts: 1 },
        }
    }
}

/// One worker's piece: some neighbouring queries of a segment under all query heads of one kv head.
///
/// Row `r` is query `r / group` under query head `kv_head * group + r % group`, so that rows that see equally many keys are
/// neighbours.
#[derive(Clone, Copy)]
struct Piece<'a> {
    plan: &'a AttentionPlan,
    input: &'a AttentionInput<'a>,
    item: &'a Item,
    kv_head: usize,
}

impl<'a> Piece<'a> {
    fn head_dim(&self) -> usize {
        self.plan.heads().head_dim
    }

    /// Query heads of a kv head.
    fn group(&self) -> usize {
        self.plan.heads().q_heads / self.plan.heads().kv_heads
    }

    fn rows(&self) -> usize {
        self.item.rows.len() * self.group()
    }

    /// Keys that row `r` sees.
    #[inline(always)]
    fn keys_of(&self, r: usize) -> usize {
        self.item.first_position + r / self.group() + 1
    }

    /// Keys that any row sees: the last one.
    fn keys(&self) -> usize {
        self.item.first_position + self.item.rows.len()
    }

    /// Where row `r` lies among query rows, and its head's first column.
    #[inline(always)]
    fn place(&self, r: usize) -> (usize, usize) {
        let (query, head) = (r / self.group(), self.kv_head * self.group() + r % self.group());
        (self.item.rows.start + query, head * self.head_dim())
    }

    /// The query of row `r`.
    #[inline(always)]
    fn query(&self, r: usize) -> &'a [f32] {
        let (row, column) = self.place(r);
        &self.input.q.row(row)[column..][..self.head_dim()]
    }

    /// The key in key row `row`.
    #[inline(always)]
    fn key(&self, row: usize) -> &'a [f32] {
        &self.input.k.row(row)[self.kv_head * self.head_dim()..][..self.head_dim()]
    }

    /// The value in key row `row`.
    #[inline(always)]
    fn value(&self, row: usize) -> &'a [f32] {
        &self.input.v.row(row)[self.kv_head * self.head_dim()..][..self.head_dim()]
    }
}

/// Some neighbouring rows and one tile of keys.
struct Tile<'a> {
    /// The first row.
    row: usize,
    first_key: usize,
    /// How many keys of the tile each row sees: none of them more than the next.
    seen: &'a [usize],
}

impl Tile<'_> {
    /// Keys that any of the rows sees.
    #[inline(always)]
    fn keys(&self) -> usize {
        self.seen[self.seen.len() - 1]
    }
}

/// The two products of attention, with what they read gathered in a worker's scratch.
///
/// # Safety
///
/// Of all unsafe methods: the CPU has the instructions of `V`. For `score`, `put_probabilities` and `add_values`, queries have
/// been gathered, and the tile's keys as far as any row sees; they are called in this order, with the same tile.
trait Products<V: Vector> {
    /// Rows of a tile at most.
    const ROWS: usize;
    /// Rows at which a tile begins are multiples of this.
    const ALIGNMENT: usize;

    /// Takes over the queries of all rows.
    unsafe fn gather_queries(&mut self, piece: &Piece);

    /// Takes over a tile's keys, transposed, and its values.
    unsafe fn gather_keys(&mut self, piece: &Piece, first_key: usize, key_rows: &[usize]);

    /// S of the tile's rows and of at least all keys that they see.
    unsafe fn score(&mut self, tile: &Tile);

    /// `[ROWS, KEYS]`, of which [`score`](Self::score) wrote S; what no row sees may hold anything.
    fn scores(&mut self) -> &mut [f32];

    /// Takes over P of row `r` of the tile for as many keys from `key` on as two vectors hold: zeros where not all are seen.
    unsafe fn put_probabilities(&mut self, r: usize, key: usize, p: [V; 2]);

    /// Adds P · V to `o`, the outputs `[rows, o_stride]` of all rows; those of the first tile of keys hold anything before.
    unsafe fn add_values(&mut self, tile: &Tile, o: &mut [f32], o_stride: usize);

    /// What is left to do to the outputs behind the last tile.
    fn finish(&self, _piece: &Piece, _o: &mut [f32], _o_stride: usize) {}
}

/// Attends with `products` and writes the rows out.
///
/// # Safety
///
/// The CPU has the instructions of `V`, and nobody else writes the piece's rows and heads of `out`.
#[inline(always)]
unsafe fn attend<V: Vector, P: Products<V>>(
    piece: &Piece,
    mut products: P,
    mut running: Running,
    out: SharedRows,
) {
    let first_position = piece.item.first_position;
    // SAFETY: the caller's promises; tiles are attended in order, each gathered as far as the last row sees.
    unsafe {
        products.gather_queries(piece);
        let mut path = KeyRows::new(piece.plan.spans(piece.item));
        for first_key in (0..piece.keys()).step_by(KEYS) {
            let mut key_rows = [0; KEYS];
            let key_rows = &mut key_rows[..KEYS.min(piece.keys() - first_key)];
            path.next_rows(key_rows);
            products.gather_keys(piece, first_key, key_rows);
            // Row r sees a key of this tile when first_position + r / group >= first_key.
            let first_row = first_key.saturating_sub(first_position) * piece.group();
            for row in (first_row / P::ALIGNMENT * P::ALIGNMENT..piece.rows()).step_by(P::ROWS) {
                let seen: [usize; ROWS_MAX] =
                    std::array::from_fn(|r| KEYS.min(piece.keys_of(row + r).saturating_sub(first_key)));
                let tile = Tile { row, first_key, seen: &seen[..P::ROWS.min(piece.rows() - row)] };
                products.score(&tile);
                running.softmax::<V, P>(&mut products, &tile);
                products.add_values(&tile, running.o, running.o_stride);
            }
        }
        products.finish(piece, running.o, running.o_stride);
        running.store::<V>(piece, out);
    }
}

/// A piece to be attended to with vector instructions.
struct ByVectors<'a, 'b> {
    piece: Piece<'a>,
    out: SharedRows<'a>,
    scratch: &'b mut Scratch,
}

impl Kernel for ByVectors<'_, '_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller vouches for the instructions. Items have disjoint query rows (`AttentionPlan::new` checks the
        // segments) or different heads, so no other worker writes these parts of `out`.
        unsafe {
            if V::PANEL_VECTORS == 3 {
                let (panels, running) = Panels::<3>::new::<V>(&self.piece, self.scratch);
                attend::<V, _>(&self.piece, panels, running, self.out);
            } else {
                let (panels, running) = Panels::<2>::new::<V>(&self.piece, self.scratch);
                attend::<V, _>(&self.piece, panels, running, self.out);
            }
        }
    }
}

/// A piece to be attended to with a matrix unit, all operands in `PARTS` parts.
struct ByTiles<'a, 'b, const PARTS: usize> {
    piece: Piece<'a>,
    out: SharedRows<'a>,
    scratch: &'b mut Scratch,
    unit: MatrixUnit,
}

impl<const PARTS: usize> Bf16Kernel for ByTiles<'_, '_, PARTS> {
    #[inline(always)]
    unsafe fn run<V: Bf16Vector>(self) {
        self.unit.begin();
        let (tiles, running) = Tiles::<PARTS>::new(self.unit, &self.piece, self.scratch);
        // SAFETY: as for vectors; the unit has begun.
        unsafe { attend::<V, _>(&self.piece, tiles, running, self.out) };
        self.unit.end();
    }
}
