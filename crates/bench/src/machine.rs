//! Readings of this process and machine; `None` where the system does not have them.

use std::fs;

/// The most memory that this process has had in RAM so far, mapped weights included.
pub(super) fn peak_memory_bytes() -> Option<u64> {
    kib_of("/proc/self/status", "VmHWM:")
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
