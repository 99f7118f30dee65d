//! Trains a byte-level BPE tokenizer.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::sequence::Sequence as PostSequence;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::{Tokenizer, TokenizerError};
use crate::template::{CHAT, CHAT_TOKENS};

/// How to train a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BpeOptions {
    /// Number of tokens, special tokens and the 256 bytes included.
    pub vocab_size: usize,
    /// A pair must be seen this often to be merged.
    pub min_frequency: u64,
    /// Digits that may be in one token: 3 as in Llama 3 and GPT-4, 1 for models that should count.
    pub max_digits: usize,
    /// Starts every document and conversation.
    pub bos_token: String,
    /// Ends every document.
    pub eos_token: String,
    /// Only for tools that pad; no stage here does.
    pub pad_token: String,
    /// Further special tokens, after those of the chat template.
    pub extra_special_tokens: Vec<String>,
    /// Normalise to NFC inside the tokenizer too, so that decomposed Hangul typed by a user meets the
    /// same tokens as in training.
    pub nfc: bool,
}

impl Default for BpeOptions {
    fn default() -> Self {
        Self {
            vocab_size: 32768,
            min_frequency: 2,
            max_digits: 3,
            bos_token: "<|bos|>".to_owned(),
            eos_token: "<|eos|>".to_owned(),
            pad_token: "<|pad|>".to_owned(),
            extra_special_tokens: Vec::new(),
            nfc: true,
        }
    }
}

impl BpeOptions {
    /// The special tokens in vocabulary order: ids 0, 1, 2, ...
    fn special_tokens(&self) -> Result<Vec<String>, TokenizerError> {
        let own = [&self.bos_token, &self.eos_token, &self.pad_token].into_iter().cloned();
        let chat = CHAT_TOKENS.iter().map(|token| (*token).to_owned());
        let mut tokens = Vec::new();
        for token in own.chain(chat).chain(self.extra_special_tokens.iter().cloned()) {
            if token.trim().is_empty() {
                return Err(TokenizerError::Train("a special token is blank".to_owned()));
            }
            if tokens.contains(&token) {
                return Err(TokenizerError::Train(format!(
                    "special token `{token}` is named twice"
                )));
            }
            tokens.push(token);
        }
        Ok(tokens)
    }

    /// The smallest vocabulary there can be: the special tokens and the 256 bytes.
    pub fn smallest_vocab(&self) -> usize {
        256 + 3 + CHAT_TOKENS.len() + self.extra_special_tokens.len()
    }

    /// Llama 3's (GPT-4's) word pattern with the given number of digits.
    fn pattern(&self) -> String {
        format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,{}}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            self.max_digits
        )
    }
}

pub(super) fn train<I>(texts: I, options: &BpeOptions) -> Result<Tokenizer, TokenizerError>
where
    I: Iterator<Item = String> + Send,
{
    let failed = |error: tokenizers::Error| TokenizerError::Train(error.to_string());
    let smallest = options.smallest_vocab();
    if options.vocab_size < smallest {
        return Err(TokenizerError::Train(format!(
            "vocab_size {} is too small; the special tokens and the 256 bytes alone are {smallest}",
            options.vocab_size
        )));
    }
    if options.max_digits == 0 {
        return Err(TokenizerError::Train("max_digits must be at least 1".to_owned()));
    }
    let specials = options.special_tokens()?;
    let mut inner = tokenizers::Tokenizer::new(BPE::default());
    if options.nfc {
        inner.with_normalizer(Some(NFC));
    }
    let split =
        Split::new(SplitPattern::Regex(options.pattern()), SplitDelimiterBehavior::Isolated, false)
            .map_err(failed)?;
    inner.with_pre_tokenizer(Some(PreSequence::new(vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)),
    ])));
    inner.with_decoder(Some(ByteLevel::new(false, false, false)));
    let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(options.vocab_size)
        .min_frequency(options.min_frequency)
        .initial_alphabet(alphabet)
        .special_tokens(specials.iter().map(|token| AddedToken::from(token, true)).collect())
        .build();
    inner.train(&mut TrainerWrapper::from(trainer), texts).map_err(failed)?;
    let bos = options.bos_token.as_str();
    let template = TemplateProcessing::builder()
        .try_single(format!("{bos}:0 $A:0"))
        .and_then(|builder| builder.try_pair(format!("{bos}:0 $A:0 {bos}:1 $B:1")))
        .map_err(TokenizerError::Train)?
        .special_tokens(vec![(bos, inner.token_to_id(bos).unwrap_or_default())])
        .build()
        .map_err(|error| TokenizerError::Train(error.to_string()))?;
    inner.with_post_processor(Some(PostSequence::new(vec![
        PostProcessorWrapper::ByteLevel(ByteLevel::new(false, false, false)),
        PostProcessorWrapper::Template(template),
    ])));
    let json = inner.to_string(true).map_err(failed)?.into_bytes();
    let mut config = Map::new();
    for (name, token) in [
        ("bos_token", &options.bos_token),
        ("eos_token", &options.eos_token),
        ("pad_token", &options.pad_token),
    ] {
        config.insert(name.to_owned(), Value::String(token.clone()));
    }
    config.insert("clean_up_tokenization_spaces".to_owned(), Value::Bool(false));
    let mut tokenizer = Tokenizer::from_parts(inner, json, config, None, Some(CHAT.to_owned()))?;
    let stop = tokenizer.stop_ids(CHAT_TOKENS.last().copied());
    tokenizer.set_stop_ids(&stop);
    Ok(tokenizer)
}
