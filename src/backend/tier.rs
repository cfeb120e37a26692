//! [`CudaTier`]: which generation of GPUs the kernels are made for. Named here, where builds without CUDA see it too.

/// A generation of GPUs: what it stores numbers in and multiplies them with. A newer GPU can run an older tier, which
/// is how that one is checked where there is no older GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum CudaTier {
    /// Turing, compute capability 7.5: f16 and `mma.m16n8k8`; the residual stream is in f32.
    Sm75,
    /// Ampere and later, from compute capability 8.0 on: bf16, `mma.m16n8k16`, copies to shared memory by `cp.async`.
    Sm80,
}

impl CudaTier {
    /// Every tier, oldest first.
    pub const ALL: [Self; 2] = [Self::Sm75, Self::Sm80];

    /// What its kernels are called after.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sm75 => "sm75",
            Self::Sm80 => "sm80",
        }
    }
}
