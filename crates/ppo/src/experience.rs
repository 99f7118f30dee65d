//! What a step learns from: log-probabilities, values, scores, rewards and advantages of its episodes.

use anyhow::Context as _;
use objectives::{gae, grpo, mean_and_deviation, rloo, whiten};
use tch::Tensor;
use training::branches;
use training::prompts::Prompt;
use training::world::World;

use crate::config::{Advantage, Config, KlPlace, Reward};
use crate::models::Models;
use crate::plan::Plan;
use crate::rollout::{Episode, MicroBatch};

/// Numbers of each episode, in the order of the episodes.
#[derive(Debug, Default)]
pub(crate) struct Experience {
    /// Of each token under the policy that sampled it, by the forward pass that training uses.
    pub(crate) logprobs: Vec<Vec<f32>>,
    /// Of each token under the reference.
    pub(crate) reference: Vec<Vec<f32>>,
    /// Of the state before each token; empty without a value function.
    pub(crate) values: Vec<Vec<f32>>,
    /// Of each response.
    pub(crate) scores: Vec<f32>,
    /// Of each token.
    pub(crate) advantages: Vec<Vec<f32>>,
    /// Of each token; empty without a value function.
    pub(crate) returns: Vec<Vec<f32>>,
    /// Summed KL penalty of each response as it is in its rewards.
    pub(crate) penalties: Vec<f32>,
}

/// Cuts `[N]` numbers into those of each response of `batch` and puts them to their episodes.
fn spread(numbers: &Tensor, batch: &MicroBatch, into: &mut [Vec<f32>]) -> anyhow::Result<()> {
    let numbers: Vec<f32> = Vec::try_from(numbers)?;
    let mut rest = numbers.as_slice();
    for (&episode, response) in batch.episodes.iter().zip(&batch.rows.responses) {
        let (own, others) = rest.split_at(response.len());
        into[episode] = own.to_vec();
        rest = others;
    }
    Ok(())
}

/// Log-probabilities and values of the policy as it is.
///
/// # Errors
/// libtorch's.
pub(crate) fn policy_pass(
    models: &Models,
    batches: &[&MicroBatch],
    temperature: f64,
    experience: &mut Experience,
) -> anyhow::Result<()> {
    for batch in batches {
        let (said, values) = tch::no_grad(|| models.policy_and_values(&batch.rows, temperature))?;
        spread(&said.logprobs, batch, &mut experience.logprobs)?;
        if let Some(values) = values {
            spread(&values, batch, &mut experience.values)?;
        }
    }
    Ok(())
}

/// Log-probabilities of the reference.
///
/// # Errors
/// libtorch's.
pub(crate) fn reference_pass(
    models: &Models,
    batches: &[&MicroBatch],
    temperature: f64,
    reference: &mut [Vec<f32>],
) -> anyhow::Result<()> {
    for batch in batches {
        let said =
            tch::no_grad(|| branches::responses(&models.reference, &batch.rows, temperature))?;
        spread(&said.logprobs, batch, reference)?;
    }
    Ok(())
}

/// The score of every episode: the reward model's and the rules', with what is taken off for how a response ended. The model
/// scores this rank's batches, and the ranks tell each other.
///
/// # Errors
/// A score that is not finite; libtorch's; a rank that is gone.
pub(crate) fn scores(
    world: &World,
    models: &Models,
    plan: &Plan,
    prompts: &[Prompt],
    episodes: &[Episode],
    batches: &[&MicroBatch],
) -> anyhow::Result<Vec<f32>> {
    let Reward { normalize, clip, .. } = plan.config.reward;
    let mut all = vec![0.0_f64; episodes.len()];
    if let Some(model) = &models.reward {
        let (mean, deviation) = if normalize {
            model.config().score_statistics.context("the reward model has no statistics")?
        } else {
            (0.0, 1.0)
        };
        for batch in batches {
            let scores = tch::no_grad(|| branches::scores(model, &batch.rows))?;
            for (&episode, score) in batch.episodes.iter().zip(Vec::<f32>::try_from(scores)?) {
                anyhow::ensure!(score.is_finite(), "the reward model's score is not finite");
                let score = (f64::from(score) - mean) / deviation;
                all[episode] = clip.map_or(score, |most| score.clamp(-most, most));
            }
        }
        // What is another rank's is 0 here.
        let sums = Tensor::from_slice(&all);
        world.sum(&sums)?;
        all = Vec::try_from(sums)?;
    }
    for (episode, score) in episodes.iter().zip(&mut all) {
        let checker = prompts[episode.prompt].checker.as_ref();
        for (rule, weight) in &plan.rules {
            *score += weight * rule.score(&episode.text, checker);
        }
        *score = ending(&plan.config.reward, *score, episode);
    }
    Ok(all.into_iter().map(|score| score as f32).collect())
}

