//! A device's memory and its counters.

mod counters;
mod memory;

pub use counters::{Counters, Launch};
pub use memory::{Access, DeviceMemory, Reservation};
