//! `digest_rows`

use cudarc::driver::PushKernelArg;

use super::launch::{Needs, Ops, WORD_BYTES};
use crate::backend::cuda::buffer::{DeviceBuffer, DeviceSlice};
use crate::backend::cuda::fault::OrFault;
use crate::error::Result;

const THREADS: usize = 256;

/// Digests of rows: equal rows have equal ones, and others almost surely not.
#[derive(Debug)]
pub struct DigestRows<'a> {
    /// `[rows, stride]` bytes; the last row may end after `row_bytes`.
    pub x: DeviceSlice<'a>,
    /// `[rows]` of 64 bits.
    pub digests: &'a mut DeviceBuffer,
    /// Rows of `x`.
    pub rows: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// The bytes of a row that are digested.
    pub row_bytes: usize,
}

impl Ops {
    /// Launches `digest_rows`.
    pub fn digest_rows(&self, args: DigestRows<'_>) -> Result<()> {
        let DigestRows { x, digests, rows, stride, row_bytes } = args;
        let needs = Needs("digest_rows");
        let whole = |bytes: usize| bytes.is_multiple_of(WORD_BYTES);
        needs.that(whole(row_bytes) && whole(stride) && row_bytes <= stride, || {
            format!("rows in multiples of {WORD_BYTES} bytes, not {row_bytes} of {stride}")
        })?;
        let config = needs.grid(rows, 1, THREADS, 0)?;
        needs.covers("x", x, [(rows - 1).saturating_mul(stride).saturating_add(row_bytes)])?;
        needs.covers("digests", digests.all(), [rows, size_of::<u64>()])?;
        let (x, digests, stride) = (x.address(), digests.address(), stride as u64);
        let row_bytes = needs.int("bytes of a row", row_bytes)?;
        // SAFETY: types: two addresses, a 64-bit integer, an int. bounds: a block for each row,
        // which x covers, and as many digests. aliases: digests are borrowed mutably. lives: see
        // above.
        unsafe {
            self.context
                .compute()
                .launch_builder(&self.kernels.digest_rows)
                .arg(&x)
                .arg(&digests)
                .arg(&stride)
                .arg(&row_bytes)
                .launch(config)
        }
        .or_fault("launching `digest_rows`")
        .map(drop)
    }
}
