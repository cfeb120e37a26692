//! Rows of embeddings from the host to the device in every pass, through pinned memory. Weights take another way:
//! `courier.rs`.
//!
//! Slots take turns: one is filled while another's copy is under way. Pinned memory is read by the copy itself, so each
//! slot has an event that says when it may be filled again. While a pass runs, the slots are filled for the next one: as
//! many rows as fit into them need only be copied when it begins.

use std::fmt;

use cudarc::driver::{CudaEvent, result};

use super::buffer::DeviceBuffer;
use super::context::Context;
use super::fault::OrFault;
use super::pinned::Pinned;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a slot: large enough that a copy is fast, small enough that the first one begins soon.
const SLOT_BYTES: usize = 8 << 20;

/// Slots at most: 4,096 rows of the 70B's residual stream in bf16.
const SLOTS_MAX: usize = 8;

const DOING: &str = "copying embeddings to the GPU";

/// Pinned memory in slots, for rows of one length that have ids.
pub struct Staging {
    slots: Vec<Slot>,
    /// The slot whose turn is next.
    next: usize,
    row_bytes: usize,
    /// The ids whose rows lie in the slots from `next` on, not copied yet.
    ahead: Vec<u32>,
}

struct Slot {
    pinned: Pinned,
    /// Recorded behind the copy out of this slot.
    copied: CudaEvent,
}

impl Staging {
    /// Pinned memory for passes of up to `rows_max` rows of `row_bytes` bytes.
    pub fn new(context: &Context, rows_max: usize, row_bytes: usize) -> Result<Self> {
        if row_bytes > SLOT_BYTES {
            let message =
                format!("a row of {row_bytes} bytes does not fit into {SLOT_BYTES} of pinned memory");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let slot_rows = SLOT_BYTES / row_bytes;
        let slots = rows_max.div_ceil(slot_rows).clamp(2, SLOTS_MAX);
        let slot = |_| -> Result<Slot> {
            let copied = context.cuda().new_event(None).or_fault("making an event")?;
            Ok(Slot { pinned: Pinned::new(context.cuda(), slot_rows.min(rows_max) * row_bytes)?, copied })
        };
        let slots = (0..slots).map(slot).collect::<Result<_>>()?;
        Ok(Self { slots, next: 0, row_bytes, ahead: Vec::new() })
    }

    /// Queues copies of the rows of `ids` to the start of `to`, on the compute stream; `fill(id, bytes)` writes those that
    /// do not lie here already. A row's bytes depend on its id alone.
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
        let row_bytes = self.row_bytes;
        assert!(ids.len() * row_bytes <= to.bytes(), "{} rows of {row_bytes} bytes to {to:?}", ids.len());
        context.bind()?;
        let slot_rows = self.slot_rows();
        let ahead = std::mem::take(&mut self.ahead);
        for (index, chunk) in ids.chunks(slot_rows).enumerate() {
            let first = index * slot_rows;
            if ahead.get(first..first + chunk.len()) != Some(chunk) {
                self.fill(self.next, chunk, &mut fill)?;
            }
            let slots = self.slots.len();
            let slot = &mut self.slots[self.next];
            self.next = (self.next + 1) % slots;
            let bytes = &slot.pinned.bytes()[..chunk.len() * row_bytes];
            let address = to.address() + (first * row_bytes) as u64;
            let stream = context.compute();
            // SAFETY: the destination lies in `to`, asserted above and borrowed mutably; work on the same stream is
            // ordered around the copy. The slot is not written before its event says that the copy is through, and
            // dropping it waits for the device.
            unsafe { result::memcpy_htod_async(address, bytes, stream.cu_stream()) }.or_fault(DOING)?;
            slot.copied.record(stream).or_fault(DOING)?;
        }
        Ok(())
    }

    /// Fills the slots with the rows of `ids` from the first on, as many as they hold, for the next
    /// [`copy_rows`](Self::copy_rows). It waits for copies that are under way, and for nothing else.
    pub fn fill_ahead(&mut self, ids: &[u32], mut fill: impl FnMut(u32, &mut [u8])) -> Result<()> {
        let slot_rows = self.slot_rows();
        self.ahead.clear();
        for (index, chunk) in ids.chunks(slot_rows).take(self.slots.len()).enumerate() {
            self.fill((self.next + index) % self.slots.len(), chunk, &mut fill)?;
            self.ahead.extend_from_slice(chunk);
        }
        Ok(())
    }

    fn slot_rows(&self) -> usize {
        SLOT_BYTES / self.row_bytes
    }

    /// Writes rows into a slot once the copy out of it is through.
    fn fill(&mut self, slot: usize, ids: &[u32], fill: &mut impl FnMut(u32, &mut [u8])) -> Result<()> {
        let slot = &mut self.slots[slot];
        // An event that was never recorded is complete.
        slot.copied.synchronize().or_fault(DOING)?;
        for (&id, bytes) in ids.iter().zip(slot.pinned.bytes().chunks_exact_mut(self.row_bytes)) {
            fill(id, bytes);
        }
        Ok(())
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").finish_non_exhaustive()
    }
}
