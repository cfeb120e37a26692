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

use std::ops::Range;
use std::sync::Arc;

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
    /// The next pass, where it was begun.
    next: Option<Next<B::Metadata>>,
}

/// The batch of a pass that was begun; an error is that pass's.
struct Next<M> {
    batch: Arc<Packed>,
    begun: Result<Begun<M>>,
}

/// A pass of which the first ops are queued.
struct Begun<M> {
    metadata: M,
    /// Layers that are queued.
    layers: usize,
    /// The state of the output that the next norm adds.
    reduction: Reduction,
}

impl<B: Backend, L: LayerSource<B>> Model<B, L> {
    /// Loads the weights outside of the layers, waits until all weights are loaded, and allocates
    /// the buffers for passes of up to `capacity`; passes allocate no more.
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
        backend.finish_loads()?;
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
            next: None,
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

    /// Runs one pass, and returns `[packed.last.len(), labels]` logits. With an asynchronous device,
    /// `next_batch` is called when all ops are queued, and the pass over the batch that it returns
    /// is begun before the logits are waited for.
    ///
    /// # Panics
    ///
    /// When a pass was begun over another batch.
    pub fn forward(&mut self, packed: &Packed, next_batch: NextBatch<'_>) -> Result<Vec<f32>> {
        let begun = match self.next.take() {
            Some(Next { batch, begun }) => {
                assert!(std::ptr::eq(&*batch, packed), "the pass that was begun is the next one");
                begun?
            }
            None => self.begin(packed, 0)?,
        };
        self.queue_rest(packed, begun)?;
        if self.backend.is_asynchronous()
            && let Some(batch) = next_batch()
        {
            // Where it fails on the host, these logits are still returned.
            let begun = self.begin_next(&batch).transpose();
            self.next = begun.map(|begun| Next { batch, begun });
        }
        let logits = match (self.backend.logits(), &self.next) {
            // The failure behind this one.
            (Err(_), Some(Next { begun: Err(cause), .. })) => return Err(cause.clone()),
            (logits, _) => logits?,
        };
        Ok(match (&self.head_mlp, self.logit_cap) {
            (Some(mlp), _) => mlp.forward(&logits),
            (None, Some(cap)) => logits.into_iter().map(|logit| capped(logit, cap)).collect(),
            (None, None) => logits,
        })
    }

    /// Waits for what is queued of a pass that will not be run: other ranks take part in it.
    pub fn finish(&mut self) -> Result<()> {
        match self.next.take() {
            Some(Next { begun: Ok(_), .. }) => self.backend.finish(),
            _ => Ok(()),
        }
    }

    /// Begins the next pass, where all of its embeddings could be prefetched: others wait for the
    /// end of the present one.
    fn begin_next(&mut self, packed: &Packed) -> Result<Option<Begun<B::Metadata>>> {
        if !self.backend.prefetch_embeddings(&self.embedding, packed)? {
            return Ok(None);
        }
        let ready = self.layers.ready_layers().min(self.layers.layers() - 1);
        let layers = self.backend.layers_begun().min(ready);
        self.begin(packed, layers).map(Some)
    }

    /// Queues the embedding and the first `layers` layers. The last layer of the model is never among
    /// them.
    fn begin(&mut self, packed: &Packed, layers: usize) -> Result<Begun<B::Metadata>> {
        let metadata = self.backend.metadata(packed)?;
        self.backend.embed(&self.embedding, packed, &mut self.all.residual)?;
        let mut begun = Begun { metadata, layers: 0, reduction: Reduction::InResidual };
        self.queue_layers(packed, &mut begun, 0..layers)?;
        Ok(begun)
    }

    /// Queues layers other than the last one.
    fn queue_layers(
        &mut self,
        packed: &Packed,
        begun: &mut Begun<B::Metadata>,
        layers: Range<usize>,
    ) -> Result<()> {
        let Begun { metadata, layers: queued, reduction } = begun;
        let mut pass = Pass::new(packed, B::parts(metadata), metadata, self.capacity.mlp_tokens);
        for index in layers {
            let weights = self.layers.layer(&mut self.backend, index)?;
            pass.window = self.windows[index];
            let norm = index.checked_sub(1).and_then(|before| self.mlp_branch_norms.get(before));
            let before = Branch { reduction: *reduction, norm };
            *reduction =
                layer::forward(&mut self.backend, weights, &pass, before, &mut self.all, &mut self.scratch)?;
            *queued = index + 1;
        }
        Ok(())
    }

    /// Queues what is left of a pass.
    fn queue_rest(&mut self, packed: &Packed, mut begun: Begun<B::Metadata>) -> Result<()> {
        let last = self.layers.layers() - 1;
        let first = begun.layers;
        self.queue_layers(packed, &mut begun, first..last)?;
        let Begun { metadata, reduction, .. } = &begun;
        let backend = &mut self.backend;
        let mut pass = Pass::new(packed, B::parts(metadata), metadata, self.capacity.mlp_tokens);
        pass.window = self.windows[last];
        let norm = last.checked_sub(1).and_then(|before| self.mlp_branch_norms.get(before));
        let before = Branch { reduction: *reduction, norm };
        let weights = self.layers.layer(backend, last)?;
        let reduction = layer::forward_last(
            backend,
            weights,
            &pass,
            before,
            &mut self.all,
            &mut self.last,
            &mut self.scratch,
        )?;
        self.layers.end_pass(backend)?;
        let branch = Branch { reduction, norm: self.mlp_branch_norms.last() };
        layer::add_rms_norm(backend, branch, &self.final_norm, 0..pass.sequences, &mut self.last)?;
        backend.head(&self.last.normed, &self.head, pass.sequences)
    }
}
