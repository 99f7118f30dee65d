//! chrF: how many sequences of characters a text shares with a reference (Popović 2015, chrF: character n-gram F-score for
//! automatic MT evaluation).
//!
//! The numbers are those of `sacrebleu` by default, which calls the measure `chrF2`: sequences of 1 to 6 characters, white
//! space left out, case kept, recall weighed twice as much as precision.
//!
//! Deviations from the paper, as in `sacrebleu`: precision and recall are means over the lengths of which both texts have
//! sequences, so a text of three characters is not marked down for having none of six; of several references that with
//! the best score counts.

use std::collections::HashMap;

use super::{counts, is_space, shared};

/// The longest sequence.
const ORDERS: usize = 6;
/// Numbers in [`Statistics::counts`].
pub const COUNTS: usize = 3 * ORDERS;
/// How many times as much recall counts as precision.
const BETA: f64 = 2.0;

/// The sequences of one length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Order {
    predicted: usize,
    wanted: usize,
    common: usize,
}

/// The counts that a score is made of. Those of many rows are added up for the score of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    orders: [Order; ORDERS],
}

impl Statistics {
    /// The counts of a prediction against the reference of the best score, the first of equal ones. Nothing is counted
    /// where there is none.
    pub fn new(prediction: &str, references: &[&str]) -> Self {
        let prediction = characters(prediction);
        let predicted = n_grams(&prediction);
        let mut best: Option<(f64, Self)> = None;
        for reference in references {
            let statistics = Self::against(&predicted, &n_grams(&characters(reference)));
            let score = statistics.score();
            if best.is_none_or(|(best, _)| score > best) {
                best = Some((score, statistics));
            }
        }
        best.map_or_else(Self::default, |(_, statistics)| statistics)
    }

    fn against(predicted: &NGrams, wanted: &NGrams) -> Self {
        let orders = std::array::from_fn(|order| {
            let (predicted, wanted) = (&predicted[order], &wanted[order]);
            Order {
                // What the reference is too short for is not held against the prediction.
                predicted: if wanted.is_empty() { 0 } else { predicted.values().sum() },
                wanted: wanted.values().sum(),
                common: shared(predicted, wanted),
            }
        });
        Self { orders }
    }

    /// Adds the counts of another row.
    pub fn add(&mut self, other: &Self) {
        for (sum, order) in self.orders.iter_mut().zip(&other.orders) {
            sum.predicted += order.predicted;
            sum.wanted += order.wanted;
            sum.common += order.common;
        }
    }

    /// The counts as numbers, for a sum over rows that weighs them: of each length those of the prediction, of the reference
    /// and of both.
    pub fn counts(&self) -> [usize; COUNTS] {
        let all = self.orders.iter().flat_map(|o| [o.predicted, o.wanted, o.common]);
        let mut counts = [0; COUNTS];
        counts.iter_mut().zip(all).for_each(|(count, own)| *count = own);
        counts
    }

    /// What [`counts`](Self::counts) makes numbers of.
    pub fn from_counts(counts: &[usize; COUNTS]) -> Self {
        let order = |order: usize| {
            let [predicted, wanted, common] = [0, 1, 2].map(|part| counts[3 * order + part]);
            Order { predicted, wanted, common }
        };
        Self { orders: std::array::from_fn(order) }
    }

    /// F2 of the mean precision and recall, from 0 to 100; 0 where nothing was counted.
    pub fn score(&self) -> f64 {
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for order in self.orders.iter().filter(|order| order.predicted > 0 && order.wanted > 0) {
            precision += order.common as f64 / order.predicted as f64;
            recall += order.common as f64 / order.wanted as f64;
            orders += 1.0;
        }
        if precision == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / orders, recall / orders);
        let weight = BETA * BETA;
        100.0 * (1.0 + weight) * precision * recall / (weight * precision + recall)
    }
}

/// How often each sequence occurs, by its length less one.
type NGrams<'a> = [HashMap<&'a [char], usize>; ORDERS];

fn n_grams(characters: &[char]) -> NGrams<'_> {
    std::array::from_fn(|order| counts(characters.windows(order + 1)))
}

fn characters(text: &str) -> Vec<char> {
    text.chars().filter(|c| !is_space(*c)).collect()
}
