//! The config tables that training stages share. A stage's config has them as keys: `[data]`, `[train]`, `[peft]`,
//! `[samples]`, `[save]`.

use std::path::{Path, PathBuf};

use data::batch::{BatchConfig, BatchSize};
use model::config::Dropout;
use model::peft::{Method, Quantization};
use model::{Checkpointing, Precision};
use serde::{Deserialize, Serialize};
use stage::Problems;

use crate::schedule::Schedule;

/// The most tokens or sequences a step may be asked to have.
const MAX_BATCH: usize = 1 << 30;

/// `[data]`: the token rows to train on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Token files of the training split, all made with one tokenizer.
    pub train: Vec<PathBuf>,
    /// Token files of the validation split; none: no evaluation.
    #[serde(default)]
    pub validation: Vec<PathBuf>,
    /// The tokenizer's files, for the model that comes out. Absent: those of the run that made the first file of
    /// `train`, which hold the chat template it was rendered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
}

/// `[train]`: how the weights are optimised. Exactly one of `epochs` and `steps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Passes over the training split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Optimiser steps; the data is repeated as often as they need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// What one optimiser step trains on: `{ tokens = N }`, at most so many, `{ sequences = N }`, or of pairs
    /// `{ prompts = N }`.
    pub batch_size: BatchSize,
    /// The most tokens in one forward pass: sets the memory needed, never the result.
    pub micro_batch_tokens: usize,
    /// Number type of the forward and backward passes. Master weights are fp32 in every case.
    #[serde(default)]
    pub precision: Precision,
    /// What of a layer is not kept but computed again in the backward pass: slower, smaller.
    #[serde(default)]
    pub activation_checkpointing: Checkpointing,
    /// Each so many layers are checkpointed.
    #[serde(default = "checkpointing_interval")]
    pub checkpointing_interval: usize,
    /// Replaces all dropout probabilities of the model's config. Absent: those of the model's config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Replaces the dropout probability of the residual branches, whatever `dropout` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_dropout: Option<f64>,
    /// With several processes: what they divide among them in place of each having all of it. 0: nothing; 1: the optimiser's state;
    /// 2: the gradients as well; 3: the parameters as well (Rajbhandari et al. 2020, arXiv:1910.02054). Changes no result but by
    /// rounding.
    #[serde(default)]
    pub zero_stage: u8,
    /// Stop after this many steps in a row whose loss or gradient was not finite; each of them is skipped.
    #[serde(default = "max_skipped_steps")]
    pub max_skipped_steps: u64,
    /// Write metrics each so many optimiser steps.
    #[serde(default = "log_every_steps")]
    pub log_every_steps: u64,
    /// AdamW.
    pub optimizer: Optimizer,
    /// The learning rate's course: one of `[train.schedule.constant]`, `linear`, `cosine`, `wsd`.
    pub schedule: Schedule,
    /// The validation split during training.
    #[serde(default)]
    pub eval: Eval,
    /// What is kept while training.
    #[serde(default)]
    pub checkpoint: Checkpoint,
}

fn checkpointing_interval() -> usize {
    1
}

fn max_skipped_steps() -> u64 {
    10
}

fn log_every_steps() -> u64 {
    10
}

/// `[train.optimizer]`: AdamW. Weight decay acts on matrices only, never on biases or norm weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// Peak learning rate; the schedule multiplies it.
    pub learning_rate: f64,
    /// Decoupled weight decay of matrices.
    #[serde(default)]
    pub weight_decay: f64,
    /// Decay of the gradient's running mean.
    #[serde(default = "adam_beta1")]
    pub adam_beta1: f64,
    /// Decay of the squared gradient's running mean.
    #[serde(default = "adam_beta2")]
    pub adam_beta2: f64,
    /// Added to the denominator.
    #[serde(default = "adam_epsilon")]
    pub adam_epsilon: f64,
    /// Bits of each number of both running means: 32, or 8 in blocks that share a scale (Dettmers et al. 2022,
    /// arXiv:2110.02861). As in bitsandbytes, embeddings and tensors of fewer than 4,096 numbers keep 32.
    #[serde(default = "optim_bits")]
    pub optim_bits: u32,
    /// The step's gradient is scaled down to this L2 norm where it is larger. Absent: no clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
}

fn adam_beta1() -> f64 {
    0.9
}

fn adam_beta2() -> f64 {
    0.999
}

fn adam_epsilon() -> f64 {
    1e-8
}

fn optim_bits() -> u32 {
    32
}

