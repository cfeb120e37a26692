//! `attention_sm80`, `attention_sm75`, `attention_plain`: the one that was loaded; and `seam_tiles`

use std::f32::consts::LOG2_E;

use cudarc::driver::{DeviceRepr, PushKernelArg};

use super::{Needs, Ops, WIDE, WORD_BYTES};
use crate::backend::cuda::Storage;
use crate::backend::cuda::buffer::{DeviceBuffer, DeviceSlice};
use crate::backend::cuda::fault::OrFault;
use crate::backend::cuda::tiles::Work;
use crate::error::Result;

const SEAM_THREADS: usize = 256;

/// The heads of one rank, which lie side by side in a row: queries, then keys, then values.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub q_heads: usize,
    /// Key heads, and value heads; they divide the query heads.
    pub kv_heads: usize,
    /// Width of each.
    pub head_dim: usize,
}

impl Heads {
    fn row_width(self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Causal grouped-query attention for the queries that `work` names.
#[derive(Debug)]
pub struct Attention<'a> {
    /// `[rows, row_width]`: everything that work and tiles point at, seam tiles included.
    pub qkv: DeviceSlice<'a>,
    /// `[out_rows, q_heads * head_dim]`
    pub out: &'a mut DeviceBuffer,
    /// `[count]` [`Work`], made by [`tiles`](crate::backend::cuda::tiles) for these heads and the kernel's blocks.
    pub work: DeviceSlice<'a>,
    /// u32: the paths' tiles.
    pub tile_rows: DeviceSlice<'a>,
    /// How many pieces of work.
    pub count: usize,
    /// Rows of `qkv` that are pointed at.
    pub rows: usize,
    /// Rows of `out` that are written.
    pub out_rows: usize,
    /// How `qkv` is divided into heads.
    pub heads: Heads,
    /// What q . k is multiplied by: the model's, since a head may be padded with zeros to a width that kernels can do.
    pub scale: f32,
}

/// `qkv[first_row + i]` gets the keys and values of row `sources[i]`, or zeros, for `i < count`.
#[derive(Debug)]
pub struct SeamTiles<'a> {
    /// `[first_row + count, row_width]`
    pub qkv: &'a mut DeviceBuffer,
    /// `[count]` u32: rows below `first_row`, or [`NO_ROW`](crate::backend::cuda::tiles::NO_ROW) for zeros.
    pub sources: DeviceSlice<'a>,
    /// The row of the first seam tile's first key.
    pub first_row: usize,
    /// Rows of all seam tiles; none is nothing to do.
    pub count: usize,
    /// How `qkv` is divided into heads.
    pub heads: Heads,
}

/// `struct Shape` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Shape {
    row_stride: i32,
    head_dim: i32,
    q_heads: i32,
    kv_heads: i32,
    scale_log2: f32,
}

// SAFETY: plain numbers laid out as C does, field by field those of the kernel's struct.
unsafe impl DeviceRepr for Shape {}

impl Ops {
    /// Launches the attention kernel.
    pub fn attention(&self, args: Attention<'_>) -> Result<()> {
        let Attention { qkv, out, work, tile_rows, count, rows, out_rows, heads, scale } = args;
        let kernel = self.kernels.attention_kernel;
        let needs = Needs(kernel.entry);
        needs.wide("head_dim", heads.head_dim)?;
        needs.that(heads.head_dim <= kernel.head_dim_max, || {
            format!("head_dim <= {}, not {}", kernel.head_dim_max, heads.head_dim)
        })?;
        needs.that(heads.kv_heads > 0 && heads.q_heads.is_multiple_of(heads.kv_heads), || {
            format!("kv heads that divide the query heads, not {} and {}", heads.kv_heads, heads.q_heads)
        })?;
        needs.covers("qkv", qkv.bytes(), rows * heads.row_width() * Storage::BYTES)?;
        needs.covers("out", out.bytes(), out_rows * heads.q_heads * heads.head_dim * Storage::BYTES)?;
        needs.covers("work", work.bytes(), count * size_of::<Work>())?;
        let config = needs.grid(count * heads.kv_heads, 1, kernel.threads, kernel.shared_bytes())?;
        let shape = Shape {
            row_stride: needs.int("row width", heads.row_width())?,
            head_dim: heads.head_dim as i32,
            q_heads: heads.q_heads as i32,
            kv_heads: heads.kv_heads as i32,
            scale_log2: scale * LOG2_E,
        };
        let (qkv, out) = (qkv.address(), out.address());
        let (work, tile_rows) = (work.address(), tile_rows.address());
        // SAFETY: types: four addresses and the struct by value. bounds: count pieces of work were checked; those come
        // from `tiles`, whose queries, keys and results lie in the rows that the caller states and that were checked.
        // aliases: out is borrowed mutably, and no two blocks share a token and head. lives: see above.
        unsafe {
            self.context
                .compute()
                .launch_builder(&self.kernels.attention)
                .arg(&qkv)
                .arg(&out)
                .arg(&work)
                .arg(&tile_rows)
                .arg(&shape)
                .launch(config)
        }
        .or_fault(format!("launching `{}`", kernel.entry))
        .map(drop)
    }

    /// Launches `seam_tiles`.
    pub fn seam_tiles(&self, args: SeamTiles<'_>) -> Result<()> {
        let SeamTiles { qkv, sources, first_row, count, heads } = args;
        if count == 0 {
            return Ok(());
        }
        let needs = Needs("seam_tiles");
        needs.wide("head_dim", heads.head_dim)?;
        needs.covers("qkv", qkv.bytes(), (first_row + count) * heads.row_width() * Storage::BYTES)?;
        needs.covers("sources", sources.bytes(), count * size_of::<u32>())?;
        let config = needs.grid(count, 1, SEAM_THREADS, 0)?;
        let words = |width: usize| needs.int("words of a row", width * Storage::BYTES / WORD_BYTES);
        let row_words = words(heads.row_width())?;
        let first_word = words(heads.q_heads * heads.head_dim)?;
        let kv_words = words(2 * heads.kv_heads * heads.head_dim)?;
        let (qkv, sources) = (qkv.address(), sources.address());
        let seam_row = needs.int("rows", first_row)? as u32;
        // SAFETY: types: two addresses, uint32, three ints. bounds: the rows written were checked; the caller says that
        // sources are below first_row. aliases: qkv is borrowed mutably; rows read lie below those written. lives: see
        // above.
        unsafe {
            self.context
                .compute()
                .launch_builder(&self.kernels.seam_tiles)
                .arg(&qkv)
                .arg(&sources)
                .arg(&seam_row)
                .arg(&row_words)
                .arg(&first_word)
                .arg(&kv_words)
                .launch(config)
        }
        .or_fault("launching `seam_tiles`")
        .map(drop)
    }
}

const _: () = assert!(WIDE * Storage::BYTES == WORD_BYTES);
