mod heads;
mod reference;

use super::*;
use crate::config::Architecture;
use crate::testing::{
    GENERATOR, assert_close, gap, randomised, row, tiny, tiny_config, tiny_json, token_ids,
};
use reference::Reference;
use std::sync::PoisonError;
use tch::no_grad;
use torch_ext::autograd;

const TRAINABLE: LoadOptions =
    LoadOptions { device: Device::Cpu, precision: Precision::Fp32, trainable: true };

/// A fixed weighting of logits, so that a sum over it has a gradient everywhere.
fn probe(tokens: i64) -> Tensor {
    let mut values = vec![0.0; (tokens * 61) as usize];
    Philox::new(5).fill_normal(0, 1.0, &mut values);
    Tensor::from_slice(&values).view([tokens, 61])
}

/// Logits and all gradients of their probed sum.
fn run(
    decoder: &mut Decoder,
    ids: &[i64],
    lens: &[usize],
    probe: &Tensor,
) -> (Tensor, Vec<Tensor>) {
    let input = row(decoder, ids, lens);
    let logits = decoder.logits(&decoder.hidden(&input).unwrap()).unwrap();
    decoder.params_mut().clear_grads().unwrap();
    autograd::backward(&(&logits * probe).sum(Kind::Float)).unwrap();
    decoder.params_mut().gather_grads().unwrap();
    let grads = decoder.params_mut().trainable().iter().map(|p| p.grad.copy()).collect();
    (logits.detach(), grads)
}

#[test]
fn logits_equal_an_independent_computation_for_every_family() {
    for architecture in Architecture::ALL {
        let decoder = tiny(architecture, &LoadOptions::default());
        let ids = token_ids(23, 61, 3);
        let logits =
            decoder.logits(&decoder.hidden(&row(&decoder, &ids, &[14, 9])).unwrap()).unwrap();
        let reference = Reference::new(decoder.config(), decoder.params());
        let mut expected = reference.logits(&ids[..14]);
        expected.extend(reference.logits(&ids[14..]));
        let flat: Vec<f64> = expected.into_iter().flatten().collect();
        let expected = Tensor::from_slice(&flat).view([23, 61]);
        assert!(gap(&logits, &expected) < 1e-5, "{architecture:?}: {}", gap(&logits, &expected));
        let wrong = &expected * 1.01;
        assert!(gap(&logits, &wrong) > 1e-3, "a 1 % error would be seen");
    }
}

#[test]
fn variants_equal_an_independent_computation() {
    let mut gpt2 = tiny_json(Architecture::Gpt2);
    gpt2["scale_attn_by_inverse_layer_idx"] = true.into();
    gpt2["tie_word_embeddings"] = false.into();
    let mut linear = tiny_json(Architecture::Mistral);
    linear["rope_scaling"] = serde_json::json!({"type": "linear", "factor": 3.0});
    linear["num_key_value_heads"] = 4.into();
    for json in [gpt2, linear] {
        let config = ModelConfig::from_json(&json).unwrap();
        let decoder = randomised(&config, &LoadOptions::default());
        let ids = token_ids(11, 61, 4);
        let logits = decoder.logits(&decoder.hidden(&row(&decoder, &ids, &[11])).unwrap()).unwrap();
        let expected = Reference::new(&config, decoder.params()).logits(&ids);
        let flat: Vec<f64> = expected.into_iter().flatten().collect();
        let expected = Tensor::from_slice(&flat).view([11, 61]);
        assert!(gap(&logits, &expected) < 1e-5, "{}", gap(&logits, &expected));
    }
}

