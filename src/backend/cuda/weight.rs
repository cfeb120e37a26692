//! Weights on the device, and [`Rows`]: how they are converted to its format and laid out on their way there.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::CUdeviceptr;
use half::{bf16, f16};

use super::Storage;
use super::buffer::{DeviceBuffer, DeviceSlice};
use super::context::Context;
use super::heads::HeadLayout;
use crate::backend::{Matrix, Part};
use crate::error::{Error, ErrorKind, Result};
use crate::weights::{Dtype, HostTensor, Normal};

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

/// The form of weights on a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) storage: Storage,
    pub(super) heads: HeadLayout,
}

impl Weight {
    /// Room for a weight of the shape of `part`; contents undefined.
    pub(super) fn allocate(context: &Context, layout: Layout, part: &Part<'_>) -> Result<Self> {
        let (matrix, out_features, in_features) = layout.shape(part);
        let (values_bytes, bias_bytes) = layout.bytes(part);
        let values = context.allocate(values_bytes)?;
        let bias = bias_bytes.map(|bytes| context.allocate(bytes)).transpose()?;
        Ok(Self { matrix, values, bias, out_features, in_features })
    }

    /// How the device can make this weight by itself, where `part` is random numbers that lie alike on host and device.
    pub(super) fn normal(&self, part: &Part<'_>) -> Option<Normal> {
        let rows: usize = part.pieces.iter().map(HostTensor::rows).sum();
        let (first, alike) = (&part.pieces[0], self.out_features == rows);
        first.normal().filter(|_| alike && self.in_features == first.cols() && part.bias.is_none())
    }

    /// All of it, to be filled before anything else uses it.
    pub(super) fn values_mut(&mut self) -> &mut DeviceBuffer {
        &mut self.values
    }

    /// What must be copied for this weight to hold `part`.
    ///
    /// # Panics
    ///
    /// When `part` has another shape.
    pub(super) fn rows_from(&self, layout: Layout, part: &Part<'_>) -> Vec<Rows> {
        let shape = (self.matrix, self.out_features, self.in_features);
        assert_eq!(layout.shape(part), shape, "a weight of another shape takes the place");
        assert_eq!(part.bias.is_some(), self.bias.is_some(), "a bias comes or goes");
        let bias = self.bias.as_ref().map_or(NOWHERE, DeviceBuffer::address);
        Rows::of_part(layout, part, self.values.address(), bias)
    }

    /// All of it.
    pub(super) fn values(&self) -> DeviceSlice<'_> {
        self.values.all()
    }

    /// Rows `first..first + count`.
    pub(super) fn rows(&self, first: usize, count: usize) -> DeviceSlice<'_> {
        let bytes = self.in_features * Storage::BYTES;
        self.values.slice(first * bytes..(first + count) * bytes)
    }

    /// Whether it has a bias.
    pub(super) fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// The bias of output features `first..first + count`.
    pub(super) fn bias(&self, first: usize, count: usize) -> Option<DeviceSlice<'_>> {
        let bias = self.bias.as_ref()?;
        let bytes = bias.bytes() / self.out_features;
        Some(bias.slice(first * bytes..(first + count) * bytes))
    }
}

impl Layout {
    /// What a part is and its output and input features on the device.
    fn shape(self, part: &Part<'_>) -> (Matrix, usize, usize) {
        // A norm's weight is laid out like a matrix of one row whose features are nobody's heads.
        let matrix = part.matrix.unwrap_or(Matrix::Down);
        let rows = part.pieces.iter().map(HostTensor::rows).sum();
        let out_features = self.heads.out_features(matrix, rows);
        (matrix, out_features, self.heads.in_features(matrix, part.pieces[0].cols()))
    }

    /// What a part takes on the device: its values, and its bias if it has one.
    pub(super) fn bytes(self, part: &Part<'_>) -> (usize, Option<usize>) {
        let (matrix, out_features, in_features) = self.shape(part);
        let bias = part.bias.map(|_| out_features * self.bias_bytes(matrix));
        (out_features * in_features * Storage::BYTES, bias)
    }

    /// Bytes of one number of a bias.
    fn bias_bytes(self, matrix: Matrix) -> usize {
        if into_f32(matrix, self.storage) { size_of::<f32>() } else { Storage::BYTES }
    }
}

/// Rows of one weight, or its bias as a single row, with where they come from and where on the device they belong.
#[derive(Debug)]
pub(super) struct Rows {
    layout: Layout,
    matrix: Matrix,
    kind: Kind,
    pieces: Vec<HostTensor>,
    to: CUdeviceptr,
    /// How many.
    pub(super) count: usize,
    /// Numbers of a row.
    width: usize,
    /// Bytes of a row on the device.
    pub(super) row_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Values,
    Bias,
}

