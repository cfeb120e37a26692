//! `gather_rows` and `score`

use cudarc::driver::PushKernelArg;

use super::launch::{Needs, Ops, WORD_BYTES};
use crate::backend::cuda::buffer::{DeviceBuffer, DeviceSlice};
use crate::backend::cuda::fault::OrFault;
use crate::backend::cuda::tables::{DeviceTables, RowIndices};
use crate::error::Result;

const THREADS: usize = 256;

/// `out[i, :] = x[rows[i], :]` for every index of `rows`; elements of any format.
#[derive(Debug)]
pub struct GatherRows<'a> {
    /// `[.., row_bytes]`
    pub x: DeviceSlice<'a>,
    /// Tables that `rows` are of.
    pub tables: &'a DeviceTables,
    /// `[count]`: rows of `x`.
    pub rows: &'a RowIndices,
    /// `[count, row_bytes]`
    pub out: &'a mut DeviceBuffer,
    /// Bytes of a row.
    pub row_bytes: usize,
}

/// `out[t, label] = x[t, :] . head[label, :]` in f32.
#[derive(Debug)]
pub struct Score<'a> {
    /// `[tokens, hidden]`
    pub x: DeviceSlice<'a>,
    /// `[labels, hidden]`
    pub head: DeviceSlice<'a>,
    /// `[tokens, labels]` f32
    pub out: &'a mut DeviceBuffer,
    /// Rows of `x`.
    pub tokens: usize,
    /// Rows of `head`.
    pub labels: usize,
    /// Their width.
    pub hidden: usize,
}

impl Ops {
    /// Launches `gather_rows`.
    pub fn gather_rows(&self, args: GatherRows<'_>) -> Result<()> {
        let GatherRows { x, tables, rows, out, row_bytes } = args;
        let needs = Needs("gather_rows");
        needs.that(row_bytes > 0 && row_bytes.is_multiple_of(WORD_BYTES), || {
            format!("rows in multiples of {WORD_BYTES} bytes, not {row_bytes}")
        })?;
        needs.covers("x", x, [rows.limit, row_bytes])?;
        needs.covers("out", out.all(), [rows.count(), row_bytes])?;
        let config = needs.grid(rows.count(), 1, THREADS, 0)?;
        let rows = needs.table("rows", tables, &rows.table)?;
        let (x, out) = (x.address(), out.address());
        let words = needs.int("words of a row", row_bytes / WORD_BYTES)?;
        // SAFETY: types: three addresses, an int. bounds: a block for each index, whose row fits
        // into out; the indices are below their limit, and x covers as many rows. aliases: out is
        // borrowed mutably, so it is neither x nor the tables, as the kernel's __restrict__
        // demands. lives: see above.
        unsafe {
            self.context
                .compute()
                .launch_builder(&self.kernels.gather_rows)
                .arg(&x)
                .arg(&rows)
                .arg(&out)
                .arg(&words)
                .launch(config)
        }
        .or_fault("launching `gather_rows`")
        .map(drop)
    }

    /// Launches `score`.
    pub fn score(&self, args: Score<'_>) -> Result<()> {
        let Score { x, head, out, tokens, labels, hidden } = args;
        let needs = Needs("score");
        needs.wide("hidden", hidden)?;
        needs.covers("x", x, [tokens, hidden, self.format().bytes()])?;
        needs.covers("head", head, [labels, hidden, self.format().bytes()])?;
        needs.covers("out", out.all(), [tokens, labels, size_of::<f32>()])?;
        let config = needs.grid(tokens, labels, THREADS, 0)?;
        let (x, head, out) = (x.address(), head.address(), out.address());
        let hidden = needs.int("hidden", hidden)?;
        // SAFETY: types: three addresses, an int. bounds: rows of x and head and elements of out,
        // checked; the kernel stops at hidden. aliases: out is borrowed mutably, so it is neither x
        // nor head. lives: see above.
        unsafe {
            self.context
                .compute()
                .launch_builder(&self.kernels.score)
                .arg(&x)
                .arg(&head)
                .arg(&out)
                .arg(&hidden)
                .launch(config)
        }
        .or_fault("launching `score`")
        .map(drop)
    }
}
