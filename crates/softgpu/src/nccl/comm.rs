//! A rank's end of a communicator, and its collectives.

use super::abi::{IN_PROGRESS, NcclResult, REMOTE_ERROR, SUCCESS, SYSTEM_ERROR, UNHANDLED_CUDA_ERROR};
use super::call::{Call, Contribution};
use super::element::Element;
use super::remote::Link;
use crate::device::{Access, DeviceMemory, Reservation};
use crate::driver::op::Failure;
use crate::driver::status::Status;
use crate::driver::world::DeviceState;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Text of `ncclGetLastError` where no more is known.
const DETAILS_ON_STDERR: &CStr = c"softgpu printed the details on stderr";

static LAST_ERROR: Mutex<&CStr> = Mutex::new(DETAILS_ON_STDERR);

/// The text of the last error of any communicator.
pub(super) fn last_error() -> &'static CStr {
    *LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn set_last_error(text: &'static CStr) {
    *LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner) = text;
}

/// Default of `SOFTGPU_NCCL_SECONDS`.
const DEADLINE_SECONDS: u64 = 60;

/// The deadline of a wait for other ranks that starts now.
pub(super) fn deadline() -> Instant {
    let seconds =
        std::env::var("SOFTGPU_NCCL_SECONDS").ok().and_then(|v| v.parse().ok()).unwrap_or(DEADLINE_SECONDS);
    Instant::now() + Duration::from_secs(seconds)
}

/// One rank's end of a communicator.
pub(super) struct Comm {
    pub(super) link: Link,
    /// An id that all ranks of this process share.
    pub(super) group: usize,
    pub(super) rank: usize,
    pub(super) ranks: usize,
    pub(super) device: usize,
    /// Whether calls wait until they have succeeded; otherwise they return that they are in
    /// progress.
    pub(super) blocking: bool,
    /// Whether the last call returned that it is in progress, and the state was not queried since.
    pub(super) unasked: AtomicBool,
    pub(super) aborted: AtomicBool,
    /// The first `ncclResult_t` that was an error.
    pub(super) error: AtomicU32,
    /// Sequence number of the next collective.
    pub(super) next: AtomicU64,
    /// The deadline for all ranks to join.
    pub(super) join_by: Instant,
    /// Its memory on the device.
    pub(super) memory: Mutex<Vec<Reservation>>,
}

impl Comm {
    /// The result of `ncclCommGetAsyncError`.
    pub(super) fn state(&self) -> NcclResult {
        let error = self.error.load(Ordering::Acquire);
        if error == SUCCESS && self.link.is_lost() {
            eprintln!("softgpu: nccl: rank {}: the process of another rank has ended", self.rank);
            return self.fail(REMOTE_ERROR);
        }
        if error != SUCCESS || self.link.is_complete() {
            return error;
        }
        if Instant::now() < self.join_by {
            return IN_PROGRESS;
        }
        eprintln!("softgpu: nccl: rank {} timed out waiting for the other ranks", self.rank);
        self.fail(SYSTEM_ERROR)
    }

    /// Takes memory for the communicator when it is made and, as much again, for its connections at
    /// the first collective.
    ///
    /// # Errors
    /// The communicator's error, where the memory does not fit.
    pub(super) fn take_memory(
        &self,
        device: &mut DeviceState,
        bytes: usize,
        times: usize,
    ) -> Result<(), NcclResult> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        while memory.len() < times {
            let Some(reservation) = device.memory.reserve(bytes) else {
                set_last_error(c"Cuda failure 2 'out of memory'");
                eprintln!("softgpu: nccl: {bytes} bytes do not fit on device {}", device.index);
                return Err(self.fail(UNHANDLED_CUDA_ERROR));
            };
            memory.push(reservation);
        }
        Ok(())
    }

    /// Gives its memory back.
    pub(super) fn free_memory(&self) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Sets an error, unless there is one already; returns the first.
    pub(super) fn fail(&self, error: NcclResult) -> NcclResult {
        if error != UNHANDLED_CUDA_ERROR {
            set_last_error(DETAILS_ON_STDERR);
        }
        match self.error.compare_exchange(SUCCESS, error, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => error,
            Err(first) => first,
        }
    }
}

