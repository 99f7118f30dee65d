//! Clipped policy optimisation: the losses of policy and value function over sampled tokens.

use tch::{Kind, Tensor};

/// What [`policy_loss`] returns: sums over tokens, never means.
#[derive(Debug)]
pub struct PolicyLoss {
    /// fp32 scalar, differentiable.
    pub loss_sum: Tensor,
    /// `[N]` detached: `new / old` probability of each token.
    pub ratio: Tensor,
    /// fp32 scalar, detached: how many tokens' clipped term is the larger loss, so that they give no gradient.
    pub clipped: Tensor,
    /// fp32 scalar, detached: summed `(log new - log old)² / 2`, an estimate of the KL divergence between the two.
    pub approx_kl_sum: Tensor,
}

/// Beyond this the probability ratio or its gradient would overflow, and the gradient of a clipped token would not be 0.
const LOG_RATIO: f64 = 80.0;

/// The clipped surrogate loss over the tokens of responses.
///
/// Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7, negated: `-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)`, `ρ = exp(log π -
/// log π_old)`. With another bound above than below it is "clip-higher" of Yu et al. 2025 (`DAPO`), arXiv:2503.14476, eq. 8.
///
/// # Deviations
/// 1. `log π - log π_old` is cut off at 80 on both sides, where fp32 ends.
///
/// # Shapes
/// `logprobs` (differentiable), `old_logprobs`, `advantages`: `[N]` fp32; `clip_range` is `(ε below, ε above)`.
pub fn policy_loss(
    logprobs: &Tensor,
    old_logprobs: &Tensor,
    advantages: &Tensor,
    clip_range: (f64, f64),
) -> PolicyLoss {
    let log_ratio = (logprobs - old_logprobs).clamp(-LOG_RATIO, LOG_RATIO);
    let ratio = log_ratio.exp();
    let unclipped = -(&ratio * advantages);
    let clipped = -(ratio.clamp(1.0 - clip_range.0, 1.0 + clip_range.1) * advantages);
    let losses = unclipped.max_other(&clipped);
    PolicyLoss {
        loss_sum: losses.sum(Kind::Float),
        clipped: clipped.gt_tensor(&unclipped).detach().sum(Kind::Float),
        approx_kl_sum: (log_ratio.detach().square() * 0.5).sum(Kind::Float),
        ratio: ratio.detach(),
    }
}

/// What [`value_loss`] returns: sums over tokens, never means.
#[derive(Debug)]
pub struct ValueLoss {
    /// fp32 scalar, differentiable.
    pub loss_sum: Tensor,
    /// fp32 scalar, detached: how many tokens' clipped term is the larger loss.
    pub clipped: Tensor,
}

