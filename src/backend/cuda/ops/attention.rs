//! The attention kernel that was loaded, and `seam_tiles`

use std::f32::consts::LOG2_E;

use cudarc::driver::{DeviceRepr, PushKernelArg};

use super::boxes::{BoxMaps, Sizes};
use super::launch::{Needs, Ops, WORD_BYTES};
use crate::backend::cuda::buffer::{DeviceBuffer, DeviceSlice};
use crate::backend::cuda::fault::OrFault;
use crate::backend::cuda::gemm::Share;
use crate::backend::cuda::tables::{DeviceTables, SeamSources, WorkList};
use crate::error::Result;

const SEAM_THREADS: usize = 256;

/// The heads of one rank, side by side in a row: queries, then keys, then values.
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
    /// Elements of a row; saturating, so that what no buffer covers is refused.
    fn row_width(self) -> usize {
        let kv_heads = self.kv_heads.saturating_mul(2);
        self.q_heads.saturating_add(kv_heads).saturating_mul(self.head_dim)
    }
}

/// Causal grouped-query attention for the queries that `work` names.
#[derive(Debug)]
pub struct Attention<'a> {
    /// `[.., row_width]`: all rows that work and tiles refer to, seam tiles included.
    pub qkv: DeviceSlice<'a>,
    /// `[.., q_heads * head_dim]`
    pub out: &'a mut DeviceBuffer,
    /// Tables that `work` is of.
    pub tables: &'a DeviceTables,
    /// Made by [`tiles`](crate::backend::cuda::tiles) for these heads and the kernel's needs.
    pub work: &'a WorkList,
    /// The part of the GPU that is there for it.
    pub share: Share,
    /// How `qkv` is divided into heads.
    pub heads: Heads,
    /// Factor of q . k: that of the model's head_dim, since a head may be padded with zeros to a
    /// width that kernels can do.
    pub scale: f32,
    /// Keys that a query sees, itself included: the query at position `i` those at positions
    /// `j` with `i - window < j <= i`. All keys up to its own without one.
    pub window: Option<usize>,
    /// Bound of the scaled scores: `s` becomes `cap * tanh(s / cap)`.
    pub cap: Option<f32>,
}

/// `qkv[first_row + i]` gets the keys and values of row `sources[i]`, or zeros, for every `i`.
#[derive(Debug)]
pub struct SeamTiles<'a> {
    /// `[first_row + count, row_width]`
    pub qkv: &'a mut DeviceBuffer,
    /// Tables that `sources` are of.
    pub tables: &'a DeviceTables,
    /// `[count]`: rows below `first_row`. Without any, nothing is launched.
    pub sources: &'a SeamSources,
    /// The row of the first seam tile's first key.
    pub first_row: usize,
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
    window: i32,
    cap_log2: f32,
    cap_score: f32,
}

/// The value of `Shape::window` without a window: more than any position, and small enough that the
/// kernels' sums and differences of positions and windows fit in an `int`.
const WINDOW_NONE: i32 = 1 << 30;

// SAFETY: plain values laid out as in C, field by field those of the kernel's struct.
unsafe impl DeviceRepr for Shape {}

