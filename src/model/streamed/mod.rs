//! [`Streamed`]: layers of which not all fit on the device.
//!
//! Some layers are resident. The others are spread evenly between them and copied into a few slots
//! in turn: while one layer is computed, the next streamed one is copied. At the end of a pass the
//! first streamed layers are copied again, for the next pass.
//!
//! ```text
//! layer            0          1          2          3          4          5     | 0  of the next pass
//! compute          resident   slot 0     resident   slot 1     resident   slot 0| resident
//! copies           ...        3 into 1   5 into 0 (when 1 is through)    1 into 1 (when 3 is through) ...
//! ```

use std::fmt;

use super::source::LayerSource;
use crate::backend::{Backend, LayerWeights};
use crate::error::Result;
use crate::weights::{LayerTensors, ModelTensors};

/// Number of slots: one is computed with while the next is filled.
pub const SLOTS: usize = 2;

/// The place of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Index among the resident layers.
    Resident(usize),
    /// Index among the streamed layers.
    Streamed(usize),
}

/// Layers of which some stay on the device, and the others are streamed through it in every pass.
///
/// Streamed layers are staged in the order of their use, over all passes: staging number `n` copies
/// streamed layer `n % streamed` into slot `n % slots`. Every slot except the one in use is always
/// staged.
pub struct Streamed<B: Backend> {
    places: Vec<Place>,
    resident: Vec<LayerWeights<B::Weight>>,
    streamed: Vec<LayerTensors>,
    slots: Vec<B::Slot>,
    /// Stagings so far.
    staged: usize,
    /// Streamed layers returned so far.
    used: usize,
    /// Whether further ops may use the slot of the layer returned last.
    in_use: bool,
}

impl<B: Backend> Streamed<B> {
    /// Loads `resident_layers` resident layers, and begins to stage the others.
    ///
    /// # Panics
    ///
    /// If no layer is streamed.
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
                resident.push(backend.load_layer(layer)?);
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

    /// Stages the next layer into the slot that was in use: all ops that use it are queued.
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
                assert_eq!(streamed, next, "layer {index} was requested out of order");
                let slot = self.used % self.slots.len();
                self.used += 1;
                self.in_use = true;
                backend.await_slot(&mut self.slots[slot])
            }
        }
    }

    /// A streamed layer's copies may wait for the end of the present pass.
    fn ready_layers(&self) -> usize {
        self.places.iter().take_while(|place| matches!(place, Place::Resident(_))).count()
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

/// Whether layer `index` is among the `streamed` of `layers` layers that are streamed: they are
/// spread as evenly as integers allow, also from the end of one pass to the start of the next.
fn is_streamed(index: usize, layers: usize, streamed: usize) -> bool {
    (index + 1) * streamed / layers > index * streamed / layers
}

#[cfg(test)]
mod tests;
