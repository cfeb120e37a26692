//! Rows of Parquet and Arrow files.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::RecordBatch;
use kudos::Result;
use kudos::internals::request::{Reading, TEXT_BYTES_MAX};
use kudos_tables::{Batches, Container, RowWriter, Table};

use super::row::{Row, wrong};
use super::shard::{Span, prompt_of};

/// The rows of a table, each as the text of a line.
pub(super) struct Rows {
    batches: Batches,
    /// The current batch, and the next row of it.
    batch: Option<(RecordBatch, usize)>,
    writer: RowWriter,
    reading: Arc<Reading>,
    index: usize,
    /// The rows that are read, where the file says how many it has.
    rows: Option<Range<u64>>,
    /// Bytes of these rows, about.
    bytes: u64,
}

impl Rows {
    /// Opens a table; its columns decide how rows are read, unless `reading` does. Without a
    /// reading rows have all columns.
    pub(super) fn open(
        file: File,
        container: Container,
        reading: Option<&Reading>,
        span: Span,
    ) -> Result<Self> {
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
        let reading = Arc::new(writer.reading().clone());
        let rows = table.rows().map(|rows| span.start..span.end.unwrap_or(rows));
        let batches = table.batches(&columns, rows.clone())?;
        let (index, bytes) = (span.rows_before, span.bytes.unwrap_or(table.bytes()));
        Ok(Self { batches, batch: None, writer: writer.projected(), reading, index, rows, bytes })
    }

    /// Returns a message about the rows of a table with this name.
    pub(super) fn note(&self, name: &str) -> String {
        let rows = match &self.rows {
            None => "rows".to_owned(),
            Some(Range { start: 0, end }) => format!("{end} rows"),
            Some(Range { start, end }) => format!("rows {} to {end}", start + 1),
        };
        match self.reading.rows() {
            Some(kind) => format!("{name} has {rows} with {kind}"),
            None => format!("{name} has {rows}"),
        }
    }

    /// Number of rows of the file up to the last that was read.
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
                bytes if bytes > TEXT_BYTES_MAX => {
                    Err(wrong(format!("the row has {bytes} bytes, the limit is {TEXT_BYTES_MAX}")))
                }
                _ => Ok(text),
            });
            *next += 1;
            let index = self.index;
            self.index += 1;
            let read = self.rows.as_ref().filter(|rows| !rows.is_empty()).map(|rows| {
                (self.index as u64).saturating_sub(rows.start) as f64 / (rows.end - rows.start) as f64
            });
            let end = read.map_or(0, |share| (self.bytes as f64 * share.min(1.0)) as u64);
            return Ok(Some(Row { index, end, text, reading: Arc::clone(&self.reading) }));
        }
    }
}

/// Returns the row at which a Parquet file is cut for a share of its rows; `None` for its end.
pub(super) fn cut(file: File, share: f64, reading: &Reading) -> Result<Option<u64>> {
    let table = Table::open(file, Container::Parquet)?;
    let rows = table.rows().unwrap_or(0);
    let cut = ((rows as f64 * share) as u64).min(rows);
    if cut == 0 || cut == rows {
        return Ok(Some(cut).filter(|cut| *cut < rows));
    }
    let writer = RowWriter::new(table.schema(), reading.clone())?;
    let columns: Vec<usize> = writer.columns().collect();
    let batches = table.batches(&columns, Some(cut - 1..rows))?;
    let (writer, mut next, mut before) = (writer.projected(), cut - 1, None);
    for batch in batches {
        let batch = batch?;
        for row in 0..batch.num_rows() {
            let prompt = writer.object(&batch, row).ok().and_then(|text| prompt_of(writer.reading(), &text));
            if next >= cut && (prompt.is_none() || prompt != before) {
                return Ok(Some(next));
            }
            before = prompt;
            next += 1;
        }
    }
    Ok(None)
}

/// Returns the number of rows of a table.
pub(super) fn count(file: File, container: Container) -> Result<usize> {
    let table = Table::open(file, container)?;
    if let Some(rows) = table.rows() {
        return Ok(rows as usize);
    }
    table.batches(&[], None)?.map(|batch| batch.map(|batch| batch.num_rows())).sum()
}
