//! Instruction sets: the algorithm once over a small `Vector` trait, thin instantiations, one
//! choice at run time.
//!
//! A kernel is a value with a method generic over the vector type (`Kernel`). `Isa::run` enters it
//! through a function compiled for the chosen instruction set; everything under it is
//! `inline(always)`, so the whole kernel is compiled with those instructions. An [`Isa`] exists
//! only for a CPU that has it: the value is the proof.
//!
//! Every kernel that adds in f32 fixes the order of its additions without regard to the lanes of a
//! vector, and every instruction set but the portable one fuses multiply and add, so AVX2,
//! AVX-512 and NEON give the same bits (a matrix unit beside them, which GEMM and attention use, has bits of
//! its own). The portable one rounds the product first, because a fused multiply-add without the
//! instruction is a slow library call.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod isa;
mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod prefetch;
#[cfg(test)]
mod tests;
mod vector;

pub(super) use isa::MatrixUnitKind;
pub use isa::{Bf16Isa, Isa, MatrixUnit};
pub(super) use math::{PartialSums, exp2, gelu_tanh, max_of_rows, silu, tanh};
#[cfg(test)]
pub(super) use portable::{flush, fused};
pub(super) use prefetch::{prefetch, prefetch_far};
pub(super) use vector::{Bf16Kernel, Bf16Vector, Kernel, LANES_MAX, Vector};
