//! Tables of text, numbers and truth values as Parquet: samples, prompts, preferences, raw text.
//!
//! A table is written and read row by row in bounded memory. Columns are named and typed; a file may
//! have more columns than a reader asks for, and other tools' equivalent types are accepted
//! (narrower numbers; large text, views and dictionaries are all text in Parquet).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, BooleanBuilder, Float32Array, Float32Builder, Float64Array,
    Float64Builder, Int64Array, Int64Builder, RecordBatch, StringArray, StringBuilder,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::error::{Error, Result};
use crate::parquet_file::{ParquetSink, ParquetSource};

const GROUP_ROWS: usize = 8192;
const GROUP_BYTES: usize = 8 << 20;
const READ_ROWS: usize = 256;

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    Text,
    /// A 64-bit integer.
    Int,
    /// A 32-bit float: scores, margins.
    Float32,
    /// A 64-bit float.
    Float64,
    /// True or false.
    Bool,
}

impl Kind {
    fn data_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Bool => DataType::Boolean,
        }
    }

    /// Whether a column of another tool can be read as this without loss of meaning.
    fn reads(self, found: &DataType) -> bool {
        match found {
            DataType::Utf8 => self == Self::Text,
            DataType::Boolean => self == Self::Bool,
            DataType::Float16 | DataType::Float32 => matches!(self, Self::Float32 | Self::Float64),
            DataType::Float64 => matches!(self, Self::Float32 | Self::Float64),
            found if found.is_integer() => {
                matches!(self, Self::Int | Self::Float32 | Self::Float64)
            }
            DataType::Null => true,
            _ => false,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "utf8",
            Self::Int => "int64",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Bool => "bool",
        }
    }
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name; see [`mod@crate::columns`].
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Whether every row must have a value. A reader takes a missing optional column as all `Null`.
    pub required: bool,
}

impl Column {
    /// A column with a value in every row.
    pub fn required(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind, required: true }
    }

    /// A column that may lack values, or be absent from a file that is read.
    pub fn optional(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind, required: false }
    }
}

/// One value of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// No value.
    Null,
    /// Text.
    Text(String),
    /// An integer.
    Int(i64),
    /// A float; stored as the column's width.
    Float(f64),
    /// True or false.
    Bool(bool),
}

impl Cell {
    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The text without copying, if it is one.
    pub fn into_text(self) -> Option<String> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Writes a table; it appears under its name at [`finish`](Self::finish), whole.
pub struct TableWriter {
    sink: ParquetSink,
    schema: SchemaRef,
    path: PathBuf,
    columns: Vec<Column>,
    builders: Vec<Builder>,
    pending: usize,
    bytes: usize,
    rows: u64,
}

impl TableWriter {
    /// Starts a table at `path`, making missing folders.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: impl AsRef<Path>, columns: &[Column]) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let fields = columns.iter().map(|c| Field::new(&c.name, c.kind.data_type(), !c.required));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let sink = ParquetSink::create(&path, Arc::clone(&schema))?;
        let builders = columns.iter().map(|c| Builder::new(c.kind)).collect();
        let columns = columns.to_vec();
        Ok(Self { sink, schema, path, columns, builders, pending: 0, bytes: 0, rows: 0 })
    }

    /// Adds a row, one cell for each column in their order.
    ///
    /// # Errors
    /// [`Error::Row`] if there are more or fewer cells than columns, a cell is of another type, or a
    /// required one is `Null`; and errors of the file system.
    pub fn write_row(&mut self, cells: &[Cell]) -> Result<()> {
        let fail = |what| Err(Error::Row { path: self.path.clone(), row: self.rows, what });
        if cells.len() != self.columns.len() {
            return fail(format!("has {} values for {} columns", cells.len(), self.columns.len()));
        }
        for (column, cell) in self.columns.iter().zip(cells) {
            let fits = match cell {
                Cell::Null => !column.required,
                Cell::Text(_) => column.kind == Kind::Text,
                Cell::Int(_) => column.kind != Kind::Text && column.kind != Kind::Bool,
                Cell::Float(_) => matches!(column.kind, Kind::Float32 | Kind::Float64),
                Cell::Bool(_) => column.kind == Kind::Bool,
            };
            if !fits {
                let (name, kind) = (&column.name, column.kind.name());
                return fail(format!("column `{name}` needs {kind}, got {cell:?}"));
            }
        }
        for (builder, cell) in self.builders.iter_mut().zip(cells) {
            self.bytes += 8 + cell.as_text().map_or(0, str::len);
            builder.push(cell);
        }
        self.pending += 1;
        self.rows += 1;
        if self.pending >= GROUP_ROWS || self.bytes >= GROUP_BYTES {
            self.write_group()?;
        }
        Ok(())
    }

