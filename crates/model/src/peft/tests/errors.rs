//! What a user is told.

use super::*;
use crate::testing::tiny_json;

/// Asserts that each part is in the message.
#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

#[track_caller]
fn refused(architecture: Architecture, adapter: &Adapter, parts: &[&str]) {
    let dir = base(architecture);
    let error = message(try_load(dir.path(), adapter, TRAINABLE));
    says(&error, parts);
    // The same without any file.
    let config = tiny_config(architecture);
    assert_eq!(trainable_parameters(adapter, &config).unwrap_err().to_string(), error);
}

#[test]
fn a_target_that_is_no_layer() {
    use Architecture::{Gpt2, Llama};
    let of = |targets: Targets| lora(|lora| lora.target_modules = targets);
    let near = ["target_modules: `q_prj` is no linear layer", "the nearest are `q_proj`"];
    refused(Llama, &of(targets(&["v_proj", "q_prj"])), &near);
    // Part of a word is no name.
    refused(
        Llama,
        &of(targets(&["proj"])),
        &["`proj` is no linear layer", "`q_proj`", "`up_proj`"],
    );
    refused(Gpt2, &of(targets(&["q_proj"])), &["`c_proj`", "`c_attn`", "`c_fc`"]);
    let pattern = Targets::Pattern(r".*\.(q|v)".into());
    refused(Llama, &of(pattern), &[r"target_modules: `.*\.(q|v)` is no linear layer"]);
    let broken = Targets::Pattern("(q_proj".into());
    refused(Llama, &of(broken), &["`(q_proj` is no regular expression"]);
    for outside in ["lm_head", "model.embed_tokens"] {
        let parts =
            [outside, "is not a linear layer inside a transformer layer", "modules_to_save"];
        refused(Llama, &of(targets(&[outside])), &parts);
    }
    let exclude = lora(|lora| lora.exclude_modules = Some(targets(&["q_prj"])));
    refused(Llama, &exclude, &["exclude_modules: `q_prj`", "`q_proj`"]);
    let nothing = lora(|lora| {
        (lora.target_modules, lora.exclude_modules) =
            (targets(&["q_proj"]), Some(targets(&["self_attn.q_proj"])));
    });
    refused(Llama, &nothing, &["exclude_modules and layers_to_transform leave no layer"]);
}

#[test]
fn numbers_out_of_range() {
    use Architecture::{Gpt2, Qwen2};
    let of = |change: fn(&mut Lora)| lora(change);
    let fits = "model.layers.0.self_attn.k_proj, which is [12, 16]; give from 1 to 12";
    refused(
        Qwen2,
        &of(|lora| lora.r = 13),
        &["r: a rank of 13 does not fit", fits, "rank_pattern"],
    );
    refused(Qwen2, &of(|lora| lora.r = 0), &["r: a rank of 0 does not fit"]);
    let pattern = of(|lora| {
        lora.rank_pattern.insert("mlp.c_proj".into(), 17);
    });
    refused(Gpt2, &pattern, &["a rank of 17", "transformer.h.0.mlp.c_proj, which is [16, 64]"]);
    let broken = of(|lora| {
        lora.alpha_pattern.insert("(c_attn".into(), 1.0);
    });
    refused(Gpt2, &broken, &["no regular expression"]);
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let adapter = lora(|lora| lora.lora_alpha = alpha);
        refused(Gpt2, &adapter, &["lora_alpha: must be above 0, got"]);
        let adapter = lora(|lora| {
            lora.alpha_pattern.insert("c_attn".into(), alpha);
        });
        refused(Gpt2, &adapter, &["lora_alpha: must be above 0, got"]);
    }
    for dropout in [-0.1, 1.0, f64::NAN] {
        let adapter = lora(|lora| lora.lora_dropout = dropout);
        refused(Gpt2, &adapter, &["lora_dropout: must be from 0 to below 1, got"]);
    }
    for ratio in [0.0, f64::INFINITY] {
        let adapter = lora(|lora| lora.loraplus_lr_ratio = Some(ratio));
        refused(Gpt2, &adapter, &["loraplus_lr_ratio: must be above 0, got"]);
    }
    for layer in [2, -1] {
        let adapter = lora(|lora| lora.layers_to_transform = Some(vec![0, layer]));
        let text = format!("layers_to_transform: there is no layer {layer}; the last is 1");
        refused(Gpt2, &adapter, &[&text]);
    }
    let pattern = lora(|lora| {
        lora.target_modules = Targets::Pattern(".*c_attn".into());
        lora.layers_to_transform = Some(vec![0]);
    });
    refused(Gpt2, &pattern, &["layers_to_transform: does not go with a regular expression"]);
    for size in [0, 17] {
        let activation = crate::config::Activation::Relu;
        let place = BottleneckPlace::Houlsby;
        let method = Method::Bottleneck(Bottleneck { size, activation, place });
        let text = format!("size: a bottleneck of {size} does not fit");
        refused(Gpt2, &adapter(method), &[&text, "from 1 to 16"]);
    }
}

