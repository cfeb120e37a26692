//! How the accumulators of a microkernel begin.

/// Initial values of the accumulators: a long k is cut into blocks, between which they are spilled to memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Zeros, for the first block of k.
    Zero,
    /// Reloaded from where the block of k before spilled them.
    Reload,
}
