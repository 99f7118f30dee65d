//! Parquet rows as JSON-like records.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use artifact::Error;
use artifact::parquet_file::ParquetSource;
use serde_json::{Map, Number, Value};

use super::{FileRecords, Origin, Record, RecordError};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 256;

pub(super) fn open(path: &Path) -> Result<FileRecords, RecordError> {
    let name: Arc<Path> = Arc::from(path);
    let bad = {
        let name = Arc::clone(&name);
        move |error: Error| match error {
            Error::Io(source) => RecordError::Io { path: name.to_path_buf(), source },
            Error::Parquet { what, .. } => {
                RecordError::Parquet { path: name.to_path_buf(), message: what }
            }
            other => RecordError::Parquet { path: name.to_path_buf(), message: other.to_string() },
        }
    };
    let source = ParquetSource::open(path).map_err(&bad)?;
    for field in source.schema().fields() {
        if !supported(field.data_type()) {
            return Err(RecordError::ColumnType {
                path: path.to_owned(),
                column: field.name().clone(),
                data_type: field.data_type().to_string(),
            });
        }
    }
    let mut first = 1;
    let groups = (0..source.num_groups()).map(move |group| source.batches(group, BATCH_ROWS));
    // A group that cannot be opened is one batch that cannot be read.
    let batches = groups.flat_map(|batches| -> Box<dyn Iterator<Item = _> + Send> {
        match batches {
            Ok(batches) => Box::new(batches),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    });
    Ok(Box::new(batches.flat_map(move |batch| match batch {
        Err(error) => vec![Err(bad(error))],
        Ok(batch) => {
            let rows = to_records(&batch, &name, first);
            first += batch.num_rows() as u64;
            rows.into_iter().map(Ok).collect()
        }
    })))
}

fn to_records(batch: &RecordBatch, file: &Arc<Path>, first: u64) -> Vec<Record> {
    let schema = batch.schema();
    (0..batch.num_rows())
        .map(|row| {
            let mut fields = Map::new();
            for (field, column) in schema.fields().iter().zip(batch.columns()) {
                fields.insert(field.name().clone(), value(column.as_ref(), row));
            }
            Record { fields, origin: Origin { file: Arc::clone(file), row: first + row as u64 } }
        })
        .collect()
}

fn supported(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null
        | DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8 => true,
        DataType::List(item) => supported(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| supported(field.data_type())),
        _ => false,
    }
}

/// One cell. Types outside [`supported`] were refused when the file was opened.
fn value(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    macro_rules! number {
        ($kind:ty) => {
            Value::Number(array.as_primitive::<$kind>().value(row).into())
        };
    }
    match array.data_type() {
        DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => float(f64::from(array.as_primitive::<Float32Type>().value(row))),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => Value::String(array.as_string::<i32>().value(row).to_owned()),
        DataType::List(_) => list(array.as_list::<i32>().value(row).as_ref()),
        DataType::Struct(fields) => {
            let columns = array.as_struct();
            let pairs = fields.iter().zip(columns.columns());
            Value::Object(
                pairs.map(|(field, column)| (field.name().clone(), value(column, row))).collect(),
            )
        }
        _ => Value::Null,
    }
}

fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn list(items: &dyn Array) -> Value {
    Value::Array((0..items.len()).map(|row| value(items, row)).collect())
}
