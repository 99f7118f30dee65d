//! Flat, padding-free batches.
//!
//! An optimiser step takes rows from the data set, as many as its [`BatchSize`] says, and lays them
//! out as micro-batches. What a micro-batch is depends on the rows: token rows become a [`FlatBatch`],
//! one flat row of tokens with document starts, positions that begin at 0 in every document, and the
//! list of tokens to predict; pairs become a [`PairBatch`], in which a prompt stands once. Which rows are in a step depends on the data
//! set and the size alone; `micro_batch_tokens` only decides how they are divided, so the summed loss
//! over the step is the same for every value of it.
//!
//! Rows are never cut: a row longer than the step's tokens is a step of its own, and one longer than
//! `micro_batch_tokens` is a micro-batch of its own. Rows without anything to predict are passed over.

mod branches;
mod pairs;
#[cfg(test)]
mod tests;

use artifact::tokens::TokenReader;
use serde::{Deserialize, Serialize};

pub use self::branches::Branches;
pub use self::pairs::PairBatch;
use crate::dataset::{AnyRow as _, Cursor, Dataset, DatasetError, Row, RowSource};

/// How much data one optimiser step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchSize {
    /// As many rows as fit into this many tokens, at least one. The prompt of a pair counts once.
    Tokens(usize),
    /// This many rows: documents, conversations or pairs.
    Sequences(usize),
    /// All pairs of this many prompts, where those of a prompt follow one another in the data, as a ranking's do.
    Prompts(usize),
}

/// How steps are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchConfig {
    /// The size of an optimiser step.
    pub size: BatchSize,
    /// The most tokens in one forward pass (more only for a single longer row).
    pub micro_batch_tokens: usize,
}

/// What a batch is made of.
pub type RowOf<B> = <<B as Batch>::Source as RowSource>::Row;

/// A micro-batch of rows of one kind.
pub trait Batch: Sized {
    /// Where its rows come from.
    type Source: RowSource;

    /// Lays rows out in their order.
    fn of_rows<'a>(rows: impl Iterator<Item = &'a RowOf<Self>>) -> Self
    where
        RowOf<Self>: 'a;

    /// What the summed loss over it is a sum over: tokens to predict, or pairs.
    fn num_targets(&self) -> usize;

    /// The name under which the rows of a run are counted in its metrics; rows of text are not.
    const ROWS_METRIC: Option<&'static str> = None;

    /// Whether its rows are pairs of responses to a prompt.
    const HAS_PAIRS: bool = false;

    /// The tokens to predict, where the loss is one of text.
    fn target_ids(&self) -> &[i64] {
        &[]
    }
}

/// One micro-batch: `T` tokens of `B` documents, `N` of the tokens to predict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlatBatch {
    /// `[T]` token ids, document after document.
    pub input_ids: Vec<i64>,
    /// `[T]` positions, from 0 in every document.
    pub positions: Vec<i64>,
    /// `[B + 1]` document starts, then `T`.
    pub cu_seqlens: Vec<i64>,
    /// `[N]` indices `t` into `input_ids` whose next token counts in the loss.
    pub target_rows: Vec<i64>,
    /// `[N]` that next token. Always of the same document.
    pub target_ids: Vec<i64>,
}

impl FlatBatch {
    /// Lays rows out one after another.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut batch = Self { cu_seqlens: vec![0], ..Self::default() };
        for row in rows {
            batch.push(row);
        }
        batch
    }

    /// Tokens, `T`.
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Documents, `B`.
    pub fn num_documents(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    fn push(&mut self, row: &Row) {
        let start = self.input_ids.len() as i64;
        self.input_ids.extend(row.ids.iter().map(|id| i64::from(*id)));
        self.positions.extend(0..row.ids.len() as i64);
        self.cu_seqlens.push(self.input_ids.len() as i64);
        for next in 1..row.ids.len() {
            if row.mask[next] {
                self.target_rows.push(start + next as i64 - 1);
                self.target_ids.push(i64::from(row.ids[next]));
            }
        }
    }
}

impl Batch for FlatBatch {
    type Source = TokenReader;

    fn target_ids(&self) -> &[i64] {
        &self.target_ids
    }

    fn of_rows<'a>(rows: impl Iterator<Item = &'a Row>) -> Self {
        Self::new(rows)
    }

    fn num_targets(&self) -> usize {
        self.target_rows.len()
    }
}

/// Which part of every step a process has of the `size` that share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// This process, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
}

impl Default for Share {
    /// All of it.
    fn default() -> Self {
        Self { rank: 0, size: 1 }
    }
}

/// The data of one optimiser step, of which the micro-batches alone are this process's [`Share`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step<B = FlatBatch> {
    /// At least one, and as many in every process.
    pub micro_batches: Vec<B>,
    /// So many of them count, from the first on. Where those of the whole step cannot be divided evenly, some processes do
    /// another's work for nothing, so that all do the same things.
    pub num_counting: usize,
    /// Tokens to predict, or pairs, in the whole step: what the summed loss is divided by. At least 1.
    pub num_targets: usize,
    /// Tokens in the whole step; the prompt of a pair counts once.
    pub num_tokens: usize,
    /// Rows in the whole step.
    pub num_rows: usize,
}

/// Makes steps of a data set.
pub struct Batcher<B: Batch = FlatBatch> {
    dataset: Dataset<B::Source>,
    config: BatchConfig,
    share: Share,
    /// A row that was read but did not fit, and where it is.
    held: Option<(Cursor, RowOf<B>)>,
}

