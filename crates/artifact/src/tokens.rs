//! Token rows: one row is one document or one conversation as token ids, with a mask that says which
//! of them count in the loss.
//!
//! On disk it is Parquet with two columns, `input_ids: list<int32>` and `loss_mask: list<bool>`, zstd,
//! in row groups of about a million tokens, so that a reader needs memory for one group only. The
//! footer carries [`TokenMeta`] and [`TokenCounts`]. The same rows give the same bytes.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{BooleanArray, Int32Array};
use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};

use crate::columns::{INPUT_IDS, LOSS_MASK};
use crate::digest::Digest;
use crate::error::Result;
use crate::token_file::{
    ColumnSpec, GROUP_ROWS, GROUP_TOKENS, Layout, TokenSink, TokenSource, list_column,
};

pub(crate) const LAYOUT: Layout = Layout {
    rows: "token rows",
    columns: &[
        ColumnSpec::list(INPUT_IDS, DataType::Int32),
        ColumnSpec::list(LOSS_MASK, DataType::Boolean),
    ],
    advice: "token rows are made by `data-prep`; give its data/<set>/<split>.parquet",
};

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

/// Writes a token file; it appears under its name at [`finish`](Self::finish), whole.
pub struct TokenWriter {
    sink: TokenSink<TokenCounts>,
    rows: TokenRows,
}

impl TokenWriter {
    /// Starts a file at `path`, making missing folders.
    ///
    /// # Errors
    /// If it cannot be made, or if `vocab_size` does not fit an `int32` id.
    pub fn create(path: impl AsRef<Path>, meta: TokenMeta) -> Result<Self> {
        let sink = TokenSink::create(path.as_ref(), &LAYOUT, meta)?;
        Ok(Self { sink, rows: TokenRows::new() })
    }

    /// Adds a row. `mask` is true where a token counts in the loss; `None` means everywhere.
    ///
    /// # Errors
    /// [`Error::Row`](crate::Error::Row) for an empty row, a row longer than `seq_len`, an id not below
    /// `vocab_size`, or a mask of another length; and errors of the file system.
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
        let counts = &mut self.sink.counts;
        counts.rows += 1;
        counts.tokens += ids.len() as u64;
        counts.targets += targets as u64;
        counts.longest = counts.longest.max(ids.len() as u64);
        if self.rows.ids.len() >= GROUP_TOKENS || self.rows.len() >= GROUP_ROWS {
            self.write_group()?;
        }
        Ok(())
    }

    /// What has been written so far.
    pub fn counts(&self) -> TokenCounts {
        self.sink.counts
    }

    /// Writes the footer and gives the file its name.
    ///
    /// # Errors
    /// Those of the file system; a file of that name from before is then unchanged.
    pub fn finish(mut self) -> Result<TokenCounts> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        self.sink.finish()
    }

    fn check(&self, ids: &[u32], mask: Option<&[bool]>) -> Result<()> {
        let fail = |what| Err(self.sink.row_error(self.sink.counts.rows, what));
        if ids.is_empty() {
            return fail("has no tokens".to_owned());
        }
        if let Some(what) = self.sink.refuse(ids.len(), ids) {
            return fail(what);
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
        let TokenRows { ids, mask, offsets } = std::mem::replace(&mut self.rows, TokenRows::new());
        let ids = list_column(Arc::new(Int32Array::from(ids)), &offsets);
        let mask = list_column(Arc::new(BooleanArray::from(mask)), &offsets);
        self.sink.write_group(vec![ids, mask])
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
pub struct TokenReader(TokenSource<TokenCounts>);

impl TokenReader {
    /// Opens a file and checks its columns and its footer.
    ///
    /// # Errors
    /// If it cannot be read, is not (whole) Parquet, has other columns, or was not made by temper;
    /// each names the file and what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self(TokenSource::open(path.as_ref(), &LAYOUT)?))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// How the ids came about.
    pub fn meta(&self) -> &TokenMeta {
        &self.0.meta
    }

    /// Rows, tokens and targets in all.
    pub fn counts(&self) -> TokenCounts {
        self.0.counts
    }

    /// How many rows.
    pub fn num_rows(&self) -> u64 {
        self.0.num_rows()
    }

    /// How many row groups.
    pub fn num_row_groups(&self) -> usize {
        self.0.num_groups()
    }

    /// How many rows a row group has, without reading it.
    ///
    /// # Panics
    /// If `group` is not below [`num_row_groups`](Self::num_row_groups).
    pub fn row_group_rows(&self, group: usize) -> usize {
        self.0.group_rows(group)
    }

    /// Reads one row group, checked: no missing values, ids within the vocabulary.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or holds a bad row; each names the file.
    ///
    /// # Panics
    /// If `group` is not below [`num_row_groups`](Self::num_row_groups).
    pub fn read_row_group(&self, group: usize) -> Result<TokenRows> {
        let mut rows = TokenRows::new();
        self.0.read_group(group, |columns, at, row| {
            let ids = columns.list::<Int32Array>(INPUT_IDS, at)?;
            let mask = columns.list::<BooleanArray>(LOSS_MASK, at)?;
            let Some((ids, mask)) = ids.zip(mask) else {
                return Err(self.0.row_error(row, "has missing values"));
            };
            if ids.len() != mask.len() || ids.is_empty() {
                let (n, m) = (ids.len(), mask.len());
                let what = format!("has {n} input_ids and {m} loss_mask values");
                return Err(self.0.row_error(row, what));
            }
            self.0.check_ids(row, ids.values())?;
            rows.ids.extend_from_slice(ids.values());
            rows.mask.extend(mask.values().iter());
            rows.offsets.push(rows.ids.len());
            Ok(())
        })?;
        Ok(rows)
    }
}

#[cfg(test)]
#[path = "tokens/tests.rs"]
mod tests;
