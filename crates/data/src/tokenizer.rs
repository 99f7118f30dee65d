//! A wrapper around Hugging Face tokenizers that keeps the files it came from.
//!
//! `tokenizer.json` is kept to the byte, so its digest is the same in the data, in the models trained
//! on it and in the directory it came from. Saved truncation and padding settings are ignored.
//!
//! Offsets are in **bytes** of the given text. They tile it: a token begins where the one before it
//! ends, unless several tokens share the bytes of one character, so text that the tokenizer drops or
//! trims from its own offsets (a leading space, a prepended `▁`) belongs to the token after it.

mod bytes;
mod files;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod train;
mod words;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::{Digest, guard};
use serde_json::{Map, Value};

use crate::template::SpecialTokens;

pub use stream::StreamDecoder;
pub use train::BpeOptions;
use words::Words;

/// Why a tokenizer cannot be loaded, trained or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// No tokenizer at this path.
    #[error("{}: {what}; give a folder with a tokenizer.json, or the file itself", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
        /// What was looked for.
        what: String,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file is not what it should be.
    #[error("{}: {message}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// Training failed.
    #[error("tokenizer training: {0}")]
    Train(String),
    /// The tokenizers library refused a text or an id.
    #[error("tokenizer: {0}")]
    Use(String),
}

/// The tokens of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The bytes of the text that each token stands for; empty for tokens that stand for none, such as
    /// a BOS that was added.
    pub offsets: Vec<(usize, usize)>,
}

/// See the module's text.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same, but special tokens spelled out in a text are text.
    plain: tokenizers::Tokenizer,
    /// The ids of words that `plain` met, where its texts may be taken word by word.
    words: Option<Arc<Words>>,
    json: Vec<u8>,
    config: Map<String, Value>,
    generation_config: Option<Value>,
    chat_template: Option<String>,
    specials: SpecialTokens,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    vocab_size: usize,
    prefixes: Vec<[u8; 2]>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digest = self.digest();
        write!(f, "Tokenizer({} tokens, {})", self.vocab_size, digest.short())
    }
}

