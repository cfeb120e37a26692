//! NCCL between the threads and processes of one machine: each rank brings its bytes to a meeting, all leave with the
//! result.
//!
//! A collective is an entry of its rank's stream and meets the others when that stream runs. Sums go round a ring as
//! NCCL's do: chunk c starts at rank c + 1, and every hop rounds to the element type.

mod abi;
mod api;
mod call;
mod comm;
mod element;
mod group;
mod remote;
mod sum;
mod wire;

pub use abi::{Config, NcclResult, UniqueId};
pub use api::*;
