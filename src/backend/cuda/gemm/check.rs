//! [`BitCheck`]: computes rows of a pass's matmuls a second time, alone, and compares their bits.
//!
//! Algorithms are chosen by bits that they compute for some counts of rows
//! ([`trial`](super::trial)). On request this checks that choice at the counts that really occur: a
//! pass takes about twice as long, because the host waits for every matmul.

use std::env;
use std::fmt;

use super::lt::{Lt, Operands, Share};
use super::matmul::Matmul;
use super::shape::MatmulShape;
use crate::backend::cuda::buffer::DeviceBuffer;
use crate::backend::cuda::context::Context;
use crate::backend::cuda::format::ActivationFormat;
use crate::backend::cuda::stopwatch;
use crate::error::{Error, ErrorKind, Result};
use crate::random::Random;

/// The variable of the environment that requests the check, by the value 1.
const VARIABLE: &str = "KUDOS_CHECK_BITS";

/// Rows that are computed again, at most.
const ROWS: usize = 32;

/// Seed of the choice of rows.
const SEED: u64 = 0;

/// Compares rows of matmuls with the same rows alone.
pub struct BitCheck {
    /// The rows alone.
    alone: DeviceBuffer,
    random: Random,
}

impl BitCheck {
    /// The check, with memory for matmuls of these shapes, if the environment requests it.
    pub fn from_environment(
        context: &Context,
        format: ActivationFormat,
        shapes: impl Iterator<Item = MatmulShape>,
    ) -> Result<Option<Self>> {
        match env::var(VARIABLE).as_deref() {
            Ok("1") => Self::new(context, format, shapes).map(Some),
            Ok("" | "0") | Err(env::VarError::NotPresent) => Ok(None),
            Ok(value) => {
                let message = format!("{VARIABLE} is `{value}`, and can be 0 or 1");
                Err(Error::new(ErrorKind::Options, message))
            }
            Err(error) => Err(Error::new(ErrorKind::Options, format!("{VARIABLE}: {error}"))),
        }
    }

    /// A check for matmuls of these shapes.
    pub fn new(
        context: &Context,
        format: ActivationFormat,
        shapes: impl Iterator<Item = MatmulShape>,
    ) -> Result<Self> {
        let bytes = shapes.map(|shape| ROWS * shape.out_stride * shape.out.bytes(format)).max();
        Ok(Self { alone: context.allocate(bytes.unwrap_or_default())?, random: Random::new(SEED) })
    }

    /// Runs a matmul, and some of its rows alone; [`ErrorKind::Device`] when their bits differ.
    pub fn run(
        &mut self,
        context: &Context,
        lt: &Lt,
        matmul: &mut Matmul,
        operands: Operands<'_>,
    ) -> Result<()> {
        if operands.rows == 0 {
            return lt.run(matmul, operands);
        }
        let (shape, format) = (matmul.shape(), lt.format);
        let Operands { x, weight, bias, out, out_first, rows, alpha, share } = operands;
        let first = self.random.next_bits() as usize % rows;
        let count = (rows - first).min(ROWS);
        let element = shape.out.bytes(format);
        let bytes = ((count - 1) * shape.out_stride + shape.features) * element;
        let start = (out_first + first * shape.out_stride) * element;
        // What the result is added to, where it is.
        stopwatch::copy(context, out.slice(start..start + bytes), &mut self.alone)?;
        lt.run(matmul, Operands { x, weight, bias, out: &mut *out, out_first, rows, alpha, share })?;
        let x = x.after(first * shape.x_stride * format.bytes());
        // With the GPU to themselves.
        let (alone, share) = (&mut self.alone, Share::Whole);
        lt.run(matmul, Operands { x, weight, bias, out: alone, out_first: 0, rows: count, alpha, share })?;
        let of_rows = |buffer: &DeviceBuffer, start: usize| -> Result<Vec<u8>> {
            buffer.slice(start..start + bytes).download(context.compute())
        };
        let (together, alone) = (of_rows(out, start)?, of_rows(&self.alone, 0)?);
        let stride = shape.out_stride * element;
        let differs = |row: &usize| {
            let row = row * stride..row * stride + shape.features * element;
            together[row.clone()] != alone[row]
        };
        let Some(row) = (0..count).find(differs) else { return Ok(()) };
        let algorithms = matmul.schedule().at(rows);
        let message = format!(
            "{shape} of {rows} rows gives row {} other bits than one of {count} rows: {algorithms:?}",
            first + row
        );
        Err(Error::new(ErrorKind::Device, message).with_hint(
            "rewards depend on the batch with this version of cublasLt: use another, and report it",
        ))
    }
}

impl fmt::Debug for BitCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BitCheck").finish_non_exhaustive()
    }
}
