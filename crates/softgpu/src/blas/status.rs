//! Results of cublasLt.

use std::ffi::c_uint;

/// `cublasStatus_t`.
pub type LtStatus = c_uint;

pub(super) const SUCCESS: LtStatus = 0;
pub(super) const NOT_INITIALIZED: LtStatus = 1;
pub(super) const ALLOC_FAILED: LtStatus = 3;
pub(super) const INVALID_VALUE: LtStatus = 7;
pub(super) const EXECUTION_FAILED: LtStatus = 13;
pub(super) const NOT_SUPPORTED: LtStatus = 15;
