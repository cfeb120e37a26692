//! cublasLt: what `cublasLtMatmul` needs, with f32 accumulation.
//!
//! Several algorithms are offered ([`algorithm`]): some agree in bits, some do not, one is split-K,
//! one changes its bits with the number of rows, and one refuses most of them. So tests see whether
//! a caller groups algorithms by the bits of their results.

pub mod algorithm;
mod api;
mod descriptors;
mod elsewhere;
pub mod gemm;
mod status;

pub use algorithm::Algorithm;
pub use api::*;
pub use descriptors::{
    Description, Layout, Preference, cublasLtMatmulDescCreate, cublasLtMatmulDescDestroy,
    cublasLtMatmulDescSetAttribute, cublasLtMatmulPreferenceCreate, cublasLtMatmulPreferenceDestroy,
    cublasLtMatmulPreferenceSetAttribute, cublasLtMatrixLayoutCreate, cublasLtMatrixLayoutDestroy,
    cublasLtMatrixLayoutSetAttribute,
};
pub use status::LtStatus;
