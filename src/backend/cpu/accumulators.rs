//! Initial values of the accumulators of a microkernel.

/// Initial values of accumulators. A long k is cut into k blocks, between which they are spilled to
/// memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Zeros, for the first k block.
    Zero,
    /// Reloaded from where the k block before spilled them.
    Reload,
}
