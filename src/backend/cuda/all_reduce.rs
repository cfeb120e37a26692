//! [`AllReducer`]: all-reduces beside the kernels. Results of output projections wait here for the
//! other ranks' parts.
//!
//! All-reduces run on a stream of their own, in the order in which they are begun, and the compute
//! stream waits for one where its norm takes it:
//!
//! ```text
//! compute   attention 0, o 0 | attention 1, o 1   | norm 0, mlp 0      | norm 1, mlp 1      | ...
//! reduce                     | o of part 0        | o of part 1        | down of part 0     | down of part 1
//! ```
//!
//! An ordered all-reduce adds every rank's part in the order of ranks, with one rounding, a bounded
//! number of rows at a time: a piece. Of few rows each rank gathers all parts into one of two
//! buffers, and the norm adds them. Of many rows among more than two ranks, each rank receives all
//! parts of its slice of the elements, adds them to its residual stream, and gathers the other
//! slices of that: `2 (n - 1) / n` pieces over a rank's link instead of `n - 1`, with the same bits.
//! NCCL's all-reduce moves as much as the second way, needs no buffer, and adds in an order of its
//! own.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, result};

use super::buffer::DeviceBuffer;
use super::context::Context;
use super::fault::OrFault;
use super::format::ActivationFormat;
use super::nccl::{Comm, Element, Group};
use super::ops::{AddParts, Delta, Ops};
use super::sizes::{AllReduceSizes, PIECES_GATHERED, Summation};
use crate::backend::{Capacity, Geometry};
use crate::error::Result;

const DOING: &str = "all-reducing over ranks";

/// All-reduces between two checkpoints. At most twice as many are queued and not done, with fewer
/// than 10 launches each: a driver's queue holds some 1,024 launches of a stream, and a launch that
/// waits for a full queue heeds no timeout and no abort.
const CHECKPOINT_INTERVAL: usize = 32;

/// One rank's all-reduces.
pub struct AllReducer {
    // Dropped first: that ends collectives that wait for other ranks.
    comm: Option<Comm>,
    group: Arc<Group>,
    rank: usize,
    stream: Arc<CudaStream>,
    hidden: usize,
    element: Element,
    /// `[rows, hidden]`: this rank's part, and after NCCL's all-reduce the sum of all.
    partial: DeviceBuffer,
    /// Parts that are received: `[ranks, rows, hidden]` of a piece, or of this rank's slice of one.
    /// None where NCCL adds.
    gathered: Vec<DeviceBuffer>,
    sizes: AllReduceSizes,
    /// All-reduces that the next norms take, in their order. The first `begun` are queued.
    pending: VecDeque<Range<usize>>,
    begun: usize,
    /// The address of the residual stream whose rows are pending.
    residual: u64,
    /// All-reduces that were begun and taken so far: these counts choose buffers and events.
    begun_ever: usize,
    taken_ever: usize,
    /// Recorded on the compute stream when an all-reduce begins.
    computed: CudaEvent,
    /// Recorded on this stream behind it.
    reduced: Vec<CudaEvent>,
    /// Recorded on this stream, in turn, behind every [`CHECKPOINT_INTERVAL`] all-reduces.
    checkpoints: [CudaEvent; 2],
}

