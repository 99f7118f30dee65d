//! The configuration as the user writes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use data::encode::Overlong;
use data::format::{Kind, Mapping};
use data::records::ReadOptions;
use serde::{Deserialize, Serialize};

use crate::world::WorldSpec;

/// `configs/data-prep.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Decides the validation split.
    pub(crate) seed: u64,
    /// The run directory.
    pub(crate) out: PathBuf,
    /// Rows of each data set to show, token by token.
    #[serde(default = "preview_rows")]
    pub(crate) preview_rows: usize,
    pub(crate) tokenizer: TokenizerConfig,
    /// Name to data set; the names become `data/<name>/`.
    pub(crate) datasets: BTreeMap<String, DatasetConfig>,
}

fn preview_rows() -> usize {
    2
}

/// Where the tokenizer comes from: exactly one of `train` and `existing`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizerConfig {
    /// Train one on the data.
    pub(crate) train: Option<TrainTokenizer>,
    /// Take one that exists.
    pub(crate) existing: Option<ExistingTokenizer>,
    /// A chat template (Jinja) in place of the tokenizer's own.
    pub(crate) chat_template: Option<String>,
    /// The same, in a file.
    pub(crate) chat_template_file: Option<PathBuf>,
    /// What `strftime_now` tells in the chat template, so that the data does not depend on the day.
    #[serde(default = "chat_template_date")]
    pub(crate) chat_template_date: String,
}

fn chat_template_date() -> String {
    "2026-01-01".to_owned()
}

/// A byte-level BPE to train.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainTokenizer {
    pub(crate) vocab_size: usize,
    #[serde(default = "min_frequency")]
    pub(crate) min_frequency: u64,
    #[serde(default = "max_digits")]
    pub(crate) max_digits: usize,
    #[serde(default = "yes")]
    pub(crate) nfc: bool,
    #[serde(default)]
    pub(crate) extra_special_tokens: Vec<String>,
    /// Data sets to train on. Default: all.
    pub(crate) datasets: Option<Vec<String>>,
    /// The most text to train on, held in memory; more is sampled down evenly.
    #[serde(default = "max_train_mb")]
    pub(crate) max_train_mb: usize,
}

fn min_frequency() -> u64 {
    2
}

fn max_digits() -> usize {
    3
}

fn max_train_mb() -> usize {
    256
}

fn yes() -> bool {
    true
}

/// A tokenizer that exists.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExistingTokenizer {
    /// A folder with `tokenizer.json`, a run directory, or the file itself.
    pub(crate) path: PathBuf,
    /// For tokenizers whose files do not name them.
    pub(crate) bos_token: Option<String>,
    /// As above.
    pub(crate) eos_token: Option<String>,
    /// As above.
    pub(crate) pad_token: Option<String>,
}

/// One data set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatasetConfig {
    pub(crate) kind: Kind,
    /// Files, folders or patterns.
    pub(crate) sources: Option<Vec<String>>,
    /// Generate records instead.
    pub(crate) world: Option<WorldSpec>,
    /// The most tokens in a row.
    pub(crate) max_length: usize,
    /// What to do with longer examples. Default: `split` for text, `drop` for the others.
    pub(crate) overlong: Option<Overlong>,
    /// The part of the data that goes into the validation split.
    #[serde(default)]
    pub(crate) validation_fraction: f64,
    /// A field that says which split a record belongs to, in place of the fraction.
    pub(crate) split_field: Option<String>,
    /// Also write the prompts of the training split.
    #[serde(default)]
    pub(crate) train_prompts: bool,
    #[serde(default)]
    pub(crate) bad_records: BadRecords,
    #[serde(default)]
    pub(crate) read: ReadOptions,
    #[serde(default)]
    pub(crate) mapping: Mapping,
    #[serde(default)]
    pub(crate) clean: Clean,
    #[serde(default)]
    pub(crate) filter: Filter,
    #[serde(default)]
    pub(crate) dedup: Dedup,
}

/// What to do with records that cannot be read or used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BadRecords {
    /// Stop at the first.
    #[default]
    Fail,
    /// Leave them out and count them by reason.
    Skip,
}

/// Changes to the text before anything else looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Clean {
    /// Unicode NFC: decomposed Hangul becomes syllables.
    pub(crate) nfc: bool,
    /// Drop control characters except line break and tab, byte order marks and zero-width spaces;
    /// CRLF becomes LF.
    pub(crate) control_characters: bool,
    /// Drop blanks at line ends and around the text; at most one blank line in a row.
    pub(crate) whitespace: bool,
}

