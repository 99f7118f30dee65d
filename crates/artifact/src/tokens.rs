//! Token rows: one row is one document or one conversation as token ids, with a mask that says which
//! of them count in the loss.
//!
//! On disk it is Parquet with two columns, `input_ids: list<int32>` and `loss_mask: list<bool>`, zstd,
//! in row groups of about a million tokens, so that a reader needs memory for one group only. The
//! footer carries [`TokenMeta`] and [`TokenCounts`]. The same rows give the same bytes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Int32Array, ListArray, RecordBatch};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::columns::{INPUT_IDS, LOSS_MASK};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::FORMAT_VERSION;
use crate::parquet_file::{ParquetSink, ParquetSource};

/// A row group is cut after this many tokens ...
pub const GROUP_TOKENS: usize = 1 << 20;
/// ... or after this many rows, whichever comes first.
pub const GROUP_ROWS: usize = 8192;

const ADVICE: &str = "token rows are made by `data-prep`; give its data/<set>/<split>.parquet";

/// How the ids of a token file came about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMeta {
    /// The digest of the tokenizer that made the ids.
    pub tokenizer: Digest,
    /// Every id is below this.
    pub vocab_size: usize,
    /// No row is longer than this, in tokens.
    pub seq_len: usize,
    /// The digest of the chat template the rows were rendered with, if they were.
    pub chat_template: Option<Digest>,
}

/// What a token file holds in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenCounts {
    /// Rows.
    pub rows: u64,
    /// Tokens.
    pub tokens: u64,
    /// Tokens that count in the loss; the first of a row has nothing before it and never does.
    pub targets: u64,
    /// Tokens of the longest row.
    pub longest: u64,
}

#[derive(Serialize, Deserialize)]
struct Footer {
    format_version: u64,
    meta: TokenMeta,
    counts: TokenCounts,
}

/// Writes a token file; it appears under its name at [`finish`](Self::finish), whole.
pub struct TokenWriter {
    sink: ParquetSink,
    schema: SchemaRef,
    path: PathBuf,
    meta: TokenMeta,
    counts: TokenCounts,
    rows: TokenRows,
}

impl TokenWriter {
    /// Starts a file at `path`, making missing folders.
    ///
    /// # Errors
    /// If it cannot be made, or if `vocab_size` does not fit an `int32` id.
    pub fn create(path: impl AsRef<Path>, meta: TokenMeta) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let schema = schema();
        if i32::try_from(meta.vocab_size).is_err() {
            let what = format!("vocab_size {} does not fit 32-bit token ids", meta.vocab_size);
            return Err(Error::Schema {
                path,
                what,
                advice: "use a smaller vocabulary".to_owned(),
            });
        }
        let sink = ParquetSink::create(&path, Arc::clone(&schema))?;
        Ok(Self {
            sink,
            schema,
            path,
            meta,
            counts: TokenCounts::default(),
            rows: TokenRows::new(),
        })
    }

    /// Adds a row. `mask` is true where a token counts in the loss; `None` means everywhere.
    ///
    /// # Errors
    /// [`Error::Row`] for an empty row, a row longer than `seq_len`, an id not below `vocab_size`, or
    /// a mask of another length; and errors of the file system.
    pub fn write_row(&mut self, ids: &[u32], mask: Option<&[bool]>) -> Result<()> {
        self.check(ids, mask)?;
        self.rows.ids.extend(ids.iter().map(|&id| id as i32));
        match mask {
            Some(mask) => self.rows.mask.extend_from_slice(mask),
            None => self.rows.mask.resize(self.rows.ids.len(), true),
        }
        self.rows.offsets.push(self.rows.ids.len());
        let targets =
            mask.map_or(ids.len() - 1, |m| m[1..].iter().filter(|&&counts| counts).count());
        self.counts.rows += 1;
        self.counts.tokens += ids.len() as u64;
        self.counts.targets += targets as u64;
        self.counts.longest = self.counts.longest.max(ids.len() as u64);
        if self.rows.ids.len() >= GROUP_TOKENS || self.rows.len() >= GROUP_ROWS {
            self.write_group()?;
        }
        Ok(())
    }

    /// What has been written so far.
    pub fn counts(&self) -> TokenCounts {
        self.counts
    }

    /// Writes the footer and gives the file its name.
    ///
    /// # Errors
    /// Those of the file system; a file of that name from before is then unchanged.
    pub fn finish(mut self) -> Result<TokenCounts> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        let footer =
            Footer { format_version: FORMAT_VERSION, meta: self.meta, counts: self.counts };
        let json = serde_json::to_string(&footer).map_err(std::io::Error::from)?;
        self.sink.finish(Some(json))?;
        Ok(self.counts)
    }

    fn check(&self, ids: &[u32], mask: Option<&[bool]>) -> Result<()> {
        let fail = |what| Err(Error::Row { path: self.path.clone(), row: self.counts.rows, what });
        if ids.is_empty() {
            return fail("has no tokens".to_owned());
        }
        if ids.len() > self.meta.seq_len {
            let (n, max) = (ids.len(), self.meta.seq_len);
            return fail(format!(
                "has {n} tokens, more than seq_len {max}; cut it or raise seq_len"
            ));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.meta.vocab_size) {
            let size = self.meta.vocab_size;
            return fail(format!(
                "token id {id} is not below vocab_size {size}; the tokenizer and the vocabulary size do not match"
            ));
        }
        match mask {
            Some(mask) if mask.len() != ids.len() => fail(format!(
                "loss_mask has {} values for {} tokens; it needs one for each",
                mask.len(),
                ids.len()
            )),
            _ => Ok(()),
        }
    }

    fn write_group(&mut self) -> Result<()> {
        let rows = std::mem::replace(&mut self.rows, TokenRows::new());
        let offsets: Vec<i32> = rows.offsets.iter().map(|&at| at as i32).collect();
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let ids: ArrayRef = Arc::new(Int32Array::from(rows.ids));
        let mask: ArrayRef = Arc::new(BooleanArray::from(rows.mask));
        let ids = ListArray::new(item(DataType::Int32), offsets.clone(), ids, None);
        let mask = ListArray::new(item(DataType::Boolean), offsets, mask, None);
        let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(mask)];
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns);
        let batch =
            batch.map_err(|e| Error::Parquet { path: self.path.clone(), what: e.to_string() })?;
        self.sink.write_group(&batch)
    }
}