/// The address of rows that are not copied.
const NOWHERE: CUdeviceptr = 0;

impl Rows {
    /// The rows of a part that is only looked at.
    pub(super) fn to_check(layout: Layout, part: &Part<'_>) -> Vec<Self> {
        Self::of_part(layout, part, NOWHERE, NOWHERE)
    }

    /// A part's values, and its bias if it has one, which belong to these addresses.
    fn of_part(layout: Layout, part: &Part<'_>, values: CUdeviceptr, bias: CUdeviceptr) -> Vec<Self> {
        let (matrix, out_features, in_features) = layout.shape(part);
        let mut all = vec![Self {
            layout,
            matrix,
            kind: Kind::Values,
            pieces: part.pieces.to_vec(),
            to: values,
            count: out_features,
            width: in_features,
            row_bytes: in_features * Storage::BYTES,
        }];
        all.extend(part.bias.map(|pieces| Self {
            layout,
            matrix,
            kind: Kind::Bias,
            pieces: pieces.to_vec(),
            to: bias,
            count: 1,
            width: out_features,
            row_bytes: out_features * layout.bias_bytes(matrix),
        }));
        all
    }

    /// Where rows `rows` belong on the device: the address, and the bytes from there on.
    pub(super) fn destination(&self, rows: &Range<usize>) -> (CUdeviceptr, usize) {
        assert!(rows.start <= rows.end && rows.end <= self.count, "rows {rows:?} of {}", self.count);
        (self.to + (rows.start * self.row_bytes) as CUdeviceptr, rows.len() * self.row_bytes)
    }

    /// Bytes of a row in the files that it comes from.
    pub(super) fn stored_row_bytes(&self) -> usize {
        let bytes = |piece: &HostTensor| piece.cols() * piece.dtype().size();
        match self.kind {
            Kind::Values => bytes(&self.pieces[0]),
            Kind::Bias => self.pieces.iter().map(bytes).sum(),
        }
    }

    /// Writes rows from `first` on, as many as `bytes` holds, as the device stores them. Adds to `subnormal` the numbers
    /// that became subnormal f16 ones and lost digits by it.
    pub(super) fn fill(&self, first: usize, bytes: &mut [u8], subnormal: &AtomicU64) -> Result<()> {
        if self.kind == Kind::Bias {
            return self.fill_bias(bytes, subnormal);
        }
        let Layout { storage, heads } = self.layout;
        let mut scratch = Vec::new();
        for (row, bytes) in (first..).zip(bytes.chunks_exact_mut(self.row_bytes)) {
            let source = if self.matrix == Matrix::Qkv { heads.source(row) } else { Some(row) };
            let Some((piece, row)) = source.map(|row| piece_of(&self.pieces, row)) else {
                bytes.fill(0);
                continue;
            };
            if self.width == piece.cols() && stored_alike(piece.dtype(), storage) {
                bytes.copy_from_slice(piece.row_bytes(row));
                continue;
            }
            scratch.resize(piece.cols(), 0.0);
            piece.row_to_f32(row, &mut scratch);
            for (feature, number) in bytes.chunks_exact_mut(Storage::BYTES).enumerate() {
                let source = if self.matrix == Matrix::O { heads.source(feature) } else { Some(feature) };
                let bits = match source {
                    Some(source) => stored(scratch[source], storage, piece, subnormal)?,
                    None => 0,
                };
                number.copy_from_slice(&bits.to_le_bytes());
            }
        }
        Ok(())
    }

    fn fill_bias(&self, bytes: &mut [u8], subnormal: &AtomicU64) -> Result<()> {
        let Layout { storage, heads } = self.layout;
        let mut values = Vec::new();
        for piece in &self.pieces {
            let first = values.len();
            values.resize(first + piece.cols(), 0.0);
            piece.row_to_f32(0, &mut values[first..]);
        }
        for (feature, number) in bytes.chunks_exact_mut(self.row_bytes / self.width).enumerate() {
            let source = if self.matrix == Matrix::Qkv { heads.source(feature) } else { Some(feature) };
            let value = source.map_or(0.0, |source| values[source]);
            if into_f32(self.matrix, storage) {
                number.copy_from_slice(&value.to_le_bytes());
            } else {
                let bits = stored(value, storage, &self.pieces[0], subnormal)?;
                number.copy_from_slice(&bits.to_le_bytes());
            }
        }
        Ok(())
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
fn stored(value: f32, storage: Storage, tensor: &HostTensor, subnormal: &AtomicU64) -> Result<u16> {
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
                subnormal.fetch_add(1, Ordering::Relaxed);
            }
            Ok(short.to_bits())
        }
    }
}
