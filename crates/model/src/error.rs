//! What can go wrong, in kinds a caller can act on.

use std::fmt;
use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// An error of this crate. Every message names the file, key, tensor or request it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `config.json` cannot be used; all problems of the file are listed.
    #[error("{origin}: cannot use this model config:{problems}")]
    Config {
        /// The file, or `config` for one that is not from a file.
        origin: String,
        /// Every problem found, each naming its key.
        problems: Problems,
    },
    /// The weight files of a directory do not fit its config.
    #[error("{dir}: the weights do not fit config.json:{problems}")]
    Weights {
        /// The model directory.
        dir: PathBuf,
        /// Missing, unexpected and mis-shaped tensors by name.
        problems: Problems,
    },
    /// A weight file or index is damaged or not what its name says.
    #[error("{path}: {problem}")]
    WeightFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Token ids, positions or document starts that this model cannot take.
    #[error("{0}")]
    Input(String),
    /// Logits are asked of a reward model.
    #[error(
        "this is a reward model, which has no language-model head; give a causal language model (`...ForCausalLM`)"
    )]
    NoLanguageModel,
    /// Scores are asked of a language model.
    #[error(
        "this is a language model, which has no score; give a reward model (`...ForSequenceClassification` with one label)"
    )]
    NoScore,
    /// An adapter that this model cannot take.
    #[error("{0}")]
    Adapter(String),
    /// An adapter's tensors do not fit the model.
    #[error(
        "{dir}: this adapter is of another base{}:{problems}",
        .base.as_ref().map(|base| format!(" (its config names {base})")).unwrap_or_default()
    )]
    AdapterMisfit {
        /// The adapter's directory.
        dir: PathBuf,
        /// The base that its config names.
        base: Option<String>,
        /// Missing, unexpected and mis-shaped tensors by name.
        problems: Problems,
    },
    /// Something of an adapter is asked of a model without one.
    #[error("this model has no adapter")]
    NoAdapter,
    /// A generation request or its settings are invalid.
    #[error("{0}")]
    Request(String),
    /// Another process that holds a part of the model is gone.
    #[error("{0}")]
    Ranks(#[source] anyhow::Error),
    /// Reading or writing a file failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file could not be mapped or written.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// libtorch reported an error through tch.
    #[error(transparent)]
    Tch(#[from] tch::TchError),
    /// libtorch, or a custom autograd node, reported an error.
    #[error(transparent)]
    Torch(#[from] torch_ext::TorchError),
}

/// A list of problems, printed one on a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl Problems {
    /// Adds one problem.
    pub fn push(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            write!(f, "\n  - {problem}")?;
        }
        Ok(())
    }
}
