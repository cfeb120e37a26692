//! Parquet files of tables with the results of their rows.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, ListBuilder};
use arrow_array::types::{Float32Type, Int64Type};
use arrow_array::{ArrayRef, BooleanArray, Float32Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use kudos::internals::results::{Column, Values};
use kudos::{Error, ErrorKind, Result};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Map, Value};

/// Bytes of a row group in memory, about.
const GROUP_BYTES: usize = 64 << 20;

/// The column of errors.
const ERROR: &str = "error";

/// A Parquet file that is written: the columns of a table, then those of results, then `error`, the
/// JSON text of a row's error or errors.
pub struct ResultsWriter {
    writer: ArrowWriter<File>,
    schema: Arc<Schema>,
    columns: Vec<Column>,
}

impl ResultsWriter {
    /// Writes to `file` the rows of tables with this schema, which is that of [`with_results`].
    pub fn new(file: File, schema: Schema, columns: Vec<Column>) -> Result<Self> {
        let schema = Arc::new(schema);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_bytes(Some(GROUP_BYTES))
            .build();
        let writer = guarded(|| {
            ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))
                .map_err(|error| cannot_write(&error))
        })?;
        Ok(Self { writer, schema, columns })
    }

    /// Appends rows, each with its result.
    pub fn append(&mut self, rows: &RecordBatch, results: &[Map<String, Value>]) -> Result<()> {
        let mut arrays = rows.columns().to_vec();
        arrays.extend(self.columns.iter().map(|column| array(column, results)));
        let errors = results.iter().map(|result| {
            let error = result.get("error").or_else(|| result.get("errors"));
            error.map(Value::to_string)
        });
        arrays.push(Arc::new(errors.collect::<StringArray>()));
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), arrays);
        let batch = batch.map_err(|error| cannot_write(&error))?;
        guarded(|| self.writer.write(&batch).map_err(|error| cannot_write(&error)))
    }

    /// Ends the file, and returns it.
    pub fn finish(self) -> Result<File> {
        guarded(|| self.writer.into_inner().map_err(|error| cannot_write(&error)))
    }
}

/// Runs an encoder, whose panics are errors: it does not know all types.
fn guarded<T>(encode: impl FnOnce() -> Result<T>) -> Result<T> {
    // What the encoder leaves behind is dropped, not used.
    catch_unwind(AssertUnwindSafe(encode)).unwrap_or_else(|_| Err(cannot_write(&"its encoder panicked")))
}

fn cannot_write(error: &impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Io, format!("the Parquet file cannot be written: {error}"))
}

/// Fails if a table with rows such as these cannot be written, or would be read back as another
/// one.
pub fn check_writable(schema: &Schema, rows: Option<&RecordBatch>) -> Result<()> {
    let refused = |message: String| {
        Error::new(ErrorKind::Unsupported, message)
            .with_hint("write lines: `-o FILE.jsonl`; or cast the column")
    };
    // Parquet has no seconds, and no milliseconds of dates: they would become numbers.
    let is_lost = |field: &&Field| {
        use DataType::{Date64, Time32, Timestamp};
        matches!(field.data_type(), Date64 | Time32(TimeUnit::Second) | Timestamp(TimeUnit::Second, _))
    };
    if let Some(field) = schema.flattened_fields().into_iter().find(is_lost) {
        let (name, data_type) = (field.name(), field.data_type());
        return Err(refused(format!("column `{name}` is of {data_type}, which Parquet does not have")));
    }
    let write = || {
        let mut writer = ArrowWriter::try_new(io::sink(), Arc::new(schema.clone()), None)?;
        rows.map_or(Ok(()), |rows| writer.write(rows))?;
        writer.close()
    };
    guarded(|| write().map(drop).map_err(|error| cannot_write(&error)))
        .map_err(|error| refused(format!("the columns cannot be written to Parquet: {}", error.message())))
}

/// Returns the schema of a table with columns of results and of errors, whose names begin with
/// `prefix`. A column of the table with the name of one of these is an error.
pub fn with_results(table: &Schema, columns: &[Column], prefix: &str) -> Result<Schema> {
    let mut fields: Vec<Arc<Field>> = table.fields().to_vec();
    let columns = columns.iter().map(|column| (column.name.as_str(), data_type(column)));
    for (name, data_type) in columns.chain([(ERROR, DataType::Utf8)]) {
        let field = Field::new(format!("{prefix}{name}"), data_type, true);
        if table.fields().iter().any(|other| other.name() == field.name()) {
            let message = format!("the table has a column `{}`, as the results have", field.name());
            return Err(Error::new(ErrorKind::Options, message)
                .with_hint("`--prefix` puts a text before the names of the results' columns"));
        }
        fields.push(Arc::new(field));
    }
    Ok(Schema::new_with_metadata(fields, table.metadata().clone()))
}

fn data_type(column: &Column) -> DataType {
    let values = match column.values {
        Values::Reals => DataType::Float32,
        Values::Counts => DataType::Int64,
        Values::Flags => DataType::Boolean,
    };
    match column.is_list {
        true => DataType::List(Arc::new(Field::new_list_field(values, true))),
        false => values,
    }
}

/// Returns a column of results: null where a result has no such field.
fn array(column: &Column, results: &[Map<String, Value>]) -> ArrayRef {
    let fields = results.iter().map(|result| result.get(&column.name));
    // Printed as the shortest decimal of an f32, and so that f32 again.
    let real = |value: &Value| value.as_f64().map(|value| value as f32);
    let lists = fields.clone().map(|field| field.and_then(Value::as_array));
    match (column.values, column.is_list) {
        (Values::Reals, false) => {
            Arc::new(fields.map(|field| field.and_then(real)).collect::<Float32Array>())
        }
        (Values::Counts, false) => {
            Arc::new(fields.map(|field| field.and_then(Value::as_i64)).collect::<Int64Array>())
        }
        (Values::Flags, false) => {
            Arc::new(fields.map(|field| field.and_then(Value::as_bool)).collect::<BooleanArray>())
        }
        (Values::Reals, true) => Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(
            lists.map(|list| list.map(|list| list.iter().map(real).collect::<Vec<_>>())),
        )),
        (Values::Counts, true) => Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(
            lists.map(|list| list.map(|list| list.iter().map(Value::as_i64).collect::<Vec<_>>())),
        )),
        (Values::Flags, true) => {
            let mut builder = ListBuilder::new(BooleanBuilder::new());
            for list in lists {
                match list {
                    Some(list) => builder.append_value(list.iter().map(Value::as_bool)),
                    None => builder.append_null(),
                }
            }
            Arc::new(builder.finish())
        }
    }
}