/// `[train.eval]`: the validation split during training. It is also evaluated after the last step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// Evaluate each so many optimiser steps. Absent: after the last step only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// At most this many tokens of the validation split, from its beginning. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Stop after this many evaluations in a row without a new best loss. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping_patience: Option<u64>,
}

/// `[train.checkpoint]`: what is kept while training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Save each so many optimiser steps. Absent: only at the end, when interrupted and, with `keep_best`, at a new best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Newest checkpoints to keep; the best one is kept besides.
    #[serde(default = "save_total_limit")]
    pub save_total_limit: usize,
    /// Hand on the weights of the best validation loss instead of the last ones.
    #[serde(default)]
    pub keep_best: bool,
}

fn save_total_limit() -> usize {
    2
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_steps: None, save_total_limit: save_total_limit(), keep_best: false }
    }
}

/// `[samples]`: prompts that the trained model answers, greedily, into `samples.parquet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Samples {
    /// Prompt rows, as data-prep writes them for held-out records.
    pub prompts: PathBuf,
    /// Only so many, from the first on. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_prompts: Option<usize>,
    /// The most tokens of a response.
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: usize,
    /// Responses generated at the same time.
    #[serde(default = "batch_rows")]
    pub batch_rows: usize,
}

fn max_new_tokens() -> usize {
    128
}

fn batch_rows() -> usize {
    64
}

/// `[evaluation.NAME]`: held-out prompts with their right answers, which the model answers greedily, before and after it is
/// trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Prompt rows, as data-prep writes them for held-out records.
    pub prompts: PathBuf,
    /// Only so many, from the first on. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_prompts: Option<usize>,
    /// The most tokens of an answer.
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: usize,
    /// Answers generated at the same time.
    #[serde(default = "batch_rows")]
    pub batch_rows: usize,
    /// The answers that there are, as the data has them: the model chooses the most probable one, and
    /// `label_accuracy` counts the right choices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Also before training.
    #[serde(default = "yes")]
    pub before: bool,
    /// Answers to show at the end.
    #[serde(default = "examples")]
    pub examples: usize,
}

fn yes() -> bool {
    true
}

fn examples() -> usize {
    2
}

/// `[save]`: how the trained model is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Save {
    /// Number type of the weights on disk; fp32 keeps the master weights as they are.
    pub precision: Precision,
    /// A larger model is written in several files of at most this size.
    pub max_shard_mb: u64,
}

impl Default for Save {
    fn default() -> Self {
        Self { precision: Precision::Fp32, max_shard_mb: 5000 }
    }
}

/// `[peft]`: trains an adapter while the model stays as it is. Exactly one of `method` and `adapter`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Peft {
    /// A new adapter: one of `[peft.method.lora]`, `ia3`, `bottleneck`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// An adapter to go on from: a directory in PEFT's layout, or the run directory of a stage that made one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Modules trained whole beside a new adapter, by the ends of their names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Keeps the model's linear layers in 4 bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// Also writes `model/`, with the adapter in the weights.
    pub merge: bool,
}

impl Train {
    /// How steps are made of the data.
    pub(crate) fn batch_config(&self) -> BatchConfig {
        BatchConfig { size: self.batch_size, micro_batch_tokens: self.micro_batch_tokens }
    }

    /// The dropout probabilities of the run, for a model whose own are `usual`.
    pub fn dropout_over(&self, usual: Dropout) -> Dropout {
        let all = |p| Dropout { embedding: p, attention: p, residual: p };
        let dropout = self.dropout.map_or(usual, all);
        Dropout { residual: self.residual_dropout.unwrap_or(dropout.residual), ..dropout }
    }