#[test]
fn what_does_not_go_together() {
    use Architecture::{Llama, Mistral, Qwen2};
    let pissa = lora(|lora| (lora.init_lora_weights, lora.use_dora) = (InitLora::Pissa, true));
    refused(Qwen2, &pissa, &["init_lora_weights: `pissa` changes the weight whose rows use_dora"]);
    let twice = saving(lora(|lora| lora.target_modules = targets(&["q_proj"])), &["q_proj"]);
    let parts = ["modules_to_save: model.layers.0.self_attn.q_proj is also among target_modules"];
    refused(Qwen2, &twice, &parts);
    let unknown = saving(lora(|_| {}), &["lm_haed"]);
    refused(Mistral, &unknown, &["modules_to_save: `lm_haed` is no module", "`lm_head`"]);
    let tied = saving(lora(|_| {}), &["lm_head"]);
    let parts = ["modules_to_save: `lm_head` shares its weight", "name `model.embed_tokens`"];
    refused(Llama, &tied, &parts);
    let ia3 = adapter(Method::Ia3(Ia3 {
        target_modules: Some(targets(&["k_proj"])),
        feedforward_modules: Some(targets(&["down_proj"])),
    }));
    let parts = ["feedforward_modules: model.layers.0.mlp.down_proj is not among target_modules"];
    refused(Qwen2, &ia3, &parts);
}

fn quantised(dir: &Path, adapter: Option<&Adapter>, skip: &[&str]) -> Result<Decoder> {
    let quantization = Quantization { skip_modules: names(skip), ..Quantization::default() };
    let quantization = Some(&quantization);
    let loading = Loading { options: TRAINABLE, adapter, quantization, ..Loading::default() };
    Decoder::load_with(dir, &loading)
}

