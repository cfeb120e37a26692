//! Tables by Arrow's PyCapsule interface: each row is the object that a line of the command's input
//! would be, and the rewards are a column. Python needs no Arrow library for it.

use std::ffi::CStr;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::ffi_stream::{FFI_ArrowArrayStream, RecordBatchStreamReader};
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{Array, ArrayRef, Float32Array, ListArray, RecordBatch, RecordBatchIterator};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{ArrowError, DataType, Field};
use kudos::Result;
use kudos::internals::request::{self, Request};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::errors::wrong;
use crate::input::{string, type_of};

/// The name that the interface gives to capsules of streams.
const STREAM: &CStr = c"arrow_array_stream";

/// Returns the requests of a table's rows, batch by batch.
pub(crate) fn requests(
    table: &Bound<'_, PyAny>,
) -> PyResult<impl Iterator<Item = PyResult<Result<Request>>> + use<>> {
    const METHOD: &str = "__arrow_c_stream__";
    // The `data` of a dataset is a table around one of pyarrow's.
    let method = table.getattr(METHOD).or_else(|_| table.getattr("table")?.getattr(METHOD));
    let Ok(method) = method else {
        return Err(PyTypeError::new_err(format!(
            "the table is of type {}, which has no `__arrow_c_stream__`\n\nhint: give a pyarrow.Table, a polars.DataFrame, a \
             pandas.DataFrame (of pandas 2.2 and later, with pyarrow), or `dataset.with_format(\"arrow\")[:]`; lists of dicts go to \
             `score`",
            type_of(table)
        )));
    };
    let capsule = method.call0()?;
    let stream = capsule.cast::<PyCapsule>()?.pointer_checked(Some(STREAM))?.cast::<FFI_ArrowArrayStream>();
    // SAFETY: a capsule of this name holds a stream, as the interface says, which lives as long as
    // the capsule does. It is moved out, and the capsule's destructor finds a released one.
    let reader =
        unsafe { RecordBatchStreamReader::from_raw(stream.as_ptr()) }.map_err(|error| failed(&error))?;
    Ok(reader.flat_map(|batch| match batch {
        Ok(batch) => {
            let rows = batch.num_rows();
            let rows: Box<dyn Iterator<Item = _>> =
                Box::new((0..rows).map(move |row| Ok(self::request(&batch, row))));
            rows
        }
        Err(error) => Box::new(std::iter::once(Err(failed(&error)))),
    }))
}

fn failed(error: &ArrowError) -> PyErr {
    PyValueError::new_err(format!("the table cannot be read: {error}"))
}

fn request(batch: &RecordBatch, row: usize) -> Result<Request> {
    let mut text = vec![b'{'];
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let name = field.name();
        if !request::is_read(name) || name == "id" || column.is_null(row) {
            continue;
        }
        separate(&mut text, 1);
        string(&mut text, name);
        text.push(b':');
        write(&mut text, column, row).map_err(|error| error.prefixed(format!("column `{name}`")))?;
    }
    text.push(b'}');
    request::parse(&text).request
}

/// Writes a comma after what was written since a list or an object began at `start`.
fn separate(out: &mut Vec<u8>, start: usize) {
    if out.len() > start {
        out.push(b',');
    }
}

/// Writes a value as JSON.
fn write(out: &mut Vec<u8>, array: &dyn Array, row: usize) -> Result<()> {
    if array.is_null(row) {
        out.extend(b"null");
        return Ok(());
    }
    macro_rules! number {
        ($type:ty) => {
            out.extend(array.as_primitive::<$type>().value(row).to_string().as_bytes())
        };
    }
    macro_rules! float {
        ($type:ty) => {{
            let value = array.as_primitive::<$type>().value(row);
            if !value.is_finite() {
                return Err(wrong(format!("a number is {value}, which JSON does not have")));
            }
            // A vector takes every write.
            let _ = serde_json::to_writer(&mut *out, &value);
        }};
    }
    match array.data_type() {
        DataType::Utf8 => string(out, array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => string(out, array.as_string::<i64>().value(row)),
        DataType::Utf8View => string(out, array.as_string_view().value(row)),
        DataType::List(_) => list(out, &array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => list(out, &array.as_list::<i64>().value(row))?,
        DataType::FixedSizeList(..) => list(out, &array.as_fixed_size_list().value(row))?,
        DataType::Struct(fields) => {
            out.push(b'{');
            let start = out.len();
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                separate(out, start);
                string(out, field.name());
                out.push(b':');
                write(out, column, row)?;
            }
            out.push(b'}');
        }
        DataType::Dictionary(..) => {
            // The keys of one row: those of all would be copied for each.
            let one = array.slice(row, 1);
            let dictionary = one.as_any_dictionary();
            write(out, dictionary.values(), dictionary.normalized_keys()[0])?;
        }
        DataType::Null => out.extend(b"null"),
        DataType::Boolean => {
            out.extend(if array.as_boolean().value(row) { &b"true"[..] } else { b"false" });
        }
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => float!(Float32Type),
        DataType::Float64 => float!(Float64Type),
        other => {
            return Err(wrong(format!("a value is of type {other}, which JSON does not have"))
                .with_hint("text, numbers, booleans, lists and structs are read: cast the column"));
        }
    }
    Ok(())
}

fn list(out: &mut Vec<u8>, items: &dyn Array) -> Result<()> {
    out.push(b'[');
    let start = out.len();
    for row in 0..items.len() {
        separate(out, start);
        write(out, items, row)?;
    }
    out.push(b']');
    Ok(())
}

/// The rewards of a table: a column that every library of Arrow's reads.
#[pyclass(frozen, module = "kudos._kudos")]
#[derive(Debug)]
pub(crate) struct RewardTable {
    batch: RecordBatch,
}

impl RewardTable {
    /// Makes a column `reward`, or a column `rewards` of lists where a row has several. `null` stands
    /// for an error.
    pub(crate) fn new(counts: &[Option<usize>], rewards: &[f32]) -> PyResult<Self> {
        let values =
            Float32Array::from_iter(rewards.iter().map(|&reward| (!reward.is_nan()).then_some(reward)));
        let (name, column): (_, ArrayRef) = if counts.iter().all(Option::is_none) {
            ("reward", Arc::new(values))
        } else {
            let offsets = OffsetBuffer::from_lengths(counts.iter().map(|count| count.unwrap_or(1)));
            let item = Arc::new(Field::new("item", DataType::Float32, true));
            ("rewards", Arc::new(ListArray::new(item, offsets, Arc::new(values), None)))
        };
        let batch = RecordBatch::try_from_iter_with_nullable([(name, column, true)]);
        Ok(Self { batch: batch.map_err(|error| failed(&error))? })
    }
}

#[pymethods]
impl RewardTable {
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        // The interface lets a producer ignore it.
        let _ = requested_schema;
        let batches = RecordBatchIterator::new([Ok(self.batch.clone())], self.batch.schema());
        PyCapsule::new_with_value(py, FFI_ArrowArrayStream::new(Box::new(batches)), STREAM)
    }

    fn __len__(&self) -> usize {
        self.batch.num_rows()
    }
}
