//! Weights on the device, and [`WeightRows`]: how they are converted to its format and laid out on
//! their way there.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::buffer::{DeviceBuffer, DeviceSlice};
use super::context::Context;
use super::format::{ActivationFormat, WeightFormat};
use super::heads::HeadLayout;
use super::narrow;
use crate::backend::{HostWeight, Matrix};
use crate::error::{Error, ErrorKind, Result};
use crate::weights::{Dtype, HostTensor, Normal};
use cudarc::driver::sys::CUdeviceptr;

/// A matrix `[out_features, in_features]` with an optional bias, or a vector: one row.
#[derive(Debug)]
pub struct Weight {
    /// Which one it is.
    pub(super) matrix: Matrix,
    layout: WeightLayout,
    /// Shared with the jobs that copy into it, which may outlive the weight.
    values: Arc<DeviceBuffer>,
    bias: Option<Arc<DeviceBuffer>>,
    /// Rows.
    pub(super) out_features: usize,
    /// Width of a row.
    pub(super) in_features: usize,
}

/// The form of weights on a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightLayout {
    format: WeightFormat,
    activations: ActivationFormat,
    heads: HeadLayout,
}

impl Weight {
    /// Memory for a weight of the shape of `part`; contents undefined.
    pub(super) fn allocate(context: &Context, layout: WeightLayout, part: &HostWeight<'_>) -> Result<Self> {
        let (matrix, out_features, in_features) = layout.shape(part);
        let (values_bytes, bias_bytes) = layout.bytes(part);
        let values = Arc::new(context.allocate(values_bytes)?);
        let bias = bias_bytes.map(|bytes| context.allocate(bytes).map(Arc::new)).transpose()?;
        Ok(Self { matrix, layout, values, bias, out_features, in_features })
    }

    /// The random values of `part`, where it has such and they lie alike on host and device: then
    /// the device can make this weight.
    pub(super) fn normal(&self, part: &HostWeight<'_>) -> Option<Normal> {
        let rows: usize = part.pieces.iter().map(HostTensor::rows).sum();
        let (first, alike) = (&part.pieces[0], self.out_features == rows);
        first.normal().filter(|_| alike && self.in_features == first.cols() && part.bias.is_none())
    }

    /// All values, to be filled before anything else uses them.
    ///
    /// # Panics
    ///
    /// When a job copies into it.
    pub(super) fn values_mut(&mut self) -> &mut DeviceBuffer {
        Arc::get_mut(&mut self.values).expect("no job copies into a weight that the device makes")
    }

    /// The rows to copy for this weight to hold `part`.
    ///
    /// # Panics
    ///
    /// When `part` has another shape.
    pub(super) fn rows_from(&self, part: &HostWeight<'_>) -> Vec<WeightRows> {
        let shape = (self.matrix, self.out_features, self.in_features);
        assert_eq!(self.layout.shape(part), shape, "a weight has the shape of those before it");
        assert_eq!(part.bias.is_some(), self.bias.is_some(), "all layers have a bias, or none");
        WeightRows::of_part(self.layout, part, Some(&self.values), self.bias.as_ref())
    }

    /// All values.
    pub(super) fn values(&self) -> DeviceSlice<'_> {
        self.values.all()
    }

    /// Rows `first..first + count`.
    pub(super) fn rows(&self, first: usize, count: usize) -> DeviceSlice<'_> {
        let bytes = self.in_features * self.layout.format.bytes();
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

impl WeightLayout {
    /// The layout of weights that are multiplied with activations of this format.
    pub(super) fn new(activations: ActivationFormat, heads: HeadLayout) -> Self {
        Self { format: WeightFormat::beside(activations), activations, heads }
    }

    /// A part's matrix, and its output and input features on the device.
    fn shape(self, part: &HostWeight<'_>) -> (Matrix, usize, usize) {
        // A norm's weight is laid out like a matrix of one row whose features are not divided into
        // heads.
        let matrix = part.matrix.unwrap_or(Matrix::Down);
        let rows = part.pieces.iter().map(HostTensor::rows).sum();
        let out_features = self.heads.out_features(matrix, rows);
        (matrix, out_features, self.heads.in_features(matrix, part.pieces[0].cols()))
    }

    /// Bytes of a part on the device: of its values, and of its bias if it has one.
    pub(super) fn bytes(self, part: &HostWeight<'_>) -> (usize, Option<usize>) {
        let (matrix, out_features, in_features) = self.shape(part);
        let bias = part.bias.map(|_| out_features * self.bias_bytes(matrix));
        (out_features * in_features * self.format.bytes(), bias)
    }

