//! Rows of token ids in a shuffled order that can be left and taken up again exactly: token rows
//! ([`TokenDataset`]) or pairs ([`PairDataset`]).
//!
//! The order of an epoch is a pure function of (seed, epoch): row groups are permuted and cut into
//! windows of [`WINDOW_GROUPS`]; one window is decoded at a time and its rows are permuted. Memory is
//! one window (about 8 million tokens, 5 bytes each, by default), whatever the size of the data. The
//! [`Cursor`] of the next row is all there is to save.

mod source;
#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};

use artifact::pairs::PairReader;
use artifact::tokens::{TokenMeta, TokenReader};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use source::{AnyRow, PairRow, Row, RowSource, Totals};

/// Row groups that are decoded and shuffled together.
pub const WINDOW_GROUPS: usize = 8;

/// Why token data cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// A file is missing, damaged or of another kind.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// No file was given.
    #[error("no {rows} files given; name at least one data/<set>/train.parquet")]
    NoFiles {
        /// What the files hold rows of: `token` or `pair`.
        rows: &'static str,
    },
    /// The files have no rows.
    #[error("{}: no {rows} rows; the data set is empty: check what data-prep dropped and why", path.display())]
    Empty {
        /// The first file.
        path: PathBuf,
        /// As above.
        rows: &'static str,
    },
    /// Two files were made with different tokenizers or chat templates.
    #[error("{}: made with another {what} than {}; tokenise both with the same one", path.display(), other.display())]
    Mixed {
        /// The file that differs.
        path: PathBuf,
        /// The first file.
        other: PathBuf,
        /// `tokenizer` or `chat template`.
        what: &'static str,
    },
    /// A cursor points outside the data.
    #[error(
        "the data position {cursor:?} is outside the data ({windows} windows an epoch); the data has changed since the checkpoint was made"
    )]
    Cursor {
        /// The position.
        cursor: Cursor,
        /// Windows in an epoch.
        windows: u64,
    },
}

/// Where the next row is: all that a checkpoint needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Passes over the data that are finished.
    pub epoch: u64,
    /// Windows of this epoch that are finished.
    pub window: u64,
    /// Rows of this window that have been given out.
    pub row: u64,
}

/// In which order rows come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Another order each epoch, from a seed.
    Shuffled {
        /// The seed.
        seed: u64,
    },
    /// As written: for evaluation.
    Sequential,
}

/// The rows of one or more files of one kind. See the module's text.
pub struct Dataset<S: RowSource> {
    readers: Vec<S>,
    groups: Vec<(usize, usize)>,
    order: Order,
    epochs: Option<u64>,
    window_groups: usize,
    together: bool,
    cursor: Cursor,
    loaded: Option<Window<S>>,
}

/// Documents and conversations.
pub type TokenDataset = Dataset<TokenReader>;

/// Pairs of responses to one prompt.
pub type PairDataset = Dataset<PairReader>;

/// A decoded window with the order of its rows.
struct Window<S: RowSource> {
    epoch: u64,
    index: u64,
    parts: Vec<S::Group>,
    order: Vec<(u32, u32)>,
}

impl<S: RowSource> Dataset<S> {
    /// Opens files, shuffled with `seed`, endlessly repeated.
    pub fn open<P: AsRef<Path>>(paths: &[P], seed: u64) -> Result<Self, DatasetError> {
        Self::with_order(paths, Order::Shuffled { seed }, None)
    }

    /// Opens files for one pass in the order they were written.
    pub fn sequential<P: AsRef<Path>>(paths: &[P]) -> Result<Self, DatasetError> {
        Self::with_order(paths, Order::Sequential, Some(1))
    }

    /// Opens files. `epochs` absent: without end.
    pub fn with_order<P: AsRef<Path>>(
        paths: &[P],
        order: Order,
        epochs: Option<u64>,
    ) -> Result<Self, DatasetError> {
        let open = |path: &P| S::open(path.as_ref());
        let readers: Vec<S> = paths.iter().map(open).collect::<Result<_, _>>()?;
        let first = readers.first().ok_or(DatasetError::NoFiles { rows: S::ROWS })?;
        for reader in &readers[1..] {
            let mixed = |what| DatasetError::Mixed {
                path: reader.path().to_owned(),
                other: first.path().to_owned(),
                what,
            };
            if reader.meta().tokenizer != first.meta().tokenizer {
                return Err(mixed("tokenizer"));
            }
            let templates = (&reader.meta().chat_template, &first.meta().chat_template);
            if let (Some(a), Some(b)) = templates
                && a != b
            {
                return Err(mixed("chat template"));
            }
        }
        let groups: Vec<(usize, usize)> = readers
            .iter()
            .enumerate()
            .flat_map(|(file, reader)| (0..reader.num_row_groups()).map(move |group| (file, group)))
            .collect();
        if readers.iter().all(|reader| reader.totals().rows == 0) {
            return Err(DatasetError::Empty { path: first.path().to_owned(), rows: S::ROWS });
        }
        Ok(Self {
            readers,
            groups,
            order,
            epochs,
            window_groups: WINDOW_GROUPS,
            together: false,
            cursor: Cursor::default(),
            loaded: None,
        })
    }

    /// The same data with windows of another number of row groups (at least 1).
    #[must_use]
    pub fn with_window_groups(mut self, groups: usize) -> Self {
        self.window_groups = groups.max(1);
        self.loaded = None;
        self
    }

    /// The same data, of which pairs of one prompt that follow one another stay together and in their order. A row group's end
    /// parts them.
    #[must_use]
    pub fn with_prompts_together(mut self, together: bool) -> Self {
        self.loaded = self.loaded.filter(|_| self.together == together);
        self.together = together;
        self
    }

