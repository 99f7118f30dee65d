//! The supervised loop: pre-training, fine-tuning, everything that minimises a loss over a fixed set of rows.
//!
//! A step: the micro-batches' losses are summed and divided by the number of targets of the **whole step**, so how a step
//! is cut into micro-batches, and over how many processes, changes no result; gradients are clipped, AdamW moves the fp32 masters, and the compute
//! copies are cast anew. A step whose loss or gradient is not finite changes no weight and is counted.
//!
//! Everything that decides the rest of a run is in [`State`] and saved with the weights, so a run that was killed at any
//! moment and started again ends with the same weights, to the bit on a CPU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use data::batch::{Batch, Batcher, Step};
use data::dataset::{Cursor, Dataset, Order};
use data::tokenizer::Tokenizer;
use model::{Decoder, Precision};
use serde::{Deserialize, Serialize};
use serde_json::json;
use stage::{Context, ErrorExt as _, Interrupted, Results};
use tch::{Kind, Tensor};

use crate::checkpoint;
use crate::evaluate::{BestBy, EvalResult, Validation, evaluate};
use crate::loss::LossFn;
use crate::memory_use::{Before, MemoryUse};
use crate::meter::Meter;
use crate::optimizer::LossScale;
use crate::settings::Train;
use crate::update::{Applied, Updater};
use crate::world::World;

const OPTIMIZER: &str = "optimizer";

/// What the loop works from.
#[derive(Debug, Clone)]
pub struct Supervised {
    /// The config table.
    pub settings: Train,
    /// Token files to train on.
    pub train: Vec<PathBuf>,
    /// Passes after which the data ends; `None`: repeated as often as needed.
    pub epochs: Option<u64>,
    /// Optimiser steps of the whole run: what the schedule is stretched over.
    pub total_steps: u64,
    /// The validation split, if there is one.
    pub validation: Option<Validation>,
    /// Which evaluation is the best.
    pub best_by: BestBy,
    /// Saved with every checkpoint, so that it is a whole model.
    pub tokenizer: Option<Arc<Tokenizer>>,
}

/// All that decides the rest of a run, beside weights, optimiser and random generators.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    step: u64,
    cursor: Cursor,
    num_tokens: u64,
    num_rows: u64,
    loss_scale: Option<LossScale>,
    skipped_steps: u64,
    skipped_in_a_row: u64,
    /// Since the last log line.
    window: Sums,
    /// Since the start.
    total: Sums,
    best: Option<Best>,
    evaluated_at: Option<u64>,
    last_eval: Option<EvalResult>,
    evals_without_best: u64,
}

/// The best evaluation so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Best {
    step: u64,
    result: EvalResult,
}

/// Sums over steps that were not skipped.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Sums {
    loss: f64,
    targets: u64,
    metrics: BTreeMap<String, f64>,
}

impl Sums {
    fn add(&mut self, loss: f64, targets: u64, names: &[&'static str], metrics: &[f64]) {
        self.loss += loss;
        self.targets += targets;
        for (name, value) in names.iter().zip(metrics) {
            *self.metrics.entry((*name).to_owned()).or_default() += value;
        }
    }

    fn mean(&self, sum: f64) -> f64 {
        if self.targets == 0 { f64::NAN } else { sum / self.targets as f64 }
    }
}

/// Trains `decoder` to the end of the plan, going on from the newest checkpoint where there is one; returns what the
/// manifest reports. With `keep_best` the decoder then has the weights of the best evaluation, else the last ones.
///
/// # Errors
/// Data that cannot be read; a checkpoint of another run; too many steps in a row that are not finite (the last good
/// checkpoint is named); no space for a checkpoint (the earlier ones stay); [`Interrupted`] by a signal, after saving; a
/// rank that is gone.
pub fn train<B: Batch>(
    ctx: &mut Context,
    world: &World,
    decoder: &mut Decoder,
    plan: &Supervised,
    loss: LossFn<'_, B>,
) -> anyhow::Result<Results> {
    let mut run = Run::start(ctx, world, decoder, plan, loss)?;
    loop {
        run.between_steps()?;
        if run.is_done() {
            break;
        }
        let Some(step) = run.batches.next_step()? else { break };
        run.step(&step)?;
        if run.state.step.is_multiple_of(plan.settings.log_every_steps)
            || run.state.step == plan.total_steps
        {
            run.log()?;
        }
    }
    run.finish()
}

struct Run<'a, B: Batch> {
    ctx: &'a mut Context,
    world: &'a World,
    decoder: &'a mut Decoder,
    plan: &'a Supervised,
    loss: LossFn<'a, B>,
    batches: Batcher<B>,
    updater: Updater,
    tokens_per_epoch: f64,
    state: State,
    saved_at: Option<u64>,
    learning_rate: f64,
    grad_norm: f64,
    meter: Meter,
    /// Of the first step.
    memory: Option<MemoryUse>,
}

