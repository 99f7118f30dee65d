//! Sampled tokens against transformers' logits processors: temperature, top-k, top-p, min-p, repetition penalty.
//!
//! A model is made whose logits are those of the fixture after any prompt, and sampled many times; the frequencies
//! must be those that transformers' processors leave, and no token they take away may ever appear.

use anyhow::{Result, ensure};
use model::generate::{Engine, Request, Sampling, StopRules};
use model::{Decoder, LoadOptions, ModelConfig};
use serde::Deserialize;
use serde_json::json;
use tch::{Tensor, no_grad};
use temper_tests::fixtures;

const SAMPLES: u64 = 3000;

#[derive(Debug, Deserialize)]
struct Fixture {
    logits: Vec<Vec<f64>>,
    seen: Vec<Vec<i64>>,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    settings: Settings,
    probabilities: Vec<Vec<f64>>,
}

#[derive(Debug, Deserialize)]
struct Settings {
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
}

impl Settings {
    fn sampling(&self, seed: u64) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            seed,
        }
    }
}

/// A model whose layers add nothing, whose embeddings are ones and whose head therefore says `logits` everywhere.
fn constant_model(logits: &[f64]) -> Result<Decoder> {
    let config = ModelConfig::from_json(&json!({
        "model_type": "llama", "vocab_size": logits.len(), "hidden_size": 4, "intermediate_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-12,
        "max_position_embeddings": 16, "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 0,
        "hidden_act": "silu", "rope_theta": 10000.0,
    }))?;
    let decoder =
        Decoder::init(&config, 0, &LoadOptions { trainable: true, ..LoadOptions::default() })?;
    no_grad(|| {
        for (name, mut weight) in decoder.params().iter() {
            if name == "lm_head.weight" {
                let column = Tensor::from_slice(logits).to_kind(weight.kind()) / 4.0;
                weight.copy_(&column.unsqueeze(1).expand([-1, 4], false));
            } else if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
                let _ = weight.zero_();
            } else {
                let _ = weight.fill_(1.0);
            }
        }
    });
    Ok(decoder)
}

/// How often each token was sampled after `prompt`.
fn counts(
    decoder: &Decoder,
    prompt: &[i64],
    settings: &Settings,
    vocab: usize,
) -> Result<Vec<u64>> {
    let requests: Vec<Request> = (0..SAMPLES)
        .map(|seed| Request {
            ids: prompt.to_vec(),
            max_new_tokens: 1,
            sampling: settings.sampling(seed),
        })
        .collect();
    let mut engine = Engine::new(decoder, 500, 8)?;
    let mut counts = vec![0; vocab];
    for out in engine.generate(&requests, &StopRules::default(), None, None)? {
        counts[out.ids[0] as usize] += 1;
    }
    Ok(counts)
}

/// Pearson's statistic over the tokens that are expected at least five times, divided by its standard deviation after
/// its mean is taken off: a few at most when the frequencies are as expected. Infinite if an impossible token appeared.
fn surprise(counts: &[u64], probabilities: &[f64]) -> f64 {
    let (mut statistic, mut cells) = (0.0, 0.0);
    let mut rest = (0.0, 0.0);
    for (&count, &probability) in counts.iter().zip(probabilities) {
        let expected = probability * SAMPLES as f64;
        if expected == 0.0 && count > 0 {
            return f64::INFINITY;
        }
        if expected >= 5.0 {
            statistic += (count as f64 - expected).powi(2) / expected;
            cells += 1.0;
        } else {
            rest = (rest.0 + count as f64, rest.1 + expected);
        }
    }
    if rest.1 > 0.5 {
        statistic += (rest.0 - rest.1).powi(2) / rest.1;
        cells += 1.0;
    }
    let degrees: f64 = (cells - 1.0_f64).max(0.5);
    (statistic - degrees) / (2.0 * degrees).sqrt()
}

#[test]
fn frequencies_are_those_transformers_leaves() -> Result<()> {
    let fixture: Fixture = fixtures::json(&fixtures::parity("warpers/warpers.json"))?;
    ensure!(fixture.cases.len() >= 15);
    for (row, (logits, seen)) in fixture.logits.iter().zip(&fixture.seen).enumerate() {
        let decoder = constant_model(logits)?;
        let mut told_apart = 0;
        for (index, case) in fixture.cases.iter().enumerate() {
            let counts = counts(&decoder, seen, &case.settings, logits.len())?;
            let found = surprise(&counts, &case.probabilities[row]);
            ensure!(found < 4.0, "{:?}: off by {found:.1} deviations: {counts:?}", case.settings);
            for (other, candidate) in fixture.cases.iter().enumerate() {
                let apart = surprise(&counts, &candidate.probabilities[row]) > 6.0;
                told_apart += usize::from(other != index && apart);
            }
        }
        // else the statistic is blind
        ensure!(told_apart > 150, "only {told_apart} of 210 pairs of settings are told apart");
    }
    Ok(())
}

#[test]
fn a_sample_depends_on_its_seed_and_not_on_its_batch() -> Result<()> {
    let fixture: Fixture = fixtures::json(&fixtures::parity("warpers/warpers.json"))?;
    let decoder = constant_model(&fixture.logits[0])?;
    let request = |seed| Request {
        ids: vec![1, 2 + seed as i64 % 3],
        max_new_tokens: 2 + seed as usize % 5,
        sampling: Sampling { seed, ..Sampling::default() },
    };
    let requests: Vec<Request> = (0..40).map(request).collect();
    let together =
        Engine::new(&decoder, 40, 16)?.generate(&requests, &StopRules::default(), None, None)?;
    let mut few = Engine::new(&decoder, 3, 16)?;
    let reversed: Vec<Request> = requests.iter().rev().cloned().collect();
    let mut narrow = few.generate(&reversed, &StopRules::default(), None, None)?;
    narrow.reverse();
    for (a, b) in together.iter().zip(&narrow) {
        assert_eq!((&a.ids, &a.finish), (&b.ids, &b.finish));
    }
    let distinct: std::collections::HashSet<_> = together.iter().map(|out| &out.ids).collect();
    ensure!(distinct.len() > 30, "seeds change nothing: {distinct:?}");
    Ok(())
}
