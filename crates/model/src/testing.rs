//! Tiny models with a real spread of weights, for tests.

use crate::config::{Architecture, ModelConfig};
use crate::decoder::{Decoder, Input, LoadOptions};
use crate::random::{Philox, stream_of};
use serde_json::{Value, json};
use std::sync::Mutex;
use tch::{Kind, Tensor, no_grad};

/// `config.json` of a tiny model of each family; grouped heads, and a window that bites where the family has one.
pub(crate) fn tiny_json(architecture: Architecture) -> Value {
    if architecture == Architecture::Gpt2 {
        return json!({
            "model_type": "gpt2", "vocab_size": 61, "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 2,
            "bos_token_id": 0, "eos_token_id": 0,
        });
    }
    let mut config = json!({
        "model_type": architecture.model_type(), "vocab_size": 61, "max_position_embeddings": 48, "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 6, "bos_token_id": 0, "eos_token_id": [0, 2],
    });
    match architecture {
        Architecture::Llama => {
            config["rope_parameters"] = json!({
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            });
            config["tie_word_embeddings"] = true.into();
            config["mlp_bias"] = true.into();
        }
        Architecture::Mistral => config["sliding_window"] = 5.into(),
        Architecture::Qwen2 => {
            config["use_sliding_window"] = true.into();
            config["sliding_window"] = 4.into();
            config["max_window_layers"] = 1.into();
        }
        _ => config["attention_bias"] = true.into(),
    }
    config
}

pub(crate) fn tiny_config(architecture: Architecture) -> ModelConfig {
    ModelConfig::from_json(&tiny_json(architecture)).unwrap()
}

/// A tiny model whose biases are not 0 and whose norms are not 1, so that leaving one out shows.
pub(crate) fn tiny(architecture: Architecture, options: &LoadOptions) -> Decoder {
    randomised(&tiny_config(architecture), options)
}

/// A model with every parameter drawn with a real spread.
pub(crate) fn randomised(config: &ModelConfig, options: &LoadOptions) -> Decoder {
    let mut decoder = Decoder::init(config, 1, options).unwrap();
    no_grad(|| {
        for (name, mut weight) in decoder.params().iter() {
            let shape = weight.size();
            let mut values = vec![0.0; weight.numel()];
            let std = match shape.as_slice() {
                [_] => 0.2,
                _ if name.contains("wte") || name.contains("embed") || name.contains("wpe") => 0.5,
                [input, _] if name.contains(".c_") => 1.0 / (*input as f64).sqrt(),
                [.., input] => 1.0 / (*input as f64).sqrt(),
                [] => unreachable!(),
            };
            Philox::new(99).fill_normal(stream_of(name), std, &mut values);
            let values = Tensor::from_slice(&values).view(shape.as_slice());
            let is_norm = shape.len() == 1 && name.ends_with("weight");
            weight.copy_(&(values + f64::from(is_norm)));
        }
    });
    decoder.params_mut().refresh_compute().unwrap();
    decoder
}

/// Normal numbers of deviation `std`, the same for the same `stream`.
pub(crate) fn normal(stream: u64, std: f64, shape: &[i64]) -> Tensor {
    let mut values = vec![0.0; shape.iter().product::<i64>() as usize];
    Philox::new(17).fill_normal(stream, std, &mut values);
    Tensor::from_slice(&values).view(shape)
}

/// Held by tests that use dropout: they share one process-wide random generator.
pub(crate) static GENERATOR: Mutex<()> = Mutex::new(());

/// Deterministic token ids below `vocab`.
pub(crate) fn token_ids(count: usize, vocab: i64, seed: u64) -> Vec<i64> {
    let draw = |i| (Philox::new(seed).uniform(9, i as u64) * vocab as f64) as i64;
    (0..count).map(draw).collect()
}

/// Documents of these lengths as one flat row; positions restart in each.
pub(crate) fn row(decoder: &Decoder, ids: &[i64], lens: &[usize]) -> Input {
    let mut cu = vec![0];
    let mut positions = Vec::new();
    for &len in lens {
        cu.push(cu[cu.len() - 1] + len as i64);
        positions.extend(0..len as i64);
    }
    decoder.input(ids, &positions, &cu).unwrap()
}

/// Largest difference between two tensors of one shape.
pub(crate) fn gap(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let difference = a.to_kind(Kind::Double) - b.to_kind(Kind::Double);
    difference.abs().max().double_value(&[])
}

/// Asserts that two tensors differ by at most `tolerance` times the largest of `expected`.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    let scale = expected.to_kind(Kind::Double).abs().max().double_value(&[]).max(1e-30);
    let relative = gap(got, expected) / scale;
    assert!(relative <= tolerance, "{what}: relative difference {relative:.3e} > {tolerance:.0e}");
}
