//! `bench kernels`: each kernel of a GPU against what the device can do.

use crate::bench::args::KernelsArgs;
use crate::error::{Error, ErrorKind};

pub(super) fn run(args: &KernelsArgs) -> anyhow::Result<()> {
    let KernelsArgs { shape, output: _ } = args;
    let message = format!("the kernels of {} are not measured yet", shape.shape().name);
    Err(Error::new(ErrorKind::Unsupported, message).into())
}