    /// Writes the footer, gives the file its name, and returns the number of rows.
    ///
    /// # Errors
    /// Those of the file system; a file of that name from before is then unchanged.
    pub fn finish(mut self) -> Result<u64> {
        if self.pending > 0 {
            self.write_group()?;
        }
        self.sink.finish(None)?;
        Ok(self.rows)
    }

    fn write_group(&mut self) -> Result<()> {
        let columns = self.builders.iter_mut().map(Builder::take).collect();
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .map_err(|e| Error::Parquet { path: self.path.clone(), what: e.to_string() })?;
        (self.pending, self.bytes) = (0, 0);
        self.sink.write_group(&batch)
    }
}

/// Reads a table row by row: an iterator of rows, each with one cell for each column asked for.
pub struct TableReader {
    source: ParquetSource,
    columns: Vec<Column>,
    group: usize,
    batches: Option<Box<dyn Iterator<Item = Result<RecordBatch>> + Send>>,
    batch: Vec<ArrayRef>,
    at: usize,
    len: usize,
    rows: u64,
    failed: bool,
}

impl TableReader {
    /// Opens a table and checks that it has the columns asked for. `advice` ends the message when it
    /// has not: which stage makes such a file.
    ///
    /// # Errors
    /// If it cannot be read, is not (whole) Parquet, lacks a required column, or has one of another
    /// type.
    pub fn open(path: impl AsRef<Path>, columns: &[Column], advice: &str) -> Result<Self> {
        let source = ParquetSource::open(path.as_ref())?;
        for column in columns {
            let (name, kind) = (&column.name, column.kind.name());
            let fits = match source.schema().field_with_name(name) {
                Ok(field) => column.kind.reads(field.data_type()),
                Err(_) => !column.required,
            };
            if !fits {
                let found = source.describe_columns();
                let what = format!("no column `{name}` of type {kind}; it has ({found})");
                return Err(source.schema_error(what, advice));
            }
        }
        Ok(Self {
            source,
            columns: columns.to_vec(),
            group: 0,
            batches: None,
            batch: Vec::new(),
            at: 0,
            len: 0,
            rows: 0,
            failed: false,
        })
    }

    /// How many rows the table has.
    pub fn num_rows(&self) -> u64 {
        self.source.num_rows()
    }

    /// The columns of a table that hold single texts, numbers or truth values, all as optional ones.
    ///
    /// # Errors
    /// If it cannot be read or is not (whole) Parquet.
    pub fn columns_of(path: impl AsRef<Path>) -> Result<Vec<Column>> {
        const KINDS: [Kind; 4] = [Kind::Text, Kind::Bool, Kind::Int, Kind::Float64];
        let source = ParquetSource::open(path.as_ref())?;
        let fields = source.schema().fields().iter();
        let columns = fields.filter_map(|field| {
            let kind = KINDS.into_iter().find(|kind| kind.reads(field.data_type()))?;
            Some(Column::optional(field.name(), kind))
        });
        Ok(columns.collect())
    }

    /// The names of the columns the file has.
    pub fn column_names(&self) -> Vec<&str> {
        self.source.schema().fields().iter().map(|f| f.name().as_str()).collect()
    }

