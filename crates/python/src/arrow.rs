//! Tables by Arrow's PyCapsule interface: each row is the object that a line of the command's input
//! would be, and the rewards are a column. Python needs no Arrow library for it.

use std::ffi::CStr;
use std::sync::Arc;

use arrow_array::ffi_stream::{FFI_ArrowArrayStream, RecordBatchStreamReader};
use arrow_array::{ArrayRef, Float32Array, ListArray, RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{ArrowError, DataType, Field};
use kudos::Result;
use kudos::internals::request::{Reading, Request};
use kudos_tables::RowWriter;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::errors::exception;
use crate::input::type_of;

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
    let writer = RowWriter::new(&reader.schema(), Reading::default());
    let writer = Arc::new(writer.map_err(|error| exception(table.py(), &error, None))?.without_id());
    let request = |writer: &RowWriter, batch: &RecordBatch, row| {
        writer.object(batch, row).and_then(|text| writer.reading().parse(&text).request)
    };
    Ok(reader.flat_map(move |batch| match batch {
        Ok(batch) => {
            let (rows, writer) = (batch.num_rows(), Arc::clone(&writer));
            let rows: Box<dyn Iterator<Item = _>> =
                Box::new((0..rows).map(move |row| Ok(request(&writer, &batch, row))));
            rows
        }
        Err(error) => Box::new(std::iter::once(Err(failed(&error)))),
    }))
}

fn failed(error: &ArrowError) -> PyErr {
    PyValueError::new_err(format!("the table cannot be read: {error}"))
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
