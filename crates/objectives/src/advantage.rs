//! How much better a token or a response was than expected. Over slices: these are small, and sums run in fp64.

/// Generalised advantage estimates of one response, and the returns that its values should have predicted.
///
/// Source: Schulman et al. 2016, arXiv:1506.02438, eqs. 11, 12 and 16: `δ_t = r_t + γ V_{t+1} - V_t`,
/// `A_t = Σ_l (γλ)^l δ_{t+l}`; the return is `A_t + V_t` (Schulman et al. 2017, arXiv:1707.06347, section 5).
///
/// `rewards` and `values` have one number a token of the response: `values[t]` is predicted before token `t` is chosen. After
/// the last token there is nothing: its next value is 0, also where the response was cut off by its length.
///
/// # Panics
/// If the two are not equally long.
#[must_use]
pub fn gae(rewards: &[f32], values: &[f32], gamma: f64, lambda: f64) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(rewards.len(), values.len(), "a value for every reward");
    let (mut advantages, mut returns) = (vec![0.0; rewards.len()], vec![0.0; rewards.len()]);
    let (mut next_value, mut advantage) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let value = f64::from(values[t]);
        let delta = f64::from(rewards[t]) + gamma * next_value - value;
        advantage = delta + gamma * lambda * advantage;
        advantages[t] = advantage as f32;
        returns[t] = (advantage + value) as f32;
        next_value = value;
    }
    (advantages, returns)
}

/// Each response's advantage over the mean of the others to the same prompt.
///
/// Source: Ahmadian et al. 2024, "Back to Basics", arXiv:2402.14740, eq. 8 (`RLOO`). `rewards` holds groups of `group`
/// responses to one prompt, one after another.
///
/// # Panics
/// If `group` is below 2 or does not divide the number of rewards.
#[must_use]
pub fn rloo(rewards: &[f32], group: usize) -> Vec<f32> {
    assert!(group >= 2 && rewards.len().is_multiple_of(group), "groups of {group}");
    let mut advantages = Vec::with_capacity(rewards.len());
    for of_prompt in rewards.chunks(group) {
        let sum: f64 = of_prompt.iter().map(|r| f64::from(*r)).sum();
        let others = (group - 1) as f64;
        let leave_one_out = |r: &f32| f64::from(*r) - (sum - f64::from(*r)) / others;
        advantages.extend(of_prompt.iter().map(|r| leave_one_out(r) as f32));
    }
    advantages
}

/// Each response's advantage over its group's mean, in standard deviations of the group where `scale` is set.
///
/// Source: Shao et al. 2024, `DeepSeekMath`, arXiv:2402.03300, section 4.1.2 (`GRPO`): `(r - mean) / std`. Without `scale` it
/// is the form of Liu et al. 2025, arXiv:2503.20783 ("Dr. GRPO"), which does not favour prompts whose rewards hardly differ.
///
/// # Deviations
/// 1. The standard deviation is the sample's (divided by n - 1), as in TRL, and 1e-4 is added to it.
///
/// # Panics
/// If `group` is below 2 or does not divide the number of rewards.
#[must_use]
pub fn grpo(rewards: &[f32], group: usize, scale: bool) -> Vec<f32> {
    assert!(group >= 2 && rewards.len().is_multiple_of(group), "groups of {group}");
    let mut advantages = Vec::with_capacity(rewards.len());
    for of_prompt in rewards.chunks(group) {
        let (mean, deviation) = mean_and_deviation(of_prompt.iter().copied());
        let unit = if scale { deviation + 1e-4 } else { 1.0 };
        advantages.extend(of_prompt.iter().map(|r| ((f64::from(*r) - mean) / unit) as f32));
    }
    advantages
}

/// Brings the numbers of all rows together to a standard deviation of 1, and with `shift_mean` to a mean of 0; without it
/// the mean stays.
///
/// Source: Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", arXiv:2403.17031, detail 22: advantages are
/// whitened with the mean shifted, rewards without. Every number counts once, whatever row it is in.
///
/// # Deviations
/// 1. The variance is the sample's (divided by n - 1), as in TRL; 1e-8 is added to it. A single number is only shifted.
pub fn whiten(rows: &mut [Vec<f32>], shift_mean: bool) {
    let (mean, deviation) = mean_and_deviation(rows.iter().flatten().copied());
    let unit = (deviation * deviation + 1e-8).sqrt();
    let count: usize = rows.iter().map(Vec::len).sum();
    let unit = if count < 2 { 1.0 } else { unit };
    let kept = if shift_mean { 0.0 } else { mean };
    for number in rows.iter_mut().flatten() {
        *number = ((f64::from(*number) - mean) / unit + kept) as f32;
    }
}

