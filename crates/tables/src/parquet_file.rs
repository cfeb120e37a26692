//! Checks of what a Parquet file declares, before the crate that decodes it believes it: the
//! footer, the depth of the schema, the column chunks, and each page's header when it is read.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use kudos::{Error, ErrorKind, Result};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};

use crate::errors::{broken, io, wrong};
use crate::thrift::Type::{Any, Binary, Bool, Byte, I32, Struct};
use crate::thrift::{Thrift, Type};

/// Limit on the metadata of a file. That of a file with 100,000 columns' chunks has a tenth of it.
const METADATA_BYTES_MAX: u64 = 256 << 20;

/// Limit on nested groups of the schema, with which the decoder's stack grows. A list of structs
/// takes three.
const SCHEMA_DEPTH_MAX: usize = 100;

/// Limit on what a column chunk declares to hold.
const CHUNK_BYTES_MAX: i64 = 16 << 30;

/// The most that a page can declare to hold, which is allocated at once. Writers end a page after
/// some 1 MiB or 1,000 values, which may be long.
const PAGE_BYTES_MAX: u64 = i32::MAX as u64;

/// The fields of a page's header: its kind, its sizes and its checksum, then what each kind has.
const PAGE_HEADER: &[Type] =
    &[I32, I32, I32, I32, Struct(DATA_PAGE), Struct(&[]), Struct(DICTIONARY_PAGE), Struct(DATA_PAGE_V2)];
const DATA_PAGE: &[Type] = &[I32, I32, I32, I32, Any];
const DICTIONARY_PAGE: &[Type] = &[I32, I32, Bool];
const DATA_PAGE_V2: &[Type] = &[I32, I32, I32, I32, I32, I32, Bool, Any];

/// The number of the field of a page's header that has its size when decompressed.
const UNCOMPRESSED_SIZE: usize = 2;

/// The fields of an element of the schema.
const SCHEMA_ELEMENT: &[Type] = &[I32, I32, I32, Binary, I32, I32, I32, I32, I32, Struct(LOGICAL_TYPE)];
const EMPTY: Type = Struct(&[]);
const TIME: Type = Struct(&[Bool, Struct(&[EMPTY, EMPTY, EMPTY])]);
const LOGICAL_TYPE: &[Type] = &[
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    Struct(&[I32, I32]),
    EMPTY,
    TIME,
    TIME,
    Any,
    Struct(&[Byte, Bool]),
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    EMPTY,
    Struct(&[Byte]),
    Struct(&[Binary]),
    Struct(&[Binary, I32]),
    EMPTY,
];

/// The number of the field of the footer that is the schema: elements in depth-first order.
const SCHEMA: i16 = 2;

/// The number of the field of an element that counts its children.
const CHILDREN: usize = 5;

/// Checks the length that the footer declares, and the depth of its schema.
pub(crate) fn check_footer(mut file: &File, bytes: u64) -> Result<()> {
    const TAIL_BYTES: u64 = 8;
    let mut tail = [0; TAIL_BYTES as usize];
    if bytes < 4 + TAIL_BYTES {
        return Err(wrong(format!("the file has {bytes} bytes, fewer than any Parquet file")));
    }
    file.seek(SeekFrom::Start(bytes - TAIL_BYTES))
        .and_then(|_| file.read_exact(&mut tail))
        .map_err(|error| io(&error))?;
    let [a, b, c, d, magic @ ..] = tail;
    if &magic == b"PARE" {
        return Err(Error::new(ErrorKind::Unsupported, "the Parquet file is encrypted"));
    }
    if &magic != b"PAR1" {
        return Err(wrong("the file begins as a Parquet file, but does not end as one"));
    }
    let metadata = u64::from(u32::from_le_bytes([a, b, c, d]));
    if metadata > (bytes - 4 - TAIL_BYTES).min(METADATA_BYTES_MAX) {
        return Err(wrong(format!(
            "the footer declares {metadata} bytes of metadata in a file of {bytes} bytes"
        )));
    }
    file.seek(SeekFrom::Start(bytes - TAIL_BYTES - metadata)).map_err(|error| io(&error))?;
    match schema_depth(BufReader::new(file.take(metadata))) {
        Ok(depth) if depth <= SCHEMA_DEPTH_MAX => Ok(()),
        Ok(depth) => {
            Err(wrong(format!("the schema has {depth} nested groups, the limit is {SCHEMA_DEPTH_MAX}")))
        }
        Err(error) => Err(broken(&format!("the footer's schema: {error}"))),
    }
}

