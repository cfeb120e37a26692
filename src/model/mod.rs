//! The Llama forward pass, written once for every device.
//!
//! [`Model`] holds a rank's weights and activations; [`Model::forward`] computes one row of logits
//! per distinct last token of a packed batch. [`layer`] has one decoder layer; `source` keeps all
//! layers on the device and [`streamed`] streams them through one that cannot hold them all;
//! [`rope`] has RoPE's frequencies.

pub mod layer;
pub mod rope;
mod source;
pub mod streamed;

use crate::backend::{Backend, Capacity, Matrix, NextBatch, Reduction, Role};
use crate::batch::Packed;
use crate::error::Result;
use crate::weights::{HostTensor, ModelTensors};
use layer::{Activations, Pass};

pub use source::{LayerSource, Resident};
pub use streamed::Streamed;

/// One rank's model: weights outside of the layers, and the activations that every pass reuses.
pub struct Model<B: Backend, L> {
    backend: B,
    layers: L,
    embedding: HostTensor,
    final_norm: B::Weight,
    head: B::Weight,
    /// Every packed row.
    all: Activations<B::Act>,
    /// The rows in which sequences end; used from the last layer's attention on.
    last: Activations<B::Act>,
    scratch: B::Act,
    capacity: Capacity,
}

impl<B: Backend, L: LayerSource<B>> Model<B, L> {
    /// Allocates the buffers for passes of up to `capacity`; passes allocate no more.
    pub fn new(mut backend: B, capacity: Capacity, tensors: &ModelTensors, layers: L) -> Result<Self> {
        let final_norm = backend.vector(&tensors.final_norm)?;
        let head = backend.matrix(Matrix::Head, std::slice::from_ref(&tensors.head), None)?;
        let mut activations = |rows| -> Result<Activations<B::Act>> {
            Ok(Activations {
                residual: backend.activation(Role::Residual, rows)?,
                normed: backend.activation(Role::Normed, rows)?,
            })
        };
        let all = activations(capacity.tokens)?;
        let last = activations(capacity.sequences)?;
        let scratch = backend.activation(Role::Scratch, capacity.tokens)?;
        let embedding = tensors.embedding.clone();
        Ok(Self { backend, layers, embedding, final_norm, head, all, last, scratch, capacity })
    }

    /// Returns warnings about the loaded weights.
    pub fn warnings(&self) -> Vec<String> {
        self.backend.warnings()
    }

    /// Connects to the other ranks; called once, before the first pass.
    pub fn connect(&mut self) -> Result<()> {
        self.backend.connect()
    }

    /// Runs one pass, and returns `[packed.last.len(), labels]` logits. When all ops but the head
    /// are queued, a backend with an asynchronous device calls `next_batch` and prefetches
    /// embeddings for that batch.
    pub fn forward(&mut self, packed: &Packed, next_batch: NextBatch<'_>) -> Result<Vec<f32>> {
        let metadata = &self.backend.metadata(packed)?;
        let pass = Pass {
            metadata,
            parts: B::parts(metadata),
            sequences: packed.last.len(),
            mlp_tokens: self.capacity.mlp_tokens,
        };
        let backend = &mut self.backend;
        backend.embed(&self.embedding, packed, &mut self.all.residual)?;
        let mut reduction = Reduction::InResidual;
        let layers = self.layers.layers();
        for index in 0..layers - 1 {
            let weights = self.layers.layer(backend, index)?;
            reduction = layer::forward(backend, weights, &pass, reduction, &mut self.all, &mut self.scratch)?;
        }
        let weights = self.layers.layer(backend, layers - 1)?;
        reduction = layer::forward_last(
            backend,
            weights,
            &pass,
            reduction,
            &mut self.all,
            &mut self.last,
            &mut self.scratch,
        )?;
        self.layers.end_pass(backend)?;
        let Activations { residual, normed } = &mut self.last;
        backend.add_rms_norm(residual, reduction, &self.final_norm, 0..pass.sequences, normed)?;
        backend.prefetch_embeddings(&self.embedding, next_batch)?;
        backend.head(normed, &self.head, pass.sequences)
    }
}
