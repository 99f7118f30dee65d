//! Pair rows: one row is a prompt with two responses as token ids, the preferred one called chosen.
//!
//! On disk it is Parquet like that of [`tokens`](crate::tokens), with the columns
//! `prompt_ids, chosen_ids, rejected_ids: list<int32>` and, where known, `margin: float32`,
//! `probability: float32` and `task: utf8`. The two sequences of a row are prompt and chosen, prompt and
//! rejected: the prompt may be empty, a response is not. The same rows give the same bytes.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float32Array, Int32Array, StringArray};
use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};

use crate::columns::{CHOSEN_IDS, MARGIN, PROBABILITY, PROMPT_IDS, REJECTED_IDS, TASK};
use crate::error::Result;
use crate::token_file::{
    ColumnSpec, GROUP_ROWS, GROUP_TOKENS, IdLists, Layout, TokenSink, TokenSource,
};
use crate::tokens::TokenMeta;

pub(crate) const LAYOUT: Layout = Layout {
    rows: "pair rows",
    columns: &[
        ColumnSpec::list(PROMPT_IDS, DataType::Int32),
        ColumnSpec::list(CHOSEN_IDS, DataType::Int32),
        ColumnSpec::list(REJECTED_IDS, DataType::Int32),
        ColumnSpec::optional(MARGIN, DataType::Float32),
        ColumnSpec::optional(PROBABILITY, DataType::Float32),
        ColumnSpec::optional(TASK, DataType::Utf8),
    ],
    advice: "pair rows are made by `data-prep` from a data set of kind = \"preference\"; \
             give its data/<set>/<split>.parquet",
};

/// What a pair file holds in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PairCounts {
    /// Pairs.
    pub rows: u64,
    /// Tokens of prompts, chosen and rejected responses; a prompt counts once.
    pub tokens: u64,
    /// Tokens of the longest sequence: a prompt with one of its responses.
    pub longest: u64,
}

/// One pair; `Id` is `u32` when written and `i32` when read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairRow<'a, Id> {
    /// What both responses follow.
    pub prompt: &'a [Id],
    /// The preferred response, without the prompt.
    pub chosen: &'a [Id],
    /// The other response, without the prompt.
    pub rejected: &'a [Id],
    /// By how much the chosen one is preferred; finite.
    pub margin: Option<f32>,
    /// How likely it is that the chosen one is the better, from 0 to 1; absent: certain.
    pub probability: Option<f32>,
    /// The kind of task.
    pub task: Option<&'a str>,
}

impl<Id> PairRow<'_, Id> {
    /// Tokens of the row, the prompt counted once.
    pub fn num_tokens(&self) -> usize {
        self.prompt.len() + self.chosen.len() + self.rejected.len()
    }

    /// Tokens of its longer sequence.
    pub fn longest(&self) -> usize {
        self.prompt.len() + self.chosen.len().max(self.rejected.len())
    }

    /// Why its responses or its numbers cannot be right, if they cannot.
    fn fault(&self) -> Option<String> {
        for (name, ids) in [(CHOSEN_IDS, self.chosen), (REJECTED_IDS, self.rejected)] {
            if ids.is_empty() {
                return Some(format!("has no {name}; leave out pairs with an empty response"));
            }
        }
        if let Some(margin) = self.margin.filter(|margin| !margin.is_finite()) {
            return Some(format!("margin {margin} is not a finite number"));
        }
        let outside = |p: &f32| !(0.0..=1.0).contains(p);
        let probability = self.probability.filter(outside)?;
        Some(format!("probability {probability} is not from 0 to 1"))
    }
}

/// Writes a pair file; it appears under its name at [`finish`](Self::finish), whole.
pub struct PairWriter {
    sink: TokenSink<PairCounts>,
    rows: PairRows,
}

impl PairWriter {
    /// Starts a file at `path`, making missing folders. `seq_len` of the metadata bounds a prompt
    /// with one of its responses.
    ///
    /// # Errors
    /// If it cannot be made, or if `vocab_size` does not fit an `int32` id.
    pub fn create(path: impl AsRef<Path>, meta: TokenMeta) -> Result<Self> {
        let sink = TokenSink::create(path.as_ref(), &LAYOUT, meta)?;
        Ok(Self { sink, rows: PairRows::new() })
    }

    /// Adds a pair.
    ///
    /// # Errors
    /// [`Error::Row`](crate::Error::Row) for an empty response, a prompt and response of more than
    /// `seq_len` tokens, an id not below `vocab_size`, a margin that is not finite, or a probability
    /// outside 0 to 1; and errors of the file system.
    pub fn write_row(&mut self, row: &PairRow<'_, u32>) -> Result<()> {
        let parts = [row.prompt, row.chosen, row.rejected];
        let longest = row.longest();
        let refused = || parts.iter().find_map(|ids| self.sink.refuse(longest, ids));
        if let Some(what) = row.fault().or_else(refused) {
            return Err(self.sink.row_error(self.sink.counts.rows, what));
        }
        self.rows.push(row, |&id| id as i32);
        let counts = &mut self.sink.counts;
        counts.rows += 1;
        counts.tokens += row.num_tokens() as u64;
        counts.longest = counts.longest.max(longest as u64);
        if self.rows.num_ids() >= GROUP_TOKENS || self.rows.len() >= GROUP_ROWS {
            self.write_group()?;
        }
        Ok(())
    }