/// Returns the depth of the schema in a footer's metadata.
fn schema_depth(metadata: impl Read) -> io::Result<usize> {
    let mut metadata = Thrift(metadata);
    // The children that are still to come of each group that is open.
    let (mut open, mut depth) = (Vec::new(), 0);
    for _ in 0..metadata.list_after_integer(SCHEMA)? {
        let mut children = 0;
        metadata.structure(SCHEMA_ELEMENT, &mut |number, value| {
            if number == CHILDREN {
                children = value;
            }
        })?;
        while open.pop_if(|left| *left == 0).is_some() {}
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        open.push(children.max(0));
        depth = depth.max(open.len());
    }
    Ok(depth)
}

/// Checks that the column chunks lie within the file.
pub(crate) fn check_chunks(metadata: &ParquetMetaData, bytes: u64) -> Result<()> {
    let mut rows = 0_i64;
    for (index, group) in metadata.row_groups().iter().enumerate() {
        let wrong_group = |what: String| Err(wrong(format!("row group {index} {what}")));
        if group.num_rows() < 0 {
            return wrong_group(format!("declares {} rows", group.num_rows()));
        }
        rows = rows.saturating_add(group.num_rows());
        for chunk in group.columns() {
            if chunk.num_values() == 0 {
                continue;
            }
            let name = chunk.column_path().string();
            let start = chunk
                .dictionary_page_offset()
                .map_or(chunk.data_page_offset(), |dictionary| dictionary.min(chunk.data_page_offset()));
            let Range { start, end } = start..start.saturating_add(chunk.compressed_size());
            let is_within = start >= 4 && start <= end && u64::try_from(end).is_ok_and(|end| end <= bytes);
            if !is_within {
                return wrong_group(format!("declares column `{name}` at bytes {start} to {end} of {bytes}"));
            }
            let size = chunk.uncompressed_size();
            if !(0..=CHUNK_BYTES_MAX).contains(&size) {
                return wrong_group(format!(
                    "declares {size} bytes of column `{name}`, the limit is {CHUNK_BYTES_MAX}"
                ));
            }
        }
    }
    match metadata.file_metadata().num_rows() {
        declared if declared == rows => Ok(()),
        declared => Err(wrong(format!("the file declares {declared} rows, but its row groups {rows}"))),
    }
}

/// A file whose page headers are checked as its decoder reads them.
pub(crate) struct Pages {
    file: File,
    /// The first byte of each column chunk, and the bytes that it declares to hold, by that byte.
    chunks: Vec<(u64, u64)>,
}

impl Pages {
    /// Returns the pages of a file with this metadata, whose chunks were checked.
    pub(crate) fn new(file: File, metadata: &ParquetMetaData) -> Self {
        let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
        let chunks = chunks.filter(|chunk| chunk.num_values() > 0);
        let mut chunks: Vec<_> =
            chunks.map(|chunk| (chunk.byte_range().0, chunk.uncompressed_size() as u64)).collect();
        chunks.sort_unstable();
        Self { file, chunks }
    }
}

impl Length for Pages {
    fn len(&self) -> u64 {
        Length::len(&self.file)
    }
}

impl ChunkReader for Pages {
    type T = PageReader;

    fn get_read(&self, start: u64) -> parquet::errors::Result<PageReader> {
        let before = self.chunks.partition_point(|(first, _)| *first <= start);
        let chunk_bytes = before.checked_sub(1).map_or(PAGE_BYTES_MAX, |index| self.chunks[index].1);
        let file = self.file.get_read(start)?;
        Ok(PageReader { file, start, bytes_max: chunk_bytes, is_checked: false })
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.file.get_bytes(start, length)
    }
}

/// A reader that begins at a page's header, which is checked when the first byte is read: the
/// decoder also opens readers elsewhere, and does not read from them.
pub(crate) struct PageReader {
    file: BufReader<File>,
    start: u64,
    bytes_max: u64,
    is_checked: bool,
}

impl Read for PageReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.is_checked {
            self.check()?;
            self.file.seek(SeekFrom::Start(self.start))?;
            self.is_checked = true;
        }
        self.file.read(buffer)
    }
}

