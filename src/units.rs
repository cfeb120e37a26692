//! Units of sizes, for messages and reports.

/// Bytes of one GiB.
pub const GIB: u64 = 1 << 30;

/// Converts bytes to GiB.
pub fn gib(bytes: usize) -> f64 {
    bytes as f64 / GIB as f64
}
