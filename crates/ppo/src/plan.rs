//! The configuration, checked: models that fit each other, prompts that fit them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::verify_chain;
use data::dataset::{Order, TokenDataset};
use data::rule::{Rule, RuleSpec};
use data::tokenizer::Tokenizer;
use model::{Head, ModelConfig};
use stage::{Describe, Paths, Problems, StageConfig};
use training::peft;
use training::prompts::{self, Prompt};

use crate::config::{Advantage, Config, KlCoef, ValueInit};

/// What the stage works from.
pub(crate) struct Plan {
    pub(crate) config: Config,
    pub(crate) policy: PathBuf,
    pub(crate) reference: PathBuf,
    /// The adapter of the policy that is trained in place of all of it.
    pub(crate) peft: Option<peft::Plan>,
    pub(crate) reward: Option<PathBuf>,
    /// A value function's own trunk.
    pub(crate) value: Option<PathBuf>,
    pub(crate) rules: Vec<(Rule, f64)>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) validation: Vec<Prompt>,
    /// Prompts that leave no room for a response of full length.
    pub(crate) too_long: usize,
    model_config: ModelConfig,
}

impl Plan {
    /// Whether values are predicted on the policy's trunk.
    pub(crate) fn shares_trunk(&self) -> bool {
        matches!(
            self.config.value.as_ref().map(|value| &value.init),
            Some(ValueInit::SharedTrunk {})
        )
    }
}

/// A model directory with its config.
type Found = Option<(PathBuf, ModelConfig)>;

fn find(key: &str, path: &Path, problems: &mut Problems) -> Found {
    let dir = problems.take(key, artifact::model_dir(path))?;
    let config = problems.take(key, ModelConfig::from_dir(&dir))?;
    Some((dir, config))
}

/// A model beside the policy: checked to read the policy's tokens.
fn beside(
    key: &str,
    path: &Path,
    (policy, of_policy, tokenizer): (&Path, &ModelConfig, &Tokenizer),
    problems: &mut Problems,
) -> Found {
    let (dir, config) = find(key, path, problems)?;
    for (what, least, own) in [
        ("a vocabulary", of_policy.vocab_size, config.vocab_size),
        ("positions", of_policy.max_position_embeddings, config.max_position_embeddings),
    ] {
        problems.check(
            own >= least,
            key,
            format_args!("has {what} of {own}, the policy of {least}"),
        );
    }
    if dir.join("tokenizer.json").is_file() {
        let own = problems.take(key, Tokenizer::load(&dir))?;
        let policy = policy.display();
        let same = own.digest() == tokenizer.digest();
        let what = format_args!(
            "has another tokenizer than the policy, {policy}; give a model of the same one"
        )
        .to_string();
        problems.check(same, key, what).then_some(())?;
    }
    Some((dir, config))
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, _at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        self.check(&mut problems);
        let rules = self.rules(&mut problems);
        let Some((policy, model_config)) = find("model.path", &self.model.path, &mut problems)
        else {
            return Err(problems);
        };
        problems.take("model.path", model_config.check_language_model());
        let Some(tokenizer) = problems.take("model.path", Tokenizer::load(&policy)) else {
            return Err(problems);
        };
        let peft = self.peft.clone().and_then(|table| peft::Plan::new(table, &mut problems));
        if let Some(peft) = &peft {
            peft.check_model(&model_config, Some(&policy), &mut problems);
        }
        let of_policy = (policy.as_path(), &model_config, &tokenizer);
        let mut found =
            |key: &str, path: &Option<PathBuf>, head: Option<Head>| -> Option<PathBuf> {
                let (dir, config) = beside(key, path.as_ref()?, of_policy, &mut problems)?;
                match head {
                    Some(Head::Score) if config.head != Head::Score => {
                        problems.push(key, model::Error::NoScore);
                    }
                    Some(Head::LanguageModel) => {
                        problems.take(key, config.check_language_model())?;
                    }
                    _ => {}
                }
                Some(dir)
            };
        let reference = found("model.reference", &self.model.reference, Some(Head::LanguageModel));
        let reward = found("reward.model", &self.reward.model, Some(Head::Score));
        let own_trunk = match self.value.as_ref().map(|value| &value.init) {
            Some(ValueInit::OwnTrunk { path }) => Some(path.clone()),
            _ => None,
        };
        let value = found("value.init.own_trunk.path", &own_trunk, None);
        if reward.is_some() || self.reward.model.is_none() {
            self.check_statistics(reward.as_deref(), &mut problems);
        }
        let room = model_config.max_position_embeddings as usize;
        let (prompts, dropped) = self.prompts(
            "data.prompts",
            &self.data.prompts,
            usize::MAX,
            &tokenizer,
            room,
            &mut problems,
        );
        let (validation, held_dropped) = self.prompts(
            "data.validation",
            &self.data.validation,
            self.eval.max_prompts,
            &tokenizer,
            room,
            &mut problems,
        );
        self.check_checkers("data.prompts", &prompts, &mut problems);
        self.check_checkers("data.validation", &validation, &mut problems);
        self.check_ptx(&tokenizer, &mut problems);
        if let Some(value) = &self.value
            && value.learning_rate.is_some()
            && matches!(value.init, ValueInit::SharedTrunk {})
        {
            problems.push("value.learning_rate", "is for a trunk of its own; leave it out");
        }
        problems.finish(Plan {
            reference: reference.unwrap_or_else(|| policy.clone()),
            peft,
            policy,
            reward,
            value,
            rules,
            tokenizer: Arc::new(tokenizer),
            prompts,
            validation,
            too_long: dropped + held_dropped,
            model_config,
            config: self,
        })
    }
}

