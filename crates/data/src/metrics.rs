//! Compares generated text with references: what is reported of a model's answers to held-out prompts.
//!
//! [`TextScores`] takes one prediction after another and has the means; [`rouge`], [`answer`] and [`chrf`] are the
//! measures. A reference is a text that would have been right, and of several the best counts. Everything
//! is a pure function of the texts, and the order of rows changes the means by rounding alone.

use std::collections::HashMap;
use std::hash::Hash;

pub mod answer;
pub mod chrf;
pub mod rouge;

/// How one prediction compares with its references.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowScores {
    /// F1 of the words, from 0 to 1.
    pub rouge1: f64,
    /// F1 of the pairs of neighbouring words, from 0 to 1.
    pub rouge2: f64,
    /// F1 of the longest common subsequence of words, from 0 to 1.
    pub rouge_l: f64,
    /// 1 where prediction and reference are the same but for case, punctuation and articles, else 0.
    pub exact_match: f64,
    /// F1 of the words without regard to order, punctuation and articles, from 0 to 1.
    pub f1: f64,
    /// F2 of the character n-grams of this row alone, from 0 to 100.
    pub chrf: f64,
}

/// The scores of many predictions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TextScores {
    rows: usize,
    sums: RowScores,
    chrf: chrf::Statistics,
}

impl TextScores {
    /// Takes a prediction in and returns its own scores. Without references the one right answer is to say nothing.
    pub fn add(&mut self, prediction: &str, references: &[&str]) -> RowScores {
        let rouge = rouge::rouge(prediction, references);
        let statistics = chrf::Statistics::new(prediction, references);
        let row = RowScores {
            rouge1: rouge.rouge1,
            rouge2: rouge.rouge2,
            rouge_l: rouge.rouge_l,
            exact_match: f64::from(answer::exact_match(prediction, references)),
            f1: answer::token_f1(prediction, references),
            chrf: statistics.score(),
        };
        self.rows += 1;
        self.sums.rouge1 += row.rouge1;
        self.sums.rouge2 += row.rouge2;
        self.sums.rouge_l += row.rouge_l;
        self.sums.exact_match += row.exact_match;
        self.sums.f1 += row.f1;
        self.chrf.add(&statistics);
        row
    }

    /// How many predictions were added.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether none was added.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The scores of all rows by the names that Hugging Face's `evaluate` gives them: means from 0 to 1, and `chrf`, from 0
    /// to 100, over the n-grams of all rows together. Nothing where there are no rows.
    pub fn means(&self) -> Vec<(&'static str, f64)> {
        if self.is_empty() {
            return Vec::new();
        }
        let mean = |sum: f64| sum / self.rows as f64;
        vec![
            ("rouge1", mean(self.sums.rouge1)),
            ("rouge2", mean(self.sums.rouge2)),
            ("rougeL", mean(self.sums.rouge_l)),
            ("exact_match", mean(self.sums.exact_match)),
            ("f1", mean(self.sums.f1)),
            ("chrf", self.chrf.score()),
        ]
    }
}

/// How often each item occurs.
fn counts<T: Eq + Hash>(items: impl IntoIterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for item in items {
        *counts.entry(item).or_insert(0) += 1;
    }
    counts
}

/// How many items two texts share, each as often as it occurs in both.
fn shared<T: Eq + Hash>(one: &HashMap<T, usize>, other: &HashMap<T, usize>) -> usize {
    one.iter().map(|(item, count)| other.get(item).map_or(0, |there| *count.min(there))).sum()
}

/// The harmonic mean of `common / predicted` and `common / wanted`; 0 where nothing is in common.
fn f1(common: usize, predicted: usize, wanted: usize) -> f64 {
    if common == 0 { 0.0 } else { 2.0 * common as f64 / (predicted + wanted) as f64 }
}

/// White space as Python's `str.split` knows it, which the measures are defined by: Unicode's, and four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

#[cfg(test)]
mod tests;
