//! ppo: reinforcement learning of a policy against a reward.
//!
//! Reads a language model, prompts, and a reward model or rules, and writes into its run directory:
//!
//! ```text
//! model/              the policy in Hugging Face layout, with the tokenizer's files
//! adapter/            with [peft] in its place, in PEFT's layout
//! checkpoints/        to go on from after an interruption
//! metrics.jsonl  tensorboard/
//! samples.parquet     sampled prompts and responses with their scores
//! manifest.json       with held-out scores, KL divergence and win rate before and after
//! ```
//!
//! A step samples responses with the policy, scores them, measures how far the policy has moved from its reference, estimates
//! advantages, and passes over the responses a few times.
//!
//! Ziegler et al. 2019, arXiv:1909.08593; Ouyang et al. 2022, `InstructGPT`, arXiv:2203.02155, section 3.5.

mod config;
mod evaluate;
mod experience;
mod learn;
mod models;
mod plan;
mod rollout;
#[cfg(test)]
mod tests;
mod train;

use std::process::ExitCode;

use stage::{Context, Info, Results};
use training::peft::Trained;
use training::stage_run::{save_model, sizes, warn_of_emulation};
use training::world::World;

use crate::config::Config;
use crate::models::Models;
use crate::plan::Plan;

const INFO: Info = Info {
    name: "ppo",
    about: "Trains a language model by reinforcement learning against a reward model or rules.",
    reads: "a Hugging Face directory or run directory with a model; prompt rows; a reward model",
    writes: "model/ in Hugging Face layout (with [peft] adapter/ in PEFT's), checkpoints/, metrics.jsonl, tensorboard/, samples.parquet, manifest.json",
    example: "ppo --config configs/ppo.toml --set kl.coef.fixed=0.1",
    parallel: stage::Parallel::Tensors,
};

fn main() -> ExitCode {
    stage::main::<Config>(&INFO, run)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that stage::main calls")]
fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Results> {
    let world = World::join(ctx)?;
    record_inputs(ctx, &plan)?;
    ctx.start()?;
    if plan.too_long > 0 {
        tracing::warn!("{} prompts leave no room for a response and are left out", plan.too_long);
    }
    let mut models = Models::load(&plan, world.device(), ctx.seed)?;
    warn_of_emulation(&models.policy);
    let mut results = train::train(ctx, &world, &plan, &mut models)?;
    if !world.is_first() {
        return Ok(results);
    }
    let trained = plan.peft.as_ref().map(|peft| Trained { plan: peft, base: &plan.policy });
    save_model(ctx, &mut models.policy, &plan.tokenizer, &plan.config.save, trained)?;
    results.extend(sizes(&models.policy));
    Ok(results)
}

fn record_inputs(ctx: &mut Context, plan: &Plan) -> anyhow::Result<()> {
    ctx.input("model", &plan.policy)?;
    if plan.reference != plan.policy {
        ctx.input("reference", &plan.reference)?;
    }
    if let Some(adapter) = plan.peft.as_ref().and_then(|peft| peft.input()) {
        ctx.input("adapter", adapter)?;
    }
    for (role, path) in [("reward", &plan.reward), ("value", &plan.value)] {
        if let Some(path) = path {
            ctx.input(role, path)?;
        }
    }
    for file in &plan.config.data.prompts {
        ctx.input("train", file)?;
    }
    for file in &plan.config.data.validation {
        ctx.input("validation", file)?;
    }
    for file in plan.config.ptx.iter().flat_map(|ptx| &ptx.data) {
        ctx.input("ptx", file)?;
    }
    Ok(())
}
