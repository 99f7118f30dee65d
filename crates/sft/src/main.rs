//! sft: supervised fine-tuning. Trains a language model on instructions and their right answers; only what the assistant
//! says counts in the loss.
//!
//! Reads a model and token rows of conversations or prompt-completion pairs (`data-prep` makes them), and writes into
//! its run directory:
//!
//! ```text
//! model/              Hugging Face layout, with the tokenizer's files and its chat template
//! adapter/            with [peft] in its place, in PEFT's layout
//! checkpoints/        to go on from after an interruption
//! metrics.jsonl  tensorboard/
//! samples.parquet     answers to held-out prompts, where the config names some
//! manifest.json
//! ```
//!
//! Ouyang et al. 2022, `InstructGPT`, arXiv:2203.02155, section 3.5.

mod config;

use std::process::ExitCode;

use stage::{Context, Info, Results};
use training::stage_run::{record_inputs, train_on_texts};
use training::world::World;

use crate::config::{Config, Plan};

const INFO: Info = Info {
    name: "sft",
    about: "Fine-tunes a language model on instructions and their right answers.",
    reads: "a Hugging Face directory or run directory with a model; token rows, made by data-prep",
    writes: "model/ in Hugging Face layout (with [peft] adapter/ in PEFT's), checkpoints/, metrics.jsonl, tensorboard/, manifest.json",
    example: "sft --config configs/sft.toml --set train.optimizer.learning_rate=3e-5",
    parallel: stage::Parallel::Tensors,
};

fn main() -> ExitCode {
    stage::main::<Config>(&INFO, run)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that stage::main calls")]
fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Results> {
    let world = World::join(ctx)?;
    ctx.input("model", &plan.model_dir)?;
    record_inputs(ctx, &plan.texts)?;
    ctx.start()?;
    let mut decoder = plan.texts.load(&plan.model_dir, None, ctx.seed, &world)?;
    train_on_texts(ctx, &world, &mut decoder, &plan.texts, Some(&plan.model_dir))
}
