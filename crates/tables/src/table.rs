//! Tables: Parquet files, Arrow files and Arrow streams.
//!
//! The crates that decode them trust sizes that a file declares. Those of its outer structure are
//! compared with the file's length before anything is decoded, and a panic of a decoder is an error
//! of the file.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, Schema};
use kudos::{Error, ErrorKind, Result};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::ParquetMetaData;

use crate::Container;

/// Rows of a batch of a Parquet file: few, as a row may be long.
const BATCH_ROWS: usize = 128;

/// Limit on the metadata of a file. That of a Parquet file with 100,000 columns' chunks has a tenth
/// of it.
const METADATA_BYTES_MAX: u64 = 256 << 20;

/// Limit on what a column chunk of a Parquet file, or a batch of an Arrow file, declares to hold.
const CHUNK_BYTES_MAX: i64 = 16 << 30;

/// A file with a schema and rows.
#[derive(Debug)]
pub struct Table {
    file: File,
    bytes: u64,
    kind: Kind,
    schema: Arc<Schema>,
}

#[derive(Debug)]
enum Kind {
    Parquet(ArrowReaderMetadata),
    ArrowFile,
    ArrowStream,
}

/// Batches of rows, one after another. Ends after an error.
pub struct Batches {
    batches: Option<Box<dyn Iterator<Item = std::result::Result<RecordBatch, ArrowError>> + Send>>,
}

impl Table {
    /// Opens a table. The container is that of its first bytes.
    pub fn open(file: File, container: Container) -> Result<Self> {
        let bytes = file.metadata().map_err(|error| io(&error))?.len();
        let (kind, schema) = guarded(|| match container {
            Container::Parquet => {
                check_footer(&file, bytes)?;
                let options = ArrowReaderOptions::new();
                let metadata = ArrowReaderMetadata::load(&file, options).map_err(|error| broken(&error))?;
                check_chunks(metadata.metadata(), bytes)?;
                let schema = Arc::clone(metadata.schema());
                Ok((Kind::Parquet(metadata), schema))
            }
            Container::ArrowFile => {
                let schema = FileReader::try_new(arrow_file(&file, bytes)?, None)
                    .map_err(|error| broken(&error))?
                    .schema();
                Ok((Kind::ArrowFile, schema))
            }
            _ => Ok((Kind::ArrowStream, stream(&file)?.schema())),
        })?;
        Ok(Self { file, bytes, kind, schema })
    }

    /// Returns the schema.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Returns the number of rows, where the file says so.
    pub fn rows(&self) -> Option<u64> {
        match &self.kind {
            Kind::Parquet(metadata) => u64::try_from(metadata.metadata().file_metadata().num_rows()).ok(),
            Kind::ArrowFile | Kind::ArrowStream => None,
        }
    }

    /// Returns the bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns batches of the columns with these indices, in ascending order; of a Parquet file also
    /// of these rows only.
    pub fn batches(&self, columns: &[usize], rows: Option<Range<u64>>) -> Result<Batches> {
        let batches: Box<dyn Iterator<Item = _> + Send> = guarded(|| match &self.kind {
            Kind::Parquet(metadata) => {
                let mask = ProjectionMask::roots(metadata.parquet_schema(), columns.iter().copied());
                let file = self.file.try_clone().map_err(|error| io(&error))?;
                let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone());
                let mut builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
                if let Some(Range { start, end }) = rows {
                    let part = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX);
                    builder = builder.with_offset(part(start)).with_limit(part(end.saturating_sub(start)));
                }
                let reader = builder.build();
                Ok(Box::new(reader.map_err(|error| broken(&error))?) as Box<_>)
            }
            Kind::ArrowFile => {
                let reader = FileReader::try_new(arrow_file(&self.file, self.bytes)?, Some(columns.to_vec()));
                Ok(Box::new(reader.map_err(|error| broken(&error))?) as Box<_>)
            }
            Kind::ArrowStream => {
                let columns = columns.to_vec();
                let project =
                    move |batch: std::result::Result<RecordBatch, ArrowError>| batch?.project(&columns);
                Ok(Box::new(stream(&self.file)?.map(project)) as Box<_>)
            }
        })?;
        Ok(Batches { batches: Some(batches) })
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Result<RecordBatch>> {
        let batches = self.batches.as_mut()?;
        let next = guarded(|| batches.next().transpose().map_err(|error| broken(&error))).transpose();
        if !matches!(next, Some(Ok(_))) {
            self.batches = None;
        }
        next
    }
}

