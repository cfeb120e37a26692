//! What a pass needs from the host, through pinned memory: rows of embeddings, and its tables in one copy. Weights take another way:
//! `courier.rs`.
//!
//! Two slots take turns: one is filled while the other's copy is under way. Pinned memory is read by the copy itself, so
//! each slot has an event that says when it may be filled again.

use std::fmt;

use cudarc::driver::{CudaEvent, result};

use super::buffer::DeviceBuffer;
use super::context::Context;
use super::fault::OrFault;
use super::pinned::Pinned;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a slot: large enough that a copy is fast, small enough to cost nothing.
const SLOT_BYTES: usize = 8 << 20;

/// Pinned memory in two slots.
pub struct Staging {
    slots: [Slot; 2],
    next: usize,
}

struct Slot {
    pinned: Pinned,
    /// Recorded behind the copy out of this slot.
    copied: CudaEvent,
}

impl Staging {
    /// Two slots of pinned memory.
    pub fn new(context: &Context) -> Result<Self> {
        let slot = || -> Result<Slot> {
            let copied = context.cuda().new_event(None).or_fault("making an event")?;
            Ok(Slot { pinned: Pinned::new(context.cuda(), SLOT_BYTES)?, copied })
        };
        Ok(Self { slots: [slot()?, slot()?], next: 0 })
    }

    /// Queues a copy of `bytes` to byte 0 of `to` and on, on the compute stream: one, unless they are more than a slot's.
    /// They may be changed as soon as this returns.
    ///
    /// # Panics
    ///
    /// When they do not fit into `to`.
    pub fn copy(&mut self, context: &Context, to: &mut DeviceBuffer, bytes: &[u8]) -> Result<()> {
        for (index, chunk) in bytes.chunks(SLOT_BYTES).enumerate() {
            self.copy_rows(context, to, index * SLOT_BYTES, 1, chunk.len(), |_, slot| {
                slot.copy_from_slice(chunk);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Queues copies of `rows` rows of `row_bytes` bytes to byte `first` of `to` and on, on the compute stream;
    /// `fill(row, bytes)` writes each.
    ///
    /// # Panics
    ///
    /// When they do not fit into `to`.
    pub fn copy_rows(
        &mut self,
        context: &Context,
        to: &mut DeviceBuffer,
        first: usize,
        rows: usize,
        row_bytes: usize,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        assert!(
            first + rows * row_bytes <= to.bytes(),
            "{rows} rows of {row_bytes} bytes at {first} of {to:?}"
        );
        if row_bytes > SLOT_BYTES {
            let message =
                format!("a row of {row_bytes} bytes does not fit into {SLOT_BYTES} of pinned memory");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let doing = "copying to the GPU";
        context.bind()?;
        let rows_at_once = SLOT_BYTES / row_bytes.max(1);
        for start in (0..rows).step_by(rows_at_once) {
            let chunk = start..rows.min(start + rows_at_once);
            let slot = &mut self.slots[self.next];
            self.next = 1 - self.next;
            // An event that was never recorded is complete.
            slot.copied.synchronize().or_fault(doing)?;
            let bytes = &mut slot.pinned.bytes()[..chunk.len() * row_bytes];
            for (row, bytes) in chunk.clone().zip(bytes.chunks_exact_mut(row_bytes)) {
                fill(row, bytes)?;
            }
            let address = to.address() + (first + chunk.start * row_bytes) as u64;
            let stream = context.compute();
            // SAFETY: the destination lies in `to`, asserted above and borrowed mutably; work on the same stream is
            // ordered around the copy. The slot is not written before its event says that the copy is through, and
            // dropping it waits for the device.
            unsafe { result::memcpy_htod_async(address, bytes, stream.cu_stream()) }.or_fault(doing)?;
            slot.copied.record(stream).or_fault(doing)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").finish_non_exhaustive()
    }
}
