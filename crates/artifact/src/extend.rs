//! A table of any tool with more columns.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};

use crate::error::{Error, Result};
use crate::parquet_file::{ParquetSink, ParquetSource};

const READ_ROWS: usize = 1024;

/// Copies a Parquet file with `columns` of 32-bit floats added at the end: each has a value or none for every row, and
/// takes the place of a column of that name. The file at `output` appears whole or not at all.
///
/// # Errors
/// Those of the file system; a column of another length than the file.
pub fn with_columns(
    input: &Path,
    output: &Path,
    columns: &[(&str, Vec<Option<f32>>)],
) -> Result<()> {
    let source = ParquetSource::open(input)?;
    let rows = source.num_rows();
    if let Some((name, values)) = columns.iter().find(|(_, values)| values.len() as u64 != rows) {
        let what = format!("{} values of `{name}` for {rows} rows", values.len());
        let advice = "give one for each, or none for all".to_owned();
        return Err(Error::Schema { path: input.to_path_buf(), what, advice });
    }
    let is_new = |field: &&Arc<Field>| columns.iter().all(|(name, _)| name != field.name());
    let mut fields: Vec<Arc<Field>> =
        source.schema().fields().iter().filter(is_new).cloned().collect();
    let added = columns.iter().map(|(name, _)| Field::new(*name, DataType::Float32, true));
    fields.extend(added.map(Arc::new));
    let schema = Arc::new(Schema::new(fields.clone()));
    let mut sink = ParquetSink::create(output, Arc::clone(&schema))?;
    let mut first = 0;
    for group in 0..source.num_groups() {
        for batch in source.batches(group, READ_ROWS)? {
            let batch = batch?;
            let count = batch.num_rows();
            let kept = fields.iter().filter_map(|field| batch.column_by_name(field.name()));
            let mut arrays: Vec<ArrayRef> =
                kept.take(fields.len() - columns.len()).cloned().collect();
            for (_, values) in columns {
                arrays.push(Arc::new(Float32Array::from(values[first..first + count].to_vec())));
            }
            let batch = RecordBatch::try_new(Arc::clone(&schema), arrays);
            let fail = |e: arrow::error::ArrowError| Error::Parquet {
                path: output.to_path_buf(),
                what: e.to_string(),
            };
            sink.write_group(&batch.map_err(fail)?)?;
            first += count;
        }
    }
    sink.finish(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Cell, Column, Kind, TableReader, TableWriter};

    #[test]
    fn columns_are_added_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["a.parquet", "b.parquet"].map(|name| dir.path().join(name));
        let columns =
            [Column::required("score", Kind::Float32), Column::optional("말", Kind::Text)];
        let mut table = TableWriter::create(&from, &columns).unwrap();
        for row in 0..2000_i64 {
            table.write_row(&[Cell::from(9.0), Cell::from(format!("{row}"))]).unwrap();
        }
        table.finish().unwrap();
        let scores: Vec<Option<f32>> =
            (0..2000).map(|row| (row != 3).then_some(row as f32)).collect();
        with_columns(&from, &to, &[("score", scores.clone())]).unwrap();
        let wanted = [Column::required("말", Kind::Text), Column::optional("score", Kind::Float32)];
        let mut count = 0;
        for (row, cells) in TableReader::open(&to, &wanted, "").unwrap().enumerate() {
            let cells = cells.unwrap();
            assert_eq!(cells[0], Cell::from(format!("{row}")));
            assert_eq!(cells[1].as_f64(), (row != 3).then_some(row as f64));
            count += 1;
        }
        assert_eq!(count, 2000);
        let error = with_columns(&from, &to, &[("x", scores[..5].to_vec())]).unwrap_err();
        assert!(error.to_string().contains("5 values of `x` for 2000 rows"), "{error}");
    }
}
