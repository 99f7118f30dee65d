//! The loop: sample, score, learn; and all that a run needs to go on as if it had never stopped.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use artifact::columns::{PROMPT, RESPONSE, SCORE, STEP};
use artifact::rows::{Cell, Column, Kind, TableWriter};
use data::batch::{BatchConfig, BatchSize, Batcher};
use data::dataset::{Cursor, Order, TokenDataset};
use model::weights::write_tensors;
use objectives::adapt_kl_coef;
use serde::{Deserialize, Serialize};
use serde_json::json;
use stage::{Context, ErrorExt as _, Interrupted, Results};
use training::checkpoint;
use training::optimizer::LossScale;
use training::world::World;

use crate::config::KlCoef;
use crate::evaluate::{Baseline, EvalResult, baseline, evaluate};
use crate::experience::{Experience, policy_pass, reference_pass, scores};
use crate::learn::{Course, Learned, Updaters, learn};
use crate::models::Models;
use crate::plan::Plan;
use crate::rollout::{Episode, MicroBatch, PromptCursor, minibatches, rollout};

const VALUE: &str = "value.safetensors";
const OPTIMIZER: &str = "optimizer";
const VALUE_OPTIMIZER: &str = "value_optimizer";

/// Steps in a row that may go wrong.
const MAX_SKIPPED: u64 = 10;

/// All that decides the rest of a run, beside weights and optimisers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    step: u64,
    episode: u64,
    prompts: PromptCursor,
    mix: Option<Cursor>,
    kl_coef: f64,
    policy_scale: Option<LossScale>,
    value_scale: Option<LossScale>,
    skipped_in_a_row: u64,
    skipped_steps: u64,
    samples: Vec<Sample>,
    baseline: Option<Baseline>,
    evaluated_at: Option<u64>,
    first_eval: Option<EvalResult>,
    last_eval: Option<EvalResult>,
    best: Option<(u64, EvalResult)>,
    /// Why it ended before its last step.
    stopped: Option<String>,
    /// Of the last step.
    objective: BTreeMap<String, f64>,
}

/// A response for the eye.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sample {
    step: u64,
    prompt: String,
    response: String,
    score: f32,
}

/// Trains the policy to the end of the plan, going on from the newest checkpoint where there is one; returns what the manifest
/// reports. With `keep_best` it then has the weights of the best evaluation, else the last ones.
///
/// # Errors
/// Data that cannot be read; a checkpoint of another run; a loss that is not finite again and again; no space for a checkpoint;
/// a signal, after saving; a rank that is gone.
pub(crate) fn train(
    ctx: &mut Context,
    world: &World,
    plan: &Plan,
    models: &mut Models,
) -> anyhow::Result<Results> {
    let mut run = Run::start(ctx, world, plan, models)?;
    loop {
        run.between_steps()?;
        if run.is_done() {
            return run.finish();
        }
        run.step()?;
    }
}

struct Run<'a> {
    ctx: &'a mut Context,
    world: &'a World,
    plan: &'a Plan,
    models: &'a mut Models,
    updaters: Updaters,
    mix: Option<Batcher>,
    state: State,
    saved_at: Option<u64>,
}

impl<'a> Run<'a> {
    fn start(
        ctx: &'a mut Context,
        world: &'a World,
        plan: &'a Plan,
        models: &'a mut Models,
    ) -> anyhow::Result<Self> {
        // From here on the first rank has made the run directory what it is to be.
        world.begin(ctx)?;
        tch::manual_seed(ctx.seed as i64);
        let train = &plan.config.train;
        let mut mix = plan.config.ptx.as_ref().map(|ptx| {
            let order = Order::Shuffled { seed: ctx.seed };
            let rows = TokenDataset::with_order(&ptx.data, order, None)?;
            let size = BatchSize::Tokens(ptx.batch_tokens);
            let config = BatchConfig { size, micro_batch_tokens: train.micro_batch_tokens };
            anyhow::Ok(Batcher::new(rows, config).shared(world.share()))
        });
        let mut mix = mix.take().transpose()?;
        let mut updaters = Updaters::new(world, &plan.config, models)?;
        let initial = match plan.config.kl.coef {
            KlCoef::Fixed(coef) => coef,
            KlCoef::Adaptive { initial, .. } => initial,
        };
        let mut state = State { kl_coef: initial, ..State::default() };
        let mut saved_at = None;
        if let Some(resumed) = checkpoint::resume::<State>(ctx, models.policy.device())? {
            let path = &resumed.path;
            load(models, &mut updaters, path).hint(checkpoint::DAMAGED)?;
            (state, saved_at) = (resumed.state, Some(resumed.step));
            if let (Some(mix), Some(cursor)) = (&mut mix, state.mix) {
                mix.seek(cursor)?;
            }
            let saved = [state.policy_scale, state.value_scale];
            for (updater, saved) in updaters.all_mut().zip(saved) {
                updater.loss_scale = saved.unwrap_or(updater.loss_scale);
            }
        }
        checkpoint::same_in_all(ctx, world, saved_at)?;
        world.share_weights(models.policy.params_mut())?;
        if let Some(value) = &mut models.value {
            world.share_weights(value.params_mut())?;
        }
        ctx.metrics.begin(saved_at)?;
        ctx.metrics.start_progress(train.steps, state.step);
        Ok(Self { ctx, world, plan, models, updaters, mix, state, saved_at })
    }

