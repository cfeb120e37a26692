//! `silu_mul`

use cudarc::driver::PushKernelArg;

use super::launch::{Needs, Ops, WIDE};
use crate::backend::cuda::buffer::DeviceBuffer;
use crate::backend::cuda::fault::OrFault;
use crate::backend::cuda::format::ActivationFormat;
use crate::error::Result;

const THREADS: usize = 256;

/// `gate_up[t, j] = silu(gate_up[t, j]) * gate_up[t, ffn + j]` for rows `0..tokens`.
#[derive(Debug)]
pub struct SiluMul<'a> {
    /// `[tokens, 2 * ffn]`
    pub gate_up: &'a mut DeviceBuffer,
    /// Rows.
    pub tokens: usize,
    /// Width of gate and of up.
    pub ffn: usize,
    /// Factor of the result with [`ActivationFormat::F16`], a power of two; 1 otherwise.
    pub scale: f32,
}

impl Ops {
    /// Launches `silu_mul`.
    pub fn silu_mul(&self, args: SiluMul<'_>) -> Result<()> {
        let SiluMul { gate_up, tokens, ffn, scale } = args;
        let needs = Needs("silu_mul");
        needs.wide("ffn", ffn)?;
        needs.covers("gate_up", gate_up.all(), [tokens, 2, ffn, self.format().bytes()])?;
        needs.that(scale == 1.0 || self.format() == ActivationFormat::F16, || {
            format!("scale 1 with bf16, not {scale}")
        })?;
        let config = needs.grid(tokens, ffn.div_ceil(THREADS * WIDE), THREADS, 0)?;
        let gate_up = gate_up.address();
        let ffn = needs.int("ffn", ffn)?;
        let stream = self.context.compute();
        let mut launch = stream.launch_builder(&self.kernels.silu_mul);
        launch.arg(&gate_up).arg(&ffn);
        if self.format() == ActivationFormat::F16 {
            launch.arg(&scale);
        }
        // SAFETY: types: an address and an int, and a float for the f16 entry only. bounds: rows
        // 0..tokens of width 2 * ffn, checked above; threads past ffn leave. aliases: gate_up is
        // borrowed mutably, each thread writes the words of gate that only it reads. lives: see
        // above.
        unsafe { launch.launch(config) }.or_fault("launching `silu_mul`").map(drop)
    }
}