    /// Moves to the next batch that has rows; false at the end.
    fn advance(&mut self) -> Result<bool> {
        while self.at >= self.len {
            let batch = match &mut self.batches {
                Some(batches) => batches.next().transpose()?,
                None => None,
            };
            if let Some(batch) = batch {
                (self.at, self.len) = (0, batch.num_rows());
                self.batch = self.pick(&batch)?;
            } else if self.group < self.source.num_groups() {
                self.batches = Some(Box::new(self.source.batches(self.group, READ_ROWS)?));
                self.group += 1;
            } else {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn pick(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let one = |column: &Column| {
            let kind = column.kind.data_type();
            let Some(found) = batch.column_by_name(&column.name) else {
                return Ok(arrow::array::new_null_array(&kind, batch.num_rows()));
            };
            cast(found, &kind).map_err(|e| Error::Parquet {
                path: self.source.path().to_path_buf(),
                what: e.to_string(),
            })
        };
        self.columns.iter().map(one).collect()
    }

    fn row(&mut self) -> Result<Option<Vec<Cell>>> {
        if !self.advance()? {
            return Ok(None);
        }
        let mut cells = Vec::with_capacity(self.columns.len());
        for (column, array) in self.columns.iter().zip(&self.batch) {
            let cell = cell(array, self.at);
            if cell == Cell::Null && column.required {
                let what = format!("column `{}` has no value", column.name);
                return Err(Error::Row {
                    path: self.source.path().to_path_buf(),
                    row: self.rows,
                    what,
                });
            }
            cells.push(cell);
        }
        self.at += 1;
        self.rows += 1;
        Ok(Some(cells))
    }
}

impl Iterator for TableReader {
    type Item = Result<Vec<Cell>>;

    /// The next row; after an error there are no more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let row = self.row().transpose();
        self.failed = matches!(row, Some(Err(_)));
        row
    }
}

fn cell(array: &ArrayRef, at: usize) -> Cell {
    if array.is_null(at) {
        return Cell::Null;
    }
    let any = array.as_any();
    if let Some(text) = any.downcast_ref::<StringArray>() {
        Cell::Text(text.value(at).to_owned())
    } else if let Some(ints) = any.downcast_ref::<Int64Array>() {
        Cell::Int(ints.value(at))
    } else if let Some(floats) = any.downcast_ref::<Float32Array>() {
        Cell::Float(f64::from(floats.value(at)))
    } else if let Some(floats) = any.downcast_ref::<Float64Array>() {
        Cell::Float(floats.value(at))
    } else if let Some(truths) = any.downcast_ref::<BooleanArray>() {
        Cell::Bool(truths.value(at))
    } else {
        Cell::Null
    }
}

enum Builder {
    Text(StringBuilder),
    Int(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Bool(BooleanBuilder),
}

impl Builder {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Text => Self::Text(StringBuilder::new()),
            Kind::Int => Self::Int(Int64Builder::new()),
            Kind::Float32 => Self::Float32(Float32Builder::new()),
            Kind::Float64 => Self::Float64(Float64Builder::new()),
            Kind::Bool => Self::Bool(BooleanBuilder::new()),
        }
    }

    /// The cell was checked to fit.
    fn push(&mut self, cell: &Cell) {
        match self {
            Self::Text(builder) => builder.append_option(cell.as_text()),
            Self::Int(builder) => {
                builder.append_option(if let Cell::Int(value) = cell {
                    Some(*value)
                } else {
                    None
                });
            }
            Self::Float32(builder) => {
                builder.append_option(cell.as_f64().map(|value| value as f32));
            }
            Self::Float64(builder) => builder.append_option(cell.as_f64()),
            Self::Bool(builder) => {
                builder.append_option(if let Cell::Bool(value) = cell {
                    Some(*value)
                } else {
                    None
                });
            }
        }
    }

    fn take(&mut self) -> ArrayRef {
        match self {
            Self::Text(builder) => Arc::new(builder.finish()),
            Self::Int(builder) => Arc::new(builder.finish()),
            Self::Float32(builder) => Arc::new(builder.finish()),
            Self::Float64(builder) => Arc::new(builder.finish()),
            Self::Bool(builder) => Arc::new(builder.finish()),
        }
    }
}

#[cfg(test)]
#[path = "rows/tests.rs"]
mod tests;