    fn is_done(&self) -> bool {
        self.state.step >= self.plan.config.train.steps || self.state.stopped.is_some()
    }

    /// Samples responses, scores them, and learns from them.
    fn step(&mut self) -> anyhow::Result<()> {
        let (plan, config) = (self.plan, &self.plan.config);
        let mut clock = Clock::start();
        let seed = self.ctx.seed;
        let count = config.rollout.prompts_per_step;
        let chosen = self.state.prompts.take(count, plan.prompts.len(), seed);
        let numbers = (seed, self.state.episode);
        let (policy, tokenizer) = (&self.models.policy, &plan.tokenizer);
        let episodes = rollout(
            self.world,
            policy,
            tokenizer,
            &plan.prompts,
            &chosen,
            &config.rollout,
            numbers,
        )?;
        clock.lap("time/rollout");

        let passes = minibatches(
            &episodes,
            &plan.prompts,
            config.rollout.samples_per_prompt,
            (config.ppo.ppo_epochs, config.ppo.num_minibatches, config.train.micro_batch_tokens),
            (seed, self.state.step),
            self.world.share(),
        );
        // The very micro-batches of the first pass: the policy gives every token the probability that it will have there.
        let batches: Vec<&MicroBatch> = passes[0].iter().flat_map(|part| &part.own).collect();
        let mut experience = Experience::new(episodes.len());
        experience.scores =
            scores(self.world, self.models, plan, &plan.prompts, &episodes, &batches)?;
        clock.lap("time/scoring");
        let temperature = config.rollout.temperature;
        reference_pass(self.models, &batches, temperature, &mut experience.reference)?;
        clock.lap("time/reference");
        policy_pass(self.models, &batches, temperature, &mut experience)?;
        experience.exchange(self.world, &episodes)?;
        experience.judge(config, self.state.kl_coef);
        let factor = config.train.schedule.factor(self.state.step, config.train.steps);
        let warmup = self.state.step < config.ppo.critic_warmup_steps;
        let course = Course { factor, kl_coef: self.state.kl_coef, warmup };
        let learned = learn(
            self.models,
            &mut self.updaters,
            config,
            &passes,
            &experience,
            &mut self.mix,
            course,
        )?;
        clock.lap("time/update");
        self.take_note(&episodes, &experience, &learned, factor, clock)
    }

    /// What a step leaves behind: state, metrics, samples.
    fn take_note(
        &mut self,
        episodes: &[Episode],
        experience: &Experience,
        learned: &Learned,
        factor: f64,
        clock: Clock,
    ) -> anyhow::Result<()> {
        let config = &self.plan.config;
        let objective = experience.metrics(episodes);
        let kl = objective[0].1;
        let state = &mut self.state;
        state.step += 1;
        state.episode += episodes.len() as u64;
        state.mix = self.mix.as_ref().map(Batcher::cursor);
        state.policy_scale = Some(self.updaters.policy.loss_scale);
        state.value_scale = self.updaters.value.as_ref().map(|updater| updater.loss_scale);
        let (step, coef) = (state.step, state.kl_coef);
        if let KlCoef::Adaptive { target, horizon, .. } = config.kl.coef {
            state.kl_coef = adapt_kl_coef(coef, kl, target, episodes.len() as u64, horizon);
        }
        if let Some(most) = config.kl.stop_above.filter(|most| kl > *most) {
            state.stopped = Some(format!("a KL divergence of {kl:.3} nats is above {most}"));
        }
        state.objective = objective.iter().map(|(name, x)| ((*name).to_owned(), *x)).collect();
        state.skipped_steps += learned.skipped;
        state.skipped_in_a_row = if learned.skipped > 0 { state.skipped_in_a_row + 1 } else { 0 };
        if learned.skipped > 0 {
            tracing::warn!("step {step}: a loss or gradient is not finite; it changed no weight");
            anyhow::ensure!(
                state.skipped_in_a_row < MAX_SKIPPED,
                "the loss or its gradient was not finite in {MAX_SKIPPED} steps in a row, up to step {step}; lower \
                 train.optimizer.learning_rate or use precision = \"bf16\" or \"fp32\""
            );
        }
        let last = step == config.train.steps || state.stopped.is_some();
        if step == 1 || step.is_multiple_of(config.samples.every_steps) || last {
            self.show(episodes, experience)?;
        }
        if step.is_multiple_of(config.train.log_every_steps) || last {
            let mut values = objective;
            values.extend(learned.metrics());
            values.push(("objective/kl_coef", coef));
            values.push(("lr", config.train.optimizer.learning_rate * factor));
            values.push(("eps", episodes.len() as f64 / clock.total()));
            values.push(("episode", self.state.episode as f64));
            values.push(("epoch", self.state.prompts.epochs(self.plan.prompts.len())));
            values.extend(clock.laps);
            self.ctx.metrics.log(step, &values)?;
        }
        self.ctx.metrics.advance(step);
        Ok(())
    }

