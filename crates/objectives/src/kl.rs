//! How far a policy has moved from its reference, and what that costs.

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// An estimator of `KL(policy ‖ reference)` from tokens that the policy sampled.
///
/// Source: Schulman 2020, "Approximating KL Divergence", <http://joschu.net/blog/kl-approx.html>. With
/// `log_ratio = log policy - log reference` of the sampled token:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlEstimator {
    /// `log_ratio`: unbiased, large variance, may be negative.
    #[default]
    K1,
    /// `log_ratio² / 2`: biased, small variance, never negative.
    K2,
    /// `exp(-log_ratio) - 1 + log_ratio`: unbiased, small variance, never negative.
    K3,
}

impl KlEstimator {
    /// The estimate of one token, in nats.
    #[must_use]
    pub fn of(self, log_ratio: f64) -> f64 {
        match self {
            Self::K1 => log_ratio,
            Self::K2 => 0.5 * log_ratio * log_ratio,
            Self::K3 => (-log_ratio).exp_m1() + log_ratio,
        }
    }

    /// The estimates of many tokens, differentiable. `[N]` to `[N]`.
    pub fn of_tensor(self, log_ratio: &Tensor) -> Tensor {
        match self {
            Self::K1 => log_ratio.shallow_clone(),
            Self::K2 => log_ratio.square() * 0.5,
            Self::K3 => (-log_ratio).expm1() + log_ratio,
        }
    }
}

/// The coefficient of the KL penalty after a step that trained on `episodes` responses of mean KL `kl` nats.
///
/// Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", arXiv:1909.08593, section 2.2:
///   `e = clip(kl / target - 1, -0.2, 0.2)`, `β ← β (1 + e · episodes / horizon)`
#[must_use]
pub fn adapt_kl_coef(coef: f64, kl: f64, target: f64, episodes: u64, horizon: u64) -> f64 {
    let error = (kl / target - 1.0).clamp(-0.2, 0.2);
    coef * (1.0 + error * episodes as f64 / horizon as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn by_hand() {
        let x = 0.5_f64;
        assert_eq!(KlEstimator::K1.of(x), 0.5);
        assert_eq!(KlEstimator::K2.of(x), 0.125);
        assert!((KlEstimator::K3.of(x) - ((-0.5_f64).exp() - 0.5)).abs() < 1e-12);
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
            assert_eq!(estimator.of(0.0), 0.0);
            let tensor = estimator.of_tensor(&Tensor::from_slice(&[x, -2.0]));
            assert!((tensor.double_value(&[0]) - estimator.of(x)).abs() < 1e-12);
            assert!((tensor.double_value(&[1]) - estimator.of(-2.0)).abs() < 1e-12);
        }
        // Where the two hardly differ, k3 is still exact: x²/2 - x³/6.
        assert!((KlEstimator::K3.of(1e-6) / 5e-13 - 1.0).abs() < 1e-3);
    }

    /// k1 and k3 have the exact KL as their mean, k2 has not.
    #[test]
    fn means_over_many_samples() {
        let policy = [0.5, 0.25, 0.15, 0.1_f64];
        let reference = [0.2, 0.3, 0.1, 0.4_f64];
        let exact: f64 = policy.iter().zip(&reference).map(|(p, q)| p * (p / q).ln()).sum();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let count = 400_000;
        let (mut sums, mut squares) = ([0.0; 3], [0.0; 3]);
        for _ in 0..count {
            let mut u: f64 = random.random();
            let token = policy.iter().position(|p| {
                u -= p;
                u < 0.0
            });
            let token = token.unwrap_or(policy.len() - 1);
            let log_ratio = (policy[token] / reference[token]).ln();
            let all = [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3];
            for (i, estimator) in all.into_iter().enumerate() {
                let kl = estimator.of(log_ratio);
                sums[i] += kl;
                squares[i] += kl * kl;
            }
        }
        let mean = |i: usize| sums[i] / f64::from(count);
        // Standard error of the mean.
        let error = |i: usize| {
            ((squares[i] / f64::from(count) - mean(i) * mean(i)) / f64::from(count)).sqrt()
        };
        for i in [0, 2] {
            assert!((mean(i) - exact).abs() < 4.0 * error(i), "{} against {exact}", mean(i));
        }
        let biased: f64 =
            policy.iter().zip(&reference).map(|(p, q)| p * 0.5 * (p / q).ln().powi(2)).sum();
        assert!((mean(1) - biased).abs() < 4.0 * error(1));
        assert!((biased - exact).abs() > 20.0 * error(1), "the test can tell them apart");
    }

    #[test]
    fn the_coefficient_follows_its_target() {
        // Far above: capped at +20 % of episodes / horizon.
        assert!((adapt_kl_coef(0.1, 60.0, 6.0, 1000, 10_000) - 0.1 * 1.02).abs() < 1e-12);
        assert!((adapt_kl_coef(0.1, 0.0, 6.0, 1000, 10_000) - 0.1 * 0.98).abs() < 1e-12);
        assert!((adapt_kl_coef(0.1, 6.6, 6.0, 1000, 10_000) - 0.1 * 1.01).abs() < 1e-12);
        assert_eq!(adapt_kl_coef(0.1, 6.0, 6.0, 1000, 10_000), 0.1);
    }
}
