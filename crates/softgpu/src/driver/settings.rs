//! Settings, read from the environment once.

use super::limits::limits;

const DEFAULT_CC: u32 = 80;
const DEFAULT_MEMORY_GIB: f64 = 16.0;
/// Far less than hardware's hundreds, so that small devices can be tested.
const DEFAULT_LIBRARY_MIB: [f64; 3] = [32.0, 1.0, 64.0];
/// PCIe 4 with 16 lanes.
const DEFAULT_LINK_BYTES_PER_NS: f64 = 25.0;

/// The value of an environment variable.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The end of a device's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// The end of the process, as on hardware.
    Process,
    /// The program's last release of the primary context, which frees all memory, too.
    Context,
}

/// When the source of a copy from pageable memory is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pageable {
    /// By the call, which stages it.
    AtCall,
    /// When the copy runs, as systems may whose copy engines address pageable memory.
    Late,
}

/// Memory that libraries take beside the program's.
#[derive(Clone, Copy, Debug)]
pub struct LibraryBytes {
    /// By cublasLt on a device.
    pub cublas: usize,
    /// By the first use of each of its algorithms on a device.
    pub algorithm: usize,
    /// By a communicator when it is made, and as much again by its first collective.
    pub nccl: usize,
}

impl LibraryBytes {
    /// From `32,1,64` in MiB; items that are missing or not numbers count as the default.
    fn new(text: &str) -> Self {
        let mut items = text.split(',').map(|item| item.trim().parse::<f64>().ok());
        let mut next =
            |default: f64| (items.next().flatten().unwrap_or(default) * (1u64 << 20) as f64) as usize;
        let [cublas, algorithm, nccl] = DEFAULT_LIBRARY_MIB.map(&mut next);
        Self { cublas, algorithm, nccl }
    }
}

/// Settings of all devices.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `SOFTGPU_CC`: 75, 80, 86 or 90, one a device; the last one applies to the rest.
    pub cc: Vec<u32>,
    /// `SOFTGPU_DEVICES`.
    pub devices: usize,
    /// `SOFTGPU_MEMORY_GIB`: decimals, one a device; the last one applies to the rest.
    pub memory_bytes: Vec<usize>,
    /// `SOFTGPU_CHECK`.
    pub checked: bool,
    /// `SOFTGPU_LINK_GBPS`: gigabytes a second between host and device, in logical time.
    pub link_bytes_per_ns: f64,
    /// `SOFTGPU_LIBRARY_MIB`.
    pub library_bytes: LibraryBytes,
    /// `SOFTGPU_STICKY`.
    pub sticky: Sticky,
    /// `SOFTGPU_PAGEABLE`.
    pub pageable: Pageable,
    /// `CUDA_LAUNCH_BLOCKING`, the driver's own variable: launches wait for themselves.
    pub launch_blocking: bool,
}

impl Settings {
    pub(super) fn from_environment() -> Self {
        Self {
            cc: capabilities(&variable("SOFTGPU_CC").unwrap_or_default()),
            devices: variable("SOFTGPU_DEVICES").and_then(|v| v.parse().ok()).unwrap_or(1),
            memory_bytes: memory_bytes(&variable("SOFTGPU_MEMORY_GIB").unwrap_or_default()),
            checked: variable("SOFTGPU_CHECK").as_deref() != Some("0"),
            link_bytes_per_ns: variable("SOFTGPU_LINK_GBPS")
                .and_then(|v| v.parse().ok())
                .filter(|&rate| rate > 0.0)
                .unwrap_or(DEFAULT_LINK_BYTES_PER_NS),
            library_bytes: LibraryBytes::new(&variable("SOFTGPU_LIBRARY_MIB").unwrap_or_default()),
            sticky: match variable("SOFTGPU_STICKY").as_deref() {
                Some("context") => Sticky::Context,
                _ => Sticky::Process,
            },
            pageable: match variable("SOFTGPU_PAGEABLE").as_deref() {
                Some("late") => Pageable::Late,
                _ => Pageable::AtCall,
            },
            launch_blocking: variable("CUDA_LAUNCH_BLOCKING").as_deref() == Some("1"),
        }
    }

    /// The compute capability of a device.
    pub fn cc_of(&self, device: usize) -> u32 {
        self.cc[device.min(self.cc.len() - 1)]
    }

    /// Multiprocessors of a device.
    pub(crate) fn multiprocessors_of(&self, device: usize) -> usize {
        limits(self.cc_of(device)).1 as usize
    }

    pub(super) fn memory_of(&self, device: usize) -> usize {
        self.memory_bytes[device.min(self.memory_bytes.len() - 1)]
    }
}

/// `80,75` as numbers; items that are not numbers count as the default.
fn capabilities(text: &str) -> Vec<u32> {
    text.split(',').map(|item| item.trim().parse().unwrap_or(DEFAULT_CC)).collect()
}

/// `16,0.25` in bytes; items that are not numbers count as the default.
fn memory_bytes(text: &str) -> Vec<usize> {
    let gib = text.split(',').map(|item| item.trim().parse().unwrap_or(DEFAULT_MEMORY_GIB));
    gib.map(|gib| (gib * (1u64 << 30) as f64) as usize).collect()
}
