//! reward: a model that scores responses, trained on pairs of which one is preferred.
//!
//! Reads a language model and pair rows (`data-prep` makes them), and writes into its run directory:
//!
//! ```text
//! model/              Hugging Face layout: a sequence classifier of one label, with the tokenizer's files
//! adapter/            with [peft] in its place, in PEFT's layout
//! checkpoints/        to go on from after an interruption
//! metrics.jsonl  tensorboard/
//! samples.parquet     held-out pairs with their scores
//! manifest.json       with accuracy, calibration and the scores' mean and deviation on held-out pairs
//! ```
//!
//! `reward score` scores the responses of any Parquet file.
//!
//! Ouyang et al. 2022, `InstructGPT`, arXiv:2203.02155, section 3.5.

mod config;
mod loss;
mod report;
mod score;

use std::process::ExitCode;

use data::batch::PairBatch;
use data::tokenizer::Tokenizer;
use model::config::Dropout;
use model::{Decoder, Head};
use stage::{Context, Info, Results};
use training::stage_run::{record_inputs, save_model, sizes, warn_of_emulation};
use training::supervised::train;
use training::world::World;

use crate::config::{Config, Plan};
use crate::loss::pair_loss;
use crate::report::{Scored, pairs_of};

const INFO: Info = Info {
    name: "reward",
    about: "Trains a model that scores responses, on pairs of which one is preferred.",
    reads: "a Hugging Face directory or run directory with a model; pair rows, made by data-prep",
    writes: "model/ in Hugging Face layout (with [peft] adapter/ in PEFT's), checkpoints/, metrics.jsonl, tensorboard/, samples.parquet, manifest.json",
    example: "reward --config configs/reward.toml\n         reward score --help    scores the responses of a Parquet file",
    parallel: stage::Parallel::Tensors,
};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "score") {
        return score::main(words);
    }
    stage::main::<Config>(&INFO, run)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that stage::main calls")]
fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Results> {
    let world = World::join(ctx)?;
    ctx.input("model", &plan.model_dir)?;
    record_inputs(ctx, &plan.pairs)?;
    ctx.start()?;
    let supervised = &plan.pairs.supervised;
    let mut decoder = plan.pairs.load(&plan.model_dir, Some(Head::Score), ctx.seed, &world)?;
    // Off unless asked for: noise in the scores is noise in their order.
    decoder.set_dropout(supervised.settings.dropout_over(Dropout::default()));
    warn_of_emulation(&decoder);

    let centering = plan.reward.centering_coefficient;
    let loss = |decoder: &Decoder, batch: &PairBatch| pair_loss(decoder, batch, centering);
    let mut results = train(ctx, &world, &mut decoder, supervised, &loss)?;
    let division = decoder.params().division().cloned();
    let more = world.lead(division.as_ref(), || hand_on(ctx, &mut decoder, &plan))?;
    results.extend(more.into_iter().flatten());
    Ok(results)
}

/// Scores held-out pairs, writes the model with what the scores are like, and returns what the manifest reports of it.
fn hand_on(ctx: &mut Context, decoder: &mut Decoder, plan: &Plan) -> anyhow::Result<Results> {
    let supervised = &plan.pairs.supervised;
    let (files, limit) = pairs_of(supervised);
    let scored = Scored::new(ctx, decoder, &files, supervised.settings.micro_batch_tokens, limit)?;
    let (mean, deviation) = scored.statistics();
    decoder.set_score_statistics(mean, deviation);
    save(ctx, decoder, plan)?;
    scored.write_samples(ctx, &plan.pairs.tokenizer)?;
    let mut results = scored.results();
    results.extend(sizes(decoder));
    Ok(results)
}

/// Writes `model/` so that transformers reads the score where it was trained.
///
/// transformers takes the last token that is not padding, by its id; so the padding token must not be one that text may end
/// with.
fn save(ctx: &mut Context, decoder: &mut Decoder, plan: &Plan) -> anyhow::Result<()> {
    let mut tokenizer = Tokenizer::clone(&plan.pairs.tokenizer);
    let ends = tokenizer.stop_ids(None);
    let is_apart = |id: &u32| !ends.contains(id);
    if !tokenizer.pad_id().as_ref().is_some_and(is_apart) {
        let unknown = tokenizer.specials().get("unk_token").map(str::to_owned);
        let id = unknown.as_ref().and_then(|token| tokenizer.token_id(token));
        if let (Some(token), true) = (&unknown, id.as_ref().is_some_and(is_apart)) {
            tokenizer.set_special("pad_token", token)?;
        } else {
            tracing::warn!(
                "the tokenizer has no padding token apart from its end tokens: transformers scores only one text at a \
                 time with this model"
            );
        }
    }
    let trained = plan.pairs.trained(Some(&plan.model_dir));
    save_model(ctx, decoder, &tokenizer, &plan.pairs.save, trained)
}
