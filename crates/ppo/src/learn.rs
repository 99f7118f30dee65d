//! The optimisation on one step's episodes.

use data::batch::{Batcher, Step};
use model::Decoder;
use objectives::{policy_loss, value_loss};
use tch::{Kind, Tensor};
use torch_ext::autograd;
use training::loss::next_token_loss;
use training::settings::Optimizer;
use training::update::{Applied, Updater};
use training::world::World;

use crate::config::{Config, KlPlace};
use crate::experience::Experience;
use crate::models::Models;
use crate::rollout::Minibatch;

/// What moves the models that learn.
pub(crate) struct Updaters {
    pub(crate) world: World,
    pub(crate) policy: Updater,
    /// Of a value function's own trunk.
    pub(crate) value: Option<Updater>,
}

impl Updaters {
    pub(crate) fn new(world: &World, config: &Config, models: &mut Models) -> anyhow::Result<Self> {
        let train = &config.train;
        let rate = config.value.as_ref().and_then(|value| value.learning_rate);
        let of_value = Optimizer {
            learning_rate: rate.unwrap_or(train.optimizer.learning_rate),
            ..train.optimizer.clone()
        };
        let make = |decoder: &mut Decoder, settings: &Optimizer| {
            Updater::new(world, decoder, settings, train.zero_stage)
        };
        Ok(Self {
            world: world.clone(),
            policy: make(&mut models.policy, &train.optimizer)?,
            value: models.value.as_mut().map(|value| make(value, &of_value)).transpose()?,
        })
    }

    /// The policy's, then the value function's.
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Updater> {
        std::iter::once(&mut self.policy).chain(&mut self.value)
    }
}

/// What decides a step beside its episodes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Course {
    /// Of the learning rate.
    pub(crate) factor: f64,
    pub(crate) kl_coef: f64,
    /// Whether only the value function learns.
    pub(crate) warmup: bool,
}

/// Means over the tokens of a minibatch; see [`NAMES`].
const COUNT: usize = 9;

/// What [`learn`] reports of each minibatch, in TRL's names where it has one. The first is what must be finite.
const NAMES: [&str; COUNT] = [
    "loss/total",
    "loss/policy_avg",
    "loss/value_avg",
    "policy/clipfrac_avg",
    "val/clipfrac_avg",
    "policy/approxkl_avg",
    "policy/entropy_avg",
    "val/ratio",
    "policy/first_ratio_gap",
];

/// What a step's optimisation was like.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    minibatches: Vec<[f64; COUNT]>,
    policy_norms: Vec<f64>,
    value_norms: Vec<f64>,
    ptx_losses: Vec<f64>,
    /// Optimiser steps that were skipped because something was not finite.
    pub(crate) skipped: u64,
    stopped_early: bool,
}

impl Learned {
    /// Means over the minibatches, by name.
    pub(crate) fn metrics(&self) -> Vec<(&'static str, f64)> {
        let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len().max(1) as f64;
        let column = |at: usize| self.minibatches.iter().map(|row| row[at]).collect::<Vec<f64>>();
        let mut metrics = Vec::new();
        for (at, name) in NAMES.iter().enumerate() {
            match *name {
                "loss/total" => {}
                // Only the first minibatch meets the policy that sampled.
                "policy/first_ratio_gap" => {
                    metrics.extend(self.minibatches.first().map(|row| (*name, row[at])));
                }
                _ => metrics.push((*name, mean(&column(at)))),
            }
        }
        let ratios = column(7);
        let ratio = mean(&ratios);
        let squares: Vec<f64> = ratios.iter().map(|r| (r - ratio).powi(2)).collect();
        metrics.push(("val/ratio_var", mean(&squares)));
        metrics.push(("policy/grad_norm", mean(&self.policy_norms)));
        if !self.value_norms.is_empty() {
            metrics.push(("val/grad_norm", mean(&self.value_norms)));
        }
        if !self.ptx_losses.is_empty() {
            metrics.push(("loss/ptx", mean(&self.ptx_losses)));
        }
        metrics.push(("policy/stopped_early", if self.stopped_early { 1.0 } else { 0.0 }));
        metrics
    }
}

