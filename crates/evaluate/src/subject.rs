//! A model that is measured: its files found good, and texts as it reads them.

use std::path::PathBuf;

use data::encode::chat_prompt;
use data::format::Message;
use data::template::ChatTemplate;
use data::tokenizer::Tokenizer;
use model::peft::Quantization;
use model::{Decoder, Head, ModelConfig, Precision};
use stage::Problems;
use tch::Device;
use training::peft::Place;

use crate::asked::Asked;
use crate::config::ModelTable;

/// A model and all that goes with it but its weights.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) table: ModelTable,
    pub(crate) place: Place,
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) parameters: u64,
    /// The key by which it gets another tokenizer, where there is one.
    tokenizer_key: Option<String>,
}

impl Subject {
    /// Finds the files of a model; `key` names its table.
    pub(crate) fn find(
        key: &str,
        name: &str,
        table: &ModelTable,
        problems: &mut Problems,
    ) -> Option<Self> {
        let path = format!("{key}.path");
        let place = problems.take(&path, Place::find(&table.path, table.adapter.as_deref()))?;
        let config = problems.take(&path, place.config())?;
        let parameters = problems.take(&path, place.num_parameters())?;
        let tokenizer_key = format!("{key}.tokenizer");
        let (own, at) = match &table.tokenizer {
            Some(own) => (tokenizer_key.clone(), own.as_path()),
            None => (path, place.tokenizer_dir()),
        };
        let mut tokenizer = problems.take(&own, Tokenizer::load(at))?;
        let (ids, vocabulary) = (tokenizer.vocab_size() as i64, config.vocab_size);
        if ids > vocabulary {
            let shown = at.display();
            let what =
                format_args!("{shown}: has {ids} tokens, and the model knows only {vocabulary}");
            problems.push(own, what);
            return None;
        }
        let source = tokenizer.chat_template();
        let template =
            source.map(|source| ChatTemplate::parse(source, tokenizer.specials().clone()));
        let template = problems.take(&own, template.transpose())?;
        // A response ends where a turn ends, whatever the model's own files say of it.
        let end = template.as_ref().and_then(ChatTemplate::end_of_turn).map(str::to_owned);
        tokenizer.set_stop_ids(&tokenizer.stop_ids(end.as_deref()));
        let (name, table) = (name.to_owned(), table.clone());
        let tokenizer_key = Some(tokenizer_key);
        Some(Self { name, table, place, config, tokenizer, template, parameters, tokenizer_key })
    }

    /// A reward model that judges, and is not measured itself.
    pub(crate) fn judge(key: &str, path: PathBuf, problems: &mut Problems) -> Option<Self> {
        let table =
            ModelTable { path, adapter: None, tokenizer: None, parent: None, quantization: None };
        // Its table has no `path` of its own: the key is the path.
        let mut own = Problems::new();
        let name = table.path.display().to_string();
        let found = Self::find("", &name, &table, &mut own);
        if found.is_none() {
            let what = own.to_string();
            problems.push(key, what.trim_start_matches("- ").trim_start_matches(".path: "));
        }
        let found = Self { tokenizer_key: None, ..found? };
        let scores = found.config.head == Head::Score;
        let shown = found.table.path.display();
        let what = format_args!("{shown}: {}", model::Error::NoScore).to_string();
        problems.check(scores, key, what).then_some(found)
    }

    /// Reads the weights, to use and not to train.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub(crate) fn load(&self, device: Device, precision: Precision) -> anyhow::Result<Decoder> {
        let quantization: Option<&Quantization> = self.table.quantization.as_ref();
        let mut decoder = self.place.load_quantized(device, precision, quantization)?;
        decoder.set_training(false);
        Ok(decoder)
    }

    /// Whether it writes text, and is no reward model.
    pub(crate) fn speaks(&self) -> bool {
        self.config.check_language_model().is_ok()
    }

    /// Tokens that it takes.
    pub(crate) fn positions(&self) -> usize {
        self.config.max_position_embeddings as usize
    }

    /// Token ids of a conversation up to where the assistant answers.
    ///
    /// # Errors
    /// No chat template; the template's.
    pub(crate) fn chat_ids(&self, messages: &[Message]) -> anyhow::Result<Vec<i64>> {
        let Some(template) = &self.template else {
            let advice = self.tokenizer_key.as_ref();
            let advice = advice.map_or_else(
                || "; name a model whose own has".to_owned(),
                |key| format!("; name one that has with {key}"),
            );
            anyhow::bail!(
                "the tokenizer of `{}` has no chat template, so no conversation can be held with it{advice}",
                self.name
            );
        };
        Ok(widen(&chat_prompt(&self.tokenizer, template, messages)?))
    }

    /// Token ids of a prompt: its conversation by the model's own chat template, or the text as it is where it is none.
    ///
    /// # Errors
    /// As [`chat_ids`](Self::chat_ids); the tokenizer's.
    pub(crate) fn prompt_ids(&self, asked: &Asked) -> anyhow::Result<Vec<i64>> {
        match &asked.messages {
            Some(messages) => self.chat_ids(messages),
            None => Ok(widen(&self.tokenizer.encode(&asked.row.prompt, false)?.ids)),
        }
    }

    /// The tokens of a response as they are, and with `ended` what a response ends with.
    ///
    /// # Errors
    /// The tokenizer's.
    pub(crate) fn response_ids(&self, text: &str, ended: bool) -> anyhow::Result<Vec<i64>> {
        let mut ids = self.tokenizer.ids_plain(text, false)?;
        if ended {
            let turn = self.template.as_ref().and_then(ChatTemplate::end_of_turn);
            let turn = turn.and_then(|token| self.tokenizer.token_id(token));
            ids.extend(turn.or(self.tokenizer.eos_id()));
        }
        Ok(widen(&ids))
    }

    /// What stands before a text that nothing precedes: the token for the beginning, or where there is none that for the end.
    pub(crate) fn beginning(&self) -> Option<i64> {
        self.tokenizer.bos_id().or(self.tokenizer.eos_id()).map(i64::from)
    }
}

pub(crate) fn widen(ids: &[u32]) -> Vec<i64> {
    ids.iter().map(|&id| i64::from(id)).collect()
}
