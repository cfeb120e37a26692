//! cublasLt: what `cublasLtMatmul` needs, with f32 accumulation.
//!
//! Three algorithms are offered. 0 and 1 sum over k in order and agree in bits; 2 sums blocks of k apart and does not: so
//! a caller that groups algorithms by the bits of their products has something to find.

mod api;
pub mod gemm;

pub use api::*;
