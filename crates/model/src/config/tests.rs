use super::*;
use crate::precision::Precision;
use crate::testing::{tiny_config, tiny_json};
use serde_json::json;

fn problems(value: &Value) -> Vec<String> {
    match ModelConfig::from_json(value) {
        Err(Error::Config { problems, .. }) => problems.0,
        other => panic!("expected problems, got {other:?}"),
    }
}

/// The config with one key set, or removed where `value` is undefined.
fn with(mut config: Value, changes: &[(&str, Value)]) -> Value {
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    config
}

fn without(mut config: Value, key: &str) -> Value {
    config.as_object_mut().unwrap().remove(key);
    config
}

#[test]
fn gpt2_config_of_the_hub_is_read_with_its_old_keys() {
    // The relevant part of the published `gpt2/config.json`, which has neither head size nor tie key.
    let config = ModelConfig::from_json(&json!({
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
        "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257,
    }))
    .unwrap();
    assert_eq!(config.num_parameters(), 124_439_808);
    assert!(config.tie_word_embeddings);
    assert_eq!((config.head_dim, config.intermediate_size), (64, 3072));
    assert_eq!(config.attention_scales, vec![0.125; 12]);
    assert_eq!(config.dropout, Dropout { embedding: 0.1, attention: 0.1, residual: 0.1 });
    assert_eq!(config.eos_token_ids, [50256]);
    // One token at context 0: twice the matrices, the tied head included.
    let matrices = 12.0 * 12.0 * 768.0 * 768.0 + 50257.0 * 768.0;
    assert_eq!(config.forward_flops_per_token(0.0), 2.0 * matrices);
}

#[test]
fn llama_configs_old_and_new_agree() {
    let base = json!({
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "eos_token_id": [128001, 128008, 128009],
    });
    let scaling = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    });
    let old =
        with(base.clone(), &[("rope_theta", 500000.0.into()), ("rope_scaling", scaling.clone())]);
    let parameters = with(scaling, &[("rope_theta", 500000.0.into())]);
    let new = with(base, &[("rope_parameters", parameters)]);
    let (old, new) = (ModelConfig::from_json(&old).unwrap(), ModelConfig::from_json(&new).unwrap());
    assert_eq!(old.rope, new.rope);
    // Llama 3.1 8B.
    assert_eq!(old.num_parameters(), 8_030_261_248);
    assert_eq!(old.eos_token_ids, [128001, 128008, 128009]);
    assert_eq!(old.head_dim, 128);
    // Frequencies by transformers' `_compute_llama3_parameters`: kept, blended, divided by 8.
    let frequencies = old.rope.unwrap().inverse_frequencies(128);
    let plain = |i: f64| 500000_f64.powf(-2.0 * i / 128.0);
    assert!((f64::from(frequencies[1]) - plain(1.0)).abs() < 1e-6);
    assert!((f64::from(frequencies[63]) / (plain(63.0) / 8.0) - 1.0).abs() < 1e-5);
    let wavelength = std::f64::consts::TAU / plain(30.0);
    assert!((2048.0..8192.0).contains(&wavelength), "pair 30 is in the blended band");
    let smooth = (8192.0 / wavelength - 1.0) / 3.0;
    let blended = (1.0 - smooth) * plain(30.0) / 8.0 + smooth * plain(30.0);
    assert!((f64::from(frequencies[30]) / blended - 1.0).abs() < 1e-5);
}

#[test]
fn linear_scaling_and_plain_rope() {
    let base = with(tiny_json(Architecture::Mistral), &[("rope_theta", 100.0.into())]);
    let plain = ModelConfig::from_json(&base).unwrap().rope.unwrap();
    assert_eq!(plain, Rope { theta: 100.0, scaling: RopeScaling::None });
    let expected = [1.0, 100_f32.powf(-2.0 / 6.0), 100_f32.powf(-4.0 / 6.0)];
    for (got, want) in plain.inverse_frequencies(6).iter().zip(expected) {
        assert!((got - want).abs() < 1e-7);
    }
    let scaled = with(base, &[("rope_scaling", json!({"type": "linear", "factor": 2.0}))]);
    let scaled = ModelConfig::from_json(&scaled).unwrap().rope.unwrap();
    for (got, want) in scaled.inverse_frequencies(6).iter().zip(expected) {
        assert!((got - want / 2.0).abs() < 1e-7);
    }
}

