//! Prompts answered by generating, greedily: judged by the prompts' own checkers, and compared with right answers.

use std::path::PathBuf;

use artifact::evaluation::{Better, Unit};
use data::metrics::{TextScores, chrf};
use stage::Problems;

use super::Sitting;
use crate::asked::{Asked, Manner, Prompts};
use crate::config::{Generation, Measure};
use crate::outcome::{Metric, Outcome, manner_metrics};
use crate::subject::Subject;

/// The means over rows of [`data::metrics::RowScores`], by the names of their columns.
const MEANS: [(&str, Measure); 5] = [
    ("rouge1", Measure::Rouge),
    ("rouge2", Measure::Rouge),
    ("rougeL", Measure::Rouge),
    ("exact_match", Measure::ExactMatch),
    ("f1", Measure::F1),
];

/// What is asked, and what is made of the answers.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) prompts: Prompts,
    measures: Vec<Measure>,
}

impl Work {
    pub(crate) fn plan(
        key: &str,
        table: Generation,
        batch_rows: usize,
        takers: &[&Subject],
        problems: &mut Problems,
    ) -> Option<Self> {
        let Generation { prompts, max_items, max_new_tokens, measures } = table;
        let manner = Manner { max_new_tokens, temperature: 0.0, batch_rows };
        let prompts = Prompts::plan(key, (prompts, max_items), manner, takers, problems)?;
        let asked = &prompts.asked;
        let judged = asked.iter().position(|asked| asked.checker.is_none());
        let compared = asked.iter().position(|asked| asked.row.answer.is_none());
        let Some(measures) = measures else {
            let all = [
                Measure::Accuracy,
                Measure::Rouge,
                Measure::Chrf,
                Measure::ExactMatch,
                Measure::F1,
            ];
            let fits =
                |measure: &Measure| if *measure == Measure::Accuracy { judged } else { compared };
            let measures: Vec<Measure> =
                all.into_iter().filter(|measure| fits(measure).is_none()).collect();
            let what = "not every prompt has a checker, nor every one a right answer, so nothing can be compared";
            problems.check(!measures.is_empty(), &format!("{key}.prompts"), what);
            return Some(Self { prompts, measures });
        };
        let mut needs = |missing: Option<usize>, wanted: bool, what: &str| {
            if let (Some(row), true) = (missing, wanted) {
                let at = &asked[row].at;
                problems.push(format!("{key}.measures"), format_args!("{at}: has no {what}"));
            }
        };
        needs(judged, measures.contains(&Measure::Accuracy), "checker, which accuracy needs");
        let text = measures.iter().any(|measure| *measure != Measure::Accuracy);
        needs(compared, text, "right answer to compare with (column `answer`)");
        problems.check(!measures.is_empty(), &format!("{key}.measures"), "is empty");
        Some(Self { prompts, measures })
    }

    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        self.prompts.inputs()
    }

    /// Answers, and their scores of each measure.
    ///
    /// # Errors
    /// libtorch's; a signal.
    pub(crate) fn run(&self, sitting: &Sitting<'_>) -> anyhow::Result<Outcome> {
        let mut outcome = self.prompts.answer(sitting)?.without_ids();
        for (item, asked) in self.prompts.asked.iter().enumerate() {
            self.judge(asked, item, &mut outcome);
        }
        Ok(outcome)
    }

    fn judge(&self, asked: &Asked, item: usize, outcome: &mut Outcome) {
        let text = outcome.answers[item].text.clone();
        let right = asked.checker.as_ref().map(|checker| checker.check(&text));
        outcome.answers[item].score = right.map(f64::from);
        outcome.push_bool("right", right);
        if self.measures.iter().all(|measure| *measure == Measure::Accuracy) {
            return;
        }
        let (said, wanted) = (text.trim(), asked.row.answer.as_deref().unwrap_or_default().trim());
        let row = TextScores::default().add(said, &[wanted]);
        let means = [row.rouge1, row.rouge2, row.rouge_l, row.exact_match, row.f1];
        for ((name, _), mean) in MEANS.iter().zip(means) {
            outcome.push(name, Some(mean));
        }
        let counts = chrf::Statistics::new(said, &[wanted]).counts();
        for (column, count) in chrf_columns().into_iter().zip(counts) {
            outcome.push(&column, Some(count as f64));
        }
    }

    pub(crate) fn metrics(&self) -> Vec<Metric> {
        let mut metrics = Vec::new();
        if self.measures.contains(&Measure::Accuracy) {
            let accuracy = Metric::share("accuracy", "right", Better::Higher);
            metrics.push(accuracy.clone());
            metrics.extend(by_task_and_language(&accuracy, &self.prompts.asked));
        }
        let wanted = MEANS.iter().filter(|(_, measure)| self.measures.contains(measure));
        metrics.extend(wanted.map(|(name, _)| Metric::share(name, name, Better::Higher)));
        if self.measures.contains(&Measure::Chrf) {
            metrics.push(Metric {
                columns: chrf_columns(),
                of: chrf_of,
                ..Metric::mean("chrf", "", Unit::Share, Better::Higher)
            });
        }
        metrics.extend(manner_metrics());
        metrics
    }
}

fn chrf_columns() -> Vec<String> {
    (0..chrf::COUNTS).map(|part| format!("chrf_{part}")).collect()
}

/// Of the n-grams of all rows together, as sacrebleu has it for a corpus, as a share.
fn chrf_of(sums: &[f64]) -> f64 {
    let mut counts = [0; chrf::COUNTS];
    counts.iter_mut().zip(sums).for_each(|(count, sum)| *count = sum.round() as usize);
    chrf::Statistics::from_counts(&counts).score() / 100.0
}

/// A metric again for each language and each task, where there are several.
pub(crate) fn by_task_and_language(metric: &Metric, asked: &[Asked]) -> Vec<Metric> {
    let languages: Vec<_> = asked.iter().map(|asked| Some(asked.language.code())).collect();
    let tasks: Vec<_> = asked.iter().map(|asked| asked.row.task.as_deref()).collect();
    by_both(metric, &languages, &tasks)
}

/// The same of languages and tasks.
pub(crate) fn by_both(
    metric: &Metric,
    languages: &[Option<&str>],
    tasks: &[Option<&str>],
) -> Vec<Metric> {
    let mut parts = metric.by_parts(languages);
    let tasks = metric.by_parts(tasks);
    // A task may be called as a language is.
    for task in tasks {
        if parts.iter().all(|part| part.name != task.name) {
            parts.push(task);
        }
    }
    parts
}
