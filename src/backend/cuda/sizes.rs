//! Sizes of what a rank allocates and of how its passes are cut, by shapes alone.

use std::ops::Range;

use super::format::ActivationFormat;
use super::heads::HeadLayout;
use super::tiles::{BLOCK_PAIRS_MIN, TilesMax, WorkItem};
use crate::backend::{AllReduce, Capacity, Geometry, Overlap};

/// Pieces that are gathered at a time: the norm adds one while the next arrives.
pub(super) const PIECES_GATHERED: usize = 2;

/// Rows of a piece, at most: enough to keep links busy, and little memory beside the activations.
const PIECE_ROWS_MAX: usize = 4096;

/// All parts but the last have whole multiples of this number of rows: those of a matmul's tile.
const PART_ROWS_STEP: usize = 128;

/// The fewest rows of a pass of several ranks that is cut into parts. Of two parts of 1,024 rows,
/// matmuls with the 70B's gate and up, o and down on two ranks fill 97 % of whole waves of 132
/// blocks of 128 x 256 elements, as those of all rows do (counted); those with its qkv 61 % instead
/// of 81 %, a tenth of the work.
const OVERLAP_ROWS_MIN: usize = 2048;

/// Bytes that slices of a piece save a rank's link, at least: of smaller pieces every rank gathers
/// all parts. Slices take a further collective and a kernel: NCCL takes some 40 to 100 microseconds
/// of the host for one that does not block, in which 15 to 37 MB travel at 370 GB/s, as over NVLink
/// (calculated from published figures, not measured).
const SAVED_BYTES_MIN: usize = 16 << 20;

/// The way in which a piece's parts are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Summation {
    /// Every rank gathers all parts, and the norm adds them.
    Gathered,
    /// Every rank receives all parts of its slice and adds them to the residual stream, and the
    /// ranks gather the sums.
    BySlices,
    /// NCCL adds.
    Nccl,
}

/// Sizes of all-reduces over several ranks.
pub(super) struct AllReduceSizes {
    /// Rows of a piece, which one collective reduces.
    pub(super) piece_rows: usize,
    /// The most pieces that wait for their norms at a time.
    pub(super) pieces: usize,
    /// Bytes of a rank's own part of all rows.
    pub(super) partial_bytes: usize,
    /// Bytes of the parts of a piece that a rank receives; none where NCCL adds.
    pub(super) gathered_bytes: usize,
    /// Rows of a piece up to which all parts are gathered, where the parts of more are added by
    /// slices.
    gathered_rows_max: usize,
    /// The way in which many rows are added.
    of_many_rows: Summation,
}

impl AllReduceSizes {
    pub(super) fn new(geometry: &Geometry, capacity: &Capacity, format: ActivationFormat) -> Self {
        let rows = capacity.tokens.max(capacity.sequences);
        let piece_rows = rows.div_ceil(2).next_multiple_of(PART_ROWS_STEP).min(PIECE_ROWS_MAX);
        let row_bytes = geometry.hidden * format.residual_bytes();
        let of_many_rows = match geometry.all_reduce {
            AllReduce::Nccl => Summation::Nccl,
            AllReduce::Ordered if geometry.adds_by_slices() => Summation::BySlices,
            AllReduce::Ordered => Summation::Gathered,
        };
        let ranks = geometry.shard.ranks;
        let parts_bytes = ranks * row_bytes;
        // Of n - 1 parts of a row, 2 (n - 1) / n are left: (n - 1) (n - 2) / n are saved.
        let saved = (row_bytes * (ranks - 1) * ranks.saturating_sub(2)).max(1);
        let gathered_rows_max = SAVED_BYTES_MIN * ranks / saved;
        let gathered_bytes = match of_many_rows {
            Summation::Nccl => 0,
            Summation::Gathered => piece_rows * parts_bytes,
            // The slices of a piece, or all of a small one.
            Summation::BySlices => {
                (piece_rows * row_bytes).max(piece_rows.min(gathered_rows_max) * parts_bytes)
            }
        };
        let partial_bytes = geometry.pending_rows(capacity) * row_bytes;
        let pieces = parts_max(geometry, capacity);
        Self { piece_rows, pieces, partial_bytes, gathered_bytes, gathered_rows_max, of_many_rows }
    }