impl<'a, B: Batch> Run<'a, B> {
    fn start(
        ctx: &'a mut Context,
        world: &'a World,
        decoder: &'a mut Decoder,
        plan: &'a Supervised,
        loss: LossFn<'a, B>,
    ) -> anyhow::Result<Self> {
        // From here on the first rank has made the run directory what it is to be.
        world.begin(ctx)?;
        let settings = &plan.settings;
        tch::manual_seed(ctx.seed as i64);
        let order = Order::Shuffled { seed: ctx.seed };
        let dataset = Dataset::with_order(&plan.train, order, plan.epochs)?;
        let tokens_per_epoch = dataset.tokens_per_epoch() as f64;
        let mut batches = Batcher::new(dataset, settings.batch_config()).shared(world.share());
        decoder
            .set_checkpointing(settings.activation_checkpointing, settings.checkpointing_interval);
        let mut updater = Updater::new(world, decoder, &settings.optimizer, settings.zero_stage)?;
        let mut state = State::default();
        let mut saved_at = None;
        if let Some(resumed) = checkpoint::resume::<State>(ctx, decoder.device())? {
            let path = &resumed.path;
            let weights = checkpoint::weights_of(path, decoder);
            checkpoint::load_weights(decoder, &[&weights]).hint(checkpoint::DAMAGED)?;
            updater.load(path, OPTIMIZER).hint(checkpoint::DAMAGED)?;
            updater.loss_scale = resumed.state.loss_scale.unwrap_or(updater.loss_scale);
            batches.seek(resumed.state.cursor)?;
            (state, saved_at) = (resumed.state, Some(resumed.step));
        }
        checkpoint::same_in_all(ctx, world, saved_at)?;
        world.share_weights(decoder.params_mut())?;
        ctx.metrics.begin(saved_at)?;
        ctx.metrics.start_progress(plan.total_steps, state.step);
        Ok(Self {
            meter: Meter::new(decoder.device()),
            updater,
            ctx,
            world,
            decoder,
            plan,
            loss,
            batches,
            tokens_per_epoch,
            state,
            saved_at,
            learning_rate: 0.0,
            grad_norm: f64::NAN,
            memory: None,
        })
    }

    fn is_done(&self) -> bool {
        let patience = self.plan.settings.eval.early_stopping_patience;
        self.state.step >= self.plan.total_steps
            || patience.is_some_and(|patience| self.state.evals_without_best >= patience)
    }

    /// One optimiser step.
    fn step(&mut self, step: &Step<B>) -> anyhow::Result<()> {
        self.meter.start();
        let settings = &self.plan.settings;
        let before = self.memory.is_none().then(|| Before::new(self.decoder.device()));
        if self.world.is_shared() {
            tch::manual_seed(self.world.seed(self.ctx.seed, self.state.step));
        }
        let (names, sums) = self.accumulate(step)?;
        if let Some(before) = before {
            let memory = before.measure(self.decoder.params(), self.updater.bytes());
            tracing::info!("memory: {memory}");
            self.memory = Some(memory);
        }
        let factor = settings.schedule.factor(self.state.step, self.plan.total_steps);
        let Applied { grad_norm, sums, finite } =
            self.updater.apply(self.decoder, factor, &sums)?;
        let (loss, metrics) = (sums[0], &sums[1..]);

        let state = &mut self.state;
        state.loss_scale = Some(self.updater.loss_scale);
        state.step += 1;
        state.cursor = self.batches.cursor();
        state.num_tokens += step.num_tokens as u64;
        state.num_rows += step.num_rows as u64;
        self.learning_rate = settings.optimizer.learning_rate * factor;
        self.grad_norm = grad_norm;
        if finite {
            state.skipped_in_a_row = 0;
            let targets = step.num_targets as u64;
            state.window.add(loss, targets, &names, metrics);
            state.total.add(loss, targets, &names, metrics);
        } else {
            state.skipped_steps += 1;
            state.skipped_in_a_row += 1;
        }
        self.meter.stop(step.num_tokens as u64);
        self.ctx.metrics.advance(self.state.step);
        if finite { Ok(()) } else { self.skipped(loss) }
    }

