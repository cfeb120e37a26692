//! Streams, their entries, and events.

use super::status::Status;
use crate::decode::Program;
use crate::device::DeviceMemory;
use crate::exec;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// The device's status and what is printed.
pub type Failure = (Status, String);

/// Work of a library (a GEMM) on the device's memory; an error names what went wrong.
pub type LibraryCall = Box<dyn FnOnce(&mut DeviceMemory) -> Result<(), String> + Send>;

/// A collective: `None` as long as it waits for other ranks. It is asked again until it ends. It is given the logical time
/// at which it could start here, and gives that of its start, when all ranks could.
pub type Poll = Box<dyn FnMut(&mut DeviceMemory, u64) -> Option<Result<u64, Failure>> + Send>;

/// One entry of a stream.
#[allow(missing_docs)]
pub enum Op {
    /// Bytes that were read from pageable memory at the call.
    CopyIn { to: u64, bytes: Vec<u8> },
    /// From pinned host memory, read when this runs.
    CopyInPinned { to: u64, from: usize, bytes: usize },
    /// To host memory.
    CopyOut { to: usize, from: u64, bytes: usize, pinned: bool },
    /// Between two places of the device.
    CopyDevice { to: u64, from: u64, bytes: usize },
    /// Bytes of one value.
    Fill { to: u64, value: u8, bytes: usize },
    /// A kernel.
    Launch { program: Arc<Program>, config: exec::Config, params: Vec<u8> },
    /// An event's time of passing.
    Record { event: usize },
    /// Nothing later before that place of another stream is done.
    Wait { stream: usize, sequence: u64 },
    /// A library call, with its name and size.
    Library { name: &'static str, multiplications: u64, call: LibraryCall },
    /// A call that ends when all ranks of a group have come to it.
    Collective { name: &'static str, bytes: usize, group: usize, poll: Poll },
}

/// A stream.
#[derive(Default)]
pub struct Stream {
    pub(super) queue: VecDeque<Op>,
    /// Entries ever pushed, and those done.
    pub pushed: u64,
    /// Entries done.
    pub done: u64,
    /// The logical time at which the last of them ended.
    pub(super) clock: u64,
    /// The same of each.
    pub(super) ends: Vec<u64>,
    /// Waits for the default stream and is waited for by it.
    pub blocking: bool,
}

/// An event.
#[derive(Default)]
pub struct Event {
    /// (stream, sequence) of the last record.
    pub recorded: Option<(usize, u64)>,
    /// When that record ran.
    pub passed: Option<Instant>,
}
