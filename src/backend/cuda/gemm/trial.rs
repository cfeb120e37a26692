//! [`Trial`]: matmuls on values that tell algorithms apart, in memory that is free before weights
//! and activations are allocated.
//!
//! The terms of every sum cancel: the second half of a row of `x` repeats the first one backwards,
//! and that of a row of the weight does so with the sign changed. Only rounding errors are left,
//! and they depend on the order of the additions. Terms are of very different size, so that most
//! additions round. Rows of `x` repeat with a period: results of equal rows must be equal, wherever
//! the rows lie in a matmul, and however many it has.

use std::ops::Range;

use half::{bf16, f16};

use super::algorithm::Algorithm;
use super::lt::{Lt, Operands, Problem, Share};
use super::shape::{MatmulShape, Out};
use crate::backend::cuda::buffer::DeviceBuffer;
use crate::backend::cuda::format::{ActivationFormat, WeightFormat};
use crate::backend::cuda::ops::{DigestRows, Ops};
use crate::error::Result;
use crate::random::Random;

/// Distinct rows of `x`: a prime, so that equal rows lie everywhere in tiles.
const PERIOD: usize = 61;

/// Distinct rows of the weight.
const WEIGHT_PERIOD: usize = 67;

/// Counts of rows that every algorithm computes: one; a few; a whole tile; one row beyond the
/// tallest tile.
pub const PROBES: [usize; 4] = [1, 17, 128, 257];

/// The most of them: rows that are digested together.
const PROBED_MAX: usize = PROBES[PROBES.len() - 1];

/// Every byte of `out` before a matmul adds to it: 7.1e-4 in bf16 and in f32, about the size of the
/// rounding errors.
const OUT_BYTE: u8 = 0x3A;

/// Seed of all values. The bits of results, and so the classes, depend on it.
const SEED: u64 = 0;

/// Number of exponents of values: -6 to 6. In f16 every value is finite.
const EXPONENTS: u64 = 13;

/// A digest of each of the `PERIOD` distinct rows of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits(Vec<u64>);

/// The operands of one shape.
pub struct Trial<'a> {
    ops: &'a Ops,
    weight: DeviceBuffer,
    x: DeviceBuffer,
    bias: DeviceBuffer,
    out: DeviceBuffer,
    digests: DeviceBuffer,
}

impl<'a> Trial<'a> {
    /// Operands for up to `rows` rows, and at least those of [`PROBES`].
    pub fn new(ops: &'a Ops, shape: MatmulShape, rows: usize) -> Result<Self> {
        let (context, format) = (ops.context(), ops.format());
        let rows = rows.max(PROBED_MAX);
        let MatmulShape { features, width, x_stride, out_stride, out, .. } = shape;
        let mut trial = Self {
            ops,
            weight: context.allocate(features * width * WeightFormat::beside(format).bytes())?,
            x: context.allocate(rows * x_stride * format.bytes())?,
            bias: context.allocate(features * out.bytes(format))?,
            out: context.allocate(rows * out_stride * out.bytes(format))?,
            digests: context.allocate(PROBED_MAX * size_of::<u64>())?,
        };
        trial.fill(shape)?;
        Ok(trial)
    }

    /// Bytes for [`PROBES`] beside the weight: a plan reserves them where activations take less.
    pub fn least_bytes(format: ActivationFormat, shape: MatmulShape) -> usize {
        let MatmulShape { features, x_stride, out_stride, out, .. } = shape;
        let operands = PROBED_MAX * (x_stride * format.bytes() + out_stride * out.bytes(format));
        operands + features * out.bytes(format) + PROBED_MAX * size_of::<u64>()
    }

    /// The bits that an algorithm computes; `None` where it takes too few of [`PROBES`], or gives
    /// equal rows different bits.
    pub fn bits(&mut self, lt: &Lt, problem: &mut Problem, algorithm: &Algorithm) -> Result<Option<Bits>> {
        let mut known: Option<Bits> = None;
        // The most rows first: they show every distinct one. With every part of the GPU: one that
        // collectives run beside gives the same bits.
        let probes =
            PROBES.into_iter().rev().flat_map(|rows| lt.shares().iter().map(move |share| (rows, *share)));
        for (rows, share) in probes {
            let Some(digests) = self.digests(lt, problem, algorithm, (rows, share), 0..rows)? else {
                continue;
            };
            match &known {
                None if rows < PERIOD => return Ok(None),
                None => known = Some(Bits(digests[..PERIOD].to_vec())),
                Some(_) => {}
            }
            let bits = known.as_ref().expect("set above");
            if !bits.are_those_of(&digests, 0) {
                return Ok(None);
            }
        }
        Ok(known)
    }

    /// Whether an algorithm takes `rows` rows and computes these bits, in the first, the middle and
    /// the last of them.
    pub fn confirms(
        &mut self,
        lt: &Lt,
        problem: &mut Problem,
        algorithm: &Algorithm,
        (rows, share): (usize, Share),
        bits: &Bits,
    ) -> Result<bool> {
        let count = rows.min(PERIOD);
        let first = self.digests(lt, problem, algorithm, (rows, share), 0..count)?;
        let Some(first) = first else { return Ok(false) };
        let mut all = bits.are_those_of(&first, 0);
        for from in [(rows - count) / 2, rows - count] {
            let digests = self.row_digests(problem.shape, from..from + count)?;
            all &= bits.are_those_of(&digests, from);
        }
        Ok(all)
    }