#[test]
fn other_activations_follow_their_formulas() {
    let x = 0.7_f64;
    // The error function at 0.7 / sqrt(2), from tables of the normal distribution: Phi(0.7) = 0.758036.
    let cases = [
        ("gelu", x * 0.758036),
        ("relu", x),
        ("tanh", x.tanh()),
        ("quick_gelu", x / (1.0 + (-1.702 * x).exp())),
        ("swish", x / (1.0 + (-x).exp())),
    ];
    for (name, expected) in cases {
        let mut json = tiny_json(Architecture::Gpt2);
        json["activation_function"] = name.into();
        json["n_layer"] = 1.into();
        let decoder =
            Decoder::init(&ModelConfig::from_json(&json).unwrap(), 1, &LoadOptions::default());
        let decoder = decoder.unwrap();
        // With all weights of the layer 0 and biases set, the MLP adds `activation(0.7)` times a row of ones.
        no_grad(|| {
            for (name, mut weight) in decoder.params().iter() {
                if name.starts_with("transformer.h.") && !name.contains("ln_") {
                    let value = if name.ends_with("mlp.c_fc.bias") { x } else { 0.0 };
                    let _ = weight.fill_(value);
                }
                if name.ends_with("mlp.c_proj.weight") {
                    let _ = weight.narrow(1, 0, 1).fill_(1.0 / 64.0);
                }
            }
        });
        let ids = Tensor::from_slice(&[3_i64]);
        let position = Tensor::from_slice(&[0_i64]);
        let before = decoder.embed(&ids, &position, false).unwrap();
        let after =
            decoder.hidden_with(&ids, &position, None, |_, q, _, _, _| Ok(q.zeros_like())).unwrap();
        let added = (after - before).double_value(&[0, 0]);
        assert!((added - expected).abs() < 1e-5, "{name}: {added} instead of {expected}");
    }
}

