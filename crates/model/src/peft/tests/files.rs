//! `adapter_config.json` and `adapter_model.safetensors`.

use super::*;
use crate::config::Head;
use crate::testing::gap;
use crate::weights::{WeightFiles, write_tensors};
use serde_json::{Value, json};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// The directory of an adapter that does something.
fn saved(base: &Path, adapter: &Adapter) -> (TempDir, Decoder) {
    let mut decoder = load(base, adapter);
    shake(&mut decoder);
    let dir = tempfile::tempdir().unwrap();
    decoder.save_adapter(dir.path(), "some/base", Some("0123")).unwrap();
    (dir, decoder)
}

fn config(dir: &Path) -> Value {
    serde_json::from_str(&fs_err::read_to_string(dir.join(CONFIG)).unwrap()).unwrap()
}

/// Changes keys of the config.
fn change(dir: &Path, changes: &[(&str, Value)]) {
    let mut config = config(dir);
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    fs_err::write(dir.join(CONFIG), config.to_string()).unwrap();
}

fn open_error(dir: &Path) -> String {
    AdapterFiles::open(dir).unwrap_err().to_string()
}

fn tensors(dir: &Path) -> Vec<(String, Tensor)> {
    let files = WeightFiles::open_file(&dir.join(WEIGHTS)).unwrap();
    files.names().map(|name| (name.to_owned(), files.tensor(name).unwrap())).collect()
}

#[test]
fn what_is_written_is_read_again() {
    let full = lora(|lora| {
        lora.lora_dropout = 0.25;
        lora.target_modules = targets(&["down_proj", "q_proj", "v_proj"]);
        lora.exclude_modules = Some(targets(&["layers.1.mlp.down_proj"]));
        lora.layers_to_transform = Some(vec![0, 1]);
        lora.bias = Bias::LoraOnly;
        lora.use_rslora = true;
        lora.use_dora = true;
        lora.rank_pattern.insert("q_proj".into(), 4);
        lora.alpha_pattern.insert(r"layers\.1\..*v_proj".into(), 2.5);
    });
    let pattern = lora(|lora| {
        lora.target_modules = Targets::Pattern(r".*\.(q|v)_proj".into());
        lora.bias = Bias::All;
    });
    let of_ia3 = adapter(Method::Ia3(Ia3 {
        target_modules: Some(targets(&["k_proj", "up_proj"])),
        feedforward_modules: Some(targets(&["up_proj"])),
    }));
    let outputs_only = adapter(Method::Ia3(Ia3 {
        target_modules: Some(Targets::Pattern(".*k_proj".into())),
        feedforward_modules: None,
    }));
    let all = [
        full,
        saving(pattern, &["lm_head"]),
        of_ia3,
        outputs_only,
        bottleneck(BottleneckPlace::Houlsby),
        saving(bottleneck(BottleneckPlace::Pfeiffer), &["model.norm"]),
    ];
    let dir = base(Architecture::Qwen2);
    for adapter in all {
        let (out, decoder) = saved(dir.path(), &adapter);
        let files = AdapterFiles::open(out.path()).unwrap();
        assert_eq!(files.adapter(), &adapter);
        assert_eq!((files.base(), files.base_digest()), (Some("some/base"), Some("0123")));
        assert_eq!((files.head(), files.dir()), (Head::LanguageModel, out.path()));
        assert_eq!(files.num_elements(), decoder.params().num_trainable());
        let count = files.trainable_parameters(decoder.config()).unwrap();
        assert_eq!(count, decoder.params().num_trainable() as u64);
        assert!(AdapterFiles::is_adapter(out.path()) && !AdapterFiles::is_adapter(dir.path()));
        let again = load_files(dir.path(), out.path()).unwrap();
        assert!(logits(&again).equal(&logits(&decoder)), "{adapter:?}");
    }
}

