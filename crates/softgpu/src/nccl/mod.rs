//! NCCL between the threads and processes of one machine: each rank contributes its bytes to a
//! round, and all receive the result.
//!
//! A collective is an entry of its rank's stream, and contributes when that stream runs.
//! All-reduces go round a ring as NCCL's do: chunk c starts at rank c + 1, and every hop rounds to
//! the element type.

mod abi;
mod api;
mod call;
mod comm;
mod element;
mod exchange;
mod group;
mod remote;
mod sum;
mod wire;

pub use abi::{Config, NcclResult, UniqueId};
pub use api::*;
