//! `cai generate`: answers, criticised and revised under a constitution.
//!
//! Bai et al. 2022, arXiv:2212.08073, section 3.1.

pub(crate) mod config;
pub(crate) mod rounds;
mod rows;
pub(crate) mod talks;

use std::time::Instant;

use serde_json::{Map, json};
use stage::{Context, Info, Results};
use training::stage_run::{find_device, sizes};

use crate::parts::Parts;
use crate::shared::record;
use crate::speaker::Speaker;
use config::Plan;
use rounds::{Cast, Talk, hold};
use talks::Talks;

pub(crate) const INFO: Info = Info {
    name: "cai generate",
    about: "Lets a model answer prompts, then criticise and revise its answers under the principles of a constitution.",
    reads: "a model, prompt rows, a constitution",
    writes: "data/revisions.parquet (prompt, initial, each round's principle, critique and revision, final, stopped), data/revised/train.parquet (token rows to train on), tokenizer/, manifest.json",
    example: "cai generate --config configs/cai-generate.toml --set generate.rounds=4",
    parallel: stage::Parallel::No,
};

#[expect(clippy::needless_pass_by_value, reason = "the signature that stage::main calls")]
pub(crate) fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Results> {
    let device = find_device(ctx)?;
    ctx.input("model", &plan.model.dir)?;
    if let Some(critic) = &plan.critic {
        ctx.input("critic", &critic.dir)?;
    }
    ctx.input("constitution", &plan.config.constitution.path)?;
    record(ctx, "prompts", &plan.config.prompts.files)?;
    ctx.start()?;

    let settings = &plan.config.generate;
    let model = plan.model.load(device, settings.precision)?;
    let critic = plan.critic.as_ref().map(|critic| critic.load(device, settings.precision));
    let critic = critic.transpose()?;
    let (stop, rows) = (&settings.stop_strings, settings.batch_rows);
    let mut cast = Cast {
        policy: Speaker::new(&plan.model, &model, stop, rows)?,
        critic: match (&plan.critic, &critic) {
            (Some(source), Some(decoder)) => Speaker::new(source, decoder, stop, rows)?,
            _ => Speaker::new(&plan.model, &model, stop, rows)?,
        },
    };
    let mut parts = Parts::open(ctx, Talks { rounds: settings.rounds }, &["preview", "rows"])?;
    let rate = hold_rest(ctx, &plan, &mut cast, &mut parts)?;
    let talks = parts.merge(&ctx.run_dir.data_dir().join("revisions.parquet"))?;
    let made = rows::write(ctx, &plan, &talks)?;
    let mut results = summary(&plan, &talks);
    results.insert("responses_per_second".to_owned(), json!(rate));
    results.extend(sizes(&model));
    results.extend(made);
    Ok(results)
}

/// Holds the conversations that are not on disk yet. Returns how many turns a second the models took; nothing where none
/// was left to take.
fn hold_rest(
    ctx: &Context,
    plan: &Plan,
    cast: &mut Cast<'_>,
    parts: &mut Parts<Talks>,
) -> anyhow::Result<Option<f64>> {
    let (started, mut responses) = (Instant::now(), 0);
    parts.fill(ctx, plan.prompts.len(), plan.config.generate.batch_prompts, |range| {
        let talks = hold(cast, plan, range, ctx.seed)?;
        responses += talks.iter().map(Talk::responses).sum::<usize>();
        Ok(talks)
    })?;
    Ok((responses > 0).then(|| responses as f64 / started.elapsed().as_secs_f64()))
}

/// What the manifest says of the conversations, and the terminal.
fn summary(plan: &Plan, talks: &[Talk]) -> Results {
    let count = |holds: &dyn Fn(&Talk) -> bool| talks.iter().filter(|talk| holds(talk)).count();
    let mut stopped = Map::new();
    for talk in talks {
        let entry = stopped.entry(talk.stopped.name()).or_insert(json!(0));
        *entry = json!(entry.as_u64().unwrap_or(0) + 1);
    }
    let revised = count(&|talk| !talk.rounds.iter().all(|round| round.revision.is_none()));
    let share = revised as f64 / talks.len().max(1) as f64;
    tell!(
        "{} prompts answered, {revised} of the answers revised ({:.1} %)",
        talks.len(),
        share * 100.0
    );
    for (why, count) in &stopped {
        tell!("  {count:>8}  {why}");
    }
    for talk in
        talks.iter().filter(|talk| talk.final_text() != talk.initial).take(plan.config.preview)
    {
        tell!("    {:?}\n      initial   {:?}", talk.prompt, talk.initial);
        for round in &talk.rounds {
            if let Some(critique) = &round.critique {
                tell!("      critique  {critique:?}");
            }
            if let Some(revision) = &round.revision {
                tell!("      revision  {revision:?}");
            }
        }
    }
    Map::from_iter([
        ("prompts".to_owned(), json!(talks.len())),
        ("prompts_left_out".to_owned(), json!(plan.left_out)),
        ("revised".to_owned(), json!(revised)),
        ("stopped".to_owned(), json!(stopped)),
        ("responses".to_owned(), json!(talks.iter().map(Talk::responses).sum::<usize>())),
    ])
}
