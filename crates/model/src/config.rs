//! `config.json` of Hugging Face: read, checked, written back.

mod head;
mod read;
mod rope;
#[cfg(test)]
mod tests;
mod write;

use crate::error::{Error, Problems, Result};
use crate::layout::{BlockId, PartSpec, layout};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

pub use head::Head;
pub(crate) use head::SCORE;
pub use rope::{Rope, RopeScaling};

/// The families of models that this crate computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// GPT-2 and DialoGPT: learned positions, `LayerNorm`, `Conv1D` weights.
    Gpt2,
    /// Llama 1, 2, 3.
    Llama,
    /// Mistral: Llama with a sliding attention window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on query, key and value.
    Qwen2,
    /// Qwen3: `RMSNorm` on each head's query and key.
    Qwen3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Gpt2, Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// The `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// The non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`: GELU by the tanh formula.
    GeluTanh,
    /// `gelu`: GELU by the error function.
    Gelu,
    /// `silu`, `swish`.
    Silu,
    /// `relu`.
    Relu,
    /// `tanh`.
    Tanh,
    /// `quick_gelu`: `x * sigmoid(1.702 x)`.
    QuickGelu,
}

/// Dropout probabilities, used in training mode only.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Dropout {
    /// After the embeddings (GPT-2 `embd_pdrop`).
    pub embedding: f64,
    /// On attention probabilities (`attn_pdrop`, `attention_dropout`).
    pub attention: f64,
    /// On what is added to the residual stream (GPT-2 `resid_pdrop`).
    pub residual: f64,
}

impl Dropout {
    /// Whether any is above 0.
    pub fn any(&self) -> bool {
        self.embedding > 0.0 || self.attention > 0.0 || self.residual > 0.0
    }
}

