//! `cai train`: supervised training on the revisions, beside data that keeps the model helpful; then before and after.
//!
//! Bai et al. 2022, arXiv:2212.08073, section 3.1.

pub(crate) mod config;
mod evaluate;
pub(crate) mod mix;

use stage::{Context, Info, Results};
use training::loss::next_token_loss;
use training::stage_run::{save_model, sizes, warn_of_emulation};
use training::supervised;
use training::world::World;

use crate::shared::record;
use config::Plan;
use evaluate::{Answers, compare};

pub(crate) const INFO: Info = Info {
    name: "cai train",
    about: "Fine-tunes a model on revised answers, beside data that keeps it helpful, and compares before and after.",
    reads: "a model; token rows of revisions, made by cai generate; token rows to mix in; prompt rows to evaluate on",
    writes: "model/ in Hugging Face layout (with [peft] adapter/ in PEFT's), checkpoints/, metrics.jsonl, tensorboard/, samples.parquet (answers before and after), manifest.json",
    example: "cai train --config configs/cai-train.toml --set mix.helpful_share=0.7",
    parallel: stage::Parallel::Tensors,
};

#[expect(clippy::needless_pass_by_value, reason = "the signature that stage::main calls")]
pub(crate) fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Results> {
    let world = World::join(ctx)?;
    let device = world.device();
    ctx.input("model", &plan.model.dir)?;
    let config = &plan.config;
    record(ctx, "train", &config.mix.revisions)?;
    record(ctx, "train", &config.mix.helpful)?;
    record(ctx, "validation", &config.mix.validation)?;
    if let Some(adapter) = &plan.adapter {
        ctx.input("adapter", adapter)?;
    }
    if let Some(eval) = &config.eval {
        record(ctx, "prompts", &eval.red_team)?;
        record(ctx, "prompts", &eval.helpful)?;
        if let Some(reward) = &plan.reward {
            ctx.input("reward", &reward.dir)?;
        }
        ctx.input("constitution", &config.constitution.path)?;
    }
    ctx.start()?;

    let mixed = world.is_first().then(|| mix::write(ctx, &plan)).transpose()?;
    world.meet(ctx)?;
    let texts = mix::plan(ctx, &plan)?;
    let mut decoder = texts.load(&plan.model.dir, None, ctx.seed, &world)?;
    let division = decoder.params().division().cloned();
    decoder.set_dropout(config.train.dropout_over(decoder.config().dropout));
    warn_of_emulation(&decoder);
    let before = world.lead(division.as_ref(), || Answers::of(ctx, &plan, &decoder))?.flatten();
    let mut results =
        supervised::train(ctx, &world, &mut decoder, &texts.supervised, &next_token_loss)?;
    let after = world.lead(division.as_ref(), || {
        let trained = texts.trained(Some(&plan.model.dir));
        save_model(ctx, &mut decoder, &plan.model.tokenizer, &config.save, trained)?;
        Answers::of(ctx, &plan, &decoder)
    })?;
    let (Some(mixed), Some(after)) = (mixed, after) else { return Ok(results) };
    match (before, after) {
        (Some(before), Some(after)) => {
            results.extend(compare(ctx, &plan, &before, &after, device)?);
        }
        _ => ctx.run_dir.remove_samples()?,
    }
    results.extend(mixed);
    results.extend(sizes(&decoder));
    Ok(results)
}
