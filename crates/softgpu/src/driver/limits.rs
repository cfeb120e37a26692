//! Limits of a real card of a compute capability.

use std::ffi::c_int;

/// Opt-in shared memory of a block, SMs, threads of an SM.
pub(super) fn limits(cc: u32) -> (c_int, c_int, c_int) {
    match cc {
        75 => (64 << 10, 40, 1024),
        80 => (163 << 10, 108, 2048),
        86 => (99 << 10, 84, 1536),
        _ => (227 << 10, 132, 2048),
    }
}

/// Shared memory of an SM that the driver keeps of each block's.
pub(super) fn reserved(cc: u32) -> c_int {
    if cc < 80 { 0 } else { 1024 }
}
