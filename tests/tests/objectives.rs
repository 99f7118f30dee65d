//! The equations of preference learning and policy optimisation against their papers in double precision:
//! `tests/fixtures/parity/objectives`.
//!
//! The script that makes the numbers computes them another way: sums instead of recursions, cases instead of maxima,
//! derivatives by hand. Every comparison is followed by ones that must fail: one number after another a little off.

use anyhow::{Result, ensure};
use objectives::{KlEstimator, adapt_kl_coef, bradley_terry};
use objectives::{gae, grpo, policy_loss, rloo, value_loss, whiten};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Kind, Tensor};
use temper_tests::close::{DOUBLE, close_number};
use temper_tests::fixtures;

/// How far a number may be off: relative to itself, and to the largest of its list.
#[derive(Clone, Copy)]
struct Slack {
    itself: f64,
    largest: f64,
}

/// Computed in fp64 and stored in fp32: half a unit in the last place.
const STORED: Slack = Slack { itself: 6.1e-8, largest: 1e-12 };
/// Computed in fp32 by products and exponentials: a few roundings.
const SINGLE: Slack = Slack { itself: 1e-6, largest: 0.0 };
/// Computed in fp32 with a difference of numbers as large as the largest.
const DIFFERENCE: Slack = Slack { itself: 1e-6, largest: 1e-7 };

fn read<T: DeserializeOwned>(name: &str) -> Result<T> {
    fixtures::json(&fixtures::parity("objectives").join(name))
}

fn largest(list: &[f64]) -> f64 {
    list.iter().fold(0.0, |most, x| x.abs().max(most))
}

fn compare(what: &str, got: &[f64], want: &[f64], slack: Slack) -> Result<()> {
    ensure!(got.len() == want.len(), "{what}: {} numbers, expected {}", got.len(), want.len());
    // Below the smallest normal number fp32 has fewer digits.
    let floor = slack.largest * largest(want) + f64::from(f32::MIN_POSITIVE);
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let allowed = slack.itself * want.abs() + floor;
        // Written so that NaN fails.
        ensure!(
            (got - want).abs() <= allowed,
            "{what}: {got:e} at {at} instead of {want:e}, allowed {allowed:.1e}"
        );
    }
    Ok(())
}

/// Compares every number, and makes sure that one which is off by a ten-thousandth would show.
fn agree(what: &str, got: &[f64], want: &[f64], slack: Slack) -> Result<()> {
    compare(what, got, want, slack)?;
    let most = largest(want);
    for (at, number) in want.iter().enumerate() {
        let size = if most == 0.0 { 1.0 } else { number.abs().max(0.01 * most) };
        let mut wrong = got.to_vec();
        wrong[at] += 1e-4 * size;
        let seen = compare(what, &wrong, want, slack).is_err();
        ensure!(seen, "{what}: the comparison misses a change at {at}");
    }
    Ok(())
}

/// Compares a sum in fp32 with its terms.
fn agree_sum(what: &str, got: &Tensor, terms: &[f64]) -> Result<()> {
    let (got, want) = (got.double_value(&[]), terms.iter().sum::<f64>());
    let size: f64 = terms.iter().map(|x| x.abs()).sum();
    let near = |got: f64| (got - want).abs() <= 1e-6 * size;
    ensure!(near(got), "{what}: a sum of {got:e} instead of {want:e}");
    let change = 1e-4 * if size == 0.0 { 1.0 } else { size };
    ensure!(!near(got + change), "{what}: the comparison misses a change of the sum");
    Ok(())
}

fn wide(list: &[f32]) -> Vec<f64> {
    list.iter().map(|x| f64::from(*x)).collect()
}

fn tensor(list: &[f32]) -> Tensor {
    Tensor::from_slice(list)
}

fn variable(list: &[f32]) -> Tensor {
    tensor(list).set_requires_grad(true)
}

fn list(t: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::<f64>::try_from(t.detach().to_kind(Kind::Double))?)
}

/// What `loss` gives for each index by itself.
fn one_by_one(count: usize, loss: impl Fn(usize) -> Tensor) -> Vec<f64> {
    (0..count).map(|at| loss(at).double_value(&[])).collect()
}

#[derive(Deserialize)]
struct Gae {
    rewards: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    settings: Vec<GaeSetting>,
}

#[derive(Deserialize)]
struct GaeSetting {
    gamma: f64,
    lambda: f64,
    advantages: Vec<Vec<f64>>,
    returns: Vec<Vec<f64>>,
}

