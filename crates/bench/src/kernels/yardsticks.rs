//! The rates that kernels and roofs are held to.

/// The rates of one GPU.
pub(crate) struct Yardsticks {
    /// The rate of a large matmul.
    pub(crate) flop_per_second: f64,
    /// The rate of a copy within the device: bytes read and written.
    pub(crate) bytes_per_second: f64,
}
