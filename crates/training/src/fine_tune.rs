//! Fine-tuning on a task: what `finetune` and `peft` share. They differ in which parameters train.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::{Decoder, ModelConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stage::{Context, Describe, Paths, Problems, StageConfig};

use crate::plan::{self, Tables};
use crate::settings::{Data, Evaluation, Peft, Save, Train};
use crate::stage_run::{record_inputs, train_on_texts};
use crate::tasks::Tasks;
use crate::world::World;

/// `configs/finetune.toml`, `configs/peft.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Decides the order of the data, dropout, and how an adapter starts.
    pub seed: u64,
    /// The run directory.
    pub out: PathBuf,
    /// What is fine-tuned.
    pub model: ModelTable,
    /// Token rows of the task.
    pub data: Data,
    /// The optimisation.
    pub train: Train,
    /// An adapter in place of the whole model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peft: Option<Peft>,
    /// Held-out prompts to answer, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evaluation: BTreeMap<String, Evaluation>,
    /// How the model is written.
    #[serde(default)]
    pub save: Save,
}

/// `[model]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelTable {
    /// The model to fine-tune: a Hugging Face directory or run directory.
    pub path: PathBuf,
}

/// What the stage works from.
pub struct Plan {
    model_dir: PathBuf,
    model_config: ModelConfig,
    texts: plan::Plan,
    tasks: Tasks,
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, _at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        let Self { seed, model, data, train, peft, evaluation, save, .. } = self;
        let tables = Tables { seed, data, train, peft, samples: None, save };
        let texts = plan::Plan::new(tables, &mut problems);
        let key = "model.path";
        let model = plan::language_model(key, &model.path, &mut problems);
        let (Some(texts), Some((model_dir, model_config))) = (texts, model) else {
            return Err(problems);
        };
        texts.check_model(key, &model_config, Some(&model_dir), &mut problems);
        let tasks = Tasks::read(evaluation, &texts.tokenizer, &mut problems);
        tasks.check_context(model_config.max_position_embeddings, &mut problems);
        problems.finish(Plan { model_dir, model_config, texts, tasks })
    }
}

impl Describe for Plan {
    fn describe(&self, processes: usize) -> String {
        let dir = self.model_dir.display();
        let (texts, tasks) =
            (self.texts.describe(&self.model_config, processes), self.tasks.describe());
        format!("from        {dir}\n{texts}{tasks}")
    }
}

/// Evaluates, trains, writes the model or the adapter, and evaluates again. Returns what the manifest reports.
///
/// # Errors
/// As [`train_on_texts`] and [`Tasks::answer`].
#[expect(clippy::needless_pass_by_value, reason = "the signature that stage::main calls")]
pub fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Map<String, Value>> {
    let Plan { model_dir, texts, tasks, .. } = &plan;
    let world = World::join(ctx)?;
    ctx.input("model", model_dir)?;
    record_inputs(ctx, texts)?;
    for path in tasks.paths() {
        ctx.input("prompts", path)?;
    }
    let mut decoder = texts.load(model_dir, None, ctx.seed, &world)?;
    let division = decoder.params().division().cloned();
    ctx.start()?;
    let answer = |ctx: &Context, decoder: &Decoder, before| {
        tasks.answer(ctx, decoder, &texts.tokenizer, before)
    };
    let before = world.lead(division.as_ref(), || answer(ctx, &decoder, true))?;
    let mut results = train_on_texts(ctx, &world, &mut decoder, texts, Some(model_dir))?;
    let after = world.lead(division.as_ref(), || answer(ctx, &decoder, false))?;
    if let (Some(before), Some(after)) = (before, after) {
        results.extend(tasks.report(ctx, &before, &after)?);
    }
    Ok(results)
}
