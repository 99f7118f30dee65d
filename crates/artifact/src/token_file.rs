//! What files of token ids share, whatever a row is: list columns, a footer with how the ids came
//! about and what there is in all, and checks of both.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, ListArray, RecordBatch};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::manifest::FORMAT_VERSION;
use crate::parquet_file::{ParquetSink, ParquetSource};
use crate::tokens::TokenMeta;
use crate::{pairs, tokens};

/// A row group is cut after this many tokens ...
pub(crate) const GROUP_TOKENS: usize = 1 << 20;
/// ... or after this many rows, whichever comes first.
pub(crate) const GROUP_ROWS: usize = 8192;

/// What one kind of file is called, which columns it has, and who makes it.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) rows: &'static str,
    pub(crate) columns: &'static [ColumnSpec],
    pub(crate) advice: &'static str,
}

/// One column of a [`Layout`].
#[derive(Debug)]
pub(crate) struct ColumnSpec {
    pub(crate) name: &'static str,
    /// The type of a value, or of the items of a list.
    pub(crate) kind: DataType,
    pub(crate) list: bool,
    pub(crate) nullable: bool,
}

impl ColumnSpec {
    pub(crate) const fn list(name: &'static str, kind: DataType) -> Self {
        Self { name, kind, list: true, nullable: false }
    }

    pub(crate) const fn optional(name: &'static str, kind: DataType) -> Self {
        Self { name, kind, list: false, nullable: true }
    }

    fn field(&self) -> Field {
        let kind = self.kind.clone();
        let kind = if self.list { DataType::List(item(kind)) } else { kind };
        Field::new(self.name, kind, self.nullable)
    }

    fn is_in(&self, schema: &Schema) -> bool {
        let Ok(field) = schema.field_with_name(self.name) else { return false };
        match field.data_type() {
            DataType::List(item) => self.list && *item.data_type() == self.kind,
            other => !self.list && *other == self.kind,
        }
    }

    fn describe(&self) -> String {
        let kind = match self.kind {
            DataType::Int32 => "int32",
            DataType::Boolean => "bool",
            DataType::Float32 => "float32",
            _ => "utf8",
        };
        if self.list { format!("list<{kind}>") } else { kind.to_owned() }
    }
}

impl Layout {
    pub(crate) fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(ColumnSpec::field).collect::<Vec<_>>()))
    }

    fn missing_in(&self, schema: &Schema) -> Option<&ColumnSpec> {
        self.columns.iter().find(|column| !column.is_in(schema))
    }
}

/// The footer's record.
#[derive(Serialize, Deserialize)]
pub(crate) struct Footer<C> {
    pub(crate) format_version: u64,
    pub(crate) meta: TokenMeta,
    pub(crate) counts: C,
}

/// A file being written; it has its name only after [`finish`](Self::finish).
pub(crate) struct TokenSink<C> {
    sink: ParquetSink,
    schema: SchemaRef,
    path: PathBuf,
    meta: TokenMeta,
    pub(crate) counts: C,
}

impl<C: Serialize + Default> TokenSink<C> {
    pub(crate) fn create(path: &Path, layout: &Layout, meta: TokenMeta) -> Result<Self> {
        if i32::try_from(meta.vocab_size).is_err() {
            return Err(Error::Schema {
                path: path.to_path_buf(),
                what: format!("vocab_size {} does not fit 32-bit token ids", meta.vocab_size),
                advice: "use a smaller vocabulary".to_owned(),
            });
        }
        let schema = layout.schema();
        let sink = ParquetSink::create(path, Arc::clone(&schema))?;
        Ok(Self { sink, schema, path: path.to_path_buf(), meta, counts: C::default() })
    }

    /// Why a sequence of `length` tokens with these ids cannot be in the file, if it cannot.
    pub(crate) fn refuse(&self, length: usize, ids: &[u32]) -> Option<String> {
        let TokenMeta { seq_len, vocab_size, .. } = self.meta;
        if length > seq_len {
            return Some(format!(
                "has {length} tokens, more than seq_len {seq_len}; cut it or raise seq_len"
            ));
        }
        let id = ids.iter().find(|&&id| id as usize >= vocab_size)?;
        Some(format!(
            "token id {id} is not below vocab_size {vocab_size}; the tokenizer and the vocabulary size do not match"
        ))
    }

    pub(crate) fn row_error(&self, row: u64, what: String) -> Error {
        Error::Row { path: self.path.clone(), row, what }
    }

    /// Writes columns of equally many rows as one row group.
    pub(crate) fn write_group(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns);
        let batch =
            batch.map_err(|e| Error::Parquet { path: self.path.clone(), what: e.to_string() })?;
        self.sink.write_group(&batch)
    }

    pub(crate) fn finish(self) -> Result<C> {
        let footer =
            Footer { format_version: FORMAT_VERSION, meta: self.meta, counts: self.counts };
        let json = serde_json::to_string(&footer).map_err(std::io::Error::from)?;
        self.sink.finish(Some(json))?;
        Ok(footer.counts)
    }
}

/// A file open for reading: the footer in memory, row groups on demand, from any thread.
#[derive(Debug, Clone)]
pub(crate) struct TokenSource<C> {
    parquet: ParquetSource,
    pub(crate) meta: TokenMeta,
    pub(crate) counts: C,
}