#[test]
fn defaults_are_those_of_transformers() {
    let qwen3 = without(tiny_json(Architecture::Qwen3), "head_dim");
    assert_eq!(ModelConfig::from_json(&qwen3).unwrap().head_dim, 128);
    let mistral = with(tiny_json(Architecture::Mistral), &[("num_attention_heads", 16.into())]);
    let mistral = without(without(mistral, "num_key_value_heads"), "sliding_window");
    let mistral = with(mistral, &[("max_position_embeddings", 8192.into())]);
    let mistral = ModelConfig::from_json(&mistral).unwrap();
    assert_eq!(mistral.num_key_value_heads, 8);
    assert_eq!(mistral.sliding_windows, [Some(4096), Some(4096)]);
    let llama = without(tiny_json(Architecture::Llama), "num_key_value_heads");
    assert_eq!(ModelConfig::from_json(&llama).unwrap().num_key_value_heads, 4);
    let gpt2 = with(tiny_json(Architecture::Gpt2), &[("n_inner", Value::Null)]);
    assert_eq!(ModelConfig::from_json(&gpt2).unwrap().intermediate_size, 64);
    let by_layer = with(gpt2, &[("scale_attn_by_inverse_layer_idx", true.into())]);
    let scale = 8_f64.powf(-0.5);
    let scales = ModelConfig::from_json(&by_layer).unwrap().attention_scales;
    assert_eq!(scales, [scale, scale / 2.0]);
}

#[test]
fn windows_follow_each_family() {
    let windows = |config: &Value| ModelConfig::from_json(config).unwrap().sliding_windows;
    assert_eq!(windows(&tiny_json(Architecture::Mistral)), [Some(5), Some(5)]);
    assert_eq!(windows(&tiny_json(Architecture::Qwen2)), [None, Some(4)]);
    let off = with(tiny_json(Architecture::Qwen2), &[("use_sliding_window", false.into())]);
    assert_eq!(windows(&off), [None, None]);
    let types = json!(["sliding_attention", "full_attention"]);
    let listed = with(tiny_json(Architecture::Qwen2), &[("layer_types", types)]);
    assert_eq!(windows(&listed), [Some(4), None]);
    let null = with(tiny_json(Architecture::Mistral), &[("sliding_window", Value::Null)]);
    assert_eq!(windows(&null), [None, None]);
    // A window that no position can leave is no window.
    let wide = with(tiny_json(Architecture::Mistral), &[("sliding_window", 48.into())]);
    assert_eq!(windows(&wide), [None, None]);
}

