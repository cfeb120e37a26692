//! The forward pass, written once for every device and every family of models.
//!
//! [`Model`] holds a rank's weights and activations; [`Model::forward`] computes one row of logits
//! per distinct last token of a packed batch. [`layer`] has one decoder layer; `source` keeps all
//! layers on the device and [`streamed`] streams them through one that cannot hold them all;
//! [`rope`] has RoPE's frequencies, `head` what follows the last matmul.

mod head;
pub mod layer;
pub mod rope;
mod source;
pub mod streamed;

use crate::backend::{Backend, Capacity, Matrix, NextBatch, Reduction, Role};
use crate::batch::Packed;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::weights::{HostTensor, ModelTensors};
use head::{HeadMlp, capped};
use layer::{Activations, Branch, Pass};

pub use source::{LayerSource, Resident};
pub use streamed::Streamed;

/// One rank's model: weights outside of the layers, and the activations that every pass reuses.
pub struct Model<B: Backend, L> {
    backend: B,
    layers: L,
    embedding: HostTensor,
    /// The norm of each layer's MLP's output, in models that have them.
    mlp_branch_norms: Vec<B::Weight>,
    final_norm: B::Weight,
    head: B::Weight,
    /// Every packed row.
    all: Activations<B::Act>,
    /// The rows in which sequences end; used from the last layer's attention on.
    last: Activations<B::Act>,
    scratch: B::Act,
    capacity: Capacity,
    /// For each layer, the keys that a query sees.
    windows: Vec<Option<usize>>,
    logit_cap: Option<f32>,
    head_mlp: Option<HeadMlp>,
}

impl<B: Backend, L: LayerSource<B>> Model<B, L> {
    /// Allocates the buffers for passes of up to `capacity`; passes allocate no more.
    pub fn new(
        mut backend: B,
        config: &ModelConfig,
        capacity: Capacity,
        tensors: &ModelTensors,
        layers: L,
    ) -> Result<Self> {
        let mlp_branch_norms =
            tensors.mlp_branch_norms.iter().map(|norm| backend.vector(norm)).collect::<Result<_>>()?;
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
        Ok(Self {
            backend,
            layers,
            embedding,
            mlp_branch_norms,
            final_norm,
            head,
            all,
            last,
            scratch,
            capacity,
            windows: (0..config.layers).map(|layer| config.window(layer)).collect(),
            logit_cap: config.logit_cap,
            head_mlp: tensors.head_out.as_ref().map(HeadMlp::new),
        })
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
        let mut pass = Pass {
            metadata,
            parts: B::parts(metadata),
            sequences: packed.last.len(),
            mlp_tokens: self.capacity.mlp_tokens,
            window: None,
        };
        let backend = &mut self.backend;
        backend.embed(&self.embedding, packed, &mut self.all.residual)?;
        let mut branch = Branch { reduction: Reduction::InResidual, norm: None };
        let layers = self.layers.layers();
        for index in 0..layers - 1 {
            let weights = self.layers.layer(backend, index)?;
            pass.window = self.windows[index];
            let reduction =
                layer::forward(backend, weights, &pass, branch, &mut self.all, &mut self.scratch)?;
            branch = Branch { reduction, norm: self.mlp_branch_norms.get(index) };
        }
        let weights = self.layers.layer(backend, layers - 1)?;
        pass.window = self.windows[layers - 1];
        let reduction = layer::forward_last(
            backend,
            weights,
            &pass,
            branch,
            &mut self.all,
            &mut self.last,
            &mut self.scratch,
        )?;
        self.layers.end_pass(backend)?;
        branch = Branch { reduction, norm: self.mlp_branch_norms.last() };
        layer::add_rms_norm(backend, branch, &self.final_norm, 0..pass.sequences, &mut self.last)?;
        backend.prefetch_embeddings(&self.embedding, next_batch)?;
        let logits = backend.head(&self.last.normed, &self.head, pass.sequences)?;
        Ok(match (&self.head_mlp, self.logit_cap) {
            (Some(mlp), _) => mlp.forward(&logits),
            (None, Some(cap)) => logits.into_iter().map(|logit| capped(logit, cap)).collect(),
            (None, None) => logits,
        })
    }
}
