//! report: one HTML page that shows what every stage did.
//!
//! Reads run directories, finished or not, and writes into its own:
//!
//! ```text
//! report.html         the page: opens from disk, fetches nothing
//! manifest.json
//! ```
//!
//! The same runs give the same bytes.

mod config;
mod curves;
mod gather;
mod page;
mod samples;
mod words;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use artifact::evaluation::Evaluation;
use artifact::{RunDir, atomic};
use serde_json::{Map, json};
use stage::{Context, Info, Results, human_bytes};

use crate::config::{Config, Plan};
use crate::gather::{Place, Run};
use crate::page::{Data, Evaluated};

const INFO: Info = Info {
    name: "report",
    about: "Writes one HTML page that shows what every stage did.",
    reads: "run directories, finished or not, and what evaluate measured",
    writes: "report.html, manifest.json",
    example: "report --set 'runs={mine=[\"runs/mine\"]}' --out runs/mine/report",
    parallel: stage::Parallel::No,
};

fn main() -> ExitCode {
    stage::main::<Config>(&INFO, run)
}

fn run(ctx: &mut Context, plan: Plan) -> anyhow::Result<Results> {
    record_inputs(ctx, &plan)?;
    let runs = gather::runs(&plan)?;
    let evaluations = evaluations(&plan, &runs)?;
    ctx.start()?;
    let unfinished = runs.iter().filter(|run| !run.finished).count();
    let results = Map::from_iter([
        ("pipelines".to_owned(), json!(plan.pipelines.len())),
        ("runs".to_owned(), json!(runs.len())),
        ("unfinished_runs".to_owned(), json!(unfinished)),
        ("evaluations".to_owned(), json!(evaluations.len())),
    ]);
    let pipelines = plan.pipelines.into_iter().map(|pipeline| pipeline.name).collect();
    let (metrics, glossary) = (words::metrics(), words::glossary());
    let data = Data { title: plan.title, pipelines, runs, evaluations, metrics, glossary };
    let html = page::render(&data)?;
    let path = ctx.run_dir.report_path();
    atomic::write_bytes(&path, html.as_bytes())?;
    let size = human_bytes(html.len() as u64);
    // A closed stdout (`| head`) does not make the page wrong.
    let _ = writeln!(
        std::io::stdout(),
        "the report is {} ({size}): open it in a browser",
        path.display()
    );
    Ok(results)
}

/// Of each finished run its manifest, and what an evaluation found.
fn record_inputs(ctx: &mut Context, plan: &Plan) -> anyhow::Result<()> {
    for run in plan.pipelines.iter().flat_map(|pipeline| &pipeline.runs) {
        if !run.is_finished() {
            continue;
        }
        ctx.input("run", &run.manifest_path())?;
        for (role, path) in [("results", run.results_path()), ("samples", run.samples_path())] {
            if path.exists() {
                ctx.input(role, &path)?;
            }
        }
    }
    Ok(())
}

/// What every finished run of `evaluate` found.
fn evaluations(plan: &Plan, runs: &[Run]) -> anyhow::Result<Vec<Evaluated>> {
    let places: Vec<Place> = runs.iter().map(Place::of).collect();
    let mut all = Vec::new();
    for run in runs.iter().filter(|run| run.finished) {
        let dir = RunDir::open(&run.path)?;
        if !dir.results_path().exists() {
            continue;
        }
        let results = Evaluation::read(&dir.results_path())?;
        let maker = |path: &Path| gather::maker(&places, &run.pipeline, path, &run.id);
        let makers = results.models.iter().filter_map(|model| {
            let path = model.adapter.as_ref().unwrap_or(&model.path);
            Some((model.name.clone(), maker(path)?))
        });
        let makers = makers.collect();
        let samples = dir.samples_path();
        let answers = if samples.exists() {
            Some(samples::of_evaluation(&samples, plan.limits.prompts)?)
        } else {
            None
        };
        let (run, pipeline) = (run.id.clone(), run.pipeline.clone());
        all.push(Evaluated { run, pipeline, results, makers, answers });
    }
    Ok(all)
}
