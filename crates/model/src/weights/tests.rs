use crate::config::Architecture;
use crate::decoder::{Decoder, LoadOptions};
use crate::precision::Precision;
use crate::testing::{gap, row, tiny, tiny_json, token_ids};
use crate::weights::{WeightFiles, write};
use serde_json::{Value, json};
use std::path::Path;
use tch::{Kind, Tensor};

const WHOLE: u64 = u64::MAX;

fn logits(decoder: &Decoder) -> Tensor {
    let ids = token_ids(10, 61, 3);
    decoder.logits(&decoder.hidden(&row(decoder, &ids, &[6, 4])).unwrap()).unwrap()
}

fn load(dir: &Path) -> crate::Result<Decoder> {
    Decoder::load(dir, &LoadOptions::default())
}

fn load_error(dir: &Path) -> String {
    load(dir).unwrap_err().to_string()
}

/// Writes a config and tensors under the names that `rename` gives (or leaves out).
fn write_as(dir: &Path, model: &Decoder, config: &Value, rename: impl Fn(&str) -> Option<String>) {
    let tensors: Vec<(String, Tensor)> =
        model.params().iter().filter_map(|(name, t)| Some((rename(name)?, t))).collect();
    write_tensors(dir, config, &tensors);
}

fn write_tensors(dir: &Path, config: &Value, tensors: &[(String, Tensor)]) {
    fs_err::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shallow_clone()));
    write(dir, tensors, Precision::Fp32, WHOLE).unwrap();
}

#[test]
fn a_saved_model_loads_the_same_whole_and_in_shards() {
    for architecture in Architecture::ALL {
        let model = tiny(architecture, &LoadOptions::default());
        let dir = tempfile::tempdir().unwrap();
        let files = model.save(dir.path(), Precision::Fp32, WHOLE).unwrap();
        assert_eq!(files.len(), 2);
        assert!(logits(&load(dir.path()).unwrap()).equal(&logits(&model)), "{architecture:?}");
        // Saving over it in shards replaces the single file.
        let files = model.save(dir.path(), Precision::Fp32, 4096).unwrap();
        assert!(files.len() > 4);
        assert!(!dir.path().join("model.safetensors").exists());
        assert!(logits(&load(dir.path()).unwrap()).equal(&logits(&model)), "{architecture:?}");
        for file in &files[..files.len() - 2] {
            let names = WeightFiles::open_file(file).unwrap().names().count();
            let size = fs_err::metadata(file).unwrap().len();
            assert!(names == 1 || size < 4096 + 1024, "{size} bytes for {names} tensors");
        }
        let index = dir.path().join("model.safetensors.index.json");
        let index: Value = serde_json::from_slice(&fs_err::read(index).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], model.params().num_elements() * 4);
        model.save(dir.path(), Precision::Fp32, WHOLE).unwrap();
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 2, "stale shards are gone");
    }
}

#[test]
fn a_tied_head_is_written_once_and_files_are_what_transformers_reads() {
    let model = tiny(Architecture::Llama, &LoadOptions::default());
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), Precision::Fp32, WHOLE).unwrap();
    let bytes = fs_err::read(dir.path().join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(header % 8, 0);
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    assert_eq!(json["__metadata__"], json!({"format": "pt"}));
    assert!(json.get("lm_head.weight").is_none());
    let q = &json["model.layers.0.self_attn.q_proj.weight"];
    assert_eq!((&q["dtype"], &q["shape"]), (&"F32".into(), &json!([24, 16])));
    assert_eq!(json.as_object().unwrap().len(), model.params().len() + 1);
}

#[test]
fn number_types_convert_on_the_way_in_and_out() {
    let model = tiny(Architecture::Qwen2, &LoadOptions::default());
    for (stored, relative) in [(Precision::Bf16, 1.0 / 256.0), (Precision::Fp16, 1.0 / 2048.0)] {
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), stored, WHOLE).unwrap();
        let files = WeightFiles::open(dir.path()).unwrap();
        assert_eq!(files.tensor("lm_head.weight").unwrap().kind(), stored.kind());
        let again = load(dir.path()).unwrap();
        for ((name, before), (_, after)) in model.params().iter().zip(again.params().iter()) {
            let rounding = (&before - &after).abs() - before.abs() * relative;
            assert!(rounding.max().double_value(&[]) <= 1e-7, "{name}");
        }
        // A frozen model in the stored type writes the same bytes again.
        let options = LoadOptions { precision: stored, ..LoadOptions::default() };
        let other = tempfile::tempdir().unwrap();
        let frozen = Decoder::load(dir.path(), &options).unwrap();
        frozen.save(other.path(), stored, WHOLE).unwrap();
        let [a, b] =
            [dir, other].map(|d| fs_err::read(d.path().join("model.safetensors")).unwrap());
        assert!(a == b);
    }
}

