//! What `evaluate` found: `results.json` of its run directory, as written there and read by `report`.
//!
//! The same numbers stand in `results.parquet`, one row a [`Measurement`]; single answers in `samples.parquet`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::columns::{ANSWER, ITEM, MODEL, PROMPT, RESPONSE, SCORE, TEST};
use crate::error::{Error, Result};
use crate::rows::{Column, Kind};

/// The columns of an evaluation's `samples.parquet`, a row for each answer of a model to an item of a test. `answer` is the
/// right one; `score` is 1 or 0 by rule, or a reward model's.
#[must_use]
pub fn sample_columns() -> [Column; 7] {
    [
        Column::required(TEST, Kind::Text),
        Column::required(ITEM, Kind::Int),
        Column::required(PROMPT, Kind::Text),
        Column::optional(ANSWER, Kind::Text),
        Column::required(MODEL, Kind::Text),
        Column::required(RESPONSE, Kind::Text),
        Column::optional(SCORE, Kind::Float32),
    ]
}

/// Of `all` items, at most `most` that are evenly spread: whether the one at `place` is among them.
#[must_use]
pub fn is_spread(place: usize, all: usize, most: usize) -> bool {
    let (all, most) = (all.max(1), most.min(all));
    (place + 1) * most / all > place * most / all
}

/// Everything one run of `evaluate` measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The models, in the order of the config.
    pub models: Vec<EvaluatedModel>,
    /// The tests they took, in the order of the config.
    pub tests: Vec<Test>,
    /// Each model's result on each metric of each test.
    pub measurements: Vec<Measurement>,
    /// What changed from one model to another, on the same items.
    pub differences: Vec<Difference>,
}

/// A model that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedModel {
    /// Its name in the results.
    pub name: String,
    /// The model directory or run directory, as given.
    pub path: PathBuf,
    /// The adapter over it, as given.
    pub adapter: Option<PathBuf>,
    /// The name of the model that it came from, to which forgetting and lift are measured.
    pub parent: Option<String>,
    /// How many parameters it has, an adapter's included.
    pub parameters: u64,
}

/// A test that models took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// Its name in the results.
    pub name: String,
    /// What is done: `perplexity`, `generation`, `choice`, `preference`, `safety`, `score` or `divergence`.
    pub kind: String,
    /// What it tells, in a sentence.
    pub about: String,
    /// How many items it has.
    pub items: u64,
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// A part of all, from 0 to 1; shown as per cent.
    Share,
    /// Negative log-likelihood of a token.
    NatsPerToken,
    /// Negative log-likelihood over the text's bytes.
    BitsPerByte,
    /// The exponential of nats per token.
    Perplexity,
    /// Nats, of a whole answer.
    Nats,
    /// A reward model's, whose origin and scale are its own.
    Score,
    /// A length in tokens.
    Tokens,
}

/// In which direction a metric is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
    /// It describes, and does not judge.
    Neither,
}

/// One model's result on one metric of one test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// [`EvaluatedModel::name`].
    pub model: String,
    /// [`Test::name`].
    pub test: String,
    /// The metric's name: `accuracy`, `rougeL`, `bits_per_byte`, ...
    pub metric: String,
    /// What `value` counts.
    pub unit: Unit,
    /// Which direction is good.
    pub better: Better,
    /// The result.
    pub value: f64,
    /// The ends of its 95 % interval (bootstrap over items); none where there is nothing to draw from.
    pub interval: Option<[f64; 2]>,
    /// Over how many items.
    pub items: u64,
}

/// What changed between two models on the same items (paired).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The model that is looked at.
    pub model: String,
    /// The model that it is compared with.
    pub from: String,
    /// [`Test::name`].
    pub test: String,
    /// As in [`Measurement`].
    pub metric: String,
    /// What `value` counts.
    pub unit: Unit,
    /// Which direction is good.
    pub better: Better,
    /// The value of `model` less that of `from`.
    pub value: f64,
    /// The ends of its 95 % interval, by a paired bootstrap.
    pub interval: Option<[f64; 2]>,
}

impl Evaluation {
    /// Writes it as JSON, whole or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        text.push('\n');
        atomic::write_bytes(path, text.as_bytes())
    }

    /// Reads what [`Evaluation::write`] wrote.
    ///
    /// # Errors
    /// If it cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs_err::read_to_string(path)?;
        serde_json::from_str(&text)
            .map_err(|e| Error::BadResults { path: path.to_path_buf(), what: e.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Evaluation {
        let name = || "sft".to_owned();
        Evaluation {
            models: vec![EvaluatedModel {
                name: name(),
                path: "runs/sft".into(),
                adapter: None,
                parent: Some("pretrain".to_owned()),
                parameters: 7,
            }],
            tests: vec![Test {
                name: "tasks".to_owned(),
                kind: "generation".to_owned(),
                about: "한국어 answers".to_owned(),
                items: 3,
            }],
            measurements: vec![Measurement {
                model: name(),
                test: "tasks".to_owned(),
                metric: "accuracy".to_owned(),
                unit: Unit::Share,
                better: Better::Higher,
                value: 0.1 + 0.2,
                interval: Some([0.0, 2.0 / 3.0]),
                items: 3,
            }],
            differences: Vec::new(),
        }
    }

    #[test]
    fn what_is_taken_is_spread_evenly() {
        let taken = |all, most| -> Vec<usize> {
            (0..all).filter(|place| is_spread(*place, all, most)).collect()
        };
        assert_eq!(taken(4, 9), [0, 1, 2, 3]);
        assert_eq!(taken(6, 3), [1, 3, 5]);
        assert_eq!(taken(7, 2), [3, 6]);
        assert_eq!(taken(7, 3), [2, 4, 6]);
        assert_eq!(taken(3, 0), [0_usize; 0]);
        for (all, most) in [(100, 7), (600, 300), (13, 12), (1000, 77)] {
            assert_eq!(taken(all, most).len(), most);
        }
        assert!(taken(0, 3).is_empty());
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        one().write(&path).unwrap();
        assert_eq!(Evaluation::read(&path).unwrap(), one());
        let text = fs_err::read_to_string(&path).unwrap();
        assert!(text.contains(r#""unit": "share""#) && text.contains("한국어"), "{text}");
    }

    #[test]
    fn something_else_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        fs_err::write(&path, r#"{"models": []}"#).unwrap();
        let error = Evaluation::read(&path).unwrap_err().to_string();
        assert!(error.contains("results.json") && error.contains("tests"), "{error}");
    }
}
