//! The configuration's tables.

use std::path::PathBuf;

use data::rule::RuleSpec;
use model::{Checkpointing, Precision};
use objectives::KlEstimator;
use serde::{Deserialize, Serialize};
use training::schedule::Schedule;
use training::settings::{Checkpoint, Optimizer, Peft, Save};

/// `configs/ppo.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) out: PathBuf,
    pub(crate) model: ModelTable,
    pub(crate) data: Data,
    pub(crate) reward: Reward,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<Value>,
    pub(crate) rollout: Rollout,
    pub(crate) kl: Kl,
    #[serde(default)]
    pub(crate) ppo: Ppo,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ptx: Option<Ptx>,
    pub(crate) train: Train,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peft: Option<Peft>,
    #[serde(default)]
    pub(crate) eval: Eval,
    #[serde(default)]
    pub(crate) samples: Samples,
    #[serde(default)]
    pub(crate) save: Save,
}

/// `[model]`: the policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelTable {
    /// The model to train: a Hugging Face directory or run directory.
    pub(crate) path: PathBuf,
    /// The frozen model that the KL divergence is measured to. Absent: the policy as it is at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<PathBuf>,
}

/// `[data]`: prompts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Data {
    /// Prompt rows to train on.
    pub(crate) prompts: Vec<PathBuf>,
    /// Held-out prompt rows; none: no evaluation.
    #[serde(default)]
    pub(crate) validation: Vec<PathBuf>,
}

/// `[reward]`: how a response is scored. The model's score and the rules' are added.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reward {
    /// A reward model: its run directory or a Hugging Face directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<PathBuf>,
    /// Subtracts the reward model's mean and divides by its deviation, which it brings along.
    #[serde(default)]
    pub(crate) normalize: bool,
    /// Cuts the reward model's score off at plus and minus this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clip: Option<f64>,
    /// Rules that score a response from 0 to 1, each times its weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) rules: Vec<WeightedRule>,
    /// Subtracted from the score of a response that did not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) missing_eos_penalty: Option<f64>,
    /// Takes the place of the score of a response that did not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) missing_eos_score: Option<f64>,
    /// Subtracted for each token of a response.
    #[serde(default)]
    pub(crate) length_penalty: f64,
}

/// One of `[[reward.rules]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WeightedRule {
    /// The rule.
    pub(crate) rule: RuleSpec,
    /// What its score counts for.
    #[serde(default = "one")]
    pub(crate) weight: f64,
}

fn one() -> f64 {
    1.0
}

/// `[value]`: the value function, for `advantage = "gae"`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Value {
    /// What predicts values.
    pub(crate) init: ValueInit,
    /// Its peak learning rate, for a trunk of its own. Absent: the policy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) learning_rate: Option<f64>,
}

/// `[value.init]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ValueInit {
    /// A model of its own.
    OwnTrunk {
        /// A reward model, whose score it starts with, or a language model, to which one is added that
        /// starts at 0.
        path: PathBuf,
    },
    /// A score on the policy's trunk; it starts at 0.
    SharedTrunk {},
}

/// `[rollout]`: how responses are sampled.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollout {
    /// Prompts a step.
    pub(crate) prompts_per_step: usize,
    /// Responses to each of them.
    #[serde(default = "one_sample")]
    pub(crate) samples_per_prompt: usize,
    /// The most tokens of a response.
    pub(crate) max_new_tokens: usize,
    /// Divides the logits, in sampling and wherever log-probabilities are taken.
    #[serde(default = "one")]
    pub(crate) temperature: f64,
    /// A response also ends with one of these texts.
    #[serde(default)]
    pub(crate) stop_strings: Vec<String>,
    /// Goes on past the end-of-sequence token, for measurements.
    #[serde(default)]
    pub(crate) ignore_eos: bool,
    /// Responses generated at the same time.
    #[serde(default = "batch_rows")]
    pub(crate) batch_rows: usize,
}

fn one_sample() -> usize {
    1
}

fn batch_rows() -> usize {
    64
}

/// `[kl]`: the penalty for moving away from the reference.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kl {
    /// The coefficient.
    pub(crate) coef: KlCoef,
    /// How a token's divergence is estimated in the penalty.
    #[serde(default)]
    pub(crate) estimator: KlEstimator,
    /// Where the penalty goes.
    #[serde(default)]
    pub(crate) place: KlPlace,
    /// Ends training once the mean divergence of a response, in nats, is above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stop_above: Option<f64>,
}

/// `[kl.coef]`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum KlCoef {
    /// Always the same.
    Fixed(f64),
    /// Follows a target.
    Adaptive {
        /// At the start.
        initial: f64,
        /// Nats a response.
        target: f64,
        /// Episodes over which an error of a fifth of the target moves it by a fifth.
        horizon: u64,
    },
}