#[test]
fn base_model_names_and_old_buffers_are_accepted() {
    let gpt2 = tiny(Architecture::Gpt2, &LoadOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let mut tensors: Vec<(String, Tensor)> = gpt2
        .params()
        .iter()
        .map(|(name, t)| (name.strip_prefix("transformer.").unwrap().to_owned(), t))
        .collect();
    tensors.push((
        "h.0.attn.bias".into(),
        Tensor::ones([1, 1, 48, 48], (Kind::Float, tch::Device::Cpu)),
    ));
    tensors.push(("h.1.attn.masked_bias".into(), Tensor::from(-1e4_f32)));
    write_tensors(dir.path(), &tiny_json(Architecture::Gpt2), &tensors);
    assert!(logits(&load(dir.path()).unwrap()).equal(&logits(&gpt2)));

    let llama = tiny(Architecture::Llama, &LoadOptions::default());
    let mut tensors: Vec<(String, Tensor)> =
        llama.params().iter().map(|(name, t)| (name.to_owned(), t)).collect();
    let inv = Tensor::from_slice(&[1.0_f32, 0.5]);
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), inv));
    tensors
        .push(("lm_head.weight".into(), llama.params().get("model.embed_tokens.weight").unwrap()));
    write_tensors(dir.path(), &tiny_json(Architecture::Llama), &tensors);
    assert!(logits(&load(dir.path()).unwrap()).equal(&logits(&llama)));
    // A head of its own in a tied model would be lost silently.
    tensors.last_mut().unwrap().1 = llama.params().get("model.embed_tokens.weight").unwrap() * 2.0;
    write_tensors(dir.path(), &tiny_json(Architecture::Llama), &tensors);
    let error = load_error(dir.path());
    assert!(error.contains("lm_head.weight differs from model.embed_tokens.weight"), "{error}");
}

#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let model = tiny(Architecture::Mistral, &LoadOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let mut config = tiny_json(Architecture::Mistral);
    config["intermediate_size"] = 20.into();
    write_as(dir.path(), &model, &config, |name| match name {
        "model.layers.1.self_attn.k_proj.weight" => {
            Some("model.layers.1.self_attn.key.weight".into())
        }
        "lm_head.weight" => None,
        other => Some(other.into()),
    });
    let error = load_error(dir.path());
    let lines: Vec<&str> = error.lines().collect();
    assert!(lines[0].contains(&dir.path().display().to_string()));
    assert_eq!(
        lines[1..],
        [
            "  - missing: model.layers.1.self_attn.k_proj.weight [12, 16]",
            "  - missing: lm_head.weight [61, 16]",
            "  - unexpected: model.layers.1.self_attn.key.weight [12, 16]",
            "  - model.layers.0.mlp.gate_proj.weight has shape [24, 16], the config asks for [20, 16]",
            "  - model.layers.0.mlp.up_proj.weight has shape [24, 16], the config asks for [20, 16]",
            "  - model.layers.0.mlp.down_proj.weight has shape [16, 24], the config asks for [16, 20]",
            "  - model.layers.1.mlp.gate_proj.weight has shape [24, 16], the config asks for [20, 16]",
            "  - model.layers.1.mlp.up_proj.weight has shape [24, 16], the config asks for [20, 16]",
            "  - model.layers.1.mlp.down_proj.weight has shape [16, 24], the config asks for [16, 20]",
        ]
    );
    config["num_hidden_layers"] = 40.into();
    write_as(dir.path(), &model, &config, |name| Some(name.into()));
    let error = load_error(dir.path());
    assert!(error.contains("... and 322 more of this kind"), "{error}");
}

