//! [`CudaTier`]: the generation of GPUs that kernels are made for, also in builds without CUDA.

/// A generation of GPUs, with its format of activations and its matmul instructions. A newer GPU
/// can run an older tier, so that both can be tested on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum CudaTier {
    /// Turing, compute capability 7.5: f16
    ///
    /// Tensor cores by `mma.m16n8k8`; the residual stream is in f32.
    Sm75,
    /// Ampere and later, from compute capability 8.0 on: bf16
    ///
    /// Tensor cores by `mma.m16n8k16`; copies to shared memory by `cp.async`.
    Sm80,
}

impl CudaTier {
    /// Every tier, oldest first.
    pub const ALL: [Self; 2] = [Self::Sm75, Self::Sm80];

    /// Name of the tier, as in the names of its kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sm75 => "sm75",
            Self::Sm80 => "sm80",
        }
    }
}
