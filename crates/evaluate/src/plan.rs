//! From the config to what the run works from.

use std::fmt::Write as _;

use artifact::evaluation::EvaluatedModel;
use stage::{Describe, Paths, Problems, StageConfig};

use crate::bootstrap::Bootstrap;
use crate::config::Config;
use crate::exam::Exam;
use crate::subject::Subject;

/// The keys that decide no part of a run: how it is cut, and what is made of the parts at the end.
pub(crate) const FREE_KEYS: [&str; 2] = ["batch", "bootstrap"];

/// What the run works from.
pub(crate) struct Plan {
    pub(crate) config: Config,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) exams: Vec<Exam>,
}

impl StageConfig for Config {
    type Plan = Plan;

    fn plan(self, _at: &Paths) -> Result<Plan, Problems> {
        let mut problems = Problems::new();
        let Self { models, tests, batch, bootstrap, .. } = &self;
        problems.check(!models.is_empty(), "models", "names no model; add [models.NAME]");
        problems.check(!tests.is_empty(), "tests", "names no test; add [tests.NAME.KIND]");
        let rows = format_args!("must be from 1 to 4096, got {}", batch.rows).to_string();
        problems.check((1..=4096).contains(&batch.rows), "batch.rows", rows);
        problems.check(batch.tokens > 0, "batch.tokens", "must be at least 1");
        let samples = bootstrap.samples;
        problems.check(
            (100..=1_000_000).contains(&samples),
            "bootstrap.samples",
            format_args!("must be from 100 to 1000000, got {samples}"),
        );
        let mut subjects = Vec::new();
        for (name, table) in models {
            let key = format!("models.{name}");
            check_name(&key, name, &mut problems);
            if let Some(parent) = &table.parent {
                let known = models.contains_key(parent) && parent != name;
                let parent =
                    format_args!("there is no other model `{parent}` in the config").to_string();
                problems.check(known, &format!("{key}.parent"), parent);
            }
            subjects.extend(Subject::find(&key, name, table, &mut problems));
        }
        // Without all the models nothing can be said of the tests.
        if subjects.len() < models.len() {
            return Err(problems);
        }
        let mut exams = Vec::new();
        for (name, table) in tests {
            let key = format!("tests.{name}");
            check_name(&key, name, &mut problems);
            let numbers = (*batch, self.seed);
            exams.extend(Exam::plan(
                (&key, name),
                table.clone(),
                &subjects,
                numbers,
                &mut problems,
            ));
        }
        problems.finish(Plan { config: self, subjects, exams })
    }
}

/// A name stands in tables and in names of metrics.
fn check_name(key: &str, name: &str, problems: &mut Problems) {
    let good = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    problems.check(
        !name.is_empty() && name.chars().all(good),
        key,
        "a name is made of letters, digits, `-`, `_` and `.`",
    );
}

impl Plan {
    pub(crate) fn bootstrap(&self) -> Bootstrap {
        Bootstrap { samples: self.config.bootstrap.samples, seed: self.config.seed }
    }

    /// The models, for the results.
    pub(crate) fn models(&self) -> Vec<EvaluatedModel> {
        let of = |subject: &Subject| EvaluatedModel {
            name: subject.name.clone(),
            path: subject.table.path.clone(),
            adapter: subject.table.adapter.clone(),
            parent: subject.table.parent.clone(),
            parameters: subject.parameters,
        };
        self.subjects.iter().map(of).collect()
    }

    /// The place of a model's parent.
    pub(crate) fn parent(&self, model: usize) -> Option<usize> {
        let parent = self.subjects[model].table.parent.as_ref()?;
        self.subjects.iter().position(|subject| subject.name == *parent)
    }
}

impl Describe for Plan {
    fn describe(&self, _processes: usize) -> String {
        let mut out = String::new();
        for (at, subject) in self.subjects.iter().enumerate() {
            let label = if at == 0 { "models" } else { "" };
            let parent = subject.table.parent.as_ref();
            let parent = parent.map_or_else(String::new, |parent| format!(", from {parent}"));
            let _ = writeln!(
                out,
                "{label:<12}{}: {} parameters{parent}, {}",
                subject.name,
                subject.parameters,
                subject.table.path.display()
            );
        }
        for (at, exam) in self.exams.iter().enumerate() {
            let label = if at == 0 { "tests" } else { "" };
            let test = exam.describe();
            let takers = exam.takers.len();
            let _ = writeln!(
                out,
                "{label:<12}{}: {}, {} items, {takers} models",
                test.name, test.kind, test.items
            );
        }
        let _ = writeln!(
            out,
            "intervals   95 %, {} resamples; models run in {}",
            self.config.bootstrap.samples, self.config.precision
        );
        out
    }
}
