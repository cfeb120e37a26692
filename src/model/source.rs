//! [`LayerSource`]: the source of a forward pass's layers, and [`Resident`]: the one that keeps all
//! of them on the device.

use crate::backend::{Backend, LayerWeights};
use crate::error::Result;
use crate::weights::ModelTensors;

/// The source of a forward pass's layers: all on the device, or streamed through a few slots.
pub trait LayerSource<B: Backend> {
    /// Returns the number of layers.
    fn layers(&self) -> usize;

    /// Returns layer `index`, ready for ops that are queued before the next call. Called once per
    /// layer and pass, in ascending order.
    fn layer(&mut self, backend: &mut B, index: usize) -> Result<&LayerWeights<B::Weight>>;

    /// Returns the number of first layers that are ready whenever they are asked for: the next pass
    /// may begin with them before the present one has ended.
    fn ready_layers(&self) -> usize;

    /// Called when the last op of a pass that uses a layer is queued.
    fn end_pass(&mut self, _backend: &mut B) -> Result<()> {
        Ok(())
    }
}

/// Layers that all stay on the device.
#[derive(Debug)]
pub struct Resident<W> {
    layers: Vec<LayerWeights<W>>,
}

impl<W> Resident<W> {
    /// Loads all layers into the backend.
    pub fn load<B: Backend<Weight = W>>(backend: &mut B, tensors: &ModelTensors) -> Result<Self> {
        let layers = tensors.layers.iter().map(|layer| backend.load_layer(layer)).collect::<Result<_>>()?;
        Ok(Self { layers })
    }
}

impl<B: Backend> LayerSource<B> for Resident<B::Weight> {
    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn layer(&mut self, _backend: &mut B, index: usize) -> Result<&LayerWeights<B::Weight>> {
        Ok(&self.layers[index])
    }

    fn ready_layers(&self) -> usize {
        self.layers.len()
    }
}
