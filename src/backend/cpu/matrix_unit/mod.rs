//! Matrix units: products of whole tiles of bfloat16 values in one instruction, as Intel's AMX has
//! them.
//!
//! ```text
//! acc[m, n] += (sum over even k of x[m, k] * w[k, n]) + (sum over odd k of x[m, k] * w[k, n])      m, n < 16, k < 32
//! ```
//!
//! Each of the two sums is a chain of fused multiply-adds from zero in the order of k; subnormals
//! are taken as zero, going in and coming out. A bfloat16 weight goes in as it is. An f32
//! activation is the exact sum of three bfloat16 terms (8 of its 24 bits each), and products with
//! all three make an f32 product out of a unit that has 16 times the multiply-adds of vector
//! instructions in the same time. Where both operands have three terms, six of the nine products
//! count: the other three add less than 2^-21 of the product, the size of a few roundings of f32.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(test)]
mod emulated;
mod split;
mod tiles;
mod unit;

pub(super) use split::{split_rows, store_terms};
pub(super) use tiles::{MR, NR, TILE_FLOPS, TILE_K, TileOperands, index_in_panel, index_in_tiles};
pub(super) use unit::PEAK_PRODUCTS;