    /// The way in which a piece of so many rows is added. Both ordered ways give the same bits.
    pub(super) fn summation(&self, rows: usize) -> Summation {
        match self.of_many_rows {
            Summation::BySlices if rows <= self.gathered_rows_max => Summation::Gathered,
            way => way,
        }
    }

    /// Bytes on the device; none where outputs of projections are added at once.
    pub(super) fn bytes(geometry: &Geometry, capacity: &Capacity, format: ActivationFormat) -> usize {
        let sizes = Self::new(geometry, capacity, format);
        if geometry.shard.ranks > 1 {
            sizes.partial_bytes + PIECES_GATHERED * sizes.gathered_bytes
        } else {
            sizes.partial_bytes
        }
    }
}

/// The fewest rows of a matmul that usually has an all-reduce beside it: those of a part.
pub(super) fn overlapped_rows_min(overlap: Overlap) -> usize {
    match overlap {
        Overlap::Auto => OVERLAP_ROWS_MIN / 2,
        Overlap::Always => 0,
        Overlap::Never => usize::MAX,
    }
}

/// The parts in which a pass goes through the layers: two or more of up to [`PIECE_ROWS_MAX`] rows
/// where all-reduces run beside computation, else one.
pub(super) fn parts(geometry: &Geometry, tokens: usize) -> Vec<Range<usize>> {
    let overlaps = match geometry.overlap {
        Overlap::Auto => tokens >= OVERLAP_ROWS_MIN,
        Overlap::Always => true,
        Overlap::Never => false,
    };
    let count = match geometry.shard.ranks > 1 && overlaps {
        true => tokens.div_ceil(PIECE_ROWS_MAX).max(2),
        false => 1,
    };
    let step = tokens.div_ceil(count).next_multiple_of(PART_ROWS_STEP);
    (0..tokens).step_by(step).map(|first| first..tokens.min(first + step)).collect()
}

/// The most parts of a pass, and pieces of its all-reduces.
fn parts_max(geometry: &Geometry, capacity: &Capacity) -> usize {
    let rows = capacity.tokens.max(capacity.sequences);
    if geometry.shard.ranks == 1 { 1 } else { rows.div_ceil(PIECE_ROWS_MAX).max(2) }
}

fn tiles_max(geometry: &Geometry, capacity: &Capacity, whole: bool) -> TilesMax {
    let Capacity { tokens, sequences, .. } = *capacity;
    TilesMax { tokens, sequences, parts: parts_max(geometry, capacity), whole }
}

/// Elements of the scratch activation, which holds q, k and v with their seam tiles, or gate and up
/// of a chunk. `whole`: whether attention reads all rows of every tile.
pub(super) fn scratch_elements(
    geometry: &Geometry,
    heads: &HeadLayout,
    capacity: &Capacity,
    whole: bool,
) -> usize {
    let rows = capacity.tokens + tiles_max(geometry, capacity, whole).seam_rows();
    (rows * heads.qkv_width()).max(capacity.mlp_tokens * 2 * geometry.shard.ffn_local)
}

pub(super) fn normed_width(geometry: &Geometry, heads: &HeadLayout) -> usize {
    geometry.hidden.max(heads.q_width())
}

/// The most bytes of a pass's tables. `whole`: see [`scratch_elements`].
pub(super) fn tables_bytes(
    geometry: &Geometry,
    heads: &HeadLayout,
    capacity: &Capacity,
    whole: bool,
) -> usize {
    let (tokens, sequences) = (capacity.tokens, capacity.sequences);
    let tiles = tiles_max(geometry, capacity, whole);
    let words = tokens + 2 * sequences + tiles.tile_rows() + tiles.seam_rows();
    // A last row's pairs start a block of their own.
    let group = heads.group();
    let work = tiles.work(group) + sequences * group.div_ceil(BLOCK_PAIRS_MIN);
    words * size_of::<u32>() + work * size_of::<WorkItem>()
}
