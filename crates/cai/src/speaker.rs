//! A model that takes its turn in conversations, many at a time.

use std::path::{Path, PathBuf};

use artifact::tokens::TokenMeta;
use data::encode::chat_prompt;
use data::format::Message;
use data::template::ChatTemplate;
use data::tokenizer::Tokenizer;
use model::generate::{Request, Sampling};
use model::{Decoder, LoadOptions, ModelConfig, Precision};
use serde::{Deserialize, Serialize};
use stage::{Context, Problems};
use tch::Device;
use training::respond::{Responder, Response, Stop};

/// `[model]`, `[critic]`, `[feedback]`: a model that speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelTable {
    /// A Hugging Face directory or run directory.
    pub(crate) path: PathBuf,
    /// Where its tokenizer's files with the chat template are; default: beside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tokenizer: Option<PathBuf>,
}

/// A model's files, found good; no tensor yet.
pub(crate) struct Source {
    pub(crate) dir: PathBuf,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: ChatTemplate,
    pub(crate) config: ModelConfig,
}

impl Source {
    /// Finds a model that can hold a conversation; `key` names its table.
    pub(crate) fn find(key: &str, table: &ModelTable, problems: &mut Problems) -> Option<Self> {
        let of = |part: &str| format!("{key}.{part}");
        let dir = problems.take(&of("path"), artifact::model_dir(&table.path))?;
        let config = problems.take(&of("path"), ModelConfig::from_dir(&dir))?;
        problems.take(&of("path"), config.check_language_model())?;
        let (own, at) = match &table.tokenizer {
            Some(path) => (of("tokenizer"), path.as_path()),
            None => (of("path"), dir.as_path()),
        };
        let tokenizer = problems.take(&own, Tokenizer::load(at))?;
        let Some(source) = tokenizer.chat_template() else {
            let what = "has no chat template, so no conversation can be held with it; name a tokenizer with one in";
            problems.push(&own, format_args!("{}: {what} `{key}.tokenizer`", at.display()));
            return None;
        };
        let template = ChatTemplate::parse(source, tokenizer.specials().clone());
        let template = problems.take(&own, template)?;
        let (ids, vocabulary) = (tokenizer.vocab_size() as i64, config.vocab_size);
        if ids > vocabulary {
            let what = "tokens, and the model knows only";
            problems.push(&own, format_args!("{}: {ids} {what} {vocabulary}", at.display()));
            return None;
        }
        Some(Self { dir, tokenizer, template, config })
    }

    /// As [`find`](Self::find) where a table is there; `None` where it is and cannot be used.
    #[expect(clippy::option_option, reason = "not asked for, and not found, are two things")]
    pub(crate) fn find_if(
        key: &str,
        table: Option<&ModelTable>,
        problems: &mut Problems,
    ) -> Option<Option<Self>> {
        match table {
            Some(table) => Self::find(key, table, problems).map(Some),
            None => Some(None),
        }
    }

    /// Reads the weights, to answer and not to train.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub(crate) fn load(&self, device: Device, precision: Precision) -> anyhow::Result<Decoder> {
        Ok(Decoder::load(&self.dir, &LoadOptions { device, precision, trainable: false })?)
    }

    /// Puts the tokenizer beside the rows that a run makes with it, and says for their files how they are made.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn begin_rows(&self, ctx: &mut Context) -> anyhow::Result<TokenMeta> {
        let (tokenizer, template) = (self.tokenizer.digest(), self.template.digest());
        self.tokenizer.save(ctx.run_dir.tokenizer_dir())?;
        ctx.tokenizer = Some(tokenizer.clone());
        ctx.chat_template = Some(template.clone());
        Ok(TokenMeta {
            tokenizer,
            vocab_size: self.tokenizer.vocab_size(),
            seq_len: self.positions(),
            chat_template: Some(template),
        })
    }

    /// Token ids of a conversation up to where the assistant answers, and of what the answer begins with.
    ///
    /// # Errors
    /// The chat template's.
    pub(crate) fn ids(&self, messages: &[Message], begun: &str) -> anyhow::Result<Vec<i64>> {
        let ids = if begun.is_empty() {
            chat_prompt(&self.tokenizer, &self.template, messages)?
        } else {
            let text = self.template.render(messages, true)?;
            self.tokenizer.encode(&format!("{text}{begun}"), false)?.ids
        };
        Ok(ids.into_iter().map(i64::from).collect())
    }

    /// Tokens of a prompt with its response that the model takes.
    pub(crate) fn positions(&self) -> usize {
        self.config.max_position_embeddings as usize
    }
}

/// A turn that is asked for.
#[derive(Clone)]
pub(crate) struct Turn {
    pub(crate) messages: Vec<Message>,
    /// Decides the random numbers.
    pub(crate) seed: u64,
}

/// How a turn is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manner {
    /// Divides the logits; 0 takes the most probable token.
    pub(crate) temperature: f64,
    /// The most tokens.
    pub(crate) max_new_tokens: usize,
}

impl Manner {
    /// Notes what is out of range.
    pub(crate) fn check(self, key: &str, problems: &mut Problems) {
        let sampling = Sampling { temperature: self.temperature, ..Sampling::default() };
        problems.take(key, sampling.check());
        problems.check(
            self.max_new_tokens > 0,
            &format!("{key}.max_new_tokens"),
            "must be at least 1",
        );
    }
}

/// A model at work.
pub(crate) struct Speaker<'a> {
    pub(crate) source: &'a Source,
    responder: Responder<'a>,
}

impl<'a> Speaker<'a> {
    /// `rows` turns are sampled at the same time.
    ///
    /// # Errors
    /// If that is 0.
    pub(crate) fn new(
        source: &'a Source,
        decoder: &'a Decoder,
        stop_strings: &[String],
        rows: usize,
    ) -> anyhow::Result<Self> {
        let stop = Stop { strings: stop_strings, ignore_eos: false };
        let responder = Responder::new(decoder, &source.tokenizer, stop, rows)?;
        Ok(Self { source, responder })
    }

    /// Takes all turns; `None` for one whose conversation leaves no room for it, or spells out a special token.
    ///
    /// # Errors
    /// The chat template's; logits that are not finite.
    pub(crate) fn say(
        &mut self,
        turns: &[Turn],
        manner: Manner,
    ) -> anyhow::Result<Vec<Option<Response>>> {
        let room = self.source.positions();
        let mut requests = Vec::with_capacity(turns.len());
        let mut fits = Vec::with_capacity(turns.len());
        for turn in turns {
            let forged = |m: &Message| self.source.tokenizer.special_in(&m.content).is_some();
            let ids = self.source.ids(&turn.messages, "")?;
            let fit =
                ids.len() + manner.max_new_tokens <= room && !turn.messages.iter().any(forged);
            fits.push(fit);
            if fit {
                let sampling = Sampling {
                    temperature: manner.temperature,
                    seed: turn.seed,
                    ..Sampling::default()
                };
                requests.push(Request { ids, max_new_tokens: manner.max_new_tokens, sampling });
            }
        }
        let mut said = self.responder.answer(&requests)?.into_iter();
        Ok(fits.into_iter().map(|fit| if fit { said.next() } else { None }).collect())
    }
}

/// The user's and the assistant's turns.
pub(crate) fn user(text: impl Into<String>) -> Message {
    Message::new("user", text)
}

pub(crate) fn assistant(text: impl Into<String>) -> Message {
    Message::new("assistant", text)
}

/// The folder of a path for messages.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}
