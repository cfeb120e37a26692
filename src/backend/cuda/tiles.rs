//! Attention's tables of a batch: the *tile table*, the *seam tiles* and the *work list*, made once
//! per pass.
//!
//! Attention reads the keys of a path in tiles of [`TILE_KEYS`] positions, tile `j` from position
//! `j * TILE_KEYS` on. The table has the row of each tile's first key. Where a tile's keys lie in
//! consecutive rows, that is their first row; where they do not, because the path goes from one
//! segment to another within the tile, it is the first row of a seam tile: a copy that a small
//! kernel puts together behind the last row. So kernels load every tile alike, search no spans, and
//! need no mask but the causal one and that of a window. A kernel that reads all rows of every tile
//! ([`TileNeeds::whole`]) has a seam tile with zeros at the end where a path ends within a tile.

use std::collections::HashMap;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::batch::{Packed, Segment};

/// Keys of a tile.
pub const TILE_KEYS: usize = 64;

/// Pairs of (token, head of a kv head's group) that a block of any attention kernel works on, at
/// least.
pub const BLOCK_PAIRS_MIN: usize = 16;

/// Entry of [`Tiles::seam_sources`] for a row of zeros.
pub const NO_ROW: u32 = u32::MAX;

/// The work of one block, for each kv head: `struct WorkItem` of the kernel.
///
/// Pairs `first_head..first_head + pairs` are counted from head 0 of `query_row` on: pair `p` is
/// head `p % group` of token `p / group`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct WorkItem {
    /// The row with the first token's queries.
    pub query_row: u32,
    /// The row that the first token's result goes to.
    pub out_row: u32,
    /// The position of the first token; the next tokens' follow.
    pub position: u32,
    /// The head of the first pair, within its kv head's group.
    pub first_head: u32,
    /// Number of pairs, at least 1.
    pub pairs: u32,
    /// Index of the path's first tile in [`Tiles::tile_rows`].
    pub first_tile: u32,
}

/// Attention's tables of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiles {
    /// For each segment, the rows of its path's tiles.
    pub tile_rows: Vec<u32>,
    /// For each row of the seam tiles, the row whose keys and values it repeats, or [`NO_ROW`].
    pub seam_sources: Vec<u32>,
    /// The work when every packed row is a query, part after part.
    pub all: Vec<WorkItem>,
    /// The ranges of `all` and of `seam_sources` that each part of the rows adds.
    pub parts: Vec<PartTiles>,
    /// The work when only the last rows are queries, in the order of [`Packed::last`].
    pub last: Vec<WorkItem>,
}

/// The ranges of a batch's tables that belong to a part of its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartTiles {
    /// Range of [`Tiles::all`].
    pub work: Range<usize>,
    /// Range of [`Tiles::seam_sources`]: the seam tiles that this part's keys complete.
    pub seam_rows: Range<usize>,
}

/// The needs that an attention kernel has of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileNeeds {
    /// The most pairs of a work item.
    pub block_pairs: usize,
    /// Whether all rows of every tile are read: a path's last tile becomes a seam tile where it has fewer keys.
    pub whole: bool,
}

/// The largest batch, for which tables are sized.
#[derive(Clone, Copy, Debug)]
pub struct TilesMax {
    /// Packed rows.
    pub tokens: usize,
    /// Rows in which sequences end.
    pub sequences: usize,
    /// Parts into which rows are cut.
    pub parts: usize,
    /// [`TileNeeds::whole`].
    pub whole: bool,
}

impl TilesMax {
    /// Segments: a trie has fewer than two for each end, and each cut makes one more.
    fn segments(self) -> usize {
        self.tokens.min(2 * self.sequences + self.parts)
    }

    /// Rows of seam tiles: each segment but the first of a path has one tile that it shares with
    /// the one before, and one that its path ends in, where that has to be whole.
    pub fn seam_rows(self) -> usize {
        TILE_KEYS * self.segments() * if self.whole { 2 } else { 1 }
    }

