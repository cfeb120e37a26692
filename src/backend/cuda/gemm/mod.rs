//! Matmuls by cublasLt: layouts and algorithms are made once per shape and kept.
//!
//! cublasLt's matrices are column-major, so `out = x * weight^T` in rows is `out^T = weight * x^T`
//! to it: `m` is the weight's features, `n` the rows of `x`, `k` the width.
//!
//! # Which algorithm
//!
//! A row's bits must not depend on the count of rows, but the fastest algorithm does. Many
//! algorithms differ in their tiles alone and add the terms of an element in the same order, so
//! both are possible. For each shape:
//!
//! 1. The library's proposals for counts of rows from few to many are collected ([`algorithm`]);
//!    those with split-K or a reduction are dropped.
//! 2. Each computes matmuls of several counts of rows on values that cancel, so that only rounding
//!    is left, and is sorted by the resulting bits into *classes*; one that gives equal rows
//!    different bits is dropped ([`trial`]).
//! 3. The class of the library's first proposal for [`ROWS_NOMINAL`] rows is used for every count
//!    of rows ([`classes`]).
//! 4. Within it, the fastest at each size of batch is used there: measured, and kept on disk
//!    ([`tuning`], [`cache`]).
//!
//! **Times never change bits.** The class follows from what the library proposes and computes: its
//! version, the model of GPU, the format and the shape. A class that is faster is not preferred,
//! because then the bits of a reward would depend on measured times: two runs, two ranks or two
//! equal machines could differ. So ranks need not agree on measurements, and a file of times can
//! make a matmul slow, but not wrong.
//!
//! (The library has a mode of its own for batch invariance since that of CUDA 13.4, which is newer
//! than the one built against.)
//!
//! `KUDOS_CHECK_BITS=1` in the environment checks the bits of every matmul of every pass
//! ([`BitCheck`]).
//!
//! An algorithm is checked for each count of rows before it is used for it, once, by the library's
//! host code. Rows that no member of the class takes at once are computed in several pieces, which
//! gives the same bits; a class without a member for a single row is not used. So no pass fails for
//! its size.

pub mod algorithm;
pub mod cache;
mod check;
pub mod classes;
mod handles;
mod library;
mod lt;
mod matmul;
mod shape;
pub mod trial;
pub mod tuning;

pub use check::BitCheck;
pub use classes::ROWS_NOMINAL;
pub use handles::WORKSPACE_BYTES;
pub use lt::{Lt, Operands, Problem, Share, library};
pub use matmul::Matmul;
pub use shape::{MatmulShape, Out};
