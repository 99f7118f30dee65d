//! ROUGE: how many words and word sequences a text shares with a reference (Lin 2004, ROUGE: A Package for Automatic
//! Evaluation of Summaries).
//!
//! The numbers are those of Google's `rouge_score`, hence of Hugging Face's `evaluate`, without stemming.
//!
//! Deviations: from the paper, F1 weighs precision and recall alike and the best of several references counts, both as in
//! `rouge_score`. From `rouge_score`, a word is a run of Unicode letters, marks and digits in lower case; there it is one of
//! `a` to `z` and `0` to `9`, so that Korean has no words. For ASCII text both are the same.

use std::collections::HashMap;
use std::hash::Hash;

use unicode_normalization::char::is_combining_mark;

use super::{counts, f1, shared};

/// The F1 of a prediction in three measures, from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rouge {
    /// Of words.
    pub rouge1: f64,
    /// Of pairs of neighbouring words.
    pub rouge2: f64,
    /// Of the longest common subsequence of words.
    pub rouge_l: f64,
}

/// Compares a prediction with its references; for each measure the best of them counts. A text without words shares
/// nothing with any other, another such text included; nor is there anything to share without references.
pub fn rouge(prediction: &str, references: &[&str]) -> Rouge {
    let prediction = prediction.to_lowercase();
    let predicted = words(&prediction);
    references.iter().fold(Rouge::default(), |best, reference| {
        let reference = reference.to_lowercase();
        let wanted = words(&reference);
        Rouge {
            rouge1: best.rouge1.max(n_gram_f1(&predicted, &wanted, 1)),
            rouge2: best.rouge2.max(n_gram_f1(&predicted, &wanted, 2)),
            rouge_l: best.rouge_l.max(subsequence_f1(&predicted, &wanted)),
        }
    })
}

/// The words of a text in lower case.
fn words(lower: &str) -> Vec<&str> {
    lower
        .split(|c: char| !c.is_alphanumeric() && !is_combining_mark(c))
        .filter(|word| !word.is_empty())
        .collect()
}

/// ROUGE-N (section 2): F1 of the sequences of `n` words, where one that is repeated is shared as often as it is in both.
fn n_gram_f1<T: Eq + Hash>(predicted: &[T], wanted: &[T], n: usize) -> f64 {
    let common = shared(&counts(predicted.windows(n)), &counts(wanted.windows(n)));
    let grams = |words: &[T]| (words.len() + 1).saturating_sub(n);
    f1(common, grams(predicted), grams(wanted))
}

/// ROUGE-L (section 3.1, eqs. 2 to 4 with beta 1): F1 of the longest common subsequence.
fn subsequence_f1<T: Eq + Hash>(predicted: &[T], wanted: &[T]) -> f64 {
    f1(common_subsequence(predicted, wanted), predicted.len(), wanted.len())
}

/// The length of the longest common subsequence.
///
/// Hyyrö 2004, Bit-Parallel LCS-length Computation Revisited: a row of the usual table differs from one place to the next
/// by 0 or 1, so it is kept as bits, and an addition takes it to the next row. Memory is that of the shorter sequence; time is
/// at most the product of both lengths, and for ordinary text a 64th of it.
pub(super) fn common_subsequence<T: Eq + Hash>(one: &[T], other: &[T]) -> usize {
    let (short, long) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    let mut places: HashMap<&T, Vec<usize>> = HashMap::new();
    for (place, word) in short.iter().enumerate() {
        places.entry(word).or_default().push(place);
    }
    // A bit that is 0 marks a place at which the row is one more than before it.
    let mut row = vec![u64::MAX; short.len().div_ceil(64)];
    let mut equal = vec![0_u64; row.len()];
    for word in long {
        // Without a place the row stays as it is.
        let Some(places) = places.get(word) else { continue };
        for place in places {
            equal[place / 64] |= 1 << (place % 64);
        }
        let mut carry = false;
        for (bits, equal) in row.iter_mut().zip(&equal) {
            let (sum, over) = bits.overflowing_add(*bits & equal);
            let (sum, over_by_carry) = sum.overflowing_add(u64::from(carry));
            carry = over || over_by_carry;
            *bits = sum | (*bits & !equal);
        }
        for place in places {
            equal[place / 64] = 0;
        }
    }
    row.iter().map(|bits| bits.count_zeros() as usize).sum()
}
