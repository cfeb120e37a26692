//! The types and results of NCCL's ABI.

use std::ffi::{c_int, c_uint};

/// `ncclResult_t`.
pub type NcclResult = c_uint;

pub(super) const SUCCESS: NcclResult = 0;
pub(super) const UNHANDLED_CUDA_ERROR: NcclResult = 1;
pub(super) const SYSTEM_ERROR: NcclResult = 2;
pub(super) const INTERNAL_ERROR: NcclResult = 3;
pub(super) const INVALID_ARGUMENT: NcclResult = 4;
pub(super) const INVALID_USAGE: NcclResult = 5;
pub(super) const REMOTE_ERROR: NcclResult = 6;
pub(super) const IN_PROGRESS: NcclResult = 7;

/// `ncclUniqueId`: the name of the socket at which the process that made it serves.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UniqueId {
    /// A string, then zeros.
    pub bytes: [u8; 128],
}

/// The head of `ncclConfig_t`.
#[repr(C)]
#[allow(missing_docs)]
pub struct Config {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub blocking: c_int,
}
