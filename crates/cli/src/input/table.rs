//! Rows of Parquet and Arrow files.

use std::fs::File;
use std::sync::Arc;

use arrow_array::RecordBatch;
use kudos::Result;
use kudos::internals::request::Reading;
use kudos_tables::{Batches, Container, RowWriter, Table};

use super::row::{LINE_BYTES_MAX, Row, wrong};

/// The rows of a table, each as the text of a line.
pub(super) struct Rows {
    batches: Batches,
    /// The current batch, and the next row of it.
    batch: Option<(RecordBatch, usize)>,
    writer: RowWriter,
    reading: Arc<Reading>,
    index: usize,
    /// Number of rows, where the file says so.
    rows: Option<u64>,
    bytes: u64,
}

impl Rows {
    /// Opens a table; its columns decide how rows are read, unless `reading` does. Without a reading
    /// rows have all columns.
    pub(super) fn open(file: File, container: Container, reading: Option<&Reading>) -> Result<Self> {
        let table = Table::open(file, container)?;
        let writer = match reading {
            Some(reading) => RowWriter::new(table.schema(), reading.clone())?,
            None => RowWriter::whole(table.schema()),
        };
        let columns: Vec<usize> = writer.columns().collect();
        if columns.is_empty() {
            let names: Vec<&str> =
                table.schema().fields().iter().map(|field| field.name().as_str()).collect();
            let error = wrong(format!("the table has no column that is read, only `{}`", names.join("`, `")));
            return Err(error.with_hint("`--columns prompt=NAME,response=NAME` names the columns that are"));
        }
        let (batches, reading) = (table.batches(&columns)?, Arc::new(writer.reading().clone()));
        let (rows, bytes) = (table.rows(), table.bytes());
        Ok(Self { batches, batch: None, writer: writer.projected(), reading, index: 0, rows, bytes })
    }

    /// Returns a message about the rows of a table with this name.
    pub(super) fn note(&self, name: &str) -> String {
        let rows = self.rows.map_or_else(|| "rows".to_owned(), |rows| format!("{rows} rows"));
        match self.reading.rows() {
            Some(kind) => format!("{name} has {rows} with {kind}"),
            None => format!("{name} has {rows}"),
        }
    }

    /// Number of rows that were read.
    pub(super) fn count(&self) -> usize {
        self.index
    }

    /// Returns the next row.
    pub(super) fn read(&mut self) -> Result<Option<Row>> {
        loop {
            let Some((batch, next)) = self.batch.as_mut().filter(|(batch, next)| *next < batch.num_rows())
            else {
                let Some(batch) = self.batches.next().transpose()? else { return Ok(None) };
                self.batch = Some((batch, 0));
                continue;
            };
            let text = self.writer.object(batch, *next).and_then(|text| match text.len() as u64 {
                bytes if bytes > LINE_BYTES_MAX => {
                    Err(wrong(format!("the row has {bytes} bytes, the limit is {LINE_BYTES_MAX}")))
                }
                _ => Ok(text),
            });
            *next += 1;
            let index = self.index;
            self.index += 1;
            let read = self.rows.filter(|rows| *rows > 0).map(|rows| self.index as f64 / rows as f64);
            let end = read.map_or(0, |share| (self.bytes as f64 * share.min(1.0)) as u64);
            return Ok(Some(Row { index, end, text, reading: Arc::clone(&self.reading) }));
        }
    }
}