/// Rows of tokens, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRows {
    /// The ids of all rows.
    pub ids: Vec<i32>,
    /// For each id whether it counts in the loss.
    pub mask: Vec<bool>,
    /// Row `r` is `offsets[r]..offsets[r + 1]`; one more than there are rows, the first is 0.
    pub offsets: Vec<usize>,
}

impl TokenRows {
    fn new() -> Self {
        Self { ids: Vec::new(), mask: Vec::new(), offsets: vec![0] }
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids and the mask of one row.
    ///
    /// # Panics
    /// If `row` is not below [`len`](Self::len).
    pub fn row(&self, row: usize) -> (&[i32], &[bool]) {
        let range = self.offsets[row]..self.offsets[row + 1];
        (&self.ids[range.clone()], &self.mask[range])
    }
}

/// A token file open for reading: the footer in memory, row groups on demand, from any thread.
#[derive(Debug, Clone)]
pub struct TokenReader {
    source: ParquetSource,
    meta: TokenMeta,
    counts: TokenCounts,
}

impl TokenReader {
    /// Opens a file and checks its columns and its footer.
    ///
    /// # Errors
    /// If it cannot be read, is not (whole) Parquet, has other columns, or was not made by temper;
    /// each names the file and what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let source = ParquetSource::open(path.as_ref())?;
        for (name, kind) in [(INPUT_IDS, DataType::Int32), (LOSS_MASK, DataType::Boolean)] {
            let field = source.schema().field_with_name(name).ok();
            let fits = field.is_some_and(|field| match field.data_type() {
                DataType::List(item) => *item.data_type() == kind,
                _ => false,
            });
            if !fits {
                let kind = if kind == DataType::Int32 { "int32" } else { "bool" };
                let found = source.describe_columns();
                let what = format!("no column `{name}` of type list<{kind}>; it has ({found})");
                return Err(source.schema_error(what, ADVICE));
            }
        }
        let Some(record) = source.record() else {
            let what = "no token metadata in its footer".to_owned();
            return Err(source.schema_error(what, ADVICE));
        };
        let footer = parse_footer(&source, record)?;
        Ok(Self { source, meta: footer.meta, counts: footer.counts })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// How the ids came about.
    pub fn meta(&self) -> &TokenMeta {
        &self.meta
    }

