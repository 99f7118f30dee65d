//! The configuration, and what the stage makes of it.

use std::path::PathBuf;

use model::ModelConfig;
use serde::{Deserialize, Serialize};
use stage::{Describe, Paths, Problems, StageConfig};
use training::plan::{self, Tables};
use training::settings::{Data, Peft, Samples, Save, Train};

/// `configs/sft.toml`.
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

/// `[model]`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelTable {
    /// The model to fine-tune: a Hugging Face directory or run directory.
    path: PathBuf,
}

/// What the stage works from.
pub(crate) struct Plan {
    pub(crate) model_dir: PathBuf,
    pub(crate) texts: plan::Plan,
    model_config: ModelConfig,
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, _at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        let Self { seed, model, data, train, peft, samples, save, .. } = self;
        let texts =
            plan::Plan::new(Tables { seed, data, train, peft, samples, save }, &mut problems);
        let key = "model.path";
        let model = plan::language_model(key, &model.path, &mut problems);
        let (Some(texts), Some((model_dir, model_config))) = (texts, model) else {
            return Err(problems);
        };
        texts.check_model(key, &model_config, Some(&model_dir), &mut problems);
        problems.finish(Plan { model_dir, texts, model_config })
    }
}

impl Describe for Plan {
    fn describe(&self, processes: usize) -> String {
        let dir = self.model_dir.display();
        format!("from        {dir}\n{}", self.texts.describe(&self.model_config, processes))
    }
}
