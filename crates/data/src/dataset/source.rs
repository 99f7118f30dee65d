//! The kinds of row that a data set can be of.

use std::path::Path;

use artifact::pairs::{PairReader, PairRows};
use artifact::tokens::{TokenMeta, TokenReader, TokenRows};

/// A file of rows of one kind, read a row group at a time.
pub trait RowSource: Clone {
    /// One row.
    type Row: AnyRow;
    /// A decoded row group.
    type Group;
    /// What the rows are called in messages: `token` for token rows.
    const ROWS: &'static str;

    /// Opens a file.
    ///
    /// # Errors
    /// If it cannot be read or is of another kind.
    fn open(path: &Path) -> artifact::Result<Self>;

    /// The file.
    fn path(&self) -> &Path;

    /// How its ids came about.
    fn meta(&self) -> &TokenMeta;

    /// What it holds in all.
    fn totals(&self) -> Totals;

    /// How many row groups it has.
    fn num_row_groups(&self) -> usize;

    /// Decodes a row group.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    fn read_row_group(&self, group: usize) -> artifact::Result<Self::Group>;

    /// How many rows a decoded row group has.
    fn num_rows(group: &Self::Group) -> usize;

    /// One row of it; `index` is below [`num_rows`](Self::num_rows).
    fn row(group: &Self::Group, index: usize) -> Self::Row;

    /// Whether row `index`, which is not the first, is another pair of the prompt before it.
    fn continues(_group: &Self::Group, _index: usize) -> bool {
        false
    }
}

/// What a file holds in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Rows.
    pub rows: u64,
    /// Tokens.
    pub tokens: u64,
    /// What the loss is a mean over.
    pub targets: u64,
    /// Tokens of the longest sequence.
    pub longest: u64,
}

/// What every row has, whatever its kind.
pub trait AnyRow {
    /// Tokens that a batch has for it.
    fn num_tokens(&self) -> usize;

    /// Whether there is anything to predict in it.
    fn has_targets(&self) -> bool;

    /// Whether both are pairs of one prompt.
    fn shares_prompt(&self, _other: &Self) -> bool {
        false
    }
}

/// One token row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Token ids.
    pub ids: Vec<i32>,
    /// For each id whether it counts in the loss.
    pub mask: Vec<bool>,
}

impl AnyRow for Row {
    fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    fn has_targets(&self) -> bool {
        self.mask.iter().skip(1).any(|counts| *counts)
    }
}

impl RowSource for TokenReader {
    type Row = Row;
    type Group = TokenRows;
    const ROWS: &'static str = "token";

    fn open(path: &Path) -> artifact::Result<Self> {
        Self::open(path)
    }

    fn path(&self) -> &Path {
        self.path()
    }

    fn meta(&self) -> &TokenMeta {
        self.meta()
    }

    fn totals(&self) -> Totals {
        let counts = self.counts();
        Totals {
            rows: self.num_rows(),
            tokens: counts.tokens,
            targets: counts.targets,
            longest: counts.longest,
        }
    }

    fn num_row_groups(&self) -> usize {
        self.num_row_groups()
    }

    fn read_row_group(&self, group: usize) -> artifact::Result<TokenRows> {
        self.read_row_group(group)
    }

    fn num_rows(group: &TokenRows) -> usize {
        group.len()
    }

    fn row(group: &TokenRows, index: usize) -> Row {
        let (ids, mask) = group.row(index);
        Row { ids: ids.to_vec(), mask: mask.to_vec() }
    }
}

/// One pair: a prompt with two responses, the preferred one called chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct PairRow {
    /// What both responses follow; may be empty.
    pub prompt: Vec<i32>,
    /// The preferred response, without the prompt; not empty.
    pub chosen: Vec<i32>,
    /// The other response, likewise.
    pub rejected: Vec<i32>,
    /// By how much the chosen one is preferred.
    pub margin: Option<f32>,
    /// How likely it is that the chosen one is the better, from 0 to 1; absent: certain.
    pub probability: Option<f32>,
    /// The kind of task.
    pub task: Option<String>,
}

impl AnyRow for PairRow {
    /// Of the prompt, once, and both responses.
    fn num_tokens(&self) -> usize {
        self.prompt.len() + self.chosen.len() + self.rejected.len()
    }

    fn has_targets(&self) -> bool {
        true
    }

    fn shares_prompt(&self, other: &Self) -> bool {
        self.prompt == other.prompt
    }
}

impl RowSource for PairReader {
    type Row = PairRow;
    type Group = PairRows;
    const ROWS: &'static str = "pair";

    fn open(path: &Path) -> artifact::Result<Self> {
        Self::open(path)
    }

    fn path(&self) -> &Path {
        self.path()
    }

    fn meta(&self) -> &TokenMeta {
        self.meta()
    }

    /// A pair is one target.
    fn totals(&self) -> Totals {
        let (rows, counts) = (self.num_rows(), self.counts());
        Totals { rows, tokens: counts.tokens, targets: rows, longest: counts.longest }
    }

    fn num_row_groups(&self) -> usize {
        self.num_row_groups()
    }

    fn read_row_group(&self, group: usize) -> artifact::Result<PairRows> {
        self.read_row_group(group)
    }

    fn num_rows(group: &PairRows) -> usize {
        group.len()
    }

    fn row(group: &PairRows, index: usize) -> PairRow {
        let row = group.row(index);
        PairRow {
            prompt: row.prompt.to_vec(),
            chosen: row.chosen.to_vec(),
            rejected: row.rejected.to_vec(),
            margin: row.margin,
            probability: row.probability,
            task: row.task.map(str::to_owned),
        }
    }

    fn continues(group: &PairRows, index: usize) -> bool {
        group.row(index).prompt == group.row(index - 1).prompt
    }
}
