//! Batches of pairs.

#[cfg(test)]
mod tests;

use artifact::pairs::PairReader;

use super::{Batch, Branches};
use crate::dataset::PairRow;

/// One micro-batch of `P` pairs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairBatch {
    /// The prompt of each pair with two continuations, the chosen one first: that of pair `p` is
    /// `responses[2 * p]`, the rejected one `responses[2 * p + 1]`.
    pub branches: Branches,
    /// `[P]` by how much the chosen one is preferred; 0 where that is not known.
    pub margins: Vec<f32>,
    /// `[P]` how likely it is that the chosen one is the better; 1 where that is not known.
    pub probabilities: Vec<f32>,
    /// `[P]` the kind of task, where known.
    pub tasks: Vec<Option<String>>,
}

impl PairBatch {
    /// Pairs, `P`.
    pub fn num_pairs(&self) -> usize {
        self.margins.len()
    }
}

impl Batch for PairBatch {
    type Source = PairReader;

    const ROWS_METRIC: Option<&'static str> = Some("num_pairs");

    const HAS_PAIRS: bool = true;

    fn of_rows<'a>(rows: impl Iterator<Item = &'a PairRow>) -> Self {
        let mut batch = Self::default();
        for row in rows {
            let [prompt, chosen, rejected] = [&row.prompt, &row.chosen, &row.rejected]
                .map(|ids| ids.iter().map(|&id| i64::from(id)).collect::<Vec<i64>>());
            batch.branches.push(&prompt, &[&chosen, &rejected]);
            batch.margins.push(row.margin.unwrap_or(0.0));
            batch.probabilities.push(row.probability.unwrap_or(1.0));
            batch.tasks.push(row.task.clone());
        }
        batch
    }

    fn num_targets(&self) -> usize {
        self.num_pairs()
    }
}