    /// What has been written so far.
    pub fn counts(&self) -> PairCounts {
        self.sink.counts
    }

    /// Writes the footer and gives the file its name.
    ///
    /// # Errors
    /// Those of the file system; a file of that name from before is then unchanged.
    pub fn finish(mut self) -> Result<PairCounts> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        self.sink.finish()
    }

    fn write_group(&mut self) -> Result<()> {
        let rows = std::mem::replace(&mut self.rows, PairRows::new());
        let [prompt, chosen, rejected] = rows.parts.map(IdLists::into_column);
        let margins: ArrayRef = Arc::new(Float32Array::from(rows.margins));
        let probabilities: ArrayRef = Arc::new(Float32Array::from(rows.probabilities));
        let tasks: ArrayRef = Arc::new(StringArray::from(rows.tasks));
        self.sink.write_group(vec![prompt, chosen, rejected, margins, probabilities, tasks])
    }
}

/// Pairs, one after another.
#[derive(Debug, Clone, PartialEq)]
pub struct PairRows {
    /// Prompts, chosen and rejected responses.
    parts: [IdLists; 3],
    margins: Vec<Option<f32>>,
    probabilities: Vec<Option<f32>>,
    tasks: Vec<Option<String>>,
}

impl PairRows {
    fn new() -> Self {
        Self {
            parts: [IdLists::new(), IdLists::new(), IdLists::new()],
            margins: Vec::new(),
            probabilities: Vec::new(),
            tasks: Vec::new(),
        }
    }

    fn push<Id>(&mut self, row: &PairRow<'_, Id>, id: impl Fn(&Id) -> i32) {
        let [prompt, chosen, rejected] = &mut self.parts;
        prompt.push(row.prompt.iter().map(&id));
        chosen.push(row.chosen.iter().map(&id));
        rejected.push(row.rejected.iter().map(&id));
        self.margins.push(row.margin);
        self.probabilities.push(row.probability);
        self.tasks.push(row.task.map(str::to_owned));
    }

    fn num_ids(&self) -> usize {
        self.parts.iter().map(IdLists::num_ids).sum()
    }

    /// How many pairs.
    pub fn len(&self) -> usize {
        self.margins.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One pair.
    ///
    /// # Panics
    /// If `row` is not below [`len`](Self::len).
    pub fn row(&self, row: usize) -> PairRow<'_, i32> {
        let [prompt, chosen, rejected] = &self.parts;
        PairRow {
            prompt: prompt.row(row),
            chosen: chosen.row(row),
            rejected: rejected.row(row),
            margin: self.margins[row],
            probability: self.probabilities[row],
            task: self.tasks[row].as_deref(),
        }
    }
}

/// A pair file open for reading: the footer in memory, row groups on demand, from any thread.
#[derive(Debug, Clone)]
pub struct PairReader(TokenSource<PairCounts>);

impl PairReader {
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

    /// Pairs and tokens in all.
    pub fn counts(&self) -> PairCounts {
        self.0.counts
    }

    /// How many pairs.
    pub fn num_rows(&self) -> u64 {
        self.0.num_rows()
    }

    /// How many row groups.
    pub fn num_row_groups(&self) -> usize {
        self.0.num_groups()
    }

    /// How many pairs a row group has, without reading it.
    ///
    /// # Panics
    /// If `group` is not below [`num_row_groups`](Self::num_row_groups).
    pub fn row_group_rows(&self, group: usize) -> usize {
        self.0.group_rows(group)
    }

    /// Reads one row group, checked as it was when written.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or holds a bad row; each names the file.
    ///
    /// # Panics
    /// If `group` is not below [`num_row_groups`](Self::num_row_groups).
    pub fn read_row_group(&self, group: usize) -> Result<PairRows> {
        let mut rows = PairRows::new();
        self.0.read_group(group, |columns, at, row| {
            let lists = [PROMPT_IDS, CHOSEN_IDS, REJECTED_IDS]
                .map(|name| columns.list::<Int32Array>(name, at).transpose());
            let [Some(prompt), Some(chosen), Some(rejected)] = lists else {
                return Err(self.0.row_error(row, "has missing values"));
            };
            let (prompt, chosen, rejected) = (prompt?, chosen?, rejected?);
            let number = |name| -> Result<_> {
                let column: &Float32Array = columns.column(name)?;
                Ok((!column.is_null(at)).then(|| column.value(at)))
            };
            let tasks: &StringArray = columns.column(TASK)?;
            let pair = PairRow {
                prompt: prompt.values(),
                chosen: chosen.values(),
                rejected: rejected.values(),
                margin: number(MARGIN)?,
                probability: number(PROBABILITY)?,
                task: (!tasks.is_null(at)).then(|| tasks.value(at)),
            };
            if let Some(what) = pair.fault() {
                return Err(self.0.row_error(row, what));
            }
            for ids in [pair.prompt, pair.chosen, pair.rejected] {
                self.0.check_ids(row, ids)?;
            }
            rows.push(&pair, |&id| id);
            Ok(())
        })?;
        Ok(rows)
    }
}

#[cfg(test)]
#[path = "pairs/tests.rs"]
mod tests;
