//! Driver errors as the library's errors, and the memory of those that end the use of CUDA in this
//! process.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaStream, DriverError, sys::CUresult};

use crate::error::{Error, ErrorKind, Result};

/// The first error after which CUDA cannot be used in this process.
static LOST: OnceLock<Lost> = OnceLock::new();

/// Whether a context was opened. A driver that cannot start says `CUDA_ERROR_UNKNOWN` too, as in a
/// container without its devices: no GPU has failed then.
static OPENED: AtomicBool = AtomicBool::new(false);

struct Lost {
    /// The operation and the driver's code.
    cause: String,
    /// Where it happened, once a rank has reported it.
    place: OnceLock<String>,
}

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
            let message = format!("{doing} failed: {code:?}");
            if ends_cuda(code) && OPENED.load(Ordering::Relaxed) {
                LOST.get_or_init(|| Lost { cause: message.clone(), place: OnceLock::new() });
            }
            Error::new(kind, message)
        })
    }
}

/// The driver's error where there is one behind a library's, which may say no more than that
/// something failed. Nothing is waited for.
pub(super) fn behind(error: Error, stream: &Arc<CudaStream>, doing: impl Display) -> Error {
    let state = stream.record_event(None).and_then(|event| event.try_is_complete());
    state.or_fault(doing).err().unwrap_or(error)
}

/// Whether the driver returns an error for the rest of the process once it has returned this one:
/// `cuda.h` says of these that the process must be started again.
fn ends_cuda(code: CUresult) -> bool {
    use CUresult as Code;
    matches!(
        code,
        Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_UNKNOWN
    )
}

/// Notes that a context was opened: errors from now on may be failures of its GPU.
pub(super) fn context_opened() {
    OPENED.store(true, Ordering::Relaxed);
}

/// Adds the place of the error that [`lost`] reports, where there is one without a place.
pub fn name_place(place: &str) {
    if let Some(lost) = LOST.get() {
        lost.place.get_or_init(|| place.to_owned());
    }
}

/// The error of every use of CUDA after a device has failed: a driver does not recover within a
/// process, not even with a new context.
pub fn lost() -> Option<Error> {
    let Lost { cause, place } = LOST.get()?;
    let message = format!("CUDA cannot be used in this process any more, since a GPU failed in it: {cause}");
    let error = Error::new(ErrorKind::Device, message);
    let error = place.get().map_or(error.clone(), |place| error.at(place));
    Some(error.with_hint("start the process again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_memory_does_not_end_cuda() {
        let failed: Result<(), _> = Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert_eq!(failed.or_fault("allocating").unwrap_err().kind(), ErrorKind::Memory);
        assert!(!ends_cuda(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert!(!ends_cuda(CUresult::CUDA_ERROR_INVALID_VALUE));
        assert!(ends_cuda(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    }

    #[test]
    fn a_driver_that_cannot_start_is_no_gpu_that_failed() {
        let failed: Result<(), _> = Err(DriverError(CUresult::CUDA_ERROR_UNKNOWN));
        assert_eq!(failed.or_fault("starting").unwrap_err().kind(), ErrorKind::Device);
        // No unit test opens a context.
        assert!(lost().is_none());
    }
}
