//! The least counts of a launch, from the accesses that its work needs.

use std::collections::BTreeSet;

use crate::launches::Counts;

/// Threads of a warp.
pub(crate) const LANES: usize = 32;
/// Bytes that memory transfers at once.
const SECTOR_BYTES: usize = 32;
/// Bytes of a row's index.
pub(crate) const INDEX_BYTES: usize = size_of::<u32>();

/// Whether memory is read or written.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The least counts of some work, summed over the accesses that it needs.
#[derive(Default)]
pub(crate) struct Least {
    read: BTreeSet<(&'static str, usize)>,
    written: BTreeSet<(&'static str, usize)>,
    counts: Counts,
    /// Sectors that requests touch beyond those that their distinct bytes would fill.
    spread: usize,
}

impl Least {
    /// One load or store of a warp: each lane's first byte within the buffer.
    pub(crate) fn request(
        &mut self,
        access: Access,
        buffer: &'static str,
        lanes: &[usize],
        lane_bytes: usize,
    ) {
        let sectors: BTreeSet<usize> = lanes.iter().map(|first| first / SECTOR_BYTES).collect();
        let distinct = lanes.iter().collect::<BTreeSet<_>>().len() * lane_bytes;
        self.spread += sectors.len() - distinct.div_ceil(SECTOR_BYTES);
        let asked = (lanes.len() * lane_bytes) as u64;
        self.counts.requests += 1;
        self.counts.request_sectors += sectors.len() as u64;
        let touched = match access {
            Access::Read => (&mut self.read, self.counts.bytes_read += asked).0,
            Access::Write => (&mut self.written, self.counts.bytes_written += asked).0,
        };
        touched.extend(sectors.into_iter().map(|sector| (buffer, sector)));
    }

    /// `bytes` in a row from byte `first` on, by whole warps with `lane_bytes` a lane.
    pub(crate) fn run(
        &mut self,
        access: Access,
        buffer: &'static str,
        first: usize,
        bytes: usize,
        lane_bytes: usize,
    ) {
        let lanes: Vec<usize> = (first..first + bytes).step_by(lane_bytes).collect();
        lanes.chunks(LANES).for_each(|warp| self.request(access, buffer, warp, lane_bytes));
    }

    /// The index of row `row`, which each of its `threads` loads.
    pub(crate) fn index(&mut self, row: usize, threads: usize) {
        let lanes = vec![row * INDEX_BYTES; threads];
        lanes.chunks(LANES).for_each(|warp| self.request(Access::Read, "indices", warp, INDEX_BYTES));
    }

    fn counts(&self) -> Counts {
        let (sectors_read, sectors_written) = (self.read.len() as u64, self.written.len() as u64);
        Counts { sectors_read, sectors_written, ..self.counts }
    }

    /// Holds a launch to this, and this to full requests where rows are whole sectors.
    pub(crate) fn assert(&self, what: &str, counts: Counts, row_bytes: usize) {
        assert_eq!(counts, self.counts(), "{what}: counted, and the least");
        if row_bytes.is_multiple_of(SECTOR_BYTES) {
            assert_eq!(self.spread, 0, "{what}: sectors beyond full requests");
        }
    }
}
