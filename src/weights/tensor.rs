//! [`HostTensor`]: a matrix of weights in a mapped file or, for random weights, in memory.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::dtype::Dtype;
use super::map::MappedFile;
use super::normal::{self, HostElements, Normal};
use crate::error::{Error, ErrorKind, Result};

/// A matrix `[rows, cols]` of a mapped file, or a part of one; a vector is one row. Cloning it
/// copies no weights.
///
/// Values are little-endian and may begin at any byte: read them with unaligned loads, never
/// through a cast.
#[derive(Clone)]
pub struct HostTensor {
    source: Source,
    name: Arc<str>,
    dtype: Dtype,
    /// Byte of the source where the first value starts.
    offset: usize,
    rows: usize,
    cols: usize,
    /// Values from the start of one row to the start of the next, at least `cols`.
    row_stride: usize,
}

/// The file or buffer that holds a tensor's bytes.
#[derive(Clone)]
enum Source {
    File(Arc<MappedFile>),
    /// Elements of one whole tensor, and the seed by which a device makes them itself; `None` for
    /// constants.
    Random(Arc<HostElements>, Option<Normal>),
}

impl HostTensor {
    /// Returns the matrix `[rows, cols]` whose values are contiguous from byte `offset` of the
    /// file.
    ///
    /// # Panics
    ///
    /// When it does not lie inside the file, which the header's parser has checked.
    pub(super) fn new(
        file: Arc<MappedFile>,
        name: Arc<str>,
        dtype: Dtype,
        offset: usize,
        [rows, cols]: [usize; 2],
    ) -> Self {
        assert!(offset + rows * cols * dtype.size() <= file.bytes().len(), "tensor `{name}` leaves its file");
        let source = Source::File(file);
        Self { source, name, dtype, offset, rows, cols, row_stride: cols }
    }

    /// Returns the matrix `[rows, cols]` of all these elements.
    ///
    /// # Panics
    ///
    /// When there are more or fewer.
    pub(super) fn random(
        numbers: Arc<HostElements>,
        name: Arc<str>,
        normal: Option<Normal>,
        [rows, cols]: [usize; 2],
    ) -> Self {
        assert_eq!(numbers.count(), rows * cols, "tensor `{name}` is not all of its elements");
        let source = Source::Random(numbers, normal);
        Self { source, name, dtype: normal::DTYPE, offset: 0, rows, cols, row_stride: cols }
    }

    /// Seed and deviation by which a device can make a random tensor itself; `None` for a tensor of
    /// a file. The elements differ from those of [`bytes`](Self::bytes) and have the same
    /// distribution.
    pub fn normal(&self) -> Option<Normal> {
        match &self.source {
            Source::File(_) => None,
            // A part has a seed of its own, by its offset in the whole.
            Source::Random(_, normal) => {
                normal.map(|normal| Normal { seed: normal.seed.wrapping_add(self.offset as u64), ..normal })
            }
        }
    }

    /// The tensor's name in the checkpoint, also for a part of it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, for messages.
    pub fn path(&self) -> &Path {
        match &self.source {
            Source::File(file) => file.path(),
            Source::Random(..) => Path::new("random weights"),
        }
    }

    fn source_bytes(&self) -> &[u8] {
        match &self.source {
            Source::File(file) => file.bytes(),
            Source::Random(numbers, _) => numbers.bytes(),
        }
    }

