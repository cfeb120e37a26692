//! The tables that kernels read row indices from: put together and checked on the host
//! ([`HostTables`]), then uploaded to [`DeviceTables`], which hold those of one pass.
//!
//! A kernel trusts the indices that it reads. So every table comes with the limits of its entries
//! ([`RowIndices`], [`SeamSources`], [`WorkList`]), computed here from the entries themselves; the
//! wrappers in [`ops`](super::ops) hold the limits to the buffers, and refuse a table that is not,
//! or no longer, on the device.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::CUdeviceptr;

use super::buffer::DeviceBuffer;
use super::context::Context;
use super::staging::Staging;
use super::tiles::{NO_ROW, TILE_KEYS, WorkItem};
use crate::error::{Error, ErrorKind, Result};

/// The largest index that kernels compute with.
const INDEX_MAX: usize = i32::MAX as usize;

/// The id of [`DeviceTables`] that hold none.
const NONE: u64 = 0;

/// Tables on the host, to be uploaded together.
#[derive(Debug)]
pub struct HostTables {
    /// Unique in this process.
    id: u64,
    words: Vec<u32>,
}

/// A table's place: the id of its tables, and its words among theirs.
#[derive(Clone, Debug)]
pub(super) struct Table {
    id: u64,
    words: Range<usize>,
}

/// Indices of rows.
#[derive(Clone, Debug)]
pub struct RowIndices {
    pub(super) table: Table,
    /// Every index is below it.
    pub(super) limit: usize,
}

/// The rows that rows of seam tiles repeat, or [`NO_ROW`] for zeros.
#[derive(Clone, Debug)]
pub struct SeamSources {
    pub(super) table: Table,
    /// Every source but [`NO_ROW`] is below it.
    pub(super) limit: usize,
}

/// The tile table: for each path, the rows in which its tiles begin.
#[derive(Clone, Debug)]
pub struct TileRows(Table);

/// The work items of one launch of attention, with the tile table that they refer to.
#[derive(Clone, Debug)]
pub struct WorkList {
    pub(super) work: Table,
    pub(super) tile_rows: Table,
    /// Query heads per kv head that the items were made for.
    pub(super) group: usize,
    /// Number of items.
    pub(super) count: usize,
    /// The most pairs of an item.
    pub(super) pairs_max: usize,
    /// Whether each begins with a token's first head.
    pub(super) begins_tokens: bool,
    /// Every row of q, k and v that is read is below it.
    pub(super) limit: usize,
    /// Every row of q is below it.
    pub(super) query_limit: usize,
    /// Every row that is written is below it.
    pub(super) out_limit: usize,
}

impl HostTables {
    /// No table yet.
    #[allow(clippy::new_without_default, reason = "no two are equal")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(NONE + 1);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), words: Vec::new() }
    }

    /// Adds a table of row indices, or of positions.
    pub fn row_indices(&mut self, rows: &[u32]) -> RowIndices {
        RowIndices { limit: limit(rows.iter()), table: self.add(rows) }
    }

    /// Adds a table of sources of seam tiles.
    pub fn seam_sources(&mut self, sources: &[u32]) -> SeamSources {
        let limit = limit(sources.iter().filter(|&&source| source != NO_ROW));
        SeamSources { limit, table: self.add(sources) }
    }

    /// Adds a tile table.
    pub fn tile_rows(&mut self, rows: &[u32]) -> TileRows {
        TileRows(self.add(rows))
    }

    /// Adds a list of work items for `group` query heads per kv head; `tile_rows` is a table of
    /// these tables.
    ///
    /// [`ErrorKind::Unsupported`] for an item without pairs, and for a path that leaves the tile
    /// table.
    pub fn work_list(&mut self, work: &[WorkItem], tile_rows: &TileRows, group: usize) -> Result<WorkList> {
        let TileRows(table) = tile_rows;
        let refused = |message: String| Err(Error::new(ErrorKind::Unsupported, message));
        if table.id != self.id || group == 0 {
            return refused("a work list needs a tile table of the same tables, and query heads".to_owned());
        }
        let (mut limit, mut query_limit, mut out_limit, mut pairs_max) = (0, 0, 0, 0);
        for item in work {
            let [query_row, out_row, position, first_head, pairs, first_tile] =
                bytemuck::cast::<WorkItem, [u32; 6]>(*item).map(|word| word as usize);
            // Tokens after the first; the last key's tile, and keys that are read of it.
            let tokens = (first_head + pairs).saturating_sub(1) / group;
            let (last_tile, rest) = ((position + tokens) / TILE_KEYS, (position + tokens) % TILE_KEYS + 1);
            let largest = [query_row + tokens, out_row + tokens, position + tokens, first_head + pairs];
            let path = self.words[table.words.clone()].get(first_tile..=first_tile + last_tile);
            let (Some(path), true) = (path, pairs > 0 && largest.into_iter().all(|index| index < INDEX_MAX))
            else {
                return refused(format!(
                    "{item:?} for {group} heads has no pairs, or leaves the tile table of {} tiles",
                    table.words.len()
                ));
            };
            let whole = path[..last_tile].iter().max().map_or(0, |&row| row as usize + TILE_KEYS);
            let keys = whole.max(path[last_tile] as usize + rest);
            query_limit = query_limit.max(query_row + tokens + 1);
            limit = limit.max(keys).max(query_limit);
            out_limit = out_limit.max(out_row + tokens + 1);
            pairs_max = pairs_max.max(pairs);
        }
        let begins_tokens = work.iter().all(|item| item.first_head == 0);
        let (count, tile_rows) = (work.len(), table.clone());
        let work = self.add(bytemuck::cast_slice(work));
        Ok(WorkList {
            work,
            tile_rows,
            group,
            count,
            pairs_max,
            begins_tokens,
            limit,
            query_limit,
            out_limit,
        })
    }

    fn add(&mut self, words: &[u32]) -> Table {
        let first = self.words.len();
        self.words.extend_from_slice(words);
        Table { id: self.id, words: first..self.words.len() }
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }
}

