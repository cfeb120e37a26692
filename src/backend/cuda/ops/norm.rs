//! `add_rms_norm` and `add_branch_rms_norm`

use cudarc::driver::PushKernelArg;

use super::launch::{Needs, Ops, WIDE};
use crate::backend::cuda::buffer::{DeviceBuffer, DeviceSlice};
use crate::backend::cuda::fault::OrFault;
use crate::error::Result;

/// The widest row that a block's registers hold.
const HIDDEN_MAX: usize = 16_384;

/// The widest row of which a block holds two: the residual and its branch.
pub const BRANCH_HIDDEN_MAX: usize = 8_192;

/// Threads of a block, at most.
const THREADS_MAX: usize = 256;

/// The rows that are added to the residual stream before it is normalised.
#[derive(Clone, Copy, Debug)]
pub enum Delta<'a> {
    /// Nothing.
    None,
    /// `[.., hidden]` in the residual's format: the rows of the residual.
    In(DeviceSlice<'a>),
    /// `[parts, tokens, hidden]` in the residual's format: each rank's part of these rows, added in
    /// the order of ranks.
    Parts(DeviceSlice<'a>, usize),
}

/// The arithmetic of a norm.
#[derive(Clone, Copy, Debug)]
pub enum Norm<'a> {
    /// `x / rms(x)`, rounded, then its product with the weight, rounded.
    Scale,
    /// `x / rms(x) * (1 + weight)`, rounded once.
    OnePlus {
        /// `[hidden]`: the weight of a norm of the delta, before it is added. Without a delta,
        /// there is nothing to norm.
        branch: Option<DeviceSlice<'a>>,
    },
}

/// `residual += delta; out = norm(residual)`, row by row.
#[derive(Debug)]
pub struct AddRmsNorm<'a> {
    /// `[.., hidden]` bf16, or f32 with `ActivationFormat::F16`.
    pub residual: &'a mut DeviceBuffer,
    /// Added first.
    pub delta: Delta<'a>,
    /// Its arithmetic.
    pub norm: Norm<'a>,
    /// `[hidden]`
    pub weight: DeviceSlice<'a>,
    /// `[.., hidden]`
    pub out: &'a mut DeviceBuffer,
    /// The first row of residual, delta and out that takes part.
    pub first_row: usize,
    /// Rows.
    pub tokens: usize,
    /// Their width.
    pub hidden: usize,
    /// Added to the mean of the squares.
    pub eps: f32,
}

impl Ops {
    /// Launches `add_rms_norm`, or `add_branch_rms_norm` where 1 is added to the weight.
    pub fn add_rms_norm(&self, args: AddRmsNorm<'_>) -> Result<()> {
        let AddRmsNorm { residual, delta, norm, weight, out, first_row, tokens, hidden, eps } = args;
        let (needs, function, hidden_max) = match norm {
            Norm::Scale => (Needs("add_rms_norm"), &self.kernels.add_rms_norm, HIDDEN_MAX),
            Norm::OnePlus { .. } => {
                (Needs("add_branch_rms_norm"), &self.kernels.add_branch_rms_norm, BRANCH_HIDDEN_MAX)
            }
        };
        needs.wide("hidden", hidden)?;
        needs.that(hidden <= hidden_max, || format!("hidden <= {hidden_max}, not {hidden}"))?;
        let (rows, element_bytes) = (first_row.saturating_add(tokens), self.format().residual_bytes());
        needs.covers("residual", residual.all(), [rows, hidden, element_bytes])?;
        needs.covers("weight", weight, [hidden, self.format().bytes()])?;
        needs.covers("out", out.all(), [rows, hidden, self.format().bytes()])?;
        let (residual_first, out_first) =
            (first_row * hidden * element_bytes, first_row * hidden * self.format().bytes());
        let (delta, parts) = match delta {
            Delta::None => (0, 0),
            Delta::In(delta) => {
                needs.covers("delta", delta, [rows, hidden, element_bytes])?;
                (delta.address() + residual_first as u64, 1)
            }
            Delta::Parts(delta, parts) => {
                needs.covers("delta", delta, [parts, tokens, hidden, element_bytes])?;
                (delta.address(), parts)
            }
        };
        let parts = needs.int("parts", parts)?;
        let threads = (hidden / WIDE).next_multiple_of(32).min(THREADS_MAX);
        let config = needs.grid(tokens, 1, threads, 0)?;
        let (residual, out) = (residual.address() + residual_first as u64, out.address() + out_first as u64);
        let weight = weight.address();
        let width = needs.int("hidden", hidden)?;
        let branch = match norm {
            Norm::Scale => None,
            Norm::OnePlus { branch: None } => Some(0),
            Norm::OnePlus { branch: Some(branch) } => {
                needs.covers("the branch's weight", branch, [hidden, self.format().bytes()])?;
                Some(branch.address())
            }
        };
        let stream = self.context.compute();
        let mut launch = stream.launch_builder(function);
        launch.arg(&residual).arg(&delta).arg(&parts);
        if let Some(branch) = &branch {
            launch.arg(branch);
        }
        launch.arg(&weight).arg(&out).arg(&width).arg(&eps);
        // SAFETY: types: two addresses, int, another address for `add_branch_rms_norm` only, two
        // addresses, int, float. bounds: `tokens` rows of width hidden from the first one on, and
        // the weights, checked above; the kernel stops at hidden, within THREADS_MAX threads of 64
        // elements = HIDDEN_MAX, or of 32 = BRANCH_HIDDEN_MAX, and reads no branch's weight at 0.
        // aliases: residual and out are borrowed mutably, so delta is another buffer. lives: see
        // above.
        unsafe { launch.launch(config) }.or_fault(format!("launching `{}`", needs.0)).map(drop)
    }
}
