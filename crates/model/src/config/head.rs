//! What a model's final hidden states become.

use super::{Architecture, ModelConfig};
use crate::error::{Error, Result};
use serde_json::json;

/// The output layer of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Head {
    /// Logits over the vocabulary: transformers' `...ForCausalLM`.
    #[default]
    LanguageModel,
    /// A score at every position, `score.weight` `[1, D]`: transformers' `...ForSequenceClassification` with one label,
    /// which reads the score of the last token.
    Score,
    /// Both over one trunk: a policy that predicts the value of its own states. Written as a causal language model, without
    /// the score.
    LanguageModelAndScore,
}

impl Head {
    /// Whether there are logits.
    pub fn has_language_model(self) -> bool {
        self != Self::Score
    }

    /// Whether there is a score.
    pub fn has_score(self) -> bool {
        self != Self::LanguageModel
    }
}

/// The score's weight in files.
pub(crate) const SCORE: &str = "score.weight";

impl Architecture {
    /// The class in transformers that is this family's model with this head.
    pub fn class(self, head: Head) -> String {
        let classification = |name: &str| format!("{name}ForSequenceClassification");
        match (self, head.has_language_model()) {
            (Self::Gpt2, true) => "GPT2LMHeadModel".to_owned(),
            (Self::Gpt2, false) => classification("GPT2"),
            (_, true) => format!("{}ForCausalLM", self.class_prefix()),
            (_, false) => classification(self.class_prefix()),
        }
    }

    fn class_prefix(self) -> &'static str {
        match self {
            Self::Gpt2 => "GPT2",
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
        }
    }
}

impl ModelConfig {
    /// Checks that this is a language model.
    ///
    /// # Errors
    /// It is a reward model.
    pub fn check_language_model(&self) -> Result<()> {
        if self.head.has_language_model() { Ok(()) } else { Err(Error::NoLanguageModel) }
    }

    /// Sets the output layer, for a model that is to be trained with another one.
    pub fn set_head(&mut self, head: Head) {
        self.head = head;
        for (key, value) in
            [("id2label", json!({"0": "LABEL_0"})), ("label2id", json!({"LABEL_0": 0}))]
        {
            if head == Head::Score {
                self.raw.insert(key.into(), value);
            } else {
                self.raw.remove(key);
            }
        }
    }

    /// Notes mean and standard deviation of a reward model's scores, so that whoever uses them can bring them to a known
    /// scale. Written as `score_mean` and `score_std`, which transformers keeps and does not use.
    pub fn set_score_statistics(&mut self, mean: f64, deviation: f64) {
        self.score_statistics = Some((mean, deviation));
        self.raw.insert("score_mean".into(), mean.into());
        self.raw.insert("score_std".into(), deviation.into());
    }
}
