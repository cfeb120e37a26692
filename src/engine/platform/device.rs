//! [`DeviceInfo`]: the description of a device.

use std::fmt;

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// The device that an engine runs on. `{}` describes it in one line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The kind of device.
    pub kind: DeviceKind,
    /// The name of the GPU, or the instructions that the CPU computes with.
    pub name: String,
    /// GPUs, or threads of the CPU.
    pub count: usize,
    /// Why this device was chosen, where the choice was the engine's.
    pub reason: Option<String>,
    /// Whether the device is a software GPU, whose timings say nothing of speed.
    pub simulated: bool,
    pub(super) description: String,
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}
