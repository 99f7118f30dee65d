//! pretrain: trains a language model to predict the next token of running text, from random weights or from those of a
//! model that exists.
//!
//! Reads token rows of text (`data-prep` makes them) and writes into its run directory:
//!
//! ```text
//! model/              Hugging Face layout, with the tokenizer's files
//! checkpoints/        to go on from after an interruption
//! metrics.jsonl  tensorboard/
//! samples.parquet     answers to held-out prompts, where the config names some
//! manifest.json
//! ```
//!
//! Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 1.

mod config;

use std::path::PathBuf;
use std::process::ExitCode;

use model::Decoder;
use stage::{Context, Info, Results};
use training::stage_run::{record_inputs, train_on_texts};
use training::world::World;

use crate::config::{Config, Plan, Start};

const INFO: Info = Info {
    name: "pretrain",
    about: "Trains a language model on running text, from scratch or from a model that exists.",
    reads: "token rows of text, made by data-prep; with model.path a Hugging Face directory or run directory",
    writes: "model/ in Hugging Face layout (with [peft] adapter/ in PEFT's), checkpoints/, metrics.jsonl, tensorboard/, manifest.json",
    example: "pretrain --config configs/pretrain.toml --set train.optimizer.learning_rate=1e-3",
    parallel: stage::Parallel::Tensors,
};

fn main() -> ExitCode {
    stage::main::<Config>(&INFO, run)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that stage::main calls")]
fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Results> {
    let world = World::join(ctx)?;
    match &plan.start {
        Start::Fresh { file: Some(file), .. } => drop(ctx.input("config", file)?),
        Start::Fresh { .. } => {}
        Start::Model { dir, .. } => drop(ctx.input("model", dir)?),
    }
    record_inputs(ctx, &plan.texts)?;
    ctx.start()?;
    let (mut decoder, base) = match &plan.start {
        Start::Fresh { config, .. } => {
            let (options, ranks) = (plan.texts.load_options(&world), plan.texts.holders(&world));
            (Decoder::init_over(config, ctx.seed, &options, ranks.as_ref())?, None)
        }
        Start::Model { dir, .. } => (plan.texts.load(dir, None, ctx.seed, &world)?, Some(dir)),
    };
    train_on_texts(ctx, &world, &mut decoder, &plan.texts, base.map(PathBuf::as_path))
}
