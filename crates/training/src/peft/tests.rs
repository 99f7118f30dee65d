use artifact::{FORMAT_VERSION, Manifest, RunDir, atomic};
use model::weights::write_tensors;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::*;

/// Writes a file in a folder that may not be there yet.
fn write(path: &Path, text: &str) {
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    atomic::write_bytes(path, text.as_bytes()).unwrap();
}

/// A LoRA's files as PEFT would have them.
fn adapter(dir: &Path, config: &Value) {
    write(&dir.join("adapter_config.json"), &config.to_string());
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let tensors = [(name.to_owned(), Tensor::zeros([2, 8], (Kind::Float, Device::Cpu)))];
    write_tensors(&dir.join("adapter_model.safetensors"), &tensors).unwrap();
}

fn lora(base: &Path) -> Value {
    json!({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": base})
}

/// Makes a folder the directory of a finished run.
fn finish(dir: &Path) {
    let run = RunDir::create(dir).unwrap();
    run.write_config("seed = 0\n").unwrap();
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        stage: "peft".to_owned(),
        outputs: run.outputs().unwrap(),
        ..Manifest::default()
    };
    manifest.write(&run).unwrap();
}

#[test]
fn the_digest_of_a_base_is_that_of_its_weights_alone() {
    let dir = tempfile::tempdir().unwrap();
    let single = dir.path().join("single");
    write(&single.join("model.safetensors"), "weights");
    write(&single.join("config.json"), "{}");
    let before = base_digest(&single).unwrap();
    assert_eq!(before, digest::bytes(b"weights").to_string());
    write(&single.join("config.json"), "{\"a\": 1}");
    assert_eq!(base_digest(&single).unwrap(), before);

    let shards = dir.path().join("shards");
    for (name, text) in [("1-of-2", "a"), ("2-of-2", "b")] {
        write(&shards.join(format!("model-0000{name}.safetensors")), text);
    }
    write(&shards.join("model.safetensors.index.json"), "{}");
    let before = base_digest(&shards).unwrap();
    write(&shards.join("model.safetensors.index.json"), "{ }");
    assert_eq!(base_digest(&shards).unwrap(), before);
    write(&shards.join("model-00002-of-2.safetensors"), "c");
    assert_ne!(base_digest(&shards).unwrap(), before);
    assert!(before.starts_with("sha256:"), "{before}");
}

#[test]
fn a_place_is_a_model_or_an_adapter_over_one() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("sft/model/config.json"), "{}");
    finish(&at("sft"));
    adapter(&at("tuned/adapter"), &lora(&at("sft/model")));
    finish(&at("tuned"));
    let found = |model: &str, adapter: Option<&str>| {
        let adapter = adapter.map(at);
        Place::find(&at(model), adapter.as_deref()).unwrap()
    };
    let plain = Place { base: at("sft/model"), adapter: None };
    assert_eq!(found("sft", None), plain);
    assert_eq!(found("sft/model", None), plain);
    let over = Place { base: at("sft/model"), adapter: Some(at("tuned/adapter")) };
    // A run that made an adapter only, its adapter, and both said.
    for (model, adapter) in [
        ("tuned", None),
        ("tuned/adapter", None),
        ("sft", Some("tuned")),
        ("sft/model", Some("tuned/adapter")),
    ] {
        assert_eq!(found(model, adapter), over, "{model} {adapter:?}");
    }
    // Where it was merged, the run has a model.
    write(&at("tuned/model/config.json"), "{}");
    assert_eq!(found("tuned", None), Place { base: at("tuned/model"), adapter: None });
    assert_eq!(over.tokenizer_dir(), at("sft/model"));
    write(&at("tuned/adapter/tokenizer.json"), "{}");
    assert_eq!(over.tokenizer_dir(), at("tuned/adapter"));
}

#[test]
fn a_place_that_is_none_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("base/config.json"), "{}");
    fs_err::create_dir_all(at("empty")).unwrap();
    adapter(&at("lost"), &lora(&at("gone")));
    adapter(&at("nameless"), &json!({"peft_type": "LORA", "target_modules": ["q_proj"]}));
    let said = |model: &str, adapter: Option<&str>| {
        let adapter = adapter.map(at);
        let error = Place::find(&at(model), adapter.as_deref()).unwrap_err();
        stage::report(&error).replace(&dir.path().display().to_string(), "DIR")
    };
    let lost = said("lost", None);
    for part in [
        "error: DIR/lost: the model it was trained over, `DIR/gone`, is not to be found",
        "caused by: DIR/gone: does not exist",
        "hint: give that model with --model and the adapter with --adapter",
    ] {
        assert!(lost.contains(part), "{part:?} in\n{lost}");
    }
    assert!(said("nameless", None).contains("names no model that it was trained over"));
    assert!(said("none", None).contains("error: DIR/none: does not exist; give a Hugging Face"));
    assert!(said("empty", None).contains("has neither config.json nor manifest.json"));
    let other = said("base", Some("empty"));
    assert!(other.contains("DIR/empty: no adapter here: neither adapter_config.json nor adapter/"));
    assert!(said("base", Some("none")).contains("DIR/none: does not exist"));
    assert!(said("lost", Some("lost")).contains("DIR/lost: has neither config.json"));
}

#[test]
fn a_table_without_sense_is_refused() {
    let problems = |text: &str| {
        let mut problems = Problems::new();
        Plan::new(toml::from_str(text).unwrap(), &mut problems);
        problems.to_string()
    };
    assert_eq!(problems("method.lora.r = 2"), "");
    assert_eq!(
        problems("quantization = {}"),
        "- peft: needs a method, such as [peft.method.lora], or an adapter to go on from"
    );
    assert_eq!(
        problems("adapter = \"x\"\nmethod.ia3 = {}"),
        "- peft.adapter: is given beside peft.method; leave one out"
    );
    assert_eq!(
        problems("method.bottleneck.size = 4\nmerge = true"),
        "- peft.merge: cannot be with a bottleneck adapter: it has layers of its own, which no weight can take in"
    );
    let pissa = problems("method.lora.init_lora_weights = \"pissa\"\nquantization = {}");
    assert!(
        pissa.starts_with("- peft.quantization: does not go with init_lora_weights"),
        "{pissa}"
    );
    let dir = tempfile::tempdir().unwrap();
    adapter(dir.path(), &lora(Path::new("base")));
    let shown = dir.path().display();
    assert_eq!(
        problems(&format!("adapter = \"{shown}\"\nmodules_to_save = [\"lm_head\"]")),
        "- peft.modules_to_save: is for a new adapter; one to go on from brings its own"
    );
}