#[test]
fn packing_is_exact_in_values_and_gradients() {
    for architecture in Architecture::ALL {
        let mut decoder = tiny(architecture, &TRAINABLE);
        let (lens, ids) = ([7, 1, 12, 4], token_ids(24, 61, 8));
        let probe = probe(24);
        let (packed, packed_grads) = run(&mut decoder, &ids, &lens, &probe);
        let mut sums: Vec<Tensor> = packed_grads.iter().map(Tensor::zeros_like).collect();
        let mut start = 0;
        for len in lens {
            let part = probe.narrow(0, start as i64, len as i64);
            let (alone, grads) = run(&mut decoder, &ids[start..start + len], &[len], &part);
            let rows = packed.narrow(0, start as i64, len as i64);
            assert_close(&format!("{architecture:?} document at {start}"), &rows, &alone, 1e-6);
            for (sum, grad) in sums.iter_mut().zip(&grads) {
                let _ = sum.g_add_(grad);
            }
            start += len;
        }
        let names: Vec<String> = decoder.params().names().map(str::to_owned).collect();
        for ((name, packed), alone) in names.iter().zip(&packed_grads).zip(&sums) {
            let difference = (packed - alone).norm().double_value(&[]);
            let relative = difference / alone.norm().double_value(&[]);
            assert!(relative < 1e-6, "{architecture:?} {name}: {relative:.2e}");
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for architecture in Architecture::ALL {
        let mut decoder = tiny(architecture, &TRAINABLE);
        let (ids, lens) = (token_ids(13, 61, 2), [8, 5]);
        let probe = probe(13);
        let (_, grads) = run(&mut decoder, &ids, &lens, &probe);
        let names: Vec<String> = decoder.params().names().map(str::to_owned).collect();
        for (name, grad) in names.iter().zip(&grads) {
            // Along the gradient itself the slope is its norm: one direction tests every entry.
            let norm = grad.norm().double_value(&[]);
            let step = 2e-3;
            let loss = |factor: f64| {
                let mut weight = decoder.params().get(name).unwrap();
                let _ = no_grad(|| weight.g_add_(&(grad * (factor / norm))));
                let hidden = decoder.hidden(&row(&decoder, &ids, &lens)).unwrap();
                (decoder.logits(&hidden).unwrap() * &probe).sum(Kind::Double).double_value(&[])
            };
            let (up, down) = (loss(step), loss(-2.0 * step));
            loss(step);
            let slope = (up - down) / (2.0 * step);
            assert!(
                (slope / norm - 1.0).abs() < 2e-2,
                "{architecture:?} {name}: slope {slope}, gradient norm {norm}"
            );
        }
    }
}

#[test]
fn checkpointing_changes_neither_values_nor_gradients() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for architecture in Architecture::ALL {
        let mut decoder = tiny(architecture, &TRAINABLE);
        decoder.set_dropout(Dropout { embedding: 0.1, attention: 0.2, residual: 0.1 });
        decoder.set_training(true);
        let (ids, probe) = (token_ids(20, 61, 6), probe(20));
        let state = torch_ext::generator::get_state(Device::Cpu).unwrap();
        let plain = run(&mut decoder, &ids, &[13, 7], &probe);
        for (checkpointing, interval) in
            [(Checkpointing::Layer, 1), (Checkpointing::Mlp, 1), (Checkpointing::Layer, 2)]
        {
            decoder.set_checkpointing(checkpointing, interval);
            torch_ext::generator::set_state(Device::Cpu, &state).unwrap();
            let checkpointed = run(&mut decoder, &ids, &[13, 7], &probe);
            let what = format!("{architecture:?} {checkpointing:?} {interval}");
            assert!(plain.0.equal(&checkpointed.0), "{what}");
            assert!(plain.1.iter().zip(&checkpointed.1).all(|(a, b)| a.equal(b)), "{what}");
        }
        // The same where only the first layer's weights train: the input of a later layer is what needs a gradient.
        decoder.params_mut().set_trainable(|name| name.contains(".0."));
        torch_ext::generator::set_state(Device::Cpu, &state).unwrap();
        let (_, frozen_above) = run(&mut decoder, &ids, &[13, 7], &probe);
        let names: Vec<String> = decoder.params().names().map(str::to_owned).collect();
        let expected = names.iter().zip(&plain.1).filter(|(name, _)| name.contains(".0."));
        assert!(expected.zip(&frozen_above).all(|((_, a), b)| a.equal(b)), "{architecture:?}");
    }
}

#[test]
fn dropout_acts_in_training_mode_only() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for architecture in [Architecture::Gpt2, Architecture::Llama] {
        let mut decoder = tiny(architecture, &LoadOptions::default());
        decoder.set_dropout(Dropout { embedding: 0.0, attention: 0.5, residual: 0.0 });
        let input = row(&decoder, &token_ids(12, 61, 1), &[12]);
        let plain = decoder.hidden(&input).unwrap();
        assert!(decoder.hidden(&input).unwrap().equal(&plain));
        decoder.set_training(true);
        assert!(!decoder.hidden(&input).unwrap().equal(&plain));
        decoder.set_dropout(Dropout::default());
        assert!(decoder.hidden(&input).unwrap().equal(&plain));
        decoder.set_training(false);
        assert!(decoder.hidden(&input).unwrap().equal(&plain));
    }
    let mut gpt2 = tiny(Architecture::Gpt2, &LoadOptions::default());
    let input = row(&gpt2, &token_ids(12, 61, 1), &[12]);
    let plain = gpt2.hidden(&input).unwrap();
    gpt2.set_training(true);
    for dropout in [
        Dropout { embedding: 0.5, ..Dropout::default() },
        Dropout { residual: 0.5, ..Dropout::default() },
    ] {
        gpt2.set_dropout(dropout);
        assert!(!gpt2.hidden(&input).unwrap().equal(&plain));
    }
}

#[test]
fn bad_input_is_named() {
    let decoder = tiny(Architecture::Llama, &LoadOptions::default());
    let message = |ids: &[i64], positions: &[i64], cu: &[i64]| {
        decoder.input(ids, positions, cu).unwrap_err().to_string()
    };
    let id = message(&[3, 61], &[0, 1], &[0, 2]);
    assert!(id.contains("token id 61 (at 1)") && id.contains("vocabulary of 61"), "{id}");
    assert!(message(&[-1], &[0], &[0, 1]).contains("token id -1"));
    let position = message(&[1], &[48], &[0, 1]);
    assert!(
        position.contains("position 48") && position.contains("max_position_embeddings of 48"),
        "{position}"
    );
    assert!(message(&[1, 2], &[0], &[0, 2]).contains("2 token ids but 1 positions"));
    assert!(message(&[1, 2], &[0, 1], &[0, 3]).contains("ends at 3 but there are 2"));
    assert!(message(&[1, 2], &[0, 1], &[1, 2]).contains("start"));
}

