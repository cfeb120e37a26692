//! [`Slot`]: memory for one layer that many pass through, with the events that keep them apart.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::CudaEvent;

use super::context::Context;
use super::courier::{Courier, DOING, Order, Receipt, What};
use super::fault::OrFault;
use super::weight::{Layout, Weight};
use crate::backend::{LayerWeights, Part};
use crate::error::Result;
use crate::weights::LayerTensors;

/// A layer's place on the device. The order of its events is told in `courier.rs`.
pub struct Slot {
    /// Shared with orders under way, so that it outlives them.
    weights: Arc<LayerWeights<Weight>>,
    free: Arc<CudaEvent>,
    filled: Arc<CudaEvent>,
    /// Of the order that nobody has waited for yet.
    receipt: Option<Receipt>,
}

impl Slot {
    /// A slot for layers of the shapes of `like`.
    pub(super) fn new(context: &Context, layout: Layout, like: &LayerTensors) -> Result<Self> {
        let weights = LayerWeights::make(like, |part| Weight::allocate(context, layout, &part))?;
        let event = || context.cuda().new_event(None).map(Arc::new).or_fault("making an event");
        Ok(Self { weights: Arc::new(weights), free: event()?, filled: event()?, receipt: None })
    }

    /// Orders a layer. What is queued on the compute stream by now still finds the one before.
    pub(super) fn stage(
        &mut self,
        context: &Context,
        courier: &Courier,
        layout: Layout,
        layer: &LayerTensors,
    ) -> Result<()> {
        self.free.record(context.compute()).or_fault(DOING)?;
        let parts = Part::of_layer(layer);
        let pairs = self.weights.all().into_iter().zip(&parts);
        let rows = pairs.flat_map(|(weight, part)| weight.rows_from(layout, part)).collect();
        let what = What::Stage {
            slot: Arc::clone(&self.weights),
            free: Arc::clone(&self.free),
            filled: Arc::clone(&self.filled),
        };
        self.receipt = Some(courier.order(Order { rows, what }));
        Ok(())
    }

    /// The layer that was ordered last, for what is queued on the compute stream from here on.
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