impl Ops {
    /// Launches the attention kernel.
    pub fn attention(&self, args: Attention<'_>) -> Result<()> {
        let Attention { qkv, out, tables, work, share, heads, scale, window, cap } = args;
        let kernel = self.kernels.attention_kernel;
        let needs = Needs(kernel.name);
        needs.wide("head_dim", heads.head_dim)?;
        needs.that(heads.head_dim <= kernel.head_dim, || {
            format!("head_dim <= {}, not {}", kernel.head_dim, heads.head_dim)
        })?;
        needs.that(heads.kv_heads > 0 && heads.q_heads.is_multiple_of(heads.kv_heads), || {
            format!("kv heads that divide the query heads, not {} and {}", heads.kv_heads, heads.q_heads)
        })?;
        needs.that(heads.q_heads / heads.kv_heads == work.group, || {
            format!("work for {} query heads per kv head, not {}", heads.q_heads / heads.kv_heads, work.group)
        })?;
        needs.that(work.pairs_max <= kernel.block_rows, || {
            format!("work of up to {} pairs, not {}", kernel.block_rows, work.pairs_max)
        })?;
        needs.covers("qkv", qkv, [work.limit, heads.row_width(), self.format().bytes()])?;
        needs.covers(
            "out",
            out.all(),
            [work.out_limit, heads.q_heads, heads.head_dim, self.format().bytes()],
        )?;
        if let Some(window) = window {
            needs.that(kernel.features.window, || format!("no sliding window, not one of {window} keys"))?;
            needs.that(window > 0, || "a sliding window of at least one key, not of 0".to_owned())?;
        }
        if let Some(cap) = cap {
            needs.that(kernel.features.cap, || format!("no soft cap, not {cap}"))?;
            needs.that(cap > 0.0 && cap.is_finite(), || format!("a finite soft cap above 0, not {cap}"))?;
        }
        if kernel.boxes {
            needs.that(work.group <= kernel.block_rows, || {
                format!("up to {} query heads per kv head, not {}", kernel.block_rows, work.group)
            })?;
            needs.that(work.begins_tokens, || "work that begins with a token's first head".to_owned())?;
        }
        let items = work.count.saturating_mul(heads.kv_heads);
        // With boxes, a block does several items. Collectives occupy multiprocessors for a time, and blocks
        // that start behind them would finish their items late: beside collectives each item is a block.
        let blocks = match share {
            Share::Whole if kernel.boxes => items.min(self.context.info().multiprocessors),
            _ => items,
        };
        let config = needs.grid(blocks, 1, kernel.threads, kernel.shared_bytes)?;
        let shape = Shape {
            row_stride: needs.int("row width", heads.row_width())?,
            head_dim: heads.head_dim as i32,
            q_heads: heads.q_heads as i32,
            kv_heads: heads.kv_heads as i32,
            scale_log2: scale * LOG2_E,
            window: window.map_or(WINDOW_NONE, |keys| keys.min(WINDOW_NONE as usize) as i32),
            cap_log2: cap.map_or(0.0, |cap| 2.0 * LOG2_E * scale / cap),
            cap_score: cap.map_or(0.0, |cap| cap / scale),
        };
        let sizes = Sizes {
            head_dim: heads.head_dim,
            heads: heads.q_heads + 2 * heads.kv_heads,
            group: work.group,
            query_rows: work.query_limit,
            block_rows: kernel.block_rows,
        };
        let maps = if kernel.boxes { Some(BoxMaps::new(qkv, sizes)?) } else { None };
        let items = needs.int("items", items)?;
        let (qkv, out) = (qkv.address(), out.address());
        let tile_rows = needs.table("the tile table", tables, &work.tile_rows)?;
        let work = needs.table("work", tables, &work.work)?;
        let mut launch = self.context.compute().launch_builder(&self.kernels.attention);
        match &maps {
            Some(maps) => launch.arg(&maps.queries).arg(&maps.keys_and_values),
            None => launch.arg(&qkv),
        };
        launch.arg(&out).arg(&work).arg(&tile_rows).arg(&shape);
        if maps.is_some() {
            launch.arg(&items);
        }
        // SAFETY: types: q, k and v, as an address or as two maps of boxes, three addresses, the
        // struct by value, and of a kernel of boxes the number of items. bounds: a block for each
        // work item and kv head, or blocks that share these out. The queries, keys and results of
        // items for this group lie below the limits of the work list, and its paths within the tile
        // table, of which a window skips the beginning; qkv and out cover as many rows, and boxes
        // have zeros beyond qkv. aliases: out is borrowed mutably; where two blocks had one token
        // and head, either result would be left. lives: see above.
        unsafe { launch.launch(config) }.or_fault(format!("launching `{}`", kernel.name)).map(drop)
    }

    /// Launches `seam_tiles`.
    pub fn seam_tiles(&self, args: SeamTiles<'_>) -> Result<()> {
        let SeamTiles { qkv, tables, sources, first_row, heads } = args;
        let count = sources.count();
        if count == 0 {
            return Ok(());
        }
        let needs = Needs("seam_tiles");
        needs.wide("head_dim", heads.head_dim)?;
        let rows = first_row.saturating_add(count);
        needs.covers("qkv", qkv.all(), [rows, heads.row_width(), self.format().bytes()])?;
        needs.that(sources.limit <= first_row, || {
            format!("sources below row {first_row}, not below {}", sources.limit)
        })?;
        let config = needs.grid(count, 1, SEAM_THREADS, 0)?;
        let words = |width: usize| needs.int("words of a row", width * self.format().bytes() / WORD_BYTES);
        let row_words = words(heads.row_width())?;
        let first_word = words(heads.q_heads * heads.head_dim)?;
        let kv_words = words(2 * heads.kv_heads * heads.head_dim)?;
        let sources = needs.table("sources", tables, &sources.table)?;
        let (qkv, seam_row) = (qkv.address(), needs.int("rows", rows)? as u32 - count as u32);
        // SAFETY: types: two addresses, uint32, three ints. bounds: a block for each source; the
        // rows written and those below the sources' limit lie in qkv, checked above. aliases: qkv
        // is borrowed mutably; rows read lie below those written. lives: see above.
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