    /// Entries of the tile table.
    pub fn tile_rows(self) -> usize {
        self.segments() * self.tokens.div_ceil(TILE_KEYS)
    }

    /// Work items for all rows: each segment rounds up once.
    pub fn work(self, group: usize) -> usize {
        (self.tokens * group).div_ceil(BLOCK_PAIRS_MIN) + self.segments()
    }
}

impl Tiles {
    /// The tables of a batch for `group` query heads per kv head, and a kernel with these needs;
    /// seam tiles start at row `seam_row`. The rows are computed in `parts`, one after the other: a
    /// part reads rows of the parts up to it only.
    pub fn new(
        packed: &Packed,
        parts: &[Range<usize>],
        group: usize,
        needs: TileNeeds,
        seam_row: usize,
    ) -> Self {
        let mut tiles = Self::default();
        let mut seams = HashMap::new();
        // The first tile of each segment's last piece, which has the whole path.
        let mut first_tile = vec![0; packed.segments.len()];
        let mut segments = packed.segments.iter().enumerate().peekable();
        for part in parts {
            let (first_work, first_seam) = (tiles.all.len(), tiles.seam_sources.len());
            while let Some(&(index, segment)) = segments.peek() {
                let piece = piece(segment, part);
                if piece.rows.is_empty() {
                    break;
                }
                first_tile[index] = tiles.tile_rows.len() as u32;
                tiles.add_path(&piece, needs.whole, seam_row, &mut seams);
                let (start, position) = (piece.rows.start as u32, piece.first_position as u32);
                let run = Run { query_row: start, out_row: start, position, first_tile: first_tile[index] };
                run.work(piece.rows.len(), group, needs.block_pairs, &mut tiles.all);
                if segment.rows.end > part.end {
                    break;
                }
                segments.next();
            }
            longest_first(&mut tiles.all[first_work..]);
            let (work, seam_rows) = (first_work..tiles.all.len(), first_seam..tiles.seam_sources.len());
            tiles.parts.push(PartTiles { work, seam_rows });
        }
        for (index, last) in packed.last.iter().enumerate() {
            let (row, first_tile) = (index as u32, first_tile[last.segment]);
            let run = Run { query_row: row, out_row: row, position: packed.positions[last.row], first_tile };
            run.work(1, group, needs.block_pairs, &mut tiles.last);
        }
        longest_first(&mut tiles.last);
        tiles
    }

    /// Adds the tiles of the segment's path; paths share equal seam tiles.
    fn add_path(
        &mut self,
        segment: &Segment,
        whole: bool,
        seam_row: usize,
        seams: &mut HashMap<Vec<u32>, u32>,
    ) {
        let rows: Vec<u32> =
            segment.spans.iter().flat_map(|span| span.start as u32..(span.start + span.len) as u32).collect();
        for keys in rows.chunks(TILE_KEYS) {
            let straight = keys.windows(2).all(|pair| pair[0] + 1 == pair[1]);
            let row = if straight && (keys.len() == TILE_KEYS || !whole) {
                keys[0]
            } else {
                let sources = &mut self.seam_sources;
                *seams.entry(keys.to_vec()).or_insert_with(|| {
                    let row = (seam_row + sources.len()) as u32;
                    sources.extend(keys);
                    sources.resize(sources.len().next_multiple_of(TILE_KEYS), NO_ROW);
                    row
                })
            };
            self.tile_rows.push(row);
        }
    }
}

/// The rows of a segment that lie in `part`, and the path to their end.
fn piece(segment: &Segment, part: &Range<usize>) -> Segment {
    let rows = segment.rows.start.max(part.start)..segment.rows.end.min(part.end);
    let first_position = segment.first_position + (rows.start - segment.rows.start).min(segment.rows.len());
    let mut spans = segment.spans.clone();
    // A path ends with its segment's rows.
    let later = segment.rows.end.saturating_sub(rows.end);
    if let Some(last) = spans.last_mut() {
        last.len -= later.min(last.len);
    }
    Segment { rows, first_position, spans }
}

