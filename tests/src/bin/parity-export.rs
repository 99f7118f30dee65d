//! `parity-export OUT [DIR...]`: writes what `scripts/parity/check.py` loads in transformers and
//! `scripts/parity/adapters_check.py` in PEFT.
//!
//! Every fixture of a model or reward model is loaded and saved in fp32, in bf16 and in shards under `OUT/models`, and every
//! model is made a reward model; each DIR, a run or model directory, is taken as it is. Beside each lie
//! `probe.safetensors`, logits or scores as computed here, and where there is a tokenizer `probe.json`, texts with their
//! ids. An adapter of every kind that PEFT knows is under `OUT/adapters`: `adapter`, `base` and `probe.safetensors`.

use anyhow::{Context as _, Result};
use data::batch::Branches;
use data::tokenizer::{BpeOptions, Tokenizer};
use model::peft::{Adapter, AdapterFiles, Bias, Ia3, InitLora, Lora, Method, Targets};
use model::{Decoder, Head, LoadOptions, Loading, Precision};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor, no_grad};
use temper_tests::flat::Flat;
use temper_tests::{corpus, fixtures};
use training::branches;

/// How the fixtures are saved: name, number type, largest shard in bytes.
const FORMS: [(&str, Precision, u64); 3] = [
    ("fp32", Precision::Fp32, u64::MAX),
    ("bf16", Precision::Bf16, u64::MAX),
    ("shards", Precision::Fp32, 8 << 10),
];

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let out = args.next().context("usage: parity-export OUT [DIR...]")?;
    write_adapters(&out.join("adapters"))?;
    let out = out.join("models");
    let options = LoadOptions { trainable: true, ..LoadOptions::default() };
    for name in fixtures::models()? {
        let dir = fixtures::parity("models").join(&name).join("model");
        save(&Decoder::load(&dir, &options)?, &out, &name)?;
        let mut scorer = Decoder::load_as(&dir, Head::Score, 1, &options)?;
        scorer.set_score_statistics(0.25, 2.0);
        save(&scorer, &out, &format!("{name}-made-reward"))?;
    }
    for name in fixtures::reward_models()? {
        let dir = fixtures::parity("reward-models").join(&name).join("model");
        save(&Decoder::load(&dir, &options)?, &out, &format!("{name}-reward"))?;
    }
    for (kind, beside) in [("byte-level", "llama-fp32"), ("metaspace", "mistral-fp32")] {
        let tokenizer = Tokenizer::load(fixtures::parity(format!("tokenizers/{kind}")))?;
        write_tokenizer(&tokenizer, &out.join(beside))?;
    }
    let texts = corpus::texts(400);
    let texts = texts.iter().filter_map(|row| row["text"].as_str().map(str::to_owned));
    let texts: Vec<String> = texts.collect();
    // transformers 5 gives every qwen2 model Qwen's own way of splitting words, which takes digits one by one.
    for (max_digits, beside) in [(3, "gpt2-fp32"), (1, "qwen2-fp32")] {
        let options = BpeOptions { max_digits, ..BpeOptions::default() };
        let trained = Tokenizer::train_bpe(texts.iter().cloned(), &options)?;
        write_tokenizer(&trained, &out.join(beside))?;
    }
    for (index, given) in args.enumerate() {
        let dir = out.join(format!("given-{index}"));
        take(&artifact::model_dir(&given)?, &dir)?;
    }
    Ok(())
}

/// Saves a model in every form, each with its probe.
fn save(decoder: &Decoder, out: &Path, name: &str) -> Result<()> {
    for (form, dtype, shard) in FORMS {
        let dir = out.join(format!("{name}-{form}"));
        decoder.save(&dir, dtype, shard)?;
        probe_model(&dir, &dir)?;
    }
    Ok(())
}

/// An adapter to be written: its name, its base among the fixtures, and what it is.
struct Export {
    name: &'static str,
    base: &'static str,
    adapter: Adapter,
}

