//! cublasLt: what `cublasLtMatmul` needs, with f32 accumulation.
//!
//! Several algorithms are offered ([`algorithm`]): some agree in bits, some do not, one is split-K, one changes its bits
//! with the number of rows, and one refuses most numbers. So a caller that groups algorithms by the bits of their products
//! has something to find, and one that does not has something to get wrong.

pub mod algorithm;
mod api;
pub mod gemm;

pub use api::*;
