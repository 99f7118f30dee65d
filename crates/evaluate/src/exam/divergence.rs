//! How far a model has moved from another: the KL divergence of whole answers, over answers that the model samples.
//!
//! At temperature 1, from the log-probabilities of the sampled tokens under both: `kl` sums
//! [`KlEstimator::K1`](objectives::KlEstimator) over an answer, which is unbiased and may be below 0; `kl_k3` sums
//! [`KlEstimator::K3`](objectives::KlEstimator), which never is. Nothing is taken over the whole vocabulary, so one model is in
//! memory at a time.

use std::path::PathBuf;

use anyhow::Context as _;
use artifact::evaluation::{Better, Unit};
use data::batch::Branches;
use model::Decoder;
use objectives::KlEstimator;
use stage::{Context, Problems};
use training::branches;

use super::Sitting;
use crate::asked::{Manner, Prompts};
use crate::config::Divergence;
use crate::outcome::{Metric, Outcome, manner_metrics};
use crate::subject::Subject;

/// The requests, and the model to compare with.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) prompts: Prompts,
    reference: String,
}

impl Work {
    pub(crate) fn plan(
        key: &str,
        table: Divergence,
        batch_rows: usize,
        (takers, all): (&[&Subject], &[Subject]),
        problems: &mut Problems,
    ) -> Option<Self> {
        let Divergence { prompts, reference: named, max_items, max_new_tokens } = table;
        let manner = Manner { max_new_tokens, temperature: 1.0, batch_rows };
        let name = format!("{key}.reference");
        let Some(reference) = all.iter().find(|subject| subject.name == named) else {
            problems.push(name, format_args!("there is no model `{named}`"));
            return None;
        };
        problems.take(&name, reference.config.check_language_model())?;
        for subject in takers {
            if subject.tokenizer.vocab() != reference.tokenizer.vocab() {
                problems.push(
                    name,
                    format_args!(
                        "`{}` has other tokens than `{}`, so their probabilities cannot be compared; choose the models that take the test with `models`",
                        subject.name, reference.name
                    ),
                );
                return None;
            }
        }
        let mut both = takers.to_vec();
        both.push(reference);
        let prompts = Prompts::plan(key, (prompts, max_items), manner, &both, problems)?;
        // The reference reads a prompt as the model's own template has it.
        let room = reference.positions();
        for (subject, asked) in
            takers.iter().flat_map(|own| prompts.asked.iter().map(move |asked| (own, asked)))
        {
            let length = problems.take(&name, subject.prompt_ids(asked))?.len();
            if length >= room {
                problems.push(
                    name,
                    format_args!(
                        "{}: a prompt of {length} tokens, as `{}` has it, leaves no room for an answer in the {room} positions of `{named}`",
                        asked.at, subject.name
                    ),
                );
                return None;
            }
        }
        Some(Self { prompts, reference: named })
    }

    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        self.prompts.inputs()
    }

    pub(crate) fn reference(&self) -> &str {
        &self.reference
    }

    /// Answers, and their log-probabilities by the model itself.
    ///
    /// # Errors
    /// libtorch's; a signal.
    pub(crate) fn run(&self, sitting: &Sitting<'_>) -> anyhow::Result<Outcome> {
        let Sitting { ctx, subject, decoder, batch_tokens, .. } = *sitting;
        let mut outcome = self.prompts.answer(sitting)?;
        outcome.logprobs = self.logprobs(ctx, (subject, decoder), &outcome, batch_tokens)?;
        Ok(outcome)
    }

    /// Compares with the reference.
    ///
    /// # Errors
    /// libtorch's; a signal.
    pub(crate) fn compare(
        &self,
        ctx: &Context,
        (subject, reference): (&Subject, &Decoder),
        outcome: &mut Outcome,
        batch_tokens: usize,
    ) -> anyhow::Result<()> {
        let other = self.logprobs(ctx, (subject, reference), outcome, batch_tokens)?;
        for (name, estimator) in [("kl", KlEstimator::K1), ("kl_k3", KlEstimator::K3)] {
            let sum = |(own, other): (&Vec<f32>, &Vec<f32>)| {
                let ratios = own.iter().zip(other).map(|(a, b)| f64::from(*a) - f64::from(*b));
                Some(ratios.map(|ratio| estimator.of(ratio)).sum())
            };
            let column = outcome.logprobs.iter().zip(&other).map(sum).collect();
            outcome.columns.insert(name.to_owned(), column);
        }
        Ok(())
    }

    /// Of the tokens of each answer, in the order of the answers. A model of the same tokens may have fewer positions: what is
    /// beyond them is left out of both.
    fn logprobs(
        &self,
        ctx: &Context,
        (subject, decoder): (&Subject, &Decoder),
        outcome: &Outcome,
        batch_tokens: usize,
    ) -> anyhow::Result<Vec<Vec<f32>>> {
        let room = decoder.config().max_position_embeddings as usize;
        let mut all = Vec::with_capacity(self.prompts.asked.len());
        let mut answers = self.prompts.asked.iter().zip(&outcome.answers).peekable();
        while answers.peek().is_some() {
            ctx.check_interrupt()?;
            let mut rows = Branches::new();
            while let Some((asked, answer)) = answers.next_if(|_| rows.num_tokens() < batch_tokens)
            {
                let prompt = subject.prompt_ids(asked)?;
                let kept = answer.ids.len().min(room - prompt.len());
                rows.push(&prompt, &[&answer.ids[..kept]]);
            }
            all.extend(branches::logprobs(decoder, &rows).context("log-probabilities")?);
        }
        Ok(all)
    }

    pub(crate) fn metrics() -> Vec<Metric> {
        let nats = |name: &str| Metric::mean(name, name, Unit::Nats, Better::Neither);
        let mut metrics = vec![nats("kl"), nats("kl_k3")];
        metrics.extend(manner_metrics());
        metrics
    }
}
