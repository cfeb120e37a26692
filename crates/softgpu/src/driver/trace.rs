//! A trace of what ran, in logical time. Streams run late and one after another, so what overlaps what is not seen on a
//! clock: it follows from the order that streams, events and collectives force. An entry starts when the one before it in
//! its stream and all that it waits for have ended, and lasts as long as its bytes or its work say, in nanoseconds of an
//! imagined card.

use super::queue::{Op, Stream};
use super::world::{DeviceState, World};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What a kernel, a library call or a collective costs at least.
const LAUNCH_NS: u64 = 1000;
/// Over all multiprocessors.
const WARP_INSTRUCTIONS_PER_NS: u64 = 100;
/// Products that a matrix multiplication adds up.
const MULTIPLICATIONS_PER_NS: u64 = 100_000;
/// Of copies within the device, and fills.
const MEMORY_BYTES_PER_NS: f64 = 1000.0;

/// What ran.
struct Entry {
    stream: usize,
    what: What,
    start: u64,
    end: u64,
}

/// What an operation is called in the trace.
pub(super) struct What {
    kind: &'static str,
    name: String,
    bytes: usize,
}

/// What ran on a device since the last reset.
#[derive(Default)]
pub struct Trace {
    entries: Vec<Entry>,
    /// Nothing starts earlier; it is reported as 0.
    floor: u64,
    /// When the last entry of streams that are no more ended.
    gone: u64,
}

impl Trace {
    /// When an entry of a stream can start.
    pub(super) fn ready(&self, stream: &Stream) -> u64 {
        stream.clock.max(self.floor)
    }

    /// Remembers a stream that goes.
    pub(super) fn forget(&mut self, stream: &Stream) {
        self.gone = self.gone.max(stream.clock);
    }
}

/// What an operation is called; nothing for those that only order others.
pub(super) fn describe(op: &Op) -> Option<What> {
    let pinned = |pinned: bool| if pinned { "pinned" } else { "pageable" };
    let (kind, name, bytes) = match op {
        Op::CopyIn { bytes, .. } => ("copy_in", pinned(false), bytes.len()),
        Op::CopyInPinned { bytes, .. } => ("copy_in", pinned(true), *bytes),
        Op::CopyOut { bytes, pinned: to_pinned, .. } => ("copy_out", pinned(*to_pinned), *bytes),
        Op::CopyDevice { bytes, .. } => ("copy_device", "device", *bytes),
        Op::Fill { bytes, .. } => ("fill", "fill", *bytes),
        Op::Launch { program, .. } => ("kernel", program.name.as_str(), 0),
        Op::Work { name, .. } => ("library", *name, 0),
        Op::Collective { name, bytes, .. } => ("collective", *name, *bytes),
        Op::Record { .. } | Op::Wait { .. } => return None,
    };
    Some(What { kind, name: name.into(), bytes })
}

/// The multiplications of a library call; of a kernel, [`DeviceState::record`] counts the instructions itself.
pub(super) fn work(op: &Op) -> u64 {
    if let Op::Work { multiplications, .. } = op { *multiplications } else { 0 }
}

impl DeviceState {
    /// When that many entries of a stream had ended.
    pub(super) fn ended(&self, stream: usize, sequence: u64) -> u64 {
        let end = |s: &Stream| s.ends.get((sequence as usize).wrapping_sub(1)).copied().unwrap_or(0);
        self.streams.get(&stream).map_or(self.trace.gone, end)
    }

    /// Notes what has just run, and gives the time of its end.
    pub(super) fn record(&mut self, world: &World, stream: usize, what: What, start: u64, work: u64) -> u64 {
        let at = |bytes_per_ns: f64| (what.bytes as f64 / bytes_per_ns) as u64;
        let link = world.settings.link_bytes_per_ns;
        let lasts = match what.kind {
            "copy_in" | "copy_out" => at(link),
            "copy_device" | "fill" => at(MEMORY_BYTES_PER_NS),
            "kernel" => LAUNCH_NS + self.memory.counters.warp_instructions / WARP_INSTRUCTIONS_PER_NS,
            "library" => LAUNCH_NS + work / MULTIPLICATIONS_PER_NS,
            _ => LAUNCH_NS + at(link),
        };
        let end = start + lasts.max(1);
        self.trace.entries.push(Entry { stream, what, start, end });
        end
    }

    /// JSON objects of what ran, in the order in which it ran.
    pub(crate) fn trace_json(&self) -> Vec<String> {
        let (device, floor) = (self.index, self.trace.floor);
        let json = |e: &Entry| {
            let (stream, What { kind, name, bytes }) = (e.stream, &e.what);
            let (start, end) = (e.start - floor, e.end - floor);
            format!(
                "{{\"device\":{device},\"stream\":{stream},\"kind\":\"{kind}\",\"name\":\"{name}\",\"bytes\":{bytes},\"start\":{start},\"end\":{end}}}"
            )
        };
        self.trace.entries.iter().map(json).collect()
    }

    /// The latest time of any stream.
    pub(crate) fn latest(&self) -> u64 {
        let clocks = self.streams.values().map(|s| s.clock);
        clocks.max().unwrap_or(0).max(self.trace.floor).max(self.trace.gone)
    }

    /// Forgets what ran; whatever runs from now on starts at `floor` or later.
    pub(crate) fn reset_trace(&mut self, floor: u64) {
        self.trace.entries.clear();
        self.trace.floor = floor;
    }
}

/// Calls of the libraries' entry points, and bytes that the host asked to copy, since the last reset.
#[derive(Default)]
struct Calls {
    by_name: BTreeMap<&'static str, u64>,
    /// [in, out][pageable, pinned].
    copied: [[u64; 2]; 2],
}

static CALLS: Mutex<Calls> = Mutex::new(Calls { by_name: BTreeMap::new(), copied: [[0; 2]; 2] });

fn calls<T>(with: impl FnOnce(&mut Calls) -> T) -> T {
    with(&mut CALLS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Counts a call of an entry point.
pub(crate) fn called(name: &'static str) {
    calls(|c| *c.by_name.entry(name).or_default() += 1);
}

/// Which way a copy goes.
#[derive(Clone, Copy)]
pub(super) enum Way {
    In,
    Out,
}

/// Counts the bytes of a copy.
pub(super) fn copied(way: Way, pinned: bool, bytes: usize) {
    calls(|c| c.copied[way as usize][pinned as usize] += bytes as u64);
}

/// One JSON object.
pub(crate) fn calls_json() -> String {
    calls(|c| {
        let names: Vec<String> = c.by_name.iter().map(|(name, n)| format!("\"{name}\":{n}")).collect();
        let copied = |way: Way| {
            let [pageable, pinned] = c.copied[way as usize];
            format!("{{\"pinned\":{pinned},\"pageable\":{pageable}}}")
        };
        let (calls, copied_in, copied_out) = (names.join(","), copied(Way::In), copied(Way::Out));
        format!("{{\"calls\":{{{calls}}},\"copied_in\":{copied_in},\"copied_out\":{copied_out}}}")
    })
}

/// Starts counting again.
pub(crate) fn reset_calls() {
    calls(|c| *c = Calls::default());
}
