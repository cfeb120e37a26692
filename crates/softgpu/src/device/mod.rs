//! A device's memory and its counters.

mod blocks;
mod counters;
mod memory;

pub use counters::{Counters, Launch};
pub use memory::{Access, DeviceMemory, Reservation};
