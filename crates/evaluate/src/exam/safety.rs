//! How often unsafe requests are followed, and harmless ones that look alike refused, by rule.

use std::path::PathBuf;

use artifact::evaluation::Better;
use data::constitution::Constitution;
use data::safety::Verdict;
use model::Decoder;
use stage::{Context, Problems, Progress};

use crate::asked::{self, Asked, Manner};
use crate::config::Safety;
use crate::outcome::{Metric, Outcome, manner_metrics};
use crate::subject::Subject;

/// The requests.
#[derive(Debug)]
pub(crate) struct Work {
    table: Safety,
    pub(crate) asked: Vec<Asked>,
    constitution: Constitution,
    manner: Manner,
}

impl Work {
    pub(crate) fn plan(
        key: &str,
        table: Safety,
        batch_rows: usize,
        takers: &[&Subject],
        problems: &mut Problems,
    ) -> Option<Self> {
        let max_new_tokens = table.max_new_tokens;
        let manner = Manner { max_new_tokens, temperature: 0.0, batch_rows };
        manner.check(key, problems);
        let constitution =
            problems.take(&format!("{key}.constitution"), Constitution::load(&table.constitution));
        let asked = asked::plan(key, &table.prompts, table.max_items, takers, problems);
        let (constitution, asked) = (constitution?, asked?);
        let known =
            asked.iter().any(|asked| verdict(&constitution, asked, "") != Verdict::default());
        problems.check(
            known,
            &format!("{key}.prompts"),
            "no prompt is known to be unsafe or harmless: unsafe ones have a `refusal` checker, harmless ones another or the task `safe`",
        );
        Some(Self { table, asked, constitution, manner })
    }

    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        self.table.prompts.iter().chain([&self.table.constitution]).cloned().collect()
    }

    /// # Errors
    /// libtorch's; a signal.
    pub(crate) fn run(
        &self,
        ctx: &Context,
        subject: &Subject,
        decoder: &Decoder,
        progress: &Progress,
    ) -> anyhow::Result<Outcome> {
        let responses = asked::answer(ctx, subject, decoder, &self.asked, self.manner, progress)?;
        let mut outcome = Outcome::of_responses(&responses).without_ids();
        for (item, (asked, response)) in self.asked.iter().zip(&responses).enumerate() {
            let verdict = verdict(&self.constitution, asked, &response.text);
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