#[test]
fn fresh_weights_depend_on_the_seed_and_follow_the_config() {
    let mut json = tiny_json(Architecture::Gpt2);
    json["n_embd"] = 64.into();
    json["n_layer"] = 8.into();
    json["initializer_range"] = 0.05.into();
    let config = ModelConfig::from_json(&json).unwrap();
    let options = LoadOptions::default();
    let decoder = Decoder::init(&config, 1, &options).unwrap();
    let std = |name: &str| decoder.params().get(name).unwrap().std(true).double_value(&[]);
    let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 0.05, "{got} vs {want}");
    close(std("transformer.wte.weight"), 0.05);
    close(std("transformer.h.0.attn.c_attn.weight"), 0.05);
    close(std("transformer.h.7.mlp.c_fc.weight"), 0.05);
    close(std("transformer.h.3.attn.c_proj.weight"), 0.05 / 4.0);
    close(std("transformer.h.3.mlp.c_proj.weight"), 0.05 / 4.0);
    let all_are = |name: &str, value: f64| {
        decoder.params().get(name).unwrap().eq(value).all().int64_value(&[]) == 1
    };
    assert!(all_are("transformer.h.0.ln_1.weight", 1.0) && all_are("transformer.ln_f.bias", 0.0));
    assert!(all_are("transformer.h.2.attn.c_attn.bias", 0.0));
    let same = |other: &Decoder| {
        decoder.params().iter().zip(other.params().iter()).all(|((_, a), (_, b))| a.equal(&b))
    };
    assert!(same(&Decoder::init(&config, 1, &TRAINABLE).unwrap()));
    let bf16 = LoadOptions { precision: Precision::Bf16, ..TRAINABLE };
    assert!(same(&Decoder::init(&config, 1, &bf16).unwrap()), "masters are fp32 in any precision");
    assert!(!same(&Decoder::init(&config, 2, &options).unwrap()));
    let llama = Decoder::init(&tiny_config(Architecture::Qwen3), 1, &options).unwrap();
    let down = llama.params().get("model.layers.0.mlp.down_proj.weight").unwrap();
    close(down.std(true).double_value(&[]), 0.02);
}

#[test]
fn parameter_counts_agree() {
    for architecture in Architecture::ALL {
        let decoder = tiny(architecture, &LoadOptions::default());
        let named: usize = decoder.params().iter().map(|(_, tensor)| tensor.numel()).sum();
        assert_eq!(named, decoder.params().num_elements());
        assert_eq!(named as u64, decoder.config().num_parameters());
        assert_eq!(decoder.params().len(), decoder.params().names().count());
        assert!(!decoder.params().is_empty());
    }
}

#[test]
fn half_precision_computes_in_its_kind_and_accumulates_gradients_in_fp32() {
    for precision in [Precision::Bf16, Precision::Fp16] {
        let mut decoder = tiny(Architecture::Qwen3, &LoadOptions { precision, ..TRAINABLE });
        let mut exact = tiny(Architecture::Qwen3, &TRAINABLE);
        let (ids, probe) = (token_ids(18, 61, 6), probe(18));
        let (hidden, once) = run(&mut decoder, &ids, &[11, 7], &probe);
        assert_eq!(hidden.kind(), precision.kind());
        let (expected, grads) = run(&mut exact, &ids, &[11, 7], &probe);
        assert_close("hidden", &hidden, &expected, 0.05);
        for (got, want) in once.iter().zip(&grads) {
            assert_eq!(got.kind(), Kind::Float);
            let ratio = (got - want).norm().double_value(&[]) / want.norm().double_value(&[]);
            assert!(ratio < 0.06, "{precision}: {ratio}");
        }
        // A second micro-batch adds up in fp32, exactly twice the first.
        let logits =
            decoder.logits(&decoder.hidden(&row(&decoder, &ids, &[11, 7])).unwrap()).unwrap();
        autograd::backward(&(&logits * &probe).sum(Kind::Float)).unwrap();
        decoder.params_mut().gather_grads().unwrap();
        for (twice, once) in decoder.params_mut().trainable().iter().zip(&once) {
            assert_close(twice.name, &twice.grad, &(once * 2.0), 1e-7);
        }
        decoder.params_mut().clear_grads().unwrap();
        let zero = |p: &crate::Trainable<'_>| p.grad.abs().max().double_value(&[]) == 0.0;
        assert!(decoder.params_mut().trainable().iter().all(zero));
    }
}