impl Config {
    fn check(&self, problems: &mut Problems) {
        let Self { reward, rollout, kl, ppo, train, eval, samples, save, .. } = self;
        let mut least = |key: &str, value: u64, least: u64| {
            problems.check(
                value >= least,
                key,
                format_args!("must be at least {least}, got {value}"),
            );
        };
        least("rollout.prompts_per_step", rollout.prompts_per_step as u64, 1);
        least("rollout.samples_per_prompt", rollout.samples_per_prompt as u64, 1);
        least("rollout.max_new_tokens", rollout.max_new_tokens as u64, 1);
        least("rollout.batch_rows", rollout.batch_rows as u64, 1);
        least("ppo.ppo_epochs", ppo.ppo_epochs as u64, 1);
        least("ppo.num_minibatches", ppo.num_minibatches as u64, 1);
        least("train.steps", train.steps, 1);
        least("train.micro_batch_tokens", train.micro_batch_tokens as u64, 1);
        least("train.checkpointing_interval", train.checkpointing_interval as u64, 1);
        least("train.log_every_steps", train.log_every_steps, 1);
        least("train.checkpoint.save_total_limit", train.checkpoint.save_total_limit as u64, 1);
        least("eval.max_prompts", eval.max_prompts as u64, 1);
        least("samples.every_steps", samples.every_steps, 1);
        least("save.max_shard_mb", save.max_shard_mb, 1);
        for (key, every) in [
            ("eval.every_steps", eval.every_steps),
            ("train.checkpoint.every_steps", train.checkpoint.every_steps),
        ] {
            problems.check(every != Some(0), key, "must be at least 1, or absent");
        }
        let ranges = [
            ("rollout.temperature", Some(rollout.temperature), 1e-6, 1e6),
            ("reward.clip", reward.clip, 1e-9, f64::MAX),
            ("reward.missing_eos_penalty", reward.missing_eos_penalty, 0.0, f64::MAX),
            ("reward.missing_eos_score", reward.missing_eos_score, f64::MIN, f64::MAX),
            ("reward.length_penalty", Some(reward.length_penalty), 0.0, f64::MAX),
            ("kl.stop_above", kl.stop_above, 1e-9, f64::MAX),
            ("ppo.gamma", Some(ppo.gamma), 0.0, 1.0),
            ("ppo.gae_lambda", Some(ppo.gae_lambda), 0.0, 1.0),
            ("ppo.clip_range", Some(ppo.clip_range), 1e-9, 1.0),
            ("ppo.clip_range_high", ppo.clip_range_high, 1e-9, f64::MAX),
            ("ppo.value_clip_range", ppo.value_clip_range, 1e-9, f64::MAX),
            ("ppo.value_coef", Some(ppo.value_coef), 0.0, f64::MAX),
            ("ppo.entropy_coef", Some(ppo.entropy_coef), 0.0, f64::MAX),
            ("ppo.target_kl", ppo.target_kl, 1e-12, f64::MAX),
        ];
        for (key, value, low, high) in ranges {
            if let Some(value) = value {
                let range = match (low, high) {
                    (_, f64::MAX) if low == f64::MIN => "a finite number".to_owned(),
                    (0.0, f64::MAX) => "0 or above".to_owned(),
                    (_, f64::MAX) => "above 0".to_owned(),
                    (low, high) => format!("from {low} to {high}"),
                };
                let holds = (low..=high).contains(&value);
                problems.check(holds, key, format_args!("must be {range}, got {value}"));
            }
        }
        problems.extend("train.optimizer", train.optimizer.problems());
        problems.extend("train.schedule", train.schedule.problems());
        let stage = train.zero_stage;
        problems.check(
            stage <= 1,
            "train.zero_stage",
            format_args!(
                "must be 0 or 1, got {stage}: sampling needs the whole policy in every process"
            ),
        );
        self.check_choices(problems);
    }