#[test]
fn adapters_over_one_model_are_as_if_loaded_alone_and_share_its_weights() {
    for architecture in [Architecture::Qwen2, Architecture::Gpt2] {
        let dir = base(architecture);
        let shared = plain(dir.path());
        let before = logits(&shared);
        let biases = lora(|lora| lora.bias = Bias::All);
        let whole = saving(lora(|_| {}), &["lm_head"]);
        for (name, adapter) in
            every_method().into_iter().chain([("biases", biases), ("whole", whole)])
        {
            // GPT-2's output layer is its embedding.
            if name == "whole" && architecture == Architecture::Gpt2 {
                continue;
            }
            let (out, _) = saved(dir.path(), &adapter);
            let files = AdapterFiles::open(out.path()).unwrap();
            let over = shared.with_adapter(&files).unwrap();
            let alone = load_files(dir.path(), out.path()).unwrap();
            assert!(logits(&over).equal(&logits(&alone)), "{architecture:?} {name}");
            assert!(logits(&shared).equal(&before) && !logits(&over).equal(&before), "{name}");
            assert_eq!((over.params().num_trainable(), over.adapter()), (0, alone.adapter()));
            for (weight, mine) in shared.params().iter() {
                let theirs = over.params().get(weight).unwrap();
                let apart = match name {
                    "biases" => weight.ends_with("bias"),
                    "whole" => weight == "lm_head.weight",
                    _ => false,
                };
                assert_eq!(mine.data_ptr() != theirs.data_ptr(), apart, "{name}: {weight}");
            }
            let twice = message(over.with_adapter(&files));
            assert!(twice.contains("it cannot share the weights of a loaded model"), "{twice}");
        }
    }
}

#[test]
fn every_method_is_the_same_after_a_save_for_every_family() {
    for architecture in Architecture::ALL {
        let dir = base(architecture);
        for (name, adapter) in every_method() {
            let (out, decoder) = saved(dir.path(), &adapter);
            let again = load_files(dir.path(), out.path()).unwrap();
            assert!(logits(&again).equal(&logits(&decoder)), "{architecture:?} {name}");
            let list = &config(out.path())["target_modules"];
            let whole = list.as_array().is_none_or(|list| {
                list.iter().all(|name| !name.as_str().unwrap_or_default().contains("layers"))
            });
            assert!(whole, "{list}: the ends of names are enough");
        }
    }
}

#[test]
fn the_score_goes_with_the_adapter_of_a_reward_model() {
    let dir = base(Architecture::Mistral);
    let adapter = saving(lora(|_| {}), &["score"]);
    let loading = Loading {
        options: TRAINABLE,
        head: Some(Head::Score),
        adapter: Some(&adapter),
        ..Loading::default()
    };
    let mut decoder = Decoder::load_with(dir.path(), &loading).unwrap();
    shake(&mut decoder);
    let out = tempfile::tempdir().unwrap();
    decoder.save_adapter(out.path(), "base", None).unwrap();
    let written = config(out.path());
    assert_eq!(written["task_type"], "SEQ_CLS");
    assert_eq!(written["modules_to_save"], json!(["classifier", "score"]));
    // The base has no score; that of the adapter takes its place.
    let again = load_files(dir.path(), out.path()).unwrap();
    assert_eq!(again.config().head, Head::Score);
    assert!(logits(&again).equal(&logits(&decoder)));
}

#[test]
fn a_policy_with_values_takes_up_the_adapter_of_a_language_model_and_hands_on_one() {
    let dir = base(Architecture::Mistral);
    let (files, decoder) = saved(dir.path(), &lora(|_| {}));
    let files = AdapterFiles::open(files.path()).unwrap();
    let loading = Loading {
        options: TRAINABLE,
        head: Some(Head::LanguageModelAndScore),
        adapter_files: Some(&files),
        ..Loading::default()
    };
    let policy = Decoder::load_with(dir.path(), &loading).unwrap();
    assert!(logits(&policy).equal(&logits(&decoder)));
    assert!(policy.params().trained().any(|(name, _)| name == "score.weight"));
    let out = tempfile::tempdir().unwrap();
    policy.save_adapter(out.path(), "base", None).unwrap();
    assert!(tensors(out.path()).iter().all(|(name, _)| !name.contains("score")));
    assert!(load_files(dir.path(), out.path()).is_ok());
}

