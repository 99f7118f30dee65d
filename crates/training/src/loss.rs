//! From a micro-batch to the loss that the loop minimises.

use data::batch::FlatBatch;
use model::Decoder;
use objectives::{NextToken, next_token};
use tch::Tensor;
use torch_ext::head::TILE;

/// What one micro-batch contributes to a step: sums over its targets, never means.
#[derive(Debug)]
pub struct Loss {
    /// f32 scalar, differentiable.
    pub sum: Tensor,
    /// Scalars without gradient, by the name of the metric whose mean they make.
    pub metrics: Vec<(&'static str, Tensor)>,
}

/// Computes the loss of a micro-batch; the loop decides about gradients and dropout.
pub type LossFn<'a, B = FlatBatch> = &'a dyn Fn(&Decoder, &B) -> anyhow::Result<Loss>;

/// The next-token loss of pre-training and of every stage that trains on texts, with the metrics that TRL logs:
/// `mean_token_accuracy` and `entropy`.
///
/// # Errors
/// A token or position the model does not have.
pub fn next_token_loss(decoder: &Decoder, batch: &FlatBatch) -> anyhow::Result<Loss> {
    let input = decoder.input(&batch.input_ids, &batch.positions, &batch.cu_seqlens)?;
    let device = decoder.device();
    let on_device = |list: &[i64]| Tensor::from_slice(list).to_device(device);
    // Filled up to whole tiles; rows without a target count for nothing.
    let mut rows = batch.target_rows.clone();
    rows.resize(rows.len().next_multiple_of(TILE as usize), 0);
    let hidden = decoder.hidden(&input)?.index_select(0, &on_device(&rows));
    let (weight, bias) = decoder.head()?;
    let targets = on_device(&batch.target_ids);
    let NextToken { loss_sum, correct, entropy_sum } =
        next_token(&hidden, &weight, bias.as_ref(), &targets)?;
    Ok(Loss {
        sum: loss_sum,
        metrics: vec![("mean_token_accuracy", correct), ("entropy", entropy_sum)],
    })
}
