//! The rates that kernels and roofs are held to.

/// The rates of one GPU.
pub(crate) struct Yardsticks {
    /// Of a large matmul.
    pub(crate) flop_per_second: f64,
    /// Of a copy within the device, read and written.
    pub(crate) bytes_per_second: f64,
}
