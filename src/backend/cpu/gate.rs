//! The gate of an MLP: its activation function, times up.

use super::simd::{Vector, silu};

/// The activation function of an MLP's gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// silu(x) = x / (1 + exp(-x))
    #[default]
    Silu,
}

impl Gate {
    /// Returns `function(gate) * up` in every lane.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    pub(super) unsafe fn apply<V: Vector>(self, gate: V, up: V) -> V {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            match self {
                Self::Silu => silu(gate).mul(up),
            }
        }
    }
}
