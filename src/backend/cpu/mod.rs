//! The backend that runs anywhere: f32 activations, weights as stored, straight from the mapped
//! files.
//!
//! [`Cpu`] holds the state of a rank and calls the kernels, which are plain functions on slices:
//! [`mod@gemm`], [`mod@attention`], [`elementwise`], one algorithm each for every instruction set
//! ([`simd`]), and matmuls by a `matrix_unit` too. Only norm weights and biases are copied at load,
//! and a pass allocates only its metadata.
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        unused_imports,
        unused_variables,
        reason = "instructions for bfloat16 are x86-64's alone"
    )
)]

mod accumulators;
mod act;
mod arithmetic;
pub mod attention;
mod backend;
mod blocking;
mod clock;
pub mod elementwise;
mod epilogue;
mod gate;
pub mod gemm;
mod group;
mod matrix_unit;
mod metadata;
mod microkernel;
mod numa;
mod pack;
pub mod peak;
mod pool;
pub mod simd;
pub mod strips;
#[cfg(test)]
mod testing;
pub mod threads;
pub mod view;

pub use act::{Act, Weight};
#[cfg(test)]
pub(crate) use arithmetic::TestArithmetic;
pub use arithmetic::{Arithmetic, CpuMath};
pub use backend::Cpu;
pub use group::Group;
pub use metadata::Metadata;
pub use numa::{Nodes, stay_on};
pub use simd::Isa;
