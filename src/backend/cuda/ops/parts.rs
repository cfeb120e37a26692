//! `add_parts`

use std::sync::Arc;

use cudarc::driver::{CudaStream, PushKernelArg};

use super::launch::{Needs, Ops, WORD_BYTES};
use crate::backend::cuda::buffer::{DeviceBuffer, DeviceSlice};
use crate::backend::cuda::fault::OrFault;
use crate::error::Result;

const THREADS: usize = 256;

/// `residual[first + i] += part[0][i] + part[1][i] + ...`: a slice of an all-reduce, in which every
/// rank has a part.
#[derive(Debug)]
pub struct AddParts<'a> {
    /// bf16, or f32 with `ActivationFormat::F16`.
    pub residual: &'a mut DeviceBuffer,
    /// Index of the first element that is added to.
    pub first: usize,
    /// `[count]` in the residual's format: the part of this rank.
    pub own: DeviceSlice<'a>,
    /// `[parts, count]`: those of the others. The row of this rank is not read.
    pub received: DeviceSlice<'a>,
    /// Number of ranks.
    pub parts: usize,
    /// This rank.
    pub rank: usize,
    /// Elements.
    pub count: usize,
}

impl Ops {
    /// Launches `add_parts` on `stream`, behind which the caller orders what else uses the
    /// residual.
    pub fn add_parts(&self, args: AddParts<'_>, stream: &Arc<CudaStream>) -> Result<()> {
        let AddParts { residual, first, own, received, parts, rank, count } = args;
        let needs = Needs("add_parts");
        let element_bytes = self.format().residual_bytes();
        needs.wide("count", count)?;
        needs.wide("first + count", first.saturating_add(count))?;
        needs.that(rank < parts, || format!("a rank below {parts}, not {rank}"))?;
        needs.covers("residual", residual.all(), [first.saturating_add(count), element_bytes])?;
        needs.covers("own", own, [count, element_bytes])?;
        needs.covers("received", received, [parts, count, element_bytes])?;
        let words = (count * element_bytes).div_ceil(WORD_BYTES);
        let config = needs.grid(words.div_ceil(THREADS), 1, THREADS, 0)?;
        let residual = residual.address() + (first * element_bytes) as u64;
        let (own, received) = (own.address(), received.address());
        let (parts, rank, count) = (needs.int("parts", parts)?, needs.int("rank", rank)?, count as u64);
        let mut launch = stream.launch_builder(&self.kernels.add_parts);
        launch.arg(&residual).arg(&own).arg(&received).arg(&parts).arg(&rank).arg(&count);
        // SAFETY: types: three addresses, two ints, a 64-bit integer. bounds: threads past count
        // leave, and each buffer covers count elements, received those of every part. aliases: the
        // residual is borrowed mutably, so the parts are other buffers. lives: see above, also for
        // this stream, since dropping a buffer waits for the whole device.
        unsafe { launch.launch(config) }.or_fault("launching `add_parts`").map(drop)
    }
}
