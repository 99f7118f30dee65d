//! Drops exact and near duplicates.
//!
//! Both look at a text with case folded and white space collapsed. The first of several equal texts
//! is kept. Memory: about 30 bytes a kept text for exact duplicates, and for near ones
//! 4 × `num_hashes` + about 35 × `bands` bytes (1.1 kB with the defaults). Texts are not held.
//!
//! # Near duplicates
//! MinHash (Broder 1997, "On the resemblance and containment of documents") over shingles of
//! characters, which suit Korean as well as English. Hash `i` of a shingle with 64-bit hash `x` is the
//! upper half of `a_i x + b_i` mod 2^64 with odd `a_i`; signature entry `i` is its least value over all
//! shingles, and the share of equal entries of two signatures estimates the Jaccard similarity of
//! their shingle sets. Signatures are cut into bands; texts that agree in a whole band are candidates
//! (a pair of similarity `s` is found with probability `1 - (1 - s^r)^b`, `b` bands of `r` entries), and
//! a candidate counts as a duplicate when the estimate over the whole signature reaches the threshold.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::config::{Dedup, Near};

/// What is computed of a text, in parallel, before [`Seen::admit`] decides in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    exact: u128,
    signature: Vec<u32>,
}

/// The part of the decision that needs the text only.
#[derive(Debug, Clone)]
pub(crate) struct Hasher {
    near: Option<Near>,
    factors: Vec<(u64, u64)>,
}

impl Hasher {
    pub(crate) fn new(options: &Dedup) -> Self {
        let count = options.near.map_or(0, |near| near.num_hashes) as u64;
        let word = |index: u64| xxh3_64(&index.to_le_bytes());
        let factors = (0..count).map(|i| (word(2 * i) | 1, word(2 * i + 1))).collect();
        Self { near: options.near, factors }
    }

    pub(crate) fn fingerprint(&self, text: &str) -> Fingerprint {
        let folded = fold(text);
        let signature =
            self.near.map_or_else(Vec::new, |near| self.signature(&folded, near.shingle_chars));
        Fingerprint { exact: xxh3_128(folded.as_bytes()), signature }
    }

    fn signature(&self, text: &str, shingle: usize) -> Vec<u32> {
        let starts: Vec<usize> =
            text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut least = vec![u32::MAX; self.factors.len()];
        // A text shorter than a shingle is one shingle.
        let last = starts.len().saturating_sub(shingle).max(1);
        for first in 0..last {
            let end = starts[(first + shingle).min(starts.len() - 1)];
            let hash = xxh3_64(&text.as_bytes()[starts[first]..end]);
            for (least, (a, b)) in least.iter_mut().zip(&self.factors) {
                let value = (a.wrapping_mul(hash).wrapping_add(*b) >> 32) as u32;
                *least = (*least).min(value);
            }
        }
        least
    }
}

fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.chars().flat_map(char::to_lowercase));
    }
    out
}

/// Why a text was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    Exact,
    Near,
}

/// The texts kept so far.
#[derive(Debug)]
pub(crate) struct Seen {
    options: Dedup,
    exact: HashSet<u128>,
    /// The signatures of kept texts, one after another.
    signatures: Vec<u32>,
    /// For each band, its content to the last kept text that has it.
    bands: Vec<HashMap<u64, u32>>,
    /// For each kept text and band the text before it with the same content, or [`NONE`].
    links: Vec<u32>,
}

/// The end of a chain of texts.
const NONE: u32 = u32::MAX;

impl Seen {
    pub(crate) fn new(options: &Dedup) -> Self {
        let bands = options.near.map_or(0, |near| near.bands);
        Self {
            options: options.clone(),
            exact: HashSet::new(),
            signatures: Vec::new(),
            bands: vec![HashMap::new(); bands],
            links: Vec::new(),
        }
    }

    /// Takes a text in, or says of what kind its repeat is.
    pub(crate) fn admit(&mut self, text: &Fingerprint) -> Result<(), Repeat> {
        if self.options.exact && self.exact.contains(&text.exact) {
            return Err(Repeat::Exact);
        }
        if let Some(near) = self.options.near {
            self.admit_near(&text.signature, near)?;
        }
        if self.options.exact {
            self.exact.insert(text.exact);
        }
        Ok(())
    }