/// The output of a rank, from the inputs of all.
pub(super) type Join = Box<dyn Fn(Element, &[&[u8]]) -> Vec<u8> + Send>;

/// An address on the device, and bytes from there on.
pub(super) type Part = (u64, usize);

/// A queued collective.
pub(super) struct Collective {
    pub(super) comm: Arc<Comm>,
    pub(super) sequence: u64,
    pub(super) call: Call,
    /// The parts of its input, one after another.
    pub(super) send: Vec<Part>,
    /// Those of its output.
    pub(super) receive: Vec<Part>,
    pub(super) join: Join,
    /// Planned: it never contributes.
    pub(super) hangs: bool,
    /// Whether an abort is an error of the device.
    pub(super) checked: bool,
    /// Set when it starts.
    pub(super) until: Option<Instant>,
    /// Whether it has contributed.
    pub(super) contributed: bool,
}

impl Collective {
    /// Starts it, or checks whether it has ended.
    pub(super) fn poll(&mut self, memory: &mut DeviceMemory, ready: u64) -> Option<Result<u64, Failure>> {
        if self.comm.aborted.load(Ordering::Acquire) {
            let why = "its communicator was aborted, and its output is undefined";
            // On hardware the stream goes on.
            let failure = Failure::undefined(Status::LaunchFailed, why);
            return Some(if self.checked { Err(failure) } else { Ok(ready) });
        }
        let until = match self.until {
            Some(until) => until,
            None => match self.start(memory, ready) {
                Ok(until) => until,
                Err(why) => return Some(Err(Failure::fault(Status::IllegalAddress, why))),
            },
        };
        if let Some(parts) = self.contributed.then(|| self.comm.link.take(self.sequence)).flatten() {
            self.contributed = false;
            return Some(self.end(memory, &parts));
        }
        if Instant::now() < until {
            return None;
        }
        let missing = self.comm.link.missing(self.sequence);
        self.comm.fail(SYSTEM_ERROR);
        let why = format!("rank {} timed out waiting for {missing}", self.comm.rank);
        Some(Err(Failure::undefined(Status::LaunchTimeout, why)))
    }

    fn start(&mut self, memory: &mut DeviceMemory, ready: u64) -> Result<Instant, String> {
        let mut part = Vec::new();
        for &(address, bytes) in &self.send {
            memory.range(address, bytes, Access::Read).map_err(|(v, d)| format!("{v} in the input: {d}"))?;
            // SAFETY: `range` found the input inside a live allocation of this device.
            part.extend_from_slice(unsafe { std::slice::from_raw_parts(address as *const u8, bytes) });
        }
        if !self.hangs {
            let part = Contribution { call: self.call, bytes: Arc::new(part), ready };
            self.comm.link.bring(self.comm.rank, self.sequence, part);
            self.contributed = true;
        }
        Ok(*self.until.insert(deadline()))
    }

    fn end(&self, memory: &mut DeviceMemory, parts: &[Contribution]) -> Result<u64, Failure> {
        if let Some(rank) = parts.iter().position(|p| p.call != self.call) {
            let (own, mine, theirs) = (self.comm.rank, self.call, parts[rank].call);
            let why = format!("the ranks disagree: rank {own} calls {mine:?}, rank {rank} calls {theirs:?}");
            return Err(Failure::undefined(Status::LaunchFailed, why));
        }
        let start = parts.iter().map(|p| p.ready).max().unwrap_or(0);
        let parts: Vec<&[u8]> = parts.iter().map(|p| p.bytes.as_slice()).collect();
        let result = (self.join)(self.call.element, &parts);
        let mut rest = result.as_slice();
        for &(address, bytes) in &self.receive {
            let (part, later) = rest.split_at(bytes);
            rest = later;
            memory.range(address, bytes, Access::Write).map_err(|(v, d)| {
                Failure::fault(Status::IllegalAddress, format!("{v} in the output: {d}"))
            })?;
            // SAFETY: `range` found the output inside a live allocation of this device.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), address as *mut u8, bytes) };
        }
        Ok(start)
    }
}

impl Drop for Collective {
    fn drop(&mut self) {
        if self.contributed {
            self.comm.link.withdraw(self.comm.rank, self.sequence);
        }
    }
}