/// The clipped squared error of values, halved.
///
/// Source: Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", arXiv:2403.17031, detail 23, as in the
/// reference implementation of PPO: `max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²) / 2`.
///
/// # Shapes
/// `values` (differentiable), `old_values`, `returns`: `[N]` fp32. `clip_range` absent: the plain squared error.
pub fn value_loss(
    values: &Tensor,
    old_values: &Tensor,
    returns: &Tensor,
    clip_range: Option<f64>,
) -> ValueLoss {
    let plain = (values - returns).square();
    let Some(range) = clip_range else {
        let clipped = Tensor::zeros([], (Kind::Float, values.device()));
        return ValueLoss { loss_sum: plain.sum(Kind::Float) * 0.5, clipped };
    };
    let near = values.clamp_tensor(Some(old_values - range), Some(old_values + range));
    let clipped = (near - returns).square();
    ValueLoss {
        loss_sum: plain.max_other(&clipped).sum(Kind::Float) * 0.5,
        clipped: clipped.gt_tensor(&plain).detach().sum(Kind::Float),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn value(t: &Tensor) -> f64 {
        t.double_value(&[])
    }

    fn list(t: &Tensor) -> Vec<f32> {
        Vec::try_from(t).unwrap()
    }

    /// Ratio and advantage of each token, and whether it has a gradient: those that clipping would make worse have.
    const TOKENS: [(f32, f32, bool); 6] = [
        (1.0, 2.0, true),
        (1.5, 1.0, false),
        (0.5, 1.0, true),
        (0.5, -1.0, false),
        (1.5, -1.0, true),
        (1.1, 0.0, true),
    ];

    #[test]
    fn policy_inside_and_outside_the_clip_with_gradients() {
        let ratios: Vec<f32> = TOKENS.iter().map(|(ratio, ..)| *ratio).collect();
        let advantages: Vec<f32> = TOKENS.iter().map(|(_, advantage, _)| *advantage).collect();
        let old = tensor(&[-1.0; 6]);
        let new = (tensor(&ratios).log() + &old).detach().set_requires_grad(true);
        let out = policy_loss(&new, &old, &tensor(&advantages), (0.2, 0.3));
        out.loss_sum.backward();
        // -2 - 1.3 - 0.5 + 0.8 + 1.5 - 0
        assert!((value(&out.loss_sum) - -1.5).abs() < 1e-5);
        assert_eq!(value(&out.clipped), 2.0);
        for ((got, (ratio, advantage, moves)), at) in list(&new.grad()).iter().zip(TOKENS).zip(0..)
        {
            // d(-ρA)/d log π = -ρA
            let want = if moves { -ratio * advantage } else { 0.0 };
            assert!((got - want).abs() < 1e-5, "token {at}: {got} against {want}");
        }
        let kl: f32 = ratios.iter().map(|r| r.ln() * r.ln() / 2.0).sum();
        assert!((value(&out.approx_kl_sum) - f64::from(kl)).abs() < 1e-5);
        for (got, want) in list(&out.ratio).iter().zip(ratios) {
            assert!((got - want).abs() < 1e-6);
        }
    }

    #[test]
    fn equal_policies_have_a_ratio_of_exactly_1() {
        let same = tensor(&[-0.1, -7.0, -60.0]);
        let out = policy_loss(&same, &same, &tensor(&[1.0, -1.0, 0.5]), (0.2, 0.2));
        assert_eq!(list(&out.ratio), [1.0, 1.0, 1.0]);
        assert_eq!((value(&out.clipped), value(&out.approx_kl_sum)), (0.0, 0.0));
    }

    #[test]
    fn the_furthest_policies_have_finite_gradients() {
        let new = tensor(&[0.0, 0.0, -500.0]).set_requires_grad(true);
        let out = policy_loss(&new, &tensor(&[-500.0, -90.0, 0.0]), &tensor(&[1.0; 3]), (0.2, 0.2));
        out.loss_sum.backward();
        // Clipped above; far below, where the ratio is all but 0.
        assert!(list(&new.grad()).iter().all(|grad| grad.abs() < 1e-6), "{:?}", list(&new.grad()));
        assert!((value(&out.loss_sum) + 2.4).abs() < 1e-6);
    }

    #[test]
    fn value_inside_and_outside_the_clip_with_gradients() {
        let old = tensor(&[0.0, 0.0, 0.0]);
        let returns = tensor(&[1.0, 1.0, -1.0]);
        // Within the range; beyond it towards the return (clipped is worse); beyond it away from it (plain is worse).
        let values = tensor(&[0.1, 0.5, 0.5]).set_requires_grad(true);
        let out = value_loss(&values, &old, &returns, Some(0.2));
        out.loss_sum.backward();
        let want = (0.9_f64.powi(2) + 0.8_f64.powi(2) + 1.5_f64.powi(2)) / 2.0;
        assert!((value(&out.loss_sum) - want).abs() < 1e-6);
        assert_eq!(value(&out.clipped), 1.0);
        for (got, want) in list(&values.grad()).iter().zip([-0.9, 0.0, 1.5]) {
            assert!((got - want).abs() < 1e-6);
        }
        let plain = value_loss(&values.detach(), &old, &returns, None);
        let want = (0.9_f64.powi(2) + 0.5_f64.powi(2) + 1.5_f64.powi(2)) / 2.0;
        assert!((value(&plain.loss_sum) - want).abs() < 1e-6);
    }

    #[test]
    fn no_tokens_give_zero() {
        let none = tensor(&[]);
        assert_eq!(value(&policy_loss(&none, &none, &none, (0.2, 0.2)).loss_sum), 0.0);
        assert_eq!(value(&value_loss(&none, &none, &none, Some(0.2)).loss_sum), 0.0);
    }
}
