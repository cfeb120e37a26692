//! [`Ops`], and the checks that all launches share.

use std::fmt;

use cudarc::driver::LaunchConfig;
use cudarc::driver::sys::CUdeviceptr;

use crate::backend::cuda::buffer::DeviceSlice;
use crate::backend::cuda::context::Context;
use crate::backend::cuda::format::ActivationFormat;
use crate::backend::cuda::kernels::{AttentionFeatures, AttentionKernel, Kernels, Occupancy};
use crate::backend::cuda::tables::{DeviceTables, Table};
use crate::backend::tier::CudaTier;
use crate::error::{Error, ErrorKind, Result};

/// Elements in one 16-byte access.
pub(super) const WIDE: usize = 8;

/// Bytes of one access: rows are whole multiples of it.
pub(super) const WORD_BYTES: usize = 16;

/// A GPU with its kernels: one method per kernel, named like it. Ops are queued on the compute
/// stream.
pub struct Ops {
    pub(super) context: Context,
    pub(super) kernels: Kernels,
}

impl Ops {
    /// The kernels of a tier in this context, with the best attention kernel for heads of
    /// `head_dim`.
    pub fn new(context: Context, tier: CudaTier, head_dim: usize) -> Result<Self> {
        let (format, features) = (ActivationFormat::of(tier), AttentionFeatures::NONE);
        let attention = AttentionKernel::choose(context.info(), format, head_dim, features)?;
        Self::with_attention(context, attention)
    }

    /// This attention kernel in this context, with the other kernels of its format.
    pub fn with_attention(context: Context, attention: &'static AttentionKernel) -> Result<Self> {
        let kernels = Kernels::load(&context, attention)?;
        Ok(Self { context, kernels })
    }

    /// The attention kernel.
    pub fn attention_kernel(&self) -> &'static AttentionKernel {
        self.kernels.attention_kernel
    }

    /// The use that the attention kernel makes of a multiprocessor.
    pub fn attention_occupancy(&self) -> Result<Occupancy> {
        self.kernels.attention_occupancy()
    }

    /// The context that the kernels run in.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The format of activations.
    pub fn format(&self) -> ActivationFormat {
        self.kernels.attention_kernel.format
    }
}

impl fmt::Debug for Ops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ops").field("context", &self.context).field("format", &self.format()).finish()
    }
}

/// The checks of one launch; their errors name the kernel.
#[derive(Clone, Copy)]
pub(super) struct Needs(pub(super) &'static str);

impl Needs {
    /// [`ErrorKind::Unsupported`] unless the requirement `holds`; `what` describes it, and the
    /// value instead.
    pub(super) fn that(self, holds: bool, what: impl FnOnce() -> String) -> Result<()> {
        if holds {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, format!("kernel `{}` needs {}", self.0, what())))
    }

    /// Requires that a size is a whole number of 16-byte words.
    pub(super) fn wide(self, name: &str, size: usize) -> Result<()> {
        self.that(size > 0 && size.is_multiple_of(WIDE), || {
            format!("{name} in multiples of {WIDE}, not {size}")
        })
    }

    /// Requires that a buffer covers the bytes that will be touched, given by their factors, and
    /// starts with a whole word.
    pub(super) fn covers<const N: usize>(
        self,
        name: &str,
        has: DeviceSlice<'_>,
        factors: [usize; N],
    ) -> Result<()> {
        let bytes = factors.into_iter().fold(1, usize::saturating_mul);
        self.that(has.bytes() >= bytes, || format!("{bytes} bytes of {name}, not {}", has.bytes()))?;
        self.that(has.address().is_multiple_of(WORD_BYTES as u64), || {
            format!("{name} aligned to {WORD_BYTES} bytes")
        })
    }

    /// The address of a table, which must be on the device.
    pub(super) fn table(self, name: &str, tables: &DeviceTables, table: &Table) -> Result<CUdeviceptr> {
        let address = tables.address(table);
        self.that(address.is_some(), || format!("{name} of the tables that were uploaded last"))?;
        Ok(address.unwrap_or_default())
    }

    /// A size as a kernel's `int`.
    pub(super) fn int(self, name: &str, size: usize) -> Result<i32> {
        i32::try_from(size)
            .or_else(|_| self.that(false, || format!("{name} below 2^31, not {size}")).map(|()| 0))
    }

    /// A grid of `x * y` blocks of `threads` threads.
    pub(super) fn grid(
        self,
        x: usize,
        y: usize,
        threads: usize,
        shared_bytes: usize,
    ) -> Result<LaunchConfig> {
        self.that(x > 0 && x <= i32::MAX as usize && y > 0 && y <= 65_535, || {
            format!("a grid within 2^31 * 65,535 blocks, not {x} * {y}")
        })?;
        Ok(LaunchConfig {
            grid_dim: (x as u32, y as u32, 1),
            block_dim: (threads as u32, 1, 1),
            shared_mem_bytes: shared_bytes as u32,
        })
    }
}