/// Passes over the minibatches; ends early where the policy has moved too far.
///
/// # Errors
/// libtorch's; data of the pre-training mix that cannot be read; a rank that is gone.
pub(crate) fn learn(
    models: &mut Models,
    updaters: &mut Updaters,
    config: &Config,
    passes: &[Vec<Minibatch>],
    experience: &Experience,
    mix: &mut Option<Batcher>,
    course: Course,
) -> anyhow::Result<Learned> {
    let mut learned = Learned::default();
    for minibatch in passes.iter().flatten() {
        let sums = accumulate(models, updaters, config, minibatch, experience, course)?;
        if let Some(most) = config.ppo.target_kl
            && !learned.minibatches.is_empty()
            && sums.double_value(&[5]) > most
        {
            learned.stopped_early = true;
            models.policy.params_mut().clear_grads()?;
            if let Some(value) = &mut models.value {
                value.params_mut().clear_grads()?;
            }
            break;
        }
        if let (Some(mix), Some(ptx), false) = (mix.as_mut(), &config.ptx, course.warmup)
            && let Some(step) = mix.next_step()?
        {
            let scale = updaters.policy.loss_scale.scale * ptx.coef;
            learned.ptx_losses.push(mix_in(&updaters.world, models, &step, scale)?);
        }
        let row = |values: &[f64]| std::array::from_fn(|at| values[at]);
        let (factor, moves) = (course.factor, !course.warmup || models.value.is_none());
        let mut means = None;
        if moves {
            updaters.policy.sum_gathered(&mut models.policy)?;
            let applied = updaters.policy.apply(&mut models.policy, factor, &sums)?;
            learned.policy_norms.push(applied.grad_norm);
            learned.skipped += u64::from(!applied.finite);
            means = Some(row(&applied.sums));
        }
        if let (Some(value), Some(updater)) = (&mut models.value, &mut updaters.value) {
            updater.sum_gathered(value)?;
            let Applied { grad_norm, finite, sums } = updater.apply(value, factor, &sums)?;
            learned.value_norms.push(grad_norm);
            learned.skipped += u64::from(!finite);
            means = means.or_else(|| Some(row(&sums)));
        }
        learned.minibatches.extend(means);
    }
    Ok(learned)
}

/// Gradients of this rank's part of a minibatch's mean loss; returns the means of [`NAMES`] over all ranks, on the device, fp64.
///
/// Every mean is over the response tokens of the whole minibatch, so how it is cut into micro-batches changes nothing.
fn accumulate(
    models: &mut Models,
    updaters: &Updaters,
    config: &Config,
    minibatch: &Minibatch,
    experience: &Experience,
    course: Course,
) -> anyhow::Result<Tensor> {
    let count = minibatch.num_tokens.max(1) as f64;
    let device = models.policy.device();
    let mut sums = Tensor::zeros([COUNT as i64 - 1], (Kind::Double, device));
    let mut gap = Tensor::zeros([1], (Kind::Double, device));
    for batch in &minibatch.own {
        let of = |lists: &[Vec<f32>]| {
            let numbers = batch.episodes.iter().flat_map(|&episode| lists[episode].iter().copied());
            Tensor::from_slice(&numbers.collect::<Vec<f32>>()).to_device(device)
        };
        let (said, values) = models.policy_and_values(&batch.rows, config.rollout.temperature)?;
        let advantages = of(&experience.advantages);
        let old = of(&experience.logprobs);
        let policy = policy_loss(&said.logprobs, &old, &advantages, config.ppo.clip());
        let entropy = said.entropy.sum(Kind::Float);
        let mut loss = &policy.loss_sum - config.ppo.entropy_coef * &entropy;
        if config.kl.place == KlPlace::Loss {
            let log_ratio = &said.logprobs - of(&experience.reference);
            loss += course.kl_coef * config.kl.estimator.of_tensor(&log_ratio).sum(Kind::Float);
        }
        if course.warmup {
            loss *= 0.0;
        }
        let mut value_sum = Tensor::zeros([], (Kind::Float, device));
        let mut value_clipped = value_sum.shallow_clone();
        if let Some(values) = values {
            let (before, returns) = (of(&experience.values), of(&experience.returns));
            let value = value_loss(&values, &before, &returns, config.ppo.value_clip_range);
            let weighted = config.ppo.value_coef * &value.loss_sum;
            if let (Some(own), Some(updater)) = (&mut models.value, &updaters.value) {
                autograd::backward(&(weighted * (updater.loss_scale.scale / count)))?;
                own.params_mut().gather_grads()?;
            } else {
                loss += weighted;
            }
            (value_sum, value_clipped) = (value.loss_sum, value.clipped);
        }
        if !course.warmup || models.value.is_none() {
            autograd::backward(&(&loss * (updaters.policy.loss_scale.scale / count)))?;
            models.policy.params_mut().gather_grads()?;
        }
        let ratios = policy.ratio.sum(Kind::Float);
        let all = [
            &loss,
            &policy.loss_sum,
            &value_sum,
            &policy.clipped,
            &value_clipped,
            &policy.approx_kl_sum,
            &entropy,
            &ratios,
        ]
        .map(|sum| sum.detach().to_kind(Kind::Double));
        sums += Tensor::stack(&all, 0);
        let furthest = (&policy.ratio - 1.0).abs().max().to_kind(Kind::Double).view(1);
        gap = gap.max_other(&furthest);
    }
    updaters.world.sum(&sums)?;
    updaters.world.max(&gap)?;
    Ok(Tensor::cat(&[sums / count, gap], 0))
}

/// Adds `scale` times the gradient of this rank's part of the mean next-token loss on other data; returns that loss over all
/// ranks.
fn mix_in(world: &World, models: &mut Models, step: &Step, scale: f64) -> anyhow::Result<f64> {
    let share = scale / step.num_targets as f64;
    let mut sum = 0.0;
    for batch in &step.micro_batches[..step.num_counting] {
        let loss = next_token_loss(&models.policy, batch)?;
        autograd::backward(&(&loss.sum * share))?;
        models.policy.params_mut().gather_grads()?;
        sum += f64::try_from(loss.sum.detach())?;
    }
    let all = Tensor::from(sum);
    world.sum(&all)?;
    Ok(f64::try_from(all)? / step.num_targets as f64)
}