#[test]
fn a_tied_embedding_is_written_for_both_of_its_places() {
    for (architecture, method, name) in [
        (Architecture::Llama, lora(|_| {}), "model.embed_tokens"),
        (Architecture::Llama, ia3(), "model.embed_tokens"),
        (Architecture::Gpt2, lora(|_| {}), "transformer.wte"),
    ] {
        let dir = base(architecture);
        let adapter = saving(method, &[name]);
        let (out, decoder) = saved(dir.path(), &adapter);
        let is_lora = adapter.method.name() == "LoRA";
        let finds = is_lora && architecture == Architecture::Llama;
        let both = if finds { json!([name]) } else { json!(["lm_head", name]) };
        let written = config(out.path());
        assert_eq!(written["modules_to_save"], both);
        assert_eq!(written["ensure_weight_tying"].as_bool(), is_lora.then_some(true));
        let again = load_files(dir.path(), out.path()).unwrap();
        assert!(logits(&again).equal(&logits(&decoder)));
        let head = "base_model.model.lm_head.weight";
        let whole = tensors(out.path());
        for other in [None, Some(1.01)] {
            let changed: Vec<(String, Tensor)> = whole
                .iter()
                .filter_map(|(name, tensor)| match (name == head, other) {
                    (true, None) => None,
                    (true, Some(factor)) => Some((name.clone(), tensor * factor)),
                    _ => Some((name.clone(), tensor.shallow_clone())),
                })
                .collect();
            write_tensors(&out.path().join(WEIGHTS), &changed).unwrap();
            let error = message(load_files(dir.path(), out.path()));
            let text = format!("{name}.weight is trained without the output layer that shares it");
            assert!(error.contains(&text) && error.contains("ensure_weight_tying"), "{error}");
        }
    }
}

/// PEFT takes every module whose name ends with these letters.
#[test]
fn modules_to_save_are_written_so_that_peft_takes_no_others() {
    let dir = base(Architecture::Llama);
    for (wanted, written) in [
        ("norm", json!(["model.norm"])),
        ("embed_tokens", json!(["embed_tokens"])),
        ("post_attention_layernorm", json!(["post_attention_layernorm"])),
    ] {
        let (out, _) = saved(dir.path(), &saving(lora(|_| {}), &[wanted]));
        assert_eq!(config(out.path())["modules_to_save"], written);
        assert!(load_files(dir.path(), out.path()).is_ok());
    }
}

#[test]
fn an_adapter_of_another_base_names_what_does_not_fit() {
    let dir = base(Architecture::Qwen2);
    let (out, _) = saved(dir.path(), &lora(|lora| lora.target_modules = targets(&["q_proj"])));
    let mut json = crate::testing::tiny_json(Architecture::Qwen2);
    (json["hidden_size"], json["num_hidden_layers"]) = (32.into(), 3.into());
    let other = base_of(&ModelConfig::from_json(&json).unwrap());
    let error = message(load_files(other.path(), out.path()));
    for part in [
        &format!(
            "{}: this adapter is of another base (its config names some/base):",
            out.path().display()
        ),
        "missing: model.layers.2.self_attn.q_proj.lora_A.weight [2, 32]",
        "model.layers.0.self_attn.q_proj.lora_A.weight has shape [2, 16], the model asks for [2, 32]",
    ] {
        assert!(error.contains(part), "{part}\n{error}");
    }
    json["num_hidden_layers"] = 1.into();
    let other = base_of(&ModelConfig::from_json(&json).unwrap());
    let error = message(load_files(other.path(), out.path()));
    let name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight";
    assert!(error.contains(&format!("unexpected: {name} [24, 2]")), "{error}");
    // Layers of other names.
    let gpt2 = base(Architecture::Gpt2);
    let error = message(load_files(gpt2.path(), out.path()));
    assert!(error.contains("target_modules: `q_proj` is no linear layer"), "{error}");
    // A long list ends.
    let (out, _) = saved(dir.path(), &lora(|_| {}));
    change(out.path(), &[("r", 3.into())]);
    let error = message(load_files(dir.path(), out.path()));
    assert!(error.contains("... and 16 more") && error.lines().count() == 14, "{error}");
}