#[test]
fn steps_below_bf16s_resolution_reach_the_master_and_in_the_end_the_compute_copy() {
    let options = LoadOptions { precision: Precision::Bf16, ..TRAINABLE };
    let mut decoder = tiny(Architecture::Llama, &options);
    let name = "model.norm.weight";
    let compute = decoder.final_norm.weight.shallow_clone();
    let _ = no_grad(|| decoder.params().get(name).unwrap().fill_(1.0));
    decoder.params_mut().refresh_compute().unwrap();
    for _ in 0..10_000 {
        let _ = no_grad(|| decoder.params().get(name).unwrap().g_add_scalar_(1e-6));
    }
    let master = decoder.params().get(name).unwrap().double_value(&[0]);
    assert!((master - 1.01).abs() < 1e-3, "{master}");
    assert_eq!(compute.double_value(&[0]), 1.0, "not before the refresh");
    decoder.params_mut().refresh_compute().unwrap();
    assert_eq!(compute.double_value(&[0]), 1.0078125, "1.01 in bf16");
}

#[test]
fn a_frozen_model_holds_one_copy_and_takes_no_gradients() {
    let options = LoadOptions { precision: Precision::Bf16, ..LoadOptions::default() };
    let mut decoder = tiny(Architecture::Llama, &options);
    assert!(decoder.params().iter().all(|(_, tensor)| tensor.kind() == Kind::BFloat16));
    let hidden = decoder.hidden(&row(&decoder, &[1, 2, 3], &[3])).unwrap();
    assert!(!hidden.requires_grad());
    assert!(decoder.params_mut().trainable().is_empty());
    decoder.params_mut().set_trainable(|_| true);
    assert!(decoder.params_mut().trainable().is_empty());
}

#[test]
fn only_the_chosen_parameters_train() {
    let mut decoder = tiny(Architecture::Qwen2, &TRAINABLE);
    decoder.params_mut().set_trainable(|name| name.contains("layers.1.self_attn.k_proj"));
    let (_, grads) = run(&mut decoder, &token_ids(9, 61, 2), &[9], &probe(9));
    let trained: Vec<String> =
        decoder.params_mut().trainable().iter().map(|p| p.name.to_owned()).collect();
    let prefix = "model.layers.1.self_attn.k_proj";
    assert_eq!(trained, [format!("{prefix}.weight"), format!("{prefix}.bias")]);
    assert!(grads.iter().all(|grad| grad.abs().max().double_value(&[]) > 0.0));
    assert!(decoder.params().grad("model.embed_tokens.weight").is_none());
    assert!(
        decoder.params().grad("nonsense").is_none() && decoder.params().get("nonsense").is_none()
    );
    decoder.params_mut().set_trainable(|_| true);
    assert_eq!(decoder.params_mut().trainable().len(), decoder.params().len());
}

#[test]
fn a_tied_head_shares_the_embedding_and_its_gradient() {
    let mut decoder = tiny(Architecture::Llama, &TRAINABLE);
    let hidden = decoder.hidden(&row(&decoder, &[5, 6], &[2])).unwrap();
    let (weight, bias) = decoder.head().unwrap();
    assert!(bias.is_none());
    assert_eq!(weight.size(), [61, 16]);
    autograd::backward(&hidden.linear(&weight, None::<&Tensor>).sum(Kind::Float)).unwrap();
    decoder.params_mut().gather_grads().unwrap();
    let grad = decoder.params().grad("model.embed_tokens.weight").unwrap();
    // Rows that are no input still get the head's part.
    let unused = grad.get(40);
    assert_close(
        "head's part",
        &unused,
        &hidden.detach().sum_dim_intlist(0, false, Kind::Float),
        1e-6,
    );
    assert!(gap(&grad.get(5), &unused) > 1e-3, "input rows get the embedding's part too");
    assert!(!decoder.params().names().any(|name| name == "lm_head.weight"));
}