#[test]
fn all_problems_are_named_at_once() {
    let config = json!({
        "model_type": "llama", "hidden_size": "wide", "num_attention_heads": 5, "num_key_value_heads": 2,
        "num_hidden_layers": 0, "vocab_size": 100, "max_position_embeddings": 64, "hidden_act": "geglu",
        "rms_norm_eps": -1.0, "tie_word_embeddings": 1, "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "quantization_config": {"quant_method": "gptq"}, "head_dim": 7, "eos_token_id": ["</s>"],
    });
    let found = problems(&config);
    let expected = [
        "`quantization_config`: quantised checkpoints are not supported",
        "`hidden_size` must be an integer of at least 1, not \"wide\"",
        "`num_hidden_layers` must be an integer of at least 1, not 0",
        "`num_attention_heads` (5) is not a multiple of `num_key_value_heads` (2)",
        "`head_dim` (7) must be even",
        "`intermediate_size` is missing",
        "`rms_norm_eps` must be a number from",
        "`hidden_act` \"geglu\" is not supported",
        "`tie_word_embeddings` must be true or false, not 1",
        "`rope_scaling.rope_type` \"yarn\" is not supported",
        "`eos_token_id` must be",
    ];
    for text in expected {
        assert!(found.iter().any(|p| p.starts_with(text)), "{text}\nnot in {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn each_unsupported_or_inconsistent_setting_has_its_message() {
    let llama = || tiny_json(Architecture::Llama);
    let cases = [
        (json!([]), "must be a JSON object"),
        (json!({}), "`model_type` is missing; supported are gpt2, llama, mistral, qwen2, qwen3"),
        (json!({"model_type": "bert"}), "`model_type` \"bert\" is not supported"),
        (json!({"model_type": 3}), "`model_type` must be a string"),
        (with(llama(), &[("partial_rotary_factor", 0.5.into())]), "`partial_rotary_factor`"),
        (with(llama(), &[("pruned_heads", json!({"1": [0]}))]), "`pruned_heads`"),
        (
            with(llama(), &[("rope_scaling", json!({"type": "linear", "factor": 2.0}))]),
            "`rope_parameters` and `rope_scaling` are both given and differ",
        ),
        (
            with(llama(), &[("rope_parameters", json!({"rope_type": "linear"}))]),
            "`rope_parameters.factor` is missing",
        ),
        (
            with(llama(), &[("rope_parameters", json!({"attention_factor": 2.0}))]),
            "`rope_parameters.attention_factor` is not known for rope_type \"default\"",
        ),
        (with(llama(), &[("rope_parameters", 7.into())]), "`rope_parameters` must be an object"),
        (
            with(
                llama(),
                &[(
                    "rope_parameters",
                    json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                           "original_max_position_embeddings": 16}),
                )],
            ),
            "`rope_parameters.high_freq_factor` (1) must be above",
        ),
        (
            with(tiny_json(Architecture::Gpt2), &[("add_cross_attention", true.into())]),
            "`add_cross_attention` true is not supported",
        ),
        (
            with(tiny_json(Architecture::Gpt2), &[("n_head", 3.into())]),
            "`n_embd` (16) is not a multiple of `n_head` (3)",
        ),
        (
            with(tiny_json(Architecture::Qwen2), &[("layer_types", json!(["full_attention"]))]),
            "`layer_types` has 1 entries for 2 `num_hidden_layers`",
        ),
        (
            with(
                tiny_json(Architecture::Qwen3),
                &[("layer_types", json!(["full_attention", "sliding_attention"]))],
            ),
            "`layer_types` has \"sliding_attention\" but `use_sliding_window` is not true",
        ),
        (
            with(
                tiny_json(Architecture::Qwen3),
                &[("layer_types", json!(["full_attention", "linear_attention"]))],
            ),
            "`layer_types` entry \"linear_attention\" is not supported",
        ),
        (
            with(
                tiny_json(Architecture::Mistral),
                &[("layer_types", json!(["full_attention", "sliding_attention"]))],
            ),
            "`layer_types` other than \"sliding_attention\" in every layer",
        ),
    ];
    for (config, message) in cases {
        let found = problems(&config);
        assert!(found.len() == 1 && found[0].starts_with(message), "{message}\ngot {found:#?}");
    }
}