    /// Everything in the table that cannot be, with the keys below `train`.
    pub fn problems(&self) -> Problems {
        let mut problems = Problems::new();
        match (self.epochs, self.steps) {
            (None, None) => problems.push("", "needs `epochs` or `steps`"),
            (Some(_), Some(_)) => problems.push("steps", "is given beside `epochs`; leave one out"),
            (Some(epochs), None) => {
                // Counting the steps reads the data that often.
                problems.check(
                    epochs > 0.0 && epochs <= 1000.0,
                    "epochs",
                    format_args!(
                        "must be above 0 and at most 1000 (give steps for more), got {epochs}"
                    ),
                );
            }
            (None, Some(steps)) => {
                problems.check(steps > 0, "steps", "must be at least 1");
            }
        }
        let (BatchSize::Tokens(size) | BatchSize::Sequences(size) | BatchSize::Prompts(size)) =
            self.batch_size;
        for (key, size) in [("batch_size", size), ("micro_batch_tokens", self.micro_batch_tokens)] {
            let range = format_args!("must be from 1 to {MAX_BATCH}, got {size}").to_string();
            problems.check((1..=MAX_BATCH).contains(&size), key, range);
        }
        for (key, p) in [("dropout", self.dropout), ("residual_dropout", self.residual_dropout)] {
            if let Some(p) = p {
                let range = format_args!("must be from 0 to below 1, got {p}").to_string();
                problems.check((0.0..1.0).contains(&p), key, range);
            }
        }
        problems.check(
            self.checkpointing_interval > 0,
            "checkpointing_interval",
            "must be at least 1",
        );
        let stage = self.zero_stage;
        let range = format_args!("must be 0, 1, 2 or 3, got {stage}").to_string();
        problems.check(stage <= 3, "zero_stage", range);
        problems.check(self.max_skipped_steps > 0, "max_skipped_steps", "must be at least 1");
        problems.check(self.log_every_steps > 0, "log_every_steps", "must be at least 1");
        problems.extend("optimizer", self.optimizer.problems());
        problems.extend("schedule", self.schedule.problems());
        problems.check(
            self.eval.every_steps != Some(0),
            "eval.every_steps",
            "must be at least 1, or absent",
        );
        problems.check(
            self.eval.max_tokens != Some(0),
            "eval.max_tokens",
            "must be at least 1, or absent",
        );
        problems.check(
            self.eval.early_stopping_patience.is_none() || self.eval.every_steps.is_some(),
            "eval.early_stopping_patience",
            "needs eval.every_steps",
        );
        problems.check(
            self.eval.early_stopping_patience != Some(0),
            "eval.early_stopping_patience",
            "must be at least 1, or absent",
        );
        problems.check(
            self.checkpoint.every_steps != Some(0),
            "checkpoint.every_steps",
            "must be at least 1, or absent",
        );
        problems.check(
            self.checkpoint.save_total_limit > 0,
            "checkpoint.save_total_limit",
            "must be at least 1: a resumed run needs the newest",
        );
        problems.check(
            !self.checkpoint.keep_best || self.eval.every_steps.is_some(),
            "checkpoint.keep_best",
            "needs eval.every_steps",
        );
        problems
    }
}

impl Optimizer {
    /// Everything in the table that cannot be, with its keys.
    pub fn problems(&self) -> Problems {
        let mut problems = Problems::new();
        let mut check = |key: &str, holds: bool, range: &str, value: f64| {
            problems.check(holds, key, format_args!("must be {range}, got {value}"));
        };
        let finite = f64::is_finite;
        let rate = self.learning_rate;
        check("learning_rate", finite(rate) && rate > 0.0, "above 0", rate);
        let decay = self.weight_decay;
        check("weight_decay", finite(decay) && decay >= 0.0, "0 or above", decay);
        for (key, beta) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            check(key, (0.0..1.0).contains(&beta), "from 0 to below 1", beta);
        }
        let epsilon = self.adam_epsilon;
        check("adam_epsilon", finite(epsilon) && epsilon > 0.0, "above 0", epsilon);
        let bits = self.optim_bits;
        check("optim_bits", [8, 32].contains(&bits), "32 or 8", f64::from(bits));
        if let Some(norm) = self.max_grad_norm {
            check("max_grad_norm", finite(norm) && norm > 0.0, "above 0, or absent", norm);
        }
        problems
    }
}

impl Samples {
    /// Everything in the table that cannot be, with its keys.
    pub(crate) fn problems(&self) -> Problems {
        answering(&self.prompts, self.max_new_tokens, self.batch_rows)
    }
}

impl Evaluation {
    /// Everything in the table that cannot be, with its keys.
    pub(crate) fn problems(&self) -> Problems {
        let mut problems = answering(&self.prompts, self.max_new_tokens, self.batch_rows);
        problems.check(
            self.labels.len() != 1,
            "labels",
            "needs at least two answers to choose from",
        );
        let empty = self.labels.iter().any(|label| label.trim().is_empty());
        problems.check(!empty, "labels", "has an empty answer");
        problems
    }
}

fn answering(prompts: &Path, max_new_tokens: usize, batch_rows: usize) -> Problems {
    let mut problems = Problems::new();
    problems.require_path("prompts", prompts);
    problems.check(max_new_tokens > 0, "max_new_tokens", "must be at least 1");
    let range = format_args!("must be from 1 to 4096, got {batch_rows}").to_string();
    problems.check((1..=4096).contains(&batch_rows), "batch_rows", range);
    problems
}

#[cfg(test)]
mod tests;