/// Runs a decoder, whose panics are errors: it was not made for files that lie.
fn guarded<T>(decode: impl FnOnce() -> Result<T>) -> Result<T> {
    // What the decoder leaves behind is dropped, not used.
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(wrong("the file is broken: its decoder panicked")))
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message).with_hint("is the file whole? write or download it again")
}

fn broken(error: &impl std::fmt::Display) -> Error {
    wrong(format!("the file cannot be decoded: {error}"))
}

fn io(error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("the file cannot be read: {error}"))
}

fn read_at(mut file: &File, start: u64, buffer: &mut [u8]) -> Result<()> {
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(buffer)).map_err(|error| io(&error))
}

/// Checks the length that the footer of a Parquet file declares.
fn check_footer(file: &File, bytes: u64) -> Result<()> {
    const TAIL_BYTES: u64 = 8;
    let mut tail = [0; TAIL_BYTES as usize];
    if bytes < 4 + TAIL_BYTES {
        return Err(wrong(format!("the file has {bytes} bytes, fewer than any Parquet file")));
    }
    read_at(file, bytes - TAIL_BYTES, &mut tail)?;
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
    Ok(())
}

/// Checks that the column chunks of a Parquet file lie within it.
fn check_chunks(metadata: &ParquetMetaData, bytes: u64) -> Result<()> {
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

/// Returns an Arrow file at its start, with the blocks of its footer checked.
fn arrow_file(file: &File, bytes: u64) -> Result<BufReader<File>> {
    const MAGIC_BYTES: u64 = 6;
    const TAIL_BYTES: u64 = 4 + MAGIC_BYTES;
    let mut tail = [0; TAIL_BYTES as usize];
    if bytes < 8 + TAIL_BYTES {
        return Err(wrong(format!("the file has {bytes} bytes, fewer than any Arrow file")));
    }
    read_at(file, bytes - TAIL_BYTES, &mut tail)?;
    let [a, b, c, d, magic @ ..] = tail;
    if &magic != b"ARROW1" {
        return Err(wrong("the file begins as an Arrow file, but does not end as one"));
    }
    let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
    if footer > (bytes - 8 - TAIL_BYTES).min(METADATA_BYTES_MAX) {
        return Err(wrong(format!("the end declares a footer of {footer} bytes in a file of {bytes} bytes")));
    }
    let mut text = vec![0; footer as usize];
    read_at(file, bytes - TAIL_BYTES - footer, &mut text)?;
    let footer = arrow_ipc::root_as_footer(&text).map_err(|error| broken(&error))?;
    let blocks = [footer.recordBatches(), footer.dictionaries()].into_iter().flatten();
    for block in blocks.flat_map(|blocks| (0..blocks.len()).map(move |index| *blocks.get(index))) {
        let (start, metadata, body) = (block.offset(), i64::from(block.metaDataLength()), block.bodyLength());
        let end = start.checked_add(metadata).and_then(|end| end.checked_add(body));
        let is_within = [start, metadata, body].iter().all(|part| *part >= 0)
            && end.and_then(|end| u64::try_from(end).ok()).is_some_and(|end| end <= bytes);
        if !is_within {
            return Err(wrong(format!(
                "the footer declares a batch of {metadata} and {body} bytes at byte {start} of {bytes}"
            )));
        }
    }
    rewound(file)
}

fn rewound(file: &File) -> Result<BufReader<File>> {
    let mut file = file.try_clone().map_err(|error| io(&error))?;
    file.rewind().map_err(|error| io(&error))?;
    Ok(BufReader::new(file))
}

/// Returns the reader of an Arrow stream, from its start.
fn stream(file: &File) -> Result<StreamReader<BufReader<File>>> {
    StreamReader::try_new(rewound(file)?, None).map_err(|error| broken(&error))
}
