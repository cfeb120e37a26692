//! [`Slot`]: memory that layers take turns in, with the events that keep them apart.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::CudaEvent;

use super::context::Context;
use super::fault::OrFault;
use super::upload_job::{DOING, UploadJob};
use super::uploader::{Receipt, Uploader};
use super::weight::{Weight, WeightLayout};
use crate::backend::LayerWeights;
use crate::error::Result;
use crate::weights::LayerTensors;

/// Memory for one layer on the device. `uploader.rs` has the order of its events.
pub struct Slot {
    weights: LayerWeights<Weight>,
    free: Arc<CudaEvent>,
    filled: Arc<CudaEvent>,
    /// Receipt of the last job, until it is waited for.
    receipt: Option<Receipt>,
}

impl Slot {
    /// A slot for layers of the shapes of `like`.
    pub(super) fn new(context: &Context, layout: WeightLayout, like: &LayerTensors) -> Result<Self> {
        let weights = LayerWeights::make(like, |part| Weight::allocate(context, layout, &part))?;
        let event = || context.cuda().new_event(None).map(Arc::new).or_fault("creating an event");
        Ok(Self { weights, free: event()?, filled: event()?, receipt: None })
    }

    /// Submits a job that brings a layer. Ops that are queued on the compute stream by now still
    /// find the one before.
    pub(super) fn stage(
        &mut self,
        context: &Context,
        uploader: &Uploader,
        layer: &LayerTensors,
    ) -> Result<()> {
        self.free.record(context.compute()).or_fault(DOING)?;
        let (free, filled) = (Arc::clone(&self.free), Arc::clone(&self.filled));
        let job = UploadJob::stage(&self.weights, layer, free, filled);
        self.receipt = Some(uploader.submit(job));
        Ok(())
    }

    /// The layer that was staged last, for ops that are queued on the compute stream from here on.
    pub(super) fn wait(&mut self, context: &Context) -> Result<&LayerWeights<Weight>> {
        if let Some(receipt) = self.receipt.take() {
            receipt.wait()?;
            context.compute().wait(&self.filled).or_fault(DOING)?;
        }
        Ok(&self.weights)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("weights", &self.weights).finish_non_exhaustive()
    }
}