/// One more than the largest index.
fn limit<'a>(indices: impl Iterator<Item = &'a u32>) -> usize {
    indices.max().map_or(0, |&index| index as usize + 1)
}

impl RowIndices {
    /// Number of indices.
    pub fn count(&self) -> usize {
        self.table.words.len()
    }
}

impl SeamSources {
    /// Number of sources.
    pub fn count(&self) -> usize {
        self.table.words.len()
    }
}

/// Device memory for tables. Only [`HostTables`] are written to it.
#[derive(Debug)]
pub struct DeviceTables {
    buffer: DeviceBuffer,
    /// The tables that it holds, or [`NONE`].
    id: u64,
}

impl DeviceTables {
    /// Memory for tables of up to `bytes` bytes, which holds none.
    pub fn allocate(context: &Context, bytes: usize) -> Result<Self> {
        Ok(Self { buffer: context.allocate(bytes)?, id: NONE })
    }

    /// Uploads tables to memory of their own, on the compute stream.
    pub fn upload(context: &Context, tables: HostTables) -> Result<Self> {
        let mut buffer = context.allocate(tables.bytes().len())?;
        buffer.upload(0, tables.bytes(), context.compute())?;
        Ok(Self { buffer, id: tables.id })
    }

    /// Replaces the tables, on the compute stream: ops that were queued before still find the
    /// earlier ones.
    ///
    /// # Panics
    ///
    /// When they do not fit.
    pub fn replace(&mut self, context: &Context, staging: &mut Staging, tables: HostTables) -> Result<()> {
        // After a failure it may hold a part of them.
        self.id = NONE;
        staging.copy_tables(context, &mut self.buffer, tables.bytes())?;
        self.id = tables.id;
        Ok(())
    }

    /// The address of a table; `None` for one that is not, or no longer, here.
    pub(super) fn address(&self, table: &Table) -> Option<CUdeviceptr> {
        let first = table.words.start * size_of::<u32>();
        (table.id == self.id).then(|| self.buffer.all().after(first).address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: WorkItem =
        WorkItem { query_row: 0, out_row: 0, position: 0, first_head: 0, pairs: 1, first_tile: 0 };

    /// The limits of one piece of work for groups of 2, with tiles in these rows.
    fn limits(tile_rows: &[u32], piece: WorkItem) -> Option<(usize, usize)> {
        let mut tables = HostTables::new();
        let tile_rows = tables.tile_rows(tile_rows);
        tables.work_list(&[piece], &tile_rows, 2).ok().map(|list| (list.limit, list.out_limit))
    }

    #[test]
    fn limits_are_those_of_the_entries() {
        let mut tables = HostTables::new();
        assert_eq!(tables.row_indices(&[]).limit, 0);
        assert_eq!(tables.row_indices(&[3, 9, 0]).limit, 10);
        assert_eq!(tables.row_indices(&[NO_ROW]).limit, 1 << 32);
        assert_eq!(tables.seam_sources(&[3, NO_ROW, 0]).limit, 4);
        assert_eq!(tables.seam_sources(&[NO_ROW]).limit, 0);
    }

    #[test]
    fn work_reads_its_queries_and_the_keys_up_to_its_last_position() {
        assert_eq!(limits(&[5], PIECE), Some((6, 1)));
        assert_eq!(limits(&[5], WorkItem { position: 63, ..PIECE }), Some((69, 1)));
        assert_eq!(limits(&[900, 5], WorkItem { position: 64, ..PIECE }), Some((964, 1)));
        // Pairs 1 to 4 of two heads are of three tokens.
        let several =
            WorkItem { query_row: 70, out_row: 7, position: 62, first_head: 1, pairs: 4, first_tile: 1 };
        assert_eq!(limits(&[0, 3, 80], several), Some((81, 10)));
        assert_eq!(limits(&[0, 3, 8], several), Some((73, 10)));
    }

    #[test]
    fn work_that_leaves_the_tile_table_is_refused() {
        assert_eq!(limits(&[], PIECE), None);
        assert_eq!(limits(&[5], WorkItem { position: 64, ..PIECE }), None);
        assert_eq!(limits(&[5], WorkItem { position: 63, pairs: 3, ..PIECE }), None);
        assert_eq!(limits(&[5], WorkItem { first_tile: 1, ..PIECE }), None);
        assert_eq!(limits(&[5], WorkItem { pairs: 0, ..PIECE }), None);
        assert_eq!(limits(&[5], WorkItem { query_row: u32::MAX, ..PIECE }), None);
        assert_eq!(limits(&[5], WorkItem { first_head: u32::MAX, pairs: u32::MAX, ..PIECE }), None);
    }

    #[test]
    fn work_is_refused_with_the_tile_table_of_other_tables() {
        let tile_rows = HostTables::new().tile_rows(&[0]);
        assert!(HostTables::new().work_list(&[PIECE], &tile_rows, 1).is_err());
    }
}
