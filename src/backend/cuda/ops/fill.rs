//! `fill_normal`

use cudarc::driver::PushKernelArg;

use super::launch::{Needs, Ops, WIDE};
use crate::backend::cuda::buffer::DeviceBuffer;
use crate::backend::cuda::fault::OrFault;
use crate::error::Result;

const THREADS: usize = 256;

impl Ops {
    /// Launches `fill_normal`: the first `count` elements of `out` become random, near to normal
    /// with mean 0 and `deviation`, and equal for equal seeds on every device.
    pub fn fill_normal(&self, out: &mut DeviceBuffer, count: usize, seed: u64, deviation: f32) -> Result<()> {
        let needs = Needs("fill_normal");
        needs.wide("count", count)?;
        needs.covers("out", out.all(), [count, self.format().bytes()])?;
        let config = needs.grid(count.div_ceil(THREADS * WIDE), 1, THREADS, 0)?;
        let (out, count) = (out.address(), count as u64);
        // SAFETY: types: an address, two 64-bit integers, a float. bounds: threads past count
        // leave, out covers it. aliases: out is borrowed mutably. lives: see above.
        unsafe {
            self.context
                .compute()
                .launch_builder(&self.kernels.fill_normal)
                .arg(&out)
                .arg(&count)
                .arg(&seed)
                .arg(&deviation)
                .launch(config)
        }
        .or_fault("launching `fill_normal`")
        .map(drop)
    }
}
