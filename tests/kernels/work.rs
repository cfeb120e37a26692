//! The work of attention on tensor cores, held to the least that is needed: matmul instructions of
//! warps, passes of shared memory's banks, sectors.
//!
//! A warp multiplies whole steps: 16 of its rows with 16 keys, over as many keys as the last of its
//! rows sees; on Hopper's tensor cores all rows of a block multiply whole tiles of 128 keys. Only these
//! roundings go beyond the causal minimum, so the count follows from the work list alone.

use std::slice;

use kudos::Sharing;
use kudos::internals::backend::cuda::format::ActivationFormat;
use kudos::internals::backend::cuda::gemm::Share;
use kudos::internals::backend::cuda::kernels::AttentionKernel;
use kudos::internals::backend::cuda::ops::{Attention, Heads};
use kudos::internals::backend::cuda::tiles::{TILE_KEYS, Tiles, WorkItem};
use kudos::internals::batch::Packed;

use crate::Gpu;
use crate::attention::{heads, pack, width};
use crate::launches::{Counters, Counts};
use crate::least::LANES;
use crate::numbers::{tables, upload_raw};

/// A test of one attention kernel on a GPU that counts.
pub(crate) type Test = (&'static str, fn(&Gpu, &'static AttentionKernel, Counters));

pub(crate) const TESTS: &[Test] = &[
    ("multiplies_whole_steps_and_no_more", multiplies_whole_steps_and_no_more),
    ("moves_each_sector_once_and_meets_no_bank_twice", moves_each_sector_once_and_meets_no_bank_twice),
];

/// Rows, and keys, of a step.
const STEP: usize = 16;

/// A conversation of so many tokens, or several.
fn conversations(lengths: &[u32]) -> Packed {
    let sequences: Vec<Vec<u32>> =
        lengths.iter().map(|&len| (0..len).map(|at| 10_000 * len + at).collect()).collect();
    pack(&sequences, Sharing::Prefixes)
}

fn tiles(kernel: &AttentionKernel, heads: Heads, packed: &Packed) -> Tiles {
    let (rows, group) = (packed.tokens.len(), heads.q_heads / heads.kv_heads);
    Tiles::new(packed, slice::from_ref(&(0..rows)), group, kernel.tile_needs(group), rows)
}

/// The counts of attention of these conversations.
fn count(
    gpu: &Gpu,
    kernel: &'static AttentionKernel,
    counters: Counters,
    heads: Heads,
    packed: &Packed,
) -> Counts {
    let ops = gpu.ops_with(kernel);
    let tokens = packed.tokens.len();
    let tiles = tiles(kernel, heads, packed);
    let seam_rows = tiles.seam_sources.len();
    assert!(seam_rows == 0 || kernel.boxes, "nothing is shared here, and only whole tiles are copied");
    let qkv = upload_raw(&ops, &vec![0_u16; (tokens + seam_rows) * width(heads)]);
    let out_bytes = tokens * heads.q_heads * heads.head_dim * gpu.format.bytes();
    let mut out = ops.context().allocate(out_bytes).unwrap();
    let (tables, work) = tables(&ops, |tables| {
        let tile_rows = tables.tile_rows(&tiles.tile_rows);
        tables.work_list(&tiles.all, &tile_rows, heads.q_heads / heads.kv_heads).unwrap()
    });
    let (qkv, out, tables, work) = (qkv.all(), &mut out, &tables, &work);
    let share = Share::Whole;
    let args = Attention { qkv, out, tables, work, share, heads, scale: 1.0, window: None, cap: None };
    counters.of(&ops, kernel.name, || ops.attention(args).unwrap())
}

/// The flops of one matmul instruction of the kernel.
fn mma_flops(kernel: &AttentionKernel) -> u64 {
    match kernel.format {
        ActivationFormat::F16 => 2 * 16 * 8 * 8,
        ActivationFormat::Bf16 => 2 * 16 * 8 * 16,
    }
}

/// The flops of the kernel's matmuls, Q K^T and P V, in whole steps.
fn flops_of_steps(kernel: &AttentionKernel, heads: Heads, work: &[WorkItem]) -> u64 {
    let group = heads.q_heads / heads.kv_heads;
    let warp_rows = kernel.block_rows / (kernel.threads / LANES);
    let (step_rows, step_keys) =
        if is_of_warpgroups(kernel) { (kernel.block_rows, 2 * kernel.tile_keys) } else { (warp_rows, STEP) };
    let mut products = 0;
    for work in work {
        let [position, first_head, pairs] =
            [work.position, work.first_head, work.pairs].map(|word| word as usize);
        for first in (0..pairs).step_by(step_rows) {
            let last = first.saturating_add(step_rows).min(pairs) - 1;
            let keys = position + (first_head + last) / group + 1;
            products += keys.next_multiple_of(step_keys) * step_rows;
        }
    }
    (heads.kv_heads * products * 4 * kernel.head_dim) as u64
}