    /// Shows the first responses of a step, with their scores.
    fn show(&mut self, episodes: &[Episode], experience: &Experience) -> anyhow::Result<()> {
        let step = self.state.step;
        let shown = episodes.iter().zip(&experience.scores).take(self.plan.config.samples.count);
        let mut table = String::from("| prompt | response | score |\n|---|---|---|\n");
        for (episode, &score) in shown {
            let prompt = self.plan.prompts[episode.prompt].row.prompt.clone();
            let cell = |text: &str| text.replace('|', "\\|").replace('\n', "<br>");
            let _ = writeln!(table, "| {} | {} | {score:.3} |", cell(&prompt), cell(&episode.text));
            tracing::info!("step {step}: {prompt:?} -> {:?}, score {score:.3}", episode.text);
            self.state.samples.push(Sample { step, prompt, response: episode.text.clone(), score });
        }
        self.ctx.metrics.text("samples", step, &table)?;
        if !self.world.is_first() {
            return Ok(());
        }
        write_samples(self.ctx, &self.state.samples)
    }

    /// What is due after a step, in an order that a resumed run repeats: evaluate, save, stop where asked.
    fn between_steps(&mut self) -> anyhow::Result<()> {
        let (step, done) = (self.state.step, self.is_done());
        let every = |period: Option<u64>| {
            step > 0 && period.is_some_and(|period| step.is_multiple_of(period))
        };
        let config = &self.plan.config;
        let (mut new_best, mut evaluated) = (false, false);
        let wanted = step == 0 || done || every(config.eval.every_steps);
        if wanted && !self.plan.validation.is_empty() && self.state.evaluated_at != Some(step) {
            match self.evaluate() {
                Ok(best) => (new_best, evaluated) = (best, true),
                // The step is saved first; the evaluation is made up for when the run goes on.
                Err(error) if error.is::<Interrupted>() => {}
                Err(error) => return Err(error),
            }
        }
        self.world.agree(self.ctx)?;
        let stop = self.ctx.check_interrupt();
        let keeps_best = config.train.checkpoint.keep_best;
        let good = self.state.skipped_in_a_row == 0;
        let due = good && (every(config.train.checkpoint.every_steps) || done)
            || (new_best && keeps_best)
            || (stop.is_err() && step > 0);
        // One that was saved before an evaluation that has been made up for since is saved again.
        let again = evaluated && self.saved_at == Some(step);
        if (due && self.saved_at != Some(step)) || again {
            self.save()?;
        }
        Ok(stop?)
    }

    /// Evaluates; returns whether it is the best so far.
    fn evaluate(&mut self) -> anyhow::Result<bool> {
        let step = self.state.step;
        let first = match self.state.baseline.take() {
            Some(baseline) => baseline,
            None => baseline(self.ctx, self.world, self.plan, self.models)?,
        };
        let result = evaluate(self.ctx, self.world, self.plan, self.models, &first)?;
        self.ctx.metrics.log(step, &result.values())?;
        let state = &mut self.state;
        state.baseline = Some(first);
        state.evaluated_at = Some(step);
        state.first_eval.get_or_insert_with(|| result.clone());
        state.last_eval = Some(result.clone());
        // The best is a checkpoint, and there is none before the first step.
        let new_best =
            step > 0 && state.best.as_ref().is_none_or(|(_, best)| result.score > best.score);
        if new_best {
            state.best = Some((step, result));
        }
        Ok(new_best)
    }

