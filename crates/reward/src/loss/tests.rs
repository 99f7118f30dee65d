use super::*;
use data::batch::Branches;
use model::{Head, LoadOptions, ModelConfig};
use serde_json::json;
use tch::Device;
use torch_ext::autograd;

const TRAINABLE: LoadOptions =
    LoadOptions { device: Device::Cpu, precision: model::Precision::Fp32, trainable: true };

fn scorer() -> Decoder {
    let json = json!({
        "model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
    });
    let mut config = ModelConfig::from_json(&json).unwrap();
    config.set_head(Head::Score);
    Decoder::init(&config, 5, &TRAINABLE).unwrap()
}

const PROMPT: [i64; 3] = [1, 7, 9];
const CHOSEN: [i64; 2] = [11, 2];
/// Longer, and with the id that files pad with at its end.
const REJECTED: [i64; 4] = [12, 13, 14, 0];

fn pairs(margin: f32, probability: f32) -> PairBatch {
    let mut branches = Branches::new();
    branches.push(&PROMPT, &[&CHOSEN, &REJECTED]);
    branches.push(&[3, 4], &[&[5], &[6, 7]]);
    PairBatch {
        branches,
        margins: vec![margin, 0.0],
        probabilities: vec![probability, 1.0],
        tasks: vec![None, None],
    }
}

fn score_of(decoder: &Decoder, ids: &[i64]) -> f64 {
    let positions: Vec<i64> = (0..ids.len() as i64).collect();
    let input = decoder.input(ids, &positions, &[0, ids.len() as i64]).unwrap();
    let scores = decoder.scores(&decoder.hidden(&input).unwrap()).unwrap();
    scores.double_value(&[ids.len() as i64 - 1])
}

/// Scores of the four sequences, each alone in its batch.
fn alone(decoder: &Decoder) -> [f64; 4] {
    let join = |a: &[i64], b: &[i64]| [a, b].concat();
    [
        score_of(decoder, &join(&PROMPT, &CHOSEN)),
        score_of(decoder, &join(&PROMPT, &REJECTED)),
        score_of(decoder, &[3, 4, 5]),
        score_of(decoder, &[3, 4, 6, 7]),
    ]
}

#[test]
fn scores_are_those_of_each_sequence_alone_and_read_at_its_last_token() {
    let decoder = scorer();
    let [a, b, c, d] = alone(&decoder);
    let loss = pair_loss(&decoder, &pairs(0.5, 1.0), 0.1).unwrap();
    let term = |x: f64| (1.0 + (-x).exp()).ln();
    let want = term(a - b - 0.5) + term(c - d) + 0.1 * ((a + b).powi(2) + (c + d).powi(2));
    assert!((loss.sum.double_value(&[]) - want).abs() < 1e-5);
    let metric = |name: &str| {
        let found = loss.metrics.iter().find(|(found, _)| *found == name).unwrap();
        found.1.double_value(&[])
    };
    let right = f64::from(a > b) + f64::from(c > d);
    assert_eq!(metric("accuracy"), right);
    assert!((metric("margin") - (a - b + c - d)).abs() < 1e-5);
    assert!((metric("mean_reward") - (a + b + c + d) / 2.0).abs() < 1e-5);
    let other = pair_loss(&decoder, &pairs(0.0, 1.0), 0.1).unwrap();
    assert!((other.sum.double_value(&[]) - want).abs() > 1e-3, "the margin counts");
}

#[test]
fn soft_labels_count() {
    let decoder = scorer();
    let [a, b, c, d] = alone(&decoder);
    let loss = pair_loss(&decoder, &pairs(0.0, 0.25), 0.0).unwrap();
    let term = |x: f64| (1.0 + (-x).exp()).ln();
    let want = 0.25 * term(a - b) + 0.75 * term(b - a) + term(c - d);
    assert!((loss.sum.double_value(&[]) - want).abs() < 1e-5);
}

#[test]
fn every_weight_that_is_used_gets_a_gradient() {
    let mut decoder = scorer();
    let loss = pair_loss(&decoder, &pairs(0.0, 1.0), 0.0).unwrap();
    autograd::backward(&loss.sum).unwrap();
    decoder.params_mut().gather_grads().unwrap();
    for weight in decoder.params_mut().trainable() {
        let most = weight.grad.abs().max().double_value(&[]);
        assert!(most > 0.0 && most.is_finite(), "{}: {most}", weight.name);
    }
}
