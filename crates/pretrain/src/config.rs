//! The configuration, and what the stage makes of it.

use std::path::{Path, PathBuf};

use data::tokenizer::Tokenizer;
use model::ModelConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stage::{Describe, Paths, Problems, StageConfig};
use training::plan::{self, Tables};
use training::settings::{Data, Peft, Samples, Save, Train};

/// `configs/pretrain.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    seed: u64,
    out: PathBuf,
    model: ModelTable,
    data: Data,
    train: Train,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peft: Option<Peft>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    samples: Option<Samples>,
    #[serde(default)]
    save: Save,
}

/// `[model]`: exactly one of the three.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelTable {
    /// Go on from this Hugging Face directory or run directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    /// Start from random weights in the shape of this `config.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config_file: Option<PathBuf>,
    /// The same, written here with the keys of `config.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<Map<String, Value>>,
}

/// Where the weights come from.
pub(crate) enum Start {
    /// Random weights in the shape of a config, which may come from a file.
    Fresh { config: ModelConfig, file: Option<PathBuf> },
    /// The weights of a model directory.
    Model { dir: PathBuf, config: ModelConfig },
}

/// What the stage works from.
pub(crate) struct Plan {
    pub(crate) start: Start,
    pub(crate) texts: plan::Plan,
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, _at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        let Self { seed, model, data, train, peft, samples, save, .. } = self;
        problems.check(
            peft.is_none() || model.path.is_some(),
            "peft",
            "adapts a model that exists; give model.path",
        );
        let texts =
            plan::Plan::new(Tables { seed, data, train, peft, samples, save }, &mut problems);
        let tokenizer = texts.as_ref().map(|texts| &*texts.tokenizer);
        let start = start(&model, tokenizer, &mut problems);
        if let (Some(texts), Some(start)) = (&texts, &start) {
            match start {
                Start::Fresh { config, file } => {
                    let key = file.as_ref().map_or("model.config", |_| "model.config_file");
                    texts.check_model(key, config, None, &mut problems);
                }
                Start::Model { dir, config } => {
                    texts.check_model("model.path", config, Some(dir), &mut problems);
                }
            }
        }
        match (texts, start) {
            (Some(texts), Some(start)) => problems.finish(Plan { start, texts }),
            _ => Err(problems),
        }
    }
}

fn start(
    model: &ModelTable,
    tokenizer: Option<&Tokenizer>,
    problems: &mut Problems,
) -> Option<Start> {
    match (&model.path, &model.config_file, &model.config) {
        (Some(path), None, None) => {
            let (dir, config) = plan::language_model("model.path", path, problems)?;
            Some(Start::Model { dir, config })
        }
        (None, Some(file), None) => {
            let map = problems.take("model.config_file", read_object(file))?;
            let config = fresh("model.config_file", map, tokenizer, problems)?;
            Some(Start::Fresh { config, file: Some(file.clone()) })
        }
        (None, None, Some(map)) => {
            let config = fresh("model.config", map.clone(), tokenizer, problems)?;
            Some(Start::Fresh { config, file: None })
        }
        _ => {
            problems.push("model", "needs exactly one of `path`, `config_file` and `config`");
            None
        }
    }
}

fn read_object(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = fs_err::read_to_string(path)?;
    serde_json::from_str(&text)
        .map_err(|error| anyhow::anyhow!("{}: not a JSON object: {error}", path.display()))
}

/// The config of a new model. Its special tokens are the tokenizer's, and so is its vocabulary unless a larger one is
/// asked for.
fn fresh(
    key: &str,
    mut map: Map<String, Value>,
    tokenizer: Option<&Tokenizer>,
    problems: &mut Problems,
) -> Option<ModelConfig> {
    // Without data there is no tokenizer; the config is checked all the same, with the least vocabulary.
    let vocab_size = tokenizer.map_or(1, Tokenizer::vocab_size);
    map.entry("vocab_size").or_insert_with(|| vocab_size.into());
    let mut config = problems.take(key, ModelConfig::from_json(&Value::Object(map)))?;
    if let Some(tokenizer) = tokenizer {
        let eos: Vec<i64> = tokenizer.eos_id().map(i64::from).into_iter().collect();
        let id = |id: Option<u32>| id.map(i64::from);
        config.set_token_ids(id(tokenizer.bos_id()), &eos, id(tokenizer.pad_id()));
    }
    Some(config)
}

impl Describe for Plan {
    fn describe(&self, processes: usize) -> String {
        match &self.start {
            Start::Fresh { config, .. } => self.texts.describe(config, processes),
            Start::Model { dir, config } => {
                format!("from        {}\n{}", dir.display(), self.texts.describe(config, processes))
            }
        }
    }
}