/// What is taken off a score for how the response ended, and for its length.
pub(crate) fn ending(reward: &Reward, score: f64, episode: &Episode) -> f64 {
    let mut score = score;
    if !episode.ended {
        score = reward.missing_eos_score.unwrap_or(score);
        score -= reward.missing_eos_penalty.unwrap_or(0.0);
    }
    score - reward.length_penalty * episode.ids.len() as f64
}

impl Experience {
    /// Room for so many episodes.
    pub(crate) fn new(episodes: usize) -> Self {
        let lists = || vec![Vec::new(); episodes];
        Self {
            logprobs: lists(),
            reference: lists(),
            values: lists(),
            scores: vec![0.0; episodes],
            advantages: lists(),
            returns: lists(),
            penalties: vec![0.0; episodes],
        }
    }

    /// Completes what the passes over this rank's batches have left with what the others' have.
    ///
    /// # Errors
    /// A rank that is gone.
    pub(crate) fn exchange(&mut self, world: &World, episodes: &[Episode]) -> anyhow::Result<()> {
        if !world.is_shared() {
            return Ok(());
        }
        let lengths: Vec<usize> = episodes.iter().map(|episode| episode.ids.len()).collect();
        let total: usize = lengths.iter().sum();
        for lists in [&mut self.logprobs, &mut self.reference, &mut self.values] {
            // Of each token, after how many ranks have told; what is another's is 0 here.
            let mut own = Vec::with_capacity(total + 1);
            for (list, &length) in lists.iter().zip(&lengths) {
                own.extend((0..length).map(|at| list.get(at).copied().unwrap_or(0.0)));
            }
            own.push(if lists.iter().any(|list| !list.is_empty()) { 1.0 } else { 0.0 });
            let all = Tensor::from_slice(&own);
            world.sum(&all)?;
            let all: Vec<f32> = Vec::try_from(all)?;
            // There is no value function.
            if all.last() == Some(&0.0) {
                continue;
            }
            let mut rest = all.as_slice();
            for (list, &length) in lists.iter_mut().zip(&lengths) {
                let (numbers, others) = rest.split_at(length);
                *list = numbers.to_vec();
                rest = others;
            }
        }
        Ok(())
    }

