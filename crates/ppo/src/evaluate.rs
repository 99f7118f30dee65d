//! The policy on held-out prompts, beside the reference.

use model::Decoder;
use serde::{Deserialize, Serialize};
use stage::Context;
use training::world::World;

use crate::experience::{Experience, policy_pass, reference_pass, scores};
use crate::models::Models;
use crate::plan::Plan;
use crate::rollout::{Episode, MicroBatch, Minibatch, rollout};

/// Where the random numbers of held-out responses begin, so that they are no training episode's.
const FIRST_EPISODE: u64 = 1 << 62;

/// Means over held-out prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EvalResult {
    /// Mean score.
    pub(crate) score: f64,
    /// Mean KL divergence of a response to the reference, in nats.
    pub(crate) kl: f64,
    /// Of the responses under the reference, over all their tokens: how usual they are to it.
    pub(crate) reference_perplexity: f64,
    /// Mean tokens of a response.
    pub(crate) length: f64,
    /// Share of responses that ended by themselves.
    pub(crate) ended: f64,
    /// How often the response scores higher than the reference's to the same prompt; ties count half.
    pub(crate) win_rate: f64,
    /// Share of responses that the prompts' checkers accept, where all prompts have one.
    pub(crate) accuracy: Option<f64>,
}

impl EvalResult {
    /// Name and value of each, as they are logged.
    pub(crate) fn values(&self) -> Vec<(&'static str, f64)> {
        let mut values = vec![
            ("eval/score", self.score),
            ("eval/kl", self.kl),
            ("eval/reference_perplexity", self.reference_perplexity),
            ("eval/response_length", self.length),
            ("eval/ended", self.ended),
            ("eval/win_rate", self.win_rate),
        ];
        values.extend(self.accuracy.map(|accuracy| ("eval/accuracy", accuracy)));
        values
    }
}

/// What the reference answers, for comparison: it never changes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Baseline {
    scores: Vec<f32>,
    accuracy: Option<f64>,
}

impl Baseline {
    /// Mean score and accuracy by rule.
    pub(crate) fn summary(&self) -> (f64, Option<f64>) {
        (mean(self.scores.iter().map(|score| f64::from(*score))), self.accuracy)
    }

    /// Standard deviation of the scores.
    pub(crate) fn deviation(&self) -> f64 {
        objectives::mean_and_deviation(self.scores.iter().copied()).1
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

/// Lets the reference answer the held-out prompts.
///
/// # Errors
/// libtorch's; a signal.
pub(crate) fn baseline(
    ctx: &Context,
    world: &World,
    plan: &Plan,
    models: &Models,
) -> anyhow::Result<Baseline> {
    let Answers { episodes, scores, .. } = answers(ctx, world, plan, models, &models.reference)?;
    Ok(Baseline { scores, accuracy: accuracy(plan, &episodes) })
}

/// Lets the policy answer the held-out prompts, and compares.
///
/// # Errors
/// libtorch's; a signal.
pub(crate) fn evaluate(
    ctx: &Context,
    world: &World,
    plan: &Plan,
    models: &Models,
    baseline: &Baseline,
) -> anyhow::Result<EvalResult> {
    let Answers { episodes, own, scores } = answers(ctx, world, plan, models, &models.policy)?;
    let batches: Vec<&MicroBatch> = own.iter().collect();
    let temperature = plan.config.rollout.temperature;
    let mut experience = Experience::new(episodes.len());
    experience.scores = scores;
    policy_pass(models, &batches, temperature, &mut experience)?;
    reference_pass(models, &batches, temperature, &mut experience.reference)?;
    experience.exchange(world, &episodes)?;
    let wins = experience
        .scores
        .iter()
        .zip(&baseline.scores)
        .map(|(own, other)| if own == other { 0.5 } else { f64::from(own > other) });
    let surprise =
        mean(experience.reference.concat().into_iter().map(|logprob| -f64::from(logprob)));
    Ok(EvalResult {
        score: mean(experience.scores.iter().map(|score| f64::from(*score))),
        kl: mean((0..episodes.len()).map(|episode| experience.log_ratios(episode).sum())),
        reference_perplexity: surprise.exp(),
        length: mean(episodes.iter().map(|episode| episode.ids.len() as f64)),
        ended: mean(episodes.iter().map(|episode| f64::from(episode.ended))),
        win_rate: mean(wins.collect::<Vec<f64>>().into_iter()),
        accuracy: accuracy(plan, &episodes),
    })
}

/// What a model answered to the held-out prompts.
struct Answers {
    episodes: Vec<Episode>,
    /// This rank's micro-batches of them.
    own: Vec<MicroBatch>,
    scores: Vec<f32>,
}

fn answers(
    ctx: &Context,
    world: &World,
    plan: &Plan,
    models: &Models,
    decoder: &Decoder,
) -> anyhow::Result<Answers> {
    ctx.check_interrupt()?;
    let all: Vec<usize> = (0..plan.validation.len()).collect();
    let settings = crate::config::Rollout { samples_per_prompt: 1, ..plan.config.rollout.clone() };
    let numbers = (ctx.seed, FIRST_EPISODE);
    let (tokenizer, prompts) = (&plan.tokenizer, &plan.validation);
    let episodes = rollout(world, decoder, tokenizer, prompts, &all, &settings, numbers)?;
    let groups: Vec<_> = (0..episodes.len()).map(|episode| episode..episode + 1).collect();
    let most = plan.config.train.micro_batch_tokens;
    let own = Minibatch::new(&groups, &episodes, prompts, most, world.share()).own;
    let batches: Vec<&MicroBatch> = own.iter().collect();
    let scores = scores(world, models, plan, prompts, &episodes, &batches)?;
    Ok(Answers { episodes, own, scores })
}

fn accuracy(plan: &Plan, episodes: &[Episode]) -> Option<f64> {
    let right = episodes.iter().map(|episode| {
        let checker = plan.validation[episode.prompt].checker.as_ref()?;
        Some(f64::from(checker.check(&episode.text)))
    });
    let right: Option<Vec<f64>> = right.collect();
    right.filter(|right| !right.is_empty()).map(|right| mean(right.into_iter()))
}
