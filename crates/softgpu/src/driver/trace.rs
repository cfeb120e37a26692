//! A trace of the entries that ran, in logical time. Streams run late and one after another, so a
//! clock does not show which entries overlap: the order that streams, events and collectives force
//! does. An entry starts when the one before it in its stream and all that it waits for have ended,
//! and its duration follows from its bytes or its work, in nanoseconds of an imagined card.

use super::op::{Op, Stream};

/// The least duration of a kernel, a library call or a collective.
const LAUNCH_NS: u64 = 1000;
/// The rate of all multiprocessors together.
const WARP_INSTRUCTIONS_PER_NS: u64 = 100;
/// The rate of a matmul.
const MULTIPLICATIONS_PER_NS: u64 = 100_000;
/// The rate of copies within the device and of fills.
const MEMORY_BYTES_PER_NS: f64 = 1000.0;

struct Entry {
    stream: usize,
    priority: i32,
    label: Label,
    start: u64,
    end: u64,
}

/// An operation in the trace.
pub(super) struct Label {
    kind: &'static str,
    name: String,
    bytes: usize,
    multiplications: u64,
    /// Those that a library call is planned for; 0 for other kinds.
    multiprocessors: usize,
}

/// The entries that ran on a device since the last reset.
#[derive(Default)]
pub struct Trace {
    entries: Vec<Entry>,
    /// The earliest start, which is reported as 0.
    floor: u64,
    /// The end of the last entry of all destroyed streams.
    gone: u64,
}

impl Label {
    /// The label of an operation; `None` for those that only order others.
    pub(super) fn new(op: &Op) -> Option<Self> {
        let pinned = |pinned: bool| if pinned { "pinned" } else { "pageable" };
        let (kind, name, bytes) = match op {
            Op::CopyIn { bytes, .. } | Op::CopyInLate { bytes, .. } => {
                ("copy_in", pinned(false), bytes.len())
            }
            Op::CopyInPinned { bytes, .. } => ("copy_in", pinned(true), *bytes),
            Op::CopyOut { bytes, pinned: to_pinned, .. } => ("copy_out", pinned(*to_pinned), *bytes),
            Op::CopyDevice { bytes, .. } => ("copy_device", "device", *bytes),
            Op::Fill { bytes, .. } => ("fill", "fill", *bytes),
            Op::Launch { program, .. } => ("kernel", program.name.as_str(), 0),
            Op::Library { name, .. } => ("library", *name, 0),
            Op::Collective { name, bytes, .. } => ("collective", *name, *bytes),
            Op::Record { .. } | Op::Wait { .. } => return None,
        };
        let (multiplications, multiprocessors) = match op {
            Op::Library { multiplications, multiprocessors, .. } => (*multiplications, *multiprocessors),
            _ => (0, 0),
        };
        Some(Self { kind, name: name.into(), bytes, multiplications, multiprocessors })
    }

    /// The duration, where the link to the host has this rate and a kernel ran this number of
    /// instructions.
    pub(super) fn duration(&self, link_bytes_per_ns: f64, warp_instructions: u64) -> u64 {
        let at = |bytes_per_ns: f64| (self.bytes as f64 / bytes_per_ns) as u64;
        let duration = match self.kind {
            "copy_in" | "copy_out" => at(link_bytes_per_ns),
            "copy_device" | "fill" => at(MEMORY_BYTES_PER_NS),
            "kernel" => LAUNCH_NS + warp_instructions / WARP_INSTRUCTIONS_PER_NS,
            "library" => LAUNCH_NS + self.multiplications / MULTIPLICATIONS_PER_NS,
            _ => LAUNCH_NS + at(link_bytes_per_ns),
        };
        duration.max(1)
    }
}

impl Trace {
    /// The earliest start of the next entry of a stream.
    pub(super) fn ready(&self, stream: &Stream) -> u64 {
        stream.clock.max(self.floor)
    }

    /// The end of a stream's entry of this number, counted from 1; 0 for number 0. `None` is a
    /// destroyed stream.
    pub(super) fn ended(&self, stream: Option<&Stream>, sequence: u64) -> u64 {
        let end = |s: &Stream| s.ends.get((sequence as usize).wrapping_sub(1)).copied().unwrap_or(0);
        stream.map_or(self.gone, end)
    }

    /// Keeps the clock of a stream that is destroyed.
    pub(super) fn forget(&mut self, stream: &Stream) {
        self.gone = self.gone.max(stream.clock);
    }

    /// Appends an entry of a stream with this handle and priority.
    pub(super) fn record(&mut self, (stream, priority): (usize, i32), label: Label, start: u64, end: u64) {
        self.entries.push(Entry { stream, priority, label, start, end });
    }

    /// JSON objects of all entries, in the order in which they ran on this device.
    pub(crate) fn json(&self, device: usize) -> Vec<String> {
        let json = |e: &Entry| {
            let (stream, priority) = (e.stream, e.priority);
            let Label { kind, name, bytes, multiprocessors, .. } = &e.label;
            let (start, end) = (e.start - self.floor, e.end - self.floor);
            format!(
                "{{\"device\":{device},\"stream\":{stream},\"priority\":{priority},\"kind\":\"{kind}\",\"name\":\"{name}\",\"bytes\":{bytes},\"multiprocessors\":{multiprocessors},\"start\":{start},\"end\":{end}}}"
            )
        };
        self.entries.iter().map(json).collect()
    }

    /// The latest time of all streams, these and the destroyed ones.
    pub(crate) fn latest<'a>(&self, streams: impl Iterator<Item = &'a Stream>) -> u64 {
        streams.map(|s| s.clock).max().unwrap_or(0).max(self.floor).max(self.gone)
    }

    /// Forgets all entries; later ones start at `floor` or later.
    pub(crate) fn reset(&mut self, floor: u64) {
        self.entries.clear();
        self.floor = floor;
    }
}