/// Whether its matmuls are those of warpgroups.
pub(crate) fn is_of_warpgroups(kernel: &AttentionKernel) -> bool {
    kernel.stem.starts_with("attention_sm90a")
}

/// The fewest flops: each row with the keys that it sees.
fn flops_least(heads: Heads, packed: &Packed) -> u64 {
    let keys: u64 = packed.positions.iter().map(|&position| u64::from(position) + 1).sum();
    4 * (heads.q_heads * heads.head_dim) as u64 * keys
}

fn multiplies_whole_steps_and_no_more(gpu: &Gpu, kernel: &'static AttentionKernel, counters: Counters) {
    let widest = kernel.head_dim;
    for (heads, lengths) in [
        (heads(8, 1, widest), vec![300, 1, 65]),
        (heads(3, 1, widest), vec![129]),
        (heads(2, 2, widest), vec![200, 64]),
        (heads(7, 1, widest / 2), vec![33, 2]),
    ] {
        let packed = conversations(&lengths);
        let counts = count(gpu, kernel, counters, heads, &packed);
        let expected = flops_of_steps(kernel, heads, &tiles(kernel, heads, &packed).all);
        assert_eq!(counts.mma * mma_flops(kernel), expected, "{heads:?}, {lengths:?}");
    }
}

/// Rows of which keys and values are read, where nothing is shared.
fn kv_rows(kernel: &AttentionKernel, packed: &Packed) -> usize {
    let rows = packed.segments.iter().map(|segment| segment.rows.len());
    rows.map(|rows| if kernel.boxes { rows.next_multiple_of(TILE_KEYS) } else { rows }).sum()
}

/// Sectors that are read beside q, k and v: those of the tile table and, behind it, of the work
/// list.
fn table_sectors(tiles: &Tiles) -> usize {
    (size_of_val(&tiles.tile_rows[..]) + size_of_val(&tiles.all[..])).div_ceil(32)
}

fn moves_each_sector_once_and_meets_no_bank_twice(
    gpu: &Gpu,
    kernel: &'static AttentionKernel,
    counters: Counters,
) {
    for (heads, lengths) in [
        (heads(8, 1, kernel.head_dim), vec![300, 1, 65]),
        (heads(3, 1, kernel.head_dim), vec![129]),
        (heads(14, 2, kernel.head_dim - 16), vec![70, 2]),
    ] {
        let packed = conversations(&lengths);
        let tokens = packed.tokens.len();
        let counts = count(gpu, kernel, counters, heads, &packed);
        assert_eq!(counts.bank_conflicts, 0, "{heads:?}, {lengths:?}");
        let table = table_sectors(&tiles(kernel, heads, &packed));
        let kv_width = 2 * heads.kv_heads * heads.head_dim;
        let read = tokens * (width(heads) - kv_width) + kv_rows(kernel, &packed) * kv_width;
        let read = read * gpu.format.bytes() / 32 + table;
        let written = tokens * heads.q_heads * heads.head_dim * gpu.format.bytes() / 32;
        assert_eq!((counts.sectors_read, counts.sectors_written), (read as u64, written as u64), "{heads:?}");
    }
}

/// The work of a kernel for one key head of a model and its group, in a conversation of `tokens`.
pub(crate) struct Done {
    /// Bytes of distinct sectors for each token, tables aside.
    pub(crate) moved: u64,
    /// Bytes that threads request, for each token.
    pub(crate) requested: u64,
    /// The flops of its matmuls, in units of the causal minimum.
    pub(crate) over_least: f64,
    /// `over_least` for a conversation of 4,096 tokens, which is not run: it follows from the work
    /// list.
    pub(crate) over_least_4096: f64,
    /// Passes of shared memory's banks beyond the fewest.
    pub(crate) bank_conflicts: u64,
}

/// Counts a kernel at a model's shape, for the page of the kernels.
pub(crate) fn done(
    gpu: &Gpu,
    kernel: &'static AttentionKernel,
    counters: Counters,
    heads: Heads,
    tokens: u32,
) -> Done {
    let packed = conversations(&[tokens]);
    let counts = count(gpu, kernel, counters, heads, &packed);
    let table = 32 * table_sectors(&tiles(kernel, heads, &packed)) as u64;
    let over_least = |packed: &Packed, flops: u64| flops as f64 / flops_least(heads, packed) as f64;
    let long = conversations(&[4096]);
    let flops_long = flops_of_steps(kernel, heads, &tiles(kernel, heads, &long).all);
    Done {
        moved: (counts.bytes_moved() - table) / u64::from(tokens),
        requested: (counts.bytes_read + counts.bytes_written) / u64::from(tokens),
        over_least: over_least(&packed, counts.mma * mma_flops(kernel)),
        over_least_4096: over_least(&long, flops_long),
        bank_conflicts: counts.bank_conflicts,
    }
}