    /// Bytes of one element of a bias.
    fn bias_bytes(self, matrix: Matrix) -> usize {
        if into_f32(matrix, self.activations) { size_of::<f32>() } else { self.activations.bytes() }
    }
}

/// Rows of one weight, or its bias as a single row, with their source and their memory on the
/// device.
#[derive(Debug)]
pub(super) struct WeightRows {
    layout: WeightLayout,
    matrix: Matrix,
    kind: Kind,
    pieces: Vec<HostTensor>,
    /// `None` for rows that are not copied. It holds all rows.
    to: Option<Arc<DeviceBuffer>>,
    /// Number of rows.
    pub(super) count: usize,
    /// Elements of a row.
    width: usize,
    /// Bytes of a row on the device.
    pub(super) row_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Values,
    Bias,
}

impl WeightRows {
    /// The rows of a part that is only checked.
    pub(super) fn to_check(layout: WeightLayout, part: &HostWeight<'_>) -> Vec<Self> {
        Self::of_part(layout, part, None, None)
    }

    /// A part's values, and its bias if it has one, for this memory.
    ///
    /// # Panics
    ///
    /// When the memory is smaller.
    fn of_part(
        layout: WeightLayout,
        part: &HostWeight<'_>,
        values: Option<&Arc<DeviceBuffer>>,
        bias: Option<&Arc<DeviceBuffer>>,
    ) -> Vec<Self> {
        let (matrix, out_features, in_features) = layout.shape(part);
        let mut all = vec![Self {
            layout,
            matrix,
            kind: Kind::Values,
            pieces: part.pieces.to_vec(),
            to: values.cloned(),
            count: out_features,
            width: in_features,
            row_bytes: in_features * layout.format.bytes(),
        }];
        all.extend(part.bias.map(|pieces| Self {
            layout,
            matrix,
            kind: Kind::Bias,
            pieces: pieces.to_vec(),
            to: bias.cloned(),
            count: 1,
            width: out_features,
            row_bytes: out_features * layout.bias_bytes(matrix),
        }));
        for rows in &all {
            let holds = rows.to.as_ref().is_none_or(|to| to.bytes() >= rows.count * rows.row_bytes);
            assert!(holds, "{rows:?} do not fit into their memory");
        }
        all
    }

    /// The address on the device of rows `rows`, whose bytes from there on are memory that these
    /// rows hold; `None` when they are not copied.
    ///
    /// # Panics
    ///
    /// When there are no such rows.
    pub(super) fn destination(&self, rows: &Range<usize>) -> Option<CUdeviceptr> {
        assert!(rows.start <= rows.end && rows.end <= self.count, "rows {rows:?} of {}", self.count);
        self.to.as_ref().map(|to| to.address() + (rows.start * self.row_bytes) as CUdeviceptr)
    }

    /// The tensors that are read where they are mapped, not with calls.
    pub(super) fn mapped(&self) -> impl Iterator<Item = &HostTensor> {
        let is_mapped = |piece: &&HostTensor| !(self.is_stored_alike(piece) && piece.is_contiguous());
        self.pieces.iter().filter(is_mapped)
    }

    /// Bytes of files for the rows before `row`, of those that are read where they are mapped.
    pub(super) fn mapped_bytes_before(&self, row: usize) -> usize {
        self.mapped().map(HostTensor::file_span).sum::<usize>() * row / self.count.max(1)
    }

    /// Whether the device holds rows of a piece as they are stored.
    fn is_stored_alike(&self, piece: &HostTensor) -> bool {
        let alike = match self.layout.format {
            WeightFormat::Bf16 => Dtype::BF16,
            WeightFormat::F16 => Dtype::F16,
        };
        self.kind == Kind::Values && self.width == piece.cols() && piece.dtype() == alike
    }

    /// Bytes of a row in the files that it comes from.
    pub(super) fn stored_row_bytes(&self) -> usize {
        let bytes = |piece: &HostTensor| piece.cols() * piece.dtype().size();
        match self.kind {
            Kind::Values => bytes(&self.pieces[0]),
            Kind::Bias => self.pieces.iter().map(bytes).sum(),
        }
    }