#[test]
fn weights_in_4_bits_that_should_train() {
    let dir = base(Architecture::Qwen2);
    let error = message(quantised(dir.path(), None, &[]));
    says(
        &error,
        &["weights in 4 bits cannot train", "train an adapter, or leave quantization out"],
    );
    let only_q = lora(|lora| lora.target_modules = targets(&["q_proj"]));
    let saved = saving(only_q, &["down_proj"]);
    let error = message(quantised(dir.path(), Some(&saved), &[]));
    says(
        &error,
        &["model.layers.0.mlp.down_proj is to be trained whole", "quantization.skip_modules"],
    );
    // The config alone tells the same.
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let check = |adapter: &Adapter, skip: &[&str]| {
        let quantization = Quantization { skip_modules: names(skip), ..Quantization::default() };
        quantization.check(adapter, &config).map_err(|error| error.to_string())
    };
    assert_eq!(check(&saved, &[]).unwrap_err(), error);
    assert_eq!(check(&saved, &["down_proj"]), Ok(()));
    assert!(check(&lora(|_| {}), &["dwn_proj"]).unwrap_err().contains("`down_proj`"));
    assert!(quantised(dir.path(), Some(&saved), &["down_proj"]).is_ok());
    let error = message(quantised(dir.path(), Some(&lora(|_| {})), &["dwn_proj"]));
    says(&error, &["quantization.skip_modules: `dwn_proj` is no linear layer", "`down_proj`"]);
    let pissa = lora(|lora| lora.init_lora_weights = InitLora::Pissa);
    let error = message(quantised(dir.path(), Some(&pissa), &[]));
    says(&error, &["init_lora_weights: `pissa` takes a part of each weight", "rounding to 4 bits"]);
    // The same of a model that is in 4 bits on disk.
    let options = LoadOptions::default();
    let quantization = Quantization::default();
    let loading = Loading { options, quantization: Some(&quantization), ..Loading::default() };
    let saved_dir = tempfile::tempdir().unwrap();
    let decoder = Decoder::load_with(dir.path(), &loading).unwrap();
    decoder.save(saved_dir.path(), Precision::Bf16, u64::MAX).unwrap();
    let error = message(Decoder::load(saved_dir.path(), &TRAINABLE));
    says(&error, &["q_proj.weight is stored in 4 bits", "train an adapter"]);
    let error = message(try_load(saved_dir.path(), &saved, TRAINABLE));
    says(&error, &["down_proj is to be trained whole", "give the model in full precision"]);
    let loading = Loading { options: TRAINABLE, whole: true, ..Loading::default() };
    assert!(Decoder::load_with(saved_dir.path(), &loading).is_ok());
}

#[test]
fn what_cannot_be_merged_or_saved() {
    let dir = base(Architecture::Qwen2);
    let mut decoder = load(dir.path(), &bottleneck(BottleneckPlace::Houlsby));
    let error = decoder.merge_adapter().unwrap_err().to_string();
    says(&error, &["a bottleneck adapter has layers of its own"]);
    // One layer in full, which must not have been merged when the others are refused.
    let skip =
        ["layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj", "layers.0.self_attn.v_proj"];
    let mut decoder = quantised(dir.path(), Some(&lora(|_| {})), &skip).unwrap();
    shake(&mut decoder);
    let before = logits(&decoder);
    let error = decoder.merge_adapter().unwrap_err().to_string();
    says(&error, &["the base is in 4 bits", "merge into the base in full precision"]);
    assert!(logits(&decoder).equal(&before));
    let mut decoder = load(dir.path(), &lora(|lora| lora.use_dora = true));
    let error = decoder.unmerge_adapter().unwrap_err().to_string();
    says(&error, &["a DoRA cannot be taken off", "keep the base"]);
    let mut decoder = load(dir.path(), &lora(|lora| lora.bias = Bias::LoraOnly));
    let error = decoder.unmerge_adapter().unwrap_err().to_string();
    says(&error, &["k_proj.bias and maybe others were trained whole", "keep the base"]);
    let mut decoder = plain(dir.path());
    let out = tempfile::tempdir().unwrap();
    let none = "this model has no adapter";
    assert_eq!(decoder.save_adapter(out.path(), "base", None).unwrap_err().to_string(), none);
    assert_eq!(decoder.merge_adapter().unwrap_err().to_string(), none);
    assert_eq!(decoder.unmerge_adapter().unwrap_err().to_string(), none);
    assert!(fs_err::read_dir(out.path()).unwrap().next().is_none(), "nothing is written");
}

#[test]
fn a_quantised_model_of_another_kind_is_refused() {
    for quantization in [
        serde_json::json!({"quant_method": "gptq"}),
        serde_json::json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
    ] {
        let mut json = tiny_json(Architecture::Llama);
        json["quantization_config"] = quantization;
        let error = ModelConfig::from_json(&json).unwrap_err().to_string();
        says(&error, &["`quantization_config`: quantised checkpoints are not supported but for"]);
    }
    let mut json = tiny_json(Architecture::Llama);
    json["quantization_config"] =
        serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    assert!(ModelConfig::from_json(&json).is_ok());
}
