//! [`Streamed`]: layers that need not all fit on the device.
//!
//! Some layers are resident. The others lie between them as evenly as can be, and pass through a few slots in turn: while
//! one layer computes, the next streamed one is copied. At the end of a pass the first streamed layers follow the last
//! ones into the slots, so that the next pass finds them there.
//!
//! ```text
//! layer            0          1          2          3          4          5     | 0  of the next pass
//! compute          resident   slot 0     resident   slot 1     resident   slot 0| resident
//! copies           ...        3 into 1   5 into 0 (when 1 is through)    1 into 1 (when 3 is through) ...
//! ```

use std::fmt;

use super::LayerSource;
use crate::backend::{Backend, LayerWeights};
use crate::error::Result;
use crate::weights::{LayerTensors, ModelTensors};

/// Slots that streamed layers pass through: one computes while the next is filled.
pub const SLOTS: usize = 2;

/// Where a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// This one of the resident layers.
    Resident(usize),
    /// This one of the streamed layers, in a slot when its turn comes.
    Streamed(usize),
}

/// Layers of which some stay on the device, and the others pass through it in every pass.
///
/// Streamed layers are staged in the order of their use, pass after pass without an end: staging number `n` puts streamed
/// layer `n % streamed` into slot `n % slots`. Every slot but the one in use is always staged ahead.
pub struct Streamed<B: Backend> {
    places: Vec<Place>,
    resident: Vec<LayerWeights<B::Weight>>,
    streamed: Vec<LayerTensors>,
    slots: Vec<B::Slot>,
    /// Stagings so far.
    staged: usize,
    /// Streamed layers that were given out so far.
    used: usize,
    /// Whether the slot that was given out last may still be used by ops to come.
    in_use: bool,
}

impl<B: Backend> Streamed<B> {
    /// Loads `resident_layers` layers to stay, and begins to stage the others.
    ///
    /// # Panics
    ///
    /// When no layer is left to be streamed.
    pub fn load(backend: &mut B, tensors: &ModelTensors, resident_layers: usize) -> Result<Self> {
        let layers = tensors.layers.len();
        assert!(resident_layers < layers, "{resident_layers} of {layers} layers resident: none to stream");
        let (mut places, mut resident, mut streamed) = (Vec::new(), Vec::new(), Vec::new());
        for (index, layer) in tensors.layers.iter().enumerate() {
            if is_streamed(index, layers, layers - resident_layers) {
                backend.check(layer)?;
                places.push(Place::Streamed(streamed.len()));
                streamed.push(layer.clone());
            } else {
                places.push(Place::Resident(resident.len()));
                resident.push(LayerWeights::load(backend, layer)?);
            }
        }
        let slots = (0..SLOTS).map(|_| backend.slot(&streamed[0])).collect::<Result<_>>()?;
        let mut all = Self { places, resident, streamed, slots, staged: 0, used: 0, in_use: false };
        for _ in 0..SLOTS {
            all.stage_next(backend)?;
        }
        Ok(all)
    }

    fn stage_next(&mut self, backend: &mut B) -> Result<()> {
        let (slot, layer) = (self.staged % self.slots.len(), self.staged % self.streamed.len());
        self.staged += 1;
        backend.stage(&mut self.slots[slot], &self.streamed[layer])
    }

    /// Stages the next layer into the slot that was given out last: all ops that use it are queued.
    fn release(&mut self, backend: &mut B) -> Result<()> {
        if std::mem::take(&mut self.in_use) { self.stage_next(backend) } else { Ok(()) }
    }
}

impl<B: Backend> LayerSource<B> for Streamed<B> {
    fn layers(&self) -> usize {
        self.places.len()
    }

    fn layer(&mut self, backend: &mut B, index: usize) -> Result<&LayerWeights<B::Weight>> {
        self.release(backend)?;
        match self.places[index] {
            Place::Resident(resident) => Ok(&self.resident[resident]),
            Place::Streamed(streamed) => {
                let next = self.used % self.streamed.len();
                assert_eq!(streamed, next, "layer {index} is asked for out of order");
                let slot = self.used % self.slots.len();
                self.used += 1;
                self.in_use = true;
                backend.await_slot(&mut self.slots[slot])
            }
        }
    }

    fn end_pass(&mut self, backend: &mut B) -> Result<()> {
        self.release(backend)
    }
}

impl<B: Backend> fmt::Debug for Streamed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streamed").field("places", &self.places).finish_non_exhaustive()
    }
}

/// Whether layer `index` is among the `streamed` of `layers` layers that are streamed: they lie as evenly as whole numbers
/// allow, also from the end of one pass to the start of the next.
fn is_streamed(index: usize, layers: usize, streamed: usize) -> bool {
    (index + 1) * streamed / layers > index * streamed / layers
}

#[cfg(test)]
mod tests;
