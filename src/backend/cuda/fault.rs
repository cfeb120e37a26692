//! Driver errors as the library's errors.

use std::fmt::Display;

use cudarc::driver::{DriverError, sys::CUresult};

use crate::error::{Error, ErrorKind, Result};

/// Turns the driver's errors into errors that name the operation.
pub(super) trait OrFault<T> {
    /// [`ErrorKind::Memory`] when the device is out of memory, otherwise [`ErrorKind::Device`].
    fn or_fault(self, doing: impl Display) -> Result<T>;
}

impl<T> OrFault<T> for Result<T, DriverError> {
    fn or_fault(self, doing: impl Display) -> Result<T> {
        self.map_err(|DriverError(code)| {
            let kind = match code {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::Memory,
                _ => ErrorKind::Device,
            };
            // The code's name, CUDA_ERROR_...: a failed driver may not give a description.
            Error::new(kind, format!("{doing} failed: {code:?}"))
        })
    }
}