impl AllReducer {
    /// All-reduces of ranks that will join `group`.
    pub fn new(
        context: &Context,
        group: Arc<Group>,
        geometry: &Geometry,
        capacity: &Capacity,
        format: ActivationFormat,
    ) -> Result<Self> {
        let sizes = AllReduceSizes::new(geometry, capacity, format);
        let event = || context.cuda().new_event(None).or_fault("creating an event");
        let buffers = if sizes.gathered_bytes > 0 { PIECES_GATHERED } else { 0 };
        let gathered = (0..buffers).map(|_| context.allocate(sizes.gathered_bytes)).collect::<Result<_>>()?;
        // Pieces are gathered in as many buffers as there are; NCCL reduces all that a pass can
        // have.
        let events = if buffers > 0 { buffers } else { sizes.pieces };
        // Blocks of a matmul fill the card: an all-reduce that waited for them would begin late,
        // and hold up the other ranks. Of two streams a card runs the blocks of the one with the
        // higher priority.
        context.bind()?;
        let (_, greatest) = result::stream::get_priority_range().or_fault(DOING)?;
        let stream = context.cuda().new_stream_with_priority(greatest).or_fault("creating a stream")?;
        Ok(Self {
            comm: None,
            group,
            rank: geometry.shard.rank,
            stream,
            hidden: geometry.hidden,
            element: match format {
                ActivationFormat::F16 => Element::F32,
                ActivationFormat::Bf16 => Element::Activation(format),
            },
            partial: context.allocate(sizes.partial_bytes)?,
            gathered,
            pending: VecDeque::with_capacity(sizes.pieces),
            sizes,
            begun: 0,
            residual: 0,
            begun_ever: 0,
            taken_ever: 0,
            computed: event()?,
            reduced: (0..events).map(|_| event()).collect::<Result<_>>()?,
            checkpoints: [event()?, event()?],
        })
    }

    /// Joins the other ranks, and runs a first collective of each kind and size: NCCL connects its
    /// transports and allocates their buffers then, which takes seconds and can fail.
    pub fn connect(&mut self, ops: &Ops) -> Result<()> {
        let context = ops.context();
        let comm = self.comm.insert(self.group.join(context, self.rank)?);
        self.partial.fill(0, context.compute())?;
        self.computed.record(context.compute()).or_fault(DOING)?;
        self.stream.wait(&self.computed).or_fault(DOING)?;
        let (element, stream, partial) = (self.element, &self.stream, &mut self.partial);
        let rows_max = partial.bytes() / (self.hidden * element.bytes());
        for rows in [1, self.sizes.piece_rows.min(rows_max)] {
            let count = rows * self.hidden;
            match self.sizes.summation(rows) {
                Summation::Nccl => comm.all_reduce(partial, 0, count, element, stream)?,
                Summation::Gathered => {
                    comm.all_gather(partial, 0, &mut self.gathered[0], count, element, stream)?;
                }
                Summation::BySlices => {
                    let slice = count / self.group.ranks();
                    comm.exchange_slices(partial, 0, &mut self.gathered[0], slice, element, stream)?;
                    comm.gather_slices(partial, 0, slice, element, stream)?;
                }
            }
        }
        self.finish(context)
    }

    /// Waits for all-reduces that have begun, for other ranks take part in them; an error when one
    /// fails, or does not come in time.
    pub(super) fn finish(&mut self, context: &Context) -> Result<()> {
        self.computed.record(&self.stream).or_fault(DOING)?;
        context.compute().wait(&self.computed).or_fault(DOING)?;
        self.wait_for(&self.computed)
    }

    /// The buffer for this rank's part of the rows of output projections.
    pub fn partial(&mut self) -> &mut DeviceBuffer {
        &mut self.partial
    }

    /// Begins the all-reduce of these rows of `residual`, which ops that are queued on the compute
    /// stream compute. Until [`take`](Self::take) no op uses them.
    ///
    /// # Panics
    ///
    /// Before [`connect`](Self::connect), and when rows of another residual stream are pending.
    pub fn begin(&mut self, ops: &Ops, rows: Range<usize>, residual: &mut DeviceBuffer) -> Result<()> {
        assert!(self.pending.is_empty() || self.residual == residual.address(), "{rows:?} of another stream");
        self.residual = residual.address();
        for first in rows.clone().step_by(self.sizes.piece_rows) {
            self.pending.push_back(first..rows.end.min(first + self.sizes.piece_rows));
        }
        self.advance(ops, residual)
    }