#[test]
fn sizes_beyond_any_model_are_refused() {
    // Whatever is reckoned from the largest sizes fits.
    let gpt2 = || tiny_json(Architecture::Gpt2);
    let largest = with(
        tiny_json(Architecture::Qwen3),
        &[
            ("hidden_size", (1 << 20).into()),
            ("intermediate_size", (1 << 24).into()),
            ("num_hidden_layers", (1 << 12).into()),
            ("num_attention_heads", (1 << 12).into()),
            ("num_key_value_heads", (1 << 12).into()),
            ("head_dim", (1 << 12).into()),
            ("vocab_size", i32::MAX.into()),
        ],
    );
    let config = ModelConfig::from_json(&largest).unwrap();
    assert!(config.num_parameters() > 1 << 58 && config.forward_flops_per_token(1.0) > 1e17);
    // In a release build these would wrap around, fill the memory with a list of layers, or both.
    for (key, value, most) in [
        ("n_layer", json!(1_u64 << 50), 4096_i64),
        ("n_layer", json!(4097), 4096),
        ("n_layer", json!(u64::MAX), 4096),
        ("n_embd", json!(i64::MAX - 1), 1 << 20),
        ("n_inner", json!(1_i64 << 40), 1 << 24),
        ("vocab_size", json!(1_i64 << 32), i32::MAX.into()),
        ("n_positions", json!(1e300), i32::MAX.into()),
    ] {
        let found = problems(&with(gpt2(), &[(key, value.clone())]));
        let expected = format!("`{key}` must be an integer of at most {most}, not {value}");
        assert_eq!(found[0], expected);
    }
}

#[test]
fn a_file_is_named_in_its_errors() {
    let dir = tempfile::tempdir().unwrap();
    let missing = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    assert!(missing.contains("config.json"), "{missing}");
    fs_err::write(dir.path().join("config.json"), "{\"model_type\": \"gpt2\",}").unwrap();
    let broken = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    assert!(broken.contains("config.json") && broken.contains("line 1 column 23"), "{broken}");
}

#[test]
fn written_config_means_the_same_and_keeps_unknown_keys() {
    for architecture in Architecture::ALL {
        let source = with(
            tiny_json(architecture),
            &[("custom", json!({"nested": [1, 2]})), ("transformers_version", "5.23.0".into())],
        );
        let config = ModelConfig::from_json(&source).unwrap();
        let written = config.to_hf_json(Precision::Bf16);
        for (key, value) in source.as_object().unwrap() {
            assert_eq!(&written[key], value, "{architecture:?} {key}");
        }
        assert_eq!(written["architectures"], json!([architecture.class(Head::LanguageModel)]));
        assert_eq!(written["torch_dtype"], "bfloat16");
        let again = ModelConfig::from_json(&written).unwrap();
        assert_eq!(again.to_hf_json(Precision::Bf16), written);
        assert_eq!(ModelConfig { raw: config.raw.clone(), ..again }, config);
    }
}

#[test]
fn settings_left_to_defaults_are_written_out() {
    let written = tiny_config(Architecture::Gpt2).to_hf_json(Precision::Fp32);
    let expected = json!({
        "n_inner": 64, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": true,
        "initializer_range": 0.02, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "pad_token_id": null,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&written[key], value, "{key}");
    }
    let written = tiny_config(Architecture::Mistral).to_hf_json(Precision::Fp32);
    assert_eq!((&written["rope_theta"], &written["hidden_act"]), (&10000.0.into(), &"silu".into()));
    let with_dtype = with(tiny_json(Architecture::Qwen2), &[("dtype", "float32".into())]);
    let written = ModelConfig::from_json(&with_dtype).unwrap().to_hf_json(Precision::Fp16);
    assert_eq!(written["dtype"], "float16");
    assert!(written.get("torch_dtype").is_none());
}

#[test]
fn vocabulary_and_special_tokens_can_be_set_for_another_tokenizer() {
    let mut config = tiny_config(Architecture::Llama);
    config.set_vocab_size(97);
    config.set_token_ids(None, &[5, 6], Some(7));
    let again = ModelConfig::from_json(&config.to_hf_json(Precision::Fp32)).unwrap();
    assert_eq!(again.vocab_size, 97);
    assert_eq!((again.bos_token_id, again.pad_token_id), (None, Some(7)));
    assert_eq!(again.eos_token_ids, [5, 6]);
    config.set_token_ids(Some(1), &[2], None);
    assert_eq!(config.to_hf_json(Precision::Fp32)["eos_token_id"], 2);
}
