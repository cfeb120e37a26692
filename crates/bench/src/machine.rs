//! Readings of this process and machine; `None` where the system does not have them.

use std::fs;

#[cfg(feature = "cuda")]
use serde::Serialize;

/// The most memory that this process has had in RAM so far, mapped weights included.
pub(super) fn peak_memory_bytes() -> Option<u64> {
    kib_of("/proc/self/status", "VmHWM:")
}

/// Like [`peak_memory_bytes`], of another process.
pub(super) fn peak_memory_bytes_of(process: u32) -> Option<u64> {
    kib_of(&format!("/proc/{process}/status"), "VmHWM:")
}

/// The memory of this process besides mapped files.
pub(super) fn anonymous_memory_bytes() -> Option<u64> {
    kib_of("/proc/self/status", "RssAnon:")
}

/// CPU time of all threads of this process so far, in seconds.
pub(super) fn cpu_seconds() -> Option<f64> {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Some(time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64)
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// Memory that can be allocated without swapping.
pub(super) fn available_memory_bytes() -> Option<u64> {
    kib_of("/proc/meminfo", "MemAvailable:")
}

/// The CPU's name.
pub(super) fn cpu_name() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Bytes on the line of `file` that begins with `key`.
fn kib_of(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Counts of this process's reads so far.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Reads {
    /// Page faults that waited for a read.
    pub(super) major_faults: u64,
    /// Calls that read.
    pub(super) read_calls: u64,
    /// Bytes that were read from a disk.
    pub(super) disk_bytes: u64,
}

#[cfg(feature = "cuda")]
impl Reads {
    /// The counts of all threads.
    pub(super) fn of_process() -> Option<Self> {
        let io = fs::read_to_string("/proc/self/io").ok()?;
        let count = |key: &str| io.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok();
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // Behind the name, which may have spaces: the state is the first field, and these the
        // tenth.
        let major_faults = stat.rsplit_once(')')?.1.split_whitespace().nth(9)?.parse().ok()?;
        Some(Self { major_faults, read_calls: count("syscr:")?, disk_bytes: count("read_bytes:")? })
    }

    /// Returns the counts since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            major_faults: self.major_faults - before.major_faults,
            read_calls: self.read_calls - before.read_calls,
            disk_bytes: self.disk_bytes - before.disk_bytes,
        }
    }
}
