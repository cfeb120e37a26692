//! The gate of an MLP: its function, times up.

use super::simd::{Vector, gelu_tanh, silu};
use crate::config::Gate;

/// Returns `function(gate) * up` in every lane.
///
/// # Safety
///
/// The CPU has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn apply<V: Vector>(function: Gate, gate: V, up: V) -> V {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        match function {
            Gate::Silu => silu(gate).mul(up),
            Gate::GeluTanh => gelu_tanh(gate).mul(up),
        }
    }
}
