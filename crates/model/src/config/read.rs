//! From the JSON object to [`ModelConfig`], collecting every problem.

use super::{Activation, Architecture, Dropout, Head, ModelConfig, rope};
use crate::error::Problems;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

// What sizes may be: far more than any model has, and so little that the numbers in a model, and their products, fit i64, and a
// list with an entry for every layer fits the memory.
const LAYERS: RangeInclusive<i64> = 1..=1 << 12;
const HEADS: RangeInclusive<i64> = 1..=1 << 12;
const HEAD_DIM: RangeInclusive<i64> = 1..=1 << 12;
const HIDDEN: RangeInclusive<i64> = 1..=1 << 20;
const INTERMEDIATE: RangeInclusive<i64> = 1..=1 << 24;
/// Of token ids and of positions.
const IDS: RangeInclusive<i64> = 1..=i32::MAX as i64;
/// What is only compared.
pub(super) const POSITIVE: RangeInclusive<i64> = 1..=i64::MAX;

/// Typed access to an object's keys that notes what is wrong and goes on with a harmless value.
pub(super) struct Keys<'a> {
    map: &'a Map<String, Value>,
    prefix: String,
    problems: Problems,
}

impl<'a> Keys<'a> {
    fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, prefix: String::new(), problems: Problems::default() }
    }

    /// Keys of an object inside the config; messages name them `outer.key`.
    pub(super) fn nested(map: &'a Map<String, Value>, outer: &str) -> Self {
        Self { map, prefix: format!("{outer}."), problems: Problems::default() }
    }

    pub(super) fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem);
    }

    /// Takes over the problems of a nested object.
    pub(super) fn absorb(&mut self, inner: Keys<'_>) {
        self.problems.0.extend(inner.problems.0);
    }

    /// The value of a key; null is absent.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn missing(&mut self, key: &str) {
        self.problem(format!("`{}{key}` is missing", self.prefix));
    }

    fn wrong(&mut self, key: &str, expected: &str, value: &Value) {
        self.problem(format!("`{}{key}` must be {expected}, not {value}", self.prefix));
    }

    /// An integer in `range`; `default` where absent, a problem where there is no default.
    pub(super) fn int(
        &mut self,
        key: &str,
        default: Option<i64>,
        range: RangeInclusive<i64>,
    ) -> i64 {
        let (min, max) = (*range.start(), *range.end());
        match (self.value(key), default) {
            (None, Some(default)) => default,
            (None, None) => {
                self.missing(key);
                min
            }
            (Some(value), _) => match value.as_i64() {
                Some(n) if range.contains(&n) => n,
                _ => {
                    let expected = if value.as_f64().is_some_and(|n| n > max as f64) {
                        format!("an integer of at most {max}")
                    } else {
                        format!("an integer of at least {min}")
                    };
                    self.wrong(key, &expected, value);
                    default.unwrap_or(min)
                }
            },
        }
    }

    /// A number in `min..=max`; `default` where absent, a problem where there is no default.
    pub(super) fn float(&mut self, key: &str, default: Option<f64>, min: f64, max: f64) -> f64 {
        let fallback = default.unwrap_or(1.0);
        match (self.value(key), default) {
            (None, Some(default)) => default,
            (None, None) => {
                self.missing(key);
                fallback
            }
            (Some(value), _) => match value.as_f64() {
                Some(x) if (min..=max).contains(&x) => x,
                _ => {
                    let expected = match (min, max) {
                        (min, f64::MAX) if min < 1e-6 => "a number above 0".to_owned(),
                        (min, f64::MAX) => format!("a number of at least {min}"),
                        (min, max) => format!("a number from {min} to {max}"),
                    };
                    self.wrong(key, &expected, value);
                    fallback
                }
            },
        }
    }

    fn bool(&mut self, key: &str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(Value::Bool(value)) => *value,
            Some(other) => {
                self.wrong(key, "true or false", other);
                default
            }
        }
    }

    pub(super) fn object(&mut self, key: &str) -> Option<&'a Map<String, Value>> {
        match self.value(key)? {
            Value::Object(map) => Some(map),
            other => {
                self.wrong(key, "an object", other);
                None
            }
        }
    }

    /// The first of several names of one setting that is there, else the first.
    fn either(&self, names: [&'static str; 2]) -> &'static str {
        if self.value(names[0]).is_none() && self.value(names[1]).is_some() {
            names[1]
        } else {
            names[0]
        }
    }

    fn activation(&mut self, key: &str, default: &str) -> Activation {
        let name = match self.value(key) {
            None => default,
            Some(Value::String(name)) => name,
            Some(other) => {
                self.wrong(key, "a string", other);
                default
            }
        };
        match name {
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "gelu" => Activation::Gelu,
            "silu" | "swish" => Activation::Silu,
            "relu" => Activation::Relu,
            "tanh" => Activation::Tanh,
            "quick_gelu" => Activation::QuickGelu,
            other => {
                self.problem(format!(
                    "`{key}` \"{other}\" is not supported; supported are gelu_new, gelu_pytorch_tanh, gelu_fast, gelu, \
                     silu, swish, relu, tanh and quick_gelu"
                ));
                Activation::Silu
            }
        }
    }

    /// A token id or none; negative ones mean none, as some published configs have it.
    fn token(&mut self, key: &str) -> Option<i64> {
        let value = self.value(key)?;
        if value.as_i64().is_none() {
            self.wrong(key, "a token id", value);
        }
        value.as_i64().filter(|&id| id >= 0)
    }

    /// One token id or a list of them.
    fn tokens(&mut self, key: &str) -> Vec<i64> {
        match self.value(key) {
            Some(Value::Array(items)) => {
                let ids: Vec<i64> = items.iter().filter_map(Value::as_i64).collect();
                if ids.len() != items.len() {
                    self.problem(format!("`{key}` must be a token id or a list of token ids"));
                }
                ids
            }
            _ => self.token(key).into_iter().collect(),
        }
    }
}

/// Keys that ask for something this crate does not compute.
fn refuse_unsupported(keys: &mut Keys<'_>) {
    if let Some(quantization) = keys.value("quantization_config") {
        let is = |key: &str| quantization.get(key) == Some(&Value::Bool(true));
        let by = quantization.get("quant_method").and_then(Value::as_str).unwrap_or_default();
        if by != "bitsandbytes" || !(is("load_in_4bit") || is("_load_in_4bit")) {
            keys.problem(
                "`quantization_config`: quantised checkpoints are not supported but for those in 4 bits by bitsandbytes; \
                 convert to bf16 first",
            );
        }
    }
    for key in ["add_cross_attention", "is_encoder_decoder"] {
        if keys.bool(key, false) {
            keys.problem(format!("`{key}` true is not supported: only decoders are"));
        }
    }
    if keys
        .value("pruned_heads")
        .is_some_and(|heads| heads.as_object().is_none_or(|h| !h.is_empty()))
    {
        keys.problem("`pruned_heads` is not supported");
    }
}

fn architecture(map: &Map<String, Value>) -> Result<Architecture, Problems> {
    let supported = Architecture::ALL.map(Architecture::model_type).join(", ");
    let problem = match map.get("model_type") {
        Some(Value::String(name)) => {
            match Architecture::ALL.into_iter().find(|known| known.model_type() == name) {
                Some(found) => return Ok(found),
                None => {
                    format!("`model_type` \"{name}\" is not supported; supported are {supported}")
                }
            }
        }
        Some(other) => format!("`model_type` must be a string, not {other}"),
        None => format!("`model_type` is missing; supported are {supported}"),
    };
    Err(Problems(vec![problem]))
}

/// The output layer, by the class that `architectures` names.
fn head(keys: &mut Keys<'_>) -> Head {
    let class = keys.value("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    if !class.is_some_and(|class| class.ends_with("ForSequenceClassification")) {
        return Head::LanguageModel;
    }
    let labels = match (keys.value("num_labels").and_then(Value::as_u64), keys.object("id2label")) {
        (Some(count), _) => count as usize,
        (None, Some(labels)) => labels.len(),
        // What transformers takes where there is neither.
        (None, None) => 2,
    };
    if labels != 1 {
        keys.problem(format!(
            "a classifier of {labels} labels is not supported: a reward model has one (`id2label` with one entry)"
        ));
    }
    Head::Score
}

fn score_statistics(keys: &mut Keys<'_>) -> Option<(f64, f64)> {
    keys.value("score_mean")?;
    let mean = keys.float("score_mean", None, f64::MIN, f64::MAX);
    Some((mean, keys.float("score_std", None, 0.0, f64::MAX)))
}

/// Reads a whole config.
pub(super) fn config(value: &Value) -> Result<ModelConfig, Problems> {
    let Value::Object(map) = value else {
        return Err(Problems(vec!["must be a JSON object".into()]));
    };
    let architecture = architecture(map)?;
    let mut keys = Keys::new(map);
    refuse_unsupported(&mut keys);
    let config = match architecture {
        Architecture::Gpt2 => gpt2(&mut keys),
        _ => llama(&mut keys, architecture),
    };
    if keys.problems.is_empty() { Ok(config) } else { Err(keys.problems) }
}

fn gpt2(keys: &mut Keys<'_>) -> ModelConfig {
    let hidden = keys.either(["n_embd", "hidden_size"]);
    let layers = keys.either(["n_layer", "num_hidden_layers"]);
    let heads = keys.either(["n_head", "num_attention_heads"]);
    let positions = keys.either(["n_positions", "max_position_embeddings"]);
    let hidden_size = keys.int(hidden, None, HIDDEN);
    let num_hidden_layers = keys.int(layers, None, LAYERS);
    let num_attention_heads = keys.int(heads, None, HEADS);
    if hidden_size % num_attention_heads != 0 {
        keys.problem(format!(
            "`{hidden}` ({hidden_size}) is not a multiple of `{heads}` ({num_attention_heads})"
        ));
    }
    let head_dim = (hidden_size / num_attention_heads).max(1);
    let scaled = keys.bool("scale_attn_weights", true);
    let by_layer = keys.bool("scale_attn_by_inverse_layer_idx", false);
    let scale = if scaled { (head_dim as f64).powf(-0.5) } else { 1.0 };
    let attention_scales = (0..num_hidden_layers)
        .map(|layer| if by_layer { scale / (layer + 1) as f64 } else { scale })
        .collect();
    ModelConfig {
        architecture: Architecture::Gpt2,
        head: head(keys),
        vocab_size: keys.int("vocab_size", None, IDS),
        hidden_size,
        intermediate_size: keys.int("n_inner", Some(4 * hidden_size), INTERMEDIATE),
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: num_attention_heads,
        head_dim,
        max_position_embeddings: keys.int(positions, None, IDS),
        norm_eps: keys.float("layer_norm_epsilon", Some(1e-5), f64::MIN_POSITIVE, 1.0),
        activation: keys.activation("activation_function", "gelu_new"),
        tie_word_embeddings: keys.bool("tie_word_embeddings", true),
        initializer_range: keys.float("initializer_range", Some(0.02), 0.0, 1e3),
        qkv_bias: true,
        attention_out_bias: true,
        mlp_bias: true,
        qk_norm: false,
        rope: None,
        sliding_windows: vec![None; num_hidden_layers as usize],
        attention_scales,
        dropout: Dropout {
            embedding: keys.float("embd_pdrop", Some(0.1), 0.0, 0.999),
            attention: keys.float("attn_pdrop", Some(0.1), 0.0, 0.999),
            residual: keys.float("resid_pdrop", Some(0.1), 0.0, 0.999),
        },
        bos_token_id: keys.token("bos_token_id"),
        eos_token_ids: keys.tokens("eos_token_id"),
        pad_token_id: keys.token("pad_token_id"),
        score_statistics: score_statistics(keys),
        raw: keys.map.clone(),
    }
}

fn llama(keys: &mut Keys<'_>, architecture: Architecture) -> ModelConfig {
    let hidden_size = keys.int("hidden_size", None, HIDDEN);
    let num_hidden_layers = keys.int("num_hidden_layers", None, LAYERS);
    let heads = keys.int("num_attention_heads", None, HEADS);
    // What transformers takes where the key is absent; an explicit null means one key head for each query head.
    let default_kv = match architecture {
        Architecture::Mistral if !keys.map.contains_key("num_key_value_heads") => 8,
        _ => heads,
    };
    let num_key_value_heads = keys.int("num_key_value_heads", Some(default_kv), HEADS);
    if heads % num_key_value_heads != 0 {
        keys.problem(format!(
            "`num_attention_heads` ({heads}) is not a multiple of `num_key_value_heads` ({num_key_value_heads})"
        ));
    }
    let head_dim = head_dim(keys, architecture, hidden_size, heads);
    let max_position_embeddings = keys.int("max_position_embeddings", None, IDS);
    let attention_bias = match architecture {
        Architecture::Llama | Architecture::Qwen3 => keys.bool("attention_bias", false),
        _ => false,
    };
    let windows = windows(keys, architecture, num_hidden_layers);
    ModelConfig {
        architecture,
        head: head(keys),
        vocab_size: keys.int("vocab_size", None, IDS),
        hidden_size,
        intermediate_size: keys.int("intermediate_size", None, INTERMEDIATE),
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads,
        head_dim,
        max_position_embeddings,
        norm_eps: keys.float("rms_norm_eps", Some(1e-6), f64::MIN_POSITIVE, 1.0),
        activation: keys.activation("hidden_act", "silu"),
        tie_word_embeddings: keys.bool("tie_word_embeddings", false),
        initializer_range: keys.float("initializer_range", Some(0.02), 0.0, 1e3),
        qkv_bias: attention_bias || architecture == Architecture::Qwen2,
        attention_out_bias: attention_bias,
        mlp_bias: architecture == Architecture::Llama && keys.bool("mlp_bias", false),
        qk_norm: architecture == Architecture::Qwen3,
        rope: Some(rope::read(keys)),
        // A window that no position can leave is none.
        sliding_windows: windows
            .into_iter()
            .map(|window| window.filter(|&w| w < max_position_embeddings))
            .collect(),
        attention_scales: vec![(head_dim as f64).powf(-0.5); num_hidden_layers as usize],
        dropout: Dropout {
            attention: keys.float("attention_dropout", Some(0.0), 0.0, 0.999),
            ..Dropout::default()
        },
        bos_token_id: keys.token("bos_token_id"),
        eos_token_ids: keys.tokens("eos_token_id"),
        pad_token_id: keys.token("pad_token_id"),
        score_statistics: score_statistics(keys),
        raw: keys.map.clone(),
    }
}

fn head_dim(keys: &mut Keys<'_>, architecture: Architecture, hidden: i64, heads: i64) -> i64 {
    if keys.value("head_dim").is_none()
        && architecture != Architecture::Qwen3
        && hidden % heads != 0
    {
        keys.problem(format!(
            "`hidden_size` ({hidden}) is not a multiple of `num_attention_heads` ({heads}) and there is no `head_dim`"
        ));
        return 2;
    }
    let default = if architecture == Architecture::Qwen3 { 128 } else { hidden / heads };
    let head_dim = keys.int("head_dim", Some(default), HEAD_DIM);
    if head_dim % 2 != 0 {
        keys.problem(format!("`head_dim` ({head_dim}) must be even for rotary positions"));
    }
    head_dim
}

/// The attention window of each layer, as transformers derives it.
fn windows(keys: &mut Keys<'_>, architecture: Architecture, layers: i64) -> Vec<Option<i64>> {
    let count = layers as usize;
    match architecture {
        Architecture::Gpt2 | Architecture::Llama => vec![None; count],
        Architecture::Mistral => {
            let window = match keys.map.get("sliding_window") {
                Some(Value::Null) => None,
                _ => Some(keys.int("sliding_window", Some(4096), POSITIVE)),
            };
            let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
            if let Some(types) = layer_types(keys, count)
                && types.iter().any(|layer| layer != kind)
            {
                keys.problem(format!(
                    "`layer_types` other than \"{kind}\" in every layer is not supported for mistral"
                ));
            }
            vec![window; count]
        }
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let used = keys.bool("use_sliding_window", false);
            let window = used.then(|| keys.int("sliding_window", Some(4096), POSITIVE));
            let full_layers = keys.int("max_window_layers", Some(28), 0..=i64::MAX);
            match layer_types(keys, count) {
                None => (0..layers).map(|i| window.filter(|_| i >= full_layers)).collect(),
                Some(types) => {
                    let sliding = |layer: &String| layer == "sliding_attention";
                    if window.is_none() && types.iter().any(sliding) {
                        keys.problem(
                            "`layer_types` has \"sliding_attention\" but `use_sliding_window` is not true",
                        );
                    }
                    types.iter().map(|layer| window.filter(|_| sliding(layer))).collect()
                }
            }
        }
    }
}

fn layer_types(keys: &mut Keys<'_>, layers: usize) -> Option<Vec<String>> {
    let value = keys.value("layer_types")?;
    let names: Option<Vec<String>> = value
        .as_array()
        .and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
    let Some(names) = names else {
        keys.wrong("layer_types", "a list of strings", value);
        return None;
    };
    if names.len() != layers {
        keys.problem(format!(
            "`layer_types` has {} entries for {layers} `num_hidden_layers`",
            names.len()
        ));
        return None;
    }
    let known = ["full_attention", "sliding_attention"];
    if let Some(other) = names.iter().find(|name| !known.contains(&name.as_str())) {
        keys.problem(format!(
            "`layer_types` entry \"{other}\" is not supported; supported are full_attention and sliding_attention"
        ));
        return None;
    }
    Some(names)
}