/// As PEFT does: it says nothing of a name that no layer has as long as others do.
#[test]
fn files_may_name_layers_that_are_not_there() {
    let dir = base(Architecture::Qwen2);
    let adapter = saving(lora(|lora| lora.target_modules = targets(&["q_proj"])), &["norm"]);
    let (out, decoder) = saved(dir.path(), &adapter);
    change(
        out.path(),
        &[
            ("target_modules", json!(["q_proj", "query_key_value", "lm_head"])),
            ("exclude_modules", json!(["vision_tower"])),
            ("modules_to_save", json!(["model.norm", "classifier"])),
            ("layers_pattern", json!(["layers"])),
            ("some_future_key", json!(1)),
        ],
    );
    let again = load_files(dir.path(), out.path()).unwrap();
    assert!(logits(&again).equal(&logits(&decoder)));
    // What is trained whole is no target, and a full name counts in every layer.
    let whole = "model.layers.0.self_attn.q_proj";
    let adapter = lora(|lora| {
        lora.target_modules = targets(&[whole, "v_proj"]);
        lora.layers_to_transform = Some(vec![1]);
    });
    let (out, decoder) = saved(dir.path(), &adapter);
    let changed: Vec<&str> = decoder.params().trained().map(|(name, _)| name).collect();
    assert!(changed.iter().any(|name| name.starts_with(whole)) && changed.len() == 4);
    change(
        out.path(),
        &[
            ("target_modules", json!([whole, "v_proj", "k_proj"])),
            ("modules_to_save", json!(["k_proj"])),
        ],
    );
    let error = message(load_files(dir.path(), out.path()));
    assert!(error.contains("missing: model.layers.0.self_attn.k_proj.weight"), "{error}");
    assert!(!error.contains("lora"), "{error}");
}