    /// Gradients of the step's mean loss times the loss scale, over all ranks; returns the names of the loss's metrics, and on
    /// the device the sums over the step: loss first, then the metrics. f64 `[1 + metrics]`.
    fn accumulate(&mut self, step: &Step<B>) -> anyhow::Result<(Vec<&'static str>, Tensor)> {
        self.decoder.set_training(true);
        let share = self.updater.loss_scale.scale / step.num_targets as f64;
        let mut names = Vec::new();
        let mut sums: Option<Tensor> = None;
        let last = step.micro_batches.len() - 1;
        for (index, batch) in step.micro_batches.iter().enumerate() {
            let part = (self.loss)(self.decoder, batch)?;
            let counts = if index < step.num_counting { 1.0 } else { 0.0 };
            let loss = &part.sum * (counts * share);
            self.updater.backward(self.decoder, &loss, index == last)?;
            let all = std::iter::once(&part.sum).chain(part.metrics.iter().map(|(_, sum)| sum));
            let all: Vec<Tensor> = all.map(|t| t.detach().to_kind(Kind::Double)).collect();
            let all = Tensor::stack(&all, 0) * counts;
            sums = Some(sums.map_or_else(|| all.shallow_clone(), |before| before + &all));
            names = part.metrics.into_iter().map(|(name, _)| name).collect();
        }
        let sums = sums.context("a step without micro-batches")?;
        self.world.sum(&sums)?;
        Ok((names, sums))
    }

    /// Says that a step was skipped; an error if there were too many in a row.
    fn skipped(&self, loss: f64) -> anyhow::Result<()> {
        let State { step, skipped_in_a_row, .. } = self.state;
        let what = if loss.is_finite() { "gradient" } else { "loss" };
        if self.decoder.precision() != Precision::Fp16 || skipped_in_a_row > 1 {
            tracing::warn!("step {step}: the {what} is not finite; the step is skipped");
        }
        if skipped_in_a_row < self.plan.settings.max_skipped_steps {
            return Ok(());
        }
        let good = match checkpoint::steps(self.ctx)?.pop() {
            Some(step) => format!(
                "the last good checkpoint is {}",
                checkpoint::path_of(self.ctx, step).display()
            ),
            None => "there is no checkpoint; set train.checkpoint.every_steps".to_owned(),
        };
        let error = anyhow::anyhow!(
            "the loss or its gradient was not finite in {skipped_in_a_row} steps in a row, up to step {step}; {good}"
        );
        Err(error).hint(
            "lower train.optimizer.learning_rate, set max_grad_norm, or use precision = \"bf16\" or \"fp32\"; \
             a checkpoint can be given as the model of a new run",
        )
    }

    fn log(&mut self) -> anyhow::Result<()> {
        let State { step, num_tokens, num_rows, skipped_steps, .. } = self.state;
        let window = std::mem::take(&mut self.state.window);
        let mut values = vec![
            ("loss", window.mean(window.loss)),
            ("learning_rate", self.learning_rate),
            ("grad_norm", self.grad_norm),
        ];
        values.extend(window.metrics.iter().map(|(name, sum)| (name.as_str(), window.mean(*sum))));
        values.push(("epoch", num_tokens as f64 / self.tokens_per_epoch));
        values.push(("num_tokens", num_tokens as f64));
        values.extend(B::ROWS_METRIC.map(|name| (name, num_rows as f64)));
        values.extend(self.meter.take_rate().map(|rate| ("tokens_per_second", rate)));
        if skipped_steps > 0 {
            values.push(("skipped_steps", skipped_steps as f64));
        }
        if self.decoder.precision() == Precision::Fp16 {
            values.push(("loss_scale", self.updater.loss_scale.scale));
        }
        values.extend(self.meter.memory_bytes().map(|bytes| ("memory_bytes", bytes)));
        self.ctx.metrics.log(step, &values)
    }

