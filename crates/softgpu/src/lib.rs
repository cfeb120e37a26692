//! softgpu: a CUDA device in software, for tests on machines without a GPU.
//!
//! One shared library is linked under the names `libcuda.so`, `libcublasLt.so`, `libnccl.so` and
//! `libnvidia-ml.so.1`, with the entry points that a program over cudarc calls, and runs the PTX of
//! its kernels, stricter than hardware would. The README describes its use and its checks.
//!
//! ```text
//! ptx     text -> tree            decode  tree -> programs over register slots
//! exec    programs over a grid    device  memory with shadow bits, counters
//! driver  cu*                     blas    cublasLt*            nccl  nccl*
//! nvml    nvml*, a few functions
//! ```

// The names are the ABI's.
#![allow(non_snake_case)]

pub mod blas;
pub mod check;
pub mod decode;
pub mod device;
pub mod driver;
pub mod exec;
pub mod nccl;
pub mod nvml;
pub mod ptx;
pub mod report;