impl Tokenizer {
    /// Loads from a folder with `tokenizer.json` (with `tokenizer_config.json`, `chat_template.jinja`,
    /// `special_tokens_map.json` and `generation_config.json` where they are), from a run directory
    /// (its `tokenizer/` or `model/`), or from a `tokenizer.json` file alone.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        files::load(path.as_ref())
    }

    /// Trains a byte-level BPE on `texts`; see [`BpeOptions`]. The result does not depend on the
    /// order of the texts nor on the number of threads.
    pub fn train_bpe<I>(texts: I, options: &BpeOptions) -> Result<Self, TokenizerError>
    where
        I: Iterator<Item = String> + Send,
    {
        train::train(texts, options)
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` (with the chat template) and
    /// `special_tokens_map.json` into the folder `dir`, and `generation_config.json` where there is one.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), TokenizerError> {
        files::save(self, dir.as_ref())
    }

    /// Tokenises `text`. Special tokens spelled out in it are recognised; with `add_special` the
    /// tokenizer's own BOS and the like are added.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Encoding, TokenizerError> {
        encode(&self.inner, text, add_special)
    }

    /// Like [`Self::encode`], but a special token spelled out in the text is text: for documents, in
    /// which `</s>` is a piece of HTML and not the end.
    pub fn encode_plain(&self, text: &str, add_special: bool) -> Result<Encoding, TokenizerError> {
        encode(&self.plain, text, add_special)
    }

    /// The ids of [`Self::encode_plain`], faster, for where no offsets are needed.
    pub fn ids_plain(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        guarded("tokenise a text", || match &self.words {
            Some(words) => words.encode(&self.plain, text, add_special),
            None => self.plain.encode_fast(text, add_special).map(|e| e.get_ids().to_vec()),
        })
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        guarded("decode", || self.inner.decode(ids, skip_special))
    }

    /// A decoder that turns ids into text one by one.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, &[], skip_special)
    }

    /// The same for text that continues `context`, so that the space between the two is kept.
    pub fn stream_after(&self, context: &[u32], skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, context, skip_special)
    }

    /// The id of a token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One more than the largest id: the least number of rows an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of `bos_token`.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The id of `eos_token`.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The id of `pad_token`.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The special tokens by name and by text.
    pub fn specials(&self) -> &SpecialTokens {
        &self.specials
    }

    /// The source of the chat template, where the tokenizer has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The digest of the chat template's source.
    pub fn chat_template_digest(&self) -> Option<Digest> {
        self.chat_template().map(|source| artifact::digest::bytes(source.as_bytes()))
    }

    /// Replaces the chat template.
    pub fn set_chat_template(&mut self, source: impl Into<String>) {
        self.chat_template = Some(source.into());
    }

    /// Names the special tokens of a tokenizer whose files do not, such as a lone `tokenizer.json`.
    /// Fails when a token is not in the vocabulary.
    pub fn set_special(&mut self, name: &str, token: &str) -> Result<(), TokenizerError> {
        if self.token_id(token).is_none() {
            return Err(TokenizerError::Use(format!(
                "{name} `{token}` is not in the vocabulary; name a token that is"
            )));
        }
        self.config.insert(name.to_owned(), Value::String(token.to_owned()));
        self.resolve();
        Ok(())
    }

    /// The ids at which generation stops: EOS, the end-of-turn token of the chat template, and what
    /// `generation_config.json` lists. Sorted, without repeats.
    pub fn stop_ids(&self, end_of_turn: Option<&str>) -> Vec<u32> {
        let listed = self.generation_config.as_ref().and_then(|config| config.get("eos_token_id"));
        let mut ids: Vec<u32> = match listed {
            Some(Value::Array(ids)) => ids.iter().filter_map(as_id).collect(),
            Some(id) => as_id(id).into_iter().collect(),
            None => Vec::new(),
        };
        ids.extend(self.eos);
        ids.extend(end_of_turn.and_then(|token| self.token_id(token)));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Records the stop ids (and BOS and padding) for `generation_config.json`.
    pub fn set_stop_ids(&mut self, ids: &[u32]) {
        let mut config = match self.generation_config.take() {
            Some(Value::Object(config)) => config,
            _ => Map::new(),
        };
        for (key, id) in [("bos_token_id", self.bos), ("pad_token_id", self.pad)] {
            if let Some(id) = id {
                config.insert(key.to_owned(), id.into());
            }
        }
        let stop = if let [id] = ids { Value::from(*id) } else { Value::from(ids) };
        config.insert("eos_token_id".to_owned(), stop);
        self.generation_config = Some(Value::Object(config));
    }

    /// The contents of `tokenizer_config.json`, without the chat template.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The digest of `tokenizer.json`.
    pub fn digest(&self) -> Digest {
        artifact::digest::bytes(&self.json)
    }

    /// The first special token that is spelled out in `text`, if any.
    pub fn special_in<'a>(&'a self, text: &str) -> Option<&'a str> {
        // Nearly all special tokens share a few first bytes, so most texts need one look.
        let bytes = text.as_bytes();
        let possible = bytes.windows(2).any(|pair| self.prefixes.iter().any(|p| p == pair));
        if !possible {
            return None;
        }
        self.specials.all.iter().map(String::as_str).find(|token| text.contains(token))
    }

    /// For each id the number of bytes of text it stands for; 0 for special tokens, which are no text. What bits per byte
    /// divides by.
    pub fn byte_lengths(&self) -> Vec<u16> {
        let added = self.inner.get_added_tokens_decoder();
        let mut lengths: Vec<u16> = self
            .token_bytes()
            .iter()
            .map(|bytes| u16::try_from(bytes.len()).unwrap_or(u16::MAX))
            .collect();
        for (id, _) in added.iter().filter(|(_, token)| token.special) {
            lengths[*id as usize] = 0;
        }
        lengths
    }

    /// For each id the bytes it stands for: of a special token those of its name, of a part of a character that part's.
    pub fn token_bytes(&self) -> Vec<Box<[u8]>> {
        let byte_level = self.inner.get_decoder().is_some_and(|decoder| {
            serde_json::to_string(decoder).is_ok_and(|json| json.contains("\"ByteLevel\""))
        });
        let added = self.inner.get_added_tokens_decoder();
        let alphabet = bytes::alphabet();
        let mut all = vec![Box::default(); self.vocab_size];
        for (token, id) in self.vocab() {
            let bytes = match added.get(&id) {
                Some(added) => added.content.clone().into_bytes(),
                None if byte_level => bytes::of_byte_level(&token, &alphabet),
                None => bytes::of_piece(&token),
            };
            all[id as usize] = bytes.into_boxed_slice();
        }
        all
    }

    /// The vocabulary, token to id.
    pub fn vocab(&self) -> HashMap<String, u32> {
        self.inner.get_vocab(true)
    }

    fn from_parts(
        mut inner: tokenizers::Tokenizer,
        json: Vec<u8>,
        config: Map<String, Value>,
        generation_config: Option<Value>,
        chat_template: Option<String>,
    ) -> Result<Self, TokenizerError> {
        let failed = |error: tokenizers::Error| TokenizerError::Use(error.to_string());
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        let mut plain = inner.clone();
        plain.set_encode_special_tokens(true);
        let vocab_size =
            inner.get_vocab(true).values().max().map_or(0, |largest| *largest as usize + 1);
        let words = guard::catching(|| Words::new(&plain, &json)).ok().flatten().map(Arc::new);
        let mut tokenizer = Self {
            inner,
            plain,
            words,
            json,
            config,
            generation_config,
            chat_template,
            specials: SpecialTokens::default(),
            bos: None,
            eos: None,
            pad: None,
            vocab_size,
            prefixes: Vec::new(),
        };
        tokenizer.resolve();
        Ok(tokenizer)
    }

    /// Derives the special tokens and their ids from the config and the vocabulary.
    fn resolve(&mut self) {
        let mut named = Map::new();
        for (name, value) in &self.config {
            if name.ends_with("_token")
                && let Some(token) = files::token_text(value)
            {
                named.insert(name.clone(), Value::String(token.to_owned()));
            }
        }
        let id = |name: &str| {
            named.get(name).and_then(Value::as_str).and_then(|token| self.inner.token_to_id(token))
        };
        self.bos = id("bos_token");
        self.eos = id("eos_token");
        self.pad = id("pad_token");
        let added = self.inner.get_added_tokens_decoder();
        let mut all: Vec<(u32, String)> = added
            .iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (*id, token.content.clone()))
            .collect();
        all.sort_unstable();
        let all: Vec<String> = all.into_iter().map(|(_, token)| token).collect();
        let mut prefixes: Vec<[u8; 2]> = Vec::new();
        for token in &all {
            let bytes = token.as_bytes();
            let prefix = [bytes[0], bytes.get(1).copied().unwrap_or_default()];
            if !prefixes.contains(&prefix) {
                prefixes.push(prefix);
            }
        }
        self.prefixes = prefixes;
        self.specials = SpecialTokens { named, all };
    }
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Runs a part of the tokenizers library, which panics in the middle of a text where a tokenizer that it has read does not
/// fit together.
fn guarded<T>(
    what: &str,
    run: impl FnOnce() -> tokenizers::Result<T>,
) -> Result<T, TokenizerError> {
    let failed = |why: String| TokenizerError::Use(format!("cannot {what}: {why}"));
    match guard::catching(run) {
        Ok(outcome) => outcome.map_err(|error| failed(error.to_string())),
        Err(panic) => Err(failed(format!("tokenizer.json is damaged ({panic})"))),
    }
}

fn encode(
    tokenizer: &tokenizers::Tokenizer,
    text: &str,
    add_special: bool,
) -> Result<Encoding, TokenizerError> {
    let encoding = guarded("tokenise a text", || tokenizer.encode(text, add_special))?;
    let special = encoding.get_special_tokens_mask();
    let mut covered = 0;
    let offsets = encoding
        .get_offsets()
        .iter()
        .zip(special)
        .map(|(&(start, end), &special)| {
            if special == 1 && end == 0 {
                return (covered, covered);
            }
            let start = start.min(covered);
            let end = end.max(start).min(text.len());
            covered = covered.max(end);
            (start, end)
        })
        .collect();
    Ok(Encoding { ids: encoding.get_ids().to_vec(), offsets })
}
