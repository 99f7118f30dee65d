//! data-prep: turns raw records into token sets, and trains or takes over the tokenizer they need.
//!
//! Reads text, JSON, CSV or Parquet (or the generator of the quickstart's world), and writes into its
//! run directory:
//!
//! ```text
//! tokenizer/                        tokenizer.json, tokenizer_config.json with the chat template,
//!                                   special_tokens_map.json, generation_config.json with the stop ids
//! data/<set>/train.parquet          token rows, or pair rows
//! data/<set>/validation.parquet     the same, held out
//! data/<set>/prompts.parquet        held-out prompts with the answers that follow them, but for text
//! data/<set>/train-prompts.parquet  the prompts of the training split, where they are asked for
//! manifest.json                     with what was read, kept and dropped, and why
//! ```
//!
//! Of a data set of prompts there are the two files of prompts only, with all of them.
//!
//! The same input, config and seed give the same bytes, whatever the number of threads and of processes, which share the
//! records of each set.

mod clean;
mod config;
mod dedup;
mod failure;
mod files;
mod plan;
mod prepare;
mod preview;
mod report;
mod shares;
mod tokenise;
mod vocabulary;
#[expect(unreachable_pub, reason = "the generator is written as a library would be")]
mod world;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context as _;
use data::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use stage::{Context, Info, Progress, Team};

use crate::config::Config;
use crate::plan::{Plan, TokenizerPlan};
use crate::preview::{Preview, Style};

const INFO: Info = Info {
    name: "data-prep",
    about: "Turns raw records into token sets, and trains or takes over a tokenizer.",
    reads: "text, JSON, CSV or Parquet files, plain or compressed; or the quickstart's generator",
    writes: "tokenizer/, data/<set>/{train,validation,prompts,train-prompts}.parquet, manifest.json",
    example: "data-prep --config configs/data-prep.toml --set tokenizer.train.vocab_size=4096",
    parallel: stage::Parallel::Files,
};

/// The most tokens of a line that the preview shows.
const PREVIEW_TOKENS: usize = 160;

fn main() -> ExitCode {
    stage::main::<Config>(&INFO, run)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that stage::main calls")]
fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Map<String, Value>> {
    limit_threads(ctx)?;
    stage::together(ctx, |ctx, team| match team.filter(|team| !team.is_first()) {
        None => prepare(ctx, &plan, team),
        Some(team) => help(ctx, &plan, team).map(|()| Map::new()),
    })
}

/// Several processes on a machine take as many threads each as the launcher says, as those that train do.
fn limit_threads(ctx: &Context) -> anyhow::Result<()> {
    let number = |name| std::env::var(name).ok()?.parse::<usize>().ok();
    if ctx.layout.is_shared()
        && number("RAYON_NUM_THREADS").is_none()
        && let Some(threads) = number("OMP_NUM_THREADS")
    {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    Ok(())
}

/// All the work of a process on its own; of several, what the first does.
fn prepare(
    ctx: &mut Context,
    plan: &Plan,
    team: Option<&Team>,
) -> anyhow::Result<Map<String, Value>> {
    record_inputs(ctx, plan)?;
    ctx.start()?;
    let vocabulary = vocabulary::get(plan, team, &|| Ok(ctx.check_interrupt()?))?;
    let tokenizer = &vocabulary.tokenizer;
    tokenizer.save(ctx.run_dir.tokenizer_dir())?;
    if let Some(team) = team {
        vocabulary::announce(team)?;
    }
    ctx.tokenizer = Some(tokenizer.digest());
    ctx.chat_template = vocabulary.template.as_ref().map(data::template::ChatTemplate::digest);

    let mut sets = Map::new();
    let mut text = String::new();
    for warning in &vocabulary.warnings {
        text.push_str(&format_warning(warning));
    }
    for set in &plan.datasets {
        let progress = Progress::new(&set.name, None);
        let interrupt = ctx.interrupt.clone();
        let mut tick = |read| {
            progress.set_position(read);
            Ok(interrupt.check()?)
        };
        let output = tokenise::write_set(&ctx.run_dir, set, plan, &vocabulary, team, &mut tick)
            .with_context(|| format!("data set `{}`", set.name))?;
        progress.finish();
        text.push_str(&output.report.lines(&set.name));
        text.push_str(&preview_of(tokenizer, &output.preview));
        sets.insert(set.name.clone(), output.report.to_json()?);
    }
    // A closed stdout (`| head`) does not make the data wrong.
    let _ = io::stdout().write_all(text.as_bytes());
    let stop = tokenizer.stop_ids(None);
    Ok(Map::from_iter([
        ("vocab_size".to_owned(), json!(tokenizer.vocab_size())),
        ("stop_ids".to_owned(), json!(stop)),
        ("warnings".to_owned(), json!(vocabulary.warnings)),
        ("datasets".to_owned(), Value::Object(sets)),
    ]))
}

/// What each of several processes but the first does: its share of every data set.
fn help(ctx: &mut Context, plan: &Plan, team: &Team) -> anyhow::Result<()> {
    ctx.start()?;
    let vocabulary = vocabulary::get_from_first(plan, team, &ctx.run_dir)?;
    plan.datasets.iter().try_for_each(|set| tokenise::make_share(set, plan, &vocabulary, team))
}

fn format_warning(warning: &str) -> String {
    format!("warning: {warning}\n")
}

/// Every file read goes into the manifest with its digest; a folder as a whole.
fn record_inputs(ctx: &mut Context, plan: &Plan) -> anyhow::Result<()> {
    if let TokenizerPlan::Existing(existing) = &plan.tokenizer {
        ctx.input("tokenizer", &existing.path)?;
    }
    if let Some(path) = &plan.chat_template_file {
        ctx.input("chat_template", path)?;
    }
    for set in &plan.datasets {
        if let Some(source) = &set.source {
            for path in source.inputs() {
                ctx.input(&format!("datasets.{}", set.name), path)?;
            }
        }
        if let Some(path) = set.config.world.as_ref().and_then(|world| world.constitution.as_ref())
        {
            ctx.input(&format!("datasets.{}.constitution", set.name), path)?;
        }
    }
    Ok(())
}

fn preview_of(tokenizer: &Tokenizer, previews: &[Preview]) -> String {
    let colour = io::stdout().is_terminal();
    let style = if colour { Style::Colour } else { Style::Brackets };
    let lines = previews.iter().flat_map(|one| one.lines(tokenizer, PREVIEW_TOKENS, style));
    lines.flat_map(|line| ["    ".to_owned(), line, "\n".to_owned()]).collect()
}
