//! The CUDA backend's ground: which GPUs there are, a context on one, its memory, its kernels, one wrapper per kernel.
//!
//! Nothing here is touched before [`probe::devices`] has said that there is a driver to talk to: the bindings resolve
//! symbols on first use and panic where a library is missing.

mod backend;
pub mod buffer;
mod clock;
pub mod context;
mod courier;
mod fault;
pub mod gemm;
pub mod heads;
pub mod kernels;
pub mod nccl;
pub mod nvml;
pub mod ops;
mod pinned;
pub mod probe;
mod products;
mod ring;
mod sizes;
mod slot;

pub mod staging;
pub mod stopwatch;
mod sums;
pub mod tables;
pub mod tiles;
mod weight;

pub use backend::{Act, Cuda, Metadata, Setup};
pub use slot::Slot;
pub use weight::Weight;

use super::tier::CudaTier;

/// The 16-bit format in which activations and weights lie on a device. Arithmetic is in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// IEEE half precision, for GPUs without bf16 (Turing); the residual stream is then in f32.
    F16,
    /// bfloat16, from compute capability 8.0 on.
    Bf16,
}

impl Storage {
    /// What a tier stores.
    pub fn of(tier: CudaTier) -> Self {
        match tier {
            CudaTier::Sm75 => Self::F16,
            CudaTier::Sm80 => Self::Bf16,
        }
    }

    /// Bytes of one number.
    pub const BYTES: usize = 2;

    /// Bytes of one number of the residual stream.
    pub fn residual_bytes(self) -> usize {
        match self {
            Self::F16 => 4,
            Self::Bf16 => 2,
        }
    }

    /// What kernel entries of this format are called after.
    fn suffix(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}
