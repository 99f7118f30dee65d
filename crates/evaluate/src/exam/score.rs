//! Answers scored by a reward model, and how often they score higher than another model's.

use std::path::PathBuf;

use artifact::evaluation::{Better, Unit};
use model::Decoder;
use stage::{Context, Problems};
use training::branches;

use super::Sitting;
use crate::asked::{Asked, Manner, Prompts};
use crate::config::Score;
use crate::outcome::{Answer, Metric, Outcome, manner_metrics};
use crate::subject::Subject;

/// The requests, and who scores the answers.
pub(crate) struct Work {
    pub(crate) prompts: Prompts,
    pub(crate) judge: Subject,
    baseline: Option<String>,
}

impl Work {
    pub(crate) fn plan(
        key: &str,
        table: Score,
        batch_rows: usize,
        takers: &[&Subject],
        problems: &mut Problems,
    ) -> Option<Self> {
        let Score { prompts, reward_model, baseline, max_items, max_new_tokens, temperature } =
            table;
        let manner = Manner { max_new_tokens, temperature, batch_rows };
        let reward = format!("{key}.reward_model");
        let judge = Subject::judge(&reward, reward_model, problems);
        let prompts = Prompts::plan(key, (prompts, max_items), manner, takers, problems);
        if let Some(baseline) = &baseline {
            problems.check(
                takers.iter().any(|subject| subject.name == *baseline),
                &format!("{key}.baseline"),
                format_args!("`{baseline}` is no model that takes this test"),
            );
        }
        let (judge, prompts) = (judge?, prompts?);
        let unreadable = prompts.asked.iter().find_map(|asked| judge.prompt_ids(asked).err());
        if let Some(error) = unreadable {
            problems.push(reward, error);
        }
        Some(Self { prompts, judge, baseline })
    }

    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        self.prompts.inputs()
    }

    pub(crate) fn baseline(&self) -> Option<&str> {
        self.baseline.as_deref()
    }

    /// # Errors
    /// libtorch's; a signal.
    pub(crate) fn run(&self, sitting: &Sitting<'_>) -> anyhow::Result<Outcome> {
        Ok(self.prompts.answer(sitting)?.without_ids())
    }

    /// Scores the answers. A prompt with its answer is rendered by the reward model's own template; an answer that was cut off
    /// is not given an end. What is longer than the reward model's context has no score.
    ///
    /// # Errors
    /// libtorch's; a signal.
    pub(crate) fn score(
        &self,
        ctx: &Context,
        reward: &Decoder,
        outcome: &mut Outcome,
        batch_tokens: usize,
    ) -> anyhow::Result<()> {
        let ids = |(asked, answer): (&Asked, &Answer)| {
            let mut ids = self.judge.prompt_ids(asked)?;
            ids.extend(self.judge.response_ids(&answer.text, answer.ended)?);
            anyhow::Ok(ids)
        };
        let texts: Vec<Vec<i64>> = self
            .prompts
            .asked
            .iter()
            .zip(&outcome.answers)
            .map(ids)
            .collect::<anyhow::Result<_>>()?;
        let done = |_| Ok(ctx.check_interrupt()?);
        let scores = branches::text_scores(reward, &texts, batch_tokens, done)?;
        outcome.columns.remove("score");
        for (answer, score) in outcome.answers.iter_mut().zip(&scores) {
            answer.score = score.map(f64::from);
        }
        for score in scores {
            outcome.push("score", score.map(f64::from));
        }
        Ok(())
    }

    pub(crate) fn metrics() -> Vec<Metric> {
        let mut metrics = vec![
            Metric::mean("score", "score", Unit::Score, Better::Higher),
            Metric::share("win_rate", "win", Better::Higher),
        ];
        metrics.extend(manner_metrics());
        metrics
    }
}

impl Outcome {
    /// Compares scored answers with those of a baseline: 1 where they score higher, 1/2 where as high.
    pub(crate) fn compare(&mut self, baseline: &Self) {
        let both = self.answers.iter().zip(&baseline.answers);
        let wins = both.map(|(own, other)| Some(against(own.score?, other.score?))).collect();
        self.columns.insert("win".to_owned(), wins);
    }
}

/// 1 for more, 1/2 for as much, 0 for less.
pub(crate) fn against(own: f64, other: f64) -> f64 {
    if own == other { 0.5 } else { f64::from(own > other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_is_half_a_win() {
        let scored = |scores: &[Option<f64>]| Outcome {
            answers: scores.iter().map(|&score| Answer { score, ..Answer::default() }).collect(),
            ..Outcome::default()
        };
        let mut own = scored(&[Some(2.0), Some(1.0), Some(-1.0), None, Some(0.0)]);
        own.compare(&scored(&[Some(1.0), Some(1.0), Some(0.0), Some(0.0), None]));
        assert_eq!(own.columns["win"], [Some(1.0), Some(0.5), Some(0.0), None, None]);
    }
}