/// A decoder's shape, as `config.json` describes it. Names follow the Llama family's `config.json`.
///
/// Made by [`from_dir`](Self::from_dir) or [`from_json`](Self::from_json) only, so that what it holds is consistent.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "config.json has them")]
#[non_exhaustive]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// The output layer.
    pub head: Head,
    /// Number of token ids.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width of the MLP.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Query heads.
    pub num_attention_heads: i64,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: i64,
    /// Size of a head.
    pub head_dim: i64,
    /// Positions 0 up to this exist.
    pub max_position_embeddings: i64,
    /// Epsilon of all norms.
    pub norm_eps: f64,
    /// Non-linearity of the MLP.
    pub activation: Activation,
    /// Whether the head's weight is the token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
    /// Query, key and value have biases.
    pub qkv_bias: bool,
    /// The attention output has a bias.
    pub attention_out_bias: bool,
    /// The MLP has biases.
    pub mlp_bias: bool,
    /// Each head's query and key pass through an `RMSNorm` (Qwen3).
    pub qk_norm: bool,
    /// Rotary positions; `None` for learned ones (GPT-2).
    pub rope: Option<Rope>,
    /// For each layer the number of last positions it attends to, its own included; `None` is all.
    pub sliding_windows: Vec<Option<i64>>,
    /// For each layer the factor on query-key products.
    pub attention_scales: Vec<f64>,
    /// Dropout probabilities.
    pub dropout: Dropout,
    /// Beginning-of-sequence id.
    pub bos_token_id: Option<i64>,
    /// End-of-sequence ids; usually one, none where the config has none.
    pub eos_token_ids: Vec<i64>,
    /// Padding id.
    pub pad_token_id: Option<i64>,
    /// Mean and standard deviation of a reward model's scores, where they are known.
    pub score_statistics: Option<(f64, f64)>,
    /// The source object, unknown keys included.
    raw: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json` of a Hugging Face directory.
    ///
    /// # Errors
    /// Names the file; lists every problem with its key: missing, of a wrong type, out of range, unsupported.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = fs_err::read_to_string(&path)?;
        let origin = path.display().to_string();
        let value = serde_json::from_str(&text).map_err(|error| Error::Config {
            origin: origin.clone(),
            problems: Problems(vec![format!("not JSON: {error}")]),
        })?;
        read::config(&value).map_err(|problems| Error::Config { origin, problems })
    }

    /// The config of a JSON object as `config.json` holds it.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn from_json(value: &Value) -> Result<Self> {
        read::config(value).map_err(|problems| Error::Config { origin: "config".into(), problems })
    }

    /// Whether its linear layers are stored as `[in, out]`.
    pub(crate) fn is_conv1d(&self) -> bool {
        self.architecture == Architecture::Gpt2
    }

    /// Whether its embedding is its output layer too.
    pub(crate) fn ties_head(&self) -> bool {
        self.tie_word_embeddings && self.head.has_language_model()
    }

    /// Number of parameters; a tied embedding counts once.
    pub fn num_parameters(&self) -> u64 {
        let parts = layout(self).blocks.into_iter().flat_map(|block| block.parts);
        parts.map(|part| part.shape.iter().product::<i64>() as u64).sum()
    }

    /// The most parameters that a pass over a divided model has whole at a time: those outside of the layers, and two layers'.
    pub fn num_gathered_parameters(&self) -> u64 {
        let layout = layout(self);
        let numel = |part: &PartSpec| part.shape.iter().product::<i64>() as u64;
        let size = |unit: &Vec<BlockId>| -> u64 {
            unit.iter().flat_map(|block| &layout.blocks[*block].parts).map(numel).sum()
        };
        let units = layout.units();
        let layer = units.iter().skip(1).map(size).max();
        units.first().map_or(0, size) + 2 * layer.unwrap_or(0)
    }

    /// Number of parameters in embeddings, a tied one included.
    pub fn num_embedding_parameters(&self) -> u64 {
        let parts = layout(self).blocks.into_iter().flat_map(|block| block.parts);
        let embeddings = parts.filter(|part| is_embedding(&part.name));
        embeddings.map(|part| part.shape.iter().product::<i64>() as u64).sum()
    }

    /// Floating-point operations of matrix products for one token of one forward pass, attention over `context`
    /// earlier positions included; a training step takes three times as many.
    pub fn forward_flops_per_token(&self, context: f64) -> f64 {
        let matrices: i64 = layout(self)
            .blocks
            .into_iter()
            .flat_map(|block| block.parts)
            .filter(|part| part.shape.len() == 2 && !is_embedding(&part.name))
            .map(|part| part.shape.iter().product::<i64>())
            .sum();
        let tied = self.tie_word_embeddings && self.head.has_language_model();
        let head = self.vocab_size * self.hidden_size * i64::from(tied);
        let heads = (self.num_hidden_layers * self.num_attention_heads * self.head_dim) as f64;
        2.0 * (matrices + head) as f64 + 4.0 * heads * context
    }

    /// Sets the number of token ids, for a model that is to be initialised for another tokenizer.
    pub fn set_vocab_size(&mut self, vocab_size: i64) {
        self.vocab_size = vocab_size;
        self.raw.insert("vocab_size".into(), vocab_size.into());
    }

    /// Sets the special token ids, for a model that is to be trained with another tokenizer or template.
    pub fn set_token_ids(&mut self, bos: Option<i64>, eos: &[i64], pad: Option<i64>) {
        (self.bos_token_id, self.pad_token_id) = (bos, pad);
        self.eos_token_ids = eos.to_vec();
        self.raw.insert("bos_token_id".into(), bos.into());
        self.raw.insert("eos_token_id".into(), write::id_list(eos));
        self.raw.insert("pad_token_id".into(), pad.into());
    }
}

/// Whether a tensor is looked up rather than multiplied with.
pub(crate) fn is_embedding(name: &str) -> bool {
    ["wte.weight", "wpe.weight", "embed_tokens.weight"].iter().any(|end| name.ends_with(end))
}