impl<B: Batch> Batcher<B> {
    /// Starts at the data set's position. Sizes of 0 are taken as 1.
    pub fn new(dataset: Dataset<B::Source>, config: BatchConfig) -> Self {
        let together = matches!(config.size, BatchSize::Prompts(_));
        let dataset = dataset.with_prompts_together(together);
        Self { dataset, config, share: Share::default(), held: None }
    }

    /// The same steps, of which this process has a share. Which rows a step has does not depend on it.
    #[must_use]
    pub fn shared(self, share: Share) -> Self {
        Self { share, ..self }
    }

    /// The data set.
    pub fn dataset(&self) -> &Dataset<B::Source> {
        &self.dataset
    }

    /// The position of the first row that no step has had yet.
    pub fn cursor(&self) -> Cursor {
        self.held.as_ref().map_or_else(|| self.dataset.cursor(), |(cursor, _)| *cursor)
    }

    /// Goes on from a position that [`Self::cursor`] gave: the steps after it are the same as if
    /// nothing had been interrupted.
    pub fn seek(&mut self, cursor: Cursor) -> Result<(), DatasetError> {
        self.held = None;
        self.dataset.seek(cursor)
    }

    /// The next step; `None` at the end of the data.
    pub fn next_step(&mut self) -> Result<Option<Step<B>>, DatasetError> {
        let rows = self.next_rows()?;
        if rows.is_empty() {
            return Ok(None);
        }
        let lengths: Vec<usize> = rows.iter().map(RowOf::<B>::num_tokens).collect();
        let Share { rank, size } = self.share;
        let all: Vec<B> = divide(&lengths, self.config.micro_batch_tokens, size)
            .into_iter()
            .map(|members| B::of_rows(members.into_iter().map(|index| &rows[index])))
            .collect();
        let (num_targets, count) = (all.iter().map(B::num_targets).sum(), all.len());
        let num_counting = (rank..count).step_by(size).len();
        // The first one's again where this process has fewer than that.
        let mut own: Vec<B> = Vec::new();
        let mut spare = None;
        for (index, batch) in all.into_iter().enumerate() {
            if index % size == rank {
                own.push(batch);
            } else if index == 0 {
                spare = Some(batch);
            }
        }
        own.extend(spare.filter(|_| own.len() < count.div_ceil(size)));
        Ok(Some(Step {
            micro_batches: own,
            num_counting,
            num_targets,
            num_tokens: lengths.iter().sum(),
            num_rows: rows.len(),
        }))
    }

    /// How many steps the data gives from its beginning, by reading it through; `None` when it is
    /// repeated without end.
    pub fn count_steps(&self) -> Result<Option<u64>, DatasetError> {
        if self.dataset.epochs().is_none() {
            return Ok(None);
        }
        let mut batcher = Self::new(self.dataset.restarted(), self.config);
        let mut steps = 0;
        while !batcher.next_rows()?.is_empty() {
            steps += 1;
        }
        Ok(Some(steps))
    }

    fn next_rows(&mut self) -> Result<Vec<RowOf<B>>, DatasetError> {
        let mut rows = Vec::new();
        let (mut tokens, mut prompts) = (0, 0);
        loop {
            if let BatchSize::Sequences(size) = self.config.size
                && rows.len() >= size.max(1)
            {
                break;
            }
            let Some((cursor, row)) = self.take()? else { break };
            if let BatchSize::Tokens(size) = self.config.size
                && tokens + row.num_tokens() > size
                && !rows.is_empty()
            {
                self.held = Some((cursor, row));
                break;
            }
            if let BatchSize::Prompts(size) = self.config.size
                && rows.last().is_none_or(|last| !row.shares_prompt(last))
            {
                if prompts == size.max(1) {
                    self.held = Some((cursor, row));
                    break;
                }
                prompts += 1;
            }
            tokens += row.num_tokens();
            rows.push(row);
        }
        Ok(rows)
    }

    /// The next row with something to predict, and its position.
    fn take(&mut self) -> Result<Option<(Cursor, RowOf<B>)>, DatasetError> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        loop {
            let cursor = self.dataset.cursor();
            match self.dataset.next_row()? {
                None => return Ok(None),
                Some(row) if row.has_targets() => return Ok(Some((cursor, row))),
                Some(_) => {}
            }
        }
    }
}

/// Divides rows into the fewest micro-batches that hold at most `limit` tokens each, evenly filled:
/// longest row first, each to the emptiest one. Rows and micro-batches keep the order of the step. Their number is a multiple of
/// `parts`, or there is one for each row.
fn divide(lengths: &[usize], limit: usize, parts: usize) -> Vec<Vec<usize>> {
    let mut by_length: Vec<usize> = (0..lengths.len()).collect();
    by_length.sort_by_key(|&index| (std::cmp::Reverse(lengths[index]), index));
    let (long, short): (Vec<usize>, Vec<usize>) = lengths.iter().partition(|l| **l >= limit);
    let needed = long.len() + short.iter().sum::<usize>().div_ceil(limit.max(1));
    let mut count = needed.max(1).next_multiple_of(parts).min(lengths.len());
    loop {
        let mut loads = vec![0; count];
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); count];
        for &index in &by_length {
            let emptiest = (0..count).min_by_key(|&bin| (loads[bin], bin)).unwrap_or(0);
            loads[emptiest] += lengths[index];
            members[emptiest].push(index);
        }
        let fits = (0..count).all(|bin| loads[bin] <= limit || members[bin].len() == 1);
        if fits || count == lengths.len() {
            for member in &mut members {
                member.sort_unstable();
            }
            members.sort_unstable();
            return members;
        }
        count = (count + parts).min(lengths.len());
    }
}
