//! `configs/evaluate.toml`, as a user writes it.

use std::path::PathBuf;

use data::format::Mapping;
use data::records::ReadOptions;
use indexmap::IndexMap;
use model::Precision;
use model::peft::Quantization;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Decides sampled answers, drawn choices and the resamples behind the intervals.
    pub(crate) seed: u64,
    pub(crate) out: PathBuf,
    /// What the models run in.
    #[serde(default)]
    pub(crate) precision: Precision,
    #[serde(default)]
    pub(crate) batch: Batch,
    #[serde(default)]
    pub(crate) bootstrap: Bootstrap,
    /// What is measured, by the name it has in the results.
    pub(crate) models: IndexMap<String, ModelTable>,
    /// By what, by name.
    pub(crate) tests: IndexMap<String, TestTable>,
}

/// `[batch]`: memory, never the result.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Batch {
    /// Answers generated at the same time.
    pub(crate) rows: usize,
    /// The most tokens in one forward pass, where nothing is generated.
    pub(crate) tokens: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { rows: 64, tokens: 4096 }
    }
}

/// `[bootstrap]`: how intervals are found.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Bootstrap {
    /// How many resamples of the items.
    pub(crate) samples: usize,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { samples: 10_000 }
    }
}

/// `[models.NAME]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelTable {
    /// A Hugging Face directory or run directory.
    pub(crate) path: PathBuf,
    /// An adapter over it, in PEFT's layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) adapter: Option<PathBuf>,
    /// Where the tokenizer's files are, with the chat template; default: beside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// The model it came from, by name: what it is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    /// Its linear layers in 4 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) quantization: Option<Quantization>,
}

/// `[tests.NAME]`: one of the tables below says what is done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TestTable {
    /// What it tells, in a sentence, for the report.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) about: String,
    /// Which models take it; default: all that can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) models: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) perplexity: Option<Perplexity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<Generation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) choice: Option<Choice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) preference: Option<Preference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) safety: Option<Safety>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) score: Option<Score>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) divergence: Option<Divergence>,
}

/// `[tests.NAME.perplexity]`: how well text is predicted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Perplexity {
    /// Token rows of data-prep, for models of their tokenizer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) rows: Vec<PathBuf>,
    /// Or files, folders or patterns of text, for any model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<String>,
    /// How the sources are read.
    pub(crate) read: ReadOptions,
    /// The column of the text in them; default: `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) column: Option<String>,
    /// Only so many documents, evenly spread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_items: Option<usize>,
    /// The most tokens that a model sees at once; default: its positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<usize>,
    /// How far the window moves over a longer document; default: half of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stride: Option<usize>,
}

/// What is reported of generated text beside its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measure {
    /// The share that the prompts' checkers accept.
    Accuracy,
    /// ROUGE-1, ROUGE-2 and ROUGE-L against the right answer.
    Rouge,
    /// chrF against it.
    Chrf,
    /// Whether it is the right answer but for case, punctuation and articles.
    ExactMatch,
    /// F1 of the words.
    F1,
}

/// `[tests.NAME.generation]`: prompts answered, greedily, and compared by rule or with right answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Generation {
    pub(crate) prompts: Vec<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_items: Option<usize>,
    #[serde(default = "new_tokens")]
    pub(crate) max_new_tokens: usize,
    /// Default: whatever the prompts have a checker or an answer for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) measures: Option<Vec<Measure>>,
}

/// `[tests.NAME.choice]`: which of several answers a model finds the most probable.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Choice {
    /// Files, folders or patterns of records with their choices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<String>,
    #[serde(default)]
    pub(crate) read: ReadOptions,
    /// What stands between question and choice.
    #[serde(default = "blank")]
    pub(crate) delimiter: String,
    /// Ask through the chat template, and take the end of the turn into the choice.
    #[serde(default)]
    pub(crate) chat: bool,
    /// Or prompts with right answers, to which wrong ones are drawn from other prompts of the task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) prompts: Vec<PathBuf>,
    /// How many wrong ones.
    #[serde(default = "three")]
    pub(crate) wrong_answers: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_items: Option<usize>,
}

/// `[tests.NAME.preference]`: whether a reward model scores the better of two answers higher.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Preference {
    /// Pair rows of data-prep, for models of their tokenizer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) rows: Vec<PathBuf>,
    /// Or files, folders or patterns of records, for any model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<String>,
    pub(crate) read: ReadOptions,
    /// Which of their fields to use, as in data-prep.
    pub(crate) mapping: Mapping,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_items: Option<usize>,
}

/// `[tests.NAME.safety]`: unsafe requests, and harmless ones that look alike.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Safety {
    pub(crate) prompts: Vec<PathBuf>,
    /// Its phrases tell what a refusal is.
    pub(crate) constitution: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_items: Option<usize>,
    #[serde(default = "new_tokens")]
    pub(crate) max_new_tokens: usize,
}

/// `[tests.NAME.score]`: answers scored by a reward model.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Score {
    pub(crate) prompts: Vec<PathBuf>,
    /// A Hugging Face directory or run directory.
    pub(crate) reward_model: PathBuf,
    /// The model whose answers the others' are compared with, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_items: Option<usize>,
    #[serde(default = "new_tokens")]
    pub(crate) max_new_tokens: usize,
    /// 0 takes the most probable token.
    #[serde(default)]
    pub(crate) temperature: f64,
}

/// `[tests.NAME.divergence]`: how far a model has moved from another, over answers it samples.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Divergence {
    pub(crate) prompts: Vec<PathBuf>,
    /// The other model, by name.
    pub(crate) reference: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_items: Option<usize>,
    #[serde(default = "new_tokens")]
    pub(crate) max_new_tokens: usize,
}

fn new_tokens() -> usize {
    256
}

fn three() -> usize {
    3
}

fn blank() -> String {
    " ".to_owned()
}
