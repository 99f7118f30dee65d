//! The configuration, checked and resolved.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use artifact::RunDir;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use stage::{Describe, Paths, Problems, StageConfig};

/// The configuration of `report`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Of every stage; nothing here is drawn by chance.
    seed: u64,
    out: PathBuf,
    /// The heading of the page.
    title: String,
    /// Run directories, or folders of them, by the name of their pipeline.
    runs: IndexMap<String, Vec<PathBuf>>,
    /// The most points of a curve.
    #[serde(default = "max_points")]
    max_points: usize,
    /// The most prompts of a test whose answers are shown.
    #[serde(default = "max_prompts")]
    max_prompts: usize,
    /// The most rows of a stage's own samples.
    #[serde(default = "max_samples")]
    max_samples: usize,
}

fn max_points() -> usize {
    300
}

fn max_prompts() -> usize {
    100
}

fn max_samples() -> usize {
    40
}

/// What `report` works from.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) title: String,
    pub(crate) pipelines: Vec<Pipeline>,
    pub(crate) limits: Limits,
}

/// How much of what there is goes onto the page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) points: usize,
    pub(crate) prompts: usize,
    pub(crate) samples: usize,
}

/// Runs that belong together.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) name: String,
    pub(crate) runs: Vec<RunDir>,
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        problems.check(
            !self.runs.is_empty(),
            "runs",
            "is empty; name a pipeline and its run directories, as in: quickstart = [\"runs/quickstart\"]",
        );
        problems.check(self.max_points >= 3, "max_points", "must be at least 3");
        let mut pipelines = Vec::new();
        for (name, paths) in &self.runs {
            let key = format!("runs.{name}");
            let mut runs = Vec::new();
            problems.check(
                !paths.is_empty(),
                &key,
                "is empty; name run directories or a folder of them",
            );
            for path in paths {
                runs.extend(runs_at(&key, path, &at.out, &mut problems));
            }
            for (at, run) in runs.iter().enumerate() {
                if runs[..at].contains(run) {
                    problems.push(&key, format_args!("names {} twice", run.path().display()));
                }
            }
            pipelines.push(Pipeline { name: name.clone(), runs });
        }
        let limits = Limits {
            points: self.max_points,
            prompts: self.max_prompts,
            samples: self.max_samples,
        };
        problems.finish(Plan { title: self.title, pipelines, limits })
    }
}

/// The runs at `path` but for reports, among them the one that is to be written.
fn runs_at(key: &str, path: &Path, out: &Path, problems: &mut Problems) -> Vec<RunDir> {
    if !problems.require_path(key, path) {
        return Vec::new();
    }
    let same = |run: &RunDir| match (fs_err::canonicalize(run.path()), fs_err::canonicalize(out)) {
        (Ok(run), Ok(out)) => run == out,
        _ => false,
    };
    let Some(mut runs) = problems.take(key, RunDir::find(path)) else { return Vec::new() };
    let given = runs.len();
    // Neither this report nor an earlier one is shown in it.
    runs.retain(|run| !same(run) && !run.report_path().exists());
    let what = if given > 0 {
        "is the run directory of a report; name others"
    } else {
        "is no run directory and holds none; name the directories that stages wrote, or a folder of them"
    };
    problems.check(!runs.is_empty(), key, format_args!("{} {what}", path.display()));
    runs
}

impl Describe for Plan {
    fn describe(&self, _processes: usize) -> String {
        let mut text = format!("title      {}\n", self.title);
        for Pipeline { name, runs } in &self.pipelines {
            for run in runs {
                let state = if run.is_finished() { "finished" } else { "unfinished" };
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{name}  {}  {state}", run.path().display());
            }
        }
        let Limits { points, prompts, samples } = self.limits;
        let _ = writeln!(
            text,
            "at most    {points} points a curve, {prompts} prompts a test, {samples} samples a stage"
        );
        text
    }
}
