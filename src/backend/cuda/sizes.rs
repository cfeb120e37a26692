//! How much memory a rank takes, by shapes alone: what [`Cuda`] will allocate, known before there is a device.

use super::backend::Cuda;
use super::heads::HeadLayout;
use super::ops::RopeTables;
use super::tiles::{BLOCK_PAIRS_MIN, Tiles, Work};
use super::{Storage, gemm};
use crate::backend::tier::CudaTier;
use crate::backend::{Capacity, Footprint, Geometry, RankSums};

impl Cuda {
    /// What a rank of this geometry will hold, without a device: `weight_bytes` are its weights as they are stored.
    pub fn footprint(
        tier: CudaTier,
        geometry: &Geometry,
        capacity: &Capacity,
        weight_bytes: usize,
    ) -> Footprint {
        let (heads, storage) = (HeadLayout::new(geometry), Storage::of(tier));
        let rows = capacity.tokens + capacity.sequences;
        let row_bytes =
            geometry.hidden * storage.residual_bytes() + normed_width(geometry, &heads) * Storage::BYTES;
        let wide = wide_numbers(geometry, &heads, capacity) * Storage::BYTES;
        let logits = capacity.sequences * geometry.labels * size_of::<f32>();
        let tables = RopeTables::bytes(heads.padded, capacity.tokens);
        let sums = sums_bytes(geometry, capacity, storage) + gathered_bytes(geometry, capacity, storage);
        let facts = facts_bytes(&heads, capacity);
        let workspace = rows * row_bytes + wide + sums + facts + logits + tables + gemm::WORKSPACE_BYTES;
        // Padded heads take more; f32 weights take half.
        let weights = (weight_bytes * heads.padded).div_ceil(heads.head_dim);
        // The biases that Turing keeps in f32: two bytes more for a row of o or down.
        let biases = match storage {
            Storage::F16 => weights.div_ceil(heads.q_width().min(geometry.shard.ffn_local)),
            Storage::Bf16 => 0,
        };
        Footprint { weights: weights + biases, workspace }
    }
}

/// Bytes of sums over ranks that no activation has room for.
pub(super) fn sums_bytes(geometry: &Geometry, capacity: &Capacity, storage: Storage) -> usize {
    match (geometry.shard.ranks, storage) {
        (1, _) | (_, Storage::Bf16) => 0,
        (_, Storage::F16) => capacity.tokens.max(capacity.sequences) * geometry.hidden * size_of::<f32>(),
    }
}

/// Rows of what every rank has computed that are collected at a time: enough for links to be busy, and little memory beside
/// the activations.
pub(super) const GATHERED_ROWS: usize = 4096;

/// Bytes of what every rank has computed, where that is collected.
pub(super) fn gathered_bytes(geometry: &Geometry, capacity: &Capacity, storage: Storage) -> usize {
    match (geometry.shard.ranks, geometry.rank_sums) {
        (1, _) | (_, RankSums::Reduced) => 0,
        (ranks, RankSums::Ordered) => {
            let rows = capacity.tokens.max(capacity.sequences).min(GATHERED_ROWS);
            ranks * rows * geometry.hidden * storage.residual_bytes()
        }
    }
}

/// Numbers in the activation that holds q, k and v with their seam tiles, or gate and up of a chunk, or what attention's
/// output projection sums up over ranks.
pub(super) fn wide_numbers(geometry: &Geometry, heads: &HeadLayout, capacity: &Capacity) -> usize {
    let rows = capacity.tokens + Tiles::seam_rows_max(capacity.tokens, capacity.sequences);
    let sums = if geometry.shard.ranks > 1 { capacity.tokens * geometry.hidden } else { 0 };
    (rows * heads.qkv_width()).max(capacity.mlp_tokens * 2 * geometry.shard.ffn_local).max(sums)
}

pub(super) fn normed_width(geometry: &Geometry, heads: &HeadLayout) -> usize {
    geometry.hidden.max(heads.q_width())
}

/// Bytes that the facts of any pass can need.
pub(super) fn facts_bytes(heads: &HeadLayout, capacity: &Capacity) -> usize {
    let (tokens, sequences) = (capacity.tokens, capacity.sequences);
    let words = tokens
        + 2 * sequences
        + Tiles::tile_rows_max(tokens, sequences)
        + Tiles::seam_rows_max(tokens, sequences);
    // A last row's pairs start a block of their own.
    let group = heads.group();
    let work = Tiles::work_max(tokens, sequences, group) + sequences * group.div_ceil(BLOCK_PAIRS_MIN);
    words * size_of::<u32>() + work * size_of::<Work>()
}
