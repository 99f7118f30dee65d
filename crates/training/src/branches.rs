//! Models over prompts with several continuations, the prompts' tokens once.

use anyhow::Context as _;
use data::batch::Branches;
use model::{Decoder, Input};
use tch::Tensor;
use torch_ext::head::{HeadOptions, TILE, linear_cross_entropy};

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

/// What a policy says of responses: `N` tokens of all continuations, one after another.
#[derive(Debug)]
pub struct Responses {
    /// `[N]` fp32, differentiable: the log-probability of each token at the temperature.
    pub logprobs: Tensor,
    /// `[N]` fp32, differentiable: the entropy in nats of the distribution each token is drawn from.
    pub entropy: Tensor,
    /// `[N, D]`: the final hidden states before each token, in the compute precision.
    pub hidden: Tensor,
}

/// Log-probabilities and entropies of the continuations' tokens under `softmax(logits / temperature)`. Full logits are
/// never held.
///
/// # Errors
/// As [`input`]; a model without a language-model head.
pub fn responses(
    decoder: &Decoder,
    branches: &Branches,
    temperature: f64,
) -> anyhow::Result<Responses> {
    let (rows, targets) = predicted(branches);
    let device = decoder.device();
    let targets = Tensor::from_slice(&targets).to_device(device);
    let hidden = select(decoder, branches, &rows)?;
    let (weight, bias) = decoder.head()?;
    let options = HeadOptions {
        temperature,
        want_logprobs: true,
        want_entropy: true,
        ..HeadOptions::default()
    };
    let out = linear_cross_entropy(&hidden, &weight, bias.as_ref(), &targets, &options)?;
    let missing = || anyhow::anyhow!("the output layer gave no log-probabilities");
    Ok(Responses {
        logprobs: out.logprobs.ok_or_else(missing)?,
        entropy: out.entropy.ok_or_else(missing)?,
        hidden: hidden.narrow(0, 0, rows.len() as i64),
    })
}

/// The log-probability in nats of each token of each continuation, in fp32 and without gradients. Full logits are never
/// held. A prompt with a continuation may have a token more than the model has positions: the last is not read.
///
/// # Errors
/// As [`responses`].
pub fn logprobs(decoder: &Decoder, branches: &Branches) -> anyhow::Result<Vec<Vec<f32>>> {
    let _guard = tch::no_grad_guard();
    let (rows, targets) = predicted(branches);
    let targets = Tensor::from_slice(&targets).to_device(decoder.device());
    let hidden = select(decoder, branches, &rows)?;
    let (weight, bias) = decoder.head()?;
    let options = HeadOptions { want_logprobs: true, ..HeadOptions::default() };
    let out = linear_cross_entropy(&hidden, &weight, bias.as_ref(), &targets, &options)?;
    let missing = || anyhow::anyhow!("the output layer gave no log-probabilities");
    let all: Vec<f32> = Vec::try_from(out.logprobs.ok_or_else(missing)?)?;
    let mut rest = all.as_slice();
    let mut take = |count: usize| {
        let (own, others) = rest.split_at(count);
        rest = others;
        own.to_vec()
    };
    Ok(branches.responses.iter().map(|response| take(response.len())).collect())
}

/// The score of each text of token ids, `None` where it is empty or longer than the context; `most` tokens go through the
/// model at once. `done` hears how many have been scored.
///
/// # Errors
/// As [`scores`]; those of `done`.
pub fn text_scores(
    decoder: &Decoder,
    texts: &[Vec<i64>],
    most: usize,
    mut done: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Option<f32>>> {
    let room = decoder.config().max_position_embeddings as usize;
    let mut all = vec![None; texts.len()];
    let mut from = 0;
    while from < texts.len() {
        let (mut row, mut members) = (Branches::new(), Vec::new());
        while let Some(text) = texts.get(from) {
            if !members.is_empty() && row.num_tokens() + text.len() > most {
                break;
            }
            if (1..=room).contains(&text.len()) {
                row.push(&[], &[text]);
                members.push(from);
            }
            from += 1;
        }
        if !members.is_empty() {
            let scores = tch::no_grad(|| scores(decoder, &row)).context("scoring")?;
            for (member, score) in members.into_iter().zip(Vec::<f32>::try_from(scores)?) {
                all[member] = Some(score);
            }
        }
        done(from)?;
    }
    Ok(all)
}

/// The value of the state before each token of the continuations: `[N]` fp32, differentiable.
///
/// # Errors
/// As [`input`]; a model without a score.
pub fn values(decoder: &Decoder, branches: &Branches) -> anyhow::Result<Tensor> {
    let (rows, _) = predicted(branches);
    let hidden = select(decoder, branches, &rows)?.narrow(0, 0, rows.len() as i64);
    Ok(decoder.scores(&hidden)?)
}

/// For each token of the continuations the index of the token before it, and the token itself.
fn predicted(branches: &Branches) -> (Vec<i64>, Vec<i64>) {
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (prompt, response) in branches.prompts.iter().zip(&branches.responses) {
        // The first one is predicted at the end of its prompt, which lies before other continuations.
        rows.push(prompt.end as i64 - 1);
        rows.extend((response.start..response.end - 1).map(|at| at as i64));
        targets.extend_from_slice(&branches.input_ids[response.clone()]);
    }
    (rows, targets)
}

/// The final hidden states of these rows, filled up to whole tiles.
fn select(decoder: &Decoder, branches: &Branches, rows: &[i64]) -> model::Result<Tensor> {
    let mut rows = rows.to_vec();
    rows.resize(rows.len().next_multiple_of(TILE as usize), 0);
    let mut branches = branches.clone();
    // Nothing comes after a continuation's last token, so any position will do for it: one behind the model's last is allowed.
    let last = decoder.config().max_position_embeddings - 1;
    for response in &branches.responses {
        let position = &mut branches.positions[response.end - 1];
        if *position == last + 1 {
            *position = last;
        }
    }
    let hidden = decoder.hidden(&input(decoder, &branches)?)?;
    Ok(hidden.index_select(0, &Tensor::from_slice(&rows).to_device(decoder.device())))
}