impl<C: DeserializeOwned> TokenSource<C> {
    /// Opens a file and checks its columns and its footer.
    pub(crate) fn open(path: &Path, layout: &Layout) -> Result<Self> {
        let parquet = ParquetSource::open(path)?;
        if let Some(column) = layout.missing_in(parquet.schema()) {
            let others = [&tokens::LAYOUT, &pairs::LAYOUT];
            let other = others.into_iter().find(|o| o.missing_in(parquet.schema()).is_none());
            let what = match other {
                Some(other) => format!("holds {}, not {}", other.rows, layout.rows),
                None => format!(
                    "no column `{}` of type {}; it has ({})",
                    column.name,
                    column.describe(),
                    parquet.describe_columns()
                ),
            };
            return Err(parquet.schema_error(what, layout.advice));
        }
        let Some(record) = parquet.record() else {
            let what = "no token metadata in its footer".to_owned();
            return Err(parquet.schema_error(what, layout.advice));
        };
        let footer: Footer<C> = parse_footer(&parquet, record, layout.advice)?;
        Ok(Self { parquet, meta: footer.meta, counts: footer.counts })
    }

    pub(crate) fn path(&self) -> &Path {
        self.parquet.path()
    }

    pub(crate) fn num_rows(&self) -> u64 {
        self.parquet.num_rows()
    }

    pub(crate) fn num_groups(&self) -> usize {
        self.parquet.num_groups()
    }

    pub(crate) fn group_rows(&self, group: usize) -> usize {
        self.parquet.group_rows(group)
    }

    /// Reads one row group: `take` gets a batch and a row of it at a time, and the row's number in the file.
    pub(crate) fn read_group(
        &self,
        group: usize,
        mut take: impl FnMut(&BatchColumns<'_>, usize, u64) -> Result<()>,
    ) -> Result<()> {
        let expected = self.group_rows(group);
        let first: u64 = (0..group).map(|g| self.group_rows(g) as u64).sum();
        let mut found = 0;
        for batch in self.parquet.batches(group, expected)? {
            let batch = batch?;
            let columns = BatchColumns { batch: &batch, path: self.path() };
            for at in 0..batch.num_rows() {
                take(&columns, at, first + found as u64)?;
                found += 1;
            }
        }
        if found != expected {
            let what = format!("row group {group} has {found} of {expected} rows");
            return Err(Error::Parquet { path: self.path().to_path_buf(), what });
        }
        Ok(())
    }

    pub(crate) fn row_error(&self, row: u64, what: impl Into<String>) -> Error {
        Error::Row { path: self.path().to_path_buf(), row, what: what.into() }
    }

    /// Refuses ids outside the vocabulary.
    pub(crate) fn check_ids(&self, row: u64, ids: &[i32]) -> Result<()> {
        let size = self.meta.vocab_size;
        match ids.iter().find(|&&id| id < 0 || id as usize >= size) {
            Some(id) => {
                Err(self.row_error(row, format!("token id {id} is not below vocab_size {size}")))
            }
            None => Ok(()),
        }
    }
}

/// The columns of a batch that is read, by name and type.
pub(crate) struct BatchColumns<'a> {
    batch: &'a RecordBatch,
    path: &'a Path,
}

impl BatchColumns<'_> {
    pub(crate) fn column<A: Array + 'static>(&self, name: &str) -> Result<&A> {
        let column = self.batch.column_by_name(name).ok_or_else(|| self.damaged())?;
        column.as_any().downcast_ref().ok_or_else(|| self.damaged())
    }

    /// The items of the list at row `at`; `None` where the list or one of its items is missing.
    pub(crate) fn list<A: Array + Clone + 'static>(
        &self,
        name: &str,
        at: usize,
    ) -> Result<Option<A>> {
        let lists: &ListArray = self.column(name)?;
        let items = lists.value(at);
        if lists.is_null(at) || items.null_count() > 0 {
            return Ok(None);
        }
        items.as_any().downcast_ref::<A>().cloned().map(Some).ok_or_else(|| self.damaged())
    }

    fn damaged(&self) -> Error {
        Error::Parquet {
            path: self.path.to_path_buf(),
            what: "its columns are not what its footer says".to_owned(),
        }
    }
}

fn parse_footer<C: DeserializeOwned>(
    source: &ParquetSource,
    record: &str,
    advice: &str,
) -> Result<Footer<C>> {
    let bad = |e: serde_json::Error| {
        source.schema_error(format!("token metadata in its footer cannot be read ({e})"), advice)
    };
    let value: serde_json::Value = serde_json::from_str(record).map_err(bad)?;
    let found = value.get("format_version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if found != FORMAT_VERSION {
        let path = source.path().to_path_buf();
        return Err(Error::FormatVersion { path, found, supported: FORMAT_VERSION });
    }
    serde_json::from_value(value).map_err(bad)
}

pub(crate) fn item(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new_list_field(kind, false))
}

/// A list column: row `r` holds the items `offsets[r]..offsets[r + 1]`.
pub(crate) fn list_column(items: ArrayRef, offsets: &[usize]) -> ArrayRef {
    let offsets: Vec<i32> = offsets.iter().map(|&at| at as i32).collect();
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Arc::new(ListArray::new(item(items.data_type().clone()), offsets, items, None))
}

/// Lists of token ids, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdLists {
    ids: Vec<i32>,
    /// Row `r` is `offsets[r]..offsets[r + 1]`; one more than there are rows, the first is 0.
    offsets: Vec<usize>,
}

impl IdLists {
    pub(crate) fn new() -> Self {
        Self { ids: Vec::new(), offsets: vec![0] }
    }

    pub(crate) fn push(&mut self, ids: impl IntoIterator<Item = i32>) {
        self.ids.extend(ids);
        self.offsets.push(self.ids.len());
    }

    pub(crate) fn row(&self, row: usize) -> &[i32] {
        &self.ids[self.offsets[row]..self.offsets[row + 1]]
    }

    pub(crate) fn num_ids(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn into_column(self) -> ArrayRef {
        list_column(Arc::new(Int32Array::from(self.ids)), &self.offsets)
    }
}
