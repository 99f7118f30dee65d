//! The loss on a validation split.

use std::collections::BTreeMap;
use std::path::PathBuf;

use data::batch::{Batch, BatchConfig, BatchSize, Batcher};
use data::dataset::Dataset;
use model::Decoder;
use objectives::{bits_per_byte, perplexity};
use serde::{Deserialize, Serialize};
use stage::Context;
use tch::Tensor;

use crate::loss::LossFn;
use crate::world::World;

/// The validation split and how much of it is used.
#[derive(Debug, Clone)]
pub struct Validation {
    /// Token files.
    pub files: Vec<PathBuf>,
    /// At most this many tokens (but at least a row), from the beginning; `None`: all.
    pub max_tokens: Option<usize>,
    /// The most tokens in one forward pass.
    pub micro_batch_tokens: usize,
    /// For each token id the bytes of text it stands for, for perplexity and bits per byte; `None` where the loss is not one
    /// of text.
    pub byte_lengths: Option<Vec<u16>>,
}

/// By which number of an evaluation one model is better than another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BestBy {
    /// The loss: the lower, the better.
    #[default]
    Loss,
    /// The mean of the loss's metric of this name: the higher, the better.
    Metric(&'static str),
}

/// Means over the targets of a validation split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalResult {
    /// Mean loss in nats.
    pub loss: f64,
    /// The means of the loss's metrics.
    pub metrics: BTreeMap<String, f64>,
    /// `exp` of the loss, where it is one of text.
    pub perplexity: Option<f64>,
    /// Loss in bits over the bytes of text behind the targets.
    pub bits_per_byte: Option<f64>,
    /// How many targets.
    pub targets: u64,
}

impl EvalResult {
    /// Name and value of each, as they are logged: `eval_loss`, `eval_perplexity`, ...
    pub fn values(&self) -> Vec<(String, f64)> {
        let mut values = vec![("eval_loss".to_owned(), self.loss)];
        values.extend(self.perplexity.map(|value| ("eval_perplexity".to_owned(), value)));
        values.extend(self.bits_per_byte.map(|bits| ("eval_bits_per_byte".to_owned(), bits)));
        values.extend(self.metrics.iter().map(|(name, mean)| (format!("eval_{name}"), *mean)));
        values
    }

    /// The number that decides which model is the best, the higher the better.
    pub(crate) fn merit(&self, best_by: BestBy) -> f64 {
        match best_by {
            BestBy::Loss => -self.loss,
            BestBy::Metric(name) => self.metrics.get(name).copied().unwrap_or(f64::NAN),
        }
    }
}

/// The loss of `decoder` on a validation split, without dropout: token-weighted, so that the division into batches, and over the
/// ranks, changes nothing but rounding. Sums are taken batch by batch; no logits are kept.
///
/// # Errors
/// Data that cannot be read; a signal ([`stage::Interrupted`]).
pub fn evaluate<B: Batch>(
    ctx: &Context,
    world: &World,
    decoder: &mut Decoder,
    validation: &Validation,
    loss: LossFn<'_, B>,
) -> anyhow::Result<EvalResult> {
    let micro_batch_tokens = validation.micro_batch_tokens;
    // Where only a part is wanted it is one step, so that which rows it has does not depend on the micro-batches.
    let most = validation.max_tokens.unwrap_or(micro_batch_tokens * world.share().size);
    let size = BatchSize::Tokens(most);
    let config = BatchConfig { size, micro_batch_tokens };
    let mut batches =
        Batcher::<B>::new(Dataset::sequential(&validation.files)?, config).shared(world.share());
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    let (mut loss_sum, mut targets, mut bytes) = (0.0, 0, 0_u64);
    decoder.set_training(false);
    while let Some(step) = batches.next_step()? {
        for (index, batch) in step.micro_batches.iter().enumerate() {
            ctx.check_interrupt()?;
            let part = tch::no_grad(|| loss(decoder, batch))?;
            // Every rank has the metrics' names, so one whose batch does not count computes it as well.
            let counts = if index < step.num_counting { 1.0 } else { 0.0 };
            loss_sum += counts * f64::try_from(&part.sum)?;
            for (name, sum) in &part.metrics {
                *sums.entry(name).or_default() += counts * f64::try_from(sum)?;
            }
            if let Some(lengths) = validation.byte_lengths.as_ref().filter(|_| counts > 0.0) {
                let of = |id: &i64| lengths.get(*id as usize).copied().map_or(0, u64::from);
                bytes += batch.target_ids().iter().map(of).sum::<u64>();
            }
        }
        targets += step.num_targets as u64;
        if validation.max_tokens.is_some() {
            break;
        }
    }
    anyhow::ensure!(targets > 0, "the validation split has nothing to predict");
    let own: Vec<f64> =
        [loss_sum, bytes as f64].into_iter().chain(sums.values().copied()).collect();
    let all = Tensor::from_slice(&own);
    world.sum(&all)?;
    let all: Vec<f64> = Vec::try_from(all)?;
    (loss_sum, bytes) = (all[0], all[1] as u64);
    for (sum, of_all) in sums.values_mut().zip(&all[2..]) {
        *sum = *of_all;
    }
    let count = targets as f64;
    let metrics = sums.into_iter().map(|(name, sum)| (name.to_owned(), sum / count)).collect();
    let loss = loss_sum / count;
    let perplexity = validation.byte_lengths.as_ref().map(|_| perplexity(loss));
    let bits_per_byte = bits_per_byte(loss_sum, bytes);
    Ok(EvalResult { loss, metrics, perplexity, bits_per_byte, targets })
}
