//! Maximum likelihood of the next token: the objective of pre-training and of every supervised stage.

use tch::Tensor;
use torch_ext::head::{HeadOptions, linear_cross_entropy};

/// What [`next_token`] returns. Sums, not means: a step's mean is taken once, over all its micro-batches.
#[derive(Debug)]
pub struct NextToken {
    /// Summed negative log-likelihood in nats: f32 scalar, differentiable.
    pub loss_sum: Tensor,
    /// How many targets were the model's first choice: i64 scalar, detached.
    pub correct: Tensor,
    /// Summed entropy of the predicted distributions in nats: f32 scalar, detached.
    pub entropy_sum: Tensor,
}

/// Summed negative log-likelihood of `targets` under `softmax(hidden · weightᵀ + bias)`.
///
/// Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 1:
///   `L(U) = Σ_i log P(u_i | u_{i-k}, …, u_{i-1}; Θ)`, here negated and with the sum over counted tokens only.
///
/// # Shapes
/// - `hidden`: `[N, D]`, the final hidden states of the positions *before* each counted token, any float type
/// - `weight`: `[V, D]`, same type; `bias`: `[V]`
/// - `targets`: `[N]` i64, the counted tokens; further rows of `hidden` count for nothing
///
/// # Deviations
/// 1. A sum over counted tokens; the caller divides by the number of counted tokens of the whole optimiser step (all
///    micro-batches), so accumulation never turns into a mean of means.
/// 2. Softmax and the sum in fp32 whatever the type of `hidden`; the logits are computed in chunks and never held whole.
///
/// # Errors
/// Shapes that do not match, or a target outside the vocabulary.
pub fn next_token(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
) -> Result<NextToken, torch_ext::TorchError> {
    let out = linear_cross_entropy(hidden, weight, bias, targets, &HeadOptions::default())?;
    Ok(NextToken { loss_sum: out.loss_sum, correct: out.correct, entropy_sum: out.entropy_sum })
}

/// `exp` of the mean loss in nats a token.
#[must_use]
pub fn perplexity(mean_loss: f64) -> f64 {
    mean_loss.exp()
}

/// Bits a byte of the text behind the tokens: comparable across tokenizers, unlike loss and perplexity.
///
/// `loss_sum` in nats over all counted tokens; `bytes` of UTF-8 they decode to (special tokens count none).
/// `None` where no byte was counted.
#[must_use]
pub fn bits_per_byte(loss_sum: f64, bytes: u64) -> Option<f64> {
    (bytes > 0).then(|| loss_sum / std::f64::consts::LN_2 / bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn two_tokens_by_hand() {
        // logits are the hidden states themselves: [0, ln 3] -> p = [1/4, 3/4]
        let hidden = Tensor::from_slice(&[0.0_f32, 3.0_f32.ln(), 0.0, 3.0_f32.ln()]).view([2, 2]);
        let weight = Tensor::eye(2, (Kind::Float, Device::Cpu));
        let out = next_token(&hidden, &weight, None, &Tensor::from_slice(&[0_i64, 1])).unwrap();
        let want = 4.0_f64.ln() + (4.0_f64 / 3.0).ln();
        assert!((out.loss_sum.double_value(&[]) - want).abs() < 1e-6);
        assert_eq!(out.correct.int64_value(&[]), 1);
        let entropy = 0.25 * 4.0_f64.ln() + 0.75 * (4.0_f64 / 3.0).ln();
        assert!((out.entropy_sum.double_value(&[]) - 2.0 * entropy).abs() < 1e-6);
    }

    #[test]
    fn uniform_over_256_bytes_is_eight_bits() {
        assert!((bits_per_byte(256.0_f64.ln() * 5.0, 5).unwrap() - 8.0).abs() < 1e-12);
        assert_eq!(bits_per_byte(1.0, 0), None);
        assert!((perplexity(256.0_f64.ln()) - 256.0).abs() < 1e-9);
    }
}
