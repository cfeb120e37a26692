//! Tables with all of their columns, to be copied beside the results of their rows.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Field, Schema};
use kudos_tables::{RowWriter, check_writable};

use super::row::wrong;
use super::source::Source;
use kudos::internals::request::{Form, Reading};
use kudos::{Error, ErrorKind, Result};

/// The tables of an input, which have the same columns.
pub(crate) struct Tables {
    schema: Schema,
    form: Form,
    /// Those that are read, each with its part in a shard.
    sources: Vec<Source>,
}

impl Tables {
    /// Returns the tables of `all` files, and those of `sources` to copy. The first rows of each
    /// are read with all of their columns and written to a sink, to find what fails before scoring.
    pub(super) fn new(
        all: &[Source],
        sources: Vec<Source>,
        reading: Option<&Reading>,
    ) -> anyhow::Result<Self> {
        let no_table = |name: &str| {
            Error::new(
                ErrorKind::Options,
                format!("{name} is not a table, and a Parquet output has the input's columns"),
            )
            .with_hint("write lines: `-o FILE.jsonl`, compressed `-o FILE.jsonl.zst`")
        };
        let mut first: Option<(&Source, Schema)> = None;
        for source in all {
            let (table, _) = source.table()?.ok_or_else(|| no_table(&source.name))?;
            let schema = table.schema().clone();
            let columns: Vec<usize> = (0..schema.fields().len()).collect();
            let begun = table.batches(&columns, None).and_then(|mut rows| rows.next().transpose());
            begun
                .and_then(|rows| check_writable(&schema, rows.as_ref()))
                .map_err(|error| error.at(&source.name))?;
            first = Some(match first {
                None => (source, schema),
                Some((other, expected)) => {
                    let both = common(&expected, &schema, &other.name);
                    (other, both.map_err(|error| error.at(&source.name))?)
                }
            });
        }
        let Some((source, schema)) = first else { return Err(no_table("the input").into()) };
        let writer = RowWriter::new(&schema, reading.cloned().unwrap_or_default());
        let form = writer.map_err(|error| error.at(&source.name))?.form().ok_or_else(|| {
            Error::new(
                ErrorKind::Options,
                "the form of the results differs from row to row, and a table has one",
            )
            .at(&source.name)
            .with_hint("write lines: `-o FILE.jsonl`")
        })?;
        Ok(Self { schema, form, sources })
    }

    /// Returns the schema of all tables.
    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Returns the form of the rows' results.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Passes on the rows of all tables, batch by batch.
    pub(crate) fn read(
        &self,
        mut each: impl FnMut(&RecordBatch) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let columns: Vec<usize> = (0..self.schema.fields().len()).collect();
        for source in &self.sources {
            let Some((table, span)) = source.table()? else { continue };
            let rows = table.rows().map(|rows| span.start..span.end.unwrap_or(rows));
            for batch in table.batches(&columns, rows).map_err(|error| error.at(&source.name))? {
                each(&batch.map_err(|error| error.at(&source.name))?)?;
            }
        }
        Ok(())
    }
}

/// Returns the schema of two tables with the same columns, of which the first has the name `name`.
fn common(first: &Schema, other: &Schema, name: &str) -> Result<Schema> {
    let described = |schema: &Schema, index: usize| match schema.fields().get(index) {
        Some(field) => format!("`{}` of {}", field.name(), field.data_type()),
        None => "missing".to_owned(),
    };
    let kind = |schema: &Schema, index: usize| {
        schema.fields().get(index).map(|field| (field.name().clone(), field.data_type().clone()))
    };
    let count = first.fields().len().max(other.fields().len());
    if let Some(index) = (0..count).find(|index| kind(first, *index) != kind(other, *index)) {
        let (number, found, expected) = (index + 1, described(other, index), described(first, index));
        return Err(wrong(format!("column {number} is {found}, but {expected} in {name}")).with_hint(
            "a Parquet output has the columns of all of its input: give such files, or write lines",
        ));
    }
    let both = |(first, other): (&Arc<Field>, &Arc<Field>)| {
        first.as_ref().clone().with_nullable(first.is_nullable() || other.is_nullable())
    };
    let fields: Vec<Field> = first.fields().iter().zip(other.fields()).map(both).collect();
    Ok(Schema::new_with_metadata(fields, first.metadata().clone()))
}
