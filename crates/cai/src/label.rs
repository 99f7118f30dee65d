//! `cai label`: two answers to each prompt, and which of them a model finds better under the constitution.
//!
//! Bai et al. 2022, arXiv:2212.08073, section 4.1.

pub(crate) mod config;
pub(crate) mod judge;
pub(crate) mod pairs;
mod rows;

use serde_json::json;
use stage::{Context, Info, Results};
use training::stage_run::find_device;

use crate::parts::Parts;
use crate::shared::record;
use crate::speaker::Speaker;
use config::Plan;
use judge::Judge;
use pairs::{Pair, sample};
use rows::Pairs;

pub(crate) const INFO: Info = Info {
    name: "cai label",
    about: "Samples two answers to each prompt and lets a model say, under the principles of a constitution, which is better.",
    reads: "a model, prompt rows, a constitution; optionally other models that give the second answer and that judge",
    writes: "data/labels.parquet (prompt, both answers, probability), data/preferences/{train,validation}.parquet (pair rows for reward), tokenizer/, manifest.json",
    example: "cai label --config configs/cai-label.toml --set label.principles_per_pair=4",
    parallel: stage::Parallel::No,
};

#[expect(clippy::needless_pass_by_value, reason = "the signature that stage::main calls")]
pub(crate) fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Results> {
    let device = find_device(ctx)?;
    ctx.input("model", &plan.model.dir)?;
    if let Some(feedback) = &plan.feedback {
        ctx.input("feedback", &feedback.dir)?;
    }
    if let Some(second) = &plan.second {
        ctx.input("second", &second.dir)?;
    }
    ctx.input("constitution", &plan.config.constitution.path)?;
    record(ctx, "prompts", &plan.config.prompts.files)?;
    ctx.start()?;

    let settings = &plan.config.responses;
    let model = plan.model.load(device, settings.precision)?;
    let feedback = plan.feedback.as_ref().map(|source| source.load(device, settings.precision));
    let feedback = feedback.transpose()?;
    let mut policy =
        Speaker::new(&plan.model, &model, &settings.stop_strings, settings.batch_rows)?;
    let second = plan.second.as_ref().map(|source| source.load(device, settings.precision));
    let second = second.transpose()?;
    let mut second = match (&plan.second, &second) {
        (Some(source), Some(decoder)) => {
            Some(Speaker::new(source, decoder, &settings.stop_strings, settings.batch_rows)?)
        }
        _ => None,
    };
    let judge_model = feedback.as_ref().unwrap_or(&model);
    let mut judge = Judge::new(&plan, judge_model)?;
    let mut parts = Parts::open(ctx, Pairs, &["preview", "rows"])?;
    parts.fill(ctx, plan.prompts.len(), settings.batch_prompts, |range| {
        let mut pairs = sample(&mut policy, second.as_mut(), &plan, range, ctx.seed)?;
        judge.label(&mut pairs, ctx.seed)?;
        Ok(pairs)
    })?;
    let pairs = parts.merge(&ctx.run_dir.data_dir().join("labels.parquet"))?;
    let mut results = rows::write(ctx, &plan, &pairs)?;
    results.extend(summary(&plan, &pairs));
    Ok(results)
}

/// What the manifest says of the labels, and the terminal.
fn summary(plan: &Plan, pairs: &[Pair]) -> Results {
    let labels: Vec<f64> = pairs.iter().filter_map(|pair| pair.probability).collect();
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, count) =
            values.fold((0.0, 0_u64), |(sum, count), value| (sum + value, count + 1));
        sum / count.max(1) as f64
    };
    let confidence = mean(&mut labels.iter().map(|p| (p - 0.5).abs() + 0.5));
    let bias = mean(&mut pairs.iter().filter_map(|pair| pair.position_bias));
    tell!(
        "{} pairs labelled of {} prompts; mean confidence {confidence:.3}, position bias {bias:+.3}",
        labels.len(),
        pairs.len()
    );
    for pair in pairs.iter().filter(|pair| pair.probability.is_some()).take(plan.config.preview) {
        let p = pair.probability.unwrap_or(0.5);
        tell!(
            "    {:?}\n      {p:.3}  {:?}\n      {:.3}  {:?}",
            pair.prompt,
            pair.responses[0],
            1.0 - p,
            pair.responses[1]
        );
    }
    Results::from_iter([
        ("prompts".to_owned(), json!(pairs.len())),
        ("prompts_left_out".to_owned(), json!(plan.left_out)),
        ("labelled".to_owned(), json!(labels.len())),
        ("mean_confidence".to_owned(), json!(confidence)),
        ("position_bias".to_owned(), json!(bias)),
    ])
}
