//! Learning what is preferred from pairs of answers.

use tch::{Kind, Tensor};

/// What [`bradley_terry`] returns: sums over pairs, never means.
#[derive(Debug)]
pub struct Preference {
    /// fp32 scalar, differentiable: summed negative log-likelihood of the labels in nats, with the centring term.
    pub loss_sum: Tensor,
    /// fp32 scalar, detached: how many pairs have the higher score on the chosen answer.
    pub correct: Tensor,
    /// fp32 scalar, detached: summed `chosen - rejected`.
    pub margin_sum: Tensor,
}

/// Summed negative log-likelihood of preferences under the model `P(chosen ≻ rejected) = σ(chosen - rejected)`.
///
/// Source: Ouyang et al. 2022, `InstructGPT`, arXiv:2203.02155, eq. 1: `-log σ(r(x, y_w) - r(x, y_l))`; margins from Touvron
/// et al. 2023, Llama 2, arXiv:2307.09288, eq. 2: `-log σ(r(x, y_c) - r(x, y_r) - m(r))`; the centring term from Eisenstein
/// et al. 2023, arXiv:2312.09244: `c · (r(x, y_c) + r(x, y_r))²`.
///
/// # Shapes
/// - `chosen`, `rejected`: `[N]`, any float type; the loss is computed in fp32
/// - `margins`: `[N]` or absent for 0
/// - `probabilities`: `[N]` in 0..=1, that the chosen answer is the better one, or absent for 1: the cross-entropy of soft
///   labels, `-p log σ(d) - (1 - p) log σ(-d)`
///
/// # Deviations
/// 1. A sum over pairs; the caller divides by the number of pairs of the whole optimiser step.
/// 2. Where labels are soft, the margin acts on the likelihood of the chosen answer and, mirrored, on the other's.
/// 3. Equal scores count as half right, so a model that says nothing has an accuracy of a half.
pub fn bradley_terry(
    chosen: &Tensor,
    rejected: &Tensor,
    margins: Option<&Tensor>,
    probabilities: Option<&Tensor>,
    centering: f64,
) -> Preference {
    let (chosen, rejected) = (chosen.to_kind(Kind::Float), rejected.to_kind(Kind::Float));
    let difference = &chosen - &rejected;
    let logit = margins.map_or_else(|| difference.shallow_clone(), |margins| &difference - margins);
    let mut losses = -logit.log_sigmoid();
    if let Some(p) = probabilities {
        losses = losses * p - (-logit).log_sigmoid() * (1.0 - p);
    }
    if centering > 0.0 {
        losses += centering * (chosen + rejected).square();
    }
    let detached = difference.detach();
    let correct = (detached.sign() + 1.0) / 2.0;
    Preference {
        loss_sum: losses.sum(Kind::Float),
        correct: correct.sum(Kind::Float),
        margin_sum: detached.sum(Kind::Float),
    }
}

/// The probability that a judge gives the letter of the first of two options, of its log-probabilities of both letters: what they say
/// of each other, whatever else it might have said.
///
/// Source: Bai et al. 2022, Constitutional AI, arXiv:2212.08073, section 4.1: "we compute the log probability of the responses
/// (A) and (B), and we make a labeled, preference modeling comparison example with the normalized probabilities as targets".
#[must_use]
pub fn choice_probability(first: f64, second: f64) -> f64 {
    1.0 / (1.0 + (second - first).exp())
}

/// The probability in 0..=1 that answer a is better than answer b, of verdicts by several principles. Of each there are two
/// probabilities of the letter of the option that stands first: where that is a, and where it is b. A half without verdicts.
///
/// Source: the same, where the principles are ensembled.
///
/// # Deviations
/// The paper asks in one order. The mean of both takes out what a judge gives to the place: swapped answers have exactly
/// one minus the label, and equal ones a half.
#[must_use]
pub fn preference_label(verdicts: &[(f64, f64)]) -> f64 {
    let sum: f64 = verdicts.iter().map(|(a_first, b_first)| a_first - b_first).sum();
    let lead = 0.5 * sum / verdicts.len().max(1) as f64;
    // The lesser one from the greater one, so that the two add up to 1 to the bit.
    let greater = 0.5 + lead.abs();
    if lead >= 0.0 { greater } else { 1.0 - greater }
}

