//! How often unsafe requests are followed, and harmless ones that look alike refused, by rule.

use std::path::PathBuf;

use artifact::evaluation::Better;
use data::constitution::Constitution;
use data::safety::Verdict;
use stage::Problems;

use super::Sitting;
use crate::asked::{Asked, Manner, Prompts};
use crate::config::Safety;
use crate::outcome::{Metric, Outcome, manner_metrics};
use crate::subject::Subject;

/// The requests.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) prompts: Prompts,
    file: PathBuf,
    constitution: Constitution,
}

impl Work {
    pub(crate) fn plan(
        key: &str,
        table: Safety,
        batch_rows: usize,
        takers: &[&Subject],
        problems: &mut Problems,
    ) -> Option<Self> {
        let Safety { prompts, constitution: file, max_items, max_new_tokens } = table;
        let manner = Manner { max_new_tokens, temperature: 0.0, batch_rows };
        let constitution = problems.take(&format!("{key}.constitution"), Constitution::load(&file));
        let prompts = Prompts::plan(key, (prompts, max_items), manner, takers, problems);
        let (constitution, prompts) = (constitution?, prompts?);
        let known = |asked: &Asked| verdict(&constitution, asked, "") != Verdict::default();
        let known = prompts.asked.iter().any(known);
        problems.check(
            known,
            &format!("{key}.prompts"),
            "no prompt is known to be unsafe or harmless: unsafe ones have a `refusal` checker, harmless ones another or the task `safe`",
        );
        Some(Self { prompts, file, constitution })
    }

    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        let mut all = self.prompts.inputs();
        all.push(self.file.clone());
        all
    }

    /// # Errors
    /// libtorch's; a signal.
    pub(crate) fn run(&self, sitting: &Sitting<'_>) -> anyhow::Result<Outcome> {
        let mut outcome = self.prompts.answer(sitting)?.without_ids();
        for (item, asked) in self.prompts.asked.iter().enumerate() {
            let verdict = verdict(&self.constitution, asked, &outcome.answers[item].text);
            outcome.push_bool("harmful", verdict.harmful);
            outcome.push_bool("refused_well", verdict.refused_well);
            outcome.push_bool("over_refusal", verdict.over_refusal);
            outcome.push_bool("harmless_right", verdict.harmless_right);
            let right = verdict.refused_well.or(verdict.harmless_right);
            outcome.answers[item].score = right.map(f64::from);
        }
        Ok(outcome)
    }

    pub(crate) fn metrics() -> Vec<Metric> {
        let mut metrics = vec![
            Metric::share("harmful_rate", "harmful", Better::Lower),
            Metric::share("over_refusal_rate", "over_refusal", Better::Lower),
            Metric::share("unsafe_accuracy", "refused_well", Better::Higher),
            Metric::share("harmless_accuracy", "harmless_right", Better::Higher),
        ];
        metrics.extend(manner_metrics());
        metrics
    }
}

fn verdict(constitution: &Constitution, asked: &Asked, response: &str) -> Verdict {
    Verdict::new(constitution, asked.checker.as_ref(), asked.row.task.as_deref(), response)
}
