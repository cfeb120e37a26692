//! The CUDA backend: the GPUs that there are, a context on one, its memory, its kernels, one
//! wrapper per kernel.
//!
//! Nothing here is used before [`probe::devices`] has found a driver: the bindings resolve symbols
//! on first use and panic where a library is missing.

pub mod all_reduce;
mod backend;
pub mod buffer;
mod clock;
pub mod context;
pub mod fault;
mod footprint;
pub mod format;
pub mod gemm;
pub mod heads;
pub mod kernels;
mod load_path;
mod matmuls;
mod narrow;
pub mod nccl;
pub mod nvml;
pub mod ops;
mod pinned;
pub mod probe;
mod results;
mod ring;
mod sizes;
mod slot;
pub mod staging;
pub mod stopwatch;
pub mod tables;
pub mod tiles;
mod upload_job;
mod uploader;
mod vendor;
mod weight;

pub use backend::{Act, Cuda, Metadata, Setup};
pub use load_path::LoadPath;
pub use slot::Slot;
pub use weight::Weight;