/// Mean and sample standard deviation (0 for fewer than two numbers).
#[must_use]
pub fn mean_and_deviation(numbers: impl Iterator<Item = f32> + Clone) -> (f64, f64) {
    let count = numbers.clone().count();
    if count == 0 {
        return (0.0, 0.0);
    }
    let mean = numbers.clone().map(f64::from).sum::<f64>() / count as f64;
    let squares: f64 = numbers.map(|x| (f64::from(x) - mean).powi(2)).sum();
    (mean, if count < 2 { 0.0 } else { (squares / (count - 1) as f64).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &[f32], b: &[f64]) {
        assert_eq!(a.len(), b.len());
        for (x, y) in a.iter().zip(b) {
            assert!((f64::from(*x) - y).abs() < 1e-6, "{a:?} against {b:?}");
        }
    }

    const REWARDS: [f32; 3] = [0.1, -0.2, 1.0];
    const VALUES: [f32; 3] = [0.5, 0.25, -0.5];

    #[test]
    fn gae_by_hand() {
        // δ = [0.1 + 0.9·0.25 - 0.5, -0.2 - 0.9·0.5 - 0.25, 1.5] = [-0.175, -0.9, 1.5], γλ = 0.72
        let (advantages, returns) = gae(&REWARDS, &VALUES, 0.9, 0.8);
        let last = 1.5;
        let second = -0.9 + 0.72 * last;
        let first = -0.175 + 0.72 * second;
        close(&advantages, &[first, second, last]);
        close(&returns, &[first + 0.5, second + 0.25, last - 0.5]);
    }

    #[test]
    fn lambda_0_looks_one_step_ahead_and_lambda_1_to_the_end() {
        let (one_step, _) = gae(&REWARDS, &VALUES, 1.0, 0.0);
        close(&one_step, &[0.1 + 0.25 - 0.5, -0.2 - 0.5 - 0.25, 1.5]);
        let (to_the_end, returns) = gae(&REWARDS, &VALUES, 1.0, 1.0);
        close(&to_the_end, &[0.9 - 0.5, 0.8 - 0.25, 1.5]);
        close(&returns, &[0.9, 0.8, 1.0]);
        assert_eq!(gae(&[], &[], 1.0, 0.95), (vec![], vec![]));
    }

    #[test]
    fn rloo_by_hand() {
        close(&rloo(&[1.0, 2.0, 6.0, 0.0, 0.0, 3.0], 3), &[-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]);
        close(&rloo(&[5.0, 5.0], 2), &[0.0, 0.0]);
    }

    #[test]
    fn grpo_by_hand() {
        // Group 1: mean 3, squares 4 + 1 + 9 = 14, deviation √7. Group 2 does not vary.
        let unit = 7.0_f64.sqrt() + 1e-4;
        let rewards = [1.0, 2.0, 6.0, 2.0, 2.0, 2.0];
        close(&grpo(&rewards, 3, true), &[-2.0 / unit, -1.0 / unit, 3.0 / unit, 0.0, 0.0, 0.0]);
        close(&grpo(&rewards, 3, false), &[-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn whitening_is_over_all_rows_and_can_leave_the_mean() {
        // Mean 2.5, sample variance 5/3.
        let unit = (5.0_f64 / 3.0 + 1e-8).sqrt();
        let rows = || vec![vec![1.0, 2.0], vec![], vec![3.0, 4.0]];
        let mut shifted = rows();
        whiten(&mut shifted, true);
        close(&shifted.concat(), &[-1.5 / unit, -0.5 / unit, 0.5 / unit, 1.5 / unit]);
        let mut kept = rows();
        whiten(&mut kept, false);
        close(
            &kept.concat(),
            &[-1.5 / unit + 2.5, -0.5 / unit + 2.5, 0.5 / unit + 2.5, 1.5 / unit + 2.5],
        );
    }

    #[test]
    fn whitening_of_little_is_finite() {
        let mut one = vec![vec![3.0]];
        whiten(&mut one, true);
        assert_eq!(one, [[0.0]]);
        let mut equal = vec![vec![7.0; 4]];
        whiten(&mut equal, true);
        assert_eq!(equal, [[0.0; 4]]);
        whiten(&mut [], true);
        let mut extreme = vec![vec![1e30, -1e30]];
        whiten(&mut extreme, true);
        assert!(extreme.concat().iter().all(|x| x.is_finite()));
    }
}
