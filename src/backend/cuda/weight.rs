//! Weights on the device: converted to its storage format and laid out on their way through pinned memory.

use std::cell::Cell;

use half::{bf16, f16};

use super::Storage;
use super::buffer::{DeviceBuffer, DeviceSlice};
use super::context::Context;
use super::heads::HeadLayout;
use super::staging::Staging;
use crate::backend::Matrix;
use crate::error::{Error, ErrorKind, Result};
use crate::weights::{Dtype, HostTensor};

/// A matrix `[out_features, in_features]` with an optional bias, or a vector: one row.
#[derive(Debug)]
pub struct Weight {
    /// Which one it is.
    pub(super) matrix: Matrix,
    values: DeviceBuffer,
    bias: Option<DeviceBuffer>,
    /// Rows.
    pub(super) out_features: usize,
    /// Width of a row.
    pub(super) in_features: usize,
}

impl Weight {
    /// All of it.
    pub(super) fn values(&self) -> DeviceSlice<'_> {
        self.values.all()
    }

    /// Rows `first..first + count`.
    pub(super) fn rows(&self, first: usize, count: usize) -> DeviceSlice<'_> {
        let bytes = self.in_features * Storage::BYTES;
        self.values.slice(first * bytes..(first + count) * bytes)
    }

    /// The bias of output features `first..first + count`.
    pub(super) fn bias(&self, first: usize, count: usize) -> Option<DeviceSlice<'_>> {
        let bias = self.bias.as_ref()?;
        let bytes = bias.bytes() / self.out_features;
        Some(bias.slice(first * bytes..(first + count) * bytes))
    }
}

/// Brings weights to one device.
pub(super) struct Loader<'a> {
    pub(super) context: &'a Context,
    pub(super) staging: &'a mut Staging,
    pub(super) storage: Storage,
    pub(super) heads: HeadLayout,
    /// Weights that became subnormal f16 numbers so far, and lost digits by it.
    pub(super) subnormal: &'a Cell<u64>,
}

impl Loader<'_> {
    /// A matrix made of pieces, one after the other by output features.
    pub(super) fn matrix(
        &mut self,
        matrix: Matrix,
        pieces: &[HostTensor],
        bias: Option<&[HostTensor]>,
    ) -> Result<Weight> {
        let rows: usize = pieces.iter().map(HostTensor::rows).sum();
        let out_features = self.heads.out_features(matrix, rows);
        let in_features = self.heads.in_features(matrix, pieces[0].cols());
        let mut values = self.context.allocate(out_features * in_features * Storage::BYTES)?;
        let (storage, heads, subnormal) = (self.storage, self.heads, self.subnormal);
        let mut scratch = vec![0.0; pieces[0].cols()];
        let row_bytes = in_features * Storage::BYTES;
        self.staging.copy_rows(self.context, &mut values, 0, out_features, row_bytes, |row, bytes| {
            let source = if matrix == Matrix::Qkv { heads.source(row) } else { Some(row) };
            let Some((piece, row)) = source.map(|row| piece_of(pieces, row)) else {
                bytes.fill(0);
                return Ok(());
            };
            if in_features == piece.cols() && stored_alike(piece.dtype(), storage) {
                bytes.copy_from_slice(piece.row_bytes(row));
                return Ok(());
            }
            piece.row_to_f32(row, &mut scratch);
            for (feature, number) in bytes.chunks_exact_mut(Storage::BYTES).enumerate() {
                let source = if matrix == Matrix::O { heads.source(feature) } else { Some(feature) };
                let bits = match source {
                    Some(source) => stored(scratch[source], storage, piece, subnormal)?,
                    None => 0,
                };
                number.copy_from_slice(&bits.to_le_bytes());
            }
            Ok(())
        })?;
        let bias = bias.map(|pieces| self.bias(matrix, pieces, out_features)).transpose()?;
        Ok(Weight { matrix, values, bias, out_features, in_features })
    }

    /// A vector.
    pub(super) fn vector(&mut self, tensor: &HostTensor) -> Result<Weight> {
        // A norm's weight is laid out like a matrix of one row whose features are nobody's heads.
        self.matrix(Matrix::Down, std::slice::from_ref(tensor), None)
    }

    fn bias(&mut self, matrix: Matrix, pieces: &[HostTensor], out_features: usize) -> Result<DeviceBuffer> {
        let mut values = Vec::new();
        for piece in pieces {
            let first = values.len();
            values.resize(first + piece.cols(), 0.0);
            piece.row_to_f32(0, &mut values[first..]);
        }
        let at = |feature: usize| {
            let source = if matrix == Matrix::Qkv { self.heads.source(feature) } else { Some(feature) };
            source.map_or(0.0, |source| values[source])
        };
        let (storage, subnormal) = (self.storage, self.subnormal);
        let mut bytes: Vec<u8> = Vec::new();
        for feature in 0..out_features {
            if into_f32(matrix, storage) {
                bytes.extend(at(feature).to_le_bytes());
            } else {
                bytes.extend(stored(at(feature), storage, &pieces[0], subnormal)?.to_le_bytes());
            }
        }
        let mut bias = self.context.allocate(bytes.len())?;
        bias.upload(0, &bytes, self.context.compute())?;
        Ok(bias)
    }
}

/// Whether products with this matrix go into a residual stream of f32.
pub(super) fn into_f32(matrix: Matrix, storage: Storage) -> bool {
    storage == Storage::F16 && matches!(matrix, Matrix::O | Matrix::Down)
}

/// The piece that holds row `row` of all pieces, and the row's number in it.
fn piece_of(pieces: &[HostTensor], mut row: usize) -> (&HostTensor, usize) {
    for piece in pieces {
        if row < piece.rows() {
            return (piece, row);
        }
        row -= piece.rows();
    }
    panic!("{row} rows more than there are")
}

fn stored_alike(dtype: Dtype, storage: Storage) -> bool {
    matches!((dtype, storage), (Dtype::BF16, Storage::Bf16) | (Dtype::F16, Storage::F16))
}

/// A weight in the device's format; an error that names the tensor when it is outside of f16's range.
fn stored(value: f32, storage: Storage, tensor: &HostTensor, subnormal: &Cell<u64>) -> Result<u16> {
    match storage {
        Storage::Bf16 => Ok(bf16::from_f32(value).to_bits()),
        Storage::F16 => {
            let short = f16::from_f32(value);
            if short.is_infinite() && value.is_finite() {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("tensor `{}` holds {value}, which f16 cannot", tensor.name()),
                )
                .at(tensor.path().display())
                .with_hint("this GPU has no bf16; a newer one (compute capability 8.0), or the CPU, can score this model"));
            }
            if value != 0.0 && short.to_f32().abs() < f16::MIN_POSITIVE.to_f32() && short.to_f32() != value {
                subnormal.set(subnormal.get() + 1);
            }
            Ok(short.to_bits())
        }
    }
}