    fn admit_near(&mut self, signature: &[u32], near: Near) -> Result<(), Repeat> {
        let rows = near.num_hashes / near.bands;
        let keys: Vec<u64> = signature.chunks_exact(rows).map(band_key).collect();
        let needed = (near.threshold * near.num_hashes as f64).ceil() as usize;
        let mut checked = HashSet::new();
        for (number, (band, key)) in self.bands.iter().zip(&keys).enumerate() {
            let mut kept = band.get(key).copied().unwrap_or(NONE);
            while kept != NONE {
                if checked.insert(kept) {
                    let start = kept as usize * near.num_hashes;
                    let other = &self.signatures[start..start + near.num_hashes];
                    let equal = signature.iter().zip(other).filter(|(a, b)| a == b).count();
                    if equal >= needed {
                        return Err(Repeat::Near);
                    }
                }
                kept = self.links[kept as usize * near.bands + number];
            }
        }
        let index = (self.signatures.len() / near.num_hashes) as u32;
        self.signatures.extend_from_slice(signature);
        for (band, key) in self.bands.iter_mut().zip(keys) {
            self.links.push(band.insert(key, index).unwrap_or(NONE));
        }
        Ok(())
    }
}

fn band_key(rows: &[u32]) -> u64 {
    let bytes: Vec<u8> = rows.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near() -> Dedup {
        Dedup { exact: true, near: Some(Near::default()) }
    }

    fn admit_all(options: &Dedup, texts: &[&str]) -> Vec<Result<(), Repeat>> {
        let hasher = Hasher::new(options);
        let mut seen = Seen::new(options);
        texts.iter().map(|text| seen.admit(&hasher.fingerprint(text))).collect()
    }

    #[test]
    fn exact_repeats_differ_in_case_and_white_space_only() {
        let exact = Dedup::default();
        let found = admit_all(
            &exact,
            &["고양이가  잔다.", "고양이가 잔다.", "The Cat", "the cat", "the cats"],
        );
        assert_eq!(found, [Ok(()), Err(Repeat::Exact), Ok(()), Err(Repeat::Exact), Ok(())]);
        let off = Dedup { exact: false, near: None };
        assert_eq!(admit_all(&off, &["a", "a"]), [Ok(()), Ok(())]);
    }

    #[test]
    fn near_repeats_are_dropped_and_different_texts_stay() {
        let story = "옛날 어느 마을에 민수라는 소년이 살았습니다. 민수는 매일 아침 강가에 나가 물고기를 \
                     잡았고, 저녁이면 할머니와 함께 밥을 먹었습니다. 어느 날 강가에서 작은 고양이를 만났습니다.";
        let changed = story.replace("작은 고양이", "하얀 고양이");
        let other = "Rust is a language that makes it hard to write data races, and its compiler says so \
                     at length, with arrows and colours, until the program is right.";
        let found = admit_all(&near(), &[story, &changed, other, "", "짧다"]);
        assert_eq!(found, [Ok(()), Err(Repeat::Near), Ok(()), Ok(()), Ok(())]);
    }

    /// The estimate must agree with the Jaccard similarity computed from the sets themselves.
    #[test]
    fn signatures_estimate_the_jaccard_similarity() {
        let options = Dedup {
            exact: false,
            near: Some(Near { num_hashes: 2048, bands: 16, ..Near::default() }),
        };
        let hasher = Hasher::new(&options);
        let words = |from: usize, to: usize| -> String {
            let words: Vec<String> = (from..to).map(|n| format!("word{n:04} ")).collect();
            words.concat()
        };
        let (a, b) = (words(0, 200), words(100, 300));
        let set = |text: &str| -> HashSet<Vec<char>> {
            let chars: Vec<char> = fold(text).chars().collect();
            chars.windows(5).map(<[char]>::to_vec).collect()
        };
        let (set_a, set_b) = (set(&a), set(&b));
        let truth = set_a.intersection(&set_b).count() as f64 / set_a.union(&set_b).count() as f64;
        let (a, b) = (hasher.fingerprint(&a).signature, hasher.fingerprint(&b).signature);
        let equal = a.iter().zip(&b).filter(|(a, b)| a == b).count() as f64 / 2048.0;
        // Standard deviation sqrt(0.25 / 2048) = 0.011.
        assert!((equal - truth).abs() < 0.045, "estimate {equal}, truth {truth}");
        assert!(truth > 0.2 && truth < 0.8, "the case must not be trivial: {truth}");
    }
}
