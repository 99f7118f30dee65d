//! The configuration, and what the stage makes of it.

use std::path::PathBuf;

use data::batch::PairBatch;
use model::{Head, ModelConfig};
use serde::{Deserialize, Serialize};
use stage::{Describe, Paths, Problems, StageConfig};
use training::evaluate::BestBy;
use training::plan::{self, Tables};
use training::settings::{Data, Peft, Save, Train};

use crate::loss::ACCURACY;

/// `configs/reward.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    seed: u64,
    out: PathBuf,
    model: ModelTable,
    data: Data,
    #[serde(default)]
    reward: Reward,
    train: Train,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peft: Option<Peft>,
    #[serde(default)]
    save: Save,
}

/// `[model]`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelTable {
    /// The model whose trunk is trained on: a language model, or a reward model to go on from.
    path: PathBuf,
}

/// `[reward]`: the objective.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Reward {
    /// Factor on the squared sum of a pair's scores, which keeps their mean near 0. 0: off.
    pub(crate) centering_coefficient: f64,
}

/// What the stage works from.
pub(crate) struct Plan {
    pub(crate) model_dir: PathBuf,
    pub(crate) pairs: plan::Plan,
    pub(crate) reward: Reward,
    model_config: ModelConfig,
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, _at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        let Self { seed, model, data, reward, train, peft, save, .. } = self;
        let coefficient = reward.centering_coefficient;
        problems.check(
            coefficient.is_finite() && coefficient >= 0.0,
            "reward.centering_coefficient",
            format_args!("must be 0 or above, got {coefficient}"),
        );
        let tables = Tables { seed, data, train, peft, samples: None, save };
        let best = BestBy::Metric(ACCURACY);
        let pairs = plan::Plan::of_rows::<PairBatch>(tables, best, &mut problems);
        let key = "model.path";
        let found = problems.take(key, artifact::model_dir(&model.path));
        let model = found.and_then(|dir| {
            let mut config = problems.take(key, ModelConfig::from_dir(&dir))?;
            config.set_head(Head::Score);
            Some((dir, config))
        });
        let (Some(pairs), Some((model_dir, model_config))) = (pairs, model) else {
            return Err(problems);
        };
        pairs.check_model(key, &model_config, Some(&model_dir), &mut problems);
        problems.finish(Plan { model_dir, pairs, reward, model_config })
    }
}

impl Describe for Plan {
    fn describe(&self, processes: usize) -> String {
        let dir = self.model_dir.display();
        format!("from        {dir}\n{}", self.pairs.describe(&self.model_config, processes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_is_read_and_shows_every_key_of_its_own() {
        let text = include_str!("../../../configs/reward.toml");
        let config: Config = toml::from_str(text).unwrap();
        let shown = toml::to_string(&config.reward).unwrap();
        for key in shown.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key) {
            assert!(text.contains(&format!("{key} = ")), "`{key}` is not shown");
        }
    }
}