/// A safetensors file of one header and so many bytes of data.
fn raw(dir: &Path, header: &str, data: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    fs_err::write(dir.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn damaged_files_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let error = || {
        let error = WeightFiles::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("model.safetensors") && error.contains("copy or download"),
            "{error}"
        );
        error
    };
    tiny(Architecture::Gpt2, &LoadOptions::default())
        .save(dir.path(), Precision::Fp32, WHOLE)
        .unwrap();
    let whole = fs_err::read(&path).unwrap();
    fs_err::write(&path, &whole[..whole.len() - 100]).unwrap();
    assert!(error().contains("another number of bytes of tensor data"));
    fs_err::write(&path, &whole[..100]).unwrap();
    assert!(error().contains("but the file has 100"));
    fs_err::write(&path, &whole[..5]).unwrap();
    assert!(error().contains("only 5 bytes"));
    fs_err::write(&path, b"").unwrap();
    assert!(error().contains("only 0 bytes"));
    fs_err::write(&path, b"<!DOCTYPE html><html><body>404</body></html>").unwrap();
    assert!(error().contains("no safetensors"));
    raw(dir.path(), r#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,8]}}"#, 8);
    assert!(error().contains("lies about tensor w: F32 [2, 2] does not take the bytes 0..8"));
    raw(dir.path(), r#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 8);
    assert!(error().contains("another number of bytes"));
    raw(
        dir.path(),
        r#"{"w":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,16]}}"#,
        16,
    );
    let text = error();
    assert!(text.contains("size") || text.contains("lies about tensor w"), "{text}");
    raw(
        dir.path(),
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        12,
    );
    assert!(error().contains("places tensor b where it cannot be"));
    raw(dir.path(), r#"{"w":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#, 8);
    assert!(error().contains("not a safetensors file"));
}

#[test]
fn a_config_that_asks_for_more_than_the_files_hold_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny_json(Architecture::Llama);
    let model = tiny(Architecture::Llama, &LoadOptions::default());
    write_as(dir.path(), &model, &config, |name| Some(name.to_owned()));
    let mut other = config;
    other["intermediate_size"] = (1 << 24).into();
    other["vocab_size"] = i32::MAX.into();
    fs_err::write(dir.path().join("config.json"), other.to_string()).unwrap();
    let error = load_error(dir.path());
    let part = "model.embed_tokens.weight has shape [61, 16], the config asks for [2147483647, 16]";
    assert!(error.contains(part), "{error}");
}

#[test]
fn number_types_that_are_no_weights_are_refused() {
    let model = tiny(Architecture::Mistral, &LoadOptions::default());
    let dir = tempfile::tempdir().unwrap();
    write_as(dir.path(), &model, &tiny_json(Architecture::Mistral), |name| Some(name.into()));
    let path = dir.path().join("model.safetensors");
    let bytes = fs_err::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap();
    let changed = text.replacen("\"F32\"", "\"I32\"", 1);
    fs_err::write(&path, [&bytes[..8], changed.as_bytes(), &bytes[8 + header..]].concat()).unwrap();
    let error = load_error(dir.path());
    assert!(
        error.contains("model.embed_tokens.weight is stored as I32; use F32, F16 or BF16"),
        "{error}"
    );
}

#[test]
fn indexes_that_do_not_fit_are_explained() {
    let model = tiny(Architecture::Qwen3, &LoadOptions::default());
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), Precision::Fp32, 8192).unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let good: Value = serde_json::from_slice(&fs_err::read(&index).unwrap()).unwrap();
    let error = |json: &Value| {
        fs_err::write(&index, json.to_string()).unwrap();
        let error = load_error(dir.path());
        assert!(error.contains("index.json"), "{error}");
        error
    };
    assert!(error(&json!({})).contains("has no `weight_map`"));
    assert!(
        error(&json!({"weight_map": {"w": "../../etc/passwd"}})).contains("no plain file name")
    );
    assert!(
        error(&json!({"weight_map": {"w": 5}})).contains("`weight_map.w` is no plain file name")
    );
    let text = error(&json!({"weight_map": {"w": "model-00009-of-00009.safetensors"}}));
    assert!(text.contains("names the shard model-00009-of-00009.safetensors, which is not there"));
    let mut moved = good.clone();
    let first = "model-00001-of-00004.safetensors";
    assert!(dir.path().join(first).exists(), "{good:#}");
    moved["weight_map"]["lm_head.weight"] = first.into();
    assert!(
        error(&moved).contains("says that model-00001-of-00004.safetensors holds lm_head.weight")
    );
    fs_err::write(&index, "{").unwrap();
    assert!(load_error(dir.path()).contains("not JSON"));
}

#[test]
fn a_directory_without_weights_says_what_is_there_instead() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("config.json"), tiny_json(Architecture::Gpt2).to_string())
        .unwrap();
    assert!(load_error(dir.path()).contains("there is no model.safetensors"));
    fs_err::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    let error = load_error(dir.path());
    assert!(
        error.contains("only pytorch_model.bin is here") && error.contains("save the model again"),
        "{error}"
    );
    let files = dir.path().join("none.safetensors");
    assert!(WeightFiles::open_file(&files).unwrap_err().to_string().contains("none.safetensors"));
}

#[test]
fn large_tensors_are_written_in_pieces_without_loss() {
    let dir = tempfile::tempdir().unwrap();
    let count = (1 << 22) + 12_346;
    let big = Tensor::arange(count, (Kind::Float, tch::Device::Cpu)).view([5, -1]).tr();
    write(dir.path(), [("big", big.shallow_clone())], Precision::Fp32, WHOLE).unwrap();
    let again = WeightFiles::open(dir.path()).unwrap().tensor("big").unwrap();
    assert_eq!(gap(&again, &big), 0.0);
}