    /// The same data, ending after `epochs` passes; `None`: without end.
    #[must_use]
    pub fn with_epochs(mut self, epochs: Option<u64>) -> Self {
        self.epochs = epochs;
        self
    }

    /// A second reader of the same data from the beginning.
    #[must_use]
    pub fn restarted(&self) -> Self {
        Self {
            readers: self.readers.clone(),
            groups: self.groups.clone(),
            order: self.order,
            epochs: self.epochs,
            window_groups: self.window_groups,
            together: self.together,
            cursor: Cursor::default(),
            loaded: None,
        }
    }

    /// Rows in one epoch.
    pub fn num_rows(&self) -> u64 {
        self.readers.iter().map(|reader| reader.totals().rows).sum()
    }

    /// Tokens in one epoch; the prompt of a pair counts once.
    pub fn tokens_per_epoch(&self) -> u64 {
        self.readers.iter().map(|reader| reader.totals().tokens).sum()
    }

    /// What the loss is a mean over in one epoch: tokens that count in it, or pairs.
    pub fn targets_per_epoch(&self) -> u64 {
        self.readers.iter().map(|reader| reader.totals().targets).sum()
    }

    /// Tokens of the longest sequence: a row, or the prompt of a pair with one of its responses.
    pub fn longest_row(&self) -> u64 {
        self.readers.iter().map(|reader| reader.totals().longest).max().unwrap_or(0)
    }

    /// The metadata of the first file; all files share tokenizer and chat template.
    pub fn meta(&self) -> &TokenMeta {
        self.readers[0].meta()
    }

    /// After how many passes the data ends.
    pub fn epochs(&self) -> Option<u64> {
        self.epochs
    }

    /// The position of the next row.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes to a position that [`Self::cursor`] gave.
    pub fn seek(&mut self, cursor: Cursor) -> Result<(), DatasetError> {
        let windows = self.windows();
        let outside = DatasetError::Cursor { cursor, windows };
        if cursor.window >= windows {
            return Err(outside);
        }
        let rows = self.load(cursor.epoch, cursor.window)?.order.len() as u64;
        if cursor.row > rows {
            return Err(outside);
        }
        self.cursor = cursor;
        Ok(())
    }

    /// The next row; `None` after the last epoch.
    pub fn next_row(&mut self) -> Result<Option<S::Row>, DatasetError> {
        loop {
            if self.epochs.is_some_and(|epochs| self.cursor.epoch >= epochs) {
                return Ok(None);
            }
            let Cursor { epoch, window, row } = self.cursor;
            let loaded = self.load(epoch, window)?;
            if let Some(&(part, index)) = loaded.order.get(row as usize) {
                let found = S::row(&loaded.parts[part as usize], index as usize);
                self.cursor.row += 1;
                return Ok(Some(found));
            }
            self.cursor = if window + 1 < self.windows() {
                Cursor { epoch, window: window + 1, row: 0 }
            } else {
                Cursor { epoch: epoch + 1, window: 0, row: 0 }
            };
        }
    }

    fn windows(&self) -> u64 {
        self.groups.len().div_ceil(self.window_groups) as u64
    }

    /// The groups of a window in their order for this epoch.
    fn window_groups_of(&self, epoch: u64, window: u64) -> Vec<(usize, usize)> {
        let mut groups = self.groups.clone();
        if let Order::Shuffled { seed } = self.order {
            shuffle(&mut groups, [seed, epoch, 0, 1]);
        }
        let start = window as usize * self.window_groups;
        groups[start..groups.len().min(start + self.window_groups)].to_vec()
    }

    fn load(&mut self, epoch: u64, window: u64) -> Result<&Window<S>, DatasetError> {
        let current = |w: &Window<S>| w.epoch == epoch && w.index == window;
        // Another window goes first, so that only one is held.
        let loaded = match self.loaded.take().filter(current) {
            Some(loaded) => loaded,
            None => self.decode(epoch, window)?,
        };
        Ok(self.loaded.insert(loaded))
    }

    fn decode(&self, epoch: u64, window: u64) -> Result<Window<S>, DatasetError> {
        let mut parts = Vec::new();
        let mut order = Vec::new();
        for (file, group) in self.window_groups_of(epoch, window) {
            let rows = self.readers[file].read_row_group(group)?;
            let part = parts.len() as u32;
            order.extend((0..S::num_rows(&rows) as u32).map(|row| (part, row)));
            parts.push(rows);
        }
        if let Order::Shuffled { seed } = self.order {
            let key = [seed, epoch, window, 2];
            if self.together {
                let mut prompts: Vec<&[(u32, u32)]> = order
                    .chunk_by(|one, next| {
                        one.0 == next.0 && S::continues(&parts[next.0 as usize], next.1 as usize)
                    })
                    .collect();
                shuffle(&mut prompts, key);
                order = prompts.concat();
            } else {
                shuffle(&mut order, key);
            }
        }
        Ok(Window { epoch, index: window, parts, order })
    }
}

/// Fisher-Yates with `ChaCha8` keyed by four numbers. Written out, because the order is part of what a
/// checkpoint relies on and must not change with a library's version.
pub fn shuffle<T>(items: &mut [T], key: [u64; 4]) {
    let mut seed = [0; 32];
    for (bytes, word) in seed.chunks_exact_mut(8).zip(key) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut random = ChaCha8Rng::from_seed(seed);
    for last in (1..items.len()).rev() {
        let scaled = u128::from(random.next_u64()) * (last as u128 + 1);
        items.swap(last, (scaled >> 64) as usize);
    }
}
