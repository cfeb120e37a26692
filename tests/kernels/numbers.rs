//! Random and hard values, formats on the host, and the comparison of results with expectations.

use half::{bf16, f16};
use kudos::internals::backend::cuda::buffer::DeviceBuffer;
use kudos::internals::backend::cuda::format::ActivationFormat;
use kudos::internals::backend::cuda::ops::Ops;
use kudos::internals::backend::cuda::tables::{DeviceTables, HostTables};

/// Bits of `value` in a format.
pub(crate) fn bits(format: ActivationFormat, value: f64) -> u16 {
    match format {
        ActivationFormat::F16 => f16::from_f64(value).to_bits(),
        ActivationFormat::Bf16 => bf16::from_f64(value).to_bits(),
    }
}

/// The value of bits in a format.
pub(crate) fn value(format: ActivationFormat, bits: u16) -> f64 {
    match format {
        ActivationFormat::F16 => f16::from_bits(bits).to_f64(),
        ActivationFormat::Bf16 => bf16::from_bits(bits).to_f64(),
    }
}

/// `number` rounded to a format.
pub(crate) fn round(format: ActivationFormat, number: f64) -> f64 {
    value(format, bits(format, number))
}

/// The largest relative error of one rounding to a format.
pub(crate) fn half_ulp(format: ActivationFormat) -> f64 {
    match format {
        ActivationFormat::F16 => 2f64.powi(-11),
        ActivationFormat::Bf16 => 2f64.powi(-8),
    }
}

/// A generator of values, from a seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A value between 0 and 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A value near to normal, with mean 0 and variance 1.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    /// `count` values in a format: normal times `scale`, and every 97th an outlier, 20 times as
    /// large.
    pub(crate) fn rows(&mut self, format: ActivationFormat, count: usize, scale: f64) -> Vec<f64> {
        self.hard(count, scale).into_iter().map(|number| round(format, number)).collect()
    }

    /// Such values in the format of the residual stream: bf16, or f32 beside fp16.
    pub(crate) fn residual_rows(&mut self, format: ActivationFormat, count: usize, scale: f64) -> Vec<f64> {
        match format {
            ActivationFormat::Bf16 => self.rows(format, count, scale),
            ActivationFormat::F16 => {
                self.hard(count, scale).into_iter().map(|number| f64::from(number as f32)).collect()
            }
        }
    }

    fn hard(&mut self, count: usize, scale: f64) -> Vec<f64> {
        (0..count).map(|i| self.normal() * scale * if i % 97 == 5 { 20.0 } else { 1.0 }).collect()
    }
}

/// Uploads values in the activations' format.
pub(crate) fn upload(ops: &Ops, numbers: &[f64]) -> DeviceBuffer {
    upload_raw(ops, &numbers.iter().map(|&number| bits(ops.format(), number)).collect::<Vec<_>>())
}

/// Uploads plain values.
pub(crate) fn upload_raw<T: bytemuck::Pod>(ops: &Ops, values: &[T]) -> DeviceBuffer {
    let mut buffer = ops.context().allocate(size_of_val(values)).unwrap();
    buffer.upload(0, values, ops.context().compute()).unwrap();
    buffer
}

/// Uploads the tables that `add` adds to, and returns its result with them.
pub(crate) fn tables<T>(ops: &Ops, add: impl FnOnce(&mut HostTables) -> T) -> (DeviceTables, T) {
    let mut tables = HostTables::new();
    let added = add(&mut tables);
    (DeviceTables::upload(ops.context(), tables).unwrap(), added)
}

/// Downloads elements in the activations' format.
pub(crate) fn download(ops: &Ops, buffer: &DeviceBuffer) -> Vec<f64> {
    try_download(ops, buffer).unwrap()
}

/// Like `download`, but returns errors.
pub(crate) fn try_download(ops: &Ops, buffer: &DeviceBuffer) -> kudos::Result<Vec<f64>> {
    let raw: Vec<u16> = buffer.all().download(ops.context().compute())?;
    Ok(raw.into_iter().map(|bits| value(ops.format(), bits)).collect())
}

/// Compares results with expectations: each within `bound(i)`, and no more than the share
/// `unequal_max` of them, and one, unequal.
pub(crate) fn assert_close(
    what: &str,
    width: usize,
    got: &[f64],
    want: &[f64],
    unequal_max: f64,
    bound: impl Fn(usize) -> f64,
) {
    assert_eq!(got.len(), want.len(), "{what}");
    let mut unequal = 0;
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        unequal += usize::from(got != want);
        let bound = bound(i);
        assert!(
            (got - want).abs() <= bound,
            "{what}: row {}, column {}: {got:e}, expected {want:e} within {bound:e}",
            i / width,
            i % width
        );
    }
    let allowed = 1.0 + unequal_max * got.len() as f64;
    assert!(unequal as f64 <= allowed, "{what}: {unequal} of {} differ from the expectation", got.len());
}