    fn save(&mut self) -> anyhow::Result<()> {
        let (models, tokenizer) = (&*self.models, &self.plan.tokenizer);
        let step = self.state.step;
        let write = |dir: &Path| {
            checkpoint::save_weights(&models.policy, dir)?;
            tokenizer.save(dir)?;
            // A score on the policy's trunk is no part of a language model's files.
            let own = models.value.as_ref().map(|value| value.params().iter());
            let shared = models.policy.params().iter().filter(|(name, _)| *name == "score.weight");
            let values: Vec<(String, tch::Tensor)> = own
                .into_iter()
                .flatten()
                .chain(shared)
                .map(|(name, tensor)| (name.to_owned(), tensor))
                .collect();
            if !values.is_empty() {
                write_tensors(&dir.join(VALUE), &values)?;
            }
            Ok(())
        };
        let Updaters { policy, value, .. } = &self.updaters;
        let mut optimizers = vec![(OPTIMIZER, policy)];
        optimizers.extend(value.as_ref().map(|updater| (VALUE_OPTIMIZER, updater)));
        checkpoint::save(self.ctx, self.world, step, &self.state, None, write, &optimizers)?;
        self.saved_at = Some(step);
        let settings = &self.plan.config.train.checkpoint;
        let pinned = self.state.best.as_ref().filter(|_| settings.keep_best).map(|(step, _)| *step);
        checkpoint::prune(self.ctx, settings.save_total_limit, pinned)
    }

    /// Puts the best weights in place where they are asked for, and sums the run up.
    fn finish(self) -> anyhow::Result<Results> {
        let Self { ctx, world, plan, models, state, .. } = self;
        world.part(ctx);
        let mut results = Results::new();
        let mut put = |name: &str, value: serde_json::Value| {
            results.insert(name.to_owned(), value);
        };
        put("steps", json!(state.step));
        put("episodes", json!(state.episode));
        put("kl_coef", json!(state.kl_coef));
        put("skipped_steps", json!(state.skipped_steps));
        put("stopped", json!(state.stopped));
        put("prompts_too_long", json!(plan.too_long));
        put("objective", json!(state.objective));
        if let Some(baseline) = &state.baseline {
            let (score, accuracy) = baseline.summary();
            put(
                "reference",
                json!({"score": score, "score_std": baseline.deviation(), "accuracy": accuracy}),
            );
        }
        let keeps_best = plan.config.train.checkpoint.keep_best;
        let handed_on = state.best.as_ref().filter(|_| keeps_best);
        put("eval_before", json!(state.first_eval));
        put("eval", json!(handed_on.map(|(_, best)| best).or(state.last_eval.as_ref())));
        put("best_step", json!(state.best.as_ref().map(|(step, _)| step)));
        // The other ranks' weights are of no more use.
        let first = world.is_first();
        if let Some((step, _)) = handed_on.filter(|(step, _)| first && *step != state.step) {
            let path = checkpoint::path_of(ctx, *step);
            let weights = checkpoint::weights_of(&path, &models.policy);
            checkpoint::load_weights(&mut models.policy, &[&weights, &path.join(VALUE)])?;
        }
        Ok(results)
    }
}

/// Puts weights and optimisers of a checkpoint in place.
fn load(models: &mut Models, updaters: &mut Updaters, dir: &Path) -> anyhow::Result<()> {
    let (policy, value) = (checkpoint::weights_of(dir, &models.policy), dir.join(VALUE));
    if let Some(own) = &mut models.value {
        checkpoint::load_weights(own, &[&value])?;
        checkpoint::load_weights(&mut models.policy, &[&policy])?;
    } else {
        checkpoint::load_weights(&mut models.policy, &[&policy, &value])?;
    }
    let names = [OPTIMIZER, VALUE_OPTIMIZER];
    updaters.all_mut().zip(names).try_for_each(|(updater, name)| updater.load(dir, name))
}

fn write_samples(ctx: &Context, samples: &[Sample]) -> anyhow::Result<()> {
    let columns = [
        Column::required(STEP, Kind::Int),
        Column::required(PROMPT, Kind::Text),
        Column::required(RESPONSE, Kind::Text),
        Column::required(SCORE, Kind::Float32),
    ];
    let mut table = TableWriter::create(ctx.run_dir.samples_path(), &columns)?;
    for Sample { step, prompt, response, score } in samples {
        table.write_row(&[
            Cell::from(*step as i64),
            Cell::from(prompt.as_str()),
            Cell::from(response.as_str()),
            Cell::from(f64::from(*score)),
        ])?;
    }
    table.finish().context("samples")?;
    Ok(())
}

/// Where a step's time goes.
struct Clock {
    started: Instant,
    last: Instant,
    laps: Vec<(&'static str, f64)>,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, laps: Vec::new() }
    }

    fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.laps.push((name, (now - self.last).as_secs_f64()));
        self.last = now;
    }

    fn total(&self) -> f64 {
        (self.last - self.started).as_secs_f64()
    }
}