/// Sorts the longest first, so that the last blocks are short; items of equal length stay in the
/// order of rows.
fn longest_first(work: &mut [WorkItem]) {
    work.sort_by_key(|work| std::cmp::Reverse(work.position));
}

/// Queries of consecutive positions on one path.
struct Run {
    query_row: u32,
    out_row: u32,
    position: u32,
    first_tile: u32,
}

impl Run {
    /// Cuts the pairs of `tokens` tokens into blocks.
    fn work(&self, tokens: usize, group: usize, block_pairs: usize, work: &mut Vec<WorkItem>) {
        let pairs = tokens * group;
        work.extend((0..pairs).step_by(block_pairs).map(|first| {
            let token = (first / group) as u32;
            WorkItem {
                query_row: self.query_row + token,
                out_row: self.out_row + token,
                position: self.position + token,
                first_head: (first % group) as u32,
                pairs: block_pairs.min(pairs - first) as u32,
                first_tile: self.first_tile,
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::batch::{Batch, Budget, Sharing};

    fn packed(sequences: &[Vec<u32>], sharing: Sharing) -> Packed {
        let mut batch = Batch::new(Budget { tokens: 100_000, sequences: 1_000 }, sharing);
        assert!(sequences.iter().all(|ids| batch.try_add(ids)));
        batch.pack()
    }

    const fn blocks_of(block_pairs: usize) -> TileNeeds {
        TileNeeds { block_pairs, whole: false }
    }

    /// The tables of all rows in one part.
    fn tables(packed: &Packed, group: usize, needs: TileNeeds, seam_row: usize) -> Tiles {
        Tiles::new(packed, slice::from_ref(&(0..packed.tokens.len())), group, needs, seam_row)
    }

    /// The tables of rows in parts of `step`, seam tiles behind the last row.
    fn cut(packed: &Packed, step: usize, group: usize, needs: TileNeeds) -> Tiles {
        let rows = packed.tokens.len();
        let parts: Vec<_> = (0..rows).step_by(step).map(|first| first..rows.min(first + step)).collect();
        Tiles::new(packed, &parts, group, needs, rows)
    }

    fn max(packed: &Packed, parts: usize, whole: bool) -> TilesMax {
        TilesMax { tokens: packed.tokens.len(), sequences: packed.last.len(), parts, whole }
    }

    /// `shared` tokens that both begin with, then 10 and 70 of their own.
    fn two(shared: u32) -> Vec<Vec<u32>> {
        let with = |from: u32, len: u32| (0..shared).chain(from..from + len).collect();
        vec![with(1_000, 10), with(2_000, 70)]
    }

    /// The row of position `position` on the path whose tiles start at `first_tile`, seams followed
    /// to their sources.
    fn row_of(tiles: &Tiles, first_tile: u32, position: usize, seam_row: usize) -> u32 {
        let row = tiles.tile_rows[first_tile as usize + position / TILE_KEYS] as usize + position % TILE_KEYS;
        if row < seam_row { row as u32 } else { tiles.seam_sources[row - seam_row] }
    }

    #[test]
    fn the_tile_table_leads_every_query_to_its_path() {
        let longer = vec![vec![9; 200], vec![9; 64], (0..129).collect(), vec![7]];
        let batches = [
            (two(0), Sharing::Prefixes),
            (two(64), Sharing::Prefixes),
            (two(100), Sharing::Prefixes),
            (two(100), Sharing::Nothing),
            ([two(37), two(30), longer].concat(), Sharing::Prefixes),
        ];
        let both = [false, true].map(|whole| TileNeeds { block_pairs: 16, whole });
        for ((sequences, sharing), needs) in
            batches.into_iter().flat_map(|batch| both.map(|needs| (batch.clone(), needs)))
        {
            let packed = packed(&sequences, sharing);
            let seam_row = packed.tokens.len() + 5;
            let tiles = tables(&packed, 1, needs, seam_row);
            for work in tiles.all.iter().flat_map(|work| (0..work.pairs).map(move |token| (work, token))) {
                let (work, token) = work;
                let row = (work.query_row + token) as usize;
                let segment = packed.segments.iter().find(|segment| segment.rows.contains(&row)).unwrap();
                let path: Vec<u32> =
                    segment.spans.iter().flat_map(|s| s.start as u32..(s.start + s.len) as u32).collect();
                let position = (work.position + token) as usize;
                assert_eq!(packed.positions[row] as usize, position);
                let found: Vec<u32> =
                    (0..=position).map(|key| row_of(&tiles, work.first_tile, key, seam_row)).collect();
                assert_eq!(found, path[..=position]);
            }
        }
    }

    #[test]
    fn a_part_reads_rows_of_the_parts_up_to_it_only() {
        let longer = vec![vec![9; 200], vec![9; 64], (0..129).collect(), vec![7]];
        let packed = packed(&[two(37), two(30), two(100), longer].concat(), Sharing::Prefixes);
        let rows = packed.tokens.len();
        let both = [false, true].map(|whole| TileNeeds { block_pairs: 16, whole });
        let steps = [1, 50, 64, 100, 128, 1_000];
        for (step, needs) in steps.into_iter().flat_map(|step| both.map(|needs| (step, needs))) {
            let whole = tables(&packed, 2, needs, rows);
            let tiles = cut(&packed, step, 2, needs);
            for (index, part) in tiles.parts.iter().enumerate() {
                let end = rows.min((index + 1) * step);
                let sources = &tiles.seam_sources[part.seam_rows.clone()];
                assert!(sources.iter().all(|&source| source == NO_ROW || (source as usize) < end));
                for work in &tiles.all[part.work.clone()] {
                    let (query, position) = (work.query_row as usize, work.position as usize);
                    let last = (work.first_head + work.pairs - 1) as usize / 2;
                    assert!((index * step..end).contains(&query) && query + last < end);
                    let seams = rows + part.seam_rows.end;
                    for key in 0..=position + last {
                        let tile = tiles.tile_rows[work.first_tile as usize + key / TILE_KEYS] as usize;
                        assert!(tile < end || (rows..seams).contains(&tile), "{tile} is not computed yet");
                        let row = row_of(&tiles, work.first_tile, key, rows);
                        assert!((row as usize) < end);
                        let segment = packed.segments.iter().find(|segment| segment.rows.contains(&query));
                        let path = segment.unwrap().spans.iter().flat_map(|s| s.start..s.start + s.len);
                        assert_eq!(row as usize, path.clone().nth(key).unwrap());
                    }
                }
            }
            let pairs = |tiles: &Tiles| tiles.all.iter().map(|work| work.pairs).sum::<u32>();
            assert_eq!(pairs(&tiles), pairs(&whole));
            // The last layer's queries find the whole path.
            for (cut, uncut) in tiles.last.iter().zip(&whole.last) {
                let path = |tiles: &Tiles, work: &WorkItem| -> Vec<u32> {
                    (0..=work.position as usize)
                        .map(|key| row_of(tiles, work.first_tile, key, rows))
                        .collect()
                };
                assert_eq!(path(&tiles, cut), path(&whole, uncut));
            }
        }
    }

    #[test]
    fn only_tiles_of_rows_that_are_not_consecutive_are_copied() {
        let seams = |sequences: &[Vec<u32>], sharing| {
            let tiles = tables(&packed(sequences, sharing), 1, blocks_of(128), 10_000);
            tiles.seam_sources.len() / TILE_KEYS
        };
        assert_eq!(seams(&two(100), Sharing::Nothing), 0);
        assert_eq!(seams(&two(64), Sharing::Prefixes), 0, "a prefix that ends with a tile");
        // The first response follows its prompt's rows; the second one's first tile begins with the
        // prompt's end.
        assert_eq!(seams(&two(100), Sharing::Prefixes), 1);
        let many: Vec<Vec<u32>> = (0..9).map(|n| (0..100).chain([500 + n; 5]).collect()).collect();
        assert_eq!(seams(&many, Sharing::Prefixes), 8);
    }

    #[test]
    fn a_seam_tile_ends_in_zeros_where_its_path_ends() {
        let sequences = vec![vec![1, 2, 3, 4, 5], vec![1, 2, 3, 6]];
        let tiles = tables(&packed(&sequences, Sharing::Prefixes), 1, blocks_of(16), 6);
        assert_eq!(tiles.seam_sources[..5], [0, 1, 2, 5, NO_ROW]);
        assert!(tiles.seam_sources[4..].iter().all(|&source| source == NO_ROW));
        assert_eq!(tiles.seam_sources.len(), TILE_KEYS);
    }

    #[test]
    fn tiles_are_whole_where_a_kernel_reads_all_of_their_rows() {
        let sequences = vec![(0..64).collect(), (100..170).collect(), vec![5]];
        let packed = packed(&sequences, Sharing::Prefixes);
        let rows = packed.tokens.len();
        let tiles = tables(&packed, 1, TileNeeds { block_pairs: 16, whole: true }, rows);
        let row = rows as u32;
        assert_eq!(tiles.tile_rows, [0, 64, row, row + 64], "two paths end within a tile");
        assert_eq!(tiles.seam_sources[..7], [128, 129, 130, 131, 132, 133, NO_ROW]);
        assert_eq!(tiles.seam_sources[64..66], [134, NO_ROW]);
        assert_eq!(tiles.seam_sources.len(), 2 * TILE_KEYS);
    }

    #[test]
    fn work_covers_each_pair_once_and_starts_with_the_longest() {
        let groups = [1, 2, 3, 7, 8, 16, 40];
        for (group, block_pairs) in
            groups.into_iter().flat_map(|group| [16, 64, 128].map(|pairs| (group, pairs)))
        {
            let packed = packed(&two(100), Sharing::Prefixes);
            let tiles = tables(&packed, group, blocks_of(block_pairs), 10_000);
            let mut pairs: Vec<(u32, u32)> = Vec::new();
            for work in &tiles.all {
                assert!((1..=block_pairs as u32).contains(&work.pairs) && work.first_head < group as u32);
                let first = work.query_row * group as u32 + work.first_head;
                pairs.extend(
                    (first..first + work.pairs).map(|pair| (pair / group as u32, pair % group as u32)),
                );
            }
            pairs.sort_unstable();
            let rows = packed.tokens.len() as u32;
            let expected: Vec<_> =
                (0..rows).flat_map(|row| (0..group as u32).map(move |head| (row, head))).collect();
            assert_eq!(pairs, expected);
            assert!(tiles.all.is_sorted_by(|a, b| a.position >= b.position));
            assert!(tiles.all.len() <= max(&packed, 1, false).work(group));
        }
    }

    #[test]
    fn last_rows_are_queries_at_the_ends_of_their_paths() {
        let packed = packed(&two(100), Sharing::Prefixes);
        let tiles = tables(&packed, 4, blocks_of(128), packed.tokens.len());
        let mut last = tiles.last.clone();
        last.sort_by_key(|work| work.out_row);
        let items: Vec<_> =
            last.iter().map(|work| (work.query_row, work.out_row, work.position, work.pairs)).collect();
        assert_eq!(items, [(0, 0, 109, 4), (1, 1, 169, 4)]);
    }

    #[test]
    fn the_bounds_hold_for_tries_of_many_short_segments() {
        let sequences: Vec<Vec<u32>> = (0..40).map(|n| (0..n / 2).chain([1_000 + n]).collect()).collect();
        let packed = packed(&sequences, Sharing::Prefixes);
        for (step, whole) in
            [1, 7, 1_000].into_iter().flat_map(|step| [false, true].map(|whole| (step, whole)))
        {
            let tiles = cut(&packed, step, 3, TileNeeds { block_pairs: BLOCK_PAIRS_MIN, whole });
            let max = max(&packed, tiles.parts.len(), whole);
            assert!(tiles.seam_sources.len() <= max.seam_rows());
            assert!(tiles.tile_rows.len() <= max.tile_rows());
            assert!(tiles.all.len() <= max.work(3));
        }
    }
}
