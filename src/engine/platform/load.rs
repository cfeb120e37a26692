//! Loads a rank's model onto its backend.

use super::interface::RankSetup;
use crate::backend::timed::{Clock, Timed};
use crate::backend::{Backend, NextBatch};
use crate::batch::Packed;
use crate::engine::ranks::Rank;
use crate::error::Result;
use crate::model::{LayerSource, Model, Resident, Streamed};

/// Loads the model onto a backend, which is timed where a profile is requested.
pub(super) fn load<B: Clock + 'static>(backend: B, rank: &RankSetup<'_>) -> Result<Box<dyn Rank>> {
    match rank.profile {
        None => load_layers(backend, rank),
        Some(profile) => load_layers(Timed::new(backend, profile.clone()), rank),
    }
}

fn load_layers<B: Backend + 'static>(mut backend: B, rank: &RankSetup<'_>) -> Result<Box<dyn Rank>> {
    if rank.resident_layers < rank.tensors.layers.len() {
        let layers = Streamed::load(&mut backend, rank.tensors, rank.resident_layers)?;
        return load_model(backend, layers, rank);
    }
    let layers = Resident::load(&mut backend, rank.tensors)?;
    load_model(backend, layers, rank)
}

fn load_model<B, L>(backend: B, layers: L, rank: &RankSetup<'_>) -> Result<Box<dyn Rank>>
where
    B: Backend + 'static,
    L: LayerSource<B> + 'static,
{
    let model = Model::new(backend, rank.config, rank.capacity, rank.tensors, layers)?;
    model.warnings().into_iter().for_each(rank.warn);
    Ok(Box::new(model))
}

impl<B: Backend, L: LayerSource<B>> Rank for Model<B, L> {
    fn connect(&mut self) -> Result<()> {
        Self::connect(self)
    }

    fn finish(&mut self) -> Result<()> {
        Self::finish(self)
    }

    fn forward(&mut self, packed: &Packed, next_batch: NextBatch<'_>) -> Result<Vec<f32>> {
        Self::forward(self, packed, next_batch)
    }
}