    /// The dtype of its values.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Output features of a weight; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features of a weight; the length of a vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values from the start of one row to the start of the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Whether its rows follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.row_stride == self.cols
    }

    /// Bytes of its values, without the gaps between rows.
    pub fn size_bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size()
    }

    /// Returns a range of its rows.
    ///
    /// # Panics
    ///
    /// When the range leaves `0..rows`.
    #[must_use]
    pub fn row_range(&self, rows: Range<usize>) -> Self {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {rows:?} of the {} of `{}`",
            self.rows,
            self.name
        );
        let offset = self.offset + rows.start * self.row_stride * self.dtype.size();
        Self { offset, rows: rows.len(), ..self.clone() }
    }

    /// Returns a range of its columns; the row stride stays.
    ///
    /// # Panics
    ///
    /// When the range leaves `0..cols`.
    #[must_use]
    pub fn column_range(&self, cols: Range<usize>) -> Self {
        assert!(
            cols.start <= cols.end && cols.end <= self.cols,
            "columns {cols:?} of the {} of `{}`",
            self.cols,
            self.name
        );
        let offset = self.offset + cols.start * self.dtype.size();
        Self { offset, cols: cols.len(), ..self.clone() }
    }

    /// The bytes from its first value to its last; row i starts `i * row_stride` values in. The
    /// gaps between the rows of a range of columns belong to other columns.
    pub fn bytes(&self) -> &[u8] {
        &self.source_bytes()[self.offset..self.offset + self.span_bytes()]
    }

    /// The bytes of one row's values.
    ///
    /// # Panics
    ///
    /// When the row does not exist.
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        assert!(row < self.rows, "row {row} of the {} of `{}`", self.rows, self.name);
        let start = self.offset + row * self.row_stride * self.dtype.size();
        &self.source_bytes()[start..start + self.cols * self.dtype.size()]
    }

    /// Copies the bytes of rows `rows` to `out`, one row after the other. Rows that follow each
    /// other in a file are read from it with a call, others are copied from where they are mapped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when the call fails, as it does where the file has become shorter.
    ///
    /// # Panics
    ///
    /// When a row does not exist, or `out` has another length.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let part = self.row_range(rows);
        assert_eq!(out.len(), part.size_bytes(), "rows of `{}`", self.name);
        match &part.source {
            Source::File(file) if part.is_contiguous() => {
                file.read_at(part.offset, out).map_err(|error| part.unreadable(error))
            }
            _ => {
                let row_bytes = part.cols * part.dtype.size();
                for row in 0..part.rows {
                    out[row * row_bytes..][..row_bytes].copy_from_slice(part.row_bytes(row));
                }
                Ok(())
            }
        }
    }

    fn unreadable(&self, error: std::io::Error) -> Error {
        let (message, hint) = match error.kind() {
            std::io::ErrorKind::UnexpectedEof => (
                format!("tensor `{}` cannot be read: its file has become shorter", self.name),
                "to replace a model while it is in use, write new files and rename them",
            ),
            _ => (
                format!("tensor `{}` cannot be read", self.name),
                "the disk or the network that the file is on may have failed; the system's log has more",
            ),
        };
        Error::new(ErrorKind::Io, message).caused_by(error).at(self.path().display()).with_hint(hint)
    }

    /// The file, and the bytes in it from the first value to the last; `None` for random weights.
    pub(super) fn file_bytes(&self) -> Option<(&Arc<MappedFile>, Range<usize>)> {
        match &self.source {
            Source::File(file) => Some((file, self.offset..self.offset + self.span_bytes())),
            Source::Random(..) => None,
        }
    }

    /// Bytes of its file from the first value to the last; none of random weights.
    pub fn file_span(&self) -> usize {
        self.file_bytes().map_or(0, |(_, bytes)| bytes.len())
    }

    /// Bytes from the first value to the last.
    fn span_bytes(&self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        ((self.rows - 1) * self.row_stride + self.cols) * self.dtype.size()
    }

    /// Converts one row to f32, exactly: every f16 and bf16 is an f32. `out`: `[cols]`.
    ///
    /// # Panics
    ///
    /// When the row does not exist, or `out` has another length.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row of `{}`", self.name);
        let bytes = self.row_bytes(row);
        match self.dtype {
            Dtype::F32 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Dtype::BF16 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            Dtype::F16 => f16_to_f32(bytes, out),
        }
    }
}

/// Converts through an aligned block, because `half` converts slices much faster than single
/// values.
fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    const BLOCK: usize = 256;
    let mut bits = [0_u16; BLOCK];
    for (out, bytes) in out.chunks_mut(BLOCK).zip(bytes.chunks(2 * BLOCK)) {
        for (bits, bytes) in bits.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *bits = u16::from_le_bytes(*bytes);
        }
        bits[..out.len()].reinterpret_cast::<half::f16>().convert_to_f32_slice(out);
    }
}

