//! The formats of elements on a device: [`ActivationFormat`] and [`WeightFormat`]. Arithmetic is in
//! f32.

use crate::backend::tier::CudaTier;

/// The 16-bit format of activations on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationFormat {
    /// IEEE half precision, for GPUs without bf16 (Turing); the residual stream is then in f32.
    F16,
    /// bfloat16, from compute capability 8.0 on.
    Bf16,
}

impl ActivationFormat {
    /// The format of a tier.
    pub const fn of(tier: CudaTier) -> Self {
        match tier {
            CudaTier::Sm75 => Self::F16,
            CudaTier::Sm80 => Self::Bf16,
        }
    }

    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Bytes of an element of the residual stream.
    pub const fn residual_bytes(self) -> usize {
        match self {
            Self::F16 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The name of the format in the names of kernels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// The format of weights on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl WeightFormat {
    /// The format of weights that are multiplied with such activations.
    pub const fn beside(activations: ActivationFormat) -> Self {
        match activations {
            ActivationFormat::F16 => Self::F16,
            ActivationFormat::Bf16 => Self::Bf16,
        }
    }

    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
        }
    }
}
