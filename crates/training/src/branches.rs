//! Models over prompts with several continuations, the prompts' tokens once.

use data::batch::Branches;
use model::{Decoder, Input};
use tch::Tensor;

/// The row of `branches` as `decoder` takes it.
///
/// # Errors
/// A token or position the model does not have.
pub fn input(decoder: &Decoder, branches: &Branches) -> model::Result<Input> {
    let Branches { input_ids, positions, cu_seqlens, expand, .. } = branches;
    if branches.is_plain() {
        return decoder.input(input_ids, positions, cu_seqlens);
    }
    decoder.branched_input(input_ids, positions, cu_seqlens, expand)
}

/// The score of each continuation, in their order: `[R]` fp32, differentiable.
///
/// It is read at the continuation's last token, whatever token that is: a row knows its length, and there is no padding to
/// be told apart from text.
///
/// # Errors
/// As [`input`]; a model without a score.
pub fn scores(decoder: &Decoder, branches: &Branches) -> model::Result<Tensor> {
    let ends: Vec<i64> = branches.responses.iter().map(|range| range.end as i64 - 1).collect();
    let hidden = decoder.hidden(&input(decoder, branches)?)?;
    decoder.scores(&hidden.index_select(0, &Tensor::from_slice(&ends).to_device(decoder.device())))
}
