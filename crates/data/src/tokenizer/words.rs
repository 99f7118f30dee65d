//! The ids of words met before: text repeats its words, and looking one up is many times faster than splitting it,
//! normalising it and merging its bytes again.
//!
//! A text may be cut before a space that stands alone between two words without changing its tokens, if the tokenizer
//! splits it there itself before it merges: true of byte-level BPE with the word patterns of GPT-2, Llama 3 and Qwen. For
//! other tokenizers there is no memo.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use xxhash_rust::xxh3::{Xxh3DefaultBuilder, xxh3_64};

/// Words are spread over so many maps, so that threads seldom wait for one another.
const SHARDS: usize = 64;
/// A map takes no more words than this: memory stays bounded, and frequent words come early.
const WORDS: usize = 8192;
/// Longer pieces are hardly words and not kept.
const LONGEST: usize = 64;

type Shard = Mutex<HashMap<Box<str>, Box<[u32]>, Xxh3DefaultBuilder>>;

/// See the module's text.
pub(super) struct Words {
    shards: Vec<Shard>,
    /// What the tokenizer adds before and after a text.
    added: [Vec<u32>; 2],
}

impl Words {
    /// A memo for `tokenizer`, whose file is `json`, if it is one whose texts may be cut.
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer, json: &[u8]) -> Option<Self> {
        let json: Value = serde_json::from_slice(json).ok()?;
        if !cuts_at_spaces(&json) {
            return None;
        }
        let ids = |add_special| {
            let encoding = tokenizer.encode_fast("a", add_special).ok()?;
            Some(encoding.get_ids().to_vec())
        };
        let (bare, whole) = (ids(false)?, ids(true)?);
        if bare.is_empty() {
            return None;
        }
        let start = whole.windows(bare.len()).position(|part| part == bare)?;
        let added = [whole[..start].to_vec(), whole[start + bare.len()..].to_vec()];
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Some(Self { shards, added })
    }

    /// The ids of `text`.
    pub(super) fn encode(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        add_special: bool,
    ) -> tokenizers::Result<Vec<u32>> {
        let [before, after] = &self.added;
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if add_special {
            ids.extend_from_slice(before);
        }
        for word in pieces(text) {
            self.push(tokenizer, word, &mut ids)?;
        }
        if add_special {
            ids.extend_from_slice(after);
        }
        Ok(ids)
    }

    fn push(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        word: &str,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        let shard = &self.shards[xxh3_64(word.as_bytes()) as usize % SHARDS];
        let shard = || shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shard().get(word) {
            ids.extend_from_slice(known);
            return Ok(());
        }
        let encoding = tokenizer.encode_fast(word, false)?;
        ids.extend_from_slice(encoding.get_ids());
        let mut shard = shard();
        if word.len() <= LONGEST && shard.len() < WORDS {
            shard.insert(word.into(), encoding.get_ids().into());
        }
        Ok(())
    }
}

/// Cuts before every single space between two characters that are letters, digits or ASCII punctuation.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let inside = |c: char| c.is_alphanumeric() || c.is_ascii_punctuation();
        let bytes = rest.as_bytes();
        let mut from = 1;
        let cut = loop {
            let Some(at) = bytes.get(from..).and_then(|tail| tail.iter().position(|b| *b == b' '))
            else {
                break rest.len();
            };
            let at = from + at;
            let (before, after) = (rest[..at].chars().next_back(), rest[at + 1..].chars().next());
            if before.is_some_and(inside) && after.is_some_and(inside) {
                break at;
            }
            from = at + 1;
        };
        let (piece, tail) = rest.split_at(cut);
        rest = tail;
        Some(piece)
    })
}

/// Whether the tokenizer of this `tokenizer.json` splits words at spaces before it merges, whatever stands beside them.
fn cuts_at_spaces(json: &Value) -> bool {
    let byte_level = |part: &Value, use_regex: bool| {
        part["type"] == "ByteLevel"
            && part["add_prefix_space"] == false
            && part["use_regex"].as_bool().unwrap_or(true) == use_regex
    };
    let splits = |part: &Value| match part["pretokenizers"].as_array().map(Vec::as_slice) {
        Some([split, bytes]) => {
            split["type"] == "Split"
                && split["behavior"] == "Isolated"
                && split["invert"] == false
                && split["pattern"]["Regex"].as_str().is_some_and(is_word_pattern)
                && byte_level(bytes, false)
        }
        _ => byte_level(part, true),
    };
    let normalizer = &json["normalizer"];
    let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    json["model"]["type"] == "BPE"
        && json["model"]["dropout"].is_null()
        && (normalizer.is_null() || normalizer["type"] == "NFC")
        && added.iter().all(|token| token["special"] == true)
        && splits(&json["pre_tokenizer"])
}

/// The word pattern of Llama 3 and Qwen, which differ in how many digits make a piece. No alternative of it holds a space
/// behind another character.
fn is_word_pattern(pattern: &str) -> bool {
    let middle = pattern
        .strip_prefix(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}")
        .and_then(|rest| rest.strip_suffix(r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"));
    let digits =
        middle.map(|m| m.strip_prefix("{1,").and_then(|m| m.strip_suffix('}')).unwrap_or(m));
    digits.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_before_single_spaces_between_words_only() {
        let cut = |text| pieces(text).collect::<Vec<_>>();
        assert_eq!(cut("one two, (three) 4"), ["one", " two,", " (three)", " 4"]);
        assert_eq!(cut("한국어 문장  둘"), ["한국어", " 문장  둘"]);
        assert_eq!(cut(" a \n b\tc d "), [" a \n b\tc", " d "]);
        assert_eq!(cut("e\u{301} x \u{301}y"), ["e\u{301} x \u{301}y"]);
        assert_eq!(cut(""), Vec::<&str>::new());
        assert_eq!(cut(" "), [" "]);
    }

    #[test]
    fn patterns_of_words_are_known_by_their_text() {
        let of = |digits: &str| {
            format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )
        };
        assert!(is_word_pattern(&of("{1,3}")) && is_word_pattern(&of("")));
        assert!(!is_word_pattern(&of("+| x")) && !is_word_pattern(r"\w+ \w+"));
    }
}
