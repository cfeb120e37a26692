//! Matrix products by cublasLt, on the library's own level: layouts and algorithms are made once per shape and kept.
//!
//! cublasLt thinks in columns, so `out = x * weight^T` in rows is `out^T = weight * x^T` to it: `m` is the weight's
//! features, `n` the rows of `x`, `k` the width.
//!
//! # Which algorithm
//!
//! A row's bits must not depend on how many rows there are, and the fastest algorithm does. Both can be had, because many
//! algorithms differ in their tiles alone and add the terms of a number in the same order. So, for each shape:
//!
//! 1. The library's proposals for numbers of rows from few to many are collected ([`algorithm`]); those with split-K or a
//!    reduction are dropped.
//! 2. Each computes products of several numbers of rows on numbers that cancel, so that what is left is rounding, and is
//!    sorted by their bits into *classes*; one that gives equal rows different bits is dropped ([`trial`]).
//! 3. The class of the library's first proposal for [`ROWS_NOMINAL`] rows is used for every number of rows ([`classes`]).
//! 4. Within it, the fastest at each size of batch is used there: measured, and kept on disk ([`tuning`], [`cache`]).
//!
//! **Times never change bits.** The class follows from what the library proposes and computes: its version, the kind of
//! GPU, the storage and the shape. A class that is faster over all is not taken for it, because then the bits of a
//! reward would hang on a stopwatch: two runs, two ranks or two machines of one kind could differ. For the same reason
//! ranks need not agree on anything, and a file of times can make a product slow, but not wrong.
//!
//! (The library has had a mode of its own for batch invariance since 13.4, which is newer than what is built against.)
//!
//! No algorithm is used for a number of rows that it was not checked for, which asks the library's host code and happens
//! once per number of rows. What no member of the class takes at once is computed in several pieces of rows, which
//! gives the same bits; a class without a member for a single row is not used. So no pass fails for its size.

pub mod algorithm;
pub mod cache;
pub mod classes;
mod handles;
mod lt;
mod matmul;
mod shape;
pub mod trial;
pub mod tuning;

pub use classes::ROWS_NOMINAL;
pub use handles::WORKSPACE_BYTES;
pub use lt::{Lt, Operands, Problem, is_present};
pub use matmul::Matmul;
pub use shape::{MatmulShape, Out};