fn exports() -> Vec<Export> {
    let names = |list: &[&str]| Some(Targets::Names(list.iter().map(|&n| n.to_owned()).collect()));
    let saving = |method, saved: &[&str]| Adapter {
        method,
        modules_to_save: saved.iter().map(|&name| name.to_owned()).collect(),
    };
    let lora = |change: &dyn Fn(&mut Lora)| {
        let mut lora = Lora { r: 3, lora_alpha: 5.0, ..Lora::default() };
        change(&mut lora);
        Method::Lora(lora)
    };
    let plain = |method| saving(method, &[]);
    let ia3 = || Method::Ia3(Ia3 { target_modules: None, feedforward_modules: None });
    let export = |name, base, adapter| Export { name, base, adapter };
    let patterns = |lora: &mut Lora| {
        lora.target_modules = Targets::Pattern(r".*\.(q_proj|v_proj|down_proj)".into());
        lora.rank_pattern.insert("down_proj".into(), 2);
        lora.alpha_pattern.insert(r"layers\.1\.self_attn\.q_proj".into(), 7.5);
    };
    let some_layers = |lora: &mut Lora| {
        lora.exclude_modules = names(&["o_proj"]);
        lora.layers_to_transform = Some(vec![1]);
    };
    let pissa = |lora: &mut Lora| {
        (lora.init_lora_weights, lora.use_rslora) = (InitLora::Pissa, true);
    };
    vec![
        export("gpt2-lora", "models/gpt2", plain(lora(&|_| {}))),
        export("gpt2-dora", "models/gpt2", plain(lora(&|lora| lora.use_dora = true))),
        export("gpt2-pissa", "models/gpt2", plain(lora(&pissa))),
        export("gpt2-biases", "models/gpt2", plain(lora(&|lora| lora.bias = Bias::All))),
        export("gpt2-ia3", "models/gpt2", plain(ia3())),
        export("gpt2-embedding", "models/gpt2", saving(lora(&|_| {}), &["wte", "ln_f"])),
        export("llama-lora", "models/llama", plain(lora(&|_| {}))),
        export("llama-patterns", "models/llama", plain(lora(&patterns))),
        export("llama-some-layers", "models/llama", plain(lora(&some_layers))),
        export("llama-pissa", "models/llama", plain(lora(&pissa))),
        export("llama-ia3", "models/llama", plain(ia3())),
        export("llama-head", "models/llama", saving(lora(&|_| {}), &["lm_head", "norm"])),
        export("mistral-rslora", "models/mistral", plain(lora(&|lora| lora.use_rslora = true))),
        export("qwen2-biases", "models/qwen2", plain(lora(&|lora| lora.bias = Bias::LoraOnly))),
        export("qwen2-ia3", "models/qwen2", plain(ia3())),
        export("qwen2-embedding", "models/qwen2", saving(lora(&|_| {}), &["embed_tokens"])),
        export("qwen2-ia3-embedding", "models/qwen2", saving(ia3(), &["embed_tokens"])),
        export("qwen3-dora", "models/qwen3", plain(lora(&|lora| lora.use_dora = true))),
        export("llama-reward", "reward-models/llama", plain(lora(&|_| {}))),
        export("gpt2-reward", "reward-models/gpt2", plain(ia3())),
    ]
}

/// Saves an adapter of every kind, in which nothing is left as it starts, each with its probe.
fn write_adapters(out: &Path) -> Result<()> {
    let options = LoadOptions { trainable: true, ..LoadOptions::default() };
    for Export { name, base, adapter } in exports() {
        let base = fixtures::parity(base).join("model");
        let loading = Loading { options, adapter: Some(&adapter), ..Loading::default() };
        let mut decoder = Decoder::load_with(&base, &loading).context(name)?;
        for (index, weight) in decoder.params_mut().trainable().into_iter().enumerate() {
            let count =
                Tensor::arange(weight.master.numel() as i64, (Kind::Float, tch::Device::Cpu));
            let noise = (count * 1.7 + index as f64).sin().view(weight.master.size().as_slice());
            let mut master = weight.master;
            let _ = no_grad(|| master.g_add_(&(noise * 0.2)));
        }
        let dir = out.join(name);
        let files = dir.join("adapter");
        decoder.save_adapter(&files, &base.display().to_string(), None)?;
        fs_err::os::unix::fs::symlink(&base, dir.join("base"))?;
        let files = AdapterFiles::open(&files)?;
        let loading = Loading { adapter_files: Some(&files), ..Loading::default() };
        write_probe(&Decoder::load_with(&base, &loading).context(name)?, &dir)?;
    }
    Ok(())
}

