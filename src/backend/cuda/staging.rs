//! Copies of a pass's inputs through pinned memory: rows of embeddings, and tables. Weights go
//! through the `uploader`.
//!
//! A copy reads pinned memory while the host goes on, so that memory is cut into slots that take
//! turns, each with an event that completes when the slot may be filled again. While a pass runs,
//! the embeddings of the next one are copied to a buffer of their own, on a stream of their own
//! (prefetch): when it begins they are on the device.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, result};

use super::buffer::DeviceBuffer;
use super::context::Context;
use super::fault::OrFault;
use super::pinned::Pinned;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a slot: large enough for fast copies, small enough for the first one to begin soon.
const SLOT_BYTES: usize = 8 << 20;

/// Slots for embeddings, at most: some are filled while others travel.
const SLOTS_MAX: usize = 4;

/// Bytes of embeddings that are prefetched, at most: 4,096 rows of the 70B's residual stream in
/// bf16.
const PREFETCHED_BYTES_MAX: usize = 64 << 20;

const DOING: &str = "copying to the GPU";

/// Pinned memory for the copies of every pass.
pub struct Staging {
    rows: Slots,
    row_bytes: usize,
    prefetched: Prefetched,
    tables: Slots,
}

/// Rows of embeddings for the next pass, on the device.
struct Prefetched {
    stream: Arc<CudaStream>,
    rows: DeviceBuffer,
    /// The ids whose rows these are, and which were not used yet.
    ids: Vec<u32>,
    /// Recorded on the stream behind the copies.
    arrived: CudaEvent,
    /// Recorded on the compute stream when a pass has taken the rows.
    taken: CudaEvent,
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
        let event = || context.cuda().new_event(None).or_fault("creating an event");
        let prefetched = Prefetched {
            stream: context.cuda().new_stream().or_fault("creating a stream")?,
            rows: context.allocate(Self::device_bytes(rows_max, row_bytes))?,
            ids: Vec::new(),
            arrived: event()?,
            taken: event()?,
        };
        Ok(Self { rows, row_bytes, prefetched, tables })
    }

    /// Bytes on the device of a staging for passes of up to `rows_max` rows.
    pub(super) fn device_bytes(rows_max: usize, row_bytes: usize) -> usize {
        rows_max.min(PREFETCHED_BYTES_MAX / row_bytes) * row_bytes
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
        let mut first = self.take_prefetched(context, to, ids)?;
        for chunk in ids[first..].chunks(slot_rows) {
            fill_rows(self.rows.free()?, row_bytes, chunk, &mut fill);
            self.rows.send(context.compute(), to, first * row_bytes, chunk.len() * row_bytes)?;
            first += chunk.len();
        }
        Ok(())
    }

    /// Queues the copy of prefetched rows to the start of `to`, where they are the first ones of
    /// `ids`; returns how many these are.
    fn take_prefetched(&mut self, context: &Context, to: &mut DeviceBuffer, ids: &[u32]) -> Result<usize> {
        let Prefetched { rows, ids: prefetched, arrived, taken, .. } = &mut self.prefetched;
        let (prefetched, compute) = (std::mem::take(prefetched), context.compute());
        if prefetched.is_empty() || !ids.starts_with(&prefetched) {
            return Ok(0);
        }
        let bytes = prefetched.len() * self.row_bytes;
        assert!(bytes <= to.bytes(), "{bytes} bytes of {to:?}");
        compute.wait(arrived).or_fault(DOING)?;
        // SAFETY: the destination lies in `to`, asserted above and borrowed mutably, the source in
        // its buffer, which has as many rows as were prefetched; both outlive the work, since
        // dropping one waits for the device. The rows have arrived, and are not written again before
        // the event below.
        unsafe { result::memcpy_dtod_async(to.address(), rows.address(), bytes, compute.cu_stream()) }
            .or_fault(DOING)?;
        taken.record(compute).or_fault(DOING)?;
        Ok(prefetched.len())
    }

    /// Copies the rows of `ids` to the device, as many of the first ones as it has memory for, for
    /// the next [`copy_rows`](Self::copy_rows); returns whether these are all. It waits for copies
    /// of its own only.
    pub fn prefetch(
        &mut self,
        context: &Context,
        ids: &[u32],
        mut fill: impl FnMut(u32, &mut [u8]),
    ) -> Result<bool> {
        let (row_bytes, slot_rows) = (self.row_bytes, self.slot_rows());
        context.bind()?;
        let Prefetched { stream, rows, ids: prefetched, arrived, taken } = &mut self.prefetched;
        prefetched.clear();
        stream.wait(taken).or_fault(DOING)?;
        let ids_here = &ids[..ids.len().min(rows.bytes() / row_bytes)];
        for (index, chunk) in ids_here.chunks(slot_rows).enumerate() {
            fill_rows(self.rows.free()?, row_bytes, chunk, &mut fill);
            let first = index * slot_rows;
            self.rows.send(stream, rows, first * row_bytes, chunk.len() * row_bytes)?;
        }
        arrived.record(stream).or_fault(DOING)?;
        prefetched.extend_from_slice(ids_here);
        Ok(ids_here.len() == ids.len())
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
            let slot = self.tables.free()?;
            let chunk = &bytes[first..bytes.len().min(first + slot.len())];
            slot[..chunk.len()].copy_from_slice(chunk);
            self.tables.send(context.compute(), to, first, chunk.len())?;
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

    /// The slot whose turn it is, once the copy out of it is complete.
    fn free(&mut self) -> Result<&mut [u8]> {
        let slot = &mut self.slots[self.next];
        // An event that was never recorded is complete.
        slot.copied.synchronize().or_fault(DOING)?;
        Ok(slot.pinned.bytes())
    }

    /// Queues a copy of the first `count` bytes of the slot whose turn it is to byte `first` of
    /// `to` and on, on `stream`.
    fn send(&mut self, stream: &CudaStream, to: &mut DeviceBuffer, first: usize, count: usize) -> Result<()> {
        assert!(first + count <= to.bytes(), "{count} bytes at {first} of {to:?}");
        let slots = self.slots.len();
        let slot = &mut self.slots[self.next];
        self.next = (self.next + 1) % slots;
        let bytes = &slot.pinned.bytes()[..count];
        // SAFETY: the destination lies in `to`, asserted above and borrowed mutably; work on the
        // same stream is ordered around the copy, and work on others by the events of `Prefetched`.
        // The slot is not written before its event says that the copy is complete (`free`), and
        // dropping it waits for the device.
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