    /// Writes rows from `first` on, as many as `bytes` holds, in the format of the device. Adds to
    /// `subnormal` the elements that became subnormal f16 numbers and lost digits by it; without it
    /// elements are not checked, as those that were before.
    pub(super) fn fill(&self, first: usize, bytes: &mut [u8], subnormal: Option<&AtomicU64>) -> Result<()> {
        if self.kind == Kind::Bias {
            return self.fill_bias(bytes, subnormal);
        }
        let mut rows = first..first + bytes.len() / self.row_bytes.max(1);
        let mut rest = bytes;
        while !rows.is_empty() {
            let (source, count) = self.run(rows.clone());
            let bytes = rest.split_off_mut(..count * self.row_bytes).expect("as many bytes as rows");
            match source {
                Some((piece, row)) => self.fill_run(piece, row..row + count, bytes, subnormal)?,
                None => bytes.fill(0),
            }
            rows.start += count;
        }
        Ok(())
    }

    /// The source of the first of some rows: its piece, and the row's number in it, or `None` for
    /// padding. And the number of rows from there on that follow each other in that piece, or are
    /// padding.
    fn run(&self, rows: Range<usize>) -> (Option<(&HostTensor, usize)>, usize) {
        let heads = self.layout.heads;
        let source = |row| if self.matrix == Matrix::Qkv { heads.source(row) } else { Some(row) };
        let first = source(rows.start);
        let within = first.map(|row| piece_of(&self.pieces, row));
        let count_max = within.map_or(rows.len(), |(piece, row)| rows.len().min(piece.rows() - row));
        let follows = |&count: &usize| source(rows.start + count) == first.map(|row| row + count);
        (within, 1 + (1..count_max).take_while(follows).count())
    }

    /// Writes rows of one piece.
    fn fill_run(
        &self,
        piece: &HostTensor,
        rows: Range<usize>,
        bytes: &mut [u8],
        subnormal: Option<&AtomicU64>,
    ) -> Result<()> {
        let WeightLayout { format, heads, .. } = self.layout;
        if self.is_stored_alike(piece) {
            return piece.read_rows(rows, bytes);
        }
        let (mut scratch, mut padded) = (vec![0.0; piece.cols()], Vec::new());
        for (row, bytes) in rows.zip(bytes.chunks_exact_mut(self.row_bytes)) {
            piece.row_to_f32(row, &mut scratch);
            // Padding has heads of the input features alone.
            let values = if self.width == piece.cols() {
                &scratch
            } else {
                padded.clear();
                let value = |feature| heads.source(feature).map_or(0.0, |source| scratch[source]);
                padded.extend((0..self.width).map(value));
                &padded
            };
            write_checked(values, format, bytes, piece, subnormal)?;
        }
        Ok(())
    }

    fn fill_bias(&self, bytes: &mut [u8], subnormal: Option<&AtomicU64>) -> Result<()> {
        let WeightLayout { format, activations, heads } = self.layout;
        let mut values = Vec::new();
        for piece in &self.pieces {
            let first = values.len();
            values.resize(first + piece.cols(), 0.0);
            piece.row_to_f32(0, &mut values[first..]);
        }
        let source = |feature| if self.matrix == Matrix::Qkv { heads.source(feature) } else { Some(feature) };
        let values: Vec<f32> =
            (0..self.width).map(|feature| source(feature).map_or(0.0, |source| values[source])).collect();
        if into_f32(self.matrix, activations) {
            for (element, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&values) {
                *element = value.to_le_bytes();
            }
            return Ok(());
        }
        write_checked(&values, format, bytes, &self.pieces[0], subnormal)
    }
}

/// Whether matmuls with this matrix go into a residual stream of f32.
pub(super) fn into_f32(matrix: Matrix, activations: ActivationFormat) -> bool {
    activations == ActivationFormat::F16 && matches!(matrix, Matrix::O | Matrix::Down)
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

/// Writes weights in the device's format. An error names the tensor when one is outside of f16's
/// range, where they are checked.
fn write_checked(
    values: &[f32],
    format: WeightFormat,
    bytes: &mut [u8],
    tensor: &HostTensor,
    subnormal: Option<&AtomicU64>,
) -> Result<()> {
    if let (WeightFormat::F16, Some(subnormal)) = (format, subnormal) {
        let losses = narrow::losses(values);
        if let Some(value) = losses.beyond {
            let message = format!("tensor `{}` holds {value}, which f16 cannot", tensor.name());
            return Err(Error::new(ErrorKind::Unsupported, message).at(tensor.path().display()).with_hint(
                "this GPU has no bf16; a newer one (compute capability 8.0), or the CPU, can score this model",
            ));
        }
        if losses.subnormal > 0 {
            subnormal.fetch_add(losses.subnormal, Ordering::Relaxed);
        }
    }
    narrow::write(values, format, bytes);
    Ok(())
}
