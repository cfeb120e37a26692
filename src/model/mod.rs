//! The Llama forward pass, written once for every device.
//!
//! [`Model`] holds a rank's weights and activations; [`Model::forward`] takes a packed batch to one row of logits per
//! distinct last token. One decoder layer is on the page of [`layer`]; [`streamed`] lets layers pass through a device that
//! cannot hold them all; [`rope`] has RoPE's frequencies.

pub mod layer;
pub mod rope;
pub mod streamed;

use crate::backend::{Ahead, Backend, Capacity, LayerWeights, Matrix, Reduction, Role};
use crate::batch::Packed;
use crate::error::Result;
use crate::weights::{HostTensor, ModelTensors};
use layer::{Activations, Pass};

pub use streamed::Streamed;

/// Where the forward pass gets its layers from: all on the device, or one after the other through a few slots.
pub trait LayerSource<B: Backend> {
    /// How many layers the model has.
    fn layers(&self) -> usize;

    /// Layer `index`, ready for use by ops that are queued from here on, until the next call. Layers are asked for in
    /// ascending order, each once per pass.
    fn layer(&mut self, backend: &mut B, index: usize) -> Result<&LayerWeights<B::Weight>>;

    /// Called when the last op of a pass that uses a layer is queued.
    fn end_pass(&mut self, _backend: &mut B) -> Result<()> {
        Ok(())
    }
}

/// Every layer stays where the backend put it.
#[derive(Debug)]
pub struct Resident<W> {
    layers: Vec<LayerWeights<W>>,
}

impl<W> Resident<W> {
    /// Gives all layers to the backend.
    pub fn load<B: Backend<Weight = W>>(backend: &mut B, tensors: &ModelTensors) -> Result<Self> {
        let layers =
            tensors.layers.iter().map(|layer| LayerWeights::load(backend, layer)).collect::<Result<_>>()?;
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
}

/// One rank's model: weights outside of the layers, and the activations that every pass reuses.
pub struct Model<B: Backend, L> {
    backend: B,
    layers: L,
    embedding: HostTensor,
    final_norm: B::Weight,
    head: B::Weight,
    /// Every packed row.
    all: Activations<B::Act>,
    /// The rows in which sequences end, from the last layer's attention on.
    last: Activations<B::Act>,
    scratch: B::Act,
    capacity: Capacity,
}

impl<B: Backend, L: LayerSource<B>> Model<B, L> {
    /// Allocates everything that passes of up to `capacity` need; nothing is allocated after that.
    pub fn new(mut backend: B, capacity: Capacity, tensors: &ModelTensors, layers: L) -> Result<Self> {
        let final_norm = backend.vector(&tensors.final_norm)?;
        let head = backend.matrix(Matrix::Head, std::slice::from_ref(&tensors.head), None)?;
        let mut stream = |rows| -> Result<Activations<B::Act>> {
            Ok(Activations {
                residual: backend.activation(Role::Residual, rows)?,
                normed: backend.activation(Role::Normed, rows)?,
            })
        };
        let all = stream(capacity.tokens)?;
        let last = stream(capacity.sequences)?;
        let scratch = backend.activation(Role::Scratch, capacity.tokens)?;
        let embedding = tensors.embedding.clone();
        Ok(Self { backend, layers, embedding, final_norm, head, all, last, scratch, capacity })
    }

    /// What the caller should know of the weights as they were loaded.
    pub fn warnings(&self) -> Vec<String> {
        self.backend.warnings()
    }

    /// Meets the other ranks; once, before the first pass.
    pub fn connect(&mut self) -> Result<()> {
        self.backend.connect()
    }

    /// One pass: `[packed.last.len(), labels]` logits, row by row. When all but its end is queued, `ahead` gives the next
    /// pass's batch, where it is known, and a backend whose device works by itself gets ready for it meanwhile.
    pub fn forward(&mut self, packed: &Packed, ahead: Ahead<'_>) -> Result<Vec<f32>> {
        let metadata = &self.backend.metadata(packed)?;
        let pass = Pass {
            metadata,
            parts: B::parts(metadata),
            sequences: packed.last.len(),
            mlp_tokens: self.capacity.mlp_tokens,
        };
        let backend = &mut self.backend;
        backend.embed(&self.embedding, packed, &mut self.all.residual)?;
        let mut sum = Reduction::InResidual;
        let layers = self.layers.layers();
        for index in 0..layers - 1 {
            let weights = self.layers.layer(backend, index)?;
            sum = layer::forward(backend, weights, &pass, sum, &mut self.all, &mut self.scratch)?;
        }
        let weights = self.layers.layer(backend, layers - 1)?;
        sum = layer::forward_last(
            backend,
            weights,
            &pass,
            sum,
            &mut self.all,
            &mut self.last,
            &mut self.scratch,
        )?;
        self.layers.end_pass(backend)?;
        let Activations { residual, normed } = &mut self.last;
        backend.add_rms_norm(residual, sum, &self.final_norm, 0..pass.sequences, normed)?;
        backend.embed_ahead(&self.embedding, ahead)?;
        backend.head(normed, &self.head, pass.sequences)
    }
}