    /// Settings that exclude or need each other.
    fn check_choices(&self, problems: &mut Problems) {
        let Self { reward, rollout, kl, ppo, value, data, train, .. } = self;
        problems.check(
            reward.model.is_some() || !reward.rules.is_empty(),
            "reward",
            "needs a `model`, or `rules`",
        );
        problems.check(
            reward.missing_eos_penalty.is_none() || reward.missing_eos_score.is_none(),
            "reward.missing_eos_score",
            "is given beside missing_eos_penalty; leave one out",
        );
        let gae = ppo.advantage == Advantage::Gae;
        problems.check(
            gae == value.is_some(),
            "value",
            if gae {
                "is missing: advantage = \"gae\" needs a value function"
            } else {
                "is for advantage = \"gae\" only; leave it out"
            },
        );
        problems.check(
            gae || rollout.samples_per_prompt >= 2,
            "rollout.samples_per_prompt",
            "must be at least 2: rloo and grpo compare the responses to one prompt",
        );
        problems.check(
            gae || ppo.critic_warmup_steps == 0,
            "ppo.critic_warmup_steps",
            "is for advantage = \"gae\" only; leave it out",
        );
        problems.check(
            ppo.num_minibatches <= rollout.prompts_per_step,
            "ppo.num_minibatches",
            "is more than rollout.prompts_per_step; a prompt's responses stay together",
        );
        problems.check(
            !rollout.stop_strings.iter().any(String::is_empty),
            "rollout.stop_strings",
            "has an empty text; leave it out",
        );
        problems.check(!data.prompts.is_empty(), "data.prompts", "is empty; name prompt rows");
        problems.check(
            !train.checkpoint.keep_best
                || (!data.validation.is_empty() && self.eval.every_steps.is_some()),
            "train.checkpoint.keep_best",
            "needs data.validation and eval.every_steps",
        );
        let finite = |x: f64| x.is_finite() && x >= 0.0;
        let holds = match kl.coef {
            KlCoef::Fixed(coef) => finite(coef),
            KlCoef::Adaptive { initial, target, horizon } => {
                finite(initial) && initial > 0.0 && finite(target) && target > 0.0 && horizon > 0
            }
        };
        problems.check(holds, "kl.coef", "must be 0 or above; initial, target and horizon above 0");
    }

    fn rules(&self, problems: &mut Problems) -> Vec<(Rule, f64)> {
        let rules = self.reward.rules.iter().filter_map(|weighted| {
            problems.check(
                weighted.weight.is_finite(),
                "reward.rules",
                "has a weight that is not finite",
            );
            Some((problems.take("reward.rules", Rule::new(&weighted.rule))?, weighted.weight))
        });
        rules.collect()
    }

