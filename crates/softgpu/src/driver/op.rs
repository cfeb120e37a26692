//! Streams, their entries, and events.

use super::status::Status;
use crate::decode::Program;
use crate::device::DeviceMemory;
use crate::exec;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// How long a device returns an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// A fault of the device: for the life of the process, whatever becomes of the context.
    Process,
    /// An output that is undefined, which hardware does not report: until the program has released
    /// the primary context.
    Context,
}

/// The end of an entry that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The device's status from then on.
    pub status: Status,
    /// The message that is printed.
    pub why: String,
    /// How long the device returns it.
    pub lasts: Lasts,
}

impl Failure {
    /// A fault of the device.
    pub fn fault(status: Status, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), lasts: Lasts::Process }
    }

    /// An undefined output.
    pub fn undefined(status: Status, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), lasts: Lasts::Context }
    }
}

/// Work of a library (a GEMM) on the device's memory; an error describes the failure.
pub type LibraryCall = Box<dyn FnOnce(&mut DeviceMemory) -> Result<(), String> + Send>;

/// A collective, which is polled until it ends: `None` while it waits for other ranks. The argument
/// is the logical time at which this rank could start, the result that at which all ranks could.
pub type Poll = Box<dyn FnMut(&mut DeviceMemory, u64) -> Option<Result<u64, Failure>> + Send>;

/// One entry of a stream.
#[allow(missing_docs)]
pub enum Op {
    /// Bytes that were read from pageable memory at the call.
    CopyIn { to: u64, bytes: Vec<u8> },
    /// From pageable memory that is read when this runs; and what it held at the call.
    CopyInLate { to: u64, from: usize, bytes: Vec<u8> },
    /// From pinned host memory, read when this runs.
    CopyInPinned { to: u64, from: usize, bytes: usize },
    /// To host memory.
    CopyOut { to: usize, from: u64, bytes: usize, pinned: bool },
    /// Within the device.
    CopyDevice { to: u64, from: u64, bytes: usize },
    /// Sets bytes to one value.
    Fill { to: u64, value: u8, bytes: usize },
    /// A kernel.
    Launch { program: Arc<Program>, config: exec::Config, params: Vec<u8> },
    /// Records an event.
    Record { event: usize },
    /// Holds later entries until that entry of another stream is done.
    Wait { stream: usize, sequence: u64 },
    /// A library call, with its name, its size and the multiprocessors that it is planned for.
    Library { name: &'static str, multiplications: u64, multiprocessors: usize, call: LibraryCall },
    /// A call that ends when all ranks of a group have made it.
    Collective { name: &'static str, bytes: usize, group: usize, poll: Poll },
}

impl Op {
    /// Whether it takes one of the places for pending launches.
    pub(super) fn is_launch(&self) -> bool {
        matches!(self, Self::Launch { .. } | Self::Library { .. } | Self::Collective { .. })
    }
}

/// A stream.
#[derive(Default)]
pub struct Stream {
    pub(super) queue: VecDeque<Op>,
    /// Entries pushed so far.
    pub pushed: u64,
    /// Kernels, library calls and collectives that are pending.
    pub(super) launches: usize,
    /// Entries done so far.
    pub done: u64,
    /// The logical time at which the last entry ended.
    pub(super) clock: u64,
    /// The logical time at which each entry ended.
    pub(super) ends: Vec<u64>,
    /// Waits for the default stream and is waited for by it.
    pub blocking: bool,
    /// The lower, the earlier its work would run on a card.
    pub priority: i32,
}

/// An event.
#[derive(Default)]
pub struct Event {
    /// (stream, sequence) of the last record.
    pub recorded: Option<(usize, u64)>,
    /// The time at which that record ran.
    pub passed: Option<Instant>,
}