    /// `log policy - log reference` of each token of an episode.
    pub(crate) fn log_ratios(&self, episode: usize) -> impl Iterator<Item = f64> + '_ {
        let both = self.logprobs[episode].iter().zip(&self.reference[episode]);
        both.map(|(policy, reference)| f64::from(*policy) - f64::from(*reference))
    }

    /// Rewards, advantages and returns from log-probabilities, values and scores.
    pub(crate) fn judge(&mut self, config: &Config, kl_coef: f64) {
        let mut rewards = self.rewards(config, kl_coef);
        let Config { ppo, rollout, .. } = config;
        if ppo.whiten_rewards {
            whiten(&mut rewards, false);
        }
        if ppo.advantage == Advantage::Gae {
            for (episode, rewards) in rewards.iter().enumerate() {
                let values = &self.values[episode];
                (self.advantages[episode], self.returns[episode]) =
                    gae(rewards, values, ppo.gamma, ppo.gae_lambda);
            }
            if ppo.whiten_advantages {
                whiten(&mut self.advantages, true);
            }
            return;
        }
        let totals: Vec<f32> = rewards.iter().map(|rewards| rewards.iter().sum()).collect();
        let group = rollout.samples_per_prompt;
        let of_responses = match ppo.advantage {
            Advantage::Rloo => rloo(&totals, group),
            Advantage::Gae | Advantage::Grpo => grpo(&totals, group, ppo.scale_rewards),
        };
        for (episode, advantage) in of_responses.into_iter().enumerate() {
            self.advantages[episode] = vec![advantage; self.logprobs[episode].len()];
        }
    }

    /// The reward of each token: the KL penalty, where it goes there, and at the last token the score.
    ///
    /// # Deviations
    /// TRL puts the score behind the end-of-sequence token; it is at that token here, or at the last one of a response that
    /// was cut off, so that no index lies outside the response.
    fn rewards(&mut self, config: &Config, kl_coef: f64) -> Vec<Vec<f32>> {
        let coef = if config.kl.place == KlPlace::Reward { kl_coef } else { 0.0 };
        let mut all = Vec::with_capacity(self.scores.len());
        for episode in 0..self.scores.len() {
            let penalty = |log_ratio| -coef * config.kl.estimator.of(log_ratio);
            let penalties: Vec<f64> = self.log_ratios(episode).map(penalty).collect();
            self.penalties[episode] = penalties.iter().sum::<f64>() as f32;
            let mut rewards: Vec<f32> = penalties.into_iter().map(|x| x as f32).collect();
            if let Some(last) = rewards.last_mut() {
                *last += self.scores[episode];
            }
            all.push(rewards);
        }
        all
    }

    /// TRL's `objective/*` metrics, and a few more.
    pub(crate) fn metrics(&self, episodes: &[Episode]) -> Vec<(&'static str, f64)> {
        let count = episodes.len().max(1) as f64;
        let mean = |of: &dyn Fn(usize) -> f64| (0..episodes.len()).map(of).sum::<f64>() / count;
        let tokens: usize = episodes.iter().map(|episode| episode.ids.len()).sum();
        let kl = mean(&|e| self.log_ratios(e).sum());
        let entropy = mean(&|e| self.logprobs[e].iter().map(|l| -f64::from(*l)).sum());
        let scores = mean(&|e| f64::from(self.scores[e]));
        let penalty = mean(&|e| f64::from(self.penalties[e]));
        let gap = |e: usize| {
            let both = episodes[e].sampled.iter().zip(&self.logprobs[e]);
            both.map(|(sampled, trained)| f64::from((sampled - trained).abs())).sum::<f64>()
        };
        let (_, deviation) = mean_and_deviation(self.scores.iter().copied());
        let ended = episodes.iter().filter(|episode| episode.ended).count() as f64;
        let mut metrics = vec![
            ("objective/kl", kl),
            ("objective/kl_per_token", kl * count / tokens.max(1) as f64),
            ("objective/entropy", entropy),
            ("objective/non_score_reward", penalty),
            ("objective/rlhf_reward", scores + penalty),
            ("objective/scores", scores),
            ("objective/scores_std", deviation),
            ("objective/response_length", tokens as f64 / count),
            ("objective/truncated", 1.0 - ended / count),
            ("objective/logprob_gap", mean(&gap) * count / tokens.max(1) as f64),
            ("val/num_eos_tokens", ended),
        ];
        if let Some(explained) = self.explained_variance() {
            metrics.push(("val/explained_variance", explained));
        }
        metrics
    }

    /// The share of the returns' variance that the values explain.
    fn explained_variance(&self) -> Option<f64> {
        let returns = self.returns.iter().flatten().copied();
        let errors = self.returns.iter().flatten().zip(self.values.iter().flatten());
        let (_, deviation) = mean_and_deviation(returns);
        let (_, error) = mean_and_deviation(errors.map(|(r, v)| r - v));
        (deviation > 0.0).then(|| 1.0 - (error / deviation).powi(2))
    }
}
