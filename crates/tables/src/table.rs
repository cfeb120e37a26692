//! Tables: Parquet files, Arrow files and Arrow streams.
//!
//! The crates that decode them trust what a file declares: it is checked first, and a panic of a
//! decoder is an error of the file.

use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use kudos::Result;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};

use crate::Container;
use crate::arrow_file::Messages;
use crate::errors::{broken, io, wrong};
use crate::parquet_file::{Pages, check_chunks, check_footer};

/// Rows of a batch of a Parquet file: few, as a row may be long.
const BATCH_ROWS: usize = 128;

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
    batches: Option<Box<dyn Iterator<Item = Result<RecordBatch>> + Send>>,
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
            Container::ArrowFile => Ok((Kind::ArrowFile, Messages::of_file(&file, bytes)?.schema())),
            _ => Ok((Kind::ArrowStream, Messages::of_stream(&file, bytes)?.schema())),
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

    /// Returns batches of the columns with these indices, in ascending order; of a Parquet file
    /// also of these rows only.
    pub fn batches(&self, columns: &[usize], rows: Option<Range<u64>>) -> Result<Batches> {
        let batches: Box<dyn Iterator<Item = _> + Send> = guarded(|| match &self.kind {
            Kind::Parquet(metadata) => {
                let mask = ProjectionMask::roots(metadata.parquet_schema(), columns.iter().copied());
                let file = self.file.try_clone().map_err(|error| io(&error))?;
                let pages = Pages::new(file, metadata.metadata());
                let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(pages, metadata.clone());
                let mut builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
                if let Some(Range { start, end }) = rows {
                    let part = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX);
                    builder = builder.with_offset(part(start)).with_limit(part(end.saturating_sub(start)));
                }
                let reader = builder.build().map_err(|error| broken(&error))?;
                Ok(Box::new(reader.map(|batch| batch.map_err(|error| broken(&error)))) as Box<_>)
            }
            Kind::ArrowFile => {
                Ok(Box::new(Messages::of_file(&self.file, self.bytes)?.batches(columns)) as Box<_>)
            }
            Kind::ArrowStream => {
                Ok(Box::new(Messages::of_stream(&self.file, self.bytes)?.batches(columns)) as Box<_>)
            }
        })?;
        Ok(Batches { batches: Some(batches) })
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Result<RecordBatch>> {
        let batches = self.batches.as_mut()?;
        let next = guarded(|| batches.next().transpose()).transpose();
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