impl fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} [{}, {}]", self.name, self.dtype, self.rows, self.cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 3 x 5 matrix of the values 0, 1, 2, ... that starts at an odd byte of its file.
    fn matrix(dtype: Dtype) -> HostTensor {
        let mut bytes = vec![0xff; 3];
        for value in 0..15 {
            let value = value as f32;
            match dtype {
                Dtype::F32 => bytes.extend(value.to_le_bytes()),
                Dtype::F16 => bytes.extend(half::f16::from_f32(value).to_le_bytes()),
                Dtype::BF16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::write(&path, bytes).unwrap();
        HostTensor::new(Arc::new(MappedFile::open(&path).unwrap()), "m".into(), dtype, 3, [3, 5])
    }

    fn rows(tensor: &HostTensor) -> Vec<Vec<f32>> {
        (0..tensor.rows())
            .map(|row| {
                let mut out = vec![f32::NAN; tensor.cols()];
                tensor.row_to_f32(row, &mut out);
                out
            })
            .collect()
    }

    #[test]
    fn rows_are_read_from_unaligned_bytes_in_every_dtype() {
        let whole: Vec<Vec<f32>> = vec![
            vec![0.0, 1.0, 2.0, 3.0, 4.0],
            vec![5.0, 6.0, 7.0, 8.0, 9.0],
            vec![10.0, 11.0, 12.0, 13.0, 14.0],
        ];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            assert_eq!(rows(&matrix(dtype)), whole, "{dtype:?}");
        }
    }

    #[test]
    fn ranges_of_rows_and_columns_nest() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let matrix = matrix(dtype);
            let part = matrix.column_range(1..5).row_range(1..3).column_range(2..4);
            assert_eq!(rows(&part), [[8.0, 9.0], [13.0, 14.0]], "{dtype:?}");
            assert_eq!((part.rows(), part.cols(), part.row_stride()), (2, 2, 5));
            assert_eq!(part.size_bytes(), 4 * dtype.size());
            // From the first value to the last, the columns between the rows included.
            assert_eq!(part.bytes().len(), 7 * dtype.size());
            assert_eq!(part.bytes()[..2 * dtype.size()], *part.row_bytes(0));
            assert_eq!(part.bytes()[5 * dtype.size()..], *part.row_bytes(1));
            assert!(matrix.row_range(3..3).bytes().is_empty());
            assert!(matrix.column_range(5..5).bytes().is_empty());
        }
    }

    #[test]
    fn all_bit_patterns_of_16_bits_convert_as_half_converts_them() {
        let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::write(&path, &bits).unwrap();
        let file = Arc::new(MappedFile::open(&path).unwrap());
        for dtype in [Dtype::F16, Dtype::BF16] {
            let tensor = HostTensor::new(file.clone(), "m".into(), dtype, 0, [1, 1 << 16]);
            for (bits, value) in rows(&tensor)[0].iter().enumerate() {
                let expected = match dtype {
                    Dtype::F16 => half::f16::from_bits(bits as u16).to_f32(),
                    _ => half::bf16::from_bits(bits as u16).to_f32(),
                };
                assert!(
                    value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                    "{dtype:?} {bits:#06x}: {value} against {expected}"
                );
            }
        }
    }

    #[test]
    fn rows_are_copied_from_the_file_and_from_the_mapping_alike() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let matrix = matrix(dtype);
            for part in [matrix.clone(), matrix.column_range(1..4), matrix.row_range(1..3)] {
                for rows in [0..0, 0..1, 1..2, 0..part.rows()] {
                    let expected: Vec<u8> =
                        rows.clone().flat_map(|row| part.row_bytes(row).to_vec()).collect();
                    let mut out = vec![0xaa; expected.len()];
                    part.read_rows(rows, &mut out).unwrap();
                    assert_eq!(out, expected, "{part:?}");
                }
            }
        }
    }

    #[test]
    #[cfg(unix)]
    fn reading_rows_of_a_shorter_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::write(&path, [0; 64]).unwrap();
        let file = Arc::new(MappedFile::open(&path).unwrap());
        let tensor = HostTensor::new(file, "m".into(), Dtype::F32, 0, [4, 4]);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(40).unwrap();
        let mut rows = [0; 32];
        tensor.read_rows(0..2, &mut rows).unwrap();
        let error = tensor.read_rows(2..4, &mut rows).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.message().starts_with("tensor `m` cannot be read: its file has become shorter"));
        assert_eq!(error.place(), Some(path.to_str().unwrap()));
    }

    #[test]
    #[should_panic(expected = "rows 2..4 of the 3 of `m`")]
    fn a_range_outside_the_tensor_is_our_bug() {
        let _ = matrix(Dtype::F32).row_range(2..4);
    }

    #[test]
    #[should_panic(expected = "columns 3..6 of the 5 of `m`")]
    fn columns_outside_the_tensor_are_our_bug() {
        let _ = matrix(Dtype::F32).column_range(3..6);
    }
}