/// Where the KL penalty goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KlPlace {
    /// Subtracted from the rewards.
    #[default]
    Reward,
    /// Added to the loss.
    Loss,
}

/// How advantages are estimated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Advantage {
    /// For each token, from a value function.
    #[default]
    Gae,
    /// For each response, over the mean of the other responses to its prompt.
    Rloo,
    /// For each response, over its group's mean in deviations of the group.
    Grpo,
}

/// `[ppo]`: the optimisation on one step's responses.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "`ppo_epochs` is the field's word")]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Ppo {
    pub(crate) advantage: Advantage,
    /// GRPO divides by the group's deviation.
    pub(crate) scale_rewards: bool,
    /// Discount of later rewards.
    pub(crate) gamma: f64,
    /// GAE's λ.
    pub(crate) gae_lambda: f64,
    /// Divides the rewards by their deviation.
    pub(crate) whiten_rewards: bool,
    /// Brings GAE's advantages to mean 0 and deviation 1.
    pub(crate) whiten_advantages: bool,
    /// Passes over the responses.
    pub(crate) ppo_epochs: usize,
    /// Optimiser steps a pass.
    pub(crate) num_minibatches: usize,
    /// How far below 1 a token's probability ratio counts.
    pub(crate) clip_range: f64,
    /// How far above 1. Absent: as far as below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) clip_range_high: Option<f64>,
    /// How far a value may move. Absent: not clipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) value_clip_range: Option<f64>,
    /// Factor on the value loss.
    pub(crate) value_coef: f64,
    /// Factor on the entropy, which is subtracted from the loss.
    pub(crate) entropy_coef: f64,
    /// Ends a step's passes once the KL divergence to the policy that sampled, in nats a token, is above this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target_kl: Option<f64>,
    /// Steps at the beginning that train the value function alone.
    pub(crate) critic_warmup_steps: u64,
}

impl Default for Ppo {
    fn default() -> Self {
        Self {
            advantage: Advantage::Gae,
            scale_rewards: true,
            gamma: 1.0,
            gae_lambda: 0.95,
            whiten_rewards: false,
            whiten_advantages: true,
            ppo_epochs: 4,
            num_minibatches: 1,
            clip_range: 0.2,
            clip_range_high: None,
            value_clip_range: None,
            value_coef: 0.1,
            entropy_coef: 0.0,
            target_kl: None,
            critic_warmup_steps: 0,
        }
    }
}

impl Ppo {
    /// Below and above 1.
    pub(crate) fn clip(&self) -> (f64, f64) {
        (self.clip_range, self.clip_range_high.unwrap_or(self.clip_range))
    }
}

/// `[ptx]`: the next-token loss on other data, mixed in so that what the policy knew is not lost.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ptx {
    /// Token files.
    pub(crate) data: Vec<PathBuf>,
    /// Factor on the loss.
    pub(crate) coef: f64,
    /// Tokens of it an optimiser step.
    pub(crate) batch_tokens: usize,
}

/// `[train]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Train {
    /// Steps: each samples responses and optimises on them.
    pub(crate) steps: u64,
    /// The most tokens in one forward pass.
    pub(crate) micro_batch_tokens: usize,
    /// Number type of all passes. Master weights are fp32 in every case.
    #[serde(default)]
    pub(crate) precision: Precision,
    /// What of a layer is not kept but computed again in the backward pass.
    #[serde(default)]
    pub(crate) activation_checkpointing: Checkpointing,
    /// Each so many layers are checkpointed.
    #[serde(default = "one_sample")]
    pub(crate) checkpointing_interval: usize,
    /// With several processes: 1 divides the optimisers' state among them in place of each having all of it (Rajbhandari et al.
    /// 2020, arXiv:1910.02054). Changes no result but by rounding.
    #[serde(default)]
    pub(crate) zero_stage: u8,
    /// Write metrics each so many steps.
    #[serde(default = "one_step")]
    pub(crate) log_every_steps: u64,
    /// AdamW.
    pub(crate) optimizer: Optimizer,
    /// The learning rate's course over the steps.
    pub(crate) schedule: Schedule,
    /// What is kept while training.
    #[serde(default)]
    pub(crate) checkpoint: Checkpoint,
}

fn one_step() -> u64 {
    1
}

/// `[eval]`: held-out prompts, answered by policy and reference.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Eval {
    /// Each so many steps. Absent: before the first and after the last step only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) every_steps: Option<u64>,
    /// Only so many, from the first on.
    pub(crate) max_prompts: usize,
}

impl Default for Eval {
    fn default() -> Self {
        Self { every_steps: None, max_prompts: 256 }
    }
}

/// `[samples]`: sampled prompts and responses with their scores, for the eye.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Samples {
    /// Each so many steps.
    pub(crate) every_steps: u64,
    /// How many.
    pub(crate) count: usize,
}

impl Default for Samples {
    fn default() -> Self {
        Self { every_steps: 10, count: 4 }
    }
}
