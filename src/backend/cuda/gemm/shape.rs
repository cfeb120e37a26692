//! The shapes of matmuls, and the formats and alignments of their operands.

use std::fmt;

use cudarc::cublaslt::sys;
use serde::{Deserialize, Serialize};

use crate::backend::cuda::format::{ActivationFormat, WeightFormat};

/// The alignment of an allocation, and the largest that the library asks for.
const ALIGNMENT_MAX: usize = 256;

/// The shape of `out[rows, features] = alpha * x[rows, width] * weight[features, width]^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MatmulShape {
    /// Rows of the weight.
    pub features: usize,
    /// Columns of the weight and of `x`.
    pub width: usize,
    /// Elements from one row of `x` to the next.
    pub x_stride: usize,
    /// Elements from one row of `out` to the next. The features are its first or its last columns.
    pub out_stride: usize,
    /// The format of `out`, and whether it is added to.
    pub out: Out,
    /// Whether a bias `[features]`, in the format of `out`, is added.
    pub bias: bool,
}

/// The format of `out`, and whether the result is written or added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Out {
    /// Written, in the activations' format.
    Activation,
    /// Added to, in the activations' format.
    AddActivation,
    /// Written, in f32.
    F32,
    /// Added to, in f32.
    AddF32,
}

/// Bytes that the first elements of a matmul's operands are aligned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignments {
    pub(super) weight: u32,
    pub(super) x: u32,
    pub(super) out: u32,
    pub(super) bias: u32,
}

impl Out {
    /// Bytes of an element.
    pub(super) fn bytes(self, format: ActivationFormat) -> usize {
        match self {
            Self::Activation | Self::AddActivation => format.bytes(),
            Self::F32 | Self::AddF32 => size_of::<f32>(),
        }
    }

    /// The library's name for the type of its elements.
    pub(super) fn data_type(self, format: ActivationFormat) -> sys::cudaDataType {
        match self {
            Self::Activation | Self::AddActivation => activation_type(format),
            Self::F32 | Self::AddF32 => sys::cudaDataType::CUDA_R_32F,
        }
    }

    /// The factor of `out` before the result is added.
    pub(super) fn beta(self) -> f32 {
        match self {
            Self::Activation | Self::F32 => 0.0,
            Self::AddActivation | Self::AddF32 => 1.0,
        }
    }
}

/// The library's name for the type of activations.
pub(super) fn activation_type(format: ActivationFormat) -> sys::cudaDataType {
    match format {
        ActivationFormat::F16 => sys::cudaDataType::CUDA_R_16F,
        ActivationFormat::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

/// The library's name for the type of weights.
pub(super) fn weight_type(format: WeightFormat) -> sys::cudaDataType {
    match format {
        WeightFormat::F16 => sys::cudaDataType::CUDA_R_16F,
        WeightFormat::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

impl MatmulShape {
    /// The alignments that any operands have: any row of an operand may be its first one, and `out`
    /// and the bias may start where the features before them end.
    pub(super) fn alignments(&self, format: ActivationFormat) -> Alignments {
        let of = |bytes: usize| 1 << bytes.trailing_zeros().min(ALIGNMENT_MAX.trailing_zeros());
        let before = self.out_stride - self.features;
        Alignments {
            weight: of(self.width * WeightFormat::beside(format).bytes()),
            x: of(self.x_stride * format.bytes()),
            out: of((self.out_stride | before) * self.out.bytes(format)),
            bias: of(before * self.out.bytes(format)),
        }
    }
}

impl fmt::Display for MatmulShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a matmul with {} x {}", self.features, self.width)
    }
}