    /// Rows, tokens and targets in all.
    pub fn counts(&self) -> TokenCounts {
        self.counts
    }

    /// How many rows.
    pub fn num_rows(&self) -> u64 {
        self.source.num_rows()
    }

    /// How many row groups.
    pub fn num_row_groups(&self) -> usize {
        self.source.num_groups()
    }

    /// How many rows a row group has, without reading it.
    ///
    /// # Panics
    /// If `group` is not below [`num_row_groups`](Self::num_row_groups).
    pub fn row_group_rows(&self, group: usize) -> usize {
        self.source.group_rows(group)
    }

    /// Reads one row group, checked: no missing values, ids within the vocabulary.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or holds a bad row; each names the file.
    ///
    /// # Panics
    /// If `group` is not below [`num_row_groups`](Self::num_row_groups).
    pub fn read_row_group(&self, group: usize) -> Result<TokenRows> {
        let expected = self.row_group_rows(group);
        let first: u64 = (0..group).map(|g| self.row_group_rows(g) as u64).sum();
        let mut rows = TokenRows::new();
        for batch in self.source.batches(group, expected)? {
            self.append(&batch?, first, &mut rows)?;
        }
        if rows.len() != expected {
            let what = format!("row group {group} has {} of {expected} rows", rows.len());
            return Err(Error::Parquet { path: self.path().to_path_buf(), what });
        }
        Ok(rows)
    }

    fn append(&self, batch: &RecordBatch, first: u64, rows: &mut TokenRows) -> Result<()> {
        let damaged = || Error::Parquet {
            path: self.path().to_path_buf(),
            what: "its columns are not what its footer says".to_owned(),
        };
        let list = |name| {
            let column = batch.column_by_name(name).ok_or_else(damaged)?;
            column.as_any().downcast_ref::<ListArray>().ok_or_else(damaged)
        };
        let (ids, mask) = (list(INPUT_IDS)?, list(LOSS_MASK)?);
        for at in 0..batch.num_rows() {
            let row = first + rows.len() as u64;
            let fail = |what| Error::Row { path: self.path().to_path_buf(), row, what };
            let (row_ids, row_mask) = (ids.value(at), mask.value(at));
            if ids.is_null(at)
                || mask.is_null(at)
                || row_ids.null_count() + row_mask.null_count() > 0
            {
                return Err(fail("has missing values".to_owned()));
            }
            let row_ids = row_ids.as_any().downcast_ref::<Int32Array>().ok_or_else(damaged)?;
            let row_mask = row_mask.as_any().downcast_ref::<BooleanArray>().ok_or_else(damaged)?;
            if row_ids.len() != row_mask.len() || row_ids.is_empty() {
                let (n, m) = (row_ids.len(), row_mask.len());
                return Err(fail(format!("has {n} input_ids and {m} loss_mask values")));
            }
            let size = self.meta.vocab_size;
            if let Some(id) = row_ids.values().iter().find(|&&id| id < 0 || id as usize >= size) {
                return Err(fail(format!("token id {id} is not below vocab_size {size}")));
            }
            rows.ids.extend_from_slice(row_ids.values());
            rows.mask.extend(row_mask.values().iter());
            rows.offsets.push(rows.ids.len());
        }
        Ok(())
    }
}

fn parse_footer(source: &ParquetSource, record: &str) -> Result<Footer> {
    let bad = |e: serde_json::Error| {
        source.schema_error(format!("token metadata in its footer cannot be read ({e})"), ADVICE)
    };
    let value: serde_json::Value = serde_json::from_str(record).map_err(bad)?;
    let found = value.get("format_version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if found != FORMAT_VERSION {
        let path = source.path().to_path_buf();
        return Err(Error::FormatVersion { path, found, supported: FORMAT_VERSION });
    }
    serde_json::from_value(value).map_err(bad)
}

fn item(kind: DataType) -> Arc<Field> {
    Arc::new(Field::new_list_field(kind, false))
}

fn schema() -> SchemaRef {
    let list = |name: &str, kind| Field::new(name, DataType::List(item(kind)), false);
    Arc::new(Schema::new(vec![
        list(INPUT_IDS, DataType::Int32),
        list(LOSS_MASK, DataType::Boolean),
    ]))
}

#[cfg(test)]
#[path = "tokens/tests.rs"]
mod tests;