    /// Queues a matmul of `rows` rows; `false` where the library refuses.
    pub fn launch(
        &mut self,
        lt: &Lt,
        problem: &mut Problem,
        algorithm: &Algorithm,
        (rows, share): (usize, Share),
    ) -> Result<bool> {
        let shape = problem.shape;
        let mut operands = Operands {
            x: self.x.all(),
            weight: self.weight.all(),
            bias: shape.bias.then(|| self.bias.all()),
            out: &mut self.out,
            out_first: 0,
            rows,
            alpha: 1.0,
            share,
        };
        Ok(lt.launch(problem, algorithm, &mut operands)?.is_ok())
    }

    /// Computes `rows` rows and digests some of them; `None` where the library refuses.
    fn digests(
        &mut self,
        lt: &Lt,
        problem: &mut Problem,
        algorithm: &Algorithm,
        (rows, share): (usize, Share),
        of: Range<usize>,
    ) -> Result<Option<Vec<u64>>> {
        if !lt.accepts(problem, algorithm, rows, share)? {
            return Ok(None);
        }
        self.out.fill(OUT_BYTE, self.ops.context().compute())?;
        if !self.launch(lt, problem, algorithm, (rows, share))? {
            return Ok(None);
        }
        self.row_digests(problem.shape, of).map(Some)
    }

    /// Digests of rows of the result, made on the GPU: a result of 257 rows takes 30 MB at the
    /// 70B's width, its digests 2 kB.
    fn row_digests(&mut self, shape: MatmulShape, rows: Range<usize>) -> Result<Vec<u64>> {
        let element = shape.out.bytes(self.ops.format());
        let stride = shape.out_stride * element;
        self.ops.digest_rows(DigestRows {
            x: self.out.slice(rows.start * stride..self.out.bytes()),
            digests: &mut self.digests,
            rows: rows.len(),
            stride,
            row_bytes: shape.features * element,
        })?;
        self.digests.slice(0..rows.len() * size_of::<u64>()).download(self.ops.context().compute())
    }

    fn fill(&mut self, shape: MatmulShape) -> Result<()> {
        let (stream, format) = (self.ops.context().compute(), self.ops.format());
        let MatmulShape { features, width, x_stride, out, .. } = shape;
        let mut values = Values(Random::new(SEED));
        let x: Vec<u16> =
            (0..PERIOD).flat_map(|_| values.row(format, width, x_stride, Half::Repeated)).collect();
        let weight: Vec<u16> =
            (0..WEIGHT_PERIOD).flat_map(|_| values.row(format, width, width, Half::Negated)).collect();
        // About the size of the rounding errors.
        let bias: Vec<f32> = (0..features).map(|_| values.next() / 1024.0).collect();
        self.x.upload_repeated(&x, stream)?;
        self.weight.upload_repeated(&weight, stream)?;
        match out {
            Out::F32 | Out::AddF32 => self.bias.upload(0, &bias, stream),
            Out::Activation | Out::AddActivation => {
                let bias: Vec<u16> = bias.iter().map(|&value| rounded(format, value)).collect();
                self.bias.upload(0, &bias, stream)
            }
        }
    }
}

impl Bits {
    /// Whether these are the digests of a result's rows from row `first` on.
    fn are_those_of(&self, digests: &[u64], first: usize) -> bool {
        digests.iter().enumerate().all(|(row, digest)| *digest == self.0[(first + row) % PERIOD])
    }
}

/// How the second half of a row repeats the first one backwards.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Repeated,
    Negated,
}

/// Values of the same size and precision in any format, the same ones in every run.
struct Values(Random);

impl Values {
    /// A value between 1 and 2, times a power of two, of either sign.
    fn next(&mut self) -> f32 {
        let bits = self.0.next_bits();
        let exponent = (bits >> 32) % EXPONENTS;
        let size = f32::from_bits((127 - 6 + exponent as u32) << 23 | (bits as u32 & 0x007F_FFFF));
        if bits >> 63 == 0 { size } else { -size }
    }

    /// A row of `width` values in a format, and zeros up to `stride`.
    fn row(&mut self, format: ActivationFormat, width: usize, stride: usize, half: Half) -> Vec<u16> {
        let mut row: Vec<u16> = (0..width / 2).map(|_| rounded(format, self.next())).collect();
        let sign = if half == Half::Negated { 0x8000 } else { 0 };
        let backwards: Vec<u16> = row.iter().rev().map(|bits| bits ^ sign).collect();
        row.extend(backwards);
        row.resize(stride, 0);
        row
    }
}

/// Bits of a value, rounded to a format.
fn rounded(format: ActivationFormat, value: f32) -> u16 {
    match format {
        ActivationFormat::F16 => f16::from_f32(value).to_bits(),
        ActivationFormat::Bf16 => bf16::from_f32(value).to_bits(),
    }
}
