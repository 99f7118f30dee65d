//! What training changes, and what it leaves.

use super::*;
use crate::config::Head;
use crate::testing::{GENERATOR, assert_close, gap, tiny_json};
use std::collections::BTreeMap;
use std::sync::PoisonError;

/// All weights of the model itself by name, as bytes that nothing can change later.
fn snapshot(decoder: &Decoder) -> BTreeMap<String, Tensor> {
    decoder.params().iter().map(|(name, weight)| (name.to_owned(), weight.copy())).collect()
}

#[test]
fn a_fresh_adapter_leaves_every_logit_as_it_is() {
    for architecture in Architecture::ALL {
        let dir = base(architecture);
        let base = plain(dir.path());
        // Of the larger number of rows another kernel takes care.
        for lengths in [&[13, 7][..], &[40; 8]] {
            let logits = |decoder: &Decoder| no_grad(|| outputs_of(decoder, lengths));
            let before = logits(&base);
            for (name, adapter) in every_method() {
                let got = logits(&load(dir.path(), &adapter));
                if name == "dora" {
                    assert_close(name, &got, &before, 1e-6);
                } else {
                    let gap = gap(&got, &before);
                    assert!(got.equal(&before), "{architecture:?} {name} {lengths:?}: {gap}");
                }
            }
        }
        let before = logits(&base);
        let pissa = lora(|lora| lora.init_lora_weights = InitLora::Pissa);
        assert_close("pissa", &logits(&load(dir.path(), &pissa)), &before, 1e-5);
    }
}

#[test]
fn a_shaken_adapter_does_not() {
    let dir = base(Architecture::Qwen2);
    let before = logits(&plain(dir.path()));
    for (name, adapter) in every_method() {
        let mut decoder = load(dir.path(), &adapter);
        shake(&mut decoder);
        assert!(gap(&logits(&decoder), &before) > 0.1, "{name}");
    }
}

#[test]
fn the_seed_decides_the_start() {
    let dir = base(Architecture::Llama);
    for (name, adapter) in every_method() {
        let with = |seed| {
            let loading =
                Loading { options: TRAINABLE, seed, adapter: Some(&adapter), ..Loading::default() };
            let decoder = Decoder::load_with(dir.path(), &loading).unwrap();
            decoder.params().trained().map(|(_, weight)| weight.copy()).collect::<Vec<_>>()
        };
        let same = |a: &[Tensor], b: &[Tensor]| a.iter().zip(b).all(|(a, b)| a.equal(b));
        assert!(same(&with(1), &with(1)), "{name}");
        assert_eq!(same(&with(1), &with(2)), name == "ia3", "{name}");
    }
}

#[test]
fn a_start_has_the_spread_of_its_paper() {
    let dir = base(Architecture::Gpt2);
    let of = |adapter: &Adapter, name: &str| {
        let name = format!("transformer.h.0.{name}");
        load(dir.path(), adapter).params().get(&name).unwrap()
    };
    let wide = |init| lora(|lora| (lora.r, lora.init_lora_weights) = (16, init));
    // 64 inputs: uniform within 1/8, so of deviation 1/8/√3.
    let kaiming = of(&wide(InitLora::Kaiming), "mlp.c_proj.lora_A.weight");
    assert!(kaiming.abs().max().double_value(&[]) <= 0.125);
    assert!((kaiming.std(true).double_value(&[]) / 0.07217 - 1.0).abs() < 0.05);
    let gaussian = of(&wide(InitLora::Gaussian), "mlp.c_proj.lora_A.weight");
    assert!((gaussian.std(true).double_value(&[]) * 16.0 - 1.0).abs() < 0.05);
    let b = of(&wide(InitLora::Gaussian), "mlp.c_proj.lora_B.weight");
    assert_eq!(b.abs().max().double_value(&[]), 0.0);
    // The rows of a weight `[in, out]` are its columns.
    let dora = lora(|lora| lora.use_dora = true);
    let weight = of(&dora, "mlp.c_proj.weight");
    let lengths = weight.square().sum_dim_intlist(0, false, Kind::Float).sqrt();
    let magnitude = of(&dora, "mlp.c_proj.lora_magnitude_vector");
    assert_close("lengths", &magnitude, &lengths, 1e-6);
    let down = of(&bottleneck(BottleneckPlace::Houlsby), "attn.adapter_down.weight");
    assert!((down.std(true).double_value(&[]) / 1e-2 - 1.0).abs() < 0.3);
}

struct Case {
    name: &'static str,
    architecture: Architecture,
    head: Head,
    adapter: Adapter,
    /// Whether the parameter of a name trains.
    trains: fn(&str) -> bool,
}

