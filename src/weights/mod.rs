//! Weights in mapped files, safetensors or those of PyTorch, the table of tensor names, and each
//! rank's slices of them.
//!
//! [`Checkpoint`] turns a model folder into named tensors, [`ModelTensors`] checks them against
//! `config.json` and takes one rank's part. [`RandomWeights`] are tensors of a model's shape
//! without files. No weight is copied, converted or read here: backends read them, and a NaN shows
//! in the reward only.

mod check;
mod checkpoint;
mod dtype;
mod header;
mod index;
mod map;
mod names;
mod normal;
mod pickle;
mod prefetcher;
mod random;
mod table;
mod tensor;
mod tensors;

use std::path::Path;

pub use checkpoint::Checkpoint;
pub use dtype::Dtype;
pub use map::MappedFile;
pub use normal::Normal;
pub use prefetcher::Prefetcher;
pub use random::RandomWeights;
pub use tensor::HostTensor;
pub use tensors::{HeadOut, LayerTensors, ModelTensors, WeightBytes};

/// Returns true if these bytes are a safetensors file, for fuzzing.
pub(crate) fn accepts_file(bytes: &[u8]) -> bool {
    header::parse(bytes, Path::new("model.safetensors")).is_ok()
}

/// Returns true if these bytes are a file of `torch.save` that holds tensors alone, for fuzzing.
pub(crate) fn accepts_pickle(bytes: &[u8]) -> bool {
    pickle::parse(bytes, Path::new("pytorch_model.bin")).is_ok()
}

/// Returns true if this text is an index of weight files, for fuzzing.
pub(crate) fn accepts_index(text: &str) -> bool {
    index::Index::parse(text, Path::new("model.safetensors.index.json")).is_ok()
}