/// Links a model directory's files into `dir` and adds probes.
fn take(source: &Path, dir: &Path) -> Result<()> {
    fs_err::create_dir_all(dir)?;
    for entry in fs_err::read_dir(source)? {
        let entry = entry?;
        let target = fs_err::canonicalize(entry.path())?;
        fs_err::os::unix::fs::symlink(target, dir.join(entry.file_name()))?;
    }
    probe_model(source, dir)?;
    if source.join("tokenizer.json").exists() {
        probe_tokenizer(&Tokenizer::load(source)?, dir)?;
    }
    Ok(())
}

/// Loads `source` afresh and writes its logits or scores on some tokens into `dir`.
fn probe_model(source: &Path, dir: &Path) -> Result<()> {
    write_probe(&Decoder::load(source, &LoadOptions::default())?, dir)
}

/// Writes a model's logits or scores on some tokens into `dir`.
fn write_probe(decoder: &Decoder, dir: &Path) -> Result<()> {
    let config = decoder.config();
    let length = config.max_position_embeddings.min(48);
    let ids: Vec<i64> = (0..length).map(|i| (i * i * 7 + i + 2) % config.vocab_size).collect();
    let tensors = if config.head.has_language_model() {
        let logits = Flat::new(&[(&ids, &ids)]).logits(decoder)?;
        vec![("input_ids", Tensor::from_slice(&ids).unsqueeze(0)), ("logits", logits)]
    } else {
        scores(decoder, &ids)?
    };
    Ok(Tensor::write_safetensors(&tensors, dir.join("probe.safetensors"))?)
}

/// Scores of the last so many of `ids`, as rows padded on the right.
fn scores(decoder: &Decoder, ids: &[i64]) -> Result<Vec<(&'static str, Tensor)>> {
    let config = decoder.config();
    let pad = config.pad_token_id.unwrap_or(0);
    let lengths = [ids.len(), ids.len() * 2 / 3, ids.len() / 4, 1];
    let (mut texts, mut rows, mut masks) = (Branches::new(), Vec::new(), Vec::new());
    for length in lengths {
        let mut text = ids[ids.len() - length..].to_vec();
        // transformers takes it for padding where it is the last.
        if text[length - 1] == pad {
            text[length - 1] = (pad + 1) % config.vocab_size;
        }
        texts.push(&[], &[&text]);
        text.resize(ids.len(), pad);
        rows.extend(text);
        masks.extend((0..ids.len()).map(|at| i64::from(at < length)));
    }
    let shaped = |list: &[i64]| Tensor::from_slice(list).view([lengths.len() as i64, -1]);
    let scores = no_grad(|| branches::scores(decoder, &texts))?;
    Ok(vec![("input_ids", shaped(&rows)), ("attention_mask", shaped(&masks)), ("scores", scores)])
}

fn write_tokenizer(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    tokenizer.save(dir)?;
    probe_tokenizer(tokenizer, dir)
}

/// Encodes the fixtures' texts.
fn probe_tokenizer(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    let rows: Vec<Value> = fixtures::json(&fixtures::parity("tokenizers/byte-level.json"))?;
    let mut probe = Vec::new();
    for row in rows {
        let text = row["text"].as_str().context("a text")?;
        probe.push(json!({ "text": text, "ids": tokenizer.encode(text, false)?.ids }));
    }
    fs_err::write(dir.join("probe.json"), serde_json::to_string(&probe)?)?;
    Ok(())
}
