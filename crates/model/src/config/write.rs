//! From [`ModelConfig`] back to `config.json`.

use super::{Activation, Architecture, ModelConfig};
use crate::precision::Precision;
use serde_json::{Map, Value, json};

/// One id as a number, several as a list, none as null: the forms transformers takes.
pub(super) fn id_list(ids: &[i64]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

impl ModelConfig {
    /// The object that belongs into `config.json` beside weights stored as `dtype`.
    ///
    /// It is the source object, unknown keys included (but not `quantization_config`, which is the weights'), completed by every setting that the source left to
    /// transformers' defaults, so that the meaning does not depend on the reader's version.
    pub fn to_hf_json(&self, dtype: Precision) -> Value {
        let mut map = self.raw.clone();
        map.insert("model_type".into(), self.architecture.model_type().into());
        map.insert("architectures".into(), json!([self.architecture.class(self.head)]));
        // transformers 5 writes `dtype`; versions before 4.56 know `torch_dtype` only, which later ones still read.
        map.remove("quantization_config");
        let dtype_key = if map.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        map.insert(dtype_key.into(), dtype.torch_name().into());
        let defaults = match self.architecture {
            Architecture::Gpt2 => self.gpt2_settings(),
            _ => self.llama_settings(),
        };
        for (key, value) in defaults {
            if !map.contains_key(&key) {
                map.insert(key, value);
            }
        }
        Value::Object(map)
    }

    fn gpt2_settings(&self) -> Map<String, Value> {
        let mut map = Map::new();
        // transformers takes both names of each of these; keep to the source's.
        let names = [
            ("n_embd", "hidden_size", self.hidden_size),
            ("n_layer", "num_hidden_layers", self.num_hidden_layers),
            ("n_head", "num_attention_heads", self.num_attention_heads),
            ("n_positions", "max_position_embeddings", self.max_position_embeddings),
        ];
        for (name, other, value) in names {
            if !self.raw.contains_key(other) {
                map.insert(name.into(), value.into());
            }
        }
        let rest = json!({
            "n_inner": self.intermediate_size,
            "layer_norm_epsilon": self.norm_eps,
            "activation_function": activation_name(self.activation),
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "embd_pdrop": self.dropout.embedding,
            "attn_pdrop": self.dropout.attention,
            "resid_pdrop": self.dropout.residual,
        });
        self.finish(map, rest)
    }

    fn llama_settings(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let rope_keys = ["rope_theta", "rope_parameters"];
        if let Some(rope) = &self.rope
            && !rope_keys.iter().any(|key| self.raw.contains_key(*key))
        {
            map.insert("rope_theta".into(), rope.theta.into());
        }
        match self.architecture {
            Architecture::Mistral => {
                map.insert("sliding_window".into(), json!(self.sliding_windows[0]));
            }
            Architecture::Qwen2 | Architecture::Qwen3 => {
                map.insert("use_sliding_window".into(), false.into());
            }
            _ => {}
        }
        if self.architecture == Architecture::Llama {
            map.insert("mlp_bias".into(), self.mlp_bias.into());
        }
        if matches!(self.architecture, Architecture::Llama | Architecture::Qwen3) {
            map.insert("attention_bias".into(), self.attention_out_bias.into());
        }
        let rest = json!({
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.norm_eps,
            "hidden_act": activation_name(self.activation),
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "attention_dropout": self.dropout.attention,
        });
        self.finish(map, rest)
    }

    /// Adds `rest` and the token ids, which transformers would otherwise fill with ids of another tokenizer.
    fn finish(&self, mut map: Map<String, Value>, rest: Value) -> Map<String, Value> {
        if let Value::Object(rest) = rest {
            map.extend(rest);
        }
        map.insert("bos_token_id".into(), self.bos_token_id.into());
        map.insert("eos_token_id".into(), id_list(&self.eos_token_ids));
        map.insert("pad_token_id".into(), self.pad_token_id.into());
        map
    }
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluTanh => "gelu_new",
        Activation::Gelu => "gelu",
        Activation::Silu => "silu",
        Activation::Relu => "relu",
        Activation::Tanh => "tanh",
        Activation::QuickGelu => "quick_gelu",
    }
}