/// Expected calibration error of `σ(|margin|)` as the probability that the answer with the higher score is the chosen one.
///
/// Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, eq. 3, with `bins` bins of equal
/// width over the confidences a pair can have, 1/2 to 1. `margins` are `chosen - rejected`. `None` for no margins.
#[must_use]
pub fn calibration_error(margins: &[f64], bins: usize) -> Option<f64> {
    if margins.is_empty() || bins == 0 {
        return None;
    }
    // Number of pairs, summed confidence and summed correctness of each bin.
    let mut sums = vec![(0_u64, 0.0, 0.0); bins];
    for margin in margins {
        let confidence = 1.0 / (1.0 + (-margin.abs()).exp());
        let bin = ((confidence - 0.5) * 2.0 * bins as f64) as usize;
        let sum = &mut sums[bin.min(bins - 1)];
        let correct = if *margin == 0.0 { 0.5 } else { f64::from(*margin > 0.0) };
        *sum = (sum.0 + 1, sum.1 + confidence, sum.2 + correct);
    }
    // |correctness - confidence| of a bin times its share of the pairs.
    let total: f64 = sums.iter().map(|(_, confidence, correct)| (correct - confidence).abs()).sum();
    Some(total / margins.len() as f64)
}

/// Pearson's correlation of two equally long lists; `None` where one of them does not vary.
#[must_use]
pub fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let count = a.len().min(b.len()) as f64;
    let mean = |list: &[f64]| list.iter().sum::<f64>() / count;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut both, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        (both, of_a, of_b) = (both + x * y, of_a + x * x, of_b + y * y);
    }
    (of_a > 0.0 && of_b > 0.0).then(|| both / (of_a.sqrt() * of_b.sqrt()))
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

    #[test]
    fn labels_by_hand() {
        // Letters of 60 and 20 % of all there is: 3 to 1.
        assert!((choice_probability(0.6_f64.ln(), 0.2_f64.ln()) - 0.75).abs() < 1e-12);
        assert_eq!(choice_probability(-1e4, -1.0), 0.0);
        assert_eq!(choice_probability(-1.0, -1e4), 1.0);
        assert_eq!(choice_probability(-700.0, -700.0), 0.5);
        // a first: 0.9 for a; b first: 0.4 for b, so 0.6 for a. And a second principle: 0.7, and 0.5.
        assert!((preference_label(&[(0.9, 0.4)]) - 0.75).abs() < 1e-12);
        assert!((preference_label(&[(0.9, 0.4), (0.7, 0.5)]) - 0.675).abs() < 1e-12);
        assert_eq!(preference_label(&[]), 0.5);
        // A judge that always takes the first has no say.
        assert_eq!(preference_label(&[(1.0, 1.0), (0.8, 0.8)]), 0.5);
    }

    #[test]
    fn swapped_answers_have_the_rest_of_the_label_to_the_bit() {
        let at = |n: u32| f64::from(n.wrapping_mul(2_654_435_761)) / f64::from(u32::MAX);
        for case in 0..2_000 {
            let verdicts: Vec<(f64, f64)> =
                (0..=case % 5).map(|n| (at(case * 11 + n), at(case * 7 + 3 * n + 1))).collect();
            let swapped: Vec<(f64, f64)> = verdicts.iter().map(|(x, y)| (*y, *x)).collect();
            let (label, other) = (preference_label(&verdicts), preference_label(&swapped));
            assert!((0.0..=1.0).contains(&label));
            assert_eq!(label + other, 1.0, "{verdicts:?}");
            assert_eq!(1.0 - label, other, "{verdicts:?}");
        }
    }

    #[test]
    fn by_hand() {
        // d = 1 and -2: log(1 + e^-1) + log(1 + e^2)
        let out = bradley_terry(&tensor(&[2.0, 1.0]), &tensor(&[1.0, 3.0]), None, None, 0.0);
        let want = (1.0 + (-1.0_f64).exp()).ln() + (1.0 + 2.0_f64.exp()).ln();
        assert!((value(&out.loss_sum) - want).abs() < 1e-6);
        assert_eq!((value(&out.correct), value(&out.margin_sum)), (1.0, -1.0));
        // A margin of 3 on the first, and centring: 0.01 * (3² + 4²)
        let margins = tensor(&[3.0, 0.0]);
        let out =
            bradley_terry(&tensor(&[2.0, 1.0]), &tensor(&[1.0, 3.0]), Some(&margins), None, 0.01);
        let want = 2.0 * (1.0 + 2.0_f64.exp()).ln() + 0.25;
        assert!((value(&out.loss_sum) - want).abs() < 1e-6);
    }

    #[test]
    fn gradients_by_hand_and_at_extreme_scores() {
        // dL/dchosen = σ(d) - p; at ±1e4 nothing overflows.
        let chosen = tensor(&[0.5, 1e4, -1e4]).set_requires_grad(true);
        let rejected = tensor(&[-0.5, -1e4, 1e4]).set_requires_grad(true);
        let labels = tensor(&[0.7, 1.0, 1.0]);
        let out = bradley_terry(&chosen, &rejected, None, Some(&labels), 0.0);
        out.loss_sum.backward();
        let sigmoid = 1.0 / (1.0 + (-1.0_f64).exp());
        let (up, down) = (chosen.grad(), rejected.grad());
        for (at, want) in [sigmoid - 0.7, 0.0, -1.0].into_iter().enumerate() {
            let at = [at as i64];
            assert!((up.double_value(&at) - want).abs() < 1e-6);
            assert!((down.double_value(&at) + want).abs() < 1e-6);
        }
        let p = 0.7;
        let want = -p * sigmoid.ln() - (1.0 - p) * (1.0 - sigmoid).ln() + 2e4;
        assert!((value(&out.loss_sum) - want).abs() < 1e-2);
    }

    #[test]
    fn swapping_the_answers_of_a_soft_label_changes_nothing() {
        let (a, b) = (tensor(&[0.3, -1.0]), tensor(&[1.1, 2.0]));
        let p = tensor(&[0.2, 0.9]);
        let one = bradley_terry(&a, &b, None, Some(&p), 0.1);
        let other = bradley_terry(&b, &a, None, Some(&(1.0 - &p)), 0.1);
        assert!((value(&one.loss_sum) - value(&other.loss_sum)).abs() < 1e-6);
        let equal = bradley_terry(&a, &a, None, None, 0.0);
        assert_eq!(value(&equal.correct), 1.0, "equal scores are half right");
    }

    #[test]
    fn no_pairs_give_zero() {
        let none = tensor(&[]);
        assert_eq!(value(&bradley_terry(&none, &none, None, None, 0.1).loss_sum), 0.0);
    }

    #[test]
    fn calibration_by_hand() {
        // Two bins, 1/2..3/4 and 3/4..1. σ(1) = 0.731 right; σ(2) = 0.881 wrong; σ(3) = 0.953 right.
        let s = |x: f64| 1.0 / (1.0 + (-x).exp());
        let want = ((1.0 - s(1.0)) + (1.0 - s(2.0) - s(3.0)).abs()) / 3.0;
        assert!((calibration_error(&[1.0, -2.0, 3.0], 2).unwrap() - want).abs() < 1e-12);
        assert_eq!(calibration_error(&[0.0], 10), Some(0.0));
        assert_eq!(calibration_error(&[f64::INFINITY], 10), Some(0.0));
        assert_eq!(calibration_error(&[], 10), None);
    }

    #[test]
    fn correlation_by_hand() {
        assert!((correlation(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]).unwrap() - 1.0).abs() < 1e-12);
        assert!((correlation(&[1.0, 2.0, 3.0], &[1.0, 3.0, 2.0]).unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(correlation(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(correlation(&[], &[]), None);
    }
}
