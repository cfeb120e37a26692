//! Copies of a pass's inputs through pinned memory: rows of embeddings, and tables. Weights go
//! through the `uploader`.
//!
//! A copy reads pinned memory while the host goes on, so that memory is cut into slots that take
//! turns, each with an event that completes when the slot may be filled again. While a pass runs,
//! slots are filled with embeddings for the next one (prefetch): those rows need only be copied
//! when it begins.

use std::fmt;

use cudarc::driver::{CudaEvent, result};

use super::buffer::DeviceBuffer;
use super::context::Context;
use super::fault::OrFault;
use super::pinned::Pinned;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a slot: large enough for fast copies, small enough for the first one to begin soon.
const SLOT_BYTES: usize = 8 << 20;

/// Slots for embeddings, at most: 4,096 rows of the 70B's residual stream in bf16.
const SLOTS_MAX: usize = 8;

const DOING: &str = "copying to the GPU";

/// Pinned memory for the copies of every pass.
pub struct Staging {
    rows: Slots,
    row_bytes: usize,
    /// The ids whose rows lie in the slots from the next one on, not copied yet.
    prefetched: Vec<u32>,
    tables: Slots,
}

impl Staging {
    /// Memory for passes of up to `rows_max` rows of `row_bytes` bytes, and up to `tables_max`
    /// bytes of tables.
    pub fn new(context: &Context, rows_max: usize, row_bytes: usize, tables_max: usize) -> Result<Self> {
        if row_bytes > SLOT_BYTES {
            let message =
                format!("a row of {row_bytes} bytes does not fit into {SLOT_BYTES} of pinned memory");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let slot_rows = SLOT_BYTES / row_bytes;
        let slots = rows_max.div_ceil(slot_rows).clamp(2, SLOTS_MAX);
        let rows = Slots::new(context, slots, slot_rows.min(rows_max) * row_bytes)?;
        let tables = Slots::new(context, 2, tables_max.min(SLOT_BYTES))?;
        Ok(Self { rows, row_bytes, prefetched: Vec::new(), tables })
    }

    /// Queues copies of the rows of `ids` to the start of `to`, on the compute stream; `fill(id,
    /// bytes)` writes those that were not prefetched. A row's bytes depend on its id alone.
    ///
    /// # Panics
    ///
    /// When they do not fit into `to`.
    pub fn copy_rows(
        &mut self,
        context: &Context,
        to: &mut DeviceBuffer,
        ids: &[u32],
        mut fill: impl FnMut(u32, &mut [u8]),
    ) -> Result<()> {
        let (row_bytes, slot_rows) = (self.row_bytes, self.slot_rows());
        context.bind()?;
        let prefetched = std::mem::take(&mut self.prefetched);
        for (index, chunk) in ids.chunks(slot_rows).enumerate() {
            let first = index * slot_rows;
            if prefetched.get(first..first + chunk.len()) != Some(chunk) {
                fill_rows(self.rows.free(0)?, row_bytes, chunk, &mut fill);
            }
            self.rows.send(context, to, first * row_bytes, chunk.len() * row_bytes)?;
        }
        Ok(())
    }

    /// Fills the slots with the rows of `ids` from the first on, as many as they hold, for the next
    /// [`copy_rows`](Self::copy_rows). It waits for queued copies only.
    pub fn prefetch(&mut self, ids: &[u32], mut fill: impl FnMut(u32, &mut [u8])) -> Result<()> {
        self.prefetched.clear();
        for (index, chunk) in ids.chunks(self.slot_rows()).take(self.rows.slots.len()).enumerate() {
            fill_rows(self.rows.free(index)?, self.row_bytes, chunk, &mut fill);
            self.prefetched.extend_from_slice(chunk);
        }
        Ok(())
    }

    /// Queues a copy of `bytes` to the start of `to`, on the compute stream: one, if they fit into
    /// a slot. They may be changed as soon as this returns.
    ///
    /// # Panics
    ///
    /// When they do not fit into `to`.
    pub fn copy_tables(&mut self, context: &Context, to: &mut DeviceBuffer, bytes: &[u8]) -> Result<()> {
        context.bind()?;
        let mut first = 0;
        while first < bytes.len() {
            let slot = self.tables.free(0)?;
            let chunk = &bytes[first..bytes.len().min(first + slot.len())];
            slot[..chunk.len()].copy_from_slice(chunk);
            self.tables.send(context, to, first, chunk.len())?;
            first += chunk.len();
        }
        Ok(())
    }

    fn slot_rows(&self) -> usize {
        SLOT_BYTES / self.row_bytes
    }
}

fn fill_rows(slot: &mut [u8], row_bytes: usize, ids: &[u32], fill: &mut impl FnMut(u32, &mut [u8])) {
    for (&id, bytes) in ids.iter().zip(slot.chunks_exact_mut(row_bytes)) {
        fill(id, bytes);
    }
}

/// Slots of pinned memory, which take turns.
struct Slots {
    slots: Vec<PinnedSlot>,
    /// The index of the slot whose turn it is.
    next: usize,
}

struct PinnedSlot {
    pinned: Pinned,
    /// Recorded behind the copy out of this slot.
    copied: CudaEvent,
}

impl Slots {
    fn new(context: &Context, count: usize, bytes: usize) -> Result<Self> {
        let slot = |_| -> Result<PinnedSlot> {
            let copied = context.cuda().new_event(None).or_fault("creating an event")?;
            Ok(PinnedSlot { pinned: Pinned::new(context.cuda(), bytes)?, copied })
        };
        Ok(Self { slots: (0..count).map(slot).collect::<Result<_>>()?, next: 0 })
    }

    /// The slot whose turn it is after `turns` more, once the copy out of it is complete.
    fn free(&mut self, turns: usize) -> Result<&mut [u8]> {
        let count = self.slots.len();
        let slot = &mut self.slots[(self.next + turns) % count];
        // An event that was never recorded is complete.
        slot.copied.synchronize().or_fault(DOING)?;
        Ok(slot.pinned.bytes())
    }

    /// Queues a copy of the first `count` bytes of the slot whose turn it is to byte `first` of
    /// `to` and on.
    fn send(&mut self, context: &Context, to: &mut DeviceBuffer, first: usize, count: usize) -> Result<()> {
        assert!(first + count <= to.bytes(), "{count} bytes at {first} of {to:?}");
        let slots = self.slots.len();
        let slot = &mut self.slots[self.next];
        self.next = (self.next + 1) % slots;
        let (bytes, stream) = (&slot.pinned.bytes()[..count], context.compute());
        // SAFETY: the destination lies in `to`, asserted above and borrowed mutably; work on the
        // same stream is ordered around the copy. The slot is not written before its event says
        // that the copy is complete (`free`), and dropping it waits for the device.
        unsafe { result::memcpy_htod_async(to.address() + first as u64, bytes, stream.cu_stream()) }
            .or_fault(DOING)?;
        slot.copied.record(stream).or_fault(DOING)
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").finish_non_exhaustive()
    }
}
