//! Exact match and F1 of a short answer (Rajpurkar et al. 2016, `SQuAD`: 100,000+ Questions for Machine Comprehension of
//! Text, arXiv:1606.05250, section 6.1).
//!
//! The numbers are those of the evaluation script of version 2.0, which also has questions without an answer.
//!
//! Deviation: texts are brought to Unicode NFKC first, so that decomposed Hangul meets syllables and full-width letters and
//! punctuation meet ASCII. For ASCII text nothing changes.
//!
//! Unlike [`checker::normalise`](crate::checker::normalise), by which rewards judge, this drops articles and joins what
//! punctuation divides: "well-known" becomes "wellknown".

use unicode_normalization::UnicodeNormalization;

use super::{counts, f1, is_space, shared};

/// The form in which answers are compared: NFKC and lower case, without ASCII punctuation, the words "a", "an" and "the",
/// and white space but for one space between words.
pub fn normalise(text: &str) -> String {
    // Of the whole text, because a Greek sigma depends on whether it ends a word.
    let lower = text.nfkc().collect::<String>().to_lowercase();
    let chars: Vec<char> = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let mut kept = String::with_capacity(lower.len());
    for run in chars.chunk_by(|a, b| a.is_alphanumeric() == b.is_alphanumeric()) {
        match run {
            ['a'] | ['a', 'n'] | ['t', 'h', 'e'] => kept.push(' '),
            _ => kept.extend(run),
        }
    }
    words(&kept).collect::<Vec<_>>().join(" ")
}

/// Whether the prediction is one of the references, both normalised. Without a reference that has a word the one right
/// answer is to have none.
pub fn exact_match(prediction: &str, references: &[&str]) -> bool {
    let predicted = normalise(prediction);
    wanted(references).any(|wanted| wanted == predicted)
}

/// F1 of the words of prediction and reference, both normalised, without regard to order; of several references the best
/// counts. Where one of both has no words, it is 1 if neither has any, else 0.
pub fn token_f1(prediction: &str, references: &[&str]) -> f64 {
    let prediction = normalise(prediction);
    let predicted = counts(words(&prediction));
    let score = |wanted: String| {
        if prediction.is_empty() && wanted.is_empty() {
            return 1.0;
        }
        let common = shared(&predicted, &counts(words(&wanted)));
        f1(common, words(&prediction).count(), words(&wanted).count())
    };
    wanted(references).map(score).fold(0.0, f64::max)
}

/// The references that have a word, normalised; an empty answer where none has.
fn wanted(references: &[&str]) -> impl Iterator<Item = String> {
    let mut wanted: Vec<String> =
        references.iter().map(|text| normalise(text)).filter(|text| !text.is_empty()).collect();
    if wanted.is_empty() {
        wanted.push(String::new());
    }
    wanted.into_iter()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}
