//! evaluate: measures models side by side.
//!
//! Reads models, with adapters over them or without, and tests: text, prompts, questions with choices, pairs. Each model
//! takes each test that it can; a model is compared with the one it came from on the same items. Writes into its run
//! directory:
//!
//! ```text
//! results.json        every number with its 95 % interval, and what changed from parent to child
//! results.parquet     the numbers as a table
//! samples.parquet     the same prompts answered by each model
//! checkpoints/        what each model did in each test, to go on from after an interruption
//! manifest.json       with the main numbers
//! ```

/// A line on stdout. A closed one (`| head`) does not make the run wrong.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod asked;
mod bootstrap;
mod config;
mod exam;
mod outcome;
mod output;
mod plan;
mod results;
mod subject;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use artifact::atomic;
use stage::{Context, ErrorExt as _, Info, Results, basis};
use tch::Device;
use training::stage_run::find_device;

use crate::config::Config;
use crate::exam::Work;
use crate::outcome::Outcome;
use crate::plan::{FREE_KEYS, Plan};
use crate::results::Outcomes;

const INFO: Info = Info {
    name: "evaluate",
    about: "Measures models side by side: perplexity, answers, choices, preferences, safety, scores, divergence.",
    reads: "Hugging Face directories or run directories with models; text, prompts, questions, pairs",
    writes: "results.json, results.parquet, samples.parquet, tensorboard/, manifest.json",
    example: "evaluate --config configs/evaluate.toml --set tests.instructions.generation.max_items=50",
    parallel: stage::Parallel::No,
};

fn main() -> ExitCode {
    stage::main::<Config>(&INFO, run)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that stage::main calls")]
fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Results> {
    let device = find_device(ctx)?;
    record(ctx, &plan)?;
    ctx.start()?;
    let parts = ctx.run_dir.checkpoints_dir();
    basis::check(ctx, &parts, &FREE_KEYS)?;
    let mut outcomes = take_all(ctx, &plan, device, &parts)?;
    judge(ctx, &plan, device, &mut outcomes)?;
    let evaluation = results::evaluation(&plan, &outcomes);
    output::write(ctx, &plan, &outcomes, &evaluation)?;
    output::show(ctx, &plan, &evaluation)?;
    Ok(output::report(&evaluation))
}

/// Notes what is read.
fn record(ctx: &mut Context, plan: &Plan) -> anyhow::Result<()> {
    let mut read = |role: &str, path: &Path| {
        if ctx.inputs.iter().any(|input| input.path == path) {
            return Ok(());
        }
        ctx.input(role, path).map(|_| ())
    };
    for subject in &plan.subjects {
        read("model", &subject.place.base)?;
        subject.place.adapter.iter().try_for_each(|adapter| read("adapter", adapter))?;
        subject.table.tokenizer.iter().try_for_each(|own| read("tokenizer", own))?;
    }
    for exam in &plan.exams {
        exam.inputs().iter().try_for_each(|path| read("test", path))?;
        if let Work::Score(work) = &exam.work {
            read("reward", &work.judge.place.base)?;
        }
    }
    Ok(())
}

/// Puts every test to every model that takes it, one model in memory at a time. What an earlier, unfinished run has done
/// is not done again.
fn take_all(ctx: &Context, plan: &Plan, device: Device, parts: &Path) -> anyhow::Result<Outcomes> {
    let mut outcomes: Outcomes =
        plan.exams.iter().map(|_| vec![None; plan.subjects.len()]).collect();
    let path = |test: usize, model: usize| parts.join(format!("part-{model:04}-{test:04}.json"));
    let mut found = 0;
    for (model, subject) in plan.subjects.iter().enumerate() {
        let mut open = Vec::new();
        for (test, exam) in plan.exams.iter().enumerate() {
            if !exam.takers.contains(&model) {
                continue;
            }
            let part = path(test, model);
            if part.exists() {
                outcomes[test][model] = Some(read_part(&part)?);
                found += 1;
            } else {
                open.push(test);
            }
        }
        if open.is_empty() {
            continue;
        }
        ctx.check_interrupt()?;
        tracing::info!("{}: {} tests", subject.name, open.len());
        let name = || format!("the model `{}`", subject.name);
        let decoder = subject.load(device, plan.config.precision).with_context(name)?;
        for test in open {
            let exam = &plan.exams[test];
            let done = exam
                .run(ctx, subject, &decoder, plan.config.batch.tokens)
                .with_context(|| format!("{}, test `{}`", name(), exam.name))?;
            ctx.check_unchanged()?;
            atomic::write_bytes(path(test, model), &serde_json::to_vec(&done)?)?;
            outcomes[test][model] = Some(done);
        }
    }
    if found > 0 {
        tracing::info!("goes on from {}, where {found} tests of models were done", parts.display());
    }
    Ok(outcomes)
}

fn read_part(path: &Path) -> anyhow::Result<Outcome> {
    let text = fs_err::read_to_string(path)?;
    let part = serde_json::from_str(&text);
    part.with_context(|| format!("{}: not a part of this run", path.display()))
        .hint("start over with --resume never")
}

/// What needs another model: scores of a reward model, and log-probabilities of a reference.
fn judge(
    ctx: &Context,
    plan: &Plan,
    device: Device,
    outcomes: &mut Outcomes,
) -> anyhow::Result<()> {
    let tokens = plan.config.batch.tokens;
    let named = |name: &str| plan.subjects.iter().position(|subject| subject.name == name);
    for (exam, own) in plan.exams.iter().zip(outcomes) {
        match &exam.work {
            Work::Score(work) => {
                let reward = work.judge.load(device, plan.config.precision)?;
                for outcome in own.iter_mut().flatten() {
                    work.score(ctx, &reward, outcome, tokens)?;
                }
                let Some(baseline) = work.baseline().and_then(named) else { continue };
                let Some(other) = own[baseline].clone() else { continue };
                let others = own.iter_mut().enumerate().filter(|(model, _)| *model != baseline);
                others.filter_map(|(_, own)| own.as_mut()).for_each(|own| own.compare(&other));
            }
            Work::Divergence(work) => {
                let Some(reference) = named(work.reference()) else { continue };
                let decoder = plan.subjects[reference].load(device, plan.config.precision)?;
                for (subject, outcome) in plan.subjects.iter().zip(own) {
                    if let Some(outcome) = outcome {
                        work.compare(ctx, (subject, &decoder), outcome, tokens)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}