fn cases() -> Vec<Case> {
    use Architecture::{Gpt2, Llama, Mistral, Qwen2, Qwen3};
    let lora_part = |name: &str| name.contains(".lora_");
    let case = |name, architecture, adapter, trains| Case {
        name,
        architecture,
        head: Head::LanguageModel,
        adapter,
        trains,
    };
    let mut all = vec![
        case("lora", Gpt2, lora(|_| {}), lora_part as fn(&str) -> bool),
        case("dora", Qwen3, lora(|lora| lora.use_dora = true), lora_part),
        case("pissa", Llama, lora(|lora| lora.init_lora_weights = InitLora::Pissa), lora_part),
        case("dropout", Mistral, lora(|lora| lora.lora_dropout = 0.3), lora_part),
        case("ia3", Qwen2, ia3(), |name| name.ends_with(".ia3_l")),
        case("houlsby", Gpt2, bottleneck(BottleneckPlace::Houlsby), |name| {
            name.contains("adapter_")
        }),
        case("pfeiffer", Llama, bottleneck(BottleneckPlace::Pfeiffer), |name| {
            name.contains("mlp.adapter_")
        }),
        case("all biases", Gpt2, lora(|lora| lora.bias = Bias::All), |name| {
            name.contains(".lora_") || name.strip_suffix(".bias").is_some()
        }),
        // The biases of q and v lie in one block with that of k.
        case(
            "own biases",
            Qwen2,
            lora(|lora| {
                (lora.bias, lora.target_modules) = (Bias::LoraOnly, targets(&["q_proj", "v_proj"]));
            }),
            |name| {
                name.contains(".lora_")
                    || name.ends_with("q_proj.bias")
                    || name.ends_with("v_proj.bias")
            },
        ),
        case("lm_head", Mistral, saving(lora(|_| {}), &["lm_head", "norm"]), |name| {
            name.contains(".lora_") || ["lm_head.weight", "model.norm.weight"].contains(&name)
        }),
        case("tied embedding", Llama, saving(ia3(), &["embed_tokens"]), |name| {
            name.contains("ia3_l") || name == "model.embed_tokens.weight"
        }),
    ];
    for use_dora in [false, true] {
        let adapter = lora(|lora| {
            (lora.use_dora, lora.target_modules) = (use_dora, targets(&["q_proj", "gate_proj"]));
        });
        // Of layers side by side one has an update and another trains whole.
        all.push(case("beside", Qwen3, saving(adapter, &["v_proj", "up_proj"]), |name| {
            name.contains(".lora_") || name.contains(".v_proj.") || name.contains(".up_proj.")
        }));
    }
    let trains = |name: &str| name.contains(".lora_") || name == "score.weight";
    let (name, adapter) = ("score", lora(|_| {}));
    all.push(Case { name, architecture: Qwen2, head: Head::Score, adapter, trains });
    all
}

#[test]
fn only_what_is_named_changes_in_training() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for precision in [Precision::Fp32, Precision::Bf16] {
        for Case { name, architecture, head, adapter, trains } in cases() {
            let dir = base(architecture);
            let options = LoadOptions { precision, ..TRAINABLE };
            let loading = Loading {
                options,
                head: Some(head),
                seed: 1,
                adapter: Some(&adapter),
                ..Loading::default()
            };
            let mut decoder = Decoder::load_with(dir.path(), &loading).unwrap();
            decoder.set_training(true);
            let before = snapshot(&decoder);
            descend(&mut decoder);
            let mut changed = 0;
            for (parameter, weight) in decoder.params().iter() {
                let same = weight.equal(&before[parameter]);
                assert_eq!(same, !trains(parameter), "{name} {precision}: {parameter}");
                changed += usize::from(!same);
            }
            let listed: Vec<&str> = decoder.params().trained().map(|(name, _)| name).collect();
            assert!(listed.iter().all(|name| trains(name)) && listed.len() == changed, "{name}");
            let config = decoder.config().clone();
            let count = decoder.params().num_trainable() as u64;
            assert_eq!(trainable_parameters(&adapter, &config).unwrap(), count, "{name}");
            let numbers = decoder.params().trained().map(|(_, weight)| weight.numel() as u64);
            assert_eq!(numbers.sum::<u64>(), count, "{name}");
        }
    }
}

#[test]
fn the_model_without_its_adapter_is_the_base_and_shares_its_weights() {
    for (name, adapter) in every_method() {
        let dir = base(Architecture::Qwen2);
        let before = logits(&plain(dir.path()));
        let mut decoder = load(dir.path(), &adapter);
        let without = decoder.without_adapter().unwrap();
        assert!(without.adapter().is_none() && decoder.adapter().is_some());
        descend(&mut decoder);
        let after = logits(&without);
        assert!(after.equal(&before) && !logits(&decoder).equal(&before), "{name}");
        assert!(logits(&decoder.without_adapter().unwrap()).equal(&before), "{name}");
        assert_eq!(without.params().num_trainable(), 0);
        for (name, weight) in without.params().iter() {
            let shared = decoder.params().get(name).unwrap();
            assert_eq!(weight.data_ptr(), shared.data_ptr(), "{name}");
        }
    }
}