impl PageReader {
    fn check(&mut self) -> io::Result<()> {
        let mut wrong = None;
        Thrift(&mut self.file).structure(PAGE_HEADER, &mut |number, value| {
            if number == UNCOMPRESSED_SIZE && !u64::try_from(value).is_ok_and(|size| size <= self.bytes_max) {
                wrong = Some(value);
            }
        })?;
        let Some(size) = wrong else { return Ok(()) };
        let message = format!(
            "the page at byte {} declares {size} bytes, its column chunk {}",
            self.start, self.bytes_max
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::Compression;
    use parquet::file::metadata::{ParquetMetaDataReader, ParquetMetaDataWriter};
    use parquet::file::properties::WriterProperties;

    use super::*;
    use crate::{Container, Table};

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Reads all rows of a file of one column.
    fn read(bytes: &[u8]) -> Result<usize> {
        let table = Table::open(file(bytes), Container::Parquet)?;
        table.batches(&[0], None)?.map(|batch| Ok(batch?.num_rows())).sum()
    }

    /// Returns an unsigned integer as Thrift writes it.
    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    /// Returns a field of 32 bits that follows the one with the number before it.
    fn integer(value: i32) -> Vec<u8> {
        let zigzag = (value << 1) ^ (value >> 31);
        [vec![0x15], varint(u64::from(zigzag as u32))].concat()
    }

    /// Returns a file of one page, whose header declares so many bytes, in a chunk that declares so
    /// many.
    fn one_page(uncompressed: i32, chunk_bytes: i64) -> Vec<u8> {
        let values = Arc::new(StringArray::from(vec!["a".repeat(5000); 3])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("prompt", values)]).unwrap();
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        let properties = properties.set_dictionary_enabled(false).build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();

        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file(&bytes)).unwrap();
        let (start, len) = metadata.row_group(0).column(0).byte_range();
        let chunk = &bytes[start as usize..(start + len) as usize];
        // The kind, of a data page, and the size; then comes the compressed size.
        let (kind, size) = (integer(0), integer(15_012));
        let rest = chunk.strip_prefix(&[&kind[..], &size].concat()[..]).unwrap();
        let chunk = [&kind, &integer(uncompressed), rest].concat();

        let column = metadata.row_group(0).column(0).clone().into_builder();
        let column = column.set_total_compressed_size(chunk.len() as i64);
        let column = column.set_total_uncompressed_size(chunk_bytes).set_data_page_offset(4);
        let column = column.set_column_index_offset(None).set_offset_index_offset(None);
        let group = metadata.row_group(0).clone().into_builder();
        let group = group.set_column_metadata(vec![column.build().unwrap()]).build().unwrap();
        let metadata = metadata.into_builder().set_row_groups(vec![group]).build();
        let mut bytes = [&b"PAR1"[..], &chunk].concat();
        ParquetMetaDataWriter::new(&mut bytes, &metadata).finish().unwrap();
        bytes
    }

    #[test]
    fn a_page_larger_than_its_chunk_is_refused() {
        assert_eq!(read(&one_page(15_012, 15_100)).unwrap(), 3);
        for uncompressed in [i32::MAX, 16_000, -1] {
            let error = read(&one_page(uncompressed, 15_100)).unwrap_err().to_string();
            let message = format!("the page at byte 4 declares {uncompressed} bytes, its column chunk 15100");
            assert!(error.contains(&message), "{error}");
        }
    }

    #[test]
    fn fields_of_other_types_than_the_decoder_expects_are_refused() {
        // The size as bytes, of which the decoder would take the length for the size.
        for header in [&[0x15, 0x00, 0x18, 0x01, 0x00, 0x00][..], &[0x15, 0x00, 0x16, 0x02, 0x00]] {
            let mut reader = Pages { file: file(header), chunks: Vec::new() }.get_read(0).unwrap();
            let error = reader.read(&mut [0]).unwrap_err().to_string();
            assert!(error.starts_with("field 2 is "), "{error}");
        }
    }

    /// Returns a file that has a schema of so many nested groups, and a column in them, only.
    fn nested(groups: usize) -> Vec<u8> {
        let (name, end) = ([0x18, 1, b'g'], [0]);
        let mut metadata = [&integer(1)[..], &[0x19, 0xfc], &varint(groups as u64 + 1)].concat();
        for _ in 0..groups {
            // Required, with one child.
            metadata.extend([&[0x35, 0][..], &name, &integer(1), &end].concat());
        }
        // An integer.
        metadata.extend([&integer(1)[..], &[0x25, 0], &name, &end].concat());
        // No rows, no row groups.
        metadata.extend([0x16, 0x00, 0x19, 0x0c, 0x00]);
        let len = (metadata.len() as u32).to_le_bytes();
        [&b"PAR1"[..], &metadata, &len, b"PAR1"].concat()
    }

    /// Without the check, the stack overflows and the process ends.
    #[test]
    fn a_schema_of_too_many_nested_groups_is_refused() {
        // The column counts as one more.
        assert_eq!(read(&nested(SCHEMA_DEPTH_MAX - 1)).unwrap(), 0);
        for groups in [1_000_000, SCHEMA_DEPTH_MAX] {
            let error = read(&nested(groups)).unwrap_err().to_string();
            assert!(error.contains(&format!("the schema has {} nested groups", groups + 1)), "{error}");
        }
    }
}
