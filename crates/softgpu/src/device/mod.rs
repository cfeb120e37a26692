//! A device's memory and its counters.

mod access;
mod blocks;
mod counters;
mod memory;
pub mod tensor_map;

pub use access::Access;
pub use counters::{Counters, Launch};
pub use memory::{DeviceMemory, Reservation};
