//! From a micro-batch of pairs to the loss that the loop minimises.

use data::batch::PairBatch;
use model::Decoder;
use objectives::{Preference, bradley_terry};
use tch::{Kind, Tensor};
use training::branches;
use training::loss::Loss;

/// The metric that decides which model is the best.
pub(crate) const ACCURACY: &str = "accuracy";

/// The Bradley-Terry loss of a batch of pairs, with the metrics that TRL logs: `accuracy`, `margin`, `mean_reward`.
///
/// Both members of all pairs go through the trunk in one forward pass, their prompt once.
pub(crate) fn pair_loss(
    decoder: &Decoder,
    batch: &PairBatch,
    centering: f64,
) -> anyhow::Result<Loss> {
    let scores = branches::scores(decoder, &batch.branches)?.view([-1, 2]);
    let (chosen, rejected) = (scores.select(1, 0), scores.select(1, 1));
    let given = |list: &[f32], neutral: f32| {
        let any = list.iter().any(|value| *value != neutral);
        any.then(|| Tensor::from_slice(list).to_device(decoder.device()))
    };
    let (margins, labels) = (given(&batch.margins, 0.0), given(&batch.probabilities, 1.0));
    let Preference { loss_sum, correct, margin_sum } =
        bradley_terry(&chosen, &rejected, margins.as_ref(), labels.as_ref(), centering);
    let mean_reward = scores.detach().mean_dim(1, false, Kind::Float).sum(Kind::Float);
    Ok(Loss {
        sum: loss_sum,
        metrics: vec![(ACCURACY, correct), ("margin", margin_sum), ("mean_reward", mean_reward)],
    })
}

#[cfg(test)]
mod tests;