    /// Queues as many pending all-reduces as there are buffers for.
    fn advance(&mut self, ops: &Ops, residual: &mut DeviceBuffer) -> Result<()> {
        let context = ops.context();
        let comm = self.comm.as_ref().expect("ranks join before the first pass");
        while self.begun < self.pending.len() && self.begun < self.reduced.len() {
            // By then, the compute stream has the rows, and the norm that took the buffer's earlier
            // contents.
            self.computed.record(context.compute()).or_fault(DOING)?;
            self.stream.wait(&self.computed).or_fault(DOING)?;
            let rows = &self.pending[self.begun];
            let (first, count) = (rows.start * self.hidden, rows.len() * self.hidden);
            let slot = self.begun_ever % self.reduced.len();
            let (element, stream) = (self.element, &self.stream);
            match self.sizes.summation(rows.len()) {
                Summation::Nccl => comm.all_reduce(&mut self.partial, first, count, element, stream)?,
                Summation::Gathered => {
                    let to = &mut self.gathered[slot];
                    comm.all_gather(&self.partial, first, to, count, element, stream)?;
                }
                Summation::BySlices => {
                    let to = &mut self.gathered[slot];
                    let (parts, rank) = (self.group.ranks(), self.rank);
                    let count = count / parts;
                    let own = first + rank * count;
                    comm.exchange_slices(&self.partial, first, to, count, element, stream)?;
                    let bytes = own * element.bytes()..(own + count) * element.bytes();
                    let (own_part, received) = (self.partial.slice(bytes), to.all());
                    ops.add_parts(
                        AddParts { residual, first: own, own: own_part, received, parts, rank, count },
                        stream,
                    )?;
                    comm.gather_slices(residual, first, count, element, stream)?;
                }
            }
            self.reduced[slot].record(&self.stream).or_fault(DOING)?;
            self.begun += 1;
            self.begun_ever += 1;
            if self.begun_ever.is_multiple_of(CHECKPOINT_INTERVAL) {
                let checkpoint = &self.checkpoints[self.begun_ever / CHECKPOINT_INTERVAL % 2];
                comm.wait_for(checkpoint)?;
                checkpoint.record(&self.stream).or_fault(DOING)?;
            }
        }
        Ok(())
    }

    /// Calls `norm` for each piece of these rows, with what is to be added to the residual and with
    /// that, to queue kernels behind its all-reduce.
    ///
    /// # Panics
    ///
    /// When the next all-reduce is that of other rows, or of another residual stream.
    pub fn take(
        &mut self,
        ops: &Ops,
        rows: Range<usize>,
        residual: &mut DeviceBuffer,
        mut norm: impl FnMut(Range<usize>, Delta<'_>, &mut DeviceBuffer) -> Result<()>,
    ) -> Result<()> {
        let context = ops.context();
        assert!(self.residual == residual.address(), "{rows:?} of another stream");
        let mut next = rows.start;
        while next < rows.end {
            let piece = self.pending.pop_front().expect("a norm takes all-reduces that were begun");
            assert!(piece.start == next && piece.end <= rows.end, "{piece:?} is not the next of {rows:?}");
            next = piece.end;
            let slot = self.taken_ever % self.reduced.len();
            (self.begun, self.taken_ever) = (self.begun - 1, self.taken_ever + 1);
            context.compute().wait(&self.reduced[slot]).or_fault(DOING)?;
            let delta = match self.sizes.summation(piece.len()) {
                Summation::Nccl => Delta::In(self.partial.all()),
                Summation::Gathered => Delta::Parts(self.gathered[slot].all(), self.group.ranks()),
                Summation::BySlices => Delta::None,
            };
            norm(piece, delta, residual)?;
            self.advance(ops, residual)?;
        }
        Ok(())
    }

    /// Lets ops that are queued on the compute stream from here on wait for all all-reduces that
    /// have begun.
    pub(super) fn settle(&self, context: &Context) -> Result<()> {
        (self.taken_ever..self.begun_ever).try_for_each(|count| {
            context.compute().wait(&self.reduced[count % self.reduced.len()]).or_fault(DOING)
        })
    }

    /// Waits for an event that was recorded behind all-reduces; an error when a rank fails, or does
    /// not come in time.
    pub(super) fn wait_for(&self, event: &CudaEvent) -> Result<()> {
        self.comm.as_ref().map_or(Ok(()), |comm| comm.wait_for(event))
    }
}

impl fmt::Debug for AllReducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllReducer")
            .field("rank", &self.rank)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}
