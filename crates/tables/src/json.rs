//! Rows of Arrow's batches as JSON.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, Schema};
use kudos::internals::request::{Form, Reading, Shape, TEXT_BYTES_MAX};
use kudos::{Error, ErrorKind, Result};

/// Returns the shape of values of a type; `None` for a type without values.
pub fn shape(data_type: &DataType) -> Option<Shape> {
    match data_type {
        DataType::Null => None,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(Shape::Text),
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => Some(Shape::List),
        DataType::Struct(_) => Some(Shape::Object),
        DataType::Dictionary(_, values) => shape(values),
        _ => Some(Shape::Other),
    }
}

/// Writes rows as objects with the keys that are read.
#[derive(Clone, Debug)]
pub struct RowWriter {
    reading: Reading,
    /// The columns that are read, by index in batches, with the JSON of their names.
    columns: Vec<(usize, String)>,
    form: Option<Form>,
}

impl RowWriter {
    /// Returns a writer of the rows of a table with this schema, whose kind its columns decide
    /// unless the reading does.
    pub fn new(schema: &Schema, reading: Reading) -> Result<Self> {
        let shape = |key: &str| {
            let field = schema.fields().iter().find(|field| reading.columns().key(field.name()) == Some(key));
            field.and_then(|field| shape(field.data_type()))
        };
        let reading = reading.clone().with_shapes(shape)?;
        let form = reading.form(shape);
        let columns = schema.fields().iter().enumerate();
        let columns = columns.filter(|(_, field)| reading.reads(field.name()));
        let columns = columns.map(|(index, field)| (index, quoted(field.name()))).collect();
        Ok(Self { reading, columns, form })
    }

    /// Returns a writer of whole rows.
    pub fn whole(schema: &Schema) -> Self {
        let columns = schema.fields().iter().enumerate();
        let columns = columns.map(|(index, field)| (index, quoted(field.name()))).collect();
        Self { reading: Reading::default(), columns, form: None }
    }

    /// Returns how the objects are read.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    /// Returns the form of the rows' results, where the columns decide it.
    pub fn form(&self) -> Option<Form> {
        self.form
    }

    /// Returns the columns that are read, by their index in the schema.
    pub fn columns(&self) -> impl Iterator<Item = usize> + '_ {
        self.columns.iter().map(|(index, _)| *index)
    }

    /// Returns the writer of rows without `id`, for callers that do not read it.
    #[must_use]
    pub fn without_id(mut self) -> Self {
        self.columns.retain(|(_, name)| name != "\"id\"");
        self
    }

    /// Returns the writer for batches that have only the columns that are read.
    #[must_use]
    pub fn projected(mut self) -> Self {
        self.columns.iter_mut().enumerate().for_each(|(index, (column, _))| *column = index);
        self
    }

    /// Returns a row as the JSON text of an object. Nulls are left out.
    pub fn object(&self, batch: &RecordBatch, row: usize) -> Result<Vec<u8>> {
        let mut out = vec![b'{'];
        for (index, name) in &self.columns {
            let column = batch.column(*index);
            if column.is_null(row) {
                continue;
            }
            separate(&mut out, 1);
            out.extend(name.as_bytes());
            out.push(b':');
            write(&mut out, column, row)
                .map_err(|error| error.prefixed(format!("column `{}`", name.trim_matches('"'))))?;
        }
        out.push(b'}');
        Ok(out)
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// Writes a comma after what was written since a list or an object began at `start`.
fn separate(out: &mut Vec<u8>, start: usize) {
    if out.len() > start {
        out.push(b',');
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    // A vector takes every write.
    let _ = serde_json::to_writer(out, text);
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
            // Rows of one column share its fields: one that a row does not have is null there.
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                if column.is_null(row) {
                    continue;
                }
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
        // Each item that is left takes a comma and a digit at least.
        if out.len().saturating_add(2 * (items.len() - row)) as u64 > TEXT_BYTES_MAX {
            return Err(wrong(format!("the row has more than {TEXT_BYTES_MAX} bytes of text")));
        }
        separate(out, start);
        write(out, items, row)?;
    }
    out.push(b']');
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, FixedSizeListArray, NullArray, RecordBatch, StringArray, StructArray};
    use arrow_schema::Field;

    use super::*;

    #[test]
    fn nulls_are_absent_at_every_depth() {
        let column = |values: [Option<&str>; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        let field = |name: &str| Arc::new(Field::new(name, DataType::Utf8, true));
        let arguments = StructArray::from(vec![
            (field("city"), column([Some("x"), None])),
            (field("date"), column([None, Some("y")])),
        ]);
        let columns =
            [("arguments", Arc::new(arguments) as ArrayRef), ("text", column([None, Some("a \"b\"")]))];
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)));
        let batch = batch.unwrap();
        let writer = RowWriter::whole(&batch.schema());
        let row = |row| String::from_utf8(writer.object(&batch, row).unwrap()).unwrap();
        assert_eq!(row(0), r#"{"arguments":{"city":"x"}}"#);
        assert_eq!(row(1), r#"{"arguments":{"date":"y"},"text":"a \"b\""}"#);
    }
    #[test]
    fn a_row_of_nulls_without_end_is_refused() {
        let item = Arc::new(Field::new("item", DataType::Null, true));
        let nulls = Arc::new(NullArray::new(i32::MAX as usize));
        let list = FixedSizeListArray::new(item, i32::MAX, nulls, None);
        let batch = RecordBatch::try_from_iter([("input_ids", Arc::new(list) as ArrayRef)]).unwrap();
        let error = RowWriter::whole(&batch.schema()).object(&batch, 0).unwrap_err();
        assert!(error.to_string().contains("the row has more than 268435456 bytes of text"), "{error}");
    }
}
