//! AllReducer over ranks beside the kernels: what output projections put out waits here for the other ranks' parts.
//!
//! AllReducer run on a stream of their own, in the order in which they are begun, and the compute stream waits for one where
//! its norm takes it:
//!
//! ```text
//! compute   attention 0, o 0 | attention 1, o 1   | norm 0, mlp 0      | norm 1, mlp 1      | ...
//! sums                       | o of part 0        | o of part 1        | down of part 0     | down of part 1
//! ```
//!
//! AllReducer in order gather what every rank has into one of two places, a bounded number of rows at a time, and the norm adds
//! it. Reduced ones need no place: NCCL adds them where they lie.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream};

use super::buffer::DeviceBuffer;
use super::context::Context;
use super::fault::OrFault;
use super::format::ActivationFormat;
use super::nccl::{Comm, Element, Group};
use super::ops::Delta;
use super::sizes::{AllReduceSizes, PIECES_GATHERED};
use crate::backend::{AllReduce, Capacity, Geometry};
use crate::error::Result;

const DOING: &str = "summing over ranks";

/// One rank's side of the sums over ranks.
pub(super) struct AllReducer {
    // Dropped first: it ends what waits for other ranks.
    comm: Option<Comm>,
    group: Arc<Group>,
    rank: usize,
    stream: Arc<CudaStream>,
    hidden: usize,
    element: Element,
    /// `[rows, hidden]`: what this rank has computed, and after a reduced sum what all have.
    partial: DeviceBuffer,
    /// Places for `[ranks, piece_rows, hidden]`, what every rank has computed; none where NCCL adds.
    gathered: Vec<DeviceBuffer>,
    piece_rows: usize,
    /// AllReducer that the next norms take, in their order. The first `begun` are under way.
    pending: VecDeque<Range<usize>>,
    begun: usize,
    /// AllReducer that were begun and taken so far: their numbers choose places and events.
    begun_ever: usize,
    taken_ever: usize,
    /// Recorded on the compute stream when a sum begins, and on this one behind it.
    computed: CudaEvent,
    summed: Vec<CudaEvent>,
}

impl AllReducer {
    /// For ranks that will meet in `group`.
    pub(super) fn new(
        context: &Context,
        group: Arc<Group>,
        geometry: &Geometry,
        capacity: &Capacity,
        format: ActivationFormat,
    ) -> Result<Self> {
        let sizes = AllReduceSizes::new(geometry, capacity, format);
        let event = || context.cuda().new_event(None).or_fault("making an event");
        let places = match geometry.all_reduce {
            AllReduce::Ordered => PIECES_GATHERED,
            AllReduce::Nccl => 0,
        };
        let gathered = (0..places).map(|_| context.allocate(sizes.gathered_bytes)).collect::<Result<_>>()?;
        // Gathered pieces are as many as there are places; reduced ones all that a pass can have.
        let events = if places > 0 { places } else { sizes.pieces };
        Ok(Self {
            comm: None,
            group,
            rank: geometry.shard.rank,
            stream: context.cuda().new_stream().or_fault("making a stream")?,
            hidden: geometry.hidden,
            element: match format {
                ActivationFormat::F16 => Element::F32,
                ActivationFormat::Bf16 => Element::Activation(format),
            },
            partial: context.allocate(sizes.partial_bytes)?,
            gathered,
            piece_rows: sizes.piece_rows,
            pending: VecDeque::with_capacity(sizes.pieces),
            begun: 0,
            begun_ever: 0,
            taken_ever: 0,
            computed: event()?,
            summed: (0..events).map(|_| event()).collect::<Result<_>>()?,
        })
    }

    /// Meets the other ranks.
    pub(super) fn connect(&mut self, context: &Context) -> Result<()> {
        self.comm = Some(self.group.join(context, self.rank)?);
        Ok(())
    }

    /// Where output projections put this rank's part of their rows.
    pub(super) fn partial(&mut self) -> &mut DeviceBuffer {
        &mut self.partial
    }

    /// Begins the sum of these rows, which were computed by what is queued on the compute stream.
    pub(super) fn begin(&mut self, context: &Context, rows: Range<usize>) -> Result<()> {
        for first in rows.clone().step_by(self.piece_rows) {
            self.pending.push_back(first..rows.end.min(first + self.piece_rows));
        }
        self.advance(context)
    }

    /// Begins as many pending sums as there are places for.
    fn advance(&mut self, context: &Context) -> Result<()> {
        let comm = self.comm.as_ref().expect("ranks meet before the first pass");
        while self.begun < self.pending.len() && self.begun < self.summed.len() {
            // Behind it on the compute stream are the rows, and the norm that took what was in the place before.
            self.computed.record(context.compute()).or_fault(DOING)?;
            self.stream.wait(&self.computed).or_fault(DOING)?;
            let rows = &self.pending[self.begun];
            let (first, count) = (rows.start * self.hidden, rows.len() * self.hidden);
            let place = self.begun_ever % self.summed.len();
            match self.gathered.get_mut(place) {
                Some(to) => comm.all_gather(&self.partial, first, to, count, self.element, &self.stream)?,
                None => comm.all_reduce(&mut self.partial, first, count, self.element, &self.stream)?,
            }
            self.summed[place].record(&self.stream).or_fault(DOING)?;
            self.begun += 1;
            self.begun_ever += 1;
        }
        Ok(())
    }

    /// Gives `norm` the sums of these rows, piece by piece, for kernels to be queued behind them: a piece's rows and what
    /// is to be added to them.
    ///
    /// # Panics
    ///
    /// When other rows' sums were begun before these.
    pub(super) fn take(
        &mut self,
        context: &Context,
        rows: Range<usize>,
        mut norm: impl FnMut(Range<usize>, Delta<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut next = rows.start;
        while next < rows.end {
            let piece = self.pending.pop_front().expect("a norm takes sums that were begun");
            assert!(piece.start == next && piece.end <= rows.end, "{piece:?} is not the next of {rows:?}");
            next = piece.end;
            let place = self.taken_ever % self.summed.len();
            (self.begun, self.taken_ever) = (self.begun - 1, self.taken_ever + 1);
            context.compute().wait(&self.summed[place]).or_fault(DOING)?;
            let delta = match self.gathered.get(place) {
                Some(gathered) => Delta::Parts(gathered.all(), self.group.ranks()),
                None => Delta::In(self.partial.all()),
            };
            norm(piece, delta)?;
            self.advance(context)?;
        }
        Ok(())
    }

    /// Lets what is queued on the compute stream from here on wait for all sums that have begun.
    pub(super) fn settle(&self, context: &Context) -> Result<()> {
        (self.taken_ever..self.begun_ever)
            .try_for_each(|sum| context.compute().wait(&self.summed[sum % self.summed.len()]).or_fault(DOING))
    }

    /// Waits until everything queued on the compute stream is done; an error when a rank failed or does not come.
    pub(super) fn wait(&self, context: &Context) -> Result<()> {
        self.comm.as_ref().map_or(Ok(()), |comm| comm.wait(context))
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