#[test]
fn a_rank_above_a_layers_size_is_read_as_a_pissa_may_have_one() {
    let dir = base(Architecture::Qwen2);
    let adapter = lora(|lora| {
        (lora.r, lora.target_modules) = (9, targets(&["k_proj"]));
        (lora.init_lora_weights, lora.use_rslora) = (InitLora::Pissa, true);
        lora.rank_pattern.insert("layers.1.self_attn.k_proj".into(), 5);
        lora.alpha_pattern.insert("layers.0.self_attn.k_proj".into(), 7.0);
    });
    let (out, decoder) = saved(dir.path(), &adapter);
    let again = load_files(dir.path(), out.path()).unwrap();
    let Some(Adapter { method: Method::Lora(lora), .. }) = again.adapter() else { panic!() };
    assert_eq!((lora.r, lora.init_lora_weights), (18, InitLora::Kaiming));
    assert_eq!(lora.rank_pattern["layers.1.self_attn.k_proj"], 10);
    assert!((lora.alpha_pattern["layers.0.self_attn.k_proj"] - 7.0 * 2.0_f64.sqrt()).abs() < 1e-12);
    let difference = gap(&logits(&again), &logits(&decoder));
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn damaged_and_foreign_files_are_named() {
    let dir = base(Architecture::Qwen2);
    let (out, _) = saved(dir.path(), &lora(|_| {}));
    let original = config(out.path());
    let path = out.path().join(CONFIG);
    let with = |key: &str, value: Value| {
        fs_err::write(&path, original.to_string()).unwrap();
        change(out.path(), &[(key, value)]);
        let error = open_error(out.path());
        assert!(error.starts_with(&path.display().to_string()), "{error}");
        error
    };
    for (key, value, text) in [
        (
            "peft_type",
            json!("VERA"),
            "peft_type VERA is not supported; LORA, IA3 and BOTTLENECK are",
        ),
        ("peft_type", json!(null), "has no `peft_type`"),
        ("peft_type", json!(7), "`peft_type`: invalid type: integer `7`, expected a string"),
        ("task_type", json!("TOKEN_CLS"), "task_type TOKEN_CLS is not supported"),
        ("target_modules", json!(null), "`target_modules` is null"),
        ("target_modules", json!(5), "`target_modules`: invalid type"),
        ("r", json!("two"), "`r`: invalid type"),
        ("r", json!(2.5), "`r`: invalid type"),
        ("lora_alpha", json!("much"), "`lora_alpha`: invalid type"),
        ("use_dora", json!("yes"), "`use_dora`: invalid type"),
        ("rank_pattern", json!({"q_proj": 1.5}), "`rank_pattern`: invalid type"),
        ("layers_to_transform", json!(["a"]), "`layers_to_transform` is no list of numbers"),
        ("layers_pattern", json!("blocks"), "layers_pattern `blocks` is not supported"),
        ("bias", json!("some"), "bias `some` is none of none, all, lora_only"),
        ("lora_bias", json!(true), "`lora_bias` = true is not supported"),
        ("use_qalora", json!(true), "`use_qalora` = true is not supported"),
        ("layer_replication", json!([[0, 2]]), "`layer_replication` = [[0,2]] is not supported"),
        ("target_parameters", json!(["w"]), "`target_parameters`"),
        ("trainable_token_indices", json!([1]), "`trainable_token_indices`"),
        (
            "init_lora_weights",
            json!("pissa_niter_16"),
            "init_lora_weights `pissa_niter_16` changed the base",
        ),
        ("init_lora_weights", json!("olora"), "init_lora_weights `olora` changed the base"),
        ("init_lora_weights", json!("loftq"), "path_initial_model_for_weight_conversion"),
    ] {
        let error = with(key, value);
        assert!(error.contains(text), "{text}\n{error}");
    }
    fs_err::write(&path, "{").unwrap();
    assert!(open_error(out.path()).contains("not JSON: "));
    fs_err::write(&path, "[]").unwrap();
    assert!(open_error(out.path()).contains("is no JSON object"));
    fs_err::write(&path, original.to_string()).unwrap();
    fs_err::write(out.path().join(WEIGHTS), [1, 2, 3]).unwrap();
    assert!(open_error(out.path()).contains("too short for a safetensors file"));
    fs_err::remove_file(out.path().join(WEIGHTS)).unwrap();
    assert!(open_error(out.path()).contains(WEIGHTS));
    fs_err::write(out.path().join("adapter_model.bin"), "x").unwrap();
    assert!(open_error(out.path()).contains("only adapter_model.bin is here"));
    assert!(open_error(Path::new("/nonexistent")).contains("/nonexistent/adapter_config.json"));
}

#[test]
fn a_rank_that_no_adapter_has_is_refused_before_its_numbers_are_counted() {
    let dir = base(Architecture::Qwen2);
    let (out, _) = saved(dir.path(), &lora(|_| {}));
    change(out.path(), &[("rank_pattern", json!({"q_proj": i64::MAX}))]);
    let files = AdapterFiles::open(out.path()).unwrap();
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let error = files.trainable_parameters(&config).unwrap_err().to_string();
    assert!(error.contains("a rank of 9223372036854775807 does not fit"), "{error}");
    assert!(error.contains("give from 1 to 1048576"), "{error}");
}

#[test]
fn ia3_and_bottlenecks_say_what_they_do_not_know() {
    let dir = base(Architecture::Qwen2);
    let (out, _) = saved(dir.path(), &ia3());
    change(out.path(), &[("exclude_modules", json!(["q_proj"]))]);
    let error = open_error(out.path());
    assert!(error.contains("`exclude_modules` is not supported for IA3"), "{error}");
    let (out, _) = saved(dir.path(), &bottleneck(BottleneckPlace::Houlsby));
    change(out.path(), &[("place", json!("everywhere"))]);
    let error = open_error(out.path());
    assert!(error.contains("everywhere") && error.contains("houlsby"), "{error}");
}

#[test]
fn targets_are_read_as_peft_writes_them() {
    let read = |text: &str| serde_json::from_str::<Targets>(text);
    assert_eq!(read("\"all-linear\"").unwrap(), Targets::AllLinear);
    assert_eq!(read("\".*q_proj\"").unwrap(), Targets::Pattern(".*q_proj".into()));
    assert_eq!(read("[\"q_proj\"]").unwrap(), targets(&["q_proj"]));
    assert!(read("[]").unwrap_err().to_string().contains("the list names no layer"));
    let number = read("3").unwrap_err().to_string();
    assert!(
        number.contains("\"all-linear\", a regular expression, or a list of names"),
        "{number}"
    );
    for value in [Targets::AllLinear, Targets::Pattern("a".into()), targets(&["b", "c"])] {
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(read(&text).unwrap(), value);
    }
}
