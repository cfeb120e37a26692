//! Violations that the software GPU detects, and their messages.

use std::fmt;

/// The reason for which an access or a warp was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// No allocation holds the address.
    OutOfBounds,
    /// The allocation was freed.
    UseAfterFree,
    /// The address is not a multiple of the access's size.
    Misaligned,
    /// A byte was read that was never written.
    Uninitialised,
    /// Two warps touched one 4-byte word of shared memory, or two lanes of a warp one byte, one of
    /// them writing, with no barrier between.
    Race,
    /// A block touched a byte of global memory that another block of the same launch wrote, not by
    /// atomics.
    BlockRace,
    /// A byte was touched while an asynchronous copy into it was in flight.
    InFlight,
    /// A register of a matmul of a warpgroup was touched, or what it reads written, while it was in
    /// flight.
    InMatmul,
    /// A matmul of a warpgroup read what was written with no fence after it.
    Unfenced,
    /// A barrier in shared memory that was not initialised, gets too many arrivals, or is read or written.
    Mbarrier,
    /// A matrix descriptor that is not one, or that differs among the threads of a warpgroup.
    Descriptor,
    /// Part of a warp reached a barrier, or warps of a block wait at different ones.
    Barrier,
    /// `trap`, or a member mask with lanes that do not execute.
    Trap,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfBounds => "out of bounds",
            Self::UseAfterFree => "use after free",
            Self::Misaligned => "misaligned access",
            Self::Uninitialised => "uninitialised read",
            Self::Race => "shared memory race",
            Self::BlockRace => "race between blocks",
            Self::InFlight => "operand of an asynchronous copy in flight",
            Self::InMatmul => "operand of a matmul in flight",
            Self::Unfenced => "missing fence",
            Self::Mbarrier => "mbarrier",
            Self::Descriptor => "matrix descriptor",
            Self::Barrier => "barrier error",
            Self::Trap => "trap",
        })
    }
}

/// A violation by one lane, without its instruction and block.
#[derive(Clone, Debug)]
pub struct LaneFault {
    /// Its kind.
    pub violation: Violation,
    /// The first lane that caused it.
    pub lane: usize,
    /// Address, size, allocation.
    pub detail: String,
}

/// A violation with its place: what stderr prints.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Its kind.
    pub violation: Violation,
    /// The whole message.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