impl Default for Clean {
    fn default() -> Self {
        Self { nfc: true, control_characters: true, whitespace: true }
    }
}

/// Lengths to keep, in characters (Unicode scalar values) of the whole example.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Filter {
    pub(crate) min_chars: Option<usize>,
    pub(crate) max_chars: Option<usize>,
}

/// Which repeats to drop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Dedup {
    /// Equal but for case and white space.
    pub(crate) exact: bool,
    /// Nearly equal; absent: not looked for.
    pub(crate) near: Option<Near>,
}

impl Default for Dedup {
    fn default() -> Self {
        Self { exact: true, near: None }
    }
}

/// MinHash with locality-sensitive hashing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Near {
    /// Drop a text whose estimated Jaccard similarity with one kept before is at least this.
    pub(crate) threshold: f64,
    /// Length of the signature.
    pub(crate) num_hashes: usize,
    /// Bands the signature is cut into; must divide `num_hashes`.
    pub(crate) bands: usize,
    /// Length of the shingles, in characters.
    pub(crate) shingle_chars: usize,
}

impl Default for Near {
    fn default() -> Self {
        Self { threshold: 0.8, num_hashes: 128, bands: 16, shingle_chars: 5 }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn keys(value: &Value, found: &mut Vec<String>) {
        if let Value::Object(fields) = value {
            for (key, inner) in fields {
                found.push(key.clone());
                keys(inner, found);
            }
        }
    }

    /// The shipped file is the reference: every key that the program knows is in it, if only in a comment.
    #[test]
    fn the_shipped_file_shows_every_key() {
        let mapping = |key: &str| (key.to_owned(), json!("x"));
        let mut mappings: serde_json::Map<String, Value> = [
            "text",
            "text_template",
            "system",
            "system_template",
            "prompt",
            "prompt_template",
            "completion",
            "completion_template",
            "chosen",
            "chosen_template",
            "rejected",
            "rejected_template",
            "margin",
            "messages",
            "role_key",
            "content_key",
            "instruction_template",
        ]
        .into_iter()
        .map(mapping)
        .collect();
        mappings.insert("roles".to_owned(), json!({}));
        mappings.insert("turns".to_owned(), json!(["x", "y"]));
        mappings.insert("train_on_prompt".to_owned(), json!(true));
        let full = json!({
            "seed": 1, "out": "x", "preview_rows": 1,
            "tokenizer": {
                "chat_template": "x", "chat_template_file": "x", "chat_template_date": "2026-01-01",
                "train": {"vocab_size": 1, "min_frequency": 1, "max_digits": 1, "nfc": true, "extra_special_tokens": [],
                          "datasets": [], "max_train_mb": 1},
                "existing": {"path": "x", "bos_token": "x", "eos_token": "x", "pad_token": "x"},
            },
            "datasets": {"text": {
                "kind": "text", "sources": [], "max_length": 1, "overlong": "drop", "validation_fraction": 0.0,
                "split_field": "x", "train_prompts": false, "bad_records": "fail",
                "world": {"seed": 1, "part": "pretrain", "records": 1, "held_out": 1, "constitution": "x", "tags": []},
                "read": {"format": "text", "text_unit": "line", "columns": [], "field": "x", "by_key": true},
                "mapping": mappings,
                "clean": {"nfc": true, "control_characters": true, "whitespace": true},
                "filter": {"min_chars": 1, "max_chars": 1},
                "dedup": {"exact": true, "near": {"threshold": 0.5, "num_hashes": 1, "bands": 1, "shingle_chars": 1}},
            }},
        });
        // Reading and writing it again gives the same keys, so none is missing above.
        let config: Config = serde_json::from_value(full.clone()).unwrap();
        let (mut known, mut written) = (Vec::new(), Vec::new());
        keys(&full, &mut known);
        keys(&serde_json::to_value(&config).unwrap(), &mut written);
        known.sort();
        written.sort();
        assert_eq!(known, written);
        let shipped = include_str!("../../../configs/data-prep.toml");
        for key in known {
            let shown = shipped.contains(&format!("{key} = "))
                || shipped.contains(&format!("{key}]"))
                || shipped.contains(&format!("[{key}."));
            assert!(shown, "`{key}` is not in configs/data-prep.toml");
        }
    }
}