#[test]
fn advantages_and_returns_are_the_sums_of_the_paper() -> Result<()> {
    let Gae { rewards, values, settings } = read("gae.json")?;
    ensure!(settings.len() >= 6 && rewards.len() >= 9);
    for GaeSetting { gamma, lambda, advantages, returns } in &settings {
        ensure!(advantages.len() == rewards.len() && returns.len() == rewards.len());
        let rows = rewards.iter().zip(&values).zip(advantages.iter().zip(returns));
        for (at, ((rewards, values), (advantages, returns))) in rows.enumerate() {
            let what = format!("row {at}, gamma {gamma}, lambda {lambda}");
            let got = gae(rewards, values, *gamma, *lambda);
            agree(&what, &wide(&got.0), advantages, STORED)?;
            agree(&what, &wide(&got.1), returns, STORED)?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Whitening {
    name: String,
    rows: Vec<Vec<f32>>,
    shifted: Vec<Vec<f64>>,
    kept: Vec<Vec<f64>>,
}

#[test]
fn whitened_numbers_are_those_of_the_paper() -> Result<()> {
    let cases: Vec<Whitening> = read("whiten.json")?;
    ensure!(cases.len() >= 9);
    for Whitening { name, rows, shifted, kept } in &cases {
        for (shift_mean, want) in [(true, shifted), (false, kept)] {
            let mut got = rows.clone();
            whiten(&mut got, shift_mean);
            ensure!(got.iter().map(Vec::len).eq(want.iter().map(Vec::len)), "{name}: other rows");
            let what = format!("{name}, mean shifted: {shift_mean}");
            agree(&what, &wide(&got.concat()), &want.concat(), STORED)?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Groups {
    group: usize,
    rewards: Vec<f32>,
    rloo: Vec<f64>,
    grpo: Vec<f64>,
    unscaled: Vec<f64>,
}

#[test]
fn advantages_over_the_group_are_those_of_the_papers() -> Result<()> {
    let cases: Vec<Groups> = read("groups.json")?;
    ensure!(cases.len() >= 5);
    for case in &cases {
        let group = case.group;
        for (name, got, want) in [
            ("rloo", rloo(&case.rewards, group), &case.rloo),
            ("grpo", grpo(&case.rewards, group, true), &case.grpo),
            ("grpo without the deviation", grpo(&case.rewards, group, false), &case.unscaled),
        ] {
            ensure!(got.len() == want.len(), "{name}");
            // Group by group: a large one hides nothing of the others.
            for (at, (got, want)) in got.chunks(group).zip(want.chunks(group)).enumerate() {
                agree(&format!("{name}, group {at} of {group}"), &wide(got), want, STORED)?;
            }
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Divergence {
    estimators: Vec<KlEstimator>,
    rows: Vec<KlRow>,
    coefficients: Vec<Coefficient>,
}

/// Estimates of one token and their derivatives, one of each estimator.
#[derive(Deserialize)]
struct KlRow {
    log_ratio: f64,
    values: Vec<f64>,
    derivatives: Vec<f64>,
}

#[derive(Deserialize)]
struct Coefficient {
    coef: f64,
    kl: f64,
    target: f64,
    episodes: u64,
    horizon: u64,
    after: f64,
}

/// Whether two numbers agree to twelve digits, or to what is left of them where terms as large as `term` cancel.
fn exact(got: f64, want: f64, term: f64) -> bool {
    (got - want).abs() <= 1e-12 * want.abs() + 3e-16 * term.abs()
}

#[test]
fn estimates_of_the_divergence_and_their_derivatives_are_exact() -> Result<()> {
    let Divergence { estimators, rows, .. } = read("kl.json")?;
    ensure!(estimators == [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] && rows.len() >= 13);
    for KlRow { log_ratio, values, derivatives } in &rows {
        for (at, estimator) in estimators.iter().enumerate() {
            let input = Tensor::from_slice(&[*log_ratio]).set_requires_grad(true);
            let output = estimator.of_tensor(&input);
            output.sum(Kind::Double).backward();
            let what = format!("{estimator:?} of {log_ratio:e}");
            for got in [estimator.of(*log_ratio), output.double_value(&[0])] {
                let want = values[at];
                ensure!(exact(got, want, *log_ratio), "{what}: {got:e} instead of {want:e}");
                ensure!(!exact(got * 1.0001 + 1e-20, want, *log_ratio), "{what}");
            }
            let (got, want) = (input.grad().double_value(&[0]), derivatives[at]);
            ensure!(exact(got, want, 1.0), "{what}: a slope of {got:e} instead of {want:e}");
            ensure!(!exact(got * 1.0001 + 1e-14, want, 1.0), "{what}");
        }
    }
    Ok(())
}

#[test]
fn the_coefficient_is_that_of_the_paper() -> Result<()> {
    let Divergence { coefficients, .. } = read("kl.json")?;
    ensure!(coefficients.len() >= 6);
    for Coefficient { coef, kl, target, episodes, horizon, after } in &coefficients {
        let got = adapt_kl_coef(*coef, *kl, *target, *episodes, *horizon);
        let what = format!("{coef} at a divergence of {kl}");
        close_number(&what, got, *after, DOUBLE)?;
        ensure!(close_number(&what, got * 1.0001, *after, DOUBLE).is_err(), "{what}");
    }
    Ok(())
}

#[derive(Deserialize)]
struct Policy {
    name: String,
    clip_range: (f64, f64),
    logprobs: Vec<f32>,
    old_logprobs: Vec<f32>,
    advantages: Vec<f32>,
    losses: Vec<f64>,
    gradient: Vec<f64>,
    clipped: f64,
    ratio: Vec<f64>,
    approx_kl: Vec<f64>,
}

#[test]
fn the_policy_loss_is_that_of_the_paper() -> Result<()> {
    let cases: Vec<Policy> = read("policy.json")?;
    ensure!(cases.len() >= 4 && cases.iter().any(|case| case.clipped > 2.0));
    for case in &cases {
        let Policy { name, logprobs, old_logprobs, advantages, clip_range, .. } = case;
        let input = variable(logprobs);
        let out = policy_loss(&input, &tensor(old_logprobs), &tensor(advantages), *clip_range);
        out.loss_sum.backward();
        agree(&format!("{name}: gradient"), &list(&input.grad())?, &case.gradient, SINGLE)?;
        agree(&format!("{name}: ratio"), &list(&out.ratio)?, &case.ratio, SINGLE)?;
        agree_sum(name, &out.loss_sum, &case.losses)?;
        agree_sum(name, &out.approx_kl_sum, &case.approx_kl)?;
        ensure!(out.clipped.double_value(&[]) == case.clipped, "{name}: clipped tokens");
        let losses = one_by_one(logprobs.len(), |at| {
            let [new, old, advantage] =
                [logprobs, old_logprobs, advantages].map(|list| tensor(&list[at..=at]));
            policy_loss(&new, &old, &advantage, *clip_range).loss_sum
        });
        agree(&format!("{name}: loss"), &losses, &case.losses, SINGLE)?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Value {
    name: String,
    clip_range: Option<f64>,
    values: Vec<f32>,
    old_values: Vec<f32>,
    returns: Vec<f32>,
    losses: Vec<f64>,
    gradient: Vec<f64>,
    clipped: f64,
}

#[test]
fn the_value_loss_is_that_of_the_paper() -> Result<()> {
    let cases: Vec<Value> = read("value.json")?;
    ensure!(cases.len() >= 4 && cases.iter().any(|case| case.clipped > 2.0));
    for case in &cases {
        let Value { name, values, old_values, returns, clip_range, .. } = case;
        let input = variable(values);
        let out = value_loss(&input, &tensor(old_values), &tensor(returns), *clip_range);
        out.loss_sum.backward();
        agree(&format!("{name}: gradient"), &list(&input.grad())?, &case.gradient, SINGLE)?;
        agree_sum(name, &out.loss_sum, &case.losses)?;
        ensure!(out.clipped.double_value(&[]) == case.clipped, "{name}: clipped values");
        let losses = one_by_one(values.len(), |at| {
            let [new, old, wanted] =
                [values, old_values, returns].map(|list| tensor(&list[at..=at]));
            value_loss(&new, &old, &wanted, *clip_range).loss_sum
        });
        agree(&format!("{name}: loss"), &losses, &case.losses, DIFFERENCE)?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Pairs {
    name: String,
    chosen: Vec<f32>,
    rejected: Vec<f32>,
    margins: Option<Vec<f32>>,
    probabilities: Option<Vec<f32>>,
    centering: f64,
    losses: Vec<f64>,
    chosen_gradient: Vec<f64>,
    rejected_gradient: Vec<f64>,
    correct: f64,
    differences: Vec<f64>,
}

#[test]
fn the_loss_of_pairs_is_that_of_the_papers() -> Result<()> {
    let cases: Vec<Pairs> = read("pairs.json")?;
    ensure!(cases.len() >= 6);
    for case in &cases {
        let Pairs { name, centering, .. } = case;
        let margins = case.margins.as_deref().map(tensor);
        let labels = case.probabilities.as_deref().map(tensor);
        let (chosen, rejected) = (variable(&case.chosen), variable(&case.rejected));
        let out = bradley_terry(&chosen, &rejected, margins.as_ref(), labels.as_ref(), *centering);
        out.loss_sum.backward();
        for (side, scores, want) in [
            ("chosen", &chosen, &case.chosen_gradient),
            ("rejected", &rejected, &case.rejected_gradient),
        ] {
            agree(&format!("{name}: {side}"), &list(&scores.grad())?, want, DIFFERENCE)?;
        }
        agree_sum(name, &out.loss_sum, &case.losses)?;
        agree_sum(name, &out.margin_sum, &case.differences)?;
        ensure!(out.correct.double_value(&[]) == case.correct, "{name}: pairs in their order");
        let losses = one_by_one(case.losses.len(), |at| {
            let one = |t: &Tensor| t.detach().narrow(0, at as i64, 1);
            let (margin, label) = (margins.as_ref().map(one), labels.as_ref().map(one));
            let (chosen, rejected) = (one(&chosen), one(&rejected));
            bradley_terry(&chosen, &rejected, margin.as_ref(), label.as_ref(), *centering).loss_sum
        });
        agree(&format!("{name}: loss"), &losses, &case.losses, SINGLE)?;
    }
    Ok(())
}