    /// What is due after a step, in an order that a resumed run repeats: evaluate, save, stop where asked.
    fn between_steps(&mut self) -> anyhow::Result<()> {
        let step = self.state.step;
        let every = |period: Option<u64>| {
            step > 0 && period.is_some_and(|period| step.is_multiple_of(period))
        };
        let settings = &self.plan.settings;
        let (mut new_best, mut evaluated) = (false, false);
        if let Some(validation) = &self.plan.validation
            && (every(settings.eval.every_steps) || step == self.plan.total_steps)
            && self.state.evaluated_at != Some(step)
        {
            match evaluate(self.ctx, self.world, self.decoder, validation, self.loss) {
                Ok(result) => (new_best, evaluated) = (self.evaluated(result)?, true),
                Err(error) if error.is::<Interrupted>() => {}
                Err(error) => return Err(error),
            }
        }
        self.world.agree(self.ctx)?;
        let stop = self.ctx.check_interrupt();
        let last = self.is_done();
        // A checkpoint amid skipped steps would have the weights that bring them about.
        let good = self.state.skipped_in_a_row == 0;
        let due = good && (every(settings.checkpoint.every_steps) || last)
            || (new_best && settings.checkpoint.keep_best)
            || (stop.is_err() && step > 0);
        // One that was saved before an evaluation that has been made up for since is saved again.
        let again = evaluated && self.saved_at == Some(step);
        if (due && self.saved_at != Some(step)) || again {
            self.save()?;
        }
        Ok(stop?)
    }

    /// Takes note of an evaluation; returns whether it is the best so far.
    fn evaluated(&mut self, result: EvalResult) -> anyhow::Result<bool> {
        let step = self.state.step;
        let values = result.values();
        let named: Vec<(&str, f64)> =
            values.iter().map(|(n, value)| (n.as_str(), *value)).collect();
        self.ctx.metrics.log(step, &named)?;
        let state = &mut self.state;
        state.evaluated_at = Some(step);
        let finite = result.loss.is_finite();
        if !finite {
            tracing::warn!("step {step}: the loss on the validation split is not finite");
        }
        let by = self.plan.best_by;
        let before = state.best.as_ref().map(|best| best.result.merit(by));
        let new_best = finite && before.is_none_or(|before| result.merit(by) > before);
        state.evals_without_best = if new_best { 0 } else { state.evals_without_best + 1 };
        if new_best {
            state.best = Some(Best { step, result: result.clone() });
        }
        // What is not finite has no form in JSON.
        state.last_eval = Some(result).filter(|_| finite);
        Ok(new_best)
    }

    fn save(&mut self) -> anyhow::Result<()> {
        let decoder = &*self.decoder;
        let step = self.state.step;
        let tokenizer = self.plan.tokenizer.as_deref();
        let write = |dir: &Path| {
            checkpoint::save_weights(decoder, dir)?;
            Ok(tokenizer.map_or(Ok(()), |tokenizer| tokenizer.save(dir))?)
        };
        let (division, optimizers) = (decoder.params().division(), [(OPTIMIZER, &self.updater)]);
        let path = checkpoint::save(
            self.ctx,
            self.world,
            step,
            &self.state,
            division,
            write,
            &optimizers,
        )?;
        tracing::debug!("saved {}", path.display());
        self.saved_at = Some(step);
        let settings = &self.plan.settings.checkpoint;
        let best = self.state.best.as_ref().filter(|_| settings.keep_best);
        let pinned = best.map(|best| best.step);
        checkpoint::prune(self.ctx, settings.save_total_limit, pinned)
    }

    /// Puts the best weights in place where they are asked for, and sums the run up.
    fn finish(self) -> anyhow::Result<Results> {
        let Self { ctx, world, decoder, plan, state, meter, memory, .. } = self;
        ensure!(state.step > 0, "the data gave no step; is every row without targets?");
        let mut results = Results::new();
        let mut put = |name: &str, value: serde_json::Value| {
            results.insert(name.to_owned(), value);
        };
        put("steps", json!(state.step));
        put("num_tokens", json!(state.num_tokens));
        put("train_loss", json!(state.total.mean(state.total.loss)));
        let handed_on = state.best.as_ref().filter(|_| plan.settings.checkpoint.keep_best);
        let eval = handed_on.map(|best| &best.result).or(state.last_eval.as_ref());
        for (name, value) in eval.into_iter().flat_map(EvalResult::values) {
            put(&name, json!(value));
        }
        if let Some(memory) = memory {
            put("memory", json!(memory));
        }
        put("skipped_steps", json!(state.skipped_steps));
        put("tokens_per_second", json!(meter.rate()));
        if let Some(best) = &state.best {
            put("best_eval_loss", json!(best.result.loss));
            put("best_step", json!(best.step));
        }
        world.part(ctx);
        // The other ranks' weights are of no more use, unless they are parts of the first one's.
        let used = world.is_first() || decoder.params().division().is_some();
        if let Some(best) = handed_on.filter(|best| used && best.step != state.step) {
            let weights = checkpoint::weights_of(&checkpoint::path_of(ctx, best.step), decoder);
            checkpoint::load_weights(decoder, &[&weights])?;
        }
        decoder.set_training(false);
        Ok(results)
    }
}

#[cfg(test)]
mod tests;