    fn check_statistics(&self, reward: Option<&Path>, problems: &mut Problems) {
        if !self.reward.normalize {
            return;
        }
        let config = reward.and_then(|dir| ModelConfig::from_dir(dir).ok());
        problems.check(
            config.is_some_and(|config| config.score_statistics.is_some_and(|(_, std)| std > 0.0)),
            "reward.normalize",
            "needs a reward model whose config.json has score_mean and score_std, as temper's have",
        );
    }

    /// The prompts of `files` that leave room for a response, and how many do not.
    fn prompts(
        &self,
        key: &str,
        files: &[PathBuf],
        limit: usize,
        tokenizer: &Tokenizer,
        room: usize,
        problems: &mut Problems,
    ) -> (Vec<Prompt>, usize) {
        let mut all = Vec::new();
        for file in files {
            if problems.require_path(key, file) {
                let left = limit - all.len().min(limit);
                all.extend(
                    problems.take(key, prompts::read(file, tokenizer, left)).unwrap_or_default(),
                );
            }
        }
        let before = all.len();
        let new = self.rollout.max_new_tokens;
        all.retain(|prompt| prompt.ids.len() + new <= room);
        problems.check(
            before == 0 || !all.is_empty(),
            key,
            format_args!(
                "has no prompt that leaves room for a response of {new} tokens in the model's {room} positions; lower \
                 rollout.max_new_tokens"
            ),
        );
        let dropped = before - all.len();
        (all, dropped)
    }

    fn check_checkers(&self, key: &str, prompts: &[Prompt], problems: &mut Problems) {
        let asked = self.reward.rules.iter().any(|weighted| weighted.rule == RuleSpec::Checker {});
        let without = prompts.iter().filter(|prompt| prompt.checker.is_none()).count();
        problems.check(
            !asked || without == 0,
            key,
            format_args!("has {without} prompts without a checker, which reward.rules asks for"),
        );
    }

    fn check_ptx(&self, tokenizer: &Tokenizer, problems: &mut Problems) {
        let Some(ptx) = &self.ptx else { return };
        let key = "ptx.data";
        problems.check(ptx.coef.is_finite() && ptx.coef > 0.0, "ptx.coef", "must be above 0");
        problems.check(ptx.batch_tokens > 0, "ptx.batch_tokens", "must be at least 1");
        let order = Order::Shuffled { seed: self.seed };
        if let Some(rows) = problems.take(key, TokenDataset::with_order(&ptx.data, order, None)) {
            let digest = tokenizer.digest();
            problems.take(
                key,
                verify_chain(&ptx.data[0], &rows.meta().tokenizer, &self.model.path, &digest),
            );
        }
    }
}

impl Describe for Plan {
    fn describe(&self, _processes: usize) -> String {
        let mut out = String::new();
        let Config { rollout, ppo, train, .. } = &self.config;
        let _ = writeln!(out, "policy      {}", self.policy.display());
        let _ = writeln!(
            out,
            "            {}, {} parameters",
            self.model_config.architecture.model_type(),
            self.model_config.num_parameters()
        );
        let _ = writeln!(out, "reference   {}", self.reference.display());
        if let Some(reward) = &self.reward {
            let _ = writeln!(out, "reward      {}", reward.display());
        }
        if !self.rules.is_empty() {
            let _ = writeln!(out, "rules       {}", self.rules.len());
        }
        let value = match (&self.value, self.shares_trunk()) {
            (Some(path), _) => path.display().to_string(),
            (None, true) => "on the policy's trunk".to_owned(),
            (None, false) => "none".to_owned(),
        };
        let _ = writeln!(out, "value       {value}");
        let _ = writeln!(
            out,
            "prompts     {} to train on, {} held out, {} too long",
            self.prompts.len(),
            self.validation.len(),
            self.too_long
        );
        let episodes = rollout.prompts_per_step * rollout.samples_per_prompt;
        let _ = writeln!(
            out,
            "steps       {}, {episodes} responses each, {} passes of {} minibatches over them, {}",
            train.steps, ppo.ppo_epochs, ppo.num_minibatches, train.precision
        );
        out
    }
}
