//! The model card: `README.md` of a model or an adapter in Hugging Face's form, made from the run's manifest.
//!
//! <https://huggingface.co/docs/hub/model-cards>. It says nothing that another run of the same would say otherwise: no times, no
//! speeds, no memory.

use std::path::Path;

use anyhow::Context as _;
use artifact::{Manifest, RunDir};
use minijinja::value::ViaDeserialize;
use minijinja::{Environment, context};
use serde_json::{Map, Value, json};

use crate::cli::Info;

/// Results that are about the making, and differ from run to run.
const OF_THE_RUN: [&str; 4] = ["memory", "peak_memory_bytes", "seconds", "per_second"];

/// Writes the cards of `model/` and `adapter/`, where the run made them.
pub(crate) fn write(
    info: &Info,
    manifest: &Manifest,
    toml: &str,
    run_dir: &RunDir,
) -> anyhow::Result<()> {
    let (model, adapter) = (run_dir.model_dir(), run_dir.adapter_dir());
    for (dir, file) in [(&model, "config.json"), (&adapter, "adapter_config.json")] {
        if dir.join(file).is_file() {
            let config = read_json(&dir.join(file))?;
            let text = card(info, manifest, toml, dir, &config).context("cannot write the card")?;
            RunDir::write_card(dir, &text)?;
        }
    }
    Ok(())
}

fn read_json(path: &Path) -> anyhow::Result<Value> {
    serde_json::from_str(&fs_err::read_to_string(path)?)
        .with_context(|| format!("{}", path.display()))
}

/// The card of the model or adapter in `dir`, whose config file says `config`.
fn card(
    info: &Info,
    manifest: &Manifest,
    toml: &str,
    dir: &Path,
    config: &Value,
) -> anyhow::Result<String> {
    let adapter = config.get("peft_type").and_then(Value::as_str).map(str::to_lowercase);
    let architecture = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or("");
    let scores = architecture.contains("SequenceClassification")
        || config.get("task_type").and_then(Value::as_str) == Some("SEQ_CLS");
    let base = manifest.inputs.iter().find(|input| input.role == "model");
    let base = base.map(|input| input.path.display().to_string());
    let run = dir.parent().and_then(Path::file_name);
    let name = run.map_or_else(|| info.name.into(), |name| name.to_string_lossy());
    let versions = manifest.versions.iter();
    let kind = match (&adapter, scores) {
        (Some(_), _) => "An adapter",
        (None, true) => "A model that scores responses",
        (None, false) => "A language model",
    };
    environment()?
        .get_template("card")?
        .render(context! {
            library => if adapter.is_some() { "peft" } else { "transformers" },
            pipeline_tag => if scores { "text-classification" } else { "text-generation" },
            base_model => base,
            tag => info.name.replace(' ', "-"),
            adapter => adapter,
            name => name,
            kind => kind,
            stage => info.name,
            version => manifest.versions.get("temper"),
            about => info.about,
            usage => usage(dir, base.as_deref(), adapter.is_some(), scores),
            inputs => manifest.inputs,
            toml => toml,
            results => flat(&manifest.results),
            seed => manifest.seed,
            versions => versions.map(|(name, version)| json!({"name": name, "version": version})).collect::<Vec<_>>(),
        })
        .map_err(Into::into)
}

fn environment() -> anyhow::Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(true);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.add_filter("cell", |ViaDeserialize(value): ViaDeserialize<Value>| cell(&value));
    environment.add_filter("fenced", |text: String| fenced(&text));
    environment.add_template("card", include_str!("card.md"))?;
    Ok(environment)
}

/// A value in a table of Markdown.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(number) if number.fract() != 0.0 => format!("{number:.6}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    };
    text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// TOML between fences that nothing in it can close.
fn fenced(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(3.max(longest + 1));
    format!("{fence}toml\n{}\n{fence}", text.trim_end())
}

/// Numbers and words of nested results, each under its keys joined with `/`.
fn flat(results: &Map<String, Value>) -> Vec<Value> {
    fn into(rows: &mut Vec<Value>, name: &str, value: &Value) {
        if OF_THE_RUN.iter().any(|end| name.ends_with(end)) {
            return;
        }
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    into(rows, &format!("{name}/{key}"), value);
                }
            }
            // Curves and histograms are the manifest's.
            Value::Array(_) | Value::Null => {}
            _ => rows.push(json!({"name": name, "value": value})),
        }
    }
    let mut rows = Vec::new();
    for (key, value) in results {
        into(&mut rows, key, value);
    }
    rows
}

/// How a person uses what is in `dir`, with temper and from Python.
fn usage(dir: &Path, base: Option<&str>, adapter: bool, scores: bool) -> String {
    let run = dir.parent().unwrap_or(dir).display();
    let dir = dir.display();
    let (class, labels) = if scores {
        ("AutoModelForSequenceClassification", ", num_labels=1")
    } else {
        ("AutoModelForCausalLM", "")
    };
    let python = if adapter {
        let base = base.unwrap_or("BASE");
        format!(
            "from peft import PeftModel\nfrom transformers import {class}\n\n\
             base = {class}.from_pretrained(\"{base}\"{labels})  # its model/ where it is a run directory\n\
             model = PeftModel.from_pretrained(base, \"{dir}\")"
        )
    } else {
        format!(
            "from transformers import {class}, AutoTokenizer\n\n\
             model = {class}.from_pretrained(\"{dir}\"{labels})\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{dir}\")"
        )
    };
    let command = if scores {
        format!("reward score --model {run} --input answers.parquet --output scored.parquet")
    } else {
        format!("chat --model {run}")
    };
    format!("```\n{command}\n```\n\n```python\n{python}\n```")
}

#[cfg(test)]
mod tests;
