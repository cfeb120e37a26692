//! `gate_mul`

use cudarc::driver::PushKernelArg;

use super::launch::{Needs, Ops, WIDE};
use crate::backend::cuda::buffer::DeviceBuffer;
use crate::backend::cuda::fault::OrFault;
use crate::backend::cuda::format::ActivationFormat;
use crate::config::Gate;
use crate::error::Result;

const THREADS: usize = 256;

/// `gate_up[t, j] = gate(gate_up[t, j]) * gate_up[t, ffn + j]` for rows `0..tokens`.
#[derive(Debug)]
pub struct GateMul<'a> {
    /// `[tokens, 2 * ffn]`
    pub gate_up: &'a mut DeviceBuffer,
    /// Rows.
    pub tokens: usize,
    /// Width of gate and of up.
    pub ffn: usize,
    /// The function of the gate.
    pub gate: Gate,
    /// Factor of the result with [`ActivationFormat::F16`], a power of two; 1 otherwise.
    pub scale: f32,
}

impl Ops {
    /// Launches `gate_mul`.
    pub fn gate_mul(&self, args: GateMul<'_>) -> Result<()> {
        let GateMul { gate_up, tokens, ffn, gate, scale } = args;
        let (needs, function) = match gate {
            Gate::Silu => (Needs("gate_mul_silu"), &self.kernels.gate_mul_silu),
            Gate::GeluTanh => (Needs("gate_mul_gelu"), &self.kernels.gate_mul_gelu),
        };
        needs.wide("ffn", ffn)?;
        needs.covers("gate_up", gate_up.all(), [tokens, 2, ffn, self.format().bytes()])?;
        needs.that(scale == 1.0 || self.format() == ActivationFormat::F16, || {
            format!("scale 1 with bf16, not {scale}")
        })?;
        let config = needs.grid(tokens, ffn.div_ceil(THREADS * WIDE), THREADS, 0)?;
        let gate_up = gate_up.address();
        let ffn = needs.int("ffn", ffn)?;
        let stream = self.context.compute();
        let mut launch = stream.launch_builder(function);
        launch.arg(&gate_up).arg(&ffn);
        if self.format() == ActivationFormat::F16 {
            launch.arg(&scale);
        }
        // SAFETY: types: an address and an int, and a float for the f16 entry only. bounds: rows
        // 0..tokens of width 2 * ffn, checked above; threads past ffn leave. aliases: gate_up is
        // borrowed mutably, each thread writes the words of gate that only it reads. lives: see
        // above.
        unsafe { launch.launch(config) }.or_fault(format!("launching `{}`", needs.0)).map(drop)
    }
}