/// What trains whole is copied as it is.
#[test]
fn the_model_without_its_adapter_keeps_what_trained_whole_as_it_was_then() {
    let dir = base(Architecture::Mistral);
    let before = logits(&plain(dir.path()));
    let mut decoder = load(dir.path(), &saving(lora(|_| {}), &["lm_head"]));
    let without = decoder.without_adapter().unwrap();
    shake(&mut decoder);
    assert!(logits(&without).equal(&before));
    assert!(!logits(&decoder.without_adapter().unwrap()).equal(&before));
}

#[test]
fn a_pissa_has_taken_the_base_apart() {
    let dir = base(Architecture::Llama);
    let decoder = load(dir.path(), &lora(|lora| lora.init_lora_weights = InitLora::Pissa));
    let error = decoder.without_adapter().unwrap_err().to_string();
    assert!(error.starts_with("init_lora_weights: `pissa` takes a part of the weights"), "{error}");
}

#[test]
fn b_and_magnitudes_learn_at_the_rate_of_lora_plus() {
    let dir = base(Architecture::Qwen2);
    for (ratio, expected) in [(None, 1.0), (Some(16.0), 16.0)] {
        let mut adapter = lora(|lora| {
            (lora.use_dora, lora.bias, lora.loraplus_lr_ratio) = (true, Bias::LoraOnly, ratio);
        });
        adapter.modules_to_save = names(&["norm"]);
        let mut decoder = load(dir.path(), &adapter);
        let mut faster = 0;
        for weight in decoder.params_mut().trainable() {
            let is_fast = weight.name.ends_with("lora_B.weight")
                || weight.name.ends_with("lora_magnitude_vector");
            assert_eq!(weight.rate, if is_fast { expected } else { 1.0 }, "{}", weight.name);
            faster += usize::from(is_fast);
        }
        // Two of each of seven layers in each of two.
        assert_eq!(faster, 28);
    }
}

#[test]
fn checkpointing_changes_neither_values_nor_gradients() {
    use crate::decoder::Checkpointing;
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, mut adapter) in every_method() {
        if let Method::Lora(lora) = &mut adapter.method {
            lora.lora_dropout = 0.3;
        }
        let dir = base(Architecture::Qwen3);
        let mut decoder = load(dir.path(), &adapter);
        shake(&mut decoder);
        decoder.set_training(true);
        let state = torch_ext::generator::get_state(Device::Cpu).unwrap();
        let expected = gradients(&mut decoder);
        for checkpointing in [Checkpointing::Mlp, Checkpointing::Layer] {
            decoder.set_checkpointing(checkpointing, 1);
            torch_ext::generator::set_state(Device::Cpu, &state).unwrap();
            for ((parameter, got), (_, want)) in gradients(&mut decoder).iter().zip(&expected) {
                assert!(got.equal(want), "{name} {checkpointing:?} {parameter}");
            }
        }
    }
}

/// A bottleneck by hand, where the sub-layers add nothing but it.
#[test]
fn a_bottleneck_computes_its_formula() {
    let mut json = tiny_json(Architecture::Gpt2);
    json["n_layer"] = 1.into();
    let config = ModelConfig::from_json(&json).unwrap();
    let dir = base_of(&config);
    let decoder = load(dir.path(), &bottleneck(BottleneckPlace::Pfeiffer));
    let set = |name: &str, value: f64| {
        let mut weight = decoder.params().get(&format!("transformer.h.0.{name}")).unwrap();
        let _ = no_grad(|| weight.fill_(value));
    };
    // The MLP gives 0.5 everywhere, of which the bottleneck makes 0.5 + relu(0.5 · 16 · 0.1 - 0.3) · 3 · 0.2 + 0.7.
    for name in ["attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight"] {
        set(name, 0.0);
    }
    set("mlp.c_proj.bias", 0.5);
    set("mlp.adapter_down.weight", 0.1);
    set("mlp.adapter_down.bias", -0.3);
    set("mlp.adapter_up.weight", 0.2);
    set("mlp.adapter_up.bias", 0.7);
    let ids = Tensor::from_slice(&[3_i64]);
    let position = Tensor::from_slice(&[0_i64]);
    let run = |decoder: &Decoder| {
        let attend = |_: usize, q: &Tensor, _: &Tensor, _: &Tensor, _: &_| Ok(q.zeros_like());
        no_grad(|| decoder.hidden_with(&ids, &position, None, attend)).unwrap()
    };
    let without = run(&decoder.without_adapter().unwrap());
    let added = run(&decoder) - without + 0.5;
    let expected = 0.5 + 0.5 * 3.0 * 0.2 + 0.7;
    assert!((added.double_value(&[0, 4]) - expected).abs() < 1e-5, "{added}");
}
